//! What a store tells of besides its work, and who listens.

use serde::{Deserialize, Serialize};

use crate::store::{CheckpointId, Digest, Epoch, NodeId};

/// Something that happened inside a store; who observes it stamps it with the time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum StoreEvent {
    /// This node holds the aggregator for dead and sees to a successor: it has not heard of it for its whole detection window,
    /// or its lifeline ended.
    Suspected {
        /// The aggregator it last knew.
        epoch: Option<Epoch>,
        /// For how long it had heard nothing, in nanoseconds; none where the backend does not say.
        #[serde(default)]
        silence_ns: Option<u64>,
        /// Whether the end of a lifeline told.
        #[serde(default)]
        lifeline: bool,
    },
    /// This node learned of a new aggregator (itself included), or that there is none.
    AggregatorChanged {
        /// The aggregator now in force.
        epoch: Option<Epoch>,
    },
    /// A checkpoint became part of this node's acknowledged state.
    Applied {
        /// Its name.
        id: CheckpointId,
        /// Digest of its parameters.
        digest: Digest,
        /// Size of its parameters in bytes.
        bytes: u64,
    },
    /// This node's state was replaced by a snapshot from the aggregator.
    SnapshotInstalled {
        /// Newest checkpoint in it.
        latest: Option<CheckpointId>,
    },
    /// A peer served bytes that do not match their digest; they were dropped.
    CorruptBlob {
        /// The peer.
        from: NodeId,
        /// The digest that was promised.
        digest: Digest,
    },
    /// A peer that claimed to hold bytes does not serve them; another was asked.
    FalseClaim {
        /// The peer.
        from: NodeId,
        /// Digest of the bytes.
        digest: Digest,
    },
    /// Two nodes acted as aggregator at the same time, as this node learned.
    RivalAggregators {
        /// The one that stays.
        stays: Epoch,
        /// The one that yields.
        yields: Epoch,
    },
    /// The set of voters changed (on the node that leads).
    VotersChanged {
        /// The voter that was away too long.
        lost: Option<NodeId>,
        /// The node that votes in its place.
        joined: Option<NodeId>,
        /// Who votes now, in ascending order.
        voters: Vec<NodeId>,
    },
    /// A message was refused, because its sender may not say what it says.
    Refused {
        /// Who sent it, by certificate.
        from: NodeId,
        /// Why.
        reason: String,
    },
}

/// Receives a store's events, in order, from any thread. Must not block.
pub trait Observer: Send + Sync + 'static {
    /// Takes note of `event`.
    fn observe(&self, event: StoreEvent);
}

/// An [`Observer`] that takes no note.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn observe(&self, _event: StoreEvent) {}
}
