//! The controller's part of a key-value run: start the nodes, have the clients fill, load and verify, disturb nodes meanwhile,
//! check what clients saw, write it down.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use replication::transport::identity::GUEST;
use replication::{Epoch, NodeId, StoreEvent};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::cluster::{ClusterAddress, ClusterFile};
use super::disturb::{Strike, schedule};
use super::load::{Clients, Cluster, News, Order};
use super::outcome::{Conclusion, Early, Seen};
use super::plan::{Disturbance, KvPlan};
use super::record::Summary;
use crate::clock;
use crate::control::{Entry, FromNode, Impair, Lifecycle, LinkLoss, NodeEvent, Start, ToNode, VERSION};
use crate::disk::{self, Folder};
use crate::identity::Identity;
use crate::place::Placement;
use crate::plan::Trial;
use crate::progress::Progress;
use crate::record::{ControllerEvent, Manifest, Recorder};
use crate::run::links::{self, Links};
use crate::run::{Setup, Stop, Timeouts};
use crate::units::nanoseconds;

/// After the last disturbance nodes have so long to be well before everything is verified.
const RECOVERY: Duration = Duration::from_secs(2);

/// How soon a killed process that has not ended is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Runs a trial to its end, whatever that is, and writes its results. `cluster_file` receives the cluster's address.
///
/// # Errors
/// If the results cannot be written, or credentials not made. A run that fails is no error: its summary says so.
pub async fn run<P: Placement>(
    setup: Setup,
    cluster_file: Option<PathBuf>,
    placement: P,
    progress: Progress,
    stops: mpsc::Receiver<Stop>,
) -> anyhow::Result<Summary> {
    let Setup { mut trial, dir, command, repeat, issue, timeouts, .. } = setup;
    let kv = trial.plan.kv.clone().context("the plan is of another workload")?;
    let started = clock::utc_now();
    let mut manifest = Manifest::starting(&trial, timeouts.timers(&trial.plan), command, repeat);
    manifest.hosts = placement.hosts();
    let mut everyone = trial.plan.nodes();
    everyone.push(GUEST);
    let mut identities = issue(&everyone).context("cannot make the nodes' credentials")?;
    let guest = identities.remove(&GUEST).context("no credentials for clients")?;
    let cluster = ClusterAddress::new(&trial.plan, guest);
    let recorder = match dir {
        Some(dir) => Recorder::create_in(&dir, &manifest)?,
        None => Recorder::create(&trial.out, started, &manifest)?,
    };
    progress.note(&format!("results go to {}", recorder.dir().display()));
    if let Some(at) = trial.plan.metrics {
        progress.note(&at.announcement(&trial.plan));
    }
    let folder = disk::open_stores(&mut trial, recorder.dir())?;
    if folder.is_some() {
        manifest.plan = trial.plan.clone();
        recorder.manifest(&manifest)?;
    }
    let file = cluster_file.map(|file| ClusterFile::write(&file, &cluster)).transpose()?;
    let mut controller = Controller {
        nodes: trial.plan.founders(),
        newcomers: trial.plan.newcomers().into(),
        entries: BTreeMap::new(),
        departed: BTreeSet::new(),
        cluster,
        file,
        folder,
        strikes: Strikes::default(),
        links: Links::new(),
        listening: BTreeSet::new(),
        ended: BTreeMap::new(),
        lives: BTreeMap::new(),
        epochs: BTreeSet::new(),
        struck: 0,
        dead: BTreeSet::new(),
        begin_ns: None,
        starting: false,
        ending: false,
        kv,
        trial,
        identities,
        timeouts,
        manifest,
        recorder,
        progress,
        placement,
        stops,
    };
    let history = controller.drive().await;
    controller.conclude(history).await
}

/// Disturbances to come, and the one that is on.
#[derive(Default)]
struct Strikes {
    /// The next is the last.
    coming: Vec<Strike>,
    on: Option<(Strike, NodeId)>,
    /// The begin of the load.
    begin: Option<Instant>,
}

impl Strikes {
    /// When something begins or ends next.
    fn next(&self) -> Option<Instant> {
        let at = self.on.as_ref().map(|(strike, _)| strike.until_ns);
        let ns = at.or_else(|| self.coming.last().map(|strike| strike.from_ns))?;
        Some(self.begin? + Duration::from_nanos(ns))
    }
}

