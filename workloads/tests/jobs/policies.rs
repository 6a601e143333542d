//! Who aggregates, beyond what a failure decides.

use std::collections::BTreeSet;
use std::time::Duration;

use replication::{NodeId, Payload};
use workloads::federated::{Config, Event, Policy, Profile};

use super::job::{Job, assert_final_parameters, config, trains_for};

/// Who finished each round, in order.
fn finishers(job: &Job) -> Vec<(u64, NodeId)> {
    let told = job.told.borrow();
    let finished = told.iter().filter_map(|(_, event)| match event {
        Event::RoundFinished { round, epoch, .. } => Some((*round, epoch.node)),
        _ => None,
    });
    finished.collect()
}

#[tokio::test(start_paused = true)]
async fn with_rotation_every_node_gets_its_turn() {
    let config = Config { policy: Policy::Rotate { every_ms: 2000 }, ..config(5, 15, Profile::Once) };
    let job = Job::start(config, 5, Payload::Digest, |_| trains_for(1)).await;
    assert_final_parameters(&job, 15).await;
    assert_eq!(job.trained_after_acknowledged(), Vec::<u64>::new());
    let finishers = finishers(&job);
    let rounds: Vec<u64> = finishers.iter().map(|(round, _)| *round).collect();
    assert_eq!(rounds, (1..=15).collect::<Vec<_>>(), "each round is finished once");
    let nodes: BTreeSet<NodeId> = finishers.iter().map(|(_, node)| *node).collect();
    assert_eq!(nodes.len(), 5, "{finishers:?}");
    // Whoever hands over works on: no round is short of a worker.
    let all = |event: &Event| matches!(event, Event::RoundFinished { fit_workers: 4, .. });
    assert_eq!(job.count(all), 15);
}

#[tokio::test(start_paused = true)]
async fn by_latency_the_aggregator_leaves_a_node_that_is_far_away_and_stays() {
    let config = Config { policy: Policy::Latency, ..config(5, 12, Profile::Once) };
    let job = Job::start(config, 5, Payload::Digest, |_| trains_for(1)).await;
    let first = job.fit_started(1).await;
    job.learning.set_distance(first, Duration::from_millis(40));
    assert_final_parameters(&job, 12).await;
    let finishers = finishers(&job);
    let moves = finishers.windows(2).filter(|pair| pair[0].1 != pair[1].1).count();
    assert_eq!(moves, 1, "{finishers:?}");
    // A round takes a second, and eight probes two of them: the first round concludes nothing, the next two name a successor.
    assert!(finishers.iter().all(|(round, node)| (*node == first) == (*round <= 3)), "{finishers:?}");
}
