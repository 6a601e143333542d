//! One run: start the nodes, watch them, break them on request, decide when it is over, and write down what happened.
//!
//! The controller decides by what it is told ([`cluster`]) and by bounded waiting ([`Timeouts`]). It does not know
//! where nodes run ([`Placement`]) or what a round computes.

mod clocks;
pub mod cluster;
mod conclude;
pub(crate) mod links;
mod members;
mod restart;
mod strike;
#[cfg(test)]
mod tests;
mod timeouts;
mod vacancy;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use replication::NodeId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use workloads::federated::Event;

use self::clocks::ClockBook;
use self::cluster::{Cluster, list};
use self::links::{Links, News};
pub use self::timeouts::Timeouts;
use self::vacancy::Vacancies;
use crate::board;
use crate::board::Board;
use crate::clock;
use crate::control::{
    Captured, Entry, FromNode, Impair, Lifecycle, NodeEvent, Signal, Start, ToNode, VERSION,
};
use crate::disk;
use crate::fault::Timeline;
use crate::identity::{Identity, Issue};
use crate::place::Placement;
use crate::plan::{DiskStore, Durability, PlacementKind, Shortfall, Trial};
use crate::progress::Progress;
use crate::record::{CaptureBook, ControllerEvent, Failovers, Manifest, Recorder, Summary, is_progress};
use crate::units::{nanoseconds, show_ns};

/// How often the controller looks at its timeouts.
const TICK: Duration = Duration::from_millis(100);
/// How often nodes are asked for their status while the job runs.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);
/// How long an ended process may take to be seen as ended, after its stream was.
const REAP_TIMEOUT: Duration = Duration::from_secs(1);

/// A signal that ends the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

/// Everything a run needs, validated.
#[derive(Debug)]
pub struct Setup {
    /// The run.
    pub trial: Trial,
    /// The results folder, empty; none: one named after time and host.
    pub dir: Option<PathBuf>,
    /// The results folder of the run that this one continues.
    pub resumed_from: Option<PathBuf>,
    /// The command line, as it was given.
    pub command: String,
    /// The command that repeats the trial.
    pub repeat: String,
    /// Makes the nodes' credentials.
    pub issue: Issue,
    /// How long to wait.
    pub timeouts: Timeouts,
}

/// Why the run is over.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ending {
    Completed,
    NoMajority(Shortfall),
    Failed(String),
    Stopped(Stop),
}