pub(super) struct Controller<P> {
    pub(super) trial: Trial,
    pub(super) kv: KvPlan,
    /// Nodes that belong to the cluster.
    pub(super) nodes: Vec<NodeId>,
    /// Nodes that may be added, in order.
    pub(super) newcomers: VecDeque<NodeId>,
    /// How nodes came that were added.
    pub(super) entries: BTreeMap<NodeId, Entry>,
    /// Nodes that have left.
    pub(super) departed: BTreeSet<NodeId>,
    pub(super) cluster: ClusterAddress,
    // Both are held until the nodes are gone.
    pub(super) file: Option<ClusterFile>,
    pub(super) folder: Option<Folder>,
    identities: BTreeMap<NodeId, Identity>,
    pub(super) timeouts: Timeouts,
    manifest: Manifest,
    pub(super) recorder: Recorder,
    pub(super) progress: Progress,
    placement: P,
    stops: mpsc::Receiver<Stop>,
    pub(super) links: Links,
    /// Nodes that are up.
    pub(super) listening: BTreeSet<NodeId>,
    /// Nodes that ended without a disturbance, and why.
    ended: BTreeMap<NodeId, String>,
    /// Which of its lives each node is in, from 1.
    lives: BTreeMap<NodeId, u32>,
    epochs: BTreeSet<Epoch>,
    strikes: Strikes,
    struck: u64,
    /// Nodes that were killed for good.
    dead: BTreeSet<NodeId>,
    pub(super) begin_ns: Option<u64>,
    /// Not every node has been up yet.
    starting: bool,
    /// Nodes were told to finish.
    ending: bool,
}

impl<P: Placement> Controller<P> {
    /// From the first node to the last answer; returns every operation.
    async fn drive(&mut self) -> anyhow::Result<Result<Seen, Early>> {
        self.progress.note(&self.trial.plan.backend.describe());
        self.progress.note(&format!("starting {} nodes, seed {}", self.nodes.len(), self.manifest.seed));
        for node in self.nodes.clone() {
            self.launch(node)?;
        }
        let until = Instant::now() + self.timeouts.start;
        self.starting = true;
        while self.listening.len() < self.nodes.len() {
            if let Some(early) = self.look(until).await? {
                return Ok(Err(early));
            }
            if Instant::now() >= until {
                return Ok(Err(Early::Failed("not every node was ready in time".into())));
            }
        }
        self.starting = false;
        if let Some(board) = self.kv.board {
            return self.leaderboard(board).await;
        }
        if self.kv.load.clients == 0 {
            return Ok(Err(self.serve().await?));
        }
        let mut clients = Clients::start(self.kv.load, Cluster::new(self.cluster.clone()))?;
        let mut seen = None;
        while seen.is_none() {
            tokio::select! {
                biased;
                news = clients.news.recv() => match news {
                    Some(News::Failed { reason }) => return Ok(Err(Early::Failed(reason))),
                    Some(news) => seen = self.news(news, &clients).await?,
                    None => return Ok(Err(Early::Failed("the clients ended".into()))),
                },
                early = self.look_once() => if let Some(early) = early? {
                    return Ok(Err(early));
                },
            }
        }
        Ok(seen.ok_or_else(|| Early::Failed("the clients ended".into())))
    }

    /// Serves clients from outside, for whom the settings of the load are, until whoever started it ends it.
    async fn serve(&mut self) -> anyhow::Result<Early> {
        self.progress.note("serving until it is ended, with Ctrl-C for example");
        loop {
            if let Some(early) = self.look_once().await? {
                return Ok(early);
            }
        }
    }

    /// Waits until `until` or for something to happen.
    async fn look(&mut self, until: Instant) -> anyhow::Result<Option<Early>> {
        tokio::select! {
            biased;
            early = self.look_once() => early,
            () = sleep_until(until) => Ok(None),
        }
    }

    /// Takes one signal, or one line of a node; begins or ends a disturbance that is due.
    pub(super) async fn look_once(&mut self) -> anyhow::Result<Option<Early>> {
        let next = self.strikes.next();
        let due = async move {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(stop) = self.stops.recv() => return Ok(Some(Early::Stopped(stop))),
            () = due => self.disturb()?,
            Some((node, news)) = self.links.next() => return self.take(node, news),
        }
        Ok(None)
    }

    pub(super) fn launch(&mut self, node: NodeId) -> anyhow::Result<()> {
        let lives = self.lives.entry(node).or_default();
        *lives += 1;
        let life = *lives;
        let pipes = self.placement.start(node, &self.recorder.node_log(node))?;
        self.recorder.controller_event(&ControllerEvent::NodeStarted { target: node, life })?;
        self.links.add(node, pipes);
        Ok(())
    }

