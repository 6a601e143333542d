//! Tags of the replication plane's frames.

pub(crate) use crate::transport::head::{decode, encode};

pub(crate) const RAFT_PRE_VOTE: u8 = 1;
pub(crate) const RAFT_VOTE: u8 = 2;
pub(crate) const RAFT_APPEND: u8 = 3;
pub(crate) const RAFT_SNAPSHOT: u8 = 4;
pub(crate) const RAFT_TRANSFER: u8 = 5;
/// A write by a node that does not lead, sent to the one that does.
pub(crate) const FORWARD_PUT: u8 = 6;
/// What a node has to offer and how far it is.
pub(crate) const REPORT: u8 = 7;
/// Founding the group of the most suitable.
pub(crate) const FOUND: u8 = 8;
/// Who leads and who votes, for nodes outside of the group.
pub(crate) const NOTICE: u8 = 9;
/// A read by a node outside of the group.
pub(crate) const READ: u8 = 10;
pub(crate) const BLOB_PUSH: u8 = 16;
pub(crate) const BLOB_PULL: u8 = 17;
/// Asks to be told when the peer has certain bytes, whoever brings them.
pub(crate) const BLOB_AWAIT: u8 = 18;
/// Who aggregates, from the one who does.
pub(crate) const BACKUP_HEARTBEAT: u8 = 48;
/// A checkpoint, from the aggregator to one of its backups.
pub(crate) const BACKUP_STORE: u8 = 49;
/// What somebody who may take over has to know.
pub(crate) const BACKUP_ENQUIRE: u8 = 50;
/// Take over: from the aggregator to its successor.
pub(crate) const BACKUP_HAND_OVER: u8 = 51;
/// Which checkpoint is the newest, or has this name: to the aggregator.
pub(crate) const BACKUP_READ: u8 = 52;
/// A worker's own checkpoint, to the aggregator.
pub(crate) const BACKUP_FORWARD: u8 = 53;
