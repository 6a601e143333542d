//! Nodes that join a cluster without a log and leave it: gossip, and primary and backups. On the seeded network, under virtual
//! time. What becomes of it under faults is simulated (`tests/simulation`).

#![allow(clippy::unwrap_used, reason = "a failed test is what unwrap is for; helpers are not seen as tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use replication::backup::BackupConfig;
use replication::conformance::{parameters, until};
use replication::gossip::{Detector, GossipConfig};
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::{
    AnyStore, Backend, Checkpoint, CheckpointId, DEFAULT_RETAINED, Epoch, Guarantee, Metadata, NodeId,
    Outcome, Phase, Silent, Site, Slot, StoreError, Window, open,
};

const CHECKPOINT_BYTES: usize = 248_024;

fn gossip(nodes: u64, holders: u32) -> Backend {
    Backend::Gossip(GossipConfig {
        nodes: (1..=nodes).map(NodeId).collect(),
        holders,
        interval_ms: 100,
        fan_out: 2,
        phi_milli: 6000,
        detector: Detector::Phi,
        put_timeout_ms: 3000,
        retained: DEFAULT_RETAINED,
        seed: 1,
    })
}

fn backup(nodes: u64, backups: u32) -> Backend {
    Backend::Backup(BackupConfig {
        nodes: (1..=nodes).map(NodeId).collect(),
        backups,
        window: Window { from_ms: 300, to_ms: 600 },
        heartbeat_ms: 60,
        put_timeout_ms: 3000,
        retained: DEFAULT_RETAINED,
        seed: 1,
    })
}

struct Cluster {
    network: ChannelNetwork,
    backend: Backend,
    stores: BTreeMap<NodeId, AnyStore>,
    acknowledged: Vec<CheckpointId>,
}

impl Cluster {
    async fn start(nodes: u64, backend: Backend) -> Self {
        let link = LinkSpec { delay: Duration::from_millis(1), ..LinkSpec::default() };
        let network = ChannelNetwork::new(7, link, (1..=nodes).map(NodeId));
        let mut cluster = Self { network, backend, stores: BTreeMap::new(), acknowledged: Vec::new() };
        for node in 1..=nodes {
            let site = Site::new(cluster.network.join(NodeId(node)), Arc::new(Silent));
            cluster.stores.insert(NodeId(node), open(cluster.backend.clone(), site).await.unwrap());
        }
        cluster
    }

    async fn join(&mut self, node: u64, replaces: Option<u64>) {
        let node = NodeId(node);
        let mut backend = self.backend.clone();
        match &mut backend {
            Backend::Gossip(config) => config.nodes.insert(node),
            Backend::Backup(config) => config.nodes.insert(node),
            other => unreachable!("{other:?}"),
        };
        let site = Site::new(self.network.join(node), Arc::new(Silent));
        let site = Site { joins: true, replaces: replaces.map(NodeId), ..site };
        self.stores.insert(node, open(backend, site).await.unwrap());
    }

    fn epoch(&self) -> Option<Epoch> {
        let newest = self.stores.values().filter_map(|store| *store.aggregator().borrow()).max();
        newest.filter(|epoch| {
            self.stores.get(&epoch.node).is_some_and(|store| *store.aggregator().borrow() == newest)
        })
    }

    /// Waits until the aggregator could hand over to exactly the others of `members`.
    async fn members<const N: usize>(&self, members: [u64; N]) {
        let among = || {
            let Some(epoch) = self.epoch() else { return false };
            let mut known = self.stores[&epoch.node].candidates();
            known.push(epoch.node);
            known.sort();
            known == members.map(NodeId)
        };
        until(&format!("members {members:?}"), among).await;
    }

    /// Writes the next round, on whoever aggregates.
    async fn put(&mut self) -> CheckpointId {
        let round = self.acknowledged.len() as u64 + 1;
        loop {
            until("an aggregator", || self.epoch().is_some()).await;
            let epoch = self.epoch().unwrap();
            let id = CheckpointId { epoch, round, phase: Phase::AggregateFit, slot: Slot::Global };
            let store = self.stores[&epoch.node].clone();
            let before = store.latest().await.unwrap().map(|latest| latest.id());
            assert_eq!(before, self.acknowledged.last().copied(), "it continues from the newest");
            let checkpoint = Checkpoint::new(id, parameters(round, CHECKPOINT_BYTES), Metadata::new());
            match store.put(checkpoint).await {
                Ok(receipt) => {
                    let Guarantee::Holders { holders } = receipt.guarantee else { panic!("{receipt:?}") };
                    assert!(receipt.holders.len() >= holders as usize);
                    self.acknowledged.push(id);
                    return id;
                }
                Err(error) => assert_eq!(error.outcome(), Outcome::Unknown, "{error}"),
            }
        }
    }

    async fn crash(&mut self, node: u64) {
        self.network.crash(NodeId(node));
        self.stores.remove(&NodeId(node)).unwrap().close().await;
    }

    async fn leave(&mut self, node: u64) {
        self.stores[&NodeId(node)].leave().await.unwrap();
        self.crash(node).await;
    }

    fn holders(&self) -> Guarantee {
        self.stores[&self.epoch().unwrap().node].guarantees().acknowledged
    }