    fn take(&mut self, node: NodeId, news: links::News) -> anyhow::Result<Option<Early>> {
        match news {
            links::News::Message(FromNode::Hello { version, .. }) => {
                if version != VERSION {
                    return Ok(Some(Early::Failed(format!("node {node} speaks another control protocol"))));
                }
                let plan = self.trial.plan.clone();
                let identity = self.identities.get(&node).cloned().context("a node without credentials")?;
                let (peers, entry) = (self.nodes.clone(), self.entry(node));
                let start = Start { version: VERSION, node, plan, identity, peers, entry, store_only: false };
                self.links.send(node, ToNode::Start(Box::new(start)));
            }
            links::News::Message(FromNode::Event { at_ns, event }) => self.event(node, at_ns, &event)?,
            links::News::Message(FromNode::Board { board, throttled, .. }) => {
                if let Some(throttles) = self.manifest.board(node, *board, throttled) {
                    self.progress.warn(&throttles);
                }
            }
            links::News::Message(_) | links::News::Unreadable(_) => {}
            links::News::Gone => return self.gone(node),
        }
        Ok(None)
    }

    /// Writes an event of `node` down. Clocks of other hosts are not compared here: what they tell of counts as of when it was heard.
    fn note(&mut self, node: NodeId, shown_ns: u64, event: &NodeEvent) -> anyhow::Result<()> {
        let at_ns = if self.placement.shares_clock() { shown_ns } else { clock::monotonic_ns() };
        self.recorder.node_event(node, (at_ns, shown_ns), event)
    }

    fn event(&mut self, node: NodeId, at_ns: u64, event: &NodeEvent) -> anyhow::Result<()> {
        self.note(node, at_ns, event)?;
        match event {
            NodeEvent::Node(Lifecycle::Listening { .. }) => {
                self.listening.insert(node);
            }
            NodeEvent::Node(Lifecycle::Failed { reason }) => {
                self.ended.insert(node, reason.clone());
            }
            NodeEvent::Node(Lifecycle::NodeWanted) => self.wanted(node)?,
            NodeEvent::Node(Lifecycle::Left) => self.left(node)?,
            NodeEvent::Store(StoreEvent::AggregatorChanged { epoch: Some(epoch) })
                if epoch.node == node && self.epochs.insert(*epoch) =>
            {
                self.progress.note(&format!("aggregator: node {} (epoch {epoch})", epoch.node));
            }
            _ => {}
        }
        Ok(())
    }

    /// A node's stream ended.
    fn gone(&mut self, node: NodeId) -> anyhow::Result<Option<Early>> {
        self.links.close(node);
        let killed =
            |(strike, target): &(Strike, NodeId)| strike.kind == Disturbance::Kill && *target == node;
        self.listening.remove(&node);
        let away = self.departed.contains(&node) || self.dead.contains(&node);
        if self.ending || away || self.strikes.on.as_ref().is_some_and(killed) {
            return Ok(None);
        }
        let how = self.ended.entry(node).or_insert_with(|| "it is gone".into()).clone();
        let event = ControllerEvent::NodeGone { target: node, how: how.clone(), expected: false };
        self.recorder.controller_event(&event)?;
        self.progress.warn(&format!("node {node} ended, and no disturbance is the reason: {how}"));
        Ok(self.starting.then(|| Early::Failed(format!("node {node} ended while starting: {how}"))))
    }

    async fn news(&mut self, news: News, clients: &Clients) -> anyhow::Result<Option<Seen>> {
        let order = |order| {
            // The clients end only with this run.
            let _ = clients.orders.send(order);
        };
        match news {
            News::Connected => order(Order::Fill),
            News::Filled => {
                self.progress.note(&format!("{} entries are written", self.kv.load.entries));
                order(Order::Load);
            }
            News::Begins { at_ns } => {
                self.begin_ns = Some(at_ns);
                let KvPlan { load, disturbances, .. } = &self.kv;
                let strikes = schedule(load.seed, &self.nodes, disturbances, load.duration_ns);
                self.begin_strikes(strikes);
            }
            News::Ended => {
                self.end_strikes().await?;
                order(Order::Verify);
            }
            News::Verified { history, differing } => {
                return Ok(Some(Seen { history, differing, tally: None }));
            }
            News::Failed { .. } => {}
        }
        Ok(None)
    }

    /// The load begins now, and these disturbances with it.
    pub(super) fn begin_strikes(&mut self, mut strikes: Vec<Strike>) {
        strikes.reverse();
        self.strikes.coming = strikes;
        self.strikes.begin = Some(Instant::now());
    }

