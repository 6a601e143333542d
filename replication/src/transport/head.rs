//! How the heads of frames are encoded (postcard), on both planes.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Refusal;
use crate::work;

/// Encodes plain data.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    match work::timed(work::Kind::Encode, || postcard::to_stdvec(value)) {
        Ok(encoded) => encoded.into(),
        Err(error) => unreachable!("heads are plain data and always encode: {error}"),
    }
}

/// Decodes what [`encode`] made; total.
///
/// # Errors
/// A refusal that says what is wrong: malformed, or longer than what it encodes.
pub fn decode<T: DeserializeOwned>(head: &[u8]) -> Result<T, Refusal> {
    match work::timed(work::Kind::Decode, || postcard::take_from_bytes(head)) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(Refusal(format!("{} bytes after the end of a message head", rest.len()))),
        Err(error) => Err(Refusal(format!("malformed message head: {error}"))),
    }
}
