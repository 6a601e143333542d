//! What durability costs a write: `put` of 248,024 B to three Raft nodes over QUIC in one process, with their state in memory,
//! on the file system of the current directory, and on /dev/shm, whose flushes cost nothing.
//!
//! After criterion's own figures a last part measures all of them in turn and prints the ratios of their medians: compare
//! those, since only they saw the same machine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::Criterion;
use replication::conformance::parameters;
use replication::raft::{Electorate, RaftConfig, RaftStore};
use replication::transport::Transport as _;
use replication::transport::identity::{Authority, Plane};
use replication::transport::quic::{QuicConfig, QuicTransport};
use replication::{
    Checkpoint, CheckpointId, CheckpointStore, CheckpointStoreExt, DEFAULT_RETAINED, Epoch, Metadata, NodeId,
    Payload, Phase, Silent, Site, Slot, Storage, Window,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const NODES: u64 = 3;
const CHECKPOINT_BYTES: usize = 248_024;
const INTERLEAVED_SAMPLES: usize = 100;

struct Cluster {
    name: String,
    epoch: Epoch,
    leader: Arc<RaftStore>,
    round: u64,
    _rest: Vec<(Arc<QuicTransport>, Arc<RaftStore>)>,
    _files: Option<TempDir>,
}

impl Cluster {
    /// Three nodes whose files are in a folder below `dir`; none: in memory.
    async fn start(name: &str, payload: Payload, dir: Option<&Path>) -> Self {
        let authority = Authority::new("bench").expect("a certificate authority");
        let nodes: BTreeSet<NodeId> = (1..=NODES).map(NodeId).collect();
        let bind = |node: &NodeId| {
            let identity = authority.issue(*node).expect("a certificate");
            let config = QuicConfig::new(identity, Plane::Replication, SocketAddr::from(([127, 0, 0, 1], 0)));
            (*node, QuicTransport::bind(config).expect("a socket"))
        };
        let transports: BTreeMap<NodeId, Arc<QuicTransport>> = nodes.iter().map(bind).collect();
        let addresses: BTreeMap<_, _> =
            transports.iter().map(|(node, quic)| (*node, quic.local_addr())).collect();
        let files = dir.map(|dir| TempDir::new_in(dir).expect("a folder"));
        let mut rest = Vec::new();
        for (node, quic) in &transports {
            quic.set_peers(addresses.clone()).expect("peers");
            let config = RaftConfig {
                nodes: nodes.clone(),
                electorate: Electorate::Everyone,
                payload,
                window: Window { from_ms: 1000, to_ms: 2000 },
                heartbeat_ms: 100,
                put_timeout_ms: 10_000,
                retained: DEFAULT_RETAINED,
                seed: 1,
            };
            let file = files.as_ref().map(|files| files.path().join(format!("node-{node}.redb")));
            let storage = file.map(|file| Storage::open(file).expect("a file"));
            let site = Site { storage, ..Site::new(quic.clone(), Arc::new(Silent)) };
            rest.push((quic.clone(), RaftStore::open(config, site).await.expect("a store")));
        }
        for (quic, _) in &rest {
            quic.ready(&quic.peers()).await;
        }
        let epoch = rest[0].1.await_aggregator().await.expect("a leader");
        let leader = rest.iter().find(|(quic, _)| quic.local() == epoch.node).expect("one of us").1.clone();
        Self { name: format!("{payload}_{name}"), epoch, leader, round: 0, _rest: rest, _files: files }
    }

    async fn put(&mut self) {
        self.round += 1;
        let id = CheckpointId {
            epoch: self.epoch,
            round: self.round,
            phase: Phase::AggregateFit,
            slot: Slot::Global,
        };
        let checkpoint = Checkpoint::new(id, parameters(self.round, CHECKPOINT_BYTES), Metadata::new());
        self.leader.put(checkpoint).await.expect("acknowledged");
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
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let shm = Some(Path::new("/dev/shm")).filter(|shm| shm.is_dir());
    let mut clusters = Vec::new();
    for payload in [Payload::Inline, Payload::Digest] {
        let start = |name, dir| runtime.block_on(Cluster::start(name, payload, dir));
        clusters.push(start("memory", None));
        clusters.push(start("disk", Some(Path::new("."))));
        clusters.extend(shm.map(|shm| start("shm", Some(shm))));
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
    let per_payload = clusters.len() / 2;
    for (clusters, samples) in clusters.chunks(per_payload).zip(samples.chunks_mut(per_payload)) {
        let medians: Vec<u128> = samples.iter_mut().map(|samples| median(samples)).collect();
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

fn median(samples: &mut [u128]) -> u128 {
    samples.sort_unstable();
    samples[samples.len() / 2]
}
