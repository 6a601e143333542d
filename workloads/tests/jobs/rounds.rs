//! Rounds, and failures in them.

use std::collections::BTreeSet;
use std::time::Duration;

use replication::{Digest, NodeId, Payload, Phase, Slot};
use workloads::federated::{Config, Event, Profile};

use super::job::{Job, StandIn, assert_final_parameters, config, trains_for};

async fn every_profile_completes(payload: Payload) {
    for profile in [Profile::Once, Profile::Paper, Profile::Prototype, Profile::Workers] {
        let job = Job::start(config(5, 3, profile), 5, payload, |_| trains_for(1)).await;
        let digest = job.completed().await;
        assert_eq!(job.trained_after_acknowledged(), Vec::<u64>::new());
        let global = |phase| {
            move |event: &Event| {
                matches!(event, Event::CheckpointPut { id, .. }
                if (id.phase, id.slot) == (phase, Slot::Global))
            }
        };
        let others = if matches!(profile, Profile::Paper | Profile::Prototype) { 3 } else { 0 };
        assert_eq!(job.count(global(Phase::AggregateFit)), 3, "{profile:?}");
        assert_eq!(job.count(global(Phase::ConfigureFit)), others, "{profile:?}");
        assert_eq!(job.count(global(Phase::ConfigureEvaluate)), others, "{profile:?}");
        let workers = |event: &Event| matches!(event, Event::CheckpointPut { id, .. } if matches!(id.slot, Slot::Worker { .. }));
        let own = match profile {
            Profile::Workers => 4 * 3,
            Profile::Prototype => 4 * 3 * 10,
            Profile::Once | Profile::Paper => 0,
        };
        assert_eq!(job.count(workers), own, "{profile:?}");
        assert_eq!(job.count(|event| matches!(event, Event::FitFinished { .. })), 12, "{profile:?}");
        if profile != Profile::Prototype {
            assert_final_parameters(&job, 3).await;
            let latest = job.nodes[&NodeId(2)].store.latest().await.unwrap().unwrap();
            assert_eq!(latest.digest(), digest, "{profile:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_profile_completes_inline() {
    every_profile_completes(Payload::Inline).await;
}

#[tokio::test(start_paused = true)]
async fn every_profile_completes_by_digest() {
    every_profile_completes(Payload::Digest).await;
}

#[tokio::test(start_paused = true)]
async fn the_job_outlives_two_aggregators_whatever_the_profile() {
    for profile in [Profile::Once, Profile::Paper, Profile::Prototype, Profile::Workers] {
        let mut job = Job::start(config(7, 5, profile), 7, Payload::Digest, |_| trains_for(2)).await;
        for round in [2, 4] {
            let aggregator = job.fit_started(round).await;
            // The newest epoch that trains this round may not be the first.
            assert!(job.nodes.contains_key(&aggregator), "{profile:?}");
            job.crash(aggregator).await;
        }
        job.completed().await;
        assert_eq!(job.trained_after_acknowledged(), Vec::<u64>::new(), "{profile:?}");
        let finished: BTreeSet<u64> = job
            .told
            .borrow()
            .iter()
            .filter_map(|(_, event)| match event {
                Event::RoundFinished { round, .. } => Some(*round),
                _ => None,
            })
            .collect();
        assert_eq!(finished, (1..=5).collect(), "{profile:?}");
        if profile != Profile::Prototype {
            assert_final_parameters(&job, 5).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_does_not_answer_does_not_stop_the_round() {
    let slow = |node: NodeId| trains_for(if node == NodeId(3) { 1_000_000 } else { 1 });
    let job = Job::start(config(5, 2, Profile::Once), 5, Payload::Inline, slow).await;
    job.completed().await;
    let late = |event: &Event| matches!(event, Event::WorkerFailed { worker: NodeId(3), reason, .. } if reason.contains("deadline"));
    assert_eq!(job.count(late), 2);
    assert_final_parameters(&job, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_worker_does_not_stop_the_job() {
    let mut job = Job::start(config(5, 3, Profile::Once), 5, Payload::Inline, |_| trains_for(1)).await;
    let aggregator = job.fit_started(2).await;
    let worker = *job.nodes.keys().find(|node| **node != aggregator).unwrap();
    let begun = tokio::time::Instant::now();
    job.crash(worker).await;
    job.completed().await;
    // The idle timeout shows that it is gone; then two rounds of a second.
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    assert!(
        job.count(|event| matches!(event, Event::WorkerFailed { worker: failed, .. } if *failed == worker))
            >= 1
    );
    assert_final_parameters(&job, 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_stale_aggregator_is_refused_and_its_work_dropped() {
    let job = Job::start(config(5, 3, Profile::Once), 5, Payload::Inline, |_| trains_for(10)).await;
    let old = job.fit_started(2).await;
    // The replication plane is cut, the learning plane is not: the old aggregator goes on talking to the workers.
    job.replication.isolate(old);
    let deposed = |node, event: &Event| node == old && matches!(event, Event::Deposed { .. });
    let dropped =
        |_, event: &Event| matches!(event, Event::WorkDropped { epoch, round: 2 } if epoch.node == old);
    job.hears("dropped work", dropped).await;
    let taken_over = |node, event: &Event| {
        node != old && matches!(event, Event::Restored { epoch, .. } if epoch.node == node)
    };
    let (_, restored) = job.hears("take-over", taken_over).await;
    assert!(matches!(restored, Event::Restored { from: Some(id), .. } if id.round == 1), "{restored:?}");
    job.replication.heal();
    job.hears("deposed", deposed).await;
    job.completed().await;
    let refused = |event: &Event| matches!(event, Event::WorkerFailed { epoch, reason, .. } if epoch.node == old && reason.contains("follows epoch"));
    assert!(job.count(refused) >= 1);
    assert_final_parameters(&job, 3).await;
}

#[tokio::test(start_paused = true)]
async fn an_aggregator_that_trains_counts_as_a_worker() {
    let config = Config { aggregator_trains: true, ..config(3, 2, Profile::Once) };
    let job = Job::start(config, 3, Payload::Inline, |_| trains_for(1)).await;
    job.completed().await;
    let all =
        |event: &Event| matches!(event, Event::RoundFinished { fit_workers: 3, evaluate_workers: 3, .. });
    assert_eq!(job.count(all), 2);
    assert_final_parameters(&job, 2).await;
}

#[tokio::test(start_paused = true)]
async fn an_aggregator_that_dies_in_the_last_evaluation_loses_nothing() {
    for profile in [Profile::Once, Profile::Prototype] {
        let worker = |_| StandIn { evaluating: Duration::from_secs(5), ..trains_for(1) };
        let mut job = Job::start(config(5, 2, profile), 5, Payload::Digest, worker).await;
        let last = |_, event: &Event| {
            matches!(event, Event::CheckpointPut { id, .. }
                if (id.round, id.phase, id.slot) == (2, Phase::AggregateFit, Slot::Global))
        };
        let (aggregator, _) = job.hears("last average", last).await;
        // Long enough for every node to know of it.
        tokio::time::sleep(Duration::from_secs(1)).await;
        job.crash(aggregator).await;
        let (_, completed) =
            job.hears("completion", |_, event| matches!(event, Event::Completed { .. })).await;
        let Event::Completed { last: Some(last), .. } = completed else { unreachable!() };
        let held = job.nodes.values().next().unwrap().store.held().unwrap();
        assert_eq!(held, last, "{profile:?}");
        assert_eq!(job.trained_after_acknowledged(), Vec::<u64>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn an_aggregator_that_dies_between_the_parts_of_a_write_stops_nothing() {
    for phase in [Phase::ConfigureFit, Phase::AggregateFit, Phase::ConfigureEvaluate] {
        let mut job =
            Job::start(config(5, 3, Profile::Prototype), 5, Payload::Inline, |_| trains_for(1)).await;
        let in_between = |_, event: &Event| matches!(event, Event::CheckpointPut { id, .. } if (id.round, id.phase, id.slot) == (2, phase, Slot::Part(4)));
        let (aggregator, _) = job.hears("a part", in_between).await;
        job.crash(aggregator).await;
        job.completed().await;
        let restored = job.count(|event| matches!(event, Event::Restored { .. }));
        assert!(restored <= 4, "{phase:?}: {restored} attempts to take over");
    }
}

#[tokio::test(start_paused = true)]
async fn evaluation_does_not_wait_for_workers_that_are_gone() {
    let config = Config { min_fit_clients: 4, ..config(5, 1, Profile::Once) };
    let worker = |_| StandIn { evaluating: Duration::from_secs(60), ..trains_for(1) };
    let mut job = Job::start(config, 5, Payload::Inline, worker).await;
    let put = |_, event: &Event| matches!(event, Event::CheckpointPut { .. });
    let (aggregator, _) = job.hears("the average", put).await;
    let worker = *job.nodes.keys().find(|node| **node != aggregator).unwrap();
    job.crash(worker).await;
    job.completed().await;
}

#[tokio::test(start_paused = true)]
async fn workers_that_cannot_train_end_the_job_with_their_reason() {
    let worker = |_| StandIn { diverges: true, ..trains_for(1) };
    let mut job = Job::start(config(3, 1, Profile::Once), 3, Payload::Inline, worker).await;
    let tried = |node, event: &Event| node == NodeId(1) && matches!(event, Event::RoundStarted { .. });
    let (aggregator, _) = job.hears("an attempt", tried).await;
    let ended = job.nodes.remove(&aggregator).unwrap().job.await.unwrap();
    let reason = ended.expect_err("the job fails").to_string();
    assert!(reason.contains("3 times") && reason.contains("training diverged"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn only_the_store_says_who_aggregates() {
    let job = Job::start(config(3, 1, Profile::Once), 3, Payload::Inline, |_| trains_for(10)).await;
    let aggregator = job.fit_started(1).await;
    let usurper = *job.nodes.keys().find(|node| **node != aggregator).unwrap();
    let victim = *job.nodes.keys().rfind(|node| **node != aggregator && **node != usurper).unwrap();
    let epoch = replication::Epoch { counter: u64::MAX, node: usurper };
    let head = postcard::to_stdvec(&(epoch, 1_u64, Digest::of(b""))).unwrap();
    // What the wire calls a fit instruction.
    let instruction = replication::transport::Frame::new(65, head);
    let usurping = job.nodes[&usurper].learning.request(
        victim,
        replication::transport::Class::LearningControl,
        instruction,
    );
    let refusal = usurping.await.unwrap_err().to_string();
    assert!(refusal.contains("is not known here"), "{refusal}");
    job.completed().await;
    assert_eq!(job.count(|event| matches!(event, Event::WorkDropped { .. })), 0);
}
