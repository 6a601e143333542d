//! The properties of a history, one function each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use replication::{CheckpointId, Digest, Epoch, NodeId};

use super::history::{History, Life, Read};

/// What a backend did that it does not promise to do, or not to do.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Score {
    pub(crate) acknowledged: usize,
    /// Acknowledged, recent enough to be retained, and not found by name in the end.
    pub(crate) lost: usize,
    /// Rounds that were acknowledged with different bytes.
    pub(crate) repeated: usize,
    /// How long two nodes took themselves for the aggregator.
    pub(crate) two_aggregators: Duration,
}

impl std::ops::AddAssign for Score {
    fn add_assign(&mut self, other: Self) {
        self.acknowledged += other.acknowledged;
        self.lost += other.lost;
        self.repeated += other.repeated;
        self.two_aggregators += other.two_aggregators;
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, lost, repeated, two_aggregators } = self;
        let seconds = two_aggregators.as_secs_f64();
        write!(
            f,
            "{acknowledged} checkpoints acknowledged, {lost} lost, {repeated} rounds repeated, {seconds:.1} s with two aggregators"
        )
    }
}

/// Counts what is scored.
pub(crate) fn score(history: &History, retained: u64) -> Score {
    Score {
        acknowledged: history.names().len(),
        lost: lost(history, retained).len(),
        repeated: repeated(history).len(),
        two_aggregators: two_aggregators(history),
    }
}

fn latest(history: &History) -> impl Iterator<Item = &Read> {
    history.last.iter().filter(|read| read.named.is_none())
}

fn latest_round(history: &History) -> u64 {
    let rounds = latest(history).filter_map(|read| read.found.as_ref().ok().copied().flatten());
    rounds.map(|found| found.id.round).max().unwrap_or(0)
}

/// Acknowledged checkpoints recent enough to be retained that no node, asked in the end, found by name.
fn lost(history: &History, retained: u64) -> Vec<CheckpointId> {
    let oldest = (latest_round(history) + 1).saturating_sub(retained);
    let found: BTreeSet<CheckpointId> = history
        .last
        .iter()
        .filter_map(|read| read.named.filter(|_| matches!(read.found, Ok(Some(_)))))
        .collect();
    history.names().into_iter().filter(|id| id.round >= oldest && !found.contains(id)).collect()
}

/// (a) What was acknowledged is still there, on every node, and nothing older is the newest.
pub(crate) fn acknowledged_survives(history: &History, retained: u64) {
    let lost = lost(history, retained);
    assert!(lost.is_empty(), "acknowledged, and lost: {lost:?}");
    let newest = history.names().into_iter().max_by_key(|id| (id.round, id.phase));
    let Some(newest) = newest else { return };
    for read in latest(history) {
        let found = read.found.as_ref().ok().copied().flatten();
        let found = found.unwrap_or_else(|| panic!("{newest} was acknowledged, {read:?}"));
        assert!(
            (found.id.round, found.id.phase) >= (newest.round, newest.phase),
            "{newest} was acknowledged, {read:?}"
        );
    }
}

fn repeated(history: &History) -> Vec<u64> {
    let mut contents: BTreeMap<u64, BTreeSet<Digest>> = BTreeMap::new();
    for write in history.acknowledged() {
        contents.entry(write.id.round).or_default().insert(write.digest);
    }
    contents.into_iter().filter(|(_, digests)| digests.len() > 1).map(|(round, _)| round).collect()
}

/// (b) No round was acknowledged twice with different bytes.
pub(crate) fn no_round_is_repeated(history: &History) {
    let repeated = repeated(history);
    assert!(repeated.is_empty(), "rounds acknowledged with different bytes: {repeated:?}");
}

/// (c) `latest` never goes back on a node, as long as it lives.
pub(crate) fn reads_are_monotonic(history: &History) {
    // Of two reads that overlapped neither was first.
    let mut reads: BTreeMap<Life, Vec<(&Read, CheckpointId)>> = BTreeMap::new();
    for read in history.reads.iter().chain(&history.last).filter(|read| read.named.is_none()) {
        let Ok(found) = &read.found else { continue };
        let earlier = reads.entry(read.by).or_default();
        let newest = earlier.iter().filter(|(before, _)| before.end <= read.start).map(|(_, id)| *id).max();
        match found {
            Some(found) => {
                assert!(Some(found.id) >= newest, "after {newest:?}: {read:?}");
                earlier.push((read, found.id));
            }
            None => assert!(newest.is_none(), "after {newest:?}: {read:?}"),
        }
    }
}

/// (d) What is read is what was written: bytes and digest of the attempt that the name leads back to.
pub(crate) fn nothing_is_corrupt(history: &History) {
    let written: BTreeMap<CheckpointId, Digest> =
        history.writes.iter().map(|write| (write.id, write.digest)).collect();
    for read in history.reads.iter().chain(&history.last) {
        let Ok(Some(found)) = &read.found else { continue };
        assert!(found.intact, "not the bytes of this round: {read:?}");
        // A write that its writer did not live to see answered is not in the history.
        assert!(written.get(&found.id).is_none_or(|digest| *digest == found.digest), "{read:?}");
        assert!(read.named.is_none_or(|named| named == found.id), "{read:?}");
    }
}

/// (e) Epochs grow on every node.
pub(crate) fn epochs_grow(history: &History) {
    let mut known: BTreeMap<Life, Epoch> = BTreeMap::new();
    for learned in &history.learned {
        let Some(epoch) = learned.epoch else { continue };
        let before = known.insert(learned.by, epoch);
        assert!(before <= Some(epoch), "after {before:?}: {learned:?}");
    }
}

/// (e) All nodes mean the same aggregator by the same counter.
pub(crate) fn one_aggregator_per_counter(history: &History) {
    let mut holders: BTreeMap<u64, NodeId> = BTreeMap::new();
    for epoch in history.learned.iter().filter_map(|learned| learned.epoch) {
        let holder = *holders.entry(epoch.counter).or_insert(epoch.node);
        assert_eq!(holder, epoch.node, "two nodes aggregated in epoch {}", epoch.counter);
    }
}

/// (f) In the end every node names the same newest checkpoint.
pub(crate) fn all_agree(history: &History) {
    let named: BTreeSet<String> = latest(history)
        .map(|read| {
            format!("{:?}", read.found.as_ref().map(|found| found.map(|found| (found.id, found.digest))))
        })
        .collect();
    assert_eq!(named.len(), 1, "different newest checkpoints: {named:?}");
}

/// How long two nodes or more took themselves for the aggregator.
fn two_aggregators(history: &History) -> Duration {
    let mut changes: Vec<(Duration, Life, bool)> = history
        .learned
        .iter()
        .map(|learned| {
            (learned.at, learned.by, learned.epoch.is_some_and(|epoch| epoch.node == learned.by.node))
        })
        .collect();
    changes.extend(history.deaths.iter().map(|(life, at)| (*at, *life, false)));
    changes.sort_by_key(|(at, _, _)| *at);
    let (mut acting, mut since, mut total) = (BTreeSet::new(), Duration::ZERO, Duration::ZERO);
    for (at, life, acts) in changes {
        if acting.len() > 1 {
            total += at - since;
        }
        since = at;
        if acts {
            acting.insert(life);
        } else {
            acting.remove(&life);
        }
    }
    total
}
