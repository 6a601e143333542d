//! What a checkpoint costs on the replication plane: ten nodes over QUIC on loopback, warm connections, no loss.
//!
//! Bytes are those of quinn's connection statistics plus 28 B of IPv4 and UDP header per datagram, where they leave their
//! sender, less those of an idle stretch of the same length; the median of twenty checkpoints, in units of a checkpoint's
//! 248,024 B.

#![allow(clippy::unwrap_used, reason = "a failed test is what unwrap is for; helpers are not seen as tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use replication::backup::BackupConfig;
use replication::conformance::parameters;
use replication::gossip::{Detector, GossipConfig};
use replication::raft::{Electorate, RaftConfig};
use replication::transport::identity::{Authority, Plane};
use replication::transport::quic::{QuicConfig, QuicTransport};
use replication::transport::{DatagramCount, Transport};
use replication::{
    AnyStore, Backend, Blob, Carrier, Checkpoint, CheckpointId, CheckpointStoreExt, DEFAULT_RETAINED, Epoch,
    Metadata, NodeId, Payload, Phase, Silent, Site, Slot, Window, open,
};
use tokio::time::Instant;

const NODES: u64 = 10;
const CHECKPOINT_BYTES: usize = 248_024;
const PUTS: u64 = 20;
const HEARTBEAT_MS: u64 = 100;
const GOSSIP_INTERVAL_MS: u64 = 500;
const WINDOW: Window = Window { from_ms: 1000, to_ms: 2000 };
/// IPv4 and UDP headers of a datagram.
const HEADER_BYTES: u64 = 28;
/// What follows a put is counted with it for so long.
const STRETCH: Duration = Duration::from_millis(300);
/// How long nothing is done, to see what that costs.
const IDLE: Duration = Duration::from_secs(5);
/// How long all nodes may take to have a checkpoint.
const PATIENCE: Duration = Duration::from_secs(20);

fn nodes() -> BTreeSet<NodeId> {
    (1..=NODES).map(NodeId).collect()
}

fn raft(electorate: Electorate, payload: Payload) -> Backend {
    Backend::Raft(RaftConfig {
        nodes: nodes(),
        electorate,
        payload,
        window: WINDOW,
        heartbeat_ms: HEARTBEAT_MS,
        put_timeout_ms: 10_000,
        retained: DEFAULT_RETAINED,
        seed: 1,
    })
}

/// A majority of holders.
fn gossip() -> Backend {
    Backend::Gossip(GossipConfig {
        nodes: nodes(),
        holders: 6,
        interval_ms: GOSSIP_INTERVAL_MS,
        fan_out: 2,
        phi_milli: 6000,
        detector: Detector::Phi,
        put_timeout_ms: 10_000,
        retained: DEFAULT_RETAINED,
        seed: 1,
    })
}

fn backup() -> Backend {
    Backend::Backup(BackupConfig {
        nodes: nodes(),
        backups: 2,
        window: WINDOW,
        heartbeat_ms: HEARTBEAT_MS,
        put_timeout_ms: 10_000,
        retained: DEFAULT_RETAINED,
        seed: 1,
    })
}

struct Node {
    transport: Arc<QuicTransport>,
    store: AnyStore,
}

struct Cluster {
    nodes: BTreeMap<NodeId, Node>,
    epoch: Epoch,
}

impl Cluster {
    async fn start(backend: Backend) -> Self {
        let authority = Authority::new("traffic").unwrap();
        let bind = |node: NodeId| {
            let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
            let identity = authority.issue(node).unwrap();
            (node, QuicTransport::bind(QuicConfig::new(identity, Plane::Replication, loopback)).unwrap())
        };
        let transports: BTreeMap<NodeId, Arc<QuicTransport>> = nodes().into_iter().map(bind).collect();
        let addresses: BTreeMap<_, _> =
            transports.iter().map(|(node, quic)| (*node, quic.local_addr())).collect();
        let mut nodes = BTreeMap::new();
        for (node, transport) in transports {
            transport.set_peers(addresses.clone()).unwrap();
            let store = open(backend.clone(), Site::new(transport.clone(), Arc::new(Silent))).await.unwrap();
            nodes.insert(node, Node { transport, store });
        }
        for node in nodes.values() {
            node.transport.ready(&node.transport.peers()).await;
        }
        let epoch = nodes[&NodeId(1)].store.await_aggregator().await.unwrap();
        Self { nodes, epoch }
    }

    /// Bytes that each node has sent.
    fn sent(&self) -> BTreeMap<NodeId, u64> {
        let on_the_wire = |count: DatagramCount| count.sent_bytes + HEADER_BYTES * count.sent_datagrams;
        let of = |node: &Node| {
            let traffic = node.transport.traffic();
            on_the_wire(traffic.control) + on_the_wire(traffic.bulk)
        };
        self.nodes.iter().map(|(id, node)| (*id, of(node))).collect()
    }

    /// Bytes that each node sends while `work` is done and in the stretch after it, and how long that takes.
    async fn sent_during(&self, work: impl Future<Output = ()>) -> (BTreeMap<NodeId, u64>, Duration) {
        let (before, begun) = (self.sent(), Instant::now());
        work.await;
        tokio::time::sleep(STRETCH).await;
        let sent = self.sent().into_iter().map(|(node, sent)| (node, sent - before[&node])).collect();
        (sent, begun.elapsed())
    }

