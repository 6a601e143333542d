//! Clusters of any backend for the suite: in one process on a seeded network under virtual time, and over QUIC on loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redb::backends::InMemoryBackend;
use replication::backup::BackupConfig;
use replication::conformance::Cluster;
use replication::gossip::{Detector, GossipConfig};
use replication::local::LocalConfig;
use replication::raft::{Electorate, RaftConfig};
use replication::transport::Transport;
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::transport::identity::{Authority, Plane};
use replication::transport::quic::{QuicConfig, QuicTransport};
use replication::{
    AnyStore, Backend, DEFAULT_RETAINED, NodeId, Observer, Payload, Site, Storage, StoreEvent, Window, open,
};
use tokio::time::Instant;

use super::cuts::Cuts;
use super::five;

/// Full Raft.
pub(crate) fn raft(payload: Payload) -> Backend {
    raft_among(Electorate::Everyone, payload)
}

/// Raft among the three most suitable of five.
pub(crate) fn raft_subset(payload: Payload) -> Backend {
    raft_among(Electorate::MostSuitable { voters: 3, grace_ms: 5000 }, payload)
}

fn raft_among(electorate: Electorate, payload: Payload) -> Backend {
    Backend::Raft(RaftConfig {
        nodes: five().into_iter().collect(),
        electorate,
        payload,
        window: Window { from_ms: 300, to_ms: 600 },
        heartbeat_ms: 60,
        put_timeout_ms: 3000,
        retained: DEFAULT_RETAINED,
        seed: 1,
    })
}

/// Gossip, with so many holders of every write. Over QUIC the suite shares its cores with others: who is starved for a second
/// is not dead, and a candidate whose claim takes a while is not to be overtaken.
pub(crate) fn gossip(holders: u32, interval_ms: u64) -> Backend {
    Backend::Gossip(GossipConfig {
        nodes: five().into_iter().collect(),
        holders,
        interval_ms,
        fan_out: 2,
        phi_milli: 8000,
        detector: Detector::Phi,
        put_timeout_ms: 3000,
        retained: DEFAULT_RETAINED,
        seed: 1,
    })
}

/// Says what a node tells of, among a test's output: seen when it fails.
struct Aloud {
    node: NodeId,
    since: Instant,
}

impl Observer for Aloud {
    fn observe(&self, event: StoreEvent) {
        println!("{:9.3} s: node {}: {event:?}", self.since.elapsed().as_secs_f64(), self.node);
    }
}

/// A node's end; the highest nodes are the most suitable.
fn site(transport: Arc<dyn Transport>, since: Instant) -> Site {
    let node = transport.local();
    let cpu_mb_per_s = 1000 * node.0;
    let mut site = Site::new(transport, Arc::new(Aloud { node, since }));
    site.resources.cpu_mb_per_s = cpu_mb_per_s;
    site
}

/// Primary and `backups` backups.
pub(crate) fn backup(backups: u32) -> Backend {
    Backend::Backup(BackupConfig {
        nodes: five().into_iter().collect(),
        backups,
        window: Window { from_ms: 300, to_ms: 600 },
        heartbeat_ms: 60,
        put_timeout_ms: 3000,
        retained: DEFAULT_RETAINED,
        seed: 1,
    })
}

/// The lowest node keeps everything.
pub(crate) fn local() -> Backend {
    Backend::Local(LocalConfig {
        nodes: five().into_iter().collect(),
        heartbeat_ms: 60,
        put_timeout_ms: 3000,
        retained: DEFAULT_RETAINED,
    })
}

pub(crate) struct QuicCluster {
    cuts: Cuts,
    transports: BTreeMap<NodeId, Arc<QuicTransport>>,
    stores: BTreeMap<NodeId, AnyStore>,
}

impl QuicCluster {
    pub(crate) async fn start(backend: Backend) -> Self {
        Self::start_with(backend, || None).await
    }

    /// As [`Self::start`], with a disk for every node, written by a thread.
    pub(crate) async fn start_on_disk(backend: Backend) -> Self {
        Self::start_with(backend, || Some(Storage::on(InMemoryBackend::new()).unwrap())).await
    }

