//! How fit a node is to aggregate and to hold checkpoints: a pure function of what it reports.
//!
//! ```text
//!   score = 300 s(cpu / 1000) + 200 s(memory / 1 GiB) + 300 s(bandwidth / 100 Mbit/s) + 200 on mains power
//!   s(x)  = x / (1 + x)
//! ```
//!
//! `s` is 1/2 at the reference (about one Raspberry Pi 3 in each respect) and saturates, so that no single strength makes up
//! for a weakness in everything else. The score depends on one node's report alone: every node that has the reports ranks
//! them alike. Equal scores are ordered by node id, the lower first.

use serde::{Deserialize, Serialize};

use crate::store::NodeId;

/// What a node has to offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Processing speed of all cores together, in MB of BLAKE3 hashed per second.
    pub cpu_mb_per_s: u64,
    /// Main memory in bytes.
    pub memory_bytes: u64,
    /// Bandwidth of its link in bits per second.
    pub bandwidth_bits_per_s: u64,
    /// Whether it is on mains power, not on a battery.
    pub mains_power: bool,
}

impl Default for Resources {
    /// The reference in every respect, on mains power.
    fn default() -> Self {
        Self {
            cpu_mb_per_s: REFERENCE_CPU_MB_PER_S,
            memory_bytes: REFERENCE_MEMORY_BYTES,
            bandwidth_bits_per_s: REFERENCE_BANDWIDTH_BITS_PER_S,
            mains_power: true,
        }
    }
}

const REFERENCE_CPU_MB_PER_S: u64 = 1000;
const REFERENCE_MEMORY_BYTES: u64 = 1 << 30;
const REFERENCE_BANDWIDTH_BITS_PER_S: u64 = 100_000_000;

impl Resources {
    /// The score, from 0 to 1000.
    #[must_use]
    pub fn score(&self) -> u32 {
        let share = |weight: u128, value: u64, reference: u64| {
            let value = u128::from(value);
            (weight * value / (value + u128::from(reference))) as u32
        };
        share(300, self.cpu_mb_per_s, REFERENCE_CPU_MB_PER_S)
            + share(200, self.memory_bytes, REFERENCE_MEMORY_BYTES)
            + share(300, self.bandwidth_bits_per_s, REFERENCE_BANDWIDTH_BITS_PER_S)
            + if self.mains_power { 200 } else { 0 }
    }
}

/// Nodes with their scores, the most suitable first.
#[must_use]
pub fn ranked(scores: impl IntoIterator<Item = (NodeId, u32)>) -> Vec<NodeId> {
    let mut ranked: Vec<(NodeId, u32)> = scores.into_iter().collect();
    ranked.sort_by_key(|(node, score)| (std::cmp::Reverse(*score), *node));
    ranked.into_iter().map(|(node, _)| node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_never_worse_and_nothing_overflows() {
        let least =
            Resources { cpu_mb_per_s: 0, memory_bytes: 0, bandwidth_bits_per_s: 0, mains_power: false };
        assert_eq!(least.score(), 0);
        let reference = Resources::default();
        assert_eq!(reference.score(), 150 + 100 + 150 + 200);
        let most = Resources {
            cpu_mb_per_s: u64::MAX,
            memory_bytes: u64::MAX,
            bandwidth_bits_per_s: u64::MAX,
            mains_power: true,
        };
        assert!(most.score() > reference.score() && most.score() <= 1000);
        let on_battery = Resources { mains_power: false, ..reference };
        assert!(on_battery.score() < reference.score());
    }

    #[test]
    fn equals_are_ranked_by_node() {
        let scores = [(NodeId(3), 500), (NodeId(1), 500), (NodeId(2), 700)];
        assert_eq!(ranked(scores), [NodeId(2), NodeId(1), NodeId(3)]);
    }
}
