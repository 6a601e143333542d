//! What nodes say to each other beside chitchat's own messages: heads of frames.

use serde::{Deserialize, Serialize};

use super::announce::Announcement;
use crate::members::{Members, Place};
use crate::store::{CheckpointId, Digest, Epoch, Metadata, NodeId};

/// Metadata up to this size, in bytes, goes with a rumour.
pub(super) const MAX_RUMOUR_METADATA_BYTES: usize = 1024;

/// Holders named in an answer.
pub(super) const MAX_REFERRALS: usize = 16;

/// Word of a new checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Rumour {
    pub(super) announced: Announcement,
    /// If it is small.
    pub(super) metadata: Option<Metadata>,
    /// Somebody else is bringing the bytes.
    pub(super) carried: bool,
}

/// The answer to a rumour: the higher epoch that was promised, if its epoch is refused.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Heard {
    pub(super) fenced_by: Option<Epoch>,
}

/// The sender holds this checkpoint, and has promised no later epoch.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Have {
    pub(super) id: CheckpointId,
    pub(super) digest: Digest,
    /// The newest configuration that the sender knows.
    pub(super) members: Place,
}

/// Asks for a chunk.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Pull {
    pub(super) digest: Digest,
    pub(super) offset: u64,
    /// Nobody else serves it.
    pub(super) insist: bool,
}

/// The answer to a pull.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Pulled {
    /// The chunk is the body.
    Chunk,
    /// Later, or from one of these.
    Busy { holders: Vec<NodeId> },
    /// The bytes are not here.
    NotHere,
}

/// A candidate asks for a promise of its epoch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Candidacy {
    pub(super) epoch: Epoch,
    /// The aggregator that asked it to take over.
    pub(super) blessing: Option<Epoch>,
    /// Among whom it stands.
    pub(super) members: Members,
}

/// The aggregator of an epoch asks the receiver to take over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct HandOver {
    pub(super) epoch: Epoch,
    /// Who belongs to the cluster: nobody would promise anything to a candidate that does not know.
    pub(super) members: Members,
}

/// The answer to a candidate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Promised {
    /// Promised, by a node that holds these checkpoints.
    Granted { holds: Vec<Announcement> },
    /// Refused, because of these.
    Refused { promised: Epoch, in_force: Option<Epoch>, members: Members },
}

/// Who belongs to the cluster, from the aggregator of an epoch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Convene {
    pub(super) epoch: Epoch,
    pub(super) members: Members,
    /// It wants to know what the receiver holds.
    pub(super) counts: bool,
}

/// The answer to the aggregator.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Convened {
    /// This is the newest configuration here, on disk if there is one, and these are held so.
    Yes { members: Place, holds: Vec<Announcement> },
    /// A later epoch is promised.
    No { promised: Epoch },
}

/// Two nodes aggregated at the same time; the sender is the one that yields.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Yield {
    pub(super) stays: Epoch,
    pub(super) yields: Epoch,
}
