//! What a node does with its plan: opens its transports, its store and its learner, and runs its part of the federated job.
//!
//! Knows no stream and no controller: commands come in over a channel, news go out through an [`Outbox`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Once};
use std::time::Duration;

use anyhow::Context as _;
use replication::lifeline::{Lifeline, LifelineCount, TcpLifeline};
use replication::suitability::Resources;
use replication::transport::Transport;
use replication::transport::identity::{Identity, Plane};
use replication::transport::quic::corrupt::Corruption;
use replication::transport::quic::impair::{self, Disturbance};
use replication::transport::quic::{HANDSHAKE_TIMEOUT, QuicConfig, QuicTransport};
use replication::work::{self, Spent};
use replication::{AnyStore, NodeId, Observer, Site, Storage, StoreError, StoreEvent};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use workloads::federated::{
    self, EngineKind, Event, Learner, LocalLearner, Participant, SizedLearner, model,
};
use workloads::keyvalue::message::MAX_MESSAGE_BYTES;

use crate::capture::{Capture, CaptureMode, Settings};
use crate::control::node_end::{Command, Outbox};
use crate::control::{Captured, Counted, Entry, Impair, Lifecycle, LinkLoss, NodeEvent, Start, Status};
use crate::kv;
use crate::meter;
use crate::metrics::{self, Observed};
use crate::plan::{PlacementKind, Plan};
use crate::resources;
use crate::standby;

/// A connection on which nothing is heard for this long is lost: a stopped node's work is given up then.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Where all processes of a host meet.
const LOOPBACK_INTERFACE: &str = "lo";
/// A quiet connection is probed this often.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// What a connection's timeouts are at least for each node: a hundred nodes on few cores answer late, and their mesh has
/// twenty thousand connections to open and to probe.
const PATIENCE_PER_NODE: Duration = Duration::from_millis(100);

/// Orders to write that wait.
const WAITING_WRITES: usize = 16;

/// The request that a status answers which nobody asked for.
const UNASKED: u64 = 0;

/// Runs a node until it is told to finish, or its command channel closes.
///
/// # Errors
/// What keeps it from running, in words for the controller's user; nothing secret.
pub async fn run(start: Start, outbox: Outbox, mut commands: mpsc::Receiver<Command>) -> anyhow::Result<()> {
    if start.plan.kv.is_some() {
        return kv::node::run(start, outbox, commands).await;
    }
    let capture = capture(&start, &outbox)?;
    let node = Node::open(&start, &outbox).await?;
    let _metrics = node.show_metrics(&start, &Handle::current(), || 0)?;
    let (writes, rounds) = mpsc::channel(WAITING_WRITES);
    let mut job: Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>> = if start.store_only {
        Box::pin(standby::run(node.store.clone(), node.replication.clone(), outbox.clone(), rounds))
    } else {
        let participant = node.participant(&start, &outbox).await?;
        Box::pin(async { federated::run(participant).await.map_err(anyhow::Error::from) })
    };
    // Never ready until it is to leave.
    let mut leaving: Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>> =
        Box::pin(std::future::pending());
    let outcome = loop {
        tokio::select! {
            left = &mut leaving => {
                let Err(error) = left else {
                    outbox.event(NodeEvent::Node(Lifecycle::Left));
                    break Ok(());
                };
                outbox.event(NodeEvent::Node(Lifecycle::LeaveFailed { reason: error.to_string() }));
                leaving = Box::pin(std::future::pending());
            }
            ended = &mut job => break node.because_of_its_disk(ended).await,
            command = commands.recv() => match command {
                Some(Command::Put { round }) => {
                    if writes.try_send(round).is_err() {
                        tracing::warn!(round, "ignored an order to write");
                    }
                }
                Some(Command::Status { request_id }) => outbox.status(node.status(request_id)),
                Some(Command::Impair(impair)) => node.impair(&start.plan, &impair),
                Some(Command::Peers { nodes, .. }) => node.meet(&start.plan, &nodes)?,
                Some(Command::Leave) => {
                    let store = node.store.clone();
                    leaving = Box::pin(async move { store.leave().await });
                }
                Some(Command::Finish) | None => break Ok(()),
            },
        }
    };
    drop(leaving);
    // Counts of the end, when nothing is sent any more: transport, capture and interface are compared by them.
    outbox.status(node.close().await);
    if let Some(capture) = capture {
        tokio::task::spawn_blocking(move || capture.finish()).await?;
    }
    outcome
}

