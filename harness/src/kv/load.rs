//! The clients of a test, on threads of their own: in the controller, or wherever `harness kv load` runs.

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
use workloads::keyvalue::load::{Clock, Load, Runner, runners};
use workloads::keyvalue::message::{Freshness, Request, Response};

use super::cluster::ClusterAddress;
use crate::clock;

/// Threads of the clients.
const THREADS: usize = 2;
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

/// The clients, on their threads: ended when dropped.
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
    pub fn start(load: Load, cluster: ClusterAddress) -> anyhow::Result<Self> {
        let (orders, taken) = mpsc::unbounded_channel();
        let (tell, news) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .enable_all()
            .build()
            .context("cannot start the clients")?;
        let run = move || {
            runtime.block_on(async {
                if let Err(error) = drive(load, cluster, taken, &tell).await {
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
    cluster: ClusterAddress,
    mut orders: mpsc::UnboundedReceiver<Order>,
    news: &mpsc::UnboundedSender<News>,
) -> anyhow::Result<()> {
    let clock: Clock = Arc::new(clock::monotonic_ns);
    let transports = connect(load, &cluster).await?;
    let client = |(number, transport): (usize, &Arc<QuicTransport>)| {
        Client::new(transport.clone(), cluster.ids(), number, load.settings())
    };
    let mut clients = runners(load, transports.iter().enumerate().map(client).collect(), &clock);
    let _ = news.send(News::Connected);
    while let Some(order) = orders.recv().await {
        let begin = Instant::now() + LEAD;
        if order == Order::Load {
            let at_ns = clock::monotonic_ns() + LEAD.as_nanos() as u64;
            let _ = news.send(News::Begins { at_ns });
        }
        let differing = match order {
            Order::Verify => converged(&cluster).await?,
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
    for transport in transports {
        transport.close().await;
    }
    Ok(())
}

async fn connect(load: Load, cluster: &ClusterAddress) -> anyhow::Result<Vec<Arc<QuicTransport>>> {
    let mut transports = Vec::new();
    for _ in 0..load.clients {
        transports.push(cluster.connect()?);
    }
    let ready = async {
        for transport in &transports {
            transport.any_ready().await;
        }
    };
    timeout(CONNECT_TIMEOUT, ready).await.context("not every client reached a node in time")?;
    Ok(transports)
}

/// Has every client do its part of `order`.
async fn all(
    clients: Vec<Runner<Client>>,
    order: Order,
    begin: Instant,
) -> anyhow::Result<Vec<Runner<Client>>> {
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
    let mut done: BTreeMap<usize, Runner<Client>> = BTreeMap::new();
    while let Some(ended) = tasks.join_next().await {
        let (number, client) = ended.context("a client failed")?;
        done.insert(number, client);
    }
    Ok(done.into_values().collect())
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
