//! The clients of a test, on a thread of their own: in the controller, or wherever `harness kv load` runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use replication::NodeId;
use replication::transport::Transport as _;
use replication::transport::quic::QuicTransport;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use workloads::keyvalue::Client;
use workloads::keyvalue::client::Settings;
use workloads::keyvalue::history::Operation;
use workloads::keyvalue::load::{Clock, Dictionary, Load, Runner, runners};
use workloads::keyvalue::message::{Freshness, Request, Response};

use super::cluster::ClusterAddress;
use crate::clock;

/// How long all clients may take to reach a node.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// Clients begin so long after everything is ready, together.
const LEAD: Duration = Duration::from_millis(100);
/// How long nodes may take to have the same state after the load.
const CONVERGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between looks at the nodes' states.
const PAUSE: Duration = Duration::from_millis(100);

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Write every entry.
    Fill,
    /// Do what is measured.
    Load,
    /// Compare the nodes, and read every entry.
    Verify,
}

/// What was done.
#[derive(Debug)]
pub enum News {
    /// Every client has a connection.
    Connected,
    /// Every entry is written, or was tried.
    Filled,
    /// The load begins at this time of CLOCK_MONOTONIC.
    Begins {
        /// Then.
        at_ns: u64,
    },
    /// Every client is done.
    Ended,
    /// Every entry was read.
    Verified {
        /// Every operation.
        history: Vec<Operation>,
        /// Whether all nodes had the same entries in the end; otherwise those that differ.
        differing: Vec<NodeId>,
    },
    /// It cannot go on.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Who is asked: where clients' connections come from.
pub trait Target: Send + 'static {
    /// A client with a connection of its own.
    type Client: Dictionary + Send + 'static;

    /// The clients of `load`, each connected.
    fn connect(&mut self, load: Load) -> impl Future<Output = anyhow::Result<Vec<Self::Client>>> + Send;

    /// Waits until all nodes have the same entries; returns those that still differ when time is up.
    fn converged(&mut self) -> impl Future<Output = anyhow::Result<Vec<NodeId>>> + Send;

    /// Closes the connections.
    fn close(&mut self) -> impl Future<Output = ()> + Send;
}

/// The clients, on their thread: ended when dropped.
#[derive(Debug)]
pub struct Clients {
    /// Takes orders, one at a time.
    pub orders: mpsc::UnboundedSender<Order>,
    /// Tells what was done.
    pub news: mpsc::UnboundedReceiver<News>,
}

impl Clients {
    /// Starts the clients of `load`.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(load: Load, target: impl Target) -> anyhow::Result<Self> {
        let (orders, taken) = mpsc::unbounded_channel();
        let (tell, news) = mpsc::unbounded_channel();
        // One thread: clients mostly wait, and on a machine that they share with the nodes each further thread costs the nodes time.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start the clients")?;
        let run = move || {
            runtime.block_on(async {
                if let Err(error) = drive(load, target, taken, &tell).await {
                    let _ = tell.send(News::Failed { reason: format!("{error:#}") });
                }
            });
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name("clients".into()).spawn(run).context("cannot start the clients")?;
        Ok(Self { orders, news })
    }
}

async fn drive(
    load: Load,
    mut target: impl Target,
    mut orders: mpsc::UnboundedReceiver<Order>,
    news: &mpsc::UnboundedSender<News>,
) -> anyhow::Result<()> {
    let clock: Clock = Arc::new(clock::monotonic_ns);
    let connected = timeout(CONNECT_TIMEOUT, target.connect(load)).await;
    let connected = connected.context("not every client reached a node in time")??;
    let mut clients = runners(load, connected, &clock);
    let _ = news.send(News::Connected);
    while let Some(order) = orders.recv().await {
        let begin = Instant::now() + LEAD;
        if order == Order::Load {
            let at_ns = clock::monotonic_ns() + LEAD.as_nanos() as u64;
            let _ = news.send(News::Begins { at_ns });
        }
        let differing = match order {
            Order::Verify => target.converged().await?,
            Order::Fill | Order::Load => Vec::new(),
        };
        clients = all(clients, order, begin).await?;
        let _ = news.send(match order {
            Order::Fill => News::Filled,
            Order::Load => News::Ended,
            Order::Verify => {
                let history = clients.iter_mut().flat_map(Runner::take_history).collect();
                News::Verified { history, differing }
            }
        });
    }
    target.close().await;
    Ok(())
}

