//! Who is suspected of having failed: two detectors over the same signs of life.
//!
//! - [`Detector::Phi`] is chitchat's: a node is suspected once its silence is phi times the mean interval between its signs of
//!   life (Hayashibara and others, "The phi accrual failure detector", 2004).
//! - [`Detector::EventuallyPerfect`] has a timeout for each node, which grows each time a suspicion turns out to be false (Chandra
//!   and Toueg, "Unreliable failure detectors for reliable distributed systems", 1996; as `Increasing timeout` in Cachin, Guerraoui
//!   and Rodrigues). If there is a bound on how late signs of life are, unknown as it may be, then some day no node that lives is
//!   suspected any more: eventual strong accuracy. The price is that a node that fails later is suspected later.
//!
//! [`Accrual`] repeats chitchat's sum for those who want to look at it, as chitchat keeps it to itself.
//!
//! Both are complete: what ended is silent for good. The state here is a pure function of signs of life and of time; chitchat's is
//! chitchat's own.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::config::GossipConfig;
use crate::store::NodeId;

/// Timeouts grow up to so many times the first one: what is silent for longer counts as gone.
pub const MOST_TIMEOUTS: u32 = 32;

/// Which detector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Detector {
    /// chitchat's phi accrual.
    #[default]
    Phi,
    /// A timeout for each node that grows with each false suspicion.
    EventuallyPerfect,
}

/// What is known of one node.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// Its life, and the newest sign of it.
    sign: (u64, u64),
    heard_at: Instant,
    timeout: Duration,
    suspected: bool,
}

/// How long a node may be silent after its newest sign of life, and when that was.
pub(super) type Silence = (NodeId, (Instant, Duration));

/// What chitchat makes of signs of life: phi is the silence over the mean interval, which is near the gossip interval because
/// chitchat gives that interval, as its prior, the weight of [`PRIOR_WEIGHT`] samples beside the one newest interval. Decides
/// nothing.
#[derive(Debug)]
pub(super) struct Accrual {
    interval: Duration,
    threshold: f64,
    known: BTreeMap<NodeId, (u64, u64, Instant, Duration)>,
}

/// Samples that chitchat's prior interval counts as.
const PRIOR_WEIGHT: u32 = 5;
/// chitchat leaves out intervals longer than so many times the first one, as it is told to.
pub(super) const MAX_INTERVALS: u32 = 5;

impl Accrual {
    pub(super) fn new(config: &GossipConfig) -> Self {
        let threshold = f64::from(config.phi_milli) / 1000.0;
        Self { interval: config.interval(), threshold, known: BTreeMap::new() }
    }

    /// The newest sign of life of `node` is number `sign` of its life `life`.
    pub(super) fn heard(&mut self, node: NodeId, life: u64, sign: u64, now: Instant) {
        let first = (life, sign, now, self.interval);
        let known = self.known.entry(node).or_insert(first);
        if (life, sign) <= (known.0, known.1) {
            return;
        }
        let interval = now.duration_since(known.2);
        let regular = life == known.0 && interval <= self.interval * MAX_INTERVALS;
        *known = (life, sign, now, if regular { interval } else { known.3 });
    }

    /// What is known now.
    pub(super) fn silences(&self) -> impl Iterator<Item = Silence> + '_ {
        self.known.iter().map(|(node, (_, _, heard_at, newest))| {
            let mean = (*newest + self.interval * PRIOR_WEIGHT) / (PRIOR_WEIGHT + 1);
            (*node, (*heard_at, mean.mul_f64(self.threshold)))
        })
    }
}

/// The eventually perfect detector.
#[derive(Debug)]
pub(super) struct Suspicions {
    first_timeout: Duration,
    known: BTreeMap<NodeId, Known>,
}

impl Suspicions {
    /// Every node is suspected after `first_timeout` of silence at first.
    pub(super) fn new(first_timeout: Duration) -> Self {
        Self { first_timeout, known: BTreeMap::new() }
    }

    /// The newest sign of life of `node` is number `sign` of its life `life`.
    pub(super) fn heard(&mut self, node: NodeId, life: u64, sign: u64, now: Instant) {
        let sign = (life, sign);
        let Some(known) = self.known.get_mut(&node) else {
            // The first one says nothing of when it was made.
            let known = Known { sign, heard_at: now, timeout: self.first_timeout, suspected: true };
            self.known.insert(node, known);
            return;
        };
        if sign <= known.sign {
            return;
        }
        // Whoever was started again had failed indeed.
        let same_life = life == known.sign.0;
        if known.suspected && same_life && known.heard_at + known.timeout < now {
            known.timeout = (known.timeout + self.first_timeout).min(self.first_timeout * MOST_TIMEOUTS);
        }
        (known.sign, known.heard_at, known.suspected) = (sign, now, false);
    }

