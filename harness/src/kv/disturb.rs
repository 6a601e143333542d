//! Which node is disturbed when, and how: a function of the seed. One at a time, so that a majority is always well.

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use replication::NodeId;

use super::plan::{Disturbance, Disturbances};

/// Keeps this stream apart from those of the clients.
const STREAM: u64 = 1 << 40;

/// One disturbance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strike {
    /// When it begins, after the begin of the load.
    pub from_ns: u64,
    /// When it ends.
    pub until_ns: u64,
    /// What is done.
    pub kind: Disturbance,
    /// To which node.
    pub node: NodeId,
    /// To the aggregator of that moment instead, if one is known.
    pub aggregator: bool,
}

/// Every disturbance of a load that lasts `duration_ns`, in order. Half of them strike whoever aggregates.
#[must_use]
pub fn schedule(seed: u64, nodes: &[NodeId], disturbances: &Disturbances, duration_ns: u64) -> Vec<Strike> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(STREAM);
    let slack = disturbances.every_ns.saturating_sub(disturbances.lasts_ns);
    let mut strikes = Vec::new();
    let mut slot_ns = 0_u64;
    while disturbances.every_ns > 0 && slot_ns + disturbances.every_ns <= duration_ns {
        // The end of its slot leaves the nodes some time to be well.
        let from_ns = slot_ns + rng.random_range(0..=slack / 2);
        let (Some(kind), Some(node)) = (disturbances.kinds.choose(&mut rng), nodes.choose(&mut rng)) else {
            break;
        };
        strikes.push(Strike {
            from_ns,
            until_ns: from_ns + disturbances.lasts_ns,
            kind: *kind,
            node: *node,
            aggregator: rng.random_bool(0.5),
        });
        slot_ns += disturbances.every_ns;
    }
    strikes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strikes_follow_each_other_and_repeat_with_the_seed() {
        let nodes: Vec<NodeId> = (1..=5).map(NodeId).collect();
        let kinds = vec![Disturbance::Kill, Disturbance::Stop, Disturbance::Partition];
        let disturbances = Disturbances { kinds: kinds.clone(), every_ns: 100, lasts_ns: 30 };
        let strikes = schedule(7, &nodes, &disturbances, 60_050);
        assert_eq!(strikes, schedule(7, &nodes, &disturbances, 60_050));
        assert_eq!(strikes.len(), 600);
        assert!(strikes.windows(2).all(|pair| pair[0].until_ns < pair[1].from_ns));
        assert!(strikes.iter().all(|strike| strike.until_ns <= 60_050));
        assert!(kinds.iter().all(|kind| strikes.iter().any(|strike| strike.kind == *kind)));
        assert_eq!(schedule(7, &nodes, &Disturbances { kinds: vec![], ..disturbances }, 60_050), []);
    }
}
