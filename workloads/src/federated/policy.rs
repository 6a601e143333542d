//! Who should aggregate next: a pure decision between two rounds.
//!
//! It knows what the nodes say of themselves, and for how long this node has been in office. It deliberately knows neither
//! checkpoints nor how a hand-over is done.
//!
//! # Why the aggregator does not flap
//! A node takes over only if it is clearly better ([`CLEARLY_BETTER_PERCENT`], and by [`LEAST_GAIN_NS`] in latency), and after
//! the same node was the better one at the end of [`CONFIRMATIONS`] rounds in a row.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use replication::NodeId;
use replication::suitability::ranked;
use serde::{Deserialize, Serialize};

use super::config::Policy;

/// A successor's mean round-trip time is at most this share of the aggregator's, or its score is larger in that proportion.
const CLEARLY_BETTER_PERCENT: u64 = 80;
/// A hand-over for less than this gains nothing.
const LEAST_GAIN_NS: u64 = 1_000_000;
/// Rounds in a row that have to name the same successor.
const CONFIRMATIONS: u32 = 2;

/// How fit a node is to aggregate, as it says itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Standing {
    /// Mean of its round-trip times to its peers; none where they were not measured.
    pub(crate) mean_round_trip_ns: Option<u64>,
    /// Its suitability.
    pub(crate) score: u32,
}

impl Standing {
    /// The standing of a node with these round-trip times.
    pub(crate) fn new(round_trips: &[(NodeId, Duration)], score: u32) -> Self {
        let sum: u128 = round_trips.iter().map(|(_, trip)| trip.as_nanos()).sum();
        let mean = sum.checked_div(round_trips.len() as u128);
        Self { mean_round_trip_ns: mean.map(|mean| u64::try_from(mean).unwrap_or(u64::MAX)), score }
    }
}

/// Decides after every round of one epoch.
#[derive(Debug)]
pub(crate) struct Chooser {
    policy: Policy,
    local: NodeId,
    /// The successor named last, and in how many rounds in a row.
    named: Option<(NodeId, u32)>,
}

impl Chooser {
    /// For an epoch of `local`.
    pub(crate) fn new(policy: Policy, local: NodeId) -> Self {
        Self { policy, local, named: None }
    }

    /// Who shall take over now, after `in_office`, out of `candidates`; none: this node stays.
    pub(crate) fn successor(
        &mut self,
        in_office: Duration,
        own: Standing,
        candidates: &BTreeMap<NodeId, Standing>,
    ) -> Option<NodeId> {
        if let Policy::Rotate { every_ms } = self.policy {
            let due = in_office >= Duration::from_millis(every_ms);
            return due.then(|| next_in_turn(self.local, &candidates.keys().copied().collect())).flatten();
        }
        let better = match self.policy {
            Policy::First | Policy::Rotate { .. } => None,
            Policy::Latency => clearly_nearer(own, candidates),
            Policy::Suitability => clearly_fitter(own, candidates),
        };
        self.named = better.map(|better| match self.named {
            Some((named, times)) if named == better => (better, times + 1),
            _ => (better, 1),
        });
        self.named.filter(|(_, times)| *times >= CONFIRMATIONS).map(|(successor, _)| successor)
    }
}

/// The next higher node, after the highest the lowest.
fn next_in_turn(local: NodeId, candidates: &BTreeSet<NodeId>) -> Option<NodeId> {
    candidates.iter().find(|node| **node > local).or_else(|| candidates.first()).copied()
}

fn clearly_nearer(own: Standing, candidates: &BTreeMap<NodeId, Standing>) -> Option<NodeId> {
    let own = own.mean_round_trip_ns?;
    let times = candidates.iter().filter_map(|(node, standing)| Some((standing.mean_round_trip_ns?, *node)));
    let (nearest, node) = times.min()?;
    let clearly = u128::from(nearest) * 100 <= u128::from(own) * u128::from(CLEARLY_BETTER_PERCENT);
    (clearly && nearest.saturating_add(LEAST_GAIN_NS) <= own).then_some(node)
}

