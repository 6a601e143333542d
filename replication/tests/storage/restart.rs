//! Nodes that are ended and started again, one or all, on the seeded network under virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use replication::conformance::parameters;
use replication::raft::{Electorate, RaftConfig, RaftStore, Survivor};
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::transport::{Class, Frame, Transport, TransportError};
use replication::{
    Checkpoint, CheckpointId, CheckpointStore, CheckpointStoreExt, ConfigError, Digest, Epoch, Metadata,
    NodeId, Payload, Phase, Receipt, Silent, Site, Slot, Storage, StorageError, StoreError, Window,
};

use super::disk::Disk;

const RETAINED: usize = 4;
const CHECKPOINT_BYTES: usize = 30_000;

pub(crate) fn bytes(round: u64) -> Bytes {
    parameters(round, CHECKPOINT_BYTES)
}

pub(crate) fn id(epoch: Epoch, round: u64) -> CheckpointId {
    CheckpointId { epoch, round, phase: Phase::AggregateFit, slot: Slot::Global }
}

/// One node on its disk.
pub(crate) struct Member {
    pub(crate) store: Arc<RaftStore>,
    disk: Disk,
}

fn config(nodes: &BTreeSet<NodeId>, payload: Payload) -> RaftConfig {
    RaftConfig {
        nodes: nodes.clone(),
        electorate: Electorate::Everyone,
        payload,
        window: Window { from_ms: 300, to_ms: 600 },
        heartbeat_ms: 60,
        put_timeout_ms: 3000,
        retained: RETAINED,
        seed: 1,
    }
}

impl Member {
    async fn start(
        network: &ChannelNetwork,
        node: NodeId,
        config: RaftConfig,
        disk: Disk,
    ) -> Result<Self, ConfigError> {
        let storage = Storage::eager_on(disk.clone())?;
        let site = Site { storage: Some(storage), ..Site::new(network.join(node), Arc::new(Silent)) };
        Ok(Self { store: RaftStore::open(config, site).await?, disk })
    }

    /// A cluster of one.
    pub(crate) async fn start_alone(payload: Payload, disk: Disk) -> Result<Self, ConfigError> {
        let alone = BTreeSet::from([NodeId(1)]);
        let network = ChannelNetwork::new(1, LinkSpec::default(), alone.iter().copied());
        Self::start(&network, NodeId(1), config(&alone, payload), disk).await
    }
}

/// Writes `round` on the node that aggregates.
pub(crate) async fn put(member: &Member, epoch: Epoch, round: u64) -> Result<Receipt, StoreError> {
    member.store.put(Checkpoint::new(id(epoch, round), bytes(round), Metadata::new())).await
}

struct Cluster {
    network: ChannelNetwork,
    config: RaftConfig,
    members: BTreeMap<NodeId, Member>,
}

impl Cluster {
    async fn start(payload: Payload, seed: u64, disks: BTreeMap<NodeId, Disk>) -> Self {
        let nodes: BTreeSet<NodeId> = disks.keys().copied().collect();
        let link = LinkSpec { delay: Duration::from_millis(1), ..LinkSpec::default() };
        let network = ChannelNetwork::new(seed, link, nodes.iter().copied());
        let config = RaftConfig { seed, ..config(&nodes, payload) };
        let mut cluster = Self { network, config, members: BTreeMap::new() };
        for (node, disk) in disks {
            cluster.restart(node, disk).await;
        }
        cluster
    }

    async fn restart(&mut self, node: NodeId, disk: Disk) {
        let member = Member::start(&self.network, node, self.config.clone(), disk).await.unwrap();
        self.members.insert(node, member);
    }

    /// Cuts a node's power; returns what is left on its disk.
    async fn cut_power(&mut self, node: NodeId, seed: u64) -> Disk {
        let member = self.members.remove(&node).unwrap();
        member.disk.cut_power();
        self.network.crash(node);
        member.store.close().await;
        member.disk.after_power_loss(seed)
    }