/// Runs a trial to its end, whatever that is, and writes its results.
///
/// # Errors
/// If the results cannot be written, or credentials not made. A run that fails is no error: its summary says so.
pub async fn run<P: Placement>(
    setup: Setup,
    placement: P,
    progress: Progress,
    stops: mpsc::Receiver<Stop>,
) -> anyhow::Result<Summary> {
    let Setup { mut trial, dir, resumed_from, command, repeat, issue, timeouts } = setup;
    let started = clock::utc_now();
    let mut manifest = Manifest::starting(&trial, timeouts.timers(&trial.plan), command, repeat);
    manifest.resumed_from = resumed_from;
    manifest.hosts = placement.hosts();
    let identities = issue(&trial.plan.nodes()).context("cannot make the nodes' credentials")?;
    let recorder = match dir {
        Some(dir) => Recorder::create_in(&dir, &manifest)?,
        None => Recorder::create(&trial.out, started, &manifest)?,
    };
    progress.note(&format!("results go to {}", recorder.dir().display()));
    if let Some(at) = trial.plan.metrics {
        progress.note(&at.announcement(&trial.plan));
    }
    // Held until the nodes are gone.
    let disk_on_hosts =
        matches!(trial.durability, Durability::Disk { .. }) && trial.plan.placement == PlacementKind::Ssh;
    let folder = if disk_on_hosts {
        // Each host makes it, and removes it at the end.
        let cluster = disk::Label::new(trial.plan.backend.backend(), trial.plan.founders).cluster;
        let dir = PathBuf::from(board::STORES).join(format!("harness-{cluster}"));
        trial.plan.disk = Some(DiskStore { dir, cluster });
        None
    } else {
        disk::open_stores(&mut trial, recorder.dir())?
    };
    if let Some(folder) = &folder {
        progress.note(&format!("stores are in {}", folder.disk().dir.display()));
    }
    if trial.plan.disk.is_some() {
        manifest.plan = trial.plan.clone();
        recorder.manifest(&manifest)?;
    }
    let now = Instant::now();
    let mut controller = Controller {
        cluster: Cluster::new(&trial.plan.founders()),
        timeline: Timeline::new(
            &trial.faults,
            &trial.changes,
            &trial.plan.founders(),
            &trial.plan.newcomers(),
            trial.plan.job.seed,
        ),
        entries: BTreeMap::new(),
        replacing: BTreeMap::new(),
        spares: trial.plan.spare_nodes().into(),
        links: Links::new(),
        vacancies: Vacancies::default(),
        introduced: BTreeSet::new(),
        returning: BTreeMap::new(),
        struck: BTreeSet::new(),
        power_cuts: JoinSet::new(),
        faults_struck: 0,
        leavers: 0,
        clocks: ClockBook::default(),
        requests: 0,
        captures: CaptureBook::default(),
        failovers: Failovers::default(),
        started: now,
        heard: now,
        asked: now,
        completed: None,
        start_ns: None,
        fatal: None,
        ending: false,
        trial,
        identities,
        timeouts,
        manifest,
        recorder,
        progress,
        placement,
        stops,
    };
    let ending = controller.drive().await.unwrap_or_else(|error| Ending::Failed(format!("{error:#}")));
    controller.conclude(ending).await
}

struct Controller<P> {
    trial: Trial,
    identities: BTreeMap<NodeId, Identity>,
    timeouts: Timeouts,
    manifest: Manifest,
    recorder: Recorder,
    progress: Progress,
    placement: P,
    stops: mpsc::Receiver<Stop>,
    links: Links,
    cluster: Cluster,
    timeline: Timeline,
    vacancies: Vacancies,
    /// Nodes that said hello in this life.
    introduced: BTreeSet<NodeId>,
    /// When killed nodes are started again.
    returning: BTreeMap<NodeId, Instant>,
    /// How nodes came that did not found the cluster.
    entries: BTreeMap<NodeId, Entry>,
    /// When others are started in the place of nodes that were killed with their memory.
    replacing: BTreeMap<NodeId, Instant>,
    /// Ids for these.
    spares: VecDeque<NodeId>,
    /// Nodes whose death is a fault's doing.
    struck: BTreeSet<NodeId>,
    /// Commands that cut the power of hosts now.
    power_cuts: JoinSet<strike::Cut>,
    faults_struck: u64,
    /// How many nodes have left on purpose.
    leavers: u64,
    clocks: ClockBook,
    requests: u64,
    /// What nodes captured.
    captures: CaptureBook,
    failovers: Failovers,
    started: Instant,
    /// When something was last heard of the job.
    heard: Instant,
    /// When nodes were last asked for their status.
    asked: Instant,
    completed: Option<Instant>,
    start_ns: Option<u64>,
    /// Something that must end the run at the next look.
    fatal: Option<String>,
    /// Nodes were told to finish: their ends are expected.
    ending: bool,
}

