//! Tags of the replication plane's frames, and how their heads are encoded (postcard).

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::transport::Refusal;

pub(crate) const RAFT_PRE_VOTE: u8 = 1;
pub(crate) const RAFT_VOTE: u8 = 2;
pub(crate) const RAFT_APPEND: u8 = 3;
pub(crate) const RAFT_SNAPSHOT: u8 = 4;
pub(crate) const RAFT_TRANSFER: u8 = 5;
/// A write by a node that does not lead, sent to the one that does.
pub(crate) const FORWARD_PUT: u8 = 6;
pub(crate) const BLOB_PUSH: u8 = 16;
pub(crate) const BLOB_PULL: u8 = 17;

/// Encodes a head.
pub(crate) fn encode<T: Serialize>(value: &T) -> Bytes {
    match postcard::to_stdvec(value) {
        Ok(encoded) => encoded.into(),
        Err(error) => unreachable!("heads are plain data and always encode: {error}"),
    }
}

/// Decodes a head; total.
pub(crate) fn decode<T: DeserializeOwned>(head: &[u8]) -> Result<T, Refusal> {
    match postcard::take_from_bytes(head) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(Refusal(format!("{} bytes after the end of a message head", rest.len()))),
        Err(error) => Err(Refusal(format!("malformed message head: {error}"))),
    }
}