fn clearly_fitter(own: Standing, candidates: &BTreeMap<NodeId, Standing>) -> Option<NodeId> {
    let fittest = *ranked(candidates.iter().map(|(node, standing)| (*node, standing.score))).first()?;
    let score = candidates.get(&fittest)?.score;
    (u64::from(own.score) * 100 < u64::from(score) * CLEARLY_BETTER_PERCENT).then_some(fittest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(ms: u64, score: u32) -> Standing {
        Standing { mean_round_trip_ns: Some(ms * 1_000_000), score }
    }

    fn others(standings: &[(u64, Standing)]) -> BTreeMap<NodeId, Standing> {
        standings.iter().map(|(node, standing)| (NodeId(*node), *standing)).collect()
    }

    const LONG: Duration = Duration::from_secs(1000);

    #[test]
    fn the_mean_is_over_the_peers() {
        let trips = [(NodeId(1), Duration::from_millis(2)), (NodeId(2), Duration::from_millis(4))];
        assert_eq!(Standing::new(&trips, 7), standing(3, 7));
        assert_eq!(Standing::new(&[], 7).mean_round_trip_ns, None);
    }

    #[test]
    fn by_default_whoever_aggregates_stays() {
        let mut chooser = Chooser::new(Policy::First, NodeId(1));
        for _ in 0..5 {
            assert_eq!(chooser.successor(LONG, standing(100, 1), &others(&[(2, standing(1, 1000))])), None);
        }
    }

    #[test]
    fn every_node_gets_its_turn() {
        let everybody: Vec<u64> = vec![1, 3, 4];
        let policy = Policy::Rotate { every_ms: 2000 };
        let (mut local, mut turns) = (3, Vec::new());
        for _ in 0..3 {
            let rest: Vec<_> =
                everybody.iter().filter(|node| **node != local).map(|node| (*node, standing(1, 1))).collect();
            let mut chooser = Chooser::new(policy, NodeId(local));
            let early = chooser.successor(Duration::from_millis(1999), standing(1, 1), &others(&rest));
            assert_eq!(early, None);
            local = chooser.successor(Duration::from_secs(2), standing(1, 1), &others(&rest)).unwrap().0;
            turns.push(local);
        }
        assert_eq!(turns, [4, 1, 3]);
        assert_eq!(Chooser::new(policy, NodeId(1)).successor(LONG, standing(1, 1), &others(&[])), None);
    }

    #[test]
    fn a_clearly_nearer_node_takes_over_once_confirmed() {
        let mut chooser = Chooser::new(Policy::Latency, NodeId(1));
        let nearer = others(&[(2, standing(30, 1)), (3, standing(10, 1))]);
        assert_eq!(chooser.successor(LONG, standing(50, 1), &nearer), None);
        assert_eq!(chooser.successor(LONG, standing(50, 1), &nearer), Some(NodeId(3)));
        // Not the same one twice in a row, not by enough, not worth it.
        let mut chooser = Chooser::new(Policy::Latency, NodeId(1));
        for node in [2, 3, 2, 3] {
            let alternating = others(&[(node, standing(10, 1))]);
            assert_eq!(chooser.successor(LONG, standing(50, 1), &alternating), None);
        }
        let mut chooser = Chooser::new(Policy::Latency, NodeId(1));
        for _ in 0..5 {
            assert_eq!(chooser.successor(LONG, standing(10, 1), &others(&[(2, standing(9, 1))])), None);
            let own = Standing { mean_round_trip_ns: Some(900_000), score: 1 };
            let near = Standing { mean_round_trip_ns: Some(100_000), score: 1 };
            assert_eq!(chooser.successor(LONG, own, &others(&[(2, near)])), None);
        }
    }

    #[test]
    fn a_clearly_fitter_node_takes_over_once_confirmed() {
        let mut chooser = Chooser::new(Policy::Suitability, NodeId(1));
        let fitter = others(&[(2, standing(1, 900)), (3, standing(1, 950))]);
        assert_eq!(chooser.successor(LONG, standing(1, 600), &fitter), None);
        assert_eq!(chooser.successor(LONG, standing(1, 600), &fitter), Some(NodeId(3)));
        let mut chooser = Chooser::new(Policy::Suitability, NodeId(1));
        for _ in 0..5 {
            assert_eq!(chooser.successor(LONG, standing(1, 900), &fitter), None);
        }
    }
}
