//! Which checkpoints are acknowledged: the order rules of the contract, as a pure data structure.
//!
//! A ledger knows names, digests and sizes. It deliberately knows neither bytes nor time nor the network, so that every
//! backend, and the reference they are held to, share the same rules.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::store::{Checkpoint, CheckpointId, Digest, Epoch, Metadata, Slot};

/// A checkpoint without its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Its name.
    pub(crate) id: CheckpointId,
    /// Digest of its parameters.
    pub(crate) digest: Digest,
    /// Size of its parameters in bytes.
    pub(crate) bytes: u64,
    /// Small facts beside the parameters.
    pub(crate) metadata: Metadata,
}

impl From<&Checkpoint> for Record {
    fn from(checkpoint: &Checkpoint) -> Self {
        Self {
            id: checkpoint.id(),
            digest: checkpoint.digest(),
            bytes: checkpoint.parameters().len() as u64,
            metadata: checkpoint.metadata().clone(),
        }
    }
}

/// What the order rules say of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Admission {
    /// Newer than everything acknowledged in its slot.
    New,
    /// Acknowledged already, with the same digest.
    Repeat,
    /// Not newer than this acknowledged checkpoint of its slot.
    Superseded(CheckpointId),
}

impl Admission {
    /// The admission as the result of a write of `id`.
    ///
    /// # Errors
    /// [`StoreError::Superseded`].
    pub(crate) fn into_result(self, id: CheckpointId) -> Result<(), StoreError> {
        match self {
            Self::New | Self::Repeat => Ok(()),
            Self::Superseded(latest) => Err(StoreError::Superseded { id, latest }),
        }
    }
}

/// The newest acknowledged checkpoints of every slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ledger {
    retained: usize,
    /// Per slot, oldest first.
    slots: BTreeMap<Slot, VecDeque<Record>>,
}

impl Ledger {
    /// An empty ledger that keeps `retained` checkpoints of each slot.
    pub(crate) fn new(retained: usize) -> Self {
        Self { retained: retained.max(1), slots: BTreeMap::new() }
    }

    /// A ledger of rows that [`row`](Self::row) gave.
    pub(crate) fn of_rows(retained: usize, rows: impl IntoIterator<Item = (Slot, VecDeque<Record>)>) -> Self {
        Self { slots: rows.into_iter().collect(), ..Self::new(retained) }
    }

    /// The retained checkpoints of a slot, oldest first: what changes when one is acknowledged.
    pub(crate) fn row(&self, slot: Slot) -> Option<&VecDeque<Record>> {
        self.slots.get(&slot)
    }