    /// Ends what disturbs nodes, and gives them time to be well.
    pub(super) async fn end_strikes(&mut self) -> anyhow::Result<()> {
        self.strikes.coming.clear();
        while self.strikes.on.is_some() {
            self.disturb()?;
            sleep(LOOK_AGAIN).await;
        }
        if self.struck > 0 {
            sleep(RECOVERY).await;
        }
        Ok(())
    }

    /// Whether `node` was killed for good.
    pub(super) fn is_dead(&self, node: NodeId) -> bool {
        self.dead.contains(&node)
    }

    /// Ends the disturbance that is on, or begins the next one.
    fn disturb(&mut self) -> anyhow::Result<()> {
        if let Some((mut strike, node)) = self.strikes.on.take() {
            match strike.kind {
                // Its sockets, and the lock on its store, go with the old process.
                Disturbance::Kill if self.placement.ended(node).is_none() => {
                    strike.until_ns += nanoseconds(LOOK_AGAIN);
                    self.strikes.on = Some((strike, node));
                    return Ok(());
                }
                Disturbance::Kill => self.launch(node)?,
                Disturbance::Stop => self.placement.resume(node)?,
                Disturbance::Partition => self.cut(node, 0.0),
            }
            let fault = format!("{:?}", strike.kind).to_lowercase();
            return self.recorder.controller_event(&ControllerEvent::FaultHealed { fault, target: node });
        }
        let Some(strike) = self.strikes.coming.pop() else { return Ok(()) };
        let aggregator = self.epochs.last().map(|epoch| epoch.node).filter(|_| strike.aggregator);
        let node = aggregator.unwrap_or(strike.node);
        match strike.kind {
            Disturbance::Kill => self.placement.kill(node)?,
            Disturbance::Stop => self.placement.stop(node)?,
            Disturbance::Partition => self.cut(node, 1.0),
        }
        self.struck += 1;
        if strike.until_ns == u64::MAX {
            self.dead.insert(node);
        } else {
            self.strikes.on = Some((strike, node));
        }
        let fault = format!("{:?}", strike.kind).to_lowercase();
        self.progress.note(&format!("{fault}: node {node}"));
        self.recorder.controller_event(&ControllerEvent::FaultStruck { fault, target: node })
    }

    /// Has everything lost that goes between `node` and the others.
    fn cut(&self, node: NodeId, share: f64) {
        for one in &self.nodes {
            let to_node = |other: &NodeId| *one == node || *other == node;
            let others = self.nodes.iter().filter(|other| *other != one && to_node(other));
            let losses = others.filter(|_| share > 0.0).map(|to| LinkLoss { to: *to, share }).collect();
            self.links.send(*one, ToNode::Impair(Impair { losses, ..Impair::default() }));
        }
    }

    async fn conclude(mut self, seen: anyhow::Result<Result<Seen, Early>>) -> anyhow::Result<Summary> {
        let (seen, early) = match seen {
            Ok(Ok(seen)) => (seen, None),
            Ok(Err(early)) => (Seen::default(), Some(early)),
            Err(error) => (Seen::default(), Some(Early::Failed(format!("{error:#}")))),
        };
        self.finish_nodes().await;
        self.progress.clear();
        let backend = &self.trial.plan.backend;
        let conclusion = Conclusion {
            kv: &self.kv,
            backend: backend.backend().to_string(),
            server: format!("harness {}", self.manifest.program.version),
            payload: Some(backend.payload),
            nodes: self.nodes.len(),
            seen,
            early,
            ended: &self.ended,
            begin_ns: self.begin_ns,
            epochs: self.epochs.len(),
            disturbances: self.struck,
        };
        conclusion.write(&self.recorder, &mut self.manifest)
    }

    async fn finish_nodes(&mut self) {
        self.ending = true;
        for node in self.nodes.clone() {
            let _ = self.placement.resume(node);
            self.links.send(node, ToNode::Finish);
        }
        let until = Instant::now() + self.timeouts.finish;
        while self.nodes.iter().any(|node| self.placement.ended(*node).is_none()) && Instant::now() < until {
            // Nodes wait for their last words to be read.
            let next = tokio::time::timeout(Duration::from_millis(20), self.links.next());
            if let Ok(Some((node, links::News::Message(FromNode::Event { at_ns, event })))) = next.await {
                let _ = self.note(node, at_ns, &event);
            }
        }
        self.placement.end_all().await;
    }
}
