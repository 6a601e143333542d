//! What can go wrong with a store, by meaning, and whether the write may have happened.

use serde::{Deserialize, Serialize};

use crate::storage::StorageError;
use crate::store::{CheckpointId, Digest, Epoch, NodeId};

/// What the caller of a failed [`put`](crate::CheckpointStore::put) may assume about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The checkpoint was certainly not written and never will be.
    DidNotHappen,
    /// The checkpoint may have been written, now or later. Read [`latest`](crate::CheckpointStore::latest)
    /// before writing again.
    Unknown,
}

/// An error of a [`CheckpointStore`](crate::CheckpointStore).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum StoreError {
    /// This node may not write the checkpoint, because another node aggregates (or nobody does). Nothing was written.
    #[error("this node is not the aggregator (current: {})", Epoch::describe(*.current))]
    NotAggregator {
        /// The aggregator this node knows of.
        current: Option<Epoch>,
    },
    /// The checkpoint carries the epoch of an aggregator that has been replaced. Nothing was written.
    #[error("epoch {epoch} has ended (current: {})", Epoch::describe(*.current))]
    Fenced {
        /// The epoch of the refused checkpoint.
        epoch: Epoch,
        /// The epoch that is in force.
        current: Option<Epoch>,
    },
    /// A newer checkpoint of the same slot is already acknowledged. Nothing was written.
    #[error("checkpoint {id} is not newer than the acknowledged {latest}")]
    Superseded {
        /// The refused checkpoint.
        id: CheckpointId,
        /// The newest acknowledged checkpoint of that slot.
        latest: CheckpointId,
    },
    /// Parameters or metadata exceed the store's limit. Nothing was written.
    #[error("checkpoint {id} has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// The refused checkpoint.
        id: CheckpointId,
        /// Its size in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The promised guarantee was not reached before the deadline. The write may still happen.
    #[error("no acknowledgement within the deadline: {reason}")]
    Unavailable {
        /// What was awaited.
        reason: String,
    },
    /// The checkpoint is known, but no reachable node serves its bytes.
    #[error("no reachable node holds the bytes of {digest}")]
    Missing {
        /// Digest of the parameters that were asked for.
        digest: Digest,
    },
    /// Bytes do not match the digest they were announced with; they were dropped.
    #[error("bytes from {from} do not match digest {expected}")]
    Corrupt {
        /// The digest that was promised.
        expected: Digest,
        /// Who served the bytes.
        from: NodeId,
    },
    /// This backend's set of nodes is fixed. Nothing was done.
    #[error(
        "this backend's set of nodes is fixed: its quorums are counted among the nodes it was begun with"
    )]
    FixedMembers,
    /// Those that would be left could not keep what the backend promises. Nothing was done.
    #[error("{left} nodes would be left, and what the backend promises takes {needed}")]
    TooFewWouldBeLeft {
        /// Nodes that would be left.
        left: u32,
        /// Nodes that the promise takes.
        needed: u32,
    },
    /// The disk took no more. What was acknowledged is on it; the store goes on, and writes again when there is room. The
    /// write may have happened on other nodes.
    #[error("the disk is full: {reason}")]
    DiskFull {
        /// Which file could not grow.
        reason: String,
    },
    /// The store was shut down, or its protocol core failed for good. The write may still happen.
    #[error("the store is closed: {reason}")]
    Closed {
        /// Why.
        reason: String,
    },
}

impl StoreError {
    /// Whether the write that failed with this error may have happened.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::NotAggregator { .. }
            | Self::Fenced { .. }
            | Self::Superseded { .. }
            | Self::TooLarge { .. }
            | Self::FixedMembers
            | Self::TooFewWouldBeLeft { .. }
            | Self::Corrupt { .. } => Outcome::DidNotHappen,
            Self::Unavailable { .. } | Self::Missing { .. } | Self::DiskFull { .. } | Self::Closed { .. } => {
                Outcome::Unknown
            }
        }
    }
}

/// What was not flushed is not acknowledged.
impl From<StorageError> for StoreError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Full { .. } => Self::DiskFull { reason: error.to_string() },
            _ => Self::Closed { reason: error.to_string() },
        }
    }
}