/// Begins to capture this node's packets, as the plan says.
fn capture(start: &Start, outbox: &Outbox) -> anyhow::Result<Option<Capture>> {
    let plan = &start.plan;
    let ports = [plan.learning_port, plan.replication_port];
    // In a namespace it is the placement that captures.
    if (plan.capture, plan.placement) != (CaptureMode::Required, PlacementKind::Process) {
        return Ok(None);
    }
    let member = plan.members.iter().find(|member| member.node == start.node);
    let own = member.with_context(|| format!("the plan has no node {}", start.node))?.ip;
    let settings =
        Settings { others: false, only_from: Some(own), ..Settings::everything(LOOPBACK_INTERFACE, &ports) };
    let outbox = outbox.clone();
    let started = Capture::start(&settings, move |interval| {
        outbox.captured(Captured { interface: LOOPBACK_INTERFACE.into(), loopback: true, interval });
    });
    started.map(Some).context("no capture, which --capture required asks for")
}

/// A node's ends of the two planes, and its store.
#[derive(Clone)]
pub(crate) struct Node {
    id: NodeId,
    pub(crate) learning: Arc<QuicTransport>,
    replication: Arc<QuicTransport>,
    pub(crate) store: AnyStore,
    /// What faults do to what it sends.
    disturbance: Disturbance,
    corruption: Corruption,
    storage: Option<Storage>,
    lifeline: Option<Arc<TcpLifeline>>,
    /// This node's suitability.
    score: u32,
    /// What was spent before the store was opened.
    work_before: Spent,
    /// What metrics need, if they are shown.
    pub(crate) observed: Option<Arc<Observed>>,
}

/// Addresses of those members that are among `nodes`.
fn addresses(plan: &Plan, nodes: &[NodeId], port: u16) -> BTreeMap<NodeId, SocketAddr> {
    let members = plan.members.iter().filter(|member| nodes.contains(&member.node));
    members.map(|member| (member.node, SocketAddr::from((member.ip, port)))).collect()
}

/// What is lost by address, on both planes.
fn shares(plan: &Plan, losses: &[LinkLoss]) -> BTreeMap<SocketAddr, f64> {
    let addresses = |loss: &LinkLoss| {
        let share = loss.share;
        let planes = [plan.learning_address(loss.to), plan.replication_address(loss.to)];
        planes.into_iter().flatten().map(move |address| (address.into(), share))
    };
    losses.iter().flat_map(addresses).collect()
}

fn bind(
    start: &Start,
    identity: Identity,
    plane: Plane,
    port: u16,
    (disturbance, corruption): (&Disturbance, &Corruption),
) -> anyhow::Result<Arc<QuicTransport>> {
    let peers = addresses(&start.plan, &start.peers, port);
    let own =
        peers.get(&start.node).copied().with_context(|| format!("the plan has no node {}", start.node))?;
    let mut config = QuicConfig::new(identity, plane, own);
    // Without a job nobody has anything to say there.
    if !(start.store_only && plane == Plane::Learning) {
        config.peers = peers;
    }
    let nodes = start.plan.members.len() as u32;
    config.idle_timeout = IDLE_TIMEOUT.max(PATIENCE_PER_NODE * nodes);
    config.keep_alive = KEEP_ALIVE.max(PATIENCE_PER_NODE * nodes * 2 / 5);
    config.handshake_timeout = HANDSHAKE_TIMEOUT.max(PATIENCE_PER_NODE * nodes);
    config.seed = start.plan.job.seed ^ start.node.0;
    // One schedule for each node and plane.
    let impairment = start.plan.link.impairment().unwrap_or_default();
    let seed = config.seed ^ (u64::from(port) << 32);
    config.corruption = corruption.clone();
    config.wrap_socket = Some(impair::wrapper(impairment, seed, disturbance.clone()));
    if plane == Plane::Learning {
        // Nothing larger than the model has any business there.
        config.max_body_bytes = start.plan.job.parameter_bytes;
        if let Some(kv) = &start.plan.kv {
            // Clients come to the nodes, which have nothing to say to each other there, unless they pass votes on.
            if kv.board.is_none() {
                config.peers.clear();
            }
            config.guests = true;
            config.max_body_bytes = MAX_MESSAGE_BYTES;
        }
    }
    Ok(QuicTransport::bind(config)?)
}

/// Lifelines to whoever aggregates, at the address of the replication plane, if the plan has them.
async fn lifeline(start: &Start) -> anyhow::Result<Option<Arc<TcpLifeline>>> {
    let plan = &start.plan;
    if !plan.backend.fast_failover {
        return Ok(None);
    }
    // Those that are not there yet included: whoever aggregates is dialled, nobody else.
    let mut peers = addresses(plan, &plan.nodes(), plan.replication_port);
    let own = peers.remove(&start.node).context("the plan has no address of this node")?;
    Ok(Some(TcpLifeline::bind(start.identity.decode()?, own, peers).await?))
}

