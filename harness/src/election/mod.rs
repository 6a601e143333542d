//! Repeated elections on a warm cluster: strike the aggregator, wait until every survivor follows a new one, bring the node
//! back, and again.
//!
//! Nodes are processes that keep their stores and do nothing else. The next trial begins once every node follows the same
//! aggregator, is connected to all others, and has what the new aggregator wrote: conditions, no pauses. Only the moment of
//! the stroke is drawn, uniform over a heartbeat. `trial` knows what the nodes said and is pure, as are `floor` and
//! `summary`; this module carries out.
//!
//! A voter that forgot its votes must not come back under its id: where the backend can, stores are on disk, in memory of
//! the kernel (`/dev/shm`) unless a folder is named. A node of the others comes back empty, when an aggregator of a later
//! epoch is in force.

mod floor;
mod record;
mod summary;
mod trial;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use replication::{Epoch, NodeId};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::floor::Bound;
use self::record::Recorder;
pub use self::record::{ElectionManifest, ElectionRow};
use self::summary::Frame;
pub use self::summary::{LIMITS_MS, Share, Stages, Summary};
use self::trial::{Cluster, Election, Strike};
use crate::clock;
use crate::control::{Entry, FromNode, Impair, Lifecycle, LinkLoss, NodeEvent, Start, ToNode, VERSION};
use crate::exit::Exit;
use crate::identity::{Identity, Issue};
use crate::place::Placement;
use crate::plan::{Plan, Scheme, majority_of};
use crate::progress::Progress;
use crate::record::Outcome;
use crate::run::Stop;
use crate::run::links::{Links, News};
use crate::units::{nanoseconds, show_ns};

/// How long a cluster may take to become whole, the first time and after each trial.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an election may take beyond ten detection windows.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// A write that failed is asked for again after this.
const WRITE_AGAIN: Duration = Duration::from_millis(100);
/// How long an ended process may take to be seen as ended, after its stream was.
const REAP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long nodes may take to end in order.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);
/// Heartbeats after the last write before the stroke, so that it is a heartbeat that is heard last.
const SETTLED_HEARTBEATS: u64 = 2;

/// What is done to the aggregator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, until the survivors agree.
    Stop,
}

/// Whether all survivors have the aggregator's last entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Logs {
    /// They do.
    Equal,
    /// Only as many as it takes to acknowledge it.
    Unequal,
}

/// Everything that elections need, validated.
#[derive(Debug)]
pub struct Setup {
    /// What every node is told; its seed is that of every choice.
    pub plan: Plan,
    /// How many elections.
    pub trials: u64,
    /// What is done to the aggregator.
    pub fault: Fault,
    /// Whether logs are equal.
    pub logs: Logs,
    /// The command line, as it was given.
    pub command: String,
    /// The command that repeats it.
    pub repeat: String,
    /// Folder that receives the results folder.
    pub out: PathBuf,
    /// Makes the nodes' credentials.
    pub issue: Issue,
}

