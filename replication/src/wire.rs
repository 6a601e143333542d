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
/// To join the cluster, or to leave it: to whoever leads or aggregates.
pub(crate) const MEMBERSHIP: u8 = 11;
pub(crate) const BLOB_PUSH: u8 = 16;
pub(crate) const BLOB_PULL: u8 = 17;
/// Asks to be told when the peer has certain bytes, whoever brings them.
pub(crate) const BLOB_AWAIT: u8 = 18;
/// A message of chitchat, which the response answers where it calls for an answer.
pub(crate) const GOSSIP_MESSAGE: u8 = 32;
/// Word of a new record.
pub(crate) const GOSSIP_RUMOUR: u8 = 33;
/// The sender holds a record and accepts it.
pub(crate) const GOSSIP_HAVE: u8 = 34;
/// Asks for a chunk of some bytes.
pub(crate) const GOSSIP_PULL: u8 = 35;
/// Asks for the metadata of a record.
pub(crate) const GOSSIP_DESCRIBE: u8 = 36;
/// A candidate asks for a promise.
pub(crate) const GOSSIP_PROMISE: u8 = 37;
/// The sender aggregates.
pub(crate) const GOSSIP_CLAIM: u8 = 38;
/// The aggregator asks the receiver to take over.
pub(crate) const GOSSIP_HAND_OVER: u8 = 39;
/// The sender aggregated beside another, and yields.
pub(crate) const GOSSIP_YIELD: u8 = 40;
/// Who belongs to the cluster, from the aggregator.
pub(crate) const GOSSIP_MEMBERS: u8 = 41;
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
/// Who belongs to the cluster, from the aggregator.
pub(crate) const BACKUP_MEMBERS: u8 = 57;
/// Who aggregates, from the one who always does.
pub(crate) const LOCAL_EPOCH: u8 = 54;
/// A read, to the aggregator.
pub(crate) const LOCAL_READ: u8 = 55;
/// A worker's own checkpoint, to the aggregator.
pub(crate) const LOCAL_FORWARD: u8 = 56;
