//! Tags of the replication plane's frames.

pub(crate) use crate::transport::head::{decode, encode};

pub(crate) const RAFT_PRE_VOTE: u8 = 1;
pub(crate) const RAFT_VOTE: u8 = 2;
pub(crate) const RAFT_APPEND: u8 = 3;
pub(crate) const RAFT_SNAPSHOT: u8 = 4;
pub(crate) const RAFT_TRANSFER: u8 = 5;
/// A write by a node that does not lead, sent to the one that does.
pub(crate) const FORWARD_PUT: u8 = 6;
pub(crate) const BLOB_PUSH: u8 = 16;
pub(crate) const BLOB_PULL: u8 = 17;
/// Asks to be told when the peer has certain bytes, whoever brings them.
pub(crate) const BLOB_AWAIT: u8 = 18;
