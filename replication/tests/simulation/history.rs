//! What a cluster was asked and what it answered, with the moments: all that the checks look at.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use replication::conformance::parameters;
use replication::{Checkpoint, CheckpointId, Digest, Epoch, NodeId, StoreError};
use tokio::time::Instant;

/// Bytes of every checkpoint.
pub(crate) const CHECKPOINT_BYTES: usize = 5000;

/// The bytes of the only attempt at a round in an epoch.
pub(crate) fn content(epoch: Epoch, round: u64) -> Bytes {
    parameters((round << 32) | (epoch.counter << 8) | epoch.node.0, CHECKPOINT_BYTES)
}

/// One node, from its start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Life {
    pub(crate) node: NodeId,
    /// How often it was restarted before.
    pub(crate) number: u32,
}

/// How a write ended, for who asked for it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ended {
    /// It was acknowledged.
    Acknowledged,
    /// It was not, and may have happened or not: the error says so.
    Failed(StoreError),
}

/// One call of `put`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Write {
    pub(crate) by: Life,
    pub(crate) id: CheckpointId,
    pub(crate) digest: Digest,
    pub(crate) start: Duration,
    pub(crate) end: Duration,
    pub(crate) ended: Ended,
}

/// A checkpoint as a reader saw it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sighting {
    pub(crate) id: CheckpointId,
    pub(crate) digest: Digest,
    /// Its bytes are those of the attempt that its name leads back to.
    pub(crate) intact: bool,
}

impl From<&Checkpoint> for Sighting {
    fn from(checkpoint: &Checkpoint) -> Self {
        let id = checkpoint.id();
        let intact = *checkpoint.parameters() == content(id.epoch, id.round);
        Self { id, digest: checkpoint.digest(), intact }
    }
}

/// One call of `latest`, or of `get` if a name is given.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Read {
    pub(crate) by: Life,
    pub(crate) named: Option<CheckpointId>,
    pub(crate) start: Duration,
    pub(crate) end: Duration,
    pub(crate) found: Result<Option<Sighting>, StoreError>,
}

/// A node learned who aggregates.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Learned {
    pub(crate) by: Life,
    pub(crate) at: Duration,
    pub(crate) epoch: Option<Epoch>,
}

/// Everything, each in the order in which it ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct History {
    pub(crate) writes: Vec<Write>,
    pub(crate) reads: Vec<Read>,
    pub(crate) learned: Vec<Learned>,
    /// Lives that ended, and when.
    pub(crate) deaths: Vec<(Life, Duration)>,
    /// What every node that lived at the end answered when the last fault was long over.
    pub(crate) last: Vec<Read>,
}

impl History {
    /// Writes that were acknowledged.
    pub(crate) fn acknowledged(&self) -> impl Iterator<Item = &Write> {
        self.writes.iter().filter(|write| write.ended == Ended::Acknowledged)
    }

    /// Names of what was acknowledged, without repetitions.
    pub(crate) fn names(&self) -> BTreeSet<CheckpointId> {
        self.acknowledged().map(|write| write.id).collect()
    }
}

/// Writes a history; clones write the same.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    begun: Instant,
    history: Arc<Mutex<History>>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now(), history: Arc::default() }
    }

    pub(crate) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(crate) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap()
    }
}
