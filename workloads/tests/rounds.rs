//! Whole federated jobs in one process: real stores and the real round protocol, on the seeded network under virtual time,
//! with a stand-in for training that takes seconds of virtual time and adds a constant to every parameter.

#![allow(clippy::unwrap_used, reason = "a failed test is what unwrap is for; helpers are not seen as tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use replication::raft::{Electorate, RaftConfig, RaftStore};
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::transport::{Class, Transport};
use replication::{
    AnyStore, CheckpointStore, DEFAULT_RETAINED, Digest, NodeId, Payload, Phase, Silent, Site, Slot, Window,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use workloads::federated::{
    self, Config, EngineKind, Evaluation, Event, JobError, Learner, LearnerError, Participant, Partition,
    Policy, Profile, Training, Update, model,
};

/// What a stand-in worker adds to every parameter in a round.
const STEP: f32 = 0.5;

#[derive(Clone, Copy)]
struct StandIn {
    training: Duration,
    evaluating: Duration,
    diverges: bool,
}

/// A worker that trains for `seconds`.
fn trains_for(seconds: u64) -> StandIn {
    StandIn { training: Duration::from_secs(seconds), evaluating: Duration::ZERO, diverges: false }
}

#[async_trait]
impl Learner for StandIn {
    async fn fit(&self, _round: u64, parameters: Bytes) -> Result<Update, LearnerError> {
        tokio::time::sleep(self.training).await;
        if self.diverges {
            return Err(LearnerError("training diverged".into()));
        }
        let parameters = model::decode(&parameters).map_err(|error| LearnerError(error.to_string()))?;
        let trained = parameters.iter().map(|parameter| parameter + STEP).collect();
        Ok(Update { parameters: model::encode(trained).unwrap(), examples: 100, loss: Some(2.0) })
    }

    async fn evaluate(&self, parameters: Bytes) -> Result<Evaluation, LearnerError> {
        tokio::time::sleep(self.evaluating).await;
        let parameters = model::decode(&parameters).map_err(|error| LearnerError(error.to_string()))?;
        Ok(Evaluation { loss_sum: f64::from(parameters[0]) * 10.0, correct: 1, examples: 10 })
    }
}

fn config(nodes: u64, rounds: u64, profile: Profile) -> Config {
    Config {
        rounds,
        training: Training { local_epochs: 1, batch_size: 32, lr: 0.001, momentum: 0.9 },
        examples_per_node: 100,
        test_examples_per_node: 10,
        partition: Partition::Iid,
        data: None,
        seed: 5,
        profile,
        min_fit_clients: (nodes / 2) as u32,
        round_deadline_ms: 20_000,
        aggregator_trains: false,
        resend: false,
        reuse: true,
        stateless: false,
        policy: Policy::First,
        engine: EngineKind::Candle,
        parameter_bytes: model::ENCODED_BYTES as u64,
    }
}

struct Node {
    store: Arc<RaftStore>,
    learning: Arc<dyn Transport>,
    replication: Arc<dyn Transport>,
    job: JoinHandle<Result<(), JobError>>,
}

/// A job with everything that its nodes told of it.
struct Job {
    replication: ChannelNetwork,
    learning: ChannelNetwork,
    nodes: BTreeMap<NodeId, Node>,
    told: watch::Sender<Vec<(NodeId, Event)>>,
    config: Config,
    raft: RaftConfig,
}

impl Job {
    async fn start(config: Config, count: u64, payload: Payload, worker: impl Fn(NodeId) -> StandIn) -> Self {
        Self::start_among(Electorate::Everyone, config, count, payload, worker).await
    }

    async fn start_among(
        electorate: Electorate,
        config: Config,
        count: u64,
        payload: Payload,
        worker: impl Fn(NodeId) -> StandIn,
    ) -> Self {
        let ids: BTreeSet<NodeId> = (1..=count).map(NodeId).collect();
        let link = LinkSpec {
            delay: Duration::from_millis(2),
            jitter: Duration::from_millis(1),
            loss: 0.005,
            bandwidth_bytes_per_s: Some(12_500_000),
            ..LinkSpec::default()
        };
        let raft = RaftConfig {
            nodes: ids.clone(),
            electorate,
            payload,
            window: Window { from_ms: 300, to_ms: 600 },
            heartbeat_ms: 60,
            put_timeout_ms: 5000,
            retained: DEFAULT_RETAINED,
            seed: 3,
        };
        let mut job = Self {
            replication: ChannelNetwork::new(1, link, ids.iter().copied()),
            learning: ChannelNetwork::new(2, link, ids.iter().copied()),
            nodes: BTreeMap::new(),
            told: watch::Sender::new(Vec::new()),
            config,
            raft,
        };
        for node in ids {
            job.open(node, false, worker(node)).await;
        }
        job
    }

    /// Starts a node, which founds the cluster with the others or joins it.
    async fn open(&mut self, node: NodeId, joins: bool, worker: StandIn) {
        let mut raft = self.raft.clone();
        raft.nodes.insert(node);
        let replication = self.replication.join(node);
        let site = Site { joins, ..Site::new(replication.clone(), Arc::new(Silent)) };
        let store = RaftStore::open(raft, site).await.unwrap();
        let told = self.told.clone();
        let learning = self.learning.join(node);
        let participant = Participant {
            config: self.config.clone(),
            store: store.clone() as AnyStore,
            learning: learning.clone(),
            learner: Arc::new(worker),
            score: 500,
            initial: model::encode(model::initial(self.config.seed)).unwrap(),
            events: Arc::new(move |event| told.send_modify(|told| told.push((node, event)))),
        };
        let running = tokio::spawn(federated::run(participant));
        self.nodes.insert(node, Node { store, learning, replication, job: running });
    }

    /// Lets a node leave on purpose, and ends it.
    async fn leave(&mut self, node: NodeId) {
        let leaves = self.nodes.remove(&node).unwrap();
        leaves.store.leave().await.unwrap();
        leaves.job.abort();
        leaves.store.close().await;
        leaves.learning.close().await;
        leaves.replication.close().await;
    }

    async fn crash(&mut self, node: NodeId) {
        self.replication.crash(node);
        self.learning.crash(node);
        let ended = self.nodes.remove(&node).unwrap();
        ended.job.abort();
        ended.store.close().await;
    }

    /// Waits for an event and returns who told of it, with it.
    async fn hears(&self, what: &str, wanted: impl Fn(NodeId, &Event) -> bool) -> (NodeId, Event) {
        let mut told = self.told.subscribe();
        let heard = told.wait_for(|told| told.iter().any(|(node, event)| wanted(*node, event)));
        let heard = tokio::time::timeout(Duration::from_secs(600), heard).await;
        match heard {
            Ok(told) => told.unwrap().iter().find(|(node, event)| wanted(*node, event)).unwrap().clone(),
            Err(_) => panic!("no {what} in ten minutes; told: {:#?}", self.told.borrow()),
        }
    }

    async fn completed(&self) -> Digest {
        match self.hears("completion", |_, event| matches!(event, Event::Completed { .. })).await.1 {
            Event::Completed { digest, .. } => digest,
            other => unreachable!("{other:?}"),
        }
    }

    async fn fit_started(&self, wanted: u64) -> NodeId {
        let started = |_, event: &Event| matches!(event, Event::FitStarted { round, .. } if *round == wanted);
        let (_, event) = self.hears("fit", started).await;
        match event {
            Event::FitStarted { epoch, .. } => epoch.node,
            other => unreachable!("{other:?}"),
        }
    }

    /// Rounds in which a worker began to train after the round's average was acknowledged.
    fn trained_after_acknowledged(&self) -> Vec<u64> {
        let mut acknowledged = BTreeSet::new();
        let mut again = Vec::new();
        for (_, event) in self.told.borrow().iter() {
            match event {
                Event::CheckpointPut { id, .. }
                    if (id.phase, id.slot) == (Phase::AggregateFit, Slot::Global) =>
                {
                    acknowledged.insert(id.round);
                }
                Event::FitStarted { round, .. } if acknowledged.contains(round) => again.push(*round),
                _ => {}
            }
        }
        again
    }

    fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.told.borrow().iter().filter(|(_, event)| wanted(event)).count()
    }
}