    /// Slots with checkpoints, in order.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> {
        self.slots.keys().copied()
    }

    /// Applies the order rules, changes nothing.
    pub(crate) fn admit(&self, record: &Record) -> Admission {
        let Some(slot) = self.slots.get(&record.id.slot) else { return Admission::New };
        if slot.iter().any(|known| known.id == record.id && known.digest == record.digest) {
            return Admission::Repeat;
        }
        match slot.back() {
            Some(newest) if !Self::follows(record.id, newest.id) => Admission::Superseded(newest.id),
            _ => Admission::New,
        }
    }

    /// The job's state only moves on. Its parts and the workers' slots may be written again by a later epoch, which
    /// repeats a phase that the epoch before it left unfinished.
    fn follows(id: CheckpointId, newest: CheckpointId) -> bool {
        let (now, before) = ((id.round, id.phase), (newest.round, newest.phase));
        id.epoch >= newest.epoch
            && (now > before || (now == before && id.slot != Slot::Global && id.epoch > newest.epoch))
    }

    /// Checkpoints of a slot, newest first.
    pub(crate) fn newest_first(&self, slot: Slot) -> impl Iterator<Item = &Record> {
        self.slots.get(&slot).into_iter().flatten().rev()
    }

    /// The newest checkpoint of a slot.
    pub(crate) fn newest(&self, slot: Slot) -> Option<&Record> {
        self.slots.get(&slot)?.back()
    }

    /// Acknowledges `record` if the rules admit it. Returns what they said, and the digests that no retained
    /// checkpoint refers to any more.
    pub(crate) fn insert(&mut self, record: Record) -> (Admission, Vec<Digest>) {
        let admission = self.admit(&record);
        if admission != Admission::New {
            return (admission, Vec::new());
        }
        let slot = self.slots.entry(record.id.slot).or_default();
        slot.push_back(record);
        let discarded = if slot.len() > self.retained { slot.pop_front() } else { None };
        let unreferenced = discarded.map(|record| record.digest).filter(|digest| !self.refers_to(*digest));
        (Admission::New, unreferenced.into_iter().collect())
    }

    /// Acknowledges `record` on the word of `epoch`, which decides alone: what earlier epochs wrote and `record` does not
    /// follow is dropped. Returns as [`Ledger::insert`].
    pub(crate) fn overrule(&mut self, record: Record, epoch: Epoch) -> (Admission, Vec<Digest>) {
        let mut dropped = Vec::new();
        if let Some(slot) = self.slots.get_mut(&record.id.slot) {
            slot.retain(|known| {
                let kept = known.id.epoch >= epoch || *known == record || Self::follows(record.id, known.id);
                if !kept {
                    dropped.push(known.digest);
                }
                kept
            });
        }
        let (admission, mut released) = self.insert(record);
        dropped.retain(|digest| !self.refers_to(*digest));
        released.extend(dropped);
        (admission, released)
    }

    /// Adds `record`, which is acknowledged and may be older than what is here, at its place, unless its name is known or it is
    /// too old to be kept, which counts as a repeat. Returns the digests that no retained checkpoint refers to any more.
    pub(crate) fn fill(&mut self, record: Record) -> (Admission, Vec<Digest>) {
        let slot = self.slots.entry(record.id.slot).or_default();
        let at = slot.partition_point(|known| known.id < record.id);
        let known = slot.iter().any(|known| known.id == record.id);
        if known || (at == 0 && slot.len() >= self.retained) {
            return (Admission::Repeat, Vec::new());
        }
        slot.insert(at, record);
        let discarded = if slot.len() > self.retained { slot.pop_front() } else { None };
        let unreferenced = discarded.map(|record| record.digest).filter(|digest| !self.refers_to(*digest));
        (Admission::New, unreferenced.into_iter().collect())
    }

    /// Whether a retained checkpoint has these bytes.
    pub(crate) fn refers_to(&self, digest: Digest) -> bool {
        self.records().any(|record| record.digest == digest)
    }

    /// The newest checkpoint of [`Slot::Global`].
    pub(crate) fn latest(&self) -> Option<&Record> {
        self.newest(Slot::Global)
    }

    /// A retained checkpoint by name.
    pub(crate) fn find(&self, id: CheckpointId) -> Option<&Record> {
        self.slots.get(&id.slot)?.iter().find(|record| record.id == id)
    }

    /// Every retained checkpoint, by slot, oldest first.
    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.slots.values().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{NodeId, Phase};

    fn record(counter: u64, round: u64, phase: Phase, content: u8) -> Record {
        let id = CheckpointId { epoch: Epoch { counter, node: NodeId(1) }, round, phase, slot: Slot::Global };
        Record::from(&Checkpoint::new(id, vec![content].into(), Metadata::new()))
    }

    #[test]
    fn what_is_older_is_filled_in_and_drops_nothing_newer() {
        let mut ledger = Ledger::new(3);
        let at = |round| record(1, round, Phase::AggregateFit, round as u8);
        ledger.insert(at(5));
        assert_eq!(ledger.fill(at(3)), (Admission::New, vec![]));
        assert_eq!(ledger.fill(at(3)), (Admission::Repeat, vec![]));
        assert_eq!(ledger.fill(at(6)), (Admission::New, vec![]));
        assert_eq!(ledger.fill(at(2)), (Admission::Repeat, vec![]), "too old");
        assert_eq!(ledger.fill(at(4)), (Admission::New, vec![at(3).digest]));
        let rounds: Vec<u64> = ledger.records().map(|record| record.id.round).collect();
        assert_eq!(rounds, [4, 5, 6]);
    }

    #[test]
    fn rounds_and_phases_only_grow() {
        let mut ledger = Ledger::new(4);
        let first = record(1, 1, Phase::AggregateFit, 1);
        assert_eq!(ledger.insert(first.clone()).0, Admission::New);
        assert_eq!(ledger.insert(first.clone()).0, Admission::Repeat);
        for stale in [
            record(1, 1, Phase::AggregateFit, 2),
            record(1, 1, Phase::ConfigureFit, 1),
            record(2, 1, Phase::AggregateFit, 1),
            record(0, 2, Phase::AggregateFit, 1),
        ] {
            assert_eq!(ledger.insert(stale).0, Admission::Superseded(first.id));
        }
        assert_eq!(ledger.insert(record(2, 1, Phase::ConfigureEvaluate, 1)).0, Admission::New);
        assert_eq!(ledger.insert(record(2, 2, Phase::ConfigureFit, 1)).0, Admission::New);
        assert_eq!(ledger.latest().map(|record| record.id.round), Some(2));
    }

    #[test]
    fn a_later_epoch_repeats_the_parts_of_an_unfinished_phase() {
        let part = |counter| {
            let mut record = record(counter, 3, Phase::AggregateFit, counter as u8);
            record.id.slot = Slot::Part(0);
            record
        };
        let mut ledger = Ledger::new(4);
        assert_eq!(ledger.insert(part(1)).0, Admission::New);
        assert_eq!(ledger.insert(part(2)).0, Admission::New);
        assert_eq!(ledger.insert(part(1)).0, Admission::Repeat);
    }

    #[test]
    fn a_later_epoch_drops_what_its_word_does_not_follow() {
        let mut ledger = Ledger::new(4);
        for round in 4..=6 {
            ledger.insert(record(1, round, Phase::AggregateFit, round as u8));
        }
        let (stays, later) = (record(1, 4, Phase::AggregateFit, 4), record(2, 5, Phase::AggregateFit, 50));
        let (admission, dropped) = ledger.overrule(later.clone(), later.id.epoch);
        assert_eq!((admission, dropped), (Admission::New, vec![Digest::of(&[5]), Digest::of(&[6])]));
        assert_eq!(ledger.records().cloned().collect::<Vec<_>>(), [stays.clone(), later.clone()]);
        let late = ledger.overrule(stays, later.id.epoch);
        assert_eq!(late, (Admission::Repeat, vec![]), "a late message of the same epoch takes nothing back");
        let stale = record(1, 5, Phase::AggregateFit, 5);
        assert_eq!(ledger.overrule(stale, later.id.epoch).0, Admission::Superseded(later.id));
    }

    #[test]
    fn bytes_are_released_only_when_nothing_retained_has_them() {
        let mut ledger = Ledger::new(2);
        ledger.insert(record(1, 1, Phase::AggregateFit, 7));
        ledger.insert(record(1, 2, Phase::AggregateFit, 7));
        let shared = record(1, 3, Phase::AggregateFit, 9);
        assert_eq!(ledger.insert(shared.clone()).1, vec![], "round 2 still has the bytes of round 1");
        let released = ledger.insert(record(1, 4, Phase::AggregateFit, 9)).1;
        assert_eq!(released, vec![Digest::of(&[7])]);
        assert!(ledger.find(shared.id).is_some() && ledger.records().count() == 2);
    }
}