/// What this node has to offer: measured, except for what the plan says.
async fn resources_of(start: &Start) -> anyhow::Result<Resources> {
    let own = start.plan.replication_address(start.node).context("the plan has no address of this node")?;
    let measured = if start.store_only {
        // So that it starts at once, and the same nodes are chosen each time.
        Resources::default()
    } else {
        tokio::task::spawn_blocking(move || resources::measure(*own.ip())).await?
    };
    let given = start.plan.override_of(start.node);
    Ok(given.map_or(measured, |given| given.apply(measured)))
}

/// This node's file, if stores are on disk.
async fn storage_of(plan: &Plan, node: NodeId) -> anyhow::Result<Option<Storage>> {
    let Some(disk) = &plan.disk else { return Ok(None) };
    let file = disk.file(node);
    let failed = || format!("cannot use the store in {}", disk.dir.display());
    let storage = tokio::task::spawn_blocking(|| Storage::open(file)).await?.with_context(failed)?;
    storage.identify(node, &disk.cluster).await.with_context(failed)?;
    Ok(Some(storage))
}

/// What works for this node's worker, and what it is.
async fn learner_of(plan: &Plan, node: NodeId) -> anyhow::Result<(Arc<dyn Learner>, Event)> {
    if plan.job.engine == EngineKind::None {
        let engine = "none".to_owned();
        let ready = Event::Ready { train_examples: 0, test_examples: 0, synthetic: false, engine };
        return Ok((Arc::new(SizedLearner::new(&plan.job, node)), ready));
    }
    let learner = LocalLearner::open(&plan.job, node, &plan.devices()).await?;
    let (train_examples, test_examples) = learner.examples();
    let (synthetic, engine) = (learner.is_synthetic(), learner.engine().to_owned());
    Ok((Arc::new(learner), Event::Ready { train_examples, test_examples, synthetic, engine }))
}

/// Tells of what a store does.
struct Changes {
    outbox: Outbox,
    /// Not that it has one more of the key-value workload's many batches.
    without_batches: bool,
    observed: Option<Arc<Observed>>,
}

impl Observer for Changes {
    fn observe(&self, event: StoreEvent) {
        if let Some(observed) = &self.observed {
            observed.observe(event.clone());
        }
        if !(self.without_batches && matches!(event, StoreEvent::Applied { .. })) {
            self.outbox.observe(event);
        }
    }
}

impl Node {
    /// Opens both planes and the store.
    pub(crate) async fn open(start: &Start, outbox: &Outbox) -> anyhow::Result<Self> {
        let identity: Identity = start.identity.decode()?;
        let plan = &start.plan;
        let (disturbance, corruption) = (Disturbance::default(), Corruption::default());
        let faults = (&disturbance, &corruption);
        let replication = bind(start, identity.clone(), Plane::Replication, plan.replication_port, faults)?;
        let learning = bind(start, identity, Plane::Learning, plan.learning_port, faults)?;
        outbox.event(NodeEvent::Node(Lifecycle::Listening {
            learning: learning.local_addr().to_string(),
            replication: replication.local_addr().to_string(),
        }));
        let resources = resources_of(start).await?;
        // Measuring the processor hashes, too, which is nobody's work.
        let work_before = work::spent();
        let score = resources.score();
        outbox.event(NodeEvent::Node(Lifecycle::Resources { resources, score }));
        // Whoever joins knows of those that were there first, and of itself.
        let nodes: BTreeSet<NodeId> = plan.founders().into_iter().chain([start.node]).collect();
        let nodes: Vec<NodeId> = nodes.into_iter().collect();
        let backend = plan.backend.for_nodes(&nodes, plan.job.seed);
        let observed: Option<Arc<Observed>> = plan.metrics.map(|_| Arc::default());
        let observer = Arc::new(Changes {
            outbox: outbox.clone(),
            without_batches: plan.kv.is_some(),
            observed: observed.clone(),
        });
        let storage = storage_of(plan, start.node).await?;
        let lifeline = lifeline(start).await?;
        let site = Site {
            resources,
            storage: storage.clone(),
            lifeline: lifeline.clone().map(|lifeline| lifeline as Arc<dyn Lifeline>),
            joins: start.entry != Entry::Founds,
            replaces: match start.entry {
                Entry::Founds | Entry::Joins => None,
                Entry::Replaces { node, .. } => Some(node),
            },
            ..Site::new(replication.clone(), observer)
        };
        let store = replication::open(backend, site).await?;
        tracing::info!(node = %start.node, %store, "store open");
        Ok(Self {
            id: start.node,
            learning,
            replication,
            store,
            storage,
            lifeline,
            disturbance,
            corruption,
            score,
            work_before,
            observed,
        })
    }