impl<P: Placement> Controller<P> {
    /// Starts the nodes and follows them until the run is over.
    async fn drive(&mut self) -> anyhow::Result<Ending> {
        self.start_nodes()?;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next_ns = self.timeline.next_ns();
            tokio::select! {
                biased;
                Some(stop) = self.stops.recv() => return Ok(Ending::Stopped(stop)),
                _ = tick.tick() => self.tick()?,
                () = strike::until(next_ns) => {
                    let actions = self.timeline.advance(clock::monotonic_ns());
                    self.carry_out(actions)?;
                }
                Some(cut) = self.power_cuts.join_next() => self.power_is_cut(cut?)?,
                Some((node, news)) = self.links.next() => self.take(node, news).await?,
            }
            if let Some(ending) = self.judge() {
                return Ok(ending);
            }
        }
    }

    fn start_nodes(&mut self) -> anyhow::Result<()> {
        let nodes = self.trial.plan.founders();
        self.progress.note(&self.trial.plan.backend.describe());
        self.progress.note(&format!("starting {} nodes, seed {}", nodes.len(), self.manifest.seed));
        for node in nodes {
            self.launch(node, 1)?;
        }
        Ok(())
    }

    /// Starts a node, for the first time or again.
    fn launch(&mut self, node: NodeId, life: u32) -> anyhow::Result<()> {
        let pipes = self.placement.start(node, &self.recorder.node_log(node))?;
        self.recorder.controller_event(&ControllerEvent::NodeStarted { target: node, life })?;
        self.links.add(node, pipes);
        Ok(())
    }

    async fn take(&mut self, node: NodeId, news: News) -> anyhow::Result<()> {
        match news {
            News::Message(FromNode::Hello { version, pid }) => {
                tracing::debug!("node {node} is process {pid}");
                self.greet(node, version);
            }
            News::Message(FromNode::Event { at_ns, event }) => self.event(node, at_ns, &event)?,
            News::Message(FromNode::Status(status)) => self.cluster.status(node, *status),
            News::Message(FromNode::Clock { request_id, at_ns }) => self.clock(node, request_id, at_ns)?,
            News::Message(FromNode::Capture(mut captured)) => {
                let interval = &mut captured.interval;
                interval.from_ns = self.here(node, interval.from_ns);
                interval.until_ns = self.here(node, interval.until_ns);
                self.captured(node, &captured)?;
            }
            News::Message(FromNode::Signalled { signal, at_ns }) => {
                let at_ns = self.here(node, at_ns);
                tracing::debug!("node {node} was sent {signal:?}");
                if signal != Signal::Continue {
                    self.failovers.reached(at_ns, node);
                }
                if signal == Signal::Kill {
                    self.vacancies.reached(at_ns, node);
                }
            }
            News::Message(FromNode::Board { board, throttled }) => self.board(node, *board, throttled),
            News::Unreadable(reason) => {
                self.progress.warn(&format!("node {node} said something that was not understood: {reason}"));
                self.recorder.controller_event(&ControllerEvent::UnreadableLine { target: node, reason })?;
            }
            News::Gone => self.gone(node).await?,
        }
        Ok(())
    }

    fn greet(&mut self, node: NodeId, version: u32) {
        if version != VERSION {
            self.fatal =
                Some(format!("node {node} speaks version {version} of the control protocol, not {VERSION}"));
            return;
        }
        if !self.introduced.insert(node) {
            self.fatal = Some(format!("node {node} introduced itself twice"));
            return;
        }
        if self.placement.shares_clock() {
            // The probe comes first: a node that starts is too busy to answer at once.
            self.probe_clock(node);
            self.order_start(node);
        } else {
            self.compare_clock_first(node);
        }
    }

    /// Tells a node that has said hello to start.
    fn order_start(&mut self, node: NodeId) {
        let Some(identity) = self.identities.get(&node).cloned() else {
            self.fatal = Some(format!("there are no credentials for node {node}"));
            return;
        };
        let (plan, peers, entry) = (self.trial.plan.clone(), self.peers(), self.entry(node));
        let start = Start { version: VERSION, node, plan, identity, peers, entry, store_only: false };
        self.links.send(node, ToNode::Start(Box::new(start)));
        let impair = self.timeline.impairment(node);
        if impair != Impair::default() {
            self.links.send(node, ToNode::Impair(impair));
        }
    }

    fn board(&mut self, node: NodeId, board: Board, throttled: bool) {
        if let Some(throttles) = self.manifest.board(node, board, throttled) {
            self.progress.warn(&throttles);
        }
    }

    fn captured(&mut self, node: NodeId, captured: &Captured) -> anyhow::Result<()> {
        self.recorder.captured(node, captured)?;
        if let Some(failure) = &captured.interval.failure {
            self.progress.warn(&format!("the capture of node {node} ended: {failure}"));
        }
        self.captures.captured(node, captured);
        Ok(())
    }

    fn event(&mut self, node: NodeId, at_ns: u64, event: &NodeEvent) -> anyhow::Result<()> {
        let (shown_ns, at_ns) = (at_ns, self.here(node, at_ns));
        self.recorder.node_event(node, (at_ns, shown_ns), event)?;
        let was = (self.cluster.aggregator, self.cluster.completed);
        self.cluster.observe(node, event);
        self.failovers.observe(at_ns, node, event);
        match event {
            NodeEvent::Federated(event) => self.vacancies.observe(at_ns, event),
            NodeEvent::Node(Lifecycle::Left) => self.left(node),
            NodeEvent::Node(Lifecycle::LeaveFailed { reason }) => self.stays(node, reason),
            _ => {}
        }
        if is_progress(event) {
            self.heard = Instant::now();
        }
        self.note_if_ready()?;
        self.progress.event(node, event, &self.cluster, was.0);
        if !was.1 && self.cluster.completed {
            self.completed = Some(Instant::now());
            self.ask_all();
        } else if matches!(event, NodeEvent::Federated(Event::RoundFinished { .. })) {
            // The aggregator has told by itself; a worker that is killed later has been asked here.
            self.ask_all();
        }
        // When the job is over, nothing is broken any more.
        if self.completed.is_some() {
            return self.heal();
        }
        let actions = self.timeline.observe(clock::monotonic_ns(), node, event);
        self.carry_out(actions)
    }

    /// Notes the moment when every living node is ready.
    fn note_if_ready(&mut self) -> anyhow::Result<()> {
        if self.start_ns.is_some() || !self.cluster.starting().is_empty() {
            return Ok(());
        }
        let start_ns = nanoseconds(self.started.elapsed());
        self.start_ns = Some(start_ns);
        self.heard = Instant::now();
        self.progress.note(&format!("all nodes are ready after {}", show_ns(start_ns)));
        self.recorder.controller_event(&ControllerEvent::AllReady { start_ns })
    }

    /// A node's stream ended: the node has, or it is of no use any more.
    async fn gone(&mut self, node: NodeId) -> anyhow::Result<()> {
        self.links.close(node);
        let patience = Instant::now() + REAP_TIMEOUT;
        let how = loop {
            match self.placement.ended(node) {
                Some(how) => break how,
                None if Instant::now() < patience => tokio::time::sleep(Duration::from_millis(1)).await,
                None => {
                    self.placement.kill(node)?;
                    break "closed its control stream; killed".into();
                }
            }
        };
        let expected = self.ending || self.struck.contains(&node) || self.cluster.has_departed(node);
        self.timeline.died(node);
        self.failovers.gone(node);
        if self.returning.contains_key(&node) && !self.ending {
            self.cluster.away(node, how.clone());
        } else {
            self.cluster.gone(node, how.clone(), expected);
        }
        if !expected {
            let reason =
                self.cluster.failure_of(node).map(|reason| format!(" ({reason})")).unwrap_or_default();
            self.progress.warn(&format!("node {node} is gone, and no fault is the reason: {how}{reason}"));
        }
        self.recorder.controller_event(&ControllerEvent::NodeGone { target: node, how, expected })?;
        if self.cluster.has_departed(node) && !self.ending {
            self.tell_peers();
        }
        // Only a death that was wanted leaves the others to be waited for.
        if expected && !self.ending {
            self.note_if_ready()?;
        }
        Ok(())
    }

    fn tick(&mut self) -> anyhow::Result<()> {
        self.take_captures()?;
        self.bring_back()?;
        self.replace()?;
        if !self.placement.shares_clock() {
            self.compare_clocks();
        }
        self.progress.update(&self.cluster);
        let settling = self.completed.is_some();
        if settling || self.asked.elapsed() >= STATUS_INTERVAL {
            self.ask_all();
        }
        Ok(())
    }

    /// Takes what captures of the placement have counted.
    fn take_captures(&mut self) -> anyhow::Result<()> {
        let captured = self.placement.captured();
        captured.iter().try_for_each(|(node, captured)| self.captured(*node, captured))
    }

    fn ask_all(&mut self) {
        self.asked = Instant::now();
        self.requests += 1;
        for node in self.cluster.running().into_iter().filter(|node| !self.timeline.is_stopped(*node)) {
            self.links.send(node, ToNode::Status { request_id: self.requests });
        }
    }

    /// Whether the run is over, and why.
    fn judge(&mut self) -> Option<Ending> {
        if let Some(fatal) = self.fatal.take() {
            return Some(Ending::Failed(fatal));
        }
        if let Some(completed) = self.completed {
            return self.judge_settling(completed);
        }
        if self.start_ns.is_none()
            && let Some(ending) = self.judge_starting()
        {
            return Some(ending);
        }
        if let Some(shortfall) = self.shortfall() {
            return Some(Ending::NoMajority(shortfall));
        }
        if self.start_ns.is_some() && self.heard.elapsed() > self.timeouts.stall {
            let stall = show_ns(nanoseconds(self.timeouts.stall));
            return Some(Ending::Failed(format!(
                "nothing was heard of the job for {stall}{}",
                self.cluster.describe()
            )));
        }
        None
    }

    fn judge_starting(&self) -> Option<Ending> {
        if let Some((node, view)) = self.cluster.unexpectedly_gone().first() {
            let why = view.failure.clone().unwrap_or_else(|| view.state());
            let log = self.recorder.node_log(*node);
            return Some(Ending::Failed(format!(
                "node {node} ended while starting: {why}; see {}",
                log.display()
            )));
        }
        if self.started.elapsed() > self.timeouts.start {
            let (waiting, timeout) =
                (list(&self.cluster.starting()), show_ns(nanoseconds(self.timeouts.start)));
            return Some(Ending::Failed(format!(
                "{waiting} not ready after {timeout}{}",
                self.cluster.describe()
            )));
        }
        None
    }

    /// What keeps anything more from being acknowledged, if something does.
    fn shortfall(&self) -> Option<Shortfall> {
        let (plan, roll) = (&self.trial.plan, self.cluster.roll());
        plan.backend.shortfall(&roll).or_else(|| {
            plan.shortfall_of_workers(&roll)
                .filter(|_| self.replacing.is_empty() && !self.timeline.awaits_newcomers())
        })
    }

    /// Living nodes that still have to show the final checkpoint.
    fn lagging(&self) -> Vec<NodeId> {
        self.cluster.lagging(&self.trial.plan.backend.expected(&self.cluster.roll()))
    }

    fn judge_settling(&self, completed: Instant) -> Option<Ending> {
        let lagging = self.lagging();
        if self.cluster.alive().is_empty()
            && let Some(shortfall) = self.shortfall()
        {
            return Some(Ending::NoMajority(shortfall));
        }
        if lagging.is_empty() {
            return Some(Ending::Completed);
        }
        (completed.elapsed() > self.timeouts.settle).then(|| {
            let settle = show_ns(nanoseconds(self.timeouts.settle));
            let states = self.cluster.describe();
            let lagging = list(&lagging);
            Ending::Failed(format!(
                "{settle} after the last round {lagging} did not show its checkpoint{states}"
            ))
        })
    }
}