/// Why it is over before the last trial.
#[derive(Debug)]
enum Halt {
    Stopped(Stop),
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Halt {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// Runs elections, and writes down each.
///
/// # Errors
/// If the results cannot be written, or credentials not made. Elections that fail are no error: the summary says so.
pub async fn run<P: Placement>(
    setup: Setup,
    placement: P,
    progress: Progress,
    stops: mpsc::Receiver<Stop>,
) -> anyhow::Result<Summary> {
    let identities = (setup.issue)(&setup.plan.nodes()).context("cannot make the nodes' credentials")?;
    let mut manifest = ElectionManifest::starting(&setup);
    let recorder = Recorder::create(&setup.out, clock::utc_now(), &manifest)?;
    progress.note(&format!("results go to {}", recorder.dir().display()));
    progress.note(&setup.plan.backend.describe());
    let mut controller = Controller {
        dice: ChaCha8Rng::seed_from_u64(setup.plan.job.seed),
        cluster: Cluster::default(),
        links: Links::new(),
        struck: None,
        ended: BTreeSet::new(),
        round: 0,
        rows: Vec::new(),
        setup,
        identities,
        recorder,
        progress,
        placement,
        stops,
    };
    let halt = controller.drive().await.err();
    controller.finish().await;
    controller.placement.kill_all();
    let Controller { setup, recorder, rows, .. } = controller;
    let (outcome, exit, message) = in_words(halt, rows.len() as u64, setup.trials);
    manifest.outcome = outcome;
    manifest.message = message;
    manifest.exit_code = Some(exit.code());
    manifest.ended_utc = Some(clock::utc_rfc3339(clock::utc_now()));
    let ended_ns = clock::monotonic_ns();
    manifest.ended_ns = Some(ended_ns);
    manifest.trials_finished = rows.len() as u64;
    let elapsed_ns = ended_ns.saturating_sub(manifest.started_ns);
    let frame = Frame { manifest: &manifest, results: recorder.dir().to_path_buf(), elapsed_ns };
    let summary = Summary::of(&frame, &rows);
    recorder.finish(&manifest, &summary, &rows)?;
    Ok(summary)
}

fn in_words(halt: Option<Halt>, done: u64, of: u64) -> (Outcome, Exit, String) {
    match halt {
        None => (Outcome::Completed, Exit::Success, format!("{of} elections")),
        Some(Halt::Failed(error)) => {
            (Outcome::Failed, Exit::Failed, format!("after {done} of {of} elections: {error:#}"))
        }
        Some(Halt::Stopped(Stop::Interrupt)) => (
            Outcome::Interrupted,
            Exit::Interrupted,
            format!("ended by SIGINT after {done} of {of} elections"),
        ),
        Some(Halt::Stopped(Stop::Terminate)) => (
            Outcome::Terminated,
            Exit::Terminated,
            format!("ended by SIGTERM after {done} of {of} elections"),
        ),
    }
}

struct Controller<P> {
    setup: Setup,
    identities: BTreeMap<NodeId, Identity>,
    recorder: Recorder,
    progress: Progress,
    placement: P,
    stops: mpsc::Receiver<Stop>,
    links: Links,
    cluster: Cluster,
    /// The node whose end is this module's doing.
    struck: Option<NodeId>,
    /// Nodes whose stream has ended.
    ended: BTreeSet<NodeId>,
    dice: ChaCha8Rng,
    /// The newest round that was asked for.
    round: u64,
    rows: Vec<ElectionRow>,
}

impl<P: Placement> Controller<P> {
    async fn drive(&mut self) -> Result<(), Halt> {
        for node in self.setup.plan.nodes() {
            self.launch(node)?;
        }
        let mut epoch = self.become_whole(None).await?;
        self.progress.note(&format!("all nodes are connected; the first aggregator is node {}", epoch.node));
        for trial in 1..=self.setup.trials {
            let (row, next) = self.trial(trial, epoch).await?;
            self.recorder.row(&row)?;
            let (agreed, whole) = (show_ns(row.agreed_ns), show_ns(row.whole_ns));
            self.progress.note(&format!(
                "trial {trial}/{}: node {} after node {} in {agreed} (whole again after {whole})",
                self.setup.trials, row.new_node, row.killed_node
            ));
            self.rows.push(row);
            epoch = next;
        }
        Ok(())
    }

    /// Strikes the aggregator of `epoch`; returns the trial's row, and the epoch in force once the cluster is whole again.
    async fn trial(&mut self, trial: u64, epoch: Epoch) -> Result<(ElectionRow, Epoch), Halt> {
        let killed = epoch.node;
        let plan = self.setup.plan.backend.clone();
        self.cluster.forget();
        let phase = self.settle().await?;
        let ahead = match self.setup.logs {
            Logs::Equal => None,
            Logs::Unequal => Some(self.let_some_fall_behind(epoch).await?),
        };
        let survivors = self.setup.plan.nodes().into_iter().filter(|node| *node != killed).collect();
        self.pause(phase).await?;
        // Before anything is done: what follows from it must not be earlier.
        let strike = Strike { at_ns: clock::monotonic_ns(), epoch, survivors };
        self.strike(killed)?;
        let election = self.await_election(&strike).await?;
        let false_suspicions = self.cluster.suspicions_before(strike.at_ns);
        let agreed = Instant::now();
        self.bring_back(killed).await?;
        let next = self.become_whole(Some(killed)).await?;
        let nodes = self.setup.plan.members.len() as u64;
        let eligible = floor::eligible(&plan, nodes, ahead);
        let bound = Bound { eligible, told_at_once: plan.fast_failover && self.setup.fault == Fault::Kill };
        let row = ElectionRow {
            backend: plan.backend().to_string(),
            nodes,
            trial,
            seed: self.setup.plan.job.seed,
            window_lo_ns: plan.window_lo_ns,
            window_hi_ns: plan.window_hi_ns,
            heartbeat_ns: plan.heartbeat_ns,
            fast_failover: plan.fast_failover,
            equal_logs: ahead.is_none(),
            fault: match self.setup.fault {
                Fault::Kill => "kill".into(),
                Fault::Stop => "stop".into(),
            },
            killed_node: killed.0,
            new_node: election.epoch.node.0,
            struck_at_ns: strike.at_ns,
            heartbeat_age_ns: election.heartbeat_age_ns,
            floor_ns: floor::floor_ns(&plan, bound, election.heartbeat_age_ns, &mut self.dice),
            eligible,
            suspected_ns: election.suspected_ns,
            elected_ns: election.elected_ns,
            agreed_ns: election.agreed_ns,
            terms: election.epoch.counter - epoch.counter,
            suspicions: election.suspicions,
            false_suspicions,
            whole_ns: nanoseconds(agreed.elapsed()),
        };
        Ok((row, next))
    }

    /// Lets heartbeats pass, and draws the moment of the next stroke: uniform over one of their intervals.
    async fn settle(&mut self) -> Result<Duration, Halt> {
        let heartbeat_ns = self.setup.plan.backend.heartbeat_ns;
        let phase = Duration::from_nanos(self.dice.random_range(0..heartbeat_ns.max(1)));
        let heartbeats = Duration::from_nanos(SETTLED_HEARTBEATS * heartbeat_ns);
        if self.setup.logs == Logs::Unequal {
            // The write comes last, and the heartbeats before it are as old as that.
            self.pause(heartbeats).await?;
            return Ok(Duration::ZERO);
        }
        Ok(heartbeats + phase)
    }

    /// Cuts the aggregator off from as many survivors as an acknowledgement can do without, and has it write. Returns how many
    /// survivors have what it wrote.
    async fn let_some_fall_behind(&mut self, epoch: Epoch) -> Result<u64, Halt> {
        let phase = self.dice.random_range(0..self.setup.plan.backend.heartbeat_ns.max(1));
        self.pause(Duration::from_nanos(phase)).await?;
        let mut behind: Vec<NodeId> =
            self.setup.plan.nodes().into_iter().filter(|node| *node != epoch.node).collect();
        let survivors = behind.len();
        behind.shuffle(&mut self.dice);
        behind.truncate(survivors + 1 - majority_of(survivors + 1));
        let losses = behind.iter().map(|to| LinkLoss { to: *to, share: 1.0 }).collect();
        self.links.send(epoch.node, ToNode::Impair(Impair { losses, ..Impair::default() }));
        self.round += 1;
        let round = self.round;
        self.links.send(epoch.node, ToNode::Put { round });
        let written = self.wait(WHOLE_TIMEOUT, "what was written while some were cut off", |controller| {
            controller.cluster.holds(round, &[]).then_some(())
        });
        written.await?;
        Ok((survivors - behind.len()) as u64)
    }

    fn strike(&mut self, node: NodeId) -> anyhow::Result<()> {
        match self.setup.fault {
            Fault::Kill => {
                self.struck = Some(node);
                self.placement.kill(node)
            }
            Fault::Stop => self.placement.stop(node),
        }
    }

    async fn await_election(&mut self, strike: &Strike) -> Result<Election, Halt> {
        let (_, high) = self.setup.plan.backend.detection_ns();
        let timeout = Duration::from_nanos(high) * 10 + ELECTION_TIMEOUT;
        let what = "a new aggregator that every survivor follows";
        self.wait(timeout, what, |controller| controller.cluster.election(strike)).await
    }

    /// Starts the node that was struck again, or lets it go on.
    async fn bring_back(&mut self, node: NodeId) -> Result<(), Halt> {
        match self.setup.fault {
            Fault::Stop => {
                self.links.send(node, ToNode::Impair(Impair::default()));
                Ok(self.placement.resume(node)?)
            }
            Fault::Kill => {
                self.wait(REAP_TIMEOUT, "the end of the killed node", |controller| {
                    controller.ended.contains(&node).then_some(())
                })
                .await?;
                // Its sockets and the lock on its store go with the process.
                let patience = Instant::now() + REAP_TIMEOUT;
                while self.placement.ended(node).is_none() {
                    if Instant::now() > patience {
                        return Err(Halt::Failed(anyhow::anyhow!(
                            "node {node} was killed, but does not end"
                        )));
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Ok(self.launch(node)?)
            }
        }
    }

    fn launch(&mut self, node: NodeId) -> anyhow::Result<()> {
        let pipes = self.placement.start(node, &self.recorder.node_log(node))?;
        self.ended.remove(&node);
        self.struck = None;
        self.cluster.begin(node);
        self.links.add(node, pipes);
        Ok(())
    }

    /// Waits until everyone follows the same aggregator and is connected to everyone, and until what that aggregator writes
    /// then has arrived: where all nodes store, everywhere; where some do, on the one that came `back`.
    async fn become_whole(&mut self, back: Option<NodeId>) -> Result<Epoch, Halt> {
        let deadline = Instant::now() + WHOLE_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let what = "every node to be connected and to follow the same aggregator";
            let epoch = self.wait(left, what, |controller| controller.cluster.whole()).await?;
            self.round += 1;
            let round = self.round;
            self.links.send(epoch.node, ToNode::Put { round });
            let holders = match self.setup.plan.backend.scheme {
                Scheme::Raft => self.setup.plan.nodes(),
                Scheme::RaftSubset { .. } => back.into_iter().collect(),
                _ => Vec::new(),
            };
            let written = self.wait(left, "what the aggregator wrote", |controller| {
                let held = controller.cluster.holds(round, &holders).then_some(true);
                held.or_else(|| controller.cluster.take_failure().map(|_| false))
            });
            if written.await? && self.cluster.whole() == Some(epoch) {
                return Ok(epoch);
            }
            // Its office may have ended meanwhile.
            self.pause(WRITE_AGAIN).await?;
        }
    }

    /// Takes news until `look` sees `what` is waited for.
    async fn wait<T>(
        &mut self,
        timeout: Duration,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Option<T>,
    ) -> Result<T, Halt> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(seen) = look(self) {
                return Ok(seen);
            }
            if !self.next(deadline).await? {
                let (state, timeout) = (self.cluster.describe(), show_ns(nanoseconds(timeout)));
                return Err(Halt::Failed(anyhow::anyhow!("waited {timeout} for {what}: {state}")));
            }
        }
    }

    /// Takes news for so long.
    async fn pause(&mut self, time: Duration) -> Result<(), Halt> {
        let deadline = Instant::now() + time;
        while self.next(deadline).await? {}
        Ok(())
    }

    /// Takes the next news, unless there is none until `deadline`.
    async fn next(&mut self, deadline: Instant) -> Result<bool, Halt> {
        tokio::select! {
            biased;
            Some(stop) = self.stops.recv() => Err(Halt::Stopped(stop)),
            () = tokio::time::sleep_until(deadline) => Ok(false),
            Some((node, news)) = self.links.next() => {
                self.take(node, news)?;
                Ok(true)
            }
        }
    }

    fn take(&mut self, node: NodeId, news: News) -> anyhow::Result<()> {
        match news {
            News::Message(FromNode::Hello { version, .. }) => self.greet(node, version)?,
            News::Message(FromNode::Event {
                event: NodeEvent::Node(Lifecycle::Failed { reason }), ..
            }) => {
                bail!("node {node} cannot go on: {reason}; see {}", self.recorder.node_log(node).display());
            }
            News::Message(FromNode::Event { at_ns, event }) => self.cluster.observe(node, at_ns, &event),
            News::Message(_) => {}
            News::Unreadable(reason) => {
                self.progress.warn(&format!("node {node} said something that was not understood: {reason}"));
            }
            News::Gone => {
                self.links.close(node);
                self.ended.insert(node);
                if self.struck != Some(node) {
                    let log = self.recorder.node_log(node);
                    bail!("node {node} is gone, and no stroke is the reason; see {}", log.display());
                }
            }
        }
        Ok(())
    }

    fn greet(&mut self, node: NodeId, version: u32) -> anyhow::Result<()> {
        if version != VERSION {
            bail!("node {node} speaks version {version} of the control protocol, not {VERSION}");
        }
        let identity =
            self.identities.get(&node).cloned().context("a node that was not started said hello")?;
        let plan = self.setup.plan.clone();
        let (peers, entry) = (plan.nodes(), Entry::Founds);
        let start = Start { version: VERSION, node, plan, identity, peers, entry, store_only: true };
        self.links.send(node, ToNode::Start(Box::new(start)));
        Ok(())
    }

    /// Tells nodes to end and waits until they have, for a while.
    async fn finish(&mut self) {
        let nodes = self.setup.plan.nodes();
        for node in &nodes {
            self.links.send(*node, ToNode::Finish);
            self.links.close(*node);
        }
        let deadline = Instant::now() + FINISH_TIMEOUT;
        while nodes.iter().any(|node| !self.ended.contains(node)) {
            tokio::select! {
                biased;
                Some(_) = self.stops.recv() => return,
                () = tokio::time::sleep_until(deadline) => return,
                Some((node, News::Gone)) = self.links.next() => {
                    self.ended.insert(node);
                }
            }
        }
    }
}
