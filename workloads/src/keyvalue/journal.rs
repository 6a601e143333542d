//! Batches and snapshots as checkpoints: their names, their slots, their bytes.
//!
//! Deliberately knows neither when a batch is made nor what a store does with it.

use bytes::Bytes;
use replication::transport::{Refusal, head};
use replication::{
    Checkpoint, CheckpointId, DEFAULT_RETAINED, Epoch, Guarantee, Guarantees, Metadata, Phase, Slot,
};
use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::message::Command;

/// Slots that batches take in turn.
pub const SLOTS: u64 = 64;
/// Batches that a store retains, if it retains as many checkpoints per slot as stores do by default.
const RETAINED_BATCHES: u64 = SLOTS * DEFAULT_RETAINED as u64;
/// Batches of which every node is told, where word of checkpoints is passed on and only of the newest.
const TOLD_BATCHES: u64 = 48;

/// Commands that were put together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The batch before it; none: it is the first.
    pub previous: Option<CheckpointId>,
    /// In the order in which they are applied.
    pub commands: Vec<Command>,
}

/// The whole state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The last batch that is in it.
    pub last: Option<CheckpointId>,
    /// The state.
    pub machine: Machine,
}

/// The slot of a batch.
#[must_use]
pub fn slot_of(number: u64) -> Slot {
    Slot::Part((number % SLOTS) as u16)
}

/// The number of a batch, from 1; 0: there is none.
#[must_use]
pub fn number_of(batch: Option<CheckpointId>) -> u64 {
    batch.map_or(0, |id| id.round)
}

fn id(epoch: Epoch, number: u64, slot: Slot) -> CheckpointId {
    CheckpointId { epoch, round: number, phase: Phase::AggregateFit, slot }
}

impl Batch {
    /// The batch as a checkpoint. Numbers grow, by one unless a later epoch left the way of an earlier one.
    #[must_use]
    pub fn to_checkpoint(&self, epoch: Epoch, number: u64) -> Checkpoint {
        Checkpoint::new(id(epoch, number, slot_of(number)), head::encode(self), Metadata::new())
    }

    /// The batch of a checkpoint.
    ///
    /// # Errors
    /// It is none.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, Refusal> {
        head::decode(checkpoint.parameters())
    }
}

impl Snapshot {
    /// The snapshot as a checkpoint, named after its last batch.
    #[must_use]
    pub fn to_checkpoint(&self, epoch: Epoch) -> Checkpoint {
        let bytes: Bytes = head::encode(self);
        Checkpoint::new(id(epoch, number_of(self.last), Slot::Global), bytes, Metadata::new())
    }

    /// The snapshot of a checkpoint.
    ///
    /// # Errors
    /// It is none, or its counts are not those of its entries.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, Refusal> {
        let snapshot: Self = head::decode(checkpoint.parameters())?;
        if snapshot.machine.adds_up() {
            Ok(snapshot)
        } else {
            Err(Refusal("a snapshot whose counts are not those of its entries".into()))
        }
    }
}

/// When a snapshot is due. Pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distance {
    /// So many batches after the last snapshot another one is begun, whatever their size.
    pub due: u64,
    /// So many batches after the last acknowledged snapshot nothing more is written before another one is.
    pub most: u64,
}

/// Batches of fewer bytes than this need no snapshot for their bytes' sake.
const MIN_BYTES: u64 = 1024 * 1024;

impl Distance {
    /// What fits a store: its batches stay reachable from its newest snapshot.
    #[must_use]
    pub fn of(guarantees: Guarantees) -> Self {
        let most = match guarantees.acknowledged {
            Guarantee::Holders { .. } => TOLD_BATCHES,
            _ => RETAINED_BATCHES - SLOTS,
        };
        Self { due: most / 2, most }
    }

    /// Whether a snapshot is due after so many batches of so many bytes since the last one, of a state of `state_bytes`.
    #[must_use]
    pub fn is_due(self, batches: u64, bytes: u64, state_bytes: u64) -> bool {
        batches >= self.due || bytes >= MIN_BYTES.max(4 * state_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::message::Change;
    use super::*;

    const EPOCH: Epoch = Epoch { counter: 2, node: replication::NodeId(1) };

    fn commands() -> impl Strategy<Value = Vec<Command>> {
        let change = prop_oneof![
            (".{0,4}", any::<Vec<u8>>()).prop_map(|(key, value)| Change::Set { key, value: value.into() }),
            ".{0,4}".prop_map(|key| Change::Delete { key }),
            (".{0,4}", any::<i64>()).prop_map(|(key, by)| Change::Add { key, by }),
        ];
        let command = change.prop_map(|change| Command::Change { origin: None, change });
        prop::collection::vec(prop_oneof![1 => Just(Command::OpenSession), 9 => command], 0..12)
    }

    proptest! {
        #[test]
        fn batches_and_snapshots_are_read_back_as_written(commands in commands()) {
            let mut machine = Machine::default();
            for command in &commands {
                machine.apply(command);
            }
            let batch = Batch { previous: None, commands };
            let written = batch.to_checkpoint(EPOCH, 1);
            prop_assert_eq!(Batch::of(&written).unwrap(), batch);
            let snapshot = Snapshot { last: Some(written.id()), machine };
            prop_assert_eq!(Snapshot::of(&snapshot.to_checkpoint(EPOCH)).unwrap(), snapshot);
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes: Vec<u8>) {
            let checkpoint = Checkpoint::new(id(EPOCH, 1, Slot::Global), bytes.into(), Metadata::new());
            let _ = Batch::of(&checkpoint);
            let _ = Snapshot::of(&checkpoint);
        }
    }

    #[test]
    fn a_snapshot_whose_counts_are_wrong_is_refused() {
        let mut machine = Machine::default();
        machine.apply(&Command::Change {
            origin: None,
            change: Change::Set { key: "k".into(), value: "v".into() },
        });
        let bytes = head::encode(&Snapshot { last: None, machine });
        // No last batch, one entry: the length and bytes of its key, then of its value; how many bytes these are.
        let at = [0, 1, 1, b'k', 1, b'v'].len();
        assert_eq!(bytes[..=at], [0, 1, 1, b'k', 1, b'v', 2]);
        for wrong in [0, 3] {
            let mut bytes = bytes.to_vec();
            bytes[at] = wrong;
            let checkpoint = Checkpoint::new(id(EPOCH, 1, Slot::Global), bytes.into(), Metadata::new());
            assert!(Snapshot::of(&checkpoint).unwrap_err().0.contains("counts"));
        }
    }
}