    /// Puts a checkpoint; returns when `copies` nodes hold it.
    async fn put(&self, round: u64, carrier: Carrier, copies: usize) {
        let id = CheckpointId { epoch: self.epoch, round, phase: Phase::AggregateFit, slot: Slot::Global };
        let blob = Blob::new(parameters(round, CHECKPOINT_BYTES));
        let checkpoint = Checkpoint::of_blob(id, blob.clone(), Metadata::new());
        let writer = &self.nodes[&self.epoch.node];
        let writing = writer.store.put_carried(checkpoint, carrier);
        let carrying = async {
            if carrier == Carrier::Caller {
                for (_, node) in self.nodes.iter().filter(|(id, _)| **id != self.epoch.node) {
                    node.store.provide(blob.clone());
                }
            }
        };
        let (receipt, ()) = tokio::join!(writing, carrying);
        receipt.unwrap();
        let holds = |node: &&Node| node.store.held().is_some_and(|held| held.id == id);
        let held = async {
            while self.nodes.values().filter(holds).count() < copies {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, held).await.unwrap();
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What a put costs.
struct Cost {
    /// Bytes of all nodes together, in units of a checkpoint.
    all: f64,
    /// Bytes of the node that sent most in any put, in units of a checkpoint.
    busiest: f64,
    /// Bytes per second that a node sends while nothing happens, on average.
    idle_bytes_per_s: f64,
}

async fn cost(backend: Backend, carrier: Carrier, copies: usize) -> Cost {
    let cluster = Cluster::start(backend).await;
    // Connections reach their stride, timers their rhythm.
    for round in 1..=2 {
        cluster.put(round, carrier, copies).await;
    }
    tokio::time::sleep(STRETCH).await;
    let (sent, elapsed) = cluster.sent_during(tokio::time::sleep(IDLE)).await;
    let idle_bytes_per_s = sent.values().sum::<u64>() as f64 / NODES as f64 / elapsed.as_secs_f64();
    let (mut all, mut busiest) = (Vec::new(), 0.0_f64);
    for round in 3..3 + PUTS {
        let (sent, elapsed) = cluster.sent_during(cluster.put(round, carrier, copies)).await;
        let idle = idle_bytes_per_s * elapsed.as_secs_f64();
        all.push((sent.values().sum::<u64>() as f64 - idle * NODES as f64) / CHECKPOINT_BYTES as f64);
        let most = sent.values().max().copied().unwrap() as f64 - idle;
        busiest = busiest.max(most / CHECKPOINT_BYTES as f64);
    }
    let cost = Cost { all: median(all), busiest, idle_bytes_per_s };
    println!(
        "{:.3} S in all, busiest node {:.2} S, idle {:.0} B/s per node",
        cost.all, cost.busiest, cost.idle_bytes_per_s
    );
    cost
}

/// Idle bytes per heartbeat and follower, both directions.
fn per_heartbeat(cost: &Cost) -> f64 {
    let per_s = cost.idle_bytes_per_s * NODES as f64;
    per_s / (1000.0 / HEARTBEAT_MS as f64) / (NODES - 1) as f64
}

const EVERYONE: usize = NODES as usize;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raft_inline() {
    let cost = cost(raft(Electorate::Everyone, Payload::Inline), Carrier::Store, EVERYONE).await;
    assert!(cost.all <= 1.07 * 9.0, "{} S", cost.all);
    assert!(per_heartbeat(&cost) <= 400.0, "{} B per heartbeat and follower", per_heartbeat(&cost));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raft_digest_without_reuse() {
    let cost = cost(raft(Electorate::Everyone, Payload::Digest), Carrier::Store, EVERYONE).await;
    assert!(cost.all <= 1.07 * 9.0, "{} S", cost.all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raft_digest_with_reuse() {
    let cost = cost(raft(Electorate::Everyone, Payload::Digest), Carrier::Caller, EVERYONE).await;
    assert!(cost.all <= 0.05 * 9.0, "{} S", cost.all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raft_subset_inline() {
    let three = Electorate::MostSuitable { voters: 3, grace_ms: 10_000 };
    let cost = cost(raft(three, Payload::Inline), Carrier::Store, 3).await;
    assert!(cost.all <= 1.07 * 2.0, "{} S", cost.all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_to_two() {
    let cost = cost(backup(), Carrier::Store, 3).await;
    assert!(cost.all <= 1.07 * 2.0, "{} S", cost.all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_without_reuse() {
    let cost = cost(gossip(), Carrier::Store, EVERYONE).await;
    assert!(cost.all <= 1.12 * 9.0, "{} S", cost.all);
    assert!(cost.busiest <= 3.0, "a node sent {} S", cost.busiest);
    assert!(cost.idle_bytes_per_s <= 8000.0, "{} B/s per node", cost.idle_bytes_per_s);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_with_reuse() {
    let cost = cost(gossip(), Carrier::Caller, EVERYONE).await;
    assert!(cost.all <= 0.10 * 9.0, "{} S", cost.all);
}