/// Has every client do its part of `order`.
async fn all<D: Dictionary + Send + 'static>(
    clients: Vec<Runner<D>>,
    order: Order,
    begin: Instant,
) -> anyhow::Result<Vec<Runner<D>>> {
    let mut tasks = JoinSet::new();
    for (number, mut client) in clients.into_iter().enumerate() {
        tasks.spawn(async move {
            match order {
                Order::Fill => client.fill().await,
                Order::Load => client.run(begin).await,
                Order::Verify => client.verify().await,
            }
            (number, client)
        });
    }
    let mut done: BTreeMap<usize, Runner<D>> = BTreeMap::new();
    while let Some(ended) = tasks.join_next().await {
        let (number, client) = ended.context("a client failed")?;
        done.insert(number, client);
    }
    Ok(done.into_values().collect())
}

/// A cluster of this suite, and the connections to it.
#[derive(Debug)]
pub struct Cluster {
    address: ClusterAddress,
    transports: Vec<Arc<QuicTransport>>,
}

impl Cluster {
    /// The cluster at `address`.
    #[must_use]
    pub fn new(address: ClusterAddress) -> Self {
        Self { address, transports: Vec::new() }
    }
}

impl Target for Cluster {
    type Client = Client;

    async fn connect(&mut self, load: Load) -> anyhow::Result<Vec<Client>> {
        self.transports = self.address.connect_many(load.clients as usize)?;
        for transport in &self.transports {
            transport.any_ready().await;
        }
        let client = |(number, transport): (usize, &Arc<QuicTransport>)| {
            Client::new(transport.clone(), self.address.ids(), number, load.settings())
        };
        Ok(self.transports.iter().enumerate().map(client).collect())
    }

    async fn converged(&mut self) -> anyhow::Result<Vec<NodeId>> {
        converged(&self.address).await
    }

    async fn close(&mut self) {
        for transport in self.transports.drain(..) {
            transport.close().await;
        }
    }
}

/// Waits until all nodes have the same entries; returns those that differ from the first when time is up.
async fn converged(cluster: &ClusterAddress) -> anyhow::Result<Vec<NodeId>> {
    let transport = cluster.reach().await?;
    let settings = Settings { patience: Duration::from_secs(5), ..Settings::default() };
    let client = Client::new(transport.clone(), cluster.ids(), 0, settings);
    let until = Instant::now() + CONVERGE_TIMEOUT;
    let differing = loop {
        let mut states = Vec::new();
        for node in cluster.ids() {
            states.push((node, entries(&client, node).await));
        }
        let first = states.first().and_then(|(_, state)| state.clone());
        let differs =
            |(node, state): (NodeId, Option<_>)| (state.is_none() || state != first).then_some(node);
        let differing: Vec<NodeId> = states.into_iter().filter_map(differs).collect();
        if differing.is_empty() || Instant::now() >= until {
            break differing;
        }
        sleep(PAUSE).await;
    };
    transport.close().await;
    Ok(differing)
}

/// The entries that `node` has by itself; none: it does not say.
async fn entries(client: &Client, node: NodeId) -> Option<Vec<(String, Vec<u8>)>> {
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    loop {
        let after = all.last().map(|(key, _)| key.clone());
        match client.ask(node, &Request::Page { after, freshness: Freshness::Local }).await {
            Ok(Response::Page { entries, more, .. }) => {
                all.extend(entries.into_iter().map(|(key, value)| (key, value.to_vec())));
                if !more {
                    return Some(all);
                }
            }
            _ => return None,
        }
    }
}
