//! Clusters of any backend for the suite: in one process on a seeded network under virtual time, and over QUIC on loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use replication::conformance::Cluster;
use replication::gossip::GossipConfig;
use replication::raft::{Electorate, RaftConfig};
use replication::transport::Transport;
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::transport::identity::{Authority, Plane};
use replication::transport::quic::{QuicConfig, QuicTransport};
use replication::{AnyStore, Backend, DEFAULT_RETAINED, NodeId, Payload, Silent, Site, Window, open};

use super::cuts::Cuts;
use super::five;

/// Full Raft.
pub(crate) fn raft(payload: Payload) -> Backend {
    Backend::Raft(RaftConfig {
        nodes: five().into_iter().collect(),
        electorate: Electorate::Everyone,
        payload,
        window: Window { from_ms: 300, to_ms: 600 },
        heartbeat_ms: 60,
        put_timeout_ms: 3000,
        retained: DEFAULT_RETAINED,
        seed: 1,
    })
}

/// Gossip, with so many holders of every write.
pub(crate) fn gossip(holders: u32) -> Backend {
    Backend::Gossip(GossipConfig {
        nodes: five().into_iter().collect(),
        holders,
        interval_ms: 100,
        fan_out: 2,
        phi_milli: 6000,
        put_timeout_ms: 3000,
        retained: DEFAULT_RETAINED,
        seed: 1,
    })
}

pub(crate) struct QuicCluster {
    cuts: Cuts,
    transports: BTreeMap<NodeId, Arc<QuicTransport>>,
    stores: BTreeMap<NodeId, AnyStore>,
}

impl QuicCluster {
    pub(crate) async fn start(backend: Backend) -> Self {
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
        let mut stores = BTreeMap::new();
        for (node, transport) in &transports {
            transport.set_peers(addresses.clone()).unwrap();
            let store = open(backend.clone(), Site::new(transport.clone(), Arc::new(Silent))).await.unwrap();
            stores.insert(*node, store);
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
        let link = LinkSpec {
            delay: Duration::from_millis(2),
            jitter: Duration::from_millis(1),
            loss: 0.01,
            bandwidth_bytes_per_s: Some(12_500_000),
        };
        let network = ChannelNetwork::new(7, link, five());
        let mut stores = BTreeMap::new();
        for node in five() {
            let store = open(backend.clone(), Site::new(network.join(node), Arc::new(Silent))).await.unwrap();
            stores.insert(node, store);
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
}
