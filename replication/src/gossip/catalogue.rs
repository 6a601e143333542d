//! Which checkpoints this node knows of, and which it holds: the order rules of gossip, as a pure data structure.
//!
//! Within a slot checkpoints are ordered by epoch, round and phase, however they became known: what a later epoch writes
//! supersedes what an earlier one left, the same round included. The newest few of a slot are kept.

use std::collections::{BTreeMap, BTreeSet};

use super::announce::{Announcement, Order, metadata_digest, order};
use crate::ledger::Record;
use crate::store::{CheckpointId, Digest, Metadata, NodeId, Slot};

/// Slots of which checkpoints are kept: every tensor of a large model for every worker, and then some.
const MAX_SLOTS: usize = 16_384;

/// A checkpoint this node knows of.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) announced: Announcement,
    /// Once it is known and has matched its digest.
    pub(super) metadata: Option<Metadata>,
    /// Bytes and metadata are here.
    pub(super) held: bool,
    /// Nodes that say they hold it.
    pub(super) holders: BTreeSet<NodeId>,
    /// Nodes that said so to its writer, and take part in no later epoch that excludes it.
    pub(super) accepted: BTreeSet<NodeId>,
}

/// What became of word of a checkpoint.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Learned {
    /// It was unknown. Nothing refers to these digests any more.
    New(Vec<Digest>),
    /// It was known.
    Known,
    /// Another checkpoint of this name is known, or it is too old to be kept.
    Refused,
}

#[derive(Debug)]
pub(super) struct Catalogue {
    retained: usize,
    slots: BTreeMap<Slot, BTreeMap<Order, Entry>>,
}

impl Catalogue {
    pub(super) fn new(retained: usize) -> Self {
        Self { retained: retained.max(1), slots: BTreeMap::new() }
    }

    /// Takes note of a checkpoint, and of a node that says it holds it.
    pub(super) fn learn(&mut self, announced: Announcement, holder: Option<NodeId>) -> Learned {
        let slots = self.slots.len();
        let retained = self.retained;
        let known = self.slots.entry(announced.id.slot);
        if matches!(known, std::collections::btree_map::Entry::Vacant(_)) && slots >= MAX_SLOTS {
            return Learned::Refused;
        }
        let slot = known.or_default();
        if let Some(entry) = slot.get_mut(&announced.order()) {
            if entry.announced != announced {
                return Learned::Refused;
            }
            entry.holders.extend(holder);
            return Learned::Known;
        }
        let oldest = slot.first_key_value().map(|(order, _)| *order);
        if slot.len() >= retained && oldest.is_some_and(|oldest| announced.order() < oldest) {
            return Learned::Refused;
        }
        let holders = holder.into_iter().collect();
        slot.insert(
            announced.order(),
            Entry { announced, metadata: None, held: false, holders, accepted: BTreeSet::new() },
        );
        let discarded = if slot.len() > retained { slot.pop_first() } else { None };
        let discarded = discarded.map(|(_, entry)| entry.announced.digest);
        Learned::New(discarded.into_iter().filter(|digest| !self.refers_to(*digest)).collect())
    }

    /// Takes note of metadata; false if it is not what was announced.
    pub(super) fn describe(&mut self, id: CheckpointId, metadata: Metadata) -> bool {
        let Some(entry) = self.find_mut(id) else { return false };
        if entry.metadata.is_none() {
            if metadata_digest(&metadata) != entry.announced.metadata {
                return false;
            }
            entry.metadata = Some(metadata);
        }
        true
    }

    /// Says that bytes of this digest are here. Returns what is held since.
    pub(super) fn arrived(&mut self, digest: Digest, local: NodeId) -> Vec<Announcement> {
        let mut held = Vec::new();
        for entry in self.slots.values_mut().flat_map(BTreeMap::values_mut) {
            if entry.announced.digest == digest && !entry.held && entry.metadata.is_some() {
                entry.held = true;
                entry.holders.insert(local);
                held.push(entry.announced);
            }
        }
        held
    }

    /// Says that `node` does not have what it was thought to hold.
    pub(super) fn not_held_by(&mut self, digest: Digest, node: NodeId) {
        for entry in self.slots.values_mut().flat_map(BTreeMap::values_mut) {
            if entry.announced.digest == digest {
                entry.holders.remove(&node);
            }
        }
    }

    /// Says that `node` holds a checkpoint and accepts it.
    pub(super) fn accepted_by(&mut self, id: CheckpointId, digest: Digest, node: NodeId) {
        if let Some(entry) = self.find_mut(id).filter(|entry| entry.announced.digest == digest) {
            entry.holders.insert(node);
            entry.accepted.insert(node);
        }
    }

    /// Forgets who accepted what worker `local` writes, but for itself: they are to say so again.
    pub(super) fn forget_accepted(&mut self, local: NodeId) {
        let own = |slot: &Slot| matches!(slot, Slot::Worker { node, .. } if *node == local);
        let slots = self.slots.iter_mut().filter(|(slot, _)| own(slot));
        for entry in slots.flat_map(|(_, entries)| entries.values_mut()) {
            entry.accepted.retain(|node| *node == local);
        }
    }

