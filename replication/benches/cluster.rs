//! What a `put` costs in processor time on Raft: N nodes of one process on the in-process network, whose clock does not run, so that
//! nothing is waited for. Real connections are in `put.rs` and `quic.rs`.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use replication::conformance::parameters;
use replication::raft::RaftStore;
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::{CheckpointStore, CheckpointStoreExt, Epoch, NodeId, Payload, Silent, Site};
use tokio::runtime::{Builder, Runtime};

/// Nodes of the clusters, all of them voters.
const NODES: [u64; 5] = [1, 3, 5, 7, 10];

/// Sizes of a checkpoint, in bytes.
const SIZES: [(&str, usize); 3] = [("1kB", 1_024), ("248kB", 248_024), ("10MB", 10_000_000)];

/// A cluster and its leader.
struct Cluster {
    runtime: Runtime,
    leader: Arc<RaftStore>,
    epoch: Epoch,
    round: u64,
    _stores: Vec<Arc<RaftStore>>,
}

impl Cluster {
    fn start(nodes: u64, payload: Payload) -> Self {
        let runtime =
            Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        let voters: BTreeSet<NodeId> = (1..=nodes).map(NodeId).collect();
        let (leader, epoch, stores) = runtime.block_on(async {
            let link = LinkSpec { delay: Duration::ZERO, ..LinkSpec::default() };
            let network = ChannelNetwork::new(1, link, voters.iter().copied());
            let mut stores = Vec::new();
            for node in &voters {
                let config = common::raft(voters.clone(), payload);
                let site = Site::new(network.join(*node), Arc::new(Silent));
                stores.push(RaftStore::open(config, site).await.expect("a store"));
            }
            let epoch = stores[0].await_aggregator().await.expect("a leader");
            let leader = stores[epoch.node.0 as usize - 1].clone();
            (leader, epoch, stores)
        });
        Self { runtime, leader, epoch, round: 0, _stores: stores }
    }

    fn put(&mut self, bytes: Bytes) {
        self.round += 1;
        let checkpoint = common::checkpoint(self.epoch, self.round, bytes);
        self.runtime.block_on(self.leader.put(checkpoint)).expect("acknowledged");
    }
}

fn puts(c: &mut Criterion) {
    for (payload, name) in [(Payload::Inline, "inline"), (Payload::Digest, "digest")] {
        let mut group = c.benchmark_group(format!("raft_put_{name}"));
        group
            .sample_size(10)
            .measurement_time(Duration::from_secs(2))
            .warm_up_time(Duration::from_millis(500));
        for (size, bytes) in SIZES {
            for nodes in NODES {
                let mut cluster = Cluster::start(nodes, payload);
                let mut seeds = 0..;
                group.throughput(Throughput::Bytes(bytes as u64));
                group.bench_function(BenchmarkId::new(size, nodes), |b| {
                    // Bytes that were stored before would not be sent again.
                    let fresh = || parameters(seeds.next().unwrap_or_default(), bytes);
                    b.iter_batched(fresh, |bytes| cluster.put(bytes), BatchSize::PerIteration);
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, puts);
criterion_main!(benches);
