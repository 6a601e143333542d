//! What each level of self-recovery keeps: one test per kind of failure.

use std::time::Duration;

use replication::local::LocalConfig;
use replication::{Backend, DEFAULT_RETAINED, NodeId, Payload, Slot};
use workloads::federated::{Config, Event, Profile};

use super::job::{Job, assert_final_parameters, config, raft, trains_for};

/// Long enough for every election, timeout and round of these jobs.
const LONG: Duration = Duration::from_secs(120);

fn local(count: u64) -> Backend {
    Backend::Local(LocalConfig {
        nodes: (1..=count).map(NodeId).collect(),
        heartbeat_ms: 60,
        put_timeout_ms: 5000,
        retained: DEFAULT_RETAINED,
    })
}

fn is_completed(event: &Event) -> bool {
    matches!(event, Event::Completed { .. })
}

/// The rounds that were finished, in order.
fn finished(job: &Job) -> Vec<u64> {
    let told = job.told.borrow();
    let rounds = told.iter().filter_map(|(_, event)| match event {
        Event::RoundFinished { round, .. } => Some(*round),
        _ => None,
    });
    rounds.collect()
}

#[tokio::test(start_paused = true)]
async fn at_level_0_the_job_ends_with_its_aggregator() {
    let mut job = Job::start_on(local(4), false, config(4, 5, Profile::Once), 4, |_| trains_for(1)).await;
    assert_eq!(job.fit_started(3).await, NodeId(1));
    job.crash(NodeId(1)).await;
    tokio::time::sleep(LONG).await;
    assert_eq!(finished(&job), [1, 2]);
    assert_eq!(job.count(is_completed), 0);
}

async fn a_worker_dies(on_disk: bool) {
    let mut job = Job::start_on(local(4), on_disk, config(4, 4, Profile::Once), 4, |_| trains_for(1)).await;
    job.fit_started(2).await;
    job.crash(NodeId(3)).await;
    assert_final_parameters(&job, 4).await;
}

#[tokio::test(start_paused = true)]
async fn at_level_0_a_worker_that_dies_stops_nothing() {
    a_worker_dies(false).await;
}

#[tokio::test(start_paused = true)]
async fn at_level_1_a_worker_that_dies_stops_nothing() {
    a_worker_dies(true).await;
}

