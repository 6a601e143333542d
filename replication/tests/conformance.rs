//! Every store against the contract: one named test per property, backend, payload mode and network.

use std::collections::BTreeSet;

use async_trait::async_trait;
use replication::conformance::Cluster;
use replication::memory::MemoryCluster;
use replication::{AnyStore, NodeId};

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

    replication::conformance_suite!(#[tokio::test] Reference(MemoryCluster::new(five())));
}
