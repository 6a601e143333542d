//! What a replicated checkpoint costs beside the bare transfer of its bytes: `put` of 248,024 B to 10 nodes by Raft against
//! sending the same bytes to 9 peers over bare quinn streams, on loopback, in one process.
//!
//! After criterion's own figures a last part measures all of them in turn and prints the ratios of their medians: compare
//! those, since only they saw the same machine.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::Criterion;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Endpoint, ServerConfig};
use replication::conformance::parameters;
use replication::raft::RaftStore;
use replication::transport::identity::{Authority, Plane};
use replication::transport::quic::{QuicConfig, QuicTransport};
use replication::transport::{Lane, Transport as _};
use replication::{CheckpointStore as _, CheckpointStoreExt as _, Epoch, NodeId, Payload, Silent, Site};
use tokio::runtime::Runtime;

const NODES: u64 = 10;
const CHECKPOINT_BYTES: usize = 248_024;
const INTERLEAVED_SAMPLES: usize = 100;

/// Ten Raft nodes over QUIC.
struct RaftCluster {
    epoch: Epoch,
    leader: Arc<RaftStore>,
    round: u64,
    _rest: Vec<(Arc<QuicTransport>, Arc<RaftStore>)>,
}

impl RaftCluster {
    async fn start(payload: Payload) -> Self {
        let authority = Authority::new("bench").expect("a certificate authority");
        let voters: BTreeSet<NodeId> = (1..=NODES).map(NodeId).collect();
        let bind = |node: &NodeId| {
            let identity = authority.issue(*node).expect("a certificate");
            (
                *node,
                QuicTransport::bind(QuicConfig::new(identity, Plane::Replication, common::loopback()))
                    .expect("a socket"),
            )
        };
        let transports: BTreeMap<NodeId, Arc<QuicTransport>> = voters.iter().map(bind).collect();
        let addresses: BTreeMap<_, _> =
            transports.iter().map(|(node, quic)| (*node, quic.local_addr())).collect();
        let mut nodes = Vec::new();
        for quic in transports.values() {
            quic.set_peers(addresses.clone()).expect("peers");
            let config = common::raft(voters.clone(), payload);
            let store =
                RaftStore::open(config, Site::new(quic.clone(), Arc::new(Silent))).await.expect("a store");
            nodes.push((quic.clone(), store));
        }
        for (quic, _) in &nodes {
            quic.ready(&quic.peers()).await;
        }
        let epoch = nodes[0].1.await_aggregator().await.expect("a leader");
        let leader =
            nodes.iter().find(|(quic, _)| quic.local() == epoch.node).expect("it is one of us").1.clone();
        Self { epoch, leader, round: 0, _rest: nodes }
    }

    async fn put(&mut self) {
        self.round += 1;
        let bytes = parameters(self.round, CHECKPOINT_BYTES);
        let checkpoint = common::checkpoint(self.epoch, self.round, bytes);
        self.leader.put(checkpoint).await.expect("acknowledged");
    }
}

/// One endpoint with nine connections, whose other ends read a stream to its end and answer one byte.
struct Bare {
    connections: Vec<Connection>,
    round: u64,
    _endpoint: Endpoint,
}

impl Bare {
    async fn start() -> Self {
        let authority = Authority::new("bare").expect("a certificate authority");
        let identity = authority.issue(NodeId(1)).expect("a certificate");
        let tls = identity.client_config(Plane::Replication, Lane::Bulk).expect("TLS");
        let endpoint = Endpoint::client(common::loopback()).expect("a socket");
        let client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("TLS 1.3")));
        let mut connections = Vec::new();
        for node in 2..=NODES {
            let identity = authority.issue(NodeId(node)).expect("a certificate");
            let tls = identity.server_config(Plane::Replication).expect("TLS");
            let config =
                ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).expect("TLS 1.3")));
            let server = Endpoint::server(config, common::loopback()).expect("a socket");
            let addr = server.local_addr().expect("bound");
            tokio::spawn(common::read_streams(server, CHECKPOINT_BYTES));
            let connecting =
                endpoint.connect_with(client.clone(), addr, &identity.name()).expect("a valid name");
            connections.push(connecting.await.expect("connected"));
        }
        Self { connections, round: 0, _endpoint: endpoint }
    }

    async fn send(&mut self) {
        self.round += 1;
        let bytes = parameters(self.round, CHECKPOINT_BYTES);
        let sending = self.connections.iter().map(|connection| common::send(connection, bytes.clone()));
        futures_util::future::join_all(sending).await;
    }
}

fn criterion_part(runtime: &Runtime, bare: &mut Bare, inline: &mut RaftCluster, digest: &mut RaftCluster) {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("248024B_to_9_peers");
    group.sample_size(20).measurement_time(Duration::from_secs(5));
    group.throughput(criterion::Throughput::Bytes((NODES - 1) * CHECKPOINT_BYTES as u64));
    group.bench_function("bare_quinn", |b| b.iter(|| runtime.block_on(bare.send())));
    group.bench_function("raft_inline", |b| b.iter(|| runtime.block_on(inline.put())));
    group.bench_function("raft_digest", |b| b.iter(|| runtime.block_on(digest.put())));
    group.finish();
    criterion.final_summary();
}

fn main() {
    let runtime = common::runtime();
    let (mut bare, mut inline, mut digest) = runtime.block_on(async {
        (
            Bare::start().await,
            RaftCluster::start(Payload::Inline).await,
            RaftCluster::start(Payload::Digest).await,
        )
    });
    criterion_part(&runtime, &mut bare, &mut inline, &mut digest);

    let mut samples = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..INTERLEAVED_SAMPLES {
        let begun = Instant::now();
        runtime.block_on(bare.send());
        samples[0].push(begun.elapsed().as_micros());
        let begun = Instant::now();
        runtime.block_on(inline.put());
        samples[1].push(begun.elapsed().as_micros());
        let begun = Instant::now();
        runtime.block_on(digest.put());
        samples[2].push(begun.elapsed().as_micros());
    }
    let [bare, inline, digest] = samples.map(|mut samples| common::median(&mut samples));
    println!("interleaved medians of {INTERLEAVED_SAMPLES}: bare quinn {bare} us");
    for (name, median) in [("raft inline", inline), ("raft digest", digest)] {
        println!("  {name} {median} us, {:.2} times bare quinn", median as f64 / bare as f64);
    }
    // Ten nodes need not take leave of each other.
    runtime.shutdown_background();
}
