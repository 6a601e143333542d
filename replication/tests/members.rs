//! Nodes that join a group that runs and leave it on purpose, under both electorates and payloads. On the seeded network,
//! under virtual time.

#![allow(clippy::unwrap_used, reason = "a failed test is what unwrap is for; helpers are not seen as tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use replication::conformance::{parameters, until};
use replication::raft::{Electorate, RaftConfig, RaftStore};
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::{
    Checkpoint, CheckpointId, CheckpointStore, DEFAULT_RETAINED, Epoch, Guarantee, Metadata, NodeId,
    Observer, Outcome, Payload, Phase, Site, Slot, StoreError, StoreEvent, Window,
};
use tokio::sync::watch;

const CHECKPOINT_BYTES: usize = 248_024;
const SUBSET: Electorate = Electorate::MostSuitable { voters: 3, grace_ms: 5000 };

#[derive(Clone)]
struct Notebook(watch::Sender<Vec<StoreEvent>>);

impl Observer for Notebook {
    fn observe(&self, event: StoreEvent) {
        self.0.send_modify(|events| events.push(event));
    }
}

struct Cluster {
    network: ChannelNetwork,
    config: RaftConfig,
    stores: BTreeMap<NodeId, Arc<RaftStore>>,
    events: BTreeMap<NodeId, Notebook>,
    round: u64,
}

impl Cluster {
    async fn start(nodes: u64, electorate: Electorate, payload: Payload, seed: u64) -> Self {
        let config = RaftConfig {
            nodes: (1..=nodes).map(NodeId).collect(),
            electorate,
            payload,
            window: Window { from_ms: 300, to_ms: 600 },
            heartbeat_ms: 60,
            put_timeout_ms: 3000,
            retained: DEFAULT_RETAINED,
            seed,
        };
        let link = LinkSpec { delay: Duration::from_millis(1), ..LinkSpec::default() };
        let network = ChannelNetwork::new(seed, link, config.nodes.iter().copied());
        let mut cluster =
            Self { network, config, stores: BTreeMap::new(), events: BTreeMap::new(), round: 0 };
        for node in 1..=nodes {
            cluster.open(node, false, None).await;
        }
        cluster
    }

    async fn open(&mut self, node: u64, joins: bool, replaces: Option<u64>) {
        let node = NodeId(node);
        let mut config = self.config.clone();
        config.nodes.insert(node);
        let events = Notebook(watch::Sender::new(Vec::new()));
        let mut site = Site::new(self.network.join(node), Arc::new(events.clone()));
        (site.joins, site.replaces) = (joins, replaces.map(NodeId));
        // The higher, the more suitable.
        site.resources.cpu_mb_per_s = 1000 * node.0;
        self.stores.insert(node, RaftStore::open(config, site).await.unwrap());
        self.events.insert(node, events);
    }

    fn store(&self, node: u64) -> &Arc<RaftStore> {
        &self.stores[&NodeId(node)]
    }

    /// Waits until the leader tells of these voters.
    async fn voters<const N: usize>(&self, wanted: [u64; N]) {
        let wanted: Vec<NodeId> = wanted.map(NodeId).into();
        until(&format!("voters {wanted:?}"), || {
            let Some(epoch) = self.epoch() else { return false };
            let Some(events) = self.events.get(&epoch.node) else { return false };
            let events = events.0.borrow();
            let newest = events.iter().rev().find_map(|event| match event {
                StoreEvent::VotersChanged { voters, .. } => Some(voters.clone()),
                _ => None,
            });
            newest.is_some_and(|voters| voters == wanted)
        })
        .await;
    }

    /// The newest epoch that any node knows.
    fn epoch(&self) -> Option<Epoch> {
        self.stores.values().filter_map(|store| *store.aggregator().borrow()).max()
    }