    /// Shows this node's metrics until what is returned is dropped, if the plan says where. `round` counts where no job does.
    pub(crate) fn show_metrics(
        &self,
        start: &Start,
        runtime: &Handle,
        round: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> anyhow::Result<Option<metrics::Serving>> {
        let (Some(at), Some(observed)) = (start.plan.metrics, &self.observed) else { return Ok(None) };
        let at = at.of(&start.plan, self.id).with_context(|| format!("the plan has no node {}", self.id))?;
        let node = self.clone();
        let source = Arc::new(move || metrics::Snapshot {
            status: node.status(UNASKED),
            round: round(),
            suspicions: node.store.suspicions(),
            connected: [&node.learning, &node.replication].map(|plane| plane.connected().borrow().len()),
        });
        let registry = metrics::registry(&start.plan, self.id, source, observed.clone());
        metrics::serve(at, registry, runtime).map(Some)
    }

    /// From now on what it sends is disturbed like this.
    pub(crate) fn impair(&self, plan: &Plan, impair: &Impair) {
        self.disturbance.set(shares(plan, &impair.losses), Duration::from_nanos(impair.delay_ns));
        self.corruption.set(impair.corrupt, plan.job.seed ^ self.id.0);
    }

    /// From now on `nodes` are there.
    pub(crate) fn meet(&self, plan: &Plan, nodes: &[NodeId]) -> anyhow::Result<()> {
        // Servers have nothing to say to each other there.
        if plan.kv.is_none() {
            self.learning.set_peers(addresses(plan, nodes, plan.learning_port))?;
        }
        Ok(self.replication.set_peers(addresses(plan, nodes, plan.replication_port))?)
    }

    async fn participant(&self, start: &Start, outbox: &Outbox) -> anyhow::Result<Participant> {
        let plan = &start.plan;
        let (learner, ready) = learner_of(plan, start.entry.device(self.id)).await?;
        outbox.federated(ready);
        let events = self.events(outbox.clone());
        Ok(Participant {
            config: plan.job.clone(),
            store: self.store.clone(),
            learning: self.learning.clone(),
            learner,
            score: self.score,
            initial: match plan.job.engine {
                EngineKind::None => SizedLearner::initial(&plan.job)?,
                EngineKind::Candle | EngineKind::Torch => model::encode(model::initial(plan.job.seed))?,
            },
            events,
        })
    }

    /// Passes events of the job on. Before the first that belongs to a round it tells what was counted until then; before
    /// a round's end its status, so that what an aggregator sent is known even if it is killed at once.
    fn events(&self, outbox: Outbox) -> federated::Events {
        let node = self.clone();
        let begun = Once::new();
        Arc::new(move |event| {
            match event {
                Event::RoundStarted { .. } | Event::FitStarted { .. } => begun.call_once(|| {
                    let (learning, replication) = (node.learning.traffic(), node.replication.traffic());
                    let lifeline = node.lifeline_count();
                    let counted = Box::new(Counted { learning, replication, lifeline });
                    outbox.event(NodeEvent::Node(Lifecycle::JobBegun { counted }));
                }),
                Event::RoundFinished { .. } => outbox.status(node.status(UNASKED)),
                _ => {}
            }
            if let Some(observed) = &node.observed {
                observed.federated(&event);
            }
            outbox.federated(event);
        })
    }

    pub(crate) fn status(&self, request_id: u64) -> Status {
        Status {
            request_id,
            latest: self.store.held(),
            epoch: *self.store.aggregator().borrow(),
            usage: meter::usage(self.work_before),
            learning: self.learning.traffic(),
            replication: self.replication.traffic(),
            lifeline: self.lifeline_count(),
        }
    }

    fn lifeline_count(&self) -> LifelineCount {
        self.lifeline.as_ref().map(|lifeline| lifeline.count()).unwrap_or_default()
    }

    /// Why the job ended: a store whose disk failed stops, which says less than the disk's own words.
    pub(crate) async fn because_of_its_disk(&self, ended: anyhow::Result<()>) -> anyhow::Result<()> {
        match &self.storage {
            Some(storage) => storage.flush().await.map_err(anyhow::Error::from).and(ended),
            None => ended,
        }
    }

    /// Closes everything; the status is that of before, with everything counted that was sent since.
    pub(crate) async fn close(self) -> Status {
        let before = self.status(UNASKED);
        self.store.close().await;
        tokio::join!(self.learning.close(), self.replication.close());
        if let Some(lifeline) = &self.lifeline {
            lifeline.close();
        }
        Status {
            learning: self.learning.traffic(),
            replication: self.replication.traffic(),
            lifeline: self.lifeline_count(),
            ..before
        }
    }
}