    /// Says that `node` is said to hold a checkpoint.
    pub(super) fn held_by(&mut self, id: CheckpointId, node: NodeId) {
        if let Some(entry) = self.find_mut(id) {
            entry.holders.insert(node);
        }
    }

    /// Nodes that say they hold these bytes.
    pub(super) fn holders(&self, digest: Digest) -> BTreeSet<NodeId> {
        let with = self.entries().filter(|entry| entry.announced.digest == digest);
        with.flat_map(|entry| entry.holders.iter().copied()).collect()
    }

    pub(super) fn refers_to(&self, digest: Digest) -> bool {
        self.entries().any(|entry| entry.announced.digest == digest)
    }

    pub(super) fn find(&self, id: CheckpointId) -> Option<&Entry> {
        self.slots.get(&id.slot)?.get(&order(id))
    }

    fn find_mut(&mut self, id: CheckpointId) -> Option<&mut Entry> {
        self.slots.get_mut(&id.slot)?.get_mut(&order(id))
    }

    /// Checkpoints of a slot, newest first.
    pub(super) fn newest_first(&self, slot: Slot) -> impl Iterator<Item = &Entry> {
        self.slots.get(&slot).into_iter().flat_map(BTreeMap::values).rev()
    }

    /// Every known checkpoint, by slot, oldest first.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.slots.values().flat_map(BTreeMap::values)
    }

    /// What is held of a slot, oldest first.
    pub(super) fn held(&self, slot: Slot) -> impl Iterator<Item = Record> {
        let held = self.slots.get(&slot).into_iter().flat_map(BTreeMap::values).filter(|entry| entry.held);
        held.filter_map(|Entry { announced, metadata, .. }| {
            let Announcement { id, digest, bytes, .. } = *announced;
            Some(Record { id, digest, bytes, metadata: metadata.clone()? })
        })
    }

    /// The newest checkpoint of the job's state that is held.
    pub(super) fn held_global(&self) -> Option<&Entry> {
        self.newest_first(Slot::Global).find(|entry| entry.held)
    }

    /// What this node announces: everything it holds of the job's state, and the newest it holds of other slots, at
    /// most `limit` in all.
    pub(super) fn to_announce(&self, limit: usize) -> Vec<Announcement> {
        let global = self.newest_first(Slot::Global).filter(|entry| entry.held);
        let others = self.slots.iter().filter(|(slot, _)| **slot != Slot::Global);
        let newest = others.filter_map(|(_, entries)| entries.values().rev().find(|entry| entry.held));
        let mut newest: Vec<Announcement> = newest.map(|entry| entry.announced).collect();
        newest.sort_by_key(|announced| std::cmp::Reverse((announced.order(), announced.id.slot)));
        global.map(|entry| entry.announced).chain(newest).take(limit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Epoch, Phase};

    fn announced(counter: u64, round: u64, content: &[u8]) -> Announcement {
        let epoch = Epoch { counter, node: NodeId(1) };
        let id = CheckpointId { epoch, round, phase: Phase::AggregateFit, slot: Slot::Global };
        let metadata = metadata_digest(&Metadata::new());
        Announcement { id, digest: Digest::of(content), bytes: content.len() as u64, metadata }
    }

    #[test]
    fn a_later_epoch_supersedes_what_an_earlier_one_left() {
        let mut catalogue = Catalogue::new(4);
        assert_eq!(catalogue.learn(announced(1, 7, b"old"), None), Learned::New(vec![]));
        assert_eq!(catalogue.learn(announced(2, 5, b"new"), None), Learned::New(vec![]));
        assert_eq!(catalogue.learn(announced(1, 6, b"late"), None), Learned::New(vec![]));
        let rounds: Vec<u64> =
            catalogue.newest_first(Slot::Global).map(|entry| entry.announced.id.round).collect();
        assert_eq!(rounds, [5, 7, 6]);
        assert_eq!(catalogue.learn(announced(1, 7, b"other"), None), Learned::Refused);
    }

    #[test]
    fn the_newest_are_kept_and_bytes_go_with_the_last_that_has_them() {
        let mut catalogue = Catalogue::new(2);
        catalogue.learn(announced(1, 1, b"a"), None);
        catalogue.learn(announced(1, 2, b"a"), None);
        assert_eq!(catalogue.learn(announced(1, 3, b"b"), None), Learned::New(vec![]));
        assert_eq!(catalogue.learn(announced(1, 4, b"b"), None), Learned::New(vec![Digest::of(b"a")]));
        assert_eq!(catalogue.learn(announced(1, 1, b"a"), None), Learned::Refused);
    }

    #[test]
    fn a_checkpoint_is_held_with_its_bytes_and_its_metadata() {
        let mut catalogue = Catalogue::new(2);
        let one = announced(1, 1, b"a");
        catalogue.learn(one, Some(NodeId(2)));
        assert_eq!(catalogue.arrived(one.digest, NodeId(3)), vec![]);
        let wrong = Metadata::from([("loss".to_owned(), "0".to_owned())]);
        assert!(!catalogue.describe(one.id, wrong) && catalogue.describe(one.id, Metadata::new()));
        assert_eq!(catalogue.arrived(one.digest, NodeId(3)), vec![one]);
        assert_eq!(catalogue.holders(one.digest), BTreeSet::from([NodeId(2), NodeId(3)]));
    }
}