    /// Waits until all that are up agree on an epoch after `before`.
    async fn epoch(&self, before: Option<Epoch>) -> Epoch {
        let agreed = async {
            loop {
                let seen: BTreeSet<Option<Epoch>> =
                    self.members.values().map(|member| *member.store.aggregator().borrow()).collect();
                if let [Some(epoch)] = seen.into_iter().collect::<Vec<_>>()[..]
                    && Some(epoch) > before
                    && self.members.contains_key(&epoch.node)
                {
                    return epoch;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), agreed).await.expect("an aggregator")
    }

    async fn put(&self, epoch: Epoch, round: u64) {
        put(&self.members[&epoch.node], epoch, round).await.unwrap();
    }
}

fn disks(nodes: u64) -> BTreeMap<NodeId, Disk> {
    (1..=nodes).map(|node| (NodeId(node), Disk::default())).collect()
}

#[tokio::test(start_paused = true)]
async fn everything_acknowledged_survives_a_power_loss_of_all_nodes() {
    for payload in [Payload::Inline, Payload::Digest] {
        for seed in 0..8 {
            let mut disks = disks(3);
            let mut before = None;
            let mut written: Vec<CheckpointId> = Vec::new();
            for life in 1..=4 {
                let mut cluster = Cluster::start(payload, seed * 10 + life, disks).await;
                assert!(
                    cluster.members.values().all(|member| member.store.guarantees().survives_full_restart)
                );
                let epoch = cluster.epoch(before).await;
                let leader = &cluster.members[&epoch.node].store;
                let latest = leader.latest().await.unwrap();
                assert_eq!(latest.as_ref().map(Checkpoint::id), written.last().copied(), "{payload}, {seed}");
                for known in written.iter().rev().take(RETAINED) {
                    let read = leader.get(*known).await.unwrap().expect("acknowledged");
                    assert_eq!(*read.parameters(), bytes(known.round));
                }
                for round in life * 10..life * 10 + 3 + seed {
                    cluster.put(epoch, round).await;
                    written.push(id(epoch, round));
                }
                before = Some(epoch);
                disks = BTreeMap::new();
                for node in (1..=3).map(NodeId) {
                    disks.insert(node, cluster.cut_power(node, seed + node.0).await);
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_under_its_id_votes_and_holds() {
    for payload in [Payload::Inline, Payload::Digest] {
        let mut cluster = Cluster::start(payload, 2, disks(3)).await;
        let mut epoch = cluster.epoch(None).await;
        let mut round = 0;
        for _ in 0..6 {
            // The aggregator loses power: the other two elect, and the third node's vote counts.
            round += 1;
            cluster.put(epoch, round).await;
            let old = epoch.node;
            let disk = cluster.cut_power(old, round).await;
            epoch = cluster.epoch(Some(epoch)).await;
            round += 1;
            cluster.put(epoch, round).await;
            cluster.restart(old, disk).await;
            assert_eq!(cluster.epoch(None).await, epoch, "a return disturbs nobody");
            let back = &cluster.members[&old].store;
            let caught_up = async {
                while back.held().map(|held| held.id.round) != Some(round) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), caught_up).await.expect("catches up");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_aggregates_by_what_the_disk_says() {
    let mut cluster = Cluster::start(Payload::Digest, 3, disks(3)).await;
    let epoch = cluster.epoch(None).await;
    cluster.put(epoch, 1).await;
    let follower = cluster.members.keys().copied().find(|node| *node != epoch.node).unwrap();
    let disk = cluster.cut_power(follower, 1).await;
    cluster.network.isolate(follower);
    cluster.restart(follower, disk).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(*cluster.members[&follower].store.aggregator().borrow(), None);
    cluster.network.heal();
    assert_eq!(cluster.epoch(None).await, epoch);
}

#[tokio::test(start_paused = true)]
async fn disk_and_memory_stay_bounded_over_many_rounds_and_restarts() {
    const ROUNDS: u64 = 400;
    for payload in [Payload::Inline, Payload::Digest] {
        let mut disk = Disk::default();
        let mut largest = 0;
        for life in 0..3 {
            let member = Member::start_alone(payload, disk.clone()).await.unwrap();
            let epoch = member.store.await_aggregator().await.unwrap();
            for round in 1..=ROUNDS {
                put(&member, epoch, life * ROUNDS + round).await.unwrap();
            }
            let held = member.store.held_bytes();
            assert!(held <= 2 * (RETAINED * CHECKPOINT_BYTES) as u64, "{payload}: {held} bytes in memory");
            member.store.close().await;
            largest = largest.max(disk.content().len());
            let rows = Storage::inline_on(Disk::holding(disk.content())).unwrap().load("blobs").unwrap();
            let kept: usize = rows.iter().map(|(_, bytes)| bytes.len()).sum();
            // The log keeps 8 MiB of inline bytes before it is compacted.
            let logged = if payload == Payload::Inline { 9 * 1024 * 1024 } else { 0 };
            assert!(kept <= logged + (RETAINED + 1) * CHECKPOINT_BYTES, "{payload}: {kept} bytes of blobs");
            disk = disk.after_power_loss(0);
        }
        let written = 3 * ROUNDS as usize * CHECKPOINT_BYTES;
        assert!(largest < 32 * 1024 * 1024 && largest < written, "{payload}: a file of {largest} bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_of_another_node_or_cluster_is_refused() {
    let disk = Disk::default();
    Member::start_alone(Payload::Digest, disk.clone()).await.unwrap().store.close().await;
    let two: BTreeSet<NodeId> = [NodeId(1), NodeId(2)].into();
    for (node, nodes) in [(NodeId(1), two.clone()), (NodeId(2), two)] {
        let network = ChannelNetwork::new(1, LinkSpec::default(), nodes.iter().copied());
        let started = Member::start(&network, node, config(&nodes, Payload::Digest), disk.clone()).await;
        let error = started.err().expect("refused");
        assert!(
            matches!(&error, ConfigError::Storage(StorageError::OtherOwner { found: NodeId(1), .. })),
            "{error}"
        );
        assert!(error.to_string().contains("give this node its own file"), "{error}");
    }
}

/// What the wire calls them.
const VOTE: u8 = 2;
const BLOB_PUSH: u8 = 16;

/// Asks `node` for its vote for `from` in term 5; whether it was given.
async fn asks_for_a_vote(from: &Arc<dyn Transport>, node: NodeId) -> bool {
    type Vote = (u64, Option<u64>, bool);
    let vote: Vote = (5, Some(from.local().0), false);
    let head = postcard::to_stdvec(&(vote, None::<u8>, false)).unwrap();
    // A connection to the node's earlier life ends first.
    let answer = loop {
        match from.request(node, Class::Election, Frame::new(VOTE, head.clone())).await {
            Ok(answer) => break answer,
            Err(TransportError::Refused { reason, .. }) => panic!("{reason}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let (_, granted, _): (Vote, bool, Option<u8>) = postcard::from_bytes(&answer.head).unwrap();
    granted
}

#[tokio::test(start_paused = true)]
async fn a_vote_and_pushed_bytes_are_on_disk_before_they_are_answered() {
    let nodes: BTreeSet<NodeId> = (1..=3).map(NodeId).collect();
    let voter = NodeId(3);
    for seed in 0..4 {
        let network = ChannelNetwork::new(seed, LinkSpec::default(), nodes.iter().copied());
        let candidates = [network.join(NodeId(1)), network.join(NodeId(2))];
        let disk = Disk::default();
        let member =
            Member::start(&network, voter, config(&nodes, Payload::Digest), disk.clone()).await.unwrap();
        assert!(asks_for_a_vote(&candidates[0], voter).await);
        disk.cut_power();
        member.store.close().await;
        let disk = disk.after_power_loss(seed);
        let member =
            Member::start(&network, voter, config(&nodes, Payload::Digest), disk.clone()).await.unwrap();
        assert!(!asks_for_a_vote(&candidates[1], voter).await, "it voted already");

        let head = postcard::to_stdvec(&Digest::of(&bytes(1))).unwrap();
        let push = Frame::new(BLOB_PUSH, head).with_segment(bytes(1));
        candidates[1].request(voter, Class::Blob, push).await.unwrap();
        disk.cut_power();
        member.store.close().await;
        let found = Storage::inline_on(disk.after_power_loss(seed)).unwrap().load("blobs").unwrap();
        assert_eq!(found.iter().map(|(_, found)| found).collect::<Vec<_>>(), [&bytes(1)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_group_goes_on_from_one_survivor_when_the_majority_is_gone() {
    for payload in [Payload::Inline, Payload::Digest] {
        let mut cluster = Cluster::start(payload, 5, disks(3)).await;
        let epoch = cluster.epoch(None).await;
        // More than is retained, and more than one log holds.
        for round in 1..=12 {
            cluster.put(epoch, round).await;
        }
        let mut left = BTreeMap::new();
        for node in [1, 2, 3].map(NodeId) {
            left.insert(node, cluster.cut_power(node, 1).await);
        }
        let survivor = left.remove(&epoch.node).unwrap();
        let storage = Storage::inline_on(survivor).unwrap();
        let survivor = Survivor::read(&storage).await.unwrap().unwrap();
        assert_eq!(survivor.newest().unwrap().id, id(epoch, 12));
        assert_eq!((survivor.term(), survivor.voters().len()), (epoch.counter, 3));
        assert!(survivor.lacking().is_empty());

        let mut fresh = disks(3);
        for (node, disk) in &mut fresh {
            let storage = Storage::inline_on(disk.clone()).unwrap();
            survivor.seed(&storage, *node).await.unwrap();
            let again = survivor.seed(&storage, *node).await.unwrap_err();
            assert!(again.to_string().contains("should be empty"), "{again}");
            storage.close().await;
        }
        let cluster = Cluster::start(payload, 6, fresh).await;
        let later = cluster.epoch(Some(epoch)).await;
        let latest = cluster.members[&later.node].store.latest().await.unwrap().unwrap();
        assert_eq!((latest.id(), latest.parameters()), (id(epoch, 12), &bytes(12)));
        cluster.put(later, 13).await;
    }
}

#[tokio::test]
async fn an_empty_storage_is_no_survivor() {
    let storage = Storage::inline_on(Disk::default()).unwrap();
    assert!(Survivor::read(&storage).await.unwrap().is_none());
}
