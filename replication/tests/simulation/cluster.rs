//! A cluster of any backend on the seeded network, under a schedule of faults: a job that writes wherever a store says that
//! its node aggregates, and readers everywhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::seq::IteratorRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use replication::storage::Storage;
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::{
    AnyStore, Backend, Checkpoint, CheckpointId, Epoch, Guarantees, Metadata, NodeId, Observer, Outcome,
    Phase, Site, Slot, StoreEvent, open,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::disk::Disk;
use super::history::{Ended, History, Learned, Life, Read, Recorder, Sighting, Write, content};
use super::lifelines::Lifelines;
use super::schedule::{Bounds, Fault, Kinds, member_track, schedule};

/// When the last fault has ended.
const FAULTS_UNTIL: Duration = Duration::from_secs(22);

/// When the job stops, so that there is one newest checkpoint to agree on.
const JOB_UNTIL: Duration = Duration::from_secs(26);

/// How long operations under way may take to end, and nodes to agree, after the job has stopped.
const SETTLING: Duration = Duration::from_secs(20);

/// Share of frames with a flipped bit, where there are any.
const CORRUPTION: f64 = 0.01;
/// Who lies, where somebody does, and in which share of what it says.
const LIAR: NodeId = NodeId(2);
const LIES: f64 = 0.2;

/// A link on which nothing goes wrong. Without a limit on bandwidth, since chitchat orders what it says with a generator that
/// cannot be seeded: how well that compresses must not decide when it arrives.
const WELL: LinkSpec = LinkSpec {
    delay: Duration::from_millis(2),
    jitter: Duration::from_millis(1),
    loss: 0.0,
    duplication: 0.0,
    bandwidth_bytes_per_s: None,
};

pub(crate) fn nodes() -> Vec<NodeId> {
    (1..=5).map(NodeId).collect()
}

/// What is under test.
#[derive(Debug, Clone)]
pub(crate) struct Subject {
    pub(crate) backend: Backend,
    /// Whether nodes keep their state on disk, so that they come back.
    pub(crate) on_disk: bool,
    /// Whether nodes have lifelines to the aggregator.
    pub(crate) lifelines: bool,
}

/// Runs `subject` under the schedule of `seed`; returns what happened, and what the backend promises.
pub(crate) async fn run(seed: u64, subject: &Subject, kinds: Kinds) -> (History, Guarantees) {
    let mut cluster = Cluster::start(seed, subject.clone()).await;
    let guarantees = cluster.members[&NodeId(1)].store.guarantees();
    let bounds = Bounds {
        nodes: nodes(),
        // One who leaves is a loss, too.
        losses: guarantees.tolerated_losses.min(if kinds == Kinds::Members { 1 } else { u32::MAX }),
        // A node whose memory is gone must not come back under its id.
        restarts: subject.on_disk,
        kinds,
        lifelines: subject.lifelines,
        until: FAULTS_UNTIL,
    };
    cluster.tamper(kinds);
    let mut happens: Vec<(Duration, Happens)> =
        schedule(seed, &bounds).into_iter().map(|(at, fault)| (at, Happens::Fault(fault))).collect();
    if kinds == Kinds::Members {
        let (joins, (at, leaver)) = member_track(seed);
        happens.extend(joins.into_iter().map(|(at, node)| (at, Happens::Join(node))));
        happens.push((at, Happens::Leave(leaver)));
        happens.sort_by_key(|(at, _)| *at);
    }
    for (at, next) in happens {
        sleep_until(cluster.begun + at).await;
        match next {
            Happens::Fault(fault) => cluster.strike(fault).await,
            Happens::Join(node) => cluster.open(Life { node, number: 0 }).await,
            Happens::Leave(node) => cluster.let_leave(node),
        }
    }
    cluster.network.set_corruption(0.0);
    if kinds == Kinds::Lies {
        // Who still lies at the end only keeps the nodes from agreeing.
        cluster.network.lie(LIAR, 0.0);
    }
    if kinds == Kinds::Corruption {
        let (refused, undetected) = cluster.network.corrupted();
        assert!(
            refused > 0 && undetected == 0,
            "{refused} frames refused, {undetected} accepted with a flipped bit"
        );
    }
    sleep_until(cluster.begun + JOB_UNTIL).await;
    cluster.see_off().await;
    cluster.settle().await;
    if kinds == Kinds::Members {
        cluster.newcomers_are_in().await;
    }
    cluster.read_the_end().await;
    let history = std::mem::take(&mut *cluster.recorder.history());
    cluster.close().await;
    (history, guarantees)
}

/// What is next.
enum Happens {
    Fault(Fault),
    Join(NodeId),
    Leave(NodeId),
}

struct Member {
    life: Life,
    store: AnyStore,
    tasks: JoinSet<()>,
}

struct Cluster {
    seed: u64,
    subject: Subject,
    disks: BTreeMap<NodeId, Disk>,
    network: ChannelNetwork,
    lifelines: Lifelines,
    begun: Instant,
    recorder: Recorder,
    running: Arc<AtomicBool>,
    members: BTreeMap<NodeId, Member>,
    leaving: JoinSet<Option<NodeId>>,
}

/// Notes who aggregates, as one life of a node learns it.
struct Witness {
    life: Life,
    recorder: Recorder,
}

impl Observer for Witness {
    fn observe(&self, event: StoreEvent) {
        if let StoreEvent::AggregatorChanged { epoch } = event {
            let learned = Learned { by: self.life, at: self.recorder.now(), epoch };
            self.recorder.history().learned.push(learned);
        }
    }
}

impl Cluster {
    async fn start(seed: u64, subject: Subject) -> Self {
        let mut cluster = Self {
            seed,
            subject,
            disks: nodes().into_iter().map(|node| (node, Disk::default())).collect(),
            network: ChannelNetwork::new(seed, WELL, nodes()),
            lifelines: Lifelines::default(),
            begun: Instant::now(),
            recorder: Recorder::new(),
            running: Arc::new(AtomicBool::new(true)),
            members: BTreeMap::new(),
            leaving: JoinSet::new(),
        };
        for node in nodes() {
            cluster.open(Life { node, number: 0 }).await;
        }
        cluster
    }

    /// Begins a life. What outlives a node is given to the site here.
    async fn open(&mut self, life: Life) {
        let witness = Witness { life, recorder: self.recorder.clone() };
        let mut site = Site::new(self.network.join(life.node), Arc::new(witness));
        site.resources.cpu_mb_per_s = 1000 * life.node.0;
        if self.subject.on_disk {
            let disk = self.disks.entry(life.node).or_default().clone();
            site.storage = Some(Storage::inline_on(disk).unwrap());
        }
        if self.subject.lifelines {
            site.lifeline = Some(self.lifelines.of(life.node));
        }
        let mut backend = self.subject.backend.clone();
        if !nodes().contains(&life.node) {
            site.joins = true;
            match &mut backend {
                Backend::Raft(config) => config.nodes.insert(life.node),
                Backend::Gossip(config) => config.nodes.insert(life.node),
                Backend::Backup(config) => config.nodes.insert(life.node),
                Backend::Local(_) => unreachable!("nobody joins"),
            };
        }
        let store = open(backend, site).await.unwrap();
        let client = |purpose: u64| Client {
            life,
            store: store.clone(),
            recorder: self.recorder.clone(),
            running: self.running.clone(),
            rng: ChaCha8Rng::seed_from_u64(self.seed ^ (life.node.0 << 32) ^ (purpose << 48)),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(client(1).write());
        tasks.spawn(client(2).read());
        self.members.insert(life.node, Member { life, store, tasks });
    }

    /// Has frames corrupted, or a node lie, from the beginning.
    fn tamper(&self, kinds: Kinds) {
        match kinds {
            Kinds::Corruption => self.network.set_corruption(CORRUPTION),
            Kinds::Lies => self.network.lie(LIAR, LIES),
            _ => {}
        }
    }

    /// Asks a node to leave, if it lives.
    fn let_leave(&mut self, node: NodeId) {
        let Some(member) = self.members.get(&node) else { return };
        let store = member.store.clone();
        self.leaving.spawn(async move { store.leave().await.is_ok().then_some(node) });
    }

    /// Ends whoever has left.
    async fn see_off(&mut self) {
        while let Some(left) = self.leaving.join_next().await {
            let Ok(Some(node)) = left else { continue };
            let Some(mut left) = self.members.remove(&node) else { continue };
            self.network.crash(node);
            left.tasks.abort_all();
            let end = (left.life, self.recorder.now());
            self.recorder.history().deaths.push(end);
            left.store.close().await;
        }
    }

    /// Waits until the aggregator could hand over to everybody who joined.
    async fn newcomers_are_in(&self) {
        let ends = Instant::now() + SETTLING;
        let joined = || self.members.keys().filter(|node| !nodes().contains(node));
        let inside = || {
            self.members.values().any(|member| {
                let candidates = member.store.candidates();
                let leads = *member.store.aggregator().borrow();
                let leads = leads.is_some_and(|epoch| epoch.node == member.life.node);
                leads && joined().all(|node| *node == member.life.node || candidates.contains(node))
            })
        };
        while !inside() {
            assert!(Instant::now() < ends, "who joined is no member after {SETTLING:?}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Crash(node) => {
                self.network.crash(node);
                self.lifelines.crash(node);
                let Some(mut dead) = self.members.remove(&node) else { return };
                dead.tasks.abort_all();
                let death = (dead.life, self.recorder.now());
                self.recorder.history().deaths.push(death);
                dead.store.close().await;
            }
            Fault::Restart(node) => {
                let deaths =
                    |history: &History| history.deaths.iter().filter(|(dead, _)| dead.node == node).count();
                let number = deaths(&self.recorder.history()) as u32;
                self.open(Life { node, number }).await;
            }
            Fault::Pause(node) => self.network.pause(node),
            Fault::Resume(node) => self.network.resume(node),
            Fault::Partition(one, other) => self.network.partition(&[&one, &other]),
            Fault::Cut(one, other) => self.network.cut(one, other),
            Fault::Omit { node, to_send, to_receive } => self.network.omit(node, to_send, to_receive),
            Fault::Heal => self.network.heal(),
            Fault::Disturb { loss, duplication, jitter } => {
                self.network.set_link(LinkSpec { loss, duplication, jitter, ..WELL });
            }
            Fault::FalseAlarm(nodes) => nodes.into_iter().for_each(|node| self.lifelines.snap(node)),
            Fault::Calm => self.network.set_link(WELL),
        }
    }

    /// Stops the job and waits until all nodes know the same aggregator and name the same newest checkpoint.
    async fn settle(&mut self) {
        self.running.store(false, Ordering::Relaxed);
        let ends = Instant::now() + SETTLING;
        for member in self.members.values_mut() {
            let finished = async { while member.tasks.join_next().await.is_some() {} };
            let Ok(()) = tokio::time::timeout_at(ends, finished).await else {
                panic!("an operation on {:?} did not end within {SETTLING:?}", member.life);
            };
        }
        let mut seen = self.views().await;
        while !agree(&seen) {
            assert!(Instant::now() < ends, "no agreement within {SETTLING:?}: {seen:?}");
            sleep(Duration::from_millis(100)).await;
            seen = self.views().await;
        }
    }

    async fn views(&self) -> Vec<View> {
        let mut views = Vec::new();
        for member in self.members.values() {
            let epoch = *member.store.aggregator().borrow();
            let latest = timeout(SETTLING, member.store.latest()).await;
            let latest = latest.map(|read| read.map(|latest| latest.as_ref().map(Checkpoint::id)));
            views.push((
                member.life.node,
                epoch,
                latest.map_err(|_| "no answer").and_then(|read| read.map_err(|_| "failed")),
            ));
        }
        views
    }

    /// Asks every node for its newest checkpoint and for all that was ever acknowledged.
    async fn read_the_end(&self) {
        let names = self.recorder.history().names();
        for member in self.members.values() {
            for named in std::iter::once(None).chain(names.iter().copied().map(Some)) {
                let read = read(&self.recorder, member.life, &member.store, named).await;
                self.recorder.history().last.push(read);
            }
        }
    }

    async fn close(self) {
        for member in self.members.values() {
            member.store.close().await;
        }
    }
}

/// What a node knows: who aggregates, which checkpoint is the newest.
type View = (NodeId, Option<Epoch>, Result<Option<CheckpointId>, &'static str>);

fn agree(views: &[View]) -> bool {
    let Some((_, epoch, latest)) = views.first() else { return true };
    let lives = epoch.is_some_and(|epoch| views.iter().any(|(node, _, _)| *node == epoch.node));
    lives && latest.is_ok() && views.iter().all(|(_, other, newest)| other == epoch && newest == latest)
}

async fn read(recorder: &Recorder, by: Life, store: &AnyStore, named: Option<CheckpointId>) -> Read {
    let start = recorder.now();
    let found = match named {
        Some(id) => store.get(id).await,
        None => store.latest().await,
    };
    let found = found.map(|found| found.as_ref().map(Sighting::from));
    Read { by, named, start, end: recorder.now(), found }
}

/// Somebody who uses one node's store.
struct Client {
    life: Life,
    store: AnyStore,
    recorder: Recorder,
    running: Arc<AtomicBool>,
    rng: ChaCha8Rng,
}

impl Client {
    fn running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    async fn pause(&mut self, from_ms: u64, to_ms: u64) {
        sleep(Duration::from_millis(self.rng.random_range(from_ms..to_ms))).await;
    }

    fn epoch(&self) -> Option<Epoch> {
        let epoch = *self.store.aggregator().borrow();
        epoch.filter(|epoch| epoch.node == self.life.node)
    }

    /// Round after round, for as long as this node aggregates.
    async fn write(mut self) {
        while self.running() {
            if let Some(epoch) = self.epoch()
                && let Ok(latest) = self.store.latest().await
            {
                let round = latest.map_or(0, |latest| latest.id().round) + 1;
                self.write_round(epoch, round).await;
            }
            self.pause(50, 250).await;
        }
    }

    /// Repeats a write until its outcome is known or the epoch has ended.
    async fn write_round(&mut self, epoch: Epoch, round: u64) {
        let id = CheckpointId { epoch, round, phase: Phase::AggregateFit, slot: Slot::Global };
        let checkpoint = Checkpoint::new(id, content(epoch, round), Metadata::new());
        while self.running() && self.epoch() == Some(epoch) {
            let start = self.recorder.now();
            let outcome = self.store.put(checkpoint.clone()).await;
            let unknown = outcome.as_ref().is_err_and(|error| error.outcome() == Outcome::Unknown);
            let ended = match outcome {
                Ok(_) => Ended::Acknowledged,
                Err(error) => Ended::Failed(error),
            };
            let end = self.recorder.now();
            let write = Write { by: self.life, id, digest: checkpoint.digest(), start, end, ended };
            self.recorder.history().writes.push(write);
            if !unknown {
                return;
            }
            self.pause(20, 100).await;
        }
    }

    async fn read(mut self) {
        while self.running() {
            let acknowledged = self.recorder.history().names();
            let named = acknowledged.into_iter().choose(&mut self.rng).filter(|_| self.rng.random_bool(0.3));
            let read = read(&self.recorder, self.life, &self.store, named).await;
            self.recorder.history().reads.push(read);
            self.pause(100, 500).await;
        }
    }
}