    async fn start_with(backend: Backend, storage: impl Fn() -> Option<Storage>) -> Self {
        let authority = Authority::new("conformance").unwrap();
        let cuts = Cuts::default();
        let mut transports = BTreeMap::new();
        for node in five() {
            let bind: SocketAddr = "127.0.0.1:0".parse().unwrap();
            let mut quic = QuicConfig::new(authority.issue(node).unwrap(), Plane::Replication, bind);
            quic.wrap_socket = Some(cuts.wrapper());
            quic.idle_timeout = Duration::from_secs(2);
            quic.keep_alive = Duration::from_millis(500);
            transports.insert(node, QuicTransport::bind(quic).unwrap());
        }
        let addresses: BTreeMap<NodeId, SocketAddr> =
            transports.iter().map(|(node, transport)| (*node, transport.local_addr())).collect();
        let (since, mut stores) = (Instant::now(), BTreeMap::new());
        for (node, transport) in &transports {
            transport.set_peers(addresses.clone()).unwrap();
            let site = Site { storage: storage(), ..site(transport.clone(), since) };
            stores.insert(*node, open(backend.clone(), site).await.unwrap());
        }
        Self { cuts, transports, stores }
    }
}

#[async_trait]
impl Cluster for QuicCluster {
    fn nodes(&self) -> Vec<NodeId> {
        five()
    }

    fn store(&self, node: NodeId) -> AnyStore {
        self.stores[&node].clone()
    }

    async fn crash(&mut self, node: NodeId) {
        self.cuts.silence(self.transports[&node].local_addr());
        self.stores[&node].close().await;
        self.transports[&node].close().await;
    }

    fn isolate(&mut self, side: &BTreeSet<NodeId>) -> bool {
        self.cuts.isolate(side.iter().map(|node| self.transports[node].local_addr()));
        true
    }

    fn heal(&mut self) {
        self.cuts.isolate([]);
    }
}

pub(crate) struct ChannelCluster {
    network: ChannelNetwork,
    stores: BTreeMap<NodeId, AnyStore>,
}

impl ChannelCluster {
    pub(crate) async fn start(backend: Backend) -> Self {
        Self::start_with(backend, || None).await
    }

    /// As [`Self::start`], with a disk for every node.
    pub(crate) async fn start_on_disk(backend: Backend) -> Self {
        Self::start_with(backend, || Some(Storage::inline_on(InMemoryBackend::new()).unwrap())).await
    }

    async fn start_with(backend: Backend, storage: impl Fn() -> Option<Storage>) -> Self {
        let link = LinkSpec {
            delay: Duration::from_millis(2),
            jitter: Duration::from_millis(1),
            loss: 0.01,
            bandwidth_bytes_per_s: Some(12_500_000),
            ..LinkSpec::default()
        };
        let network = ChannelNetwork::new(7, link, five());
        let (since, mut stores) = (Instant::now(), BTreeMap::new());
        for node in five() {
            let site = Site { storage: storage(), ..site(network.join(node), since) };
            stores.insert(node, open(backend.clone(), site).await.unwrap());
        }
        Self { network, stores }
    }
}

#[async_trait]
impl Cluster for ChannelCluster {
    fn nodes(&self) -> Vec<NodeId> {
        five()
    }

    fn store(&self, node: NodeId) -> AnyStore {
        self.stores[&node].clone()
    }

    async fn crash(&mut self, node: NodeId) {
        self.network.crash(node);
        self.stores[&node].close().await;
    }

    fn isolate(&mut self, side: &BTreeSet<NodeId>) -> bool {
        let side: Vec<NodeId> = side.iter().copied().collect();
        let rest: Vec<NodeId> = five().into_iter().filter(|node| !side.contains(node)).collect();
        self.network.partition(&[&side, &rest]);
        true
    }

    fn heal(&mut self) {
        self.network.heal();
    }

    fn in_virtual_time(&self) -> bool {
        true
    }
}
