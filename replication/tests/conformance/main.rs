//! Every store against the contract: one named test per property, backend, payload mode and network.

#![allow(clippy::unwrap_used, reason = "a failed test is what unwrap is for; helpers are not seen as tests")]

mod clusters;
mod cuts;

use std::collections::BTreeSet;

use async_trait::async_trait;
use replication::conformance::Cluster;
use replication::memory::MemoryCluster;
use replication::{AnyStore, NodeId, Payload};

use self::clusters::{ChannelCluster, QuicCluster, backup, gossip, local, raft, raft_subset};

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

/// Runs the suite on a cluster in one process, on the seeded network and in virtual time.
macro_rules! on_channel {
    ($name:ident, $cluster:expr) => {
        mod $name {
            use super::*;

            replication::conformance_suite!(
                #[tokio::test(start_paused = true)]
                $cluster.await
            );
        }
    };
}

/// Runs the suite on a cluster over QUIC on loopback.
macro_rules! on_quic {
    ($name:ident, $cluster:expr) => {
        mod $name {
            use super::*;

            replication::conformance_suite!(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                $cluster.await
            );
        }
    };
}

on_channel!(raft_inline_channel, ChannelCluster::start(raft(Payload::Inline)));
on_channel!(raft_digest_channel, ChannelCluster::start(raft(Payload::Digest)));
on_quic!(raft_inline_quic, QuicCluster::start(raft(Payload::Inline)));
on_quic!(raft_digest_quic, QuicCluster::start(raft(Payload::Digest)));

on_channel!(raft_inline_disk_channel, ChannelCluster::start_on_disk(raft(Payload::Inline)));
on_channel!(raft_digest_disk_channel, ChannelCluster::start_on_disk(raft(Payload::Digest)));
on_quic!(raft_inline_disk_quic, QuicCluster::start_on_disk(raft(Payload::Inline)));
on_quic!(raft_digest_disk_quic, QuicCluster::start_on_disk(raft(Payload::Digest)));

on_channel!(raft_subset_inline_channel, ChannelCluster::start(raft_subset(Payload::Inline)));
on_channel!(raft_subset_digest_channel, ChannelCluster::start(raft_subset(Payload::Digest)));
on_quic!(raft_subset_inline_quic, QuicCluster::start(raft_subset(Payload::Inline)));
on_quic!(raft_subset_digest_quic, QuicCluster::start(raft_subset(Payload::Digest)));

on_channel!(backup_channel, ChannelCluster::start(backup(2)));
on_quic!(backup_quic, QuicCluster::start(backup(2)));
on_channel!(backup_disk_channel, ChannelCluster::start_on_disk(backup(2)));
on_quic!(backup_disk_quic, QuicCluster::start_on_disk(backup(2)));

on_channel!(local_channel, ChannelCluster::start(local()));
on_quic!(local_quic, QuicCluster::start(local()));
on_channel!(local_disk_channel, ChannelCluster::start_on_disk(local()));

// A majority of the nodes holds what was acknowledged; one does.
on_channel!(gossip_channel, ChannelCluster::start(gossip(3, 200)));
on_quic!(gossip_quic, QuicCluster::start(gossip(3, 400)));
on_channel!(gossip_disk_channel, ChannelCluster::start_on_disk(gossip(3, 200)));
on_quic!(gossip_disk_quic, QuicCluster::start_on_disk(gossip(3, 400)));
on_channel!(gossip_one_holder_channel, ChannelCluster::start(gossip(1, 200)));
