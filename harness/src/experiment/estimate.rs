//! How long trials will take: roughly before the first, and then by those that are over. Pure.
//!
//! The constants are of the machine that the shipped experiments were sized on (two cores, release build); what they are
//! wrong by elsewhere cancels out as soon as trials have been measured.

use workloads::federated::{EngineKind, Profile};

use crate::plan::Trial;

const SECOND: f64 = 1e9;
/// From the start of a trial until its nodes are ready and have elected, and from the last round to its end.
const AROUND_NS: f64 = 1.0 * SECOND;
/// The same, for each node.
const PER_NODE_NS: f64 = 0.15 * SECOND;
/// One example: forwards and backwards, on one core.
const EXAMPLE_NS: f64 = 1.3e6;
/// What the nodes of one machine send to each other in a second, all together.
const BYTES_PER_NS: f64 = 0.08;
/// From a fault until the next round goes on, beside the time until it is suspected.
const RECOVERY_NS: f64 = 1.5 * SECOND;

/// A key-value run's clients connect, and its nodes come to the same entries.
const KV_AROUND_NS: f64 = 1.0 * SECOND;
/// One entry is written before the load and read after it.
const KV_ENTRY_NS: f64 = 0.2e6;

/// How long `trial` will take on `cores` processors.
#[must_use]
pub fn trial_ns(trial: &Trial, cores: usize) -> u64 {
    let (plan, job) = (&trial.plan, &trial.plan.job);
    if let Some(kv) = &plan.kv {
        let around = AROUND_NS + KV_AROUND_NS + plan.founders as f64 * PER_NODE_NS;
        return (around + kv.load.duration_ns as f64 + f64::from(kv.load.entries) * KV_ENTRY_NS) as u64;
    }
    let (nodes, workers) = (plan.founders as f64, plan.workers() as f64);
    let examples = f64::from(job.examples_per_node) * f64::from(job.training.local_epochs)
        + f64::from(job.test_examples_per_node) / 3.0;
    let training = match job.engine {
        EngineKind::None => 0.0,
        EngineKind::Candle | EngineKind::Torch => examples * EXAMPLE_NS * workers / cores.max(1) as f64,
    };
    let writes = match job.profile {
        Profile::Once => 1.0,
        Profile::Paper => 3.0,
        Profile::Workers => 2.0 + workers,
        Profile::Prototype => 3.0 + workers,
    };
    // Down and up to every worker, and what is written to as many nodes at most.
    let bytes = job.parameter_bytes as f64 * workers * (2.0 + writes);
    let rate = plan.link.rate_mbit_per_s.map_or(BYTES_PER_NS, |mbit| (mbit / 8000.0).min(BYTES_PER_NS));
    let round = training + bytes / rate + 6.0 * plan.link.delay_ms * 1e6;
    let fault = plan.backend.detection_ns().1 as f64 + RECOVERY_NS;
    let total =
        AROUND_NS + nodes * PER_NODE_NS + job.rounds as f64 * round + trial.faults.len() as f64 * fault;
    total as u64
}

/// What is left, if the rest deviates from its estimates as what is over did: `over` are estimate and measurement of each
/// trial so far, `rest_ns` the estimates of the others.
#[must_use]
pub fn remaining_ns(over: &[(u64, u64)], rest_ns: u64) -> u64 {
    let (estimated, measured) = over.iter().fold((0.0, 0.0), |(estimated, measured), trial| {
        (estimated + trial.0 as f64, measured + trial.1 as f64)
    });
    let factor = if estimated > 0.0 { measured / estimated } else { 1.0 };
    (rest_ns as f64 * factor) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(nodes: u64) -> Trial {
        Trial {
            plan: crate::plan::tests::plan(nodes),
            durability: crate::plan::Durability::Memory,
            faults: Vec::new(),
            changes: Vec::new(),
            shelf: None,
            out: "out".into(),
            json: false,
            quiet: true,
        }
    }

    #[test]
    fn more_work_takes_longer() {
        let small = trial_ns(&trial(3), 2);
        assert!(trial_ns(&trial(11), 2) > small);
        let mut faulty = trial(3);
        faulty.faults = vec!["kill@aggregator,round:1".parse().unwrap()];
        assert!(trial_ns(&faulty, 2) > small + faulty.plan.backend.detection_ns().1);
        let mut slow = trial(3);
        slow.plan.link.rate_mbit_per_s = Some(1.0);
        assert!(trial_ns(&slow, 2) > 2 * small);
    }

    #[test]
    fn what_was_measured_corrects_what_is_left() {
        assert_eq!(remaining_ns(&[], 100), 100);
        assert_eq!(remaining_ns(&[(10, 20), (20, 40)], 100), 200);
    }
}
