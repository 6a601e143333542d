//! Nodes that join, leave, or are cut off and come back.

use std::collections::BTreeMap;

use replication::raft::Electorate;
use replication::{NodeId, Payload, Phase, Slot};
use workloads::federated::{Config, Event, Profile};

use super::job::{Job, assert_final_parameters, config, raft_among, trains_for};

/// Waits until a round has begun, and returns who aggregates in it.
async fn round_started(job: &Job, wanted: u64) -> NodeId {
    let started = |_, event: &Event| matches!(event, Event::RoundStarted { round, .. } if *round == wanted);
    let (node, _) = job.hears("start of a round", started).await;
    node
}

/// How many workers' updates each round has, once it is finished.
fn fit_workers(job: &Job) -> BTreeMap<u64, u32> {
    let told = job.told.borrow();
    let finished = told.iter().filter_map(|(_, event)| match event {
        Event::RoundFinished { round, fit_workers, .. } => Some((*round, *fit_workers)),
        _ => None,
    });
    finished.collect()
}

/// Five nodes become seven and then four, the aggregator among those that leave, within ten rounds under training.
async fn five_become_seven_and_then_four(electorate: Electorate, payload: Payload) {
    let config = Config { min_fit_clients: 2, ..config(5, 10, Profile::Once) };
    let backend = raft_among(electorate, 5, payload);
    let mut job = Job::start_on(backend, false, config, 5, |_| trains_for(2)).await;
    for (round, node) in [(2, 6), (3, 7)] {
        round_started(&job, round).await;
        job.join(NodeId(node)).await;
    }
    let aggregator = round_started(&job, 6).await;
    let joined = |event: &Event| matches!(event, Event::RoundFinished { round: 5, fit_workers: 6, .. });
    assert_eq!(job.count(joined), 1, "all seven have work: {:?}", fit_workers(&job));
    let mut leave = vec![aggregator];
    leave.extend(job.nodes.keys().copied().filter(|node| *node != aggregator).take(2));
    for (round, node) in [6, 7, 8].into_iter().zip(leave) {
        round_started(&job, round).await;
        job.leave(node).await;
    }
    assert_final_parameters(&job, 10).await;
    let mut acknowledged: Vec<u64> = Vec::new();
    for (_, event) in job.told.borrow().iter() {
        if let Event::CheckpointPut { id, .. } = event
            && (id.phase, id.slot) == (Phase::AggregateFit, Slot::Global)
        {
            acknowledged.push(id.round);
        }
    }
    assert_eq!(acknowledged, (1..=10).collect::<Vec<_>>(), "every round is acknowledged once");
    assert_eq!(job.trained_after_acknowledged(), Vec::<u64>::new());
    let workers = fit_workers(&job);
    assert_eq!((workers[&1], workers[&10]), (4, 3), "{workers:?}");
}

#[tokio::test(start_paused = true)]
async fn nodes_join_and_leave_under_training_inline() {
    five_become_seven_and_then_four(Electorate::Everyone, Payload::Inline).await;
}

#[tokio::test(start_paused = true)]
async fn nodes_join_and_leave_under_training_by_digest() {
    five_become_seven_and_then_four(Electorate::Everyone, Payload::Digest).await;
}

#[tokio::test(start_paused = true)]
async fn nodes_join_and_leave_under_training_among_the_most_suitable() {
    for payload in [Payload::Inline, Payload::Digest] {
        let electorate = Electorate::MostSuitable { voters: 3, grace_ms: 5000 };
        five_become_seven_and_then_four(electorate, payload).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_was_cut_off_rejoins_by_itself() {
    let job = Job::start(config(5, 8, Profile::Once), 5, Payload::Inline, |_| trains_for(2)).await;
    let aggregator = round_started(&job, 2).await;
    let worker = *job.nodes.keys().find(|node| **node != aggregator).unwrap();
    for network in [&job.replication, &job.learning] {
        network.isolate(worker);
    }
    let without = |_, event: &Event| matches!(event, Event::RoundFinished { fit_workers: 3, .. });
    job.hears("a round without it", without).await;
    for network in [&job.replication, &job.learning] {
        network.heal();
    }
    assert_final_parameters(&job, 8).await;
    let workers = fit_workers(&job);
    assert_eq!(workers[&8], 4, "it has work again: {workers:?}");
}
