//! Faults of the command line, as strikes on the nodes of a leaderboard. Pure.

use rand::SeedableRng as _;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;
use replication::NodeId;

use crate::exit::Usage;
use crate::fault::{Fault, Kind, When, Who};
use crate::kv::disturb::Strike;
use crate::kv::plan::Disturbance;

/// Keeps this stream apart from those of other choices.
const STREAM: u64 = (1 << 40) + 1;

/// The strike of a fault on one of `nodes`; none: it is not for a leaderboard.
fn strike(fault: &Fault, nodes: &[NodeId], rng: &mut ChaCha8Rng) -> Option<Strike> {
    let When::Time(from_ns) = fault.when else { return None };
    let (kind, lasts_ns) = match fault.kind {
        Kind::Kill => (Disturbance::Kill, None),
        Kind::Restart { after_ns } => (Disturbance::Kill, Some(after_ns)),
        Kind::Stop => (Disturbance::Stop, Some(fault.lasts_ns?)),
        Kind::Partition => (Disturbance::Partition, Some(fault.lasts_ns?)),
        Kind::PowerOff
        | Kind::Loss { .. }
        | Kind::OmitSend
        | Kind::OmitReceive
        | Kind::Corrupt { .. }
        | Kind::Delay { .. } => return None,
    };
    let node = match fault.who {
        Who::Node(node) => node,
        Who::Aggregator | Who::Random => *nodes.choose(rng)?,
        Who::Worker | Who::Majority | Who::Minority | Who::All => return None,
    };
    // What is killed stays dead.
    let until_ns = lasts_ns.map_or(u64::MAX, |lasts_ns| from_ns + lasts_ns);
    Some(Strike { from_ns, until_ns, kind, node, aggregator: fault.who == Who::Aggregator })
}

/// The strikes of `faults`, in order.
#[must_use]
pub(super) fn strikes(faults: &[Fault], nodes: &[NodeId], seed: u64) -> Vec<Strike> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(STREAM);
    let mut strikes: Vec<Strike> = faults.iter().filter_map(|fault| strike(fault, nodes, &mut rng)).collect();
    strikes.sort_by_key(|strike| strike.from_ns);
    strikes
}

/// Checks that every fault is one for a leaderboard of `nodes` under a load of `duration_ns`, and that one is over before the
/// next begins.
///
/// # Errors
/// By option, with its remedy.
pub fn check(faults: &[Fault], nodes: &[NodeId], duration_ns: u64) -> Result<(), Usage> {
    let refuse =
        |fault: &Fault, wrong: &str, remedy: &str| Err(Usage::option("--fault", fault, wrong, remedy));
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut before: Option<(u64, u64)> = None;
    for fault in faults {
        let Some(Strike { from_ns, until_ns, .. }) = strike(fault, nodes, &mut rng) else {
            return refuse(
                fault,
                "not for --workload leaderboard",
                "kill, restart, stop or partition the aggregator, random or node:ID at time:T; the last two with for:T",
            );
        };
        if from_ns >= duration_ns {
            return refuse(fault, "the load is over by then", "use an earlier time or a longer --duration");
        }
        if let Who::Node(node) = fault.who
            && !nodes.contains(&node)
        {
            return refuse(fault, "there is no such node", &format!("nodes are 1 to {}", nodes.len()));
        }
        let ends_ns = if until_ns == u64::MAX { from_ns } else { until_ns };
        if before.is_some_and(|(_, until_ns)| from_ns <= until_ns) {
            return refuse(
                fault,
                "the one before is not over by then",
                "use a later time, and give them in order",
            );
        }
        before = Some((from_ns, ends_ns));
    }
    let dead = faults.iter().filter(|fault| fault.kind == Kind::Kill).count();
    match faults.iter().find(|fault| fault.kind == Kind::Kill) {
        Some(fault) if 2 * (nodes.len() - dead.min(nodes.len())) <= nodes.len() => {
            refuse(fault, "no majority is left", "kill fewer nodes, or use restart, or more --nodes")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(faults: &[&str]) -> Result<Vec<Strike>, String> {
        let faults: Vec<Fault> = faults.iter().map(|fault| fault.parse().unwrap()).collect();
        let nodes = [1, 2, 3].map(NodeId);
        check(&faults, &nodes, 10_000_000_000).map_err(|error| error.to_string())?;
        Ok(strikes(&faults, &nodes, 7))
    }

    #[test]
    fn faults_become_strikes() {
        let found = checked(&[
            "restart@node:2,time:1s,after:2s",
            "stop@random,time:4s,for:1s",
            "kill@aggregator,time:6s",
        ])
        .unwrap();
        let times: Vec<_> =
            found.iter().map(|strike| (strike.from_ns / 1_000_000_000, strike.kind)).collect();
        assert_eq!(times, [(1, Disturbance::Kill), (4, Disturbance::Stop), (6, Disturbance::Kill)]);
        assert_eq!((found[0].node, found[0].until_ns), (NodeId(2), 3_000_000_000));
        assert_eq!((found[2].aggregator, found[2].until_ns), (true, u64::MAX));
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for (faults, expected) in [
            (&["kill@aggregator,round:2"][..], "not for --workload leaderboard"),
            (&["loss:5@aggregator,time:1s"], "not for --workload leaderboard"),
            (&["stop@aggregator,time:1s"], "not for --workload leaderboard"),
            (&["kill@all,time:1s"], "not for --workload leaderboard"),
            (&["kill@aggregator,time:10s"], "the load is over by then"),
            (&["kill@node:4,time:1s"], "there is no such node"),
            (&["stop@random,time:1s,for:3s", "kill@random,time:3s"], "the one before is not over"),
            (&["kill@node:1,time:1s", "kill@node:2,time:3s"], "no majority is left"),
        ] {
            let error = checked(faults).unwrap_err();
            assert!(error.contains(expected), "{faults:?}: {error}");
        }
    }
}