    /// What is known now.
    pub(super) fn silences(&self) -> impl Iterator<Item = Silence> + '_ {
        self.known.iter().map(|(node, known)| (*node, (known.heard_at, known.timeout)))
    }

    /// Nodes that live, as far as is known now.
    pub(super) fn live(&mut self, now: Instant) -> impl Iterator<Item = NodeId> + '_ {
        for known in self.known.values_mut() {
            known.suspected |= known.heard_at + known.timeout < now;
        }
        self.known.iter().filter(|(_, known)| !known.suspected).map(|(node, _)| *node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(600);

    fn live(suspicions: &mut Suspicions, now: Instant) -> Vec<u64> {
        suspicions.live(now).map(|node| node.0).collect()
    }

    #[test]
    fn a_timeout_grows_with_each_false_suspicion_until_there_is_none() {
        let mut suspicions = Suspicions::new(TIMEOUT);
        let begin = Instant::now();
        let ms = |ms| begin + Duration::from_millis(ms);
        suspicions.heard(NodeId(1), 0, 1, ms(0));
        assert_eq!(live(&mut suspicions, ms(0)), [] as [u64; 0], "one sign of life may be old");
        suspicions.heard(NodeId(1), 0, 2, ms(100));
        let (mut at, mut false_suspicions) = (100, 0);
        for sign in 3..10 {
            // Silent for 2 s each time.
            false_suspicions += u32::from(live(&mut suspicions, ms(at + 1999)).is_empty());
            at += 2000;
            suspicions.heard(NodeId(1), 0, sign, ms(at));
            assert_eq!(live(&mut suspicions, ms(at)), [1]);
        }
        assert_eq!(false_suspicions, 3, "at 600, 1200 and 1800 ms");
        assert_eq!(live(&mut suspicions, ms(at + 2400)), [1]);
        assert_eq!(live(&mut suspicions, ms(at + 2401)), [] as [u64; 0], "complete all the same");
    }

    #[test]
    fn phi_is_taken_of_a_mean_near_the_gossip_interval() {
        let config = GossipConfig {
            nodes: (1..=3).map(NodeId).collect(),
            holders: 2,
            interval_ms: 100,
            fan_out: 2,
            phi_milli: 6000,
            detector: Detector::Phi,
            put_timeout_ms: 1000,
            retained: 4,
            seed: 1,
        };
        let mut accrual = Accrual::new(&config);
        let begin = Instant::now();
        let ms = |ms| begin + Duration::from_millis(ms);
        let known = |accrual: &Accrual| {
            accrual
                .silences()
                .map(|(node, (at, timeout))| (node.0, at, timeout.as_millis()))
                .collect::<Vec<_>>()
        };
        accrual.heard(NodeId(2), 0, 1, ms(0));
        assert_eq!(known(&accrual), [(2, ms(0), 600)]);
        accrual.heard(NodeId(2), 0, 2, ms(220));
        accrual.heard(NodeId(2), 0, 2, ms(300));
        assert_eq!(known(&accrual), [(2, ms(220), 720)], "(220 + 5 * 100) / 6 * 6; the same sign is none");
        accrual.heard(NodeId(2), 0, 3, ms(5000));
        assert_eq!(known(&accrual), [(2, ms(5000), 720)], "a gap is no interval");
    }

    #[test]
    fn a_node_that_was_started_again_was_suspected_rightly() {
        let mut suspicions = Suspicions::new(TIMEOUT);
        let begin = Instant::now();
        let ms = |ms| begin + Duration::from_millis(ms);
        suspicions.heard(NodeId(1), 0, 1, ms(0));
        suspicions.heard(NodeId(1), 0, 2, ms(100));
        assert_eq!(live(&mut suspicions, ms(900)), [] as [u64; 0]);
        suspicions.heard(NodeId(1), 1, 1, ms(1000));
        suspicions.heard(NodeId(1), 0, 9, ms(1050));
        assert_eq!(live(&mut suspicions, ms(1600)), [1]);
        assert_eq!(
            live(&mut suspicions, ms(1601)),
            [] as [u64; 0],
            "word of an earlier life is no sign of this one"
        );
    }

    #[test]
    fn timeouts_have_a_bound() {
        let mut suspicions = Suspicions::new(TIMEOUT);
        let begin = Instant::now();
        let mut now = begin;
        suspicions.heard(NodeId(1), 0, 1, now);
        for sign in 2..100 {
            now += TIMEOUT * (MOST_TIMEOUTS + 1);
            suspicions.heard(NodeId(1), 0, sign, now);
            assert_eq!(
                live(&mut suspicions, now + TIMEOUT * MOST_TIMEOUTS + Duration::from_millis(1)),
                [] as [u64; 0]
            );
        }
    }
}