#[tokio::test(start_paused = true)]
async fn at_level_2_a_worker_that_dies_stops_nothing() {
    let config = Config { stateless: true, ..config(5, 4, Profile::Once) };
    let mut job = Job::start(config, 5, Payload::Digest, |_| trains_for(1)).await;
    let aggregator = job.fit_started(2).await;
    let worker = *job.nodes.keys().find(|node| **node != aggregator).unwrap();
    job.crash(worker).await;
    job.hears("completion", |_, event| is_completed(event)).await;
    assert_eq!(finished(&job), [1, 2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn at_level_2_the_job_starts_again_after_each_of_two_aggregators() {
    let config = Config { stateless: true, ..config(7, 3, Profile::Once) };
    let mut job = Job::start(config, 7, Payload::Digest, |_| trains_for(1)).await;
    let first = job.fit_started(2).await;
    job.crash(first).await;
    let started_by_another =
        move |_, event: &Event| matches!(event, Event::FitStarted { epoch, round: 2 } if epoch.node != first);
    let (_, event) = job.hears("the second round of another", started_by_another).await;
    let Event::FitStarted { epoch, .. } = event else { unreachable!() };
    job.crash(epoch.node).await;
    job.hears("completion", |_, event| is_completed(event)).await;
    assert_eq!(finished(&job), [1, 1, 1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn at_level_1_the_same_aggregator_goes_on_from_its_disk() {
    let mut job = Job::start_on(local(4), true, config(4, 5, Profile::Once), 4, |_| trains_for(2)).await;
    for round in [2, 4] {
        job.fit_started(round).await;
        job.crash(NodeId(1)).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        job.open(NodeId(1)).await;
    }
    assert_final_parameters(&job, 5).await;
    assert_eq!(job.trained_after_acknowledged(), Vec::<u64>::new());
    let mut rounds = finished(&job);
    // A round that was averaged before the crash is evaluated again.
    rounds.dedup();
    assert_eq!(rounds, [1, 2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn at_level_2_another_aggregator_starts_the_job_again() {
    let config = Config { stateless: true, ..config(5, 5, Profile::Once) };
    let mut job = Job::start(config, 5, Payload::Digest, |_| trains_for(1)).await;
    let first = job.fit_started(3).await;
    job.crash(first).await;
    let (_, completed) = job.hears("completion", |_, event| is_completed(event)).await;
    let Event::Completed { epoch, last, digest, .. } = completed else { unreachable!() };
    assert!(last.is_none() && epoch.node != first, "{last:?} of {epoch}");
    assert_eq!(finished(&job), [1, 2, 1, 2, 3, 4, 5]);
    assert_eq!(job.count(|event| matches!(event, Event::CheckpointPut { .. })), 0);
    let told =
        |event: &Event| matches!(event, Event::RoundFinished { round: 5, digest: of, .. } if *of == digest);
    assert_eq!(job.count(told), 1);
}

/// The aggregator and enough others for a majority of five, in that order.
fn majority(job: &Job, aggregator: NodeId) -> Vec<NodeId> {
    let others = job.nodes.keys().copied().filter(|node| *node != aggregator);
    std::iter::once(aggregator).chain(others).take(3).collect()
}

/// A majority of five dies in round 3, the aggregator among them; the others wait until it is back.
async fn a_majority_dies_and_comes_back(backend: Backend, config: Config) -> Job {
    let mut job = Job::start_on(backend, true, config, 5, |_| trains_for(2)).await;
    let first = job.fit_started(3).await;
    let dying = majority(&job, first);
    for node in &dying {
        job.crash(*node).await;
    }
    tokio::time::sleep(LONG).await;
    assert_eq!(finished(&job), [1, 2]);
    for node in dying {
        job.open(node).await;
    }
    job
}

async fn goes_on_when_the_majority_is_back(backend: Backend, profile: Profile) {
    let job = a_majority_dies_and_comes_back(backend, config(5, 4, profile)).await;
    assert_final_parameters(&job, 4).await;
    assert_eq!(job.trained_after_acknowledged(), Vec::<u64>::new());
}

#[tokio::test(start_paused = true)]
async fn at_level_1_a_majority_that_dies_stops_the_job_until_the_aggregator_is_back() {
    goes_on_when_the_majority_is_back(local(5), Profile::Once).await;
}

#[tokio::test(start_paused = true)]
async fn at_level_2_a_majority_that_dies_stops_the_job_and_it_starts_again() {
    let stateless = Config { stateless: true, ..config(5, 4, Profile::Once) };
    let job = a_majority_dies_and_comes_back(raft(5, Payload::Digest), stateless).await;
    job.hears("completion", |_, event| is_completed(event)).await;
    assert_eq!(finished(&job), [1, 2, 1, 2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn at_level_3_a_majority_that_dies_stops_the_job_until_it_is_back() {
    goes_on_when_the_majority_is_back(raft(5, Payload::Digest), Profile::Once).await;
}

#[tokio::test(start_paused = true)]
async fn at_level_4_a_majority_that_dies_stops_the_job_until_it_is_back() {
    goes_on_when_the_majority_is_back(raft(5, Payload::Digest), Profile::Workers).await;
}

/// All nodes crash in each of these rounds, and are started again at once.
async fn restart_all(job: &mut Job, rounds: &[u64]) {
    let nodes: Vec<NodeId> = job.nodes.keys().copied().collect();
    for round in rounds {
        job.fit_started(*round).await;
        for node in &nodes {
            job.crash(*node).await;
        }
        for node in &nodes {
            job.open(*node).await;
        }
    }
}

async fn goes_on_after_a_restart_of_all_nodes(backend: Backend, profile: Profile) {
    let mut job = Job::start_on(backend, true, config(5, 5, profile), 5, |_| trains_for(2)).await;
    restart_all(&mut job, &[2, 4]).await;
    assert_final_parameters(&job, 5).await;
    assert_eq!(job.trained_after_acknowledged(), Vec::<u64>::new());
}

#[tokio::test(start_paused = true)]
async fn at_level_0_after_a_restart_of_all_nodes_the_job_begins_anew() {
    let mut job = Job::start_on(local(4), false, config(4, 4, Profile::Once), 4, |_| trains_for(2)).await;
    restart_all(&mut job, &[3]).await;
    assert_final_parameters(&job, 4).await;
    assert_eq!(finished(&job), [1, 2, 1, 2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn at_level_1_a_restart_of_all_nodes_loses_nothing() {
    goes_on_after_a_restart_of_all_nodes(local(5), Profile::Once).await;
}

#[tokio::test(start_paused = true)]
async fn at_level_2_after_a_restart_of_all_nodes_the_job_starts_again() {
    let stateless = Config { stateless: true, ..config(5, 4, Profile::Once) };
    let backend = raft(5, Payload::Digest);
    let mut job = Job::start_on(backend, true, stateless, 5, |_| trains_for(2)).await;
    restart_all(&mut job, &[3]).await;
    job.hears("completion", |_, event| is_completed(event)).await;
    assert_eq!(finished(&job), [1, 2, 1, 2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn at_level_3_a_restart_of_all_nodes_loses_nothing_on_raft() {
    goes_on_after_a_restart_of_all_nodes(raft(5, Payload::Digest), Profile::Once).await;
}

#[tokio::test(start_paused = true)]
async fn at_level_4_a_restart_of_all_nodes_loses_nothing_on_raft() {
    goes_on_after_a_restart_of_all_nodes(raft(5, Payload::Digest), Profile::Workers).await;
}

#[tokio::test(start_paused = true)]
async fn at_level_4_a_worker_does_not_train_again_what_it_had_written() {
    let config = Config { min_fit_clients: 4, ..config(5, 3, Profile::Workers) };
    // One of the two that are quick is no aggregator.
    let quick = [NodeId(3), NodeId(4)];
    let worker = move |node| trains_for(if quick.contains(&node) { 1 } else { 10 });
    let mut job = Job::start_on(raft(5, Payload::Digest), true, config, 5, worker).await;
    let aggregator = job.fit_started(2).await;
    let victim = quick.into_iter().find(|node| *node != aggregator).unwrap();
    let wrote = move |node, event: &Event| {
        let own = Slot::Worker { node: victim, part: 0 };
        node == victim && matches!(event, Event::CheckpointPut { id, .. } if (id.round, id.slot) == (2, own))
    };
    job.hears("the worker's own write", wrote).await;
    job.crash(victim).await;
    job.open(victim).await;
    let recovered =
        move |node, event: &Event| node == victim && matches!(event, Event::UpdateRecovered { round: 2, .. });
    job.hears("its own parameters", recovered).await;
    assert_final_parameters(&job, 3).await;
    let told = job.told.borrow();
    let trained = told
        .iter()
        .filter(|(node, event)| *node == victim && matches!(event, Event::FitStarted { round: 2, .. }));
    assert_eq!(trained.count(), 1);
}