    async fn put(&mut self) -> CheckpointId {
        self.round += 1;
        let leads = || self.epoch().is_some_and(|epoch| self.leads(epoch));
        until("a leader", leads).await;
        let epoch = self.epoch().unwrap();
        let id = CheckpointId { epoch, round: self.round, phase: Phase::AggregateFit, slot: Slot::Global };
        let bytes = parameters(self.round, CHECKPOINT_BYTES);
        self.stores[&epoch.node].put(Checkpoint::new(id, bytes, Metadata::new())).await.unwrap();
        id
    }

    fn leads(&self, epoch: Epoch) -> bool {
        self.stores.get(&epoch.node).is_some_and(|store| *store.aggregator().borrow() == Some(epoch))
    }

    async fn holds(&self, node: u64, id: CheckpointId) {
        let held = || self.store(node).held().is_some_and(|held| held.id == id);
        until(&format!("node {node} to hold {id}"), held).await;
    }

    async fn leave(&mut self, node: u64) {
        self.store(node).leave().await.unwrap();
        self.crash(node).await;
    }

    async fn crash(&mut self, node: u64) {
        self.network.crash(NodeId(node));
        self.events.remove(&NodeId(node));
        self.stores.remove(&NodeId(node)).unwrap().close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn five_become_seven_and_then_four() {
    for payload in [Payload::Inline, Payload::Digest] {
        let mut cluster = Cluster::start(5, Electorate::Everyone, payload, 1).await;
        // More than the log keeps: whoever joins needs a snapshot.
        for _ in 0..40 {
            cluster.put().await;
        }
        for node in [6, 7] {
            cluster.open(node, true, None).await;
            let id = cluster.put().await;
            cluster.holds(node, id).await;
        }
        cluster.voters([1, 2, 3, 4, 5, 6, 7]).await;
        cluster.put().await;
        let leader = cluster.epoch().unwrap().node.0;
        let guarantee = cluster.store(leader).guarantees().acknowledged;
        assert_eq!(guarantee, Guarantee::Majority { of: 7 });
        // The leader first, which hands over.
        let stays: Vec<u64> = (1..=7).filter(|node| *node != leader).collect();
        for node in [leader, stays[0], stays[1]] {
            cluster.leave(node).await;
        }
        let left = [stays[2], stays[3], stays[4], stays[5]];
        cluster.voters(left).await;
        let id = cluster.put().await;
        for node in left {
            cluster.holds(node, id).await;
            assert_eq!(cluster.store(node).latest().await.unwrap().unwrap().id(), id);
        }
        // Four tolerate the loss of one, whatever was there before.
        assert_eq!(cluster.store(left[0]).guarantees().tolerated_losses, 1);
        let leader = cluster.epoch().unwrap();
        cluster.crash(leader.node.0).await;
        cluster.put().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_joins_outlives_those_that_founded() {
    let mut cluster = Cluster::start(3, Electorate::Everyone, Payload::Digest, 2).await;
    cluster.put().await;
    cluster.open(9, true, None).await;
    cluster.voters([1, 2, 3, 9]).await;
    for node in [1, 2] {
        cluster.leave(node).await;
    }
    cluster.open(10, true, None).await;
    cluster.voters([3, 9, 10]).await;
    let id = cluster.put().await;
    cluster.leave(3).await;
    assert_eq!(cluster.store(9).latest().await.unwrap().unwrap().id(), id);
    cluster.put().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_node_takes_the_place_of_one_that_died_and_of_none_that_lives() {
    let mut cluster = Cluster::start(3, Electorate::Everyone, Payload::Inline, 3).await;
    cluster.put().await;
    let follower = (1..=3).find(|node| cluster.epoch().unwrap().node.0 != *node).unwrap();
    cluster.open(4, true, Some(follower)).await;
    // Many times as long as it takes to join.
    tokio::time::sleep(Duration::from_secs(10)).await;
    cluster.put().await;
    let leader = cluster.epoch().unwrap().node.0;
    let candidates = cluster.store(leader).candidates();
    assert!(!candidates.contains(&NodeId(4)), "{candidates:?} as long as {follower} lives");
    cluster.crash(follower).await;
    let voters: Vec<u64> = (1..=4).filter(|node| *node != follower).collect();
    cluster.voters([voters[0], voters[1], voters[2]]).await;
    let id = cluster.put().await;
    cluster.holds(4, id).await;
}

#[tokio::test(start_paused = true)]
async fn a_member_that_lost_its_state_is_not_taken_in_under_its_old_id() {
    let mut cluster = Cluster::start(3, Electorate::Everyone, Payload::Inline, 4).await;
    cluster.put().await;
    let leader = cluster.epoch().unwrap().node;
    let follower = (1..=3).find(|node| leader.0 != *node).unwrap();
    cluster.network.crash(NodeId(follower));
    cluster.stores.remove(&NodeId(follower)).unwrap().close().await;
    // It asks before the leader reaches it: its log is empty.
    cluster.network.cut(leader, NodeId(follower));
    cluster.open(follower, true, None).await;
    cluster.network.heal();
    let refused = || {
        cluster.events[&leader].0.borrow().iter().any(|event| {
            matches!(event, StoreEvent::Refused { from, reason }
                if from.0 == follower && reason.contains("lost its state"))
        })
    };
    until("a refusal", refused).await;
}

#[tokio::test(start_paused = true)]
async fn a_join_goes_on_under_the_next_leader() {
    let mut cluster = Cluster::start(5, Electorate::Everyone, Payload::Inline, 5).await;
    for _ in 0..20 {
        cluster.put().await;
    }
    let leader = cluster.epoch().unwrap().node.0;
    cluster.open(6, true, None).await;
    // It has heard of the leader, so it is a learner: it does not vote yet.
    until("the learner", || cluster.store(6).aggregator().borrow().is_some()).await;
    cluster.crash(leader).await;
    cluster.voters([1, 2, 3, 4, 5, 6]).await;
    let id = cluster.put().await;
    cluster.holds(6, id).await;
}

#[tokio::test(start_paused = true)]
async fn among_the_most_suitable_a_voter_that_leaves_is_replaced_and_a_node_that_joins_may_be_chosen() {
    for payload in [Payload::Inline, Payload::Digest] {
        let mut cluster = Cluster::start(5, SUBSET, payload, 6).await;
        cluster.voters([3, 4, 5]).await;
        cluster.put().await;
        for node in [6, 7] {
            cluster.open(node, true, None).await;
            until("an aggregator", || cluster.store(node).aggregator().borrow().is_some()).await;
        }
        let id = cluster.put().await;
        assert_eq!(cluster.store(7).latest().await.unwrap().unwrap().id(), id, "it reads from a voter");
        assert_eq!(cluster.store(7).held(), None);
        let leader = cluster.epoch().unwrap().node.0;
        cluster.leave(leader).await;
        let stays: Vec<u64> = [3, 4, 5].into_iter().filter(|node| *node != leader).collect();
        cluster.voters([stays[0], stays[1], 7]).await;
        let id = cluster.put().await;
        cluster.holds(7, id).await;
        // A node outside of the group has nothing to hand over.
        cluster.leave(1).await;
        let follower = stays.into_iter().find(|node| cluster.epoch().unwrap().node.0 != *node).unwrap();
        cluster.leave(follower).await;
        let other = [3, 4, 5].into_iter().find(|node| ![leader, follower].contains(node)).unwrap();
        cluster.voters([other, 6, 7]).await;
        cluster.put().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_node_cannot_leave_and_neither_can_one_without_a_majority() {
    let mut cluster = Cluster::start(2, Electorate::Everyone, Payload::Inline, 7).await;
    cluster.put().await;
    let leader = cluster.epoch().unwrap().node.0;
    let other = 3 - leader;
    cluster.leave(leader).await;
    until("the other to lead", || cluster.epoch().is_some_and(|epoch| epoch.node.0 == other)).await;
    cluster.put().await;
    let refused = cluster.store(other).leave().await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused}");
    assert_eq!(refused.outcome(), Outcome::Unknown);
    cluster.put().await;
    let nodes: BTreeSet<NodeId> = cluster.stores.keys().copied().collect();
    assert_eq!(nodes, BTreeSet::from([NodeId(other)]));
}
