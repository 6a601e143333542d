//! What durability costs a write: `put` of 248,024 B among three nodes over QUIC in one process, two of which have to hold it,
//! with their state in memory, on the file system of the current directory, and on tmpfs (/dev/shm), whose flushes cost
//! nothing; for every backend that replicates.
//!
//! `cargo bench -p replication --bench disk [-- FILTER]`. After criterion's own figures a last part measures all of them in
//! turn and prints medians and ratios: compare those, since only they saw the same machine.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{HEARTBEAT_MS, PUT_TIMEOUT_MS, WINDOW};
use criterion::Criterion;
use replication::backup::BackupConfig;
use replication::conformance::parameters;
use replication::gossip::{Detector, GossipConfig};
use replication::transport::Transport as _;
use replication::transport::identity::{Authority, Plane};
use replication::transport::quic::{QuicConfig, QuicTransport};
use replication::{
    AnyStore, Backend, CheckpointStoreExt, DEFAULT_RETAINED, Epoch, NodeId, Payload, Silent, Site, Storage,
    open,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const NODES: u64 = 3;
const CHECKPOINT_BYTES: usize = 248_024;
const INTERLEAVED_SAMPLES: usize = 100;

fn nodes() -> BTreeSet<NodeId> {
    (1..=NODES).map(NodeId).collect()
}

fn raft(payload: Payload) -> Backend {
    Backend::Raft(common::raft(nodes(), payload))
}

fn backends() -> [(&'static str, Backend); 4] {
    let gossip = GossipConfig {
        nodes: nodes(),
        holders: 2,
        interval_ms: HEARTBEAT_MS,
        fan_out: 2,
        phi_milli: 15_000,
        detector: Detector::Phi,
        put_timeout_ms: PUT_TIMEOUT_MS,
        retained: DEFAULT_RETAINED,
        seed: 1,
    };
    let backup = BackupConfig {
        nodes: nodes(),
        backups: 1,
        window: WINDOW,
        heartbeat_ms: HEARTBEAT_MS,
        put_timeout_ms: PUT_TIMEOUT_MS,
        retained: DEFAULT_RETAINED,
        seed: 1,
    };
    [
        ("raft_inline", raft(Payload::Inline)),
        ("raft_digest", raft(Payload::Digest)),
        ("gossip", Backend::Gossip(gossip)),
        ("backup", Backend::Backup(backup)),
    ]
}

struct Cluster {
    name: String,
    epoch: Epoch,
    aggregator: AnyStore,
    round: u64,
    _rest: Vec<(Arc<QuicTransport>, AnyStore)>,
    _files: Option<TempDir>,
}

impl Cluster {
    /// Three nodes whose files are in a folder below `dir`; none: in memory.
    async fn start(name: String, backend: &Backend, dir: Option<&Path>) -> Self {
        let authority = Authority::new("bench").expect("a certificate authority");
        let bind = |node: &NodeId| {
            let identity = authority.issue(*node).expect("a certificate");
            let config = QuicConfig::new(identity, Plane::Replication, common::loopback());
            (*node, QuicTransport::bind(config).expect("a socket"))
        };
        let transports: BTreeMap<NodeId, Arc<QuicTransport>> = nodes().iter().map(bind).collect();
        let addresses: BTreeMap<_, _> =
            transports.iter().map(|(node, quic)| (*node, quic.local_addr())).collect();
        let files = dir.map(|dir| TempDir::new_in(dir).expect("a folder"));
        let mut rest = Vec::new();
        for (node, quic) in &transports {
            quic.set_peers(addresses.clone()).expect("peers");
            let file = files.as_ref().map(|files| files.path().join(format!("node-{node}.redb")));
            let storage = file.map(|file| Storage::open(file).expect("a file"));
            let site = Site { storage, ..Site::new(quic.clone(), Arc::new(Silent)) };
            rest.push((quic.clone(), open(backend.clone(), site).await.expect("a store")));
        }
        for (quic, _) in &rest {
            quic.ready(&quic.peers()).await;
        }
        let epoch = rest[0].1.await_aggregator().await.expect("an aggregator");
        let aggregator =
            rest.iter().find(|(quic, _)| quic.local() == epoch.node).expect("one of us").1.clone();
        Self { name, epoch, aggregator, round: 0, _rest: rest, _files: files }
    }

    async fn put(&mut self) {
        self.round += 1;
        let bytes = parameters(self.round, CHECKPOINT_BYTES);
        let checkpoint = common::checkpoint(self.epoch, self.round, bytes);
        self.aggregator.put(checkpoint).await.expect("acknowledged");
    }
}

fn criterion_part(runtime: &Runtime, clusters: &mut [Cluster]) {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("put_248024B_3_nodes");
    group.sample_size(20).measurement_time(Duration::from_secs(3));
    for cluster in clusters {
        let name = cluster.name.clone();
        group.bench_function(name, |b| b.iter(|| runtime.block_on(cluster.put())));
    }
    group.finish();
    criterion.final_summary();
}

fn main() {
    let runtime = common::runtime();
    let shm = Some(Path::new("/dev/shm")).filter(|shm| shm.is_dir());
    let mut clusters = Vec::new();
    for (backend, config) in backends() {
        let start =
            |medium, dir| runtime.block_on(Cluster::start(format!("{backend}_{medium}"), &config, dir));
        clusters.push(start("memory", None));
        clusters.push(start("disk", Some(Path::new("."))));
        clusters.extend(shm.map(|shm| start("tmpfs", Some(shm))));
    }
    criterion_part(&runtime, &mut clusters);

    let mut samples = vec![Vec::new(); clusters.len()];
    for _ in 0..INTERLEAVED_SAMPLES {
        for (cluster, samples) in clusters.iter_mut().zip(&mut samples) {
            let begun = Instant::now();
            runtime.block_on(cluster.put());
            samples.push(begun.elapsed().as_micros());
        }
    }
    println!("interleaved medians of {INTERLEAVED_SAMPLES}:");
    let media = clusters.len() / backends().len();
    for (clusters, samples) in clusters.chunks(media).zip(samples.chunks_mut(media)) {
        let medians: Vec<u128> = samples.iter_mut().map(|samples| common::median(samples)).collect();
        for (cluster, median) in clusters.iter().zip(&medians) {
            println!(
                "  {} {median} us, {:.2} times memory",
                cluster.name,
                *median as f64 / medians[0] as f64
            );
        }
    }
    // They need not take leave of each other.
    runtime.shutdown_background();
}