/// The parameters after `rounds` rounds: training adds a constant, and so does the average of equal updates.
fn expected(seed: u64, rounds: u64) -> Vec<f32> {
    model::initial(seed).iter().map(|parameter| parameter + STEP * rounds as f32).collect()
}

async fn assert_final_parameters(job: &Job, rounds: u64) {
    let node = job.nodes.values().next().unwrap();
    let last = job.completed().await;
    // A follower learns of what was acknowledged with the next message of its leader.
    let latest = loop {
        let latest = node.store.latest().await.unwrap().unwrap();
        if latest.digest() == last {
            break latest;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(latest.id().round, rounds);
    let parameters = model::decode(latest.parameters()).unwrap().into_owned();
    let worst = parameters.iter().zip(expected(5, rounds)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "parameters are off by {worst}");
}

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

/// Parameters on the learning plane, in units of workers times size, over the rounds of a job.
async fn sent_per_round(resend: bool) -> f64 {
    let (workers, rounds) = (4, 5);
    let config = Config { resend, ..config(workers + 1, rounds, Profile::Once) };
    let job = Job::start(config, workers + 1, Payload::Inline, |_| trains_for(1)).await;
    job.completed().await;
    let sent = |node: &Node| {
        let traffic = node.learning.traffic();
        let bulk = traffic.frames.iter().find(|(class, _)| *class == Class::LearningBulk);
        bulk.map_or(0, |(_, count)| count.sent_bytes)
    };
    let bytes: u64 = job.nodes.values().map(sent).sum();
    bytes as f64 / (workers * rounds * model::ENCODED_BYTES as u64) as f64
}

#[tokio::test(start_paused = true)]
async fn parameters_are_sent_to_a_worker_once() {
    // Its update comes back, and the average goes out; the next round starts from that.
    let once = sent_per_round(false).await;
    assert!((2.0..2.01).contains(&once), "{once} W S a round");
    // As in Flower: with the fit instruction, with its result, with the evaluate instruction.
    let resent = sent_per_round(true).await;
    assert!((3.0..3.01).contains(&resent), "{resent} W S a round");
}

/// Bytes on the replication plane, in units of voters beside the leader times size, over the rounds of a job.
async fn replicated_per_round(profile: Profile, reuse: bool) -> f64 {
    let (workers, rounds) = (4, 5);
    let config = Config { reuse, ..config(workers + 1, rounds, profile) };
    let job = Job::start(config, workers + 1, Payload::Digest, |_| trains_for(1)).await;
    job.completed().await;
    // Under profile prototype a global checkpoint is an index, whose digest is another one.
    if profile != Profile::Prototype {
        assert_final_parameters(&job, rounds).await;
    }
    let sent = |node: &Node| {
        let traffic = node.replication.traffic();
        traffic.frames.iter().map(|(_, count)| count.sent_bytes).sum::<u64>()
    };
    let bytes: u64 = job.nodes.values().map(sent).sum();
    bytes as f64 / (workers * rounds * model::ENCODED_BYTES as u64) as f64
}

#[tokio::test(start_paused = true)]
async fn the_store_does_not_send_what_the_learning_plane_carries() {
    for profile in [Profile::Once, Profile::Paper] {
        let reused = replicated_per_round(profile, true).await;
        assert!(reused < 0.05, "{profile:?}: {reused} W S a round");
    }
}

#[tokio::test(start_paused = true)]
async fn without_reuse_the_same_bytes_cross_the_replication_plane_once() {
    // With profile paper the first round writes the initial model too.
    // What workers write under profile prototype is what they were sent.
    let profiles = [(Profile::Once, 5.0), (Profile::Paper, 6.0), (Profile::Prototype, 6.0)];
    for (profile, checkpoints) in profiles {
        let sent = replicated_per_round(profile, false).await * 5.0;
        assert!((checkpoints..checkpoints * 1.05).contains(&sent), "{profile:?}: {sent} W S in all");
    }
}

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
    assert!(finishers.iter().all(|(round, node)| (*node == first) == (*round <= 2)), "{finishers:?}");
}

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
    let mut job = Job::start_among(electorate, config, 5, payload, |_| trains_for(2)).await;
    for (round, node) in [(2, 6), (3, 7)] {
        round_started(&job, round).await;
        job.open(NodeId(node), true, trains_for(2)).await;
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
