//! Every store against the contract: one named test per property, backend, payload mode and network.

#![allow(clippy::unwrap_used, reason = "a failed test is what unwrap is for; helpers are not seen as tests")]

mod clusters;
mod cuts;

use std::collections::BTreeSet;

use async_trait::async_trait;
use replication::conformance::Cluster;
use replication::memory::MemoryCluster;
use replication::{AnyStore, NodeId, Payload};

fn five() -> Vec<NodeId> {
    (1..=5).map(NodeId).collect()
}

struct Reference(MemoryCluster);

#[async_trait]
impl Cluster for Reference {
    fn nodes(&self) -> Vec<NodeId> {
        five()
    }

    fn store(&self, node: NodeId) -> AnyStore {
        self.0.store(node)
    }

    async fn crash(&mut self, node: NodeId) {
        self.0.crash(node);
    }

    fn isolate(&mut self, _side: &BTreeSet<NodeId>) -> bool {
        false
    }

    fn heal(&mut self) {}
}

mod memory {
    use super::*;

    replication::conformance_suite!(
        #[tokio::test]
        Reference(MemoryCluster::new(five()))
    );
}

mod raft_inline_quic {
    use super::*;

    replication::conformance_suite!(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        clusters::QuicCluster::start(clusters::raft(Payload::Inline)).await
    );
}

mod raft_digest_quic {
    use super::*;

    replication::conformance_suite!(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        clusters::QuicCluster::start(clusters::raft(Payload::Digest)).await
    );
}

mod raft_inline_channel {
    use super::*;

    replication::conformance_suite!(
        #[tokio::test(start_paused = true)]
        clusters::ChannelCluster::start(clusters::raft(Payload::Inline)).await
    );
}

mod raft_digest_channel {
    use super::*;

    replication::conformance_suite!(
        #[tokio::test(start_paused = true)]
        clusters::ChannelCluster::start(clusters::raft(Payload::Digest)).await
    );
}

mod gossip_quic {
    use super::*;

    replication::conformance_suite!(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        clusters::QuicCluster::start(clusters::gossip(3)).await
    );
}

mod gossip_channel {
    use super::*;

    replication::conformance_suite!(
        #[tokio::test(start_paused = true)]
        clusters::ChannelCluster::start(clusters::gossip(3)).await
    );
}

mod gossip_one_holder_channel {
    use super::*;

    replication::conformance_suite!(
        #[tokio::test(start_paused = true)]
        clusters::ChannelCluster::start(clusters::gossip(1)).await
    );
}
