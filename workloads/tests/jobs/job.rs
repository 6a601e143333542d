//! A job on the seeded network, whose nodes crash, come back, join and leave.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use replication::raft::{Electorate, RaftConfig};
use replication::transport::Transport;
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::{
    AnyStore, Backend, DEFAULT_RETAINED, Digest, NodeId, Payload, Phase, Silent, Site, Slot, Storage, Window,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use workloads::federated::{
    self, Config, EngineKind, Evaluation, Event, JobError, Learner, LearnerError, Participant, Partition,
    Policy, Profile, Training, Update, model,
};

use super::disk::Disk;

/// What a stand-in worker adds to every parameter in a round.
const STEP: f32 = 0.5;

#[derive(Clone, Copy)]
pub(crate) struct StandIn {
    pub(crate) training: Duration,
    pub(crate) evaluating: Duration,
    pub(crate) diverges: bool,
}

/// A worker that trains for `seconds`.
pub(crate) fn trains_for(seconds: u64) -> StandIn {
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

pub(crate) fn config(nodes: u64, rounds: u64, profile: Profile) -> Config {
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

pub(crate) struct Node {
    pub(crate) store: AnyStore,
    pub(crate) learning: Arc<dyn Transport>,
    pub(crate) replication: Arc<dyn Transport>,
    pub(crate) job: JoinHandle<Result<(), JobError>>,
}

/// Raft among `count` nodes, all of which vote.
pub(crate) fn raft(count: u64, payload: Payload) -> Backend {
    raft_among(Electorate::Everyone, count, payload)
}

/// Raft among `count` nodes.
pub(crate) fn raft_among(electorate: Electorate, count: u64, payload: Payload) -> Backend {
    Backend::Raft(RaftConfig {
        nodes: (1..=count).map(NodeId).collect(),
        electorate,
        payload,
        window: Window { from_ms: 300, to_ms: 600 },
        heartbeat_ms: 60,
        put_timeout_ms: 5000,
        retained: DEFAULT_RETAINED,
        seed: 3,
    })
}

/// A job with everything that its nodes told of it.
pub(crate) struct Job {
    config: Config,
    backend: Backend,
    /// What outlives a node, if it may come back.
    disks: Option<BTreeMap<NodeId, Disk>>,
    worker: Box<dyn Fn(NodeId) -> StandIn>,
    pub(crate) replication: ChannelNetwork,
    pub(crate) learning: ChannelNetwork,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) told: watch::Sender<Vec<(NodeId, Event)>>,
}

impl Job {
    /// A job on Raft in memory.
    pub(crate) async fn start(
        config: Config,
        count: u64,
        payload: Payload,
        worker: impl Fn(NodeId) -> StandIn + 'static,
    ) -> Self {
        Self::start_on(raft(count, payload), false, config, count, worker).await
    }

    /// A job on any backend, with a disk for every node or without.
    pub(crate) async fn start_on(
        backend: Backend,
        on_disk: bool,
        config: Config,
        count: u64,
        worker: impl Fn(NodeId) -> StandIn + 'static,
    ) -> Self {
        let ids: BTreeSet<NodeId> = (1..=count).map(NodeId).collect();
        let link = LinkSpec {
            delay: Duration::from_millis(2),
            jitter: Duration::from_millis(1),
            loss: 0.005,
            bandwidth_bytes_per_s: Some(12_500_000),
            ..LinkSpec::default()
        };
        let mut job = Self {
            config,
            backend,
            disks: on_disk.then(|| ids.iter().map(|node| (*node, Disk::default())).collect()),
            worker: Box::new(worker),
            replication: ChannelNetwork::new(1, link, ids.iter().copied()),
            learning: ChannelNetwork::new(2, link, ids.iter().copied()),
            nodes: BTreeMap::new(),
            told: watch::Sender::new(Vec::new()),
        };
        for node in ids {
            job.open(node).await;
        }
        job
    }

    /// Starts a node: for the first time, or again with what is on its disk and nothing else.
    pub(crate) async fn open(&mut self, node: NodeId) {
        self.enter(node, self.backend.clone(), false).await;
    }

    /// Starts a node that joins the cluster that runs.
    pub(crate) async fn join(&mut self, node: NodeId) {
        let mut backend = self.backend.clone();
        match &mut backend {
            Backend::Raft(config) => config.nodes.insert(node),
            Backend::Gossip(config) => config.nodes.insert(node),
            Backend::Backup(config) => config.nodes.insert(node),
            Backend::Local(_) => unreachable!("nobody joins"),
        };
        self.enter(node, backend, true).await;
    }

    async fn enter(&mut self, node: NodeId, backend: Backend, joins: bool) {
        let (replication, learning) = (self.replication.join(node), self.learning.join(node));
        let mut site = Site { joins, ..Site::new(replication.clone(), Arc::new(Silent)) };
        let disk = self.disks.as_ref().map(|disks| disks[&node].clone());
        site.storage = disk.map(|disk| Storage::inline_on(disk).unwrap());
        let store = replication::open(backend, site).await.unwrap();
        let told = self.told.clone();
        let participant = Participant {
            config: self.config.clone(),
            store: store.clone(),
            learning: learning.clone(),
            learner: Arc::new((self.worker)(node)),
            score: 500,
            initial: model::encode(model::initial(self.config.seed)).unwrap(),
            events: Arc::new(move |event| told.send_modify(|told| told.push((node, event)))),
        };
        let job = tokio::spawn(federated::run(participant));
        self.nodes.insert(node, Node { store, learning, replication, job });
    }

    /// Lets a node leave on purpose, and ends it.
    pub(crate) async fn leave(&mut self, node: NodeId) {
        let leaves = self.nodes.remove(&node).unwrap();
        leaves.store.leave().await.unwrap();
        leaves.job.abort();
        leaves.store.close().await;
        leaves.learning.close().await;
        leaves.replication.close().await;
    }

    pub(crate) async fn crash(&mut self, node: NodeId) {
        self.replication.crash(node);
        self.learning.crash(node);
        let ended = self.nodes.remove(&node).unwrap();
        ended.job.abort();
        ended.store.close().await;
    }

    /// Waits for an event and returns who told of it, with it.
    pub(crate) async fn hears(&self, what: &str, wanted: impl Fn(NodeId, &Event) -> bool) -> (NodeId, Event) {
        let mut told = self.told.subscribe();
        let heard = told.wait_for(|told| told.iter().any(|(node, event)| wanted(*node, event)));
        let heard = tokio::time::timeout(Duration::from_secs(600), heard).await;
        match heard {
            Ok(told) => told.unwrap().iter().find(|(node, event)| wanted(*node, event)).unwrap().clone(),
            Err(_) => panic!("no {what} in ten minutes; told: {:#?}", self.told.borrow()),
        }
    }

    pub(crate) async fn completed(&self) -> Digest {
        match self.hears("completion", |_, event| matches!(event, Event::Completed { .. })).await.1 {
            Event::Completed { digest, .. } => digest,
            other => unreachable!("{other:?}"),
        }
    }

    pub(crate) async fn fit_started(&self, wanted: u64) -> NodeId {
        let started = |_, event: &Event| matches!(event, Event::FitStarted { round, .. } if *round == wanted);
        let (_, event) = self.hears("fit", started).await;
        match event {
            Event::FitStarted { epoch, .. } => epoch.node,
            other => unreachable!("{other:?}"),
        }
    }

    /// Rounds in which a worker began to train after the round's average was acknowledged.
    pub(crate) fn trained_after_acknowledged(&self) -> Vec<u64> {
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

    pub(crate) fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.told.borrow().iter().filter(|(_, event)| wanted(event)).count()
    }
}

/// The parameters after `rounds` rounds: training adds a constant, and so does the average of equal updates.
fn expected(seed: u64, rounds: u64) -> Vec<f32> {
    model::initial(seed).iter().map(|parameter| parameter + STEP * rounds as f32).collect()
}

pub(crate) async fn assert_final_parameters(job: &Job, rounds: u64) {
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