    /// Everything acknowledged and retained is read on every node.
    async fn all_is_there(&self) {
        let retained = self.acknowledged.iter().rev().take(DEFAULT_RETAINED);
        for id in retained {
            for (node, store) in &self.stores {
                let found = store.get(*id).await;
                assert!(matches!(&found, Ok(Some(found)) if found.id() == *id), "{id} on {node}: {found:?}");
            }
        }
    }
}

async fn five_become_seven_and_then_four(backend: Backend, holders: [u32; 3]) {
    let holders = holders.map(|holders| Guarantee::Holders { holders });
    let mut cluster = Cluster::start(5, backend).await;
    for _ in 0..4 {
        cluster.put().await;
    }
    assert_eq!(cluster.holders(), holders[0]);
    cluster.join(6, None).await;
    cluster.put().await;
    cluster.join(7, None).await;
    cluster.members([1, 2, 3, 4, 5, 6, 7]).await;
    cluster.put().await;
    assert_eq!(cluster.holders(), holders[1]);
    // The aggregator first, which hands over, and then those that come after it in any order of succession.
    let first = cluster.epoch().unwrap().node.0;
    cluster.leave(first).await;
    cluster.put().await;
    let second = cluster.epoch().unwrap().node.0;
    let others: Vec<u64> = (1..=7).filter(|node| ![first, second].contains(node)).collect();
    for node in &others[..2] {
        cluster.leave(*node).await;
    }
    let mut left = [second, others[2], others[3], others[4]];
    left.sort_unstable();
    cluster.members(left).await;
    assert_eq!(cluster.holders(), holders[2]);
    cluster.all_is_there().await;
    cluster.put().await;
    // Four tolerate a loss, whatever was there before.
    let aggregator = cluster.epoch().unwrap().node.0;
    cluster.crash(aggregator).await;
    until("a successor", || cluster.epoch().is_some_and(|epoch| epoch.node.0 != aggregator)).await;
    cluster.put().await;
    cluster.all_is_there().await;
}

#[tokio::test(start_paused = true)]
async fn five_become_seven_and_then_four_on_gossip() {
    five_become_seven_and_then_four(gossip(5, 3), [3, 4, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn five_become_seven_and_then_four_on_gossip_with_few_holders() {
    five_become_seven_and_then_four(gossip(5, 2), [2, 2, 2]).await;
}

#[tokio::test(start_paused = true)]
async fn five_become_seven_and_then_four_on_backups() {
    five_become_seven_and_then_four(backup(5, 2), [3, 3, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_node_takes_the_place_of_one_that_died() {
    for backend in [gossip(3, 2), backup(3, 1)] {
        let mut cluster = Cluster::start(3, backend).await;
        cluster.put().await;
        // First a worker, then whoever aggregates.
        let aggregator = cluster.epoch().unwrap().node.0;
        let worker = (1..=3).find(|node| *node != aggregator).unwrap();
        let stays = (1..=3).find(|node| ![aggregator, worker].contains(node)).unwrap();
        cluster.crash(worker).await;
        cluster.join(4, Some(worker)).await;
        let mut members = [aggregator, stays, 4];
        members.sort_unstable();
        cluster.members(members).await;
        cluster.put().await;
        cluster.crash(aggregator).await;
        cluster.join(5, Some(aggregator)).await;
        cluster.members([stays, 4, 5]).await;
        cluster.put().await;
        cluster.all_is_there().await;
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_leaves_whom_a_promise_needs() {
    for (backend, needed) in [(gossip(3, 3), 3), (backup(3, 2), 3)] {
        let mut cluster = Cluster::start(3, backend).await;
        cluster.put().await;
        for node in 1..=3 {
            let refused = cluster.stores[&NodeId(node)].leave().await.unwrap_err();
            assert_eq!(refused, StoreError::TooFewWouldBeLeft { left: 2, needed });
            assert_eq!(refused.outcome(), Outcome::DidNotHappen);
        }
        cluster.put().await;
        // With one more, one may go.
        cluster.join(4, None).await;
        cluster.members([1, 2, 3, 4]).await;
        cluster.leave(2).await;
        cluster.put().await;
        cluster.all_is_there().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_minority_takes_in_nobody_where_a_majority_is_promised() {
    let mut cluster = Cluster::start(5, gossip(5, 3)).await;
    cluster.put().await;
    let aggregator = cluster.epoch().unwrap().node;
    let mate = (1..=5).map(NodeId).find(|node| *node != aggregator).unwrap();
    let others: Vec<NodeId> = (1..=5).map(NodeId).filter(|node| ![aggregator, mate].contains(node)).collect();
    cluster.join(6, None).await;
    cluster.network.partition(&[&[aggregator, mate, NodeId(6)], &others]);
    until("another aggregator", || cluster.epoch().is_some_and(|epoch| epoch.node != aggregator)).await;
    let id = cluster.put().await;
    assert!(others.contains(&id.epoch.node), "the majority goes on");
    cluster.network.heal();
    cluster.members([1, 2, 3, 4, 5, 6]).await;
    let id = cluster.put().await;
    for store in cluster.stores.values() {
        assert_eq!(store.latest().await.unwrap().unwrap().id(), id);
    }
}
