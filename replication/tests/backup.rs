//! What only primary and backups can be asked: what a partition costs without consensus, who succeeds whom, and who
//! carries the bytes. On the seeded network, under virtual time.

#![allow(clippy::unwrap_used, reason = "a failed test is what unwrap is for; helpers are not seen as tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use replication::backup::{BackupConfig, BackupStore};
use replication::conformance::parameters;
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::transport::{Class, Transport};
use replication::{
    Blob, Carrier, Checkpoint, CheckpointId, CheckpointStore, DEFAULT_RETAINED, Epoch, Guarantee, Metadata,
    NodeId, Observer, Phase, Site, Slot, StoreEvent, Window,
};
use tokio::sync::watch;

/// Size of the paper's model.
const CHECKPOINT_BYTES: usize = 248_024;

#[derive(Clone)]
struct Notebook(watch::Sender<Vec<StoreEvent>>);

impl Observer for Notebook {
    fn observe(&self, event: StoreEvent) {
        self.0.send_modify(|events| events.push(event));
    }
}

struct Member {
    store: Arc<BackupStore>,
    transport: Arc<dyn Transport>,
    events: Notebook,
}

struct Cluster {
    network: ChannelNetwork,
    members: BTreeMap<NodeId, Member>,
}

impl Cluster {
    async fn start(nodes: u64, backups: u32) -> Self {
        let ids: BTreeSet<NodeId> = (1..=nodes).map(NodeId).collect();
        let network = ChannelNetwork::new(3, LinkSpec::default(), ids.iter().copied());
        let mut members = BTreeMap::new();
        for node in &ids {
            let config = BackupConfig {
                nodes: ids.clone(),
                backups,
                window: Window { from_ms: 300, to_ms: 600 },
                heartbeat_ms: 60,
                put_timeout_ms: 3000,
                retained: DEFAULT_RETAINED,
                seed: 3,
            };
            let transport = network.join(*node);
            let events = Notebook(watch::Sender::new(Vec::new()));
            let site = Site::new(transport.clone(), Arc::new(events.clone()));
            let store = BackupStore::open(config, site).await.unwrap();
            members.insert(*node, Member { store, transport, events });
        }
        Self { network, members }
    }

    fn store(&self, node: u64) -> &BackupStore {
        &self.members[&NodeId(node)].store
    }

    /// Waits until every node of `among` follows `epoch`.
    async fn follows(&self, among: impl IntoIterator<Item = u64>, epoch: Epoch) {
        for node in among {
            let mut aggregator = self.store(node).aggregator();
            let reached = aggregator.wait_for(|now| *now == Some(epoch));
            tokio::time::timeout(Duration::from_secs(60), reached).await.unwrap().unwrap();
        }
    }

    fn noted(&self, wanted: &StoreEvent) -> Vec<u64> {
        let noted = |member: &&Member| member.events.0.borrow().contains(wanted);
        self.members.values().filter(noted).map(|member| member.transport.local().0).collect()
    }
}

fn epoch(counter: u64, node: u64) -> Epoch {
    Epoch { counter, node: NodeId(node) }
}

fn checkpoint(epoch: Epoch, round: u64) -> Checkpoint {
    let id = CheckpointId { epoch, round, phase: Phase::AggregateFit, slot: Slot::Global };
    Checkpoint::new(id, parameters(round * 1000 + epoch.counter, CHECKPOINT_BYTES), Metadata::new())
}

#[tokio::test(start_paused = true)]
async fn a_partition_gives_two_aggregators_and_healing_supersedes_what_one_acknowledged() {
    let cluster = Cluster::start(6, 2).await;
    let (first, second) = (epoch(1, 1), epoch(2, 4));
    cluster.follows(1..=6, first).await;
    // Node 4 knows round 1 although it holds nothing: it has to take it over from somebody to continue.
    cluster.store(1).put(checkpoint(first, 1)).await.unwrap();
    let sides = [[1, 2, 3].map(NodeId), [4, 5, 6].map(NodeId)];
    cluster.network.partition(&[&sides[0], &sides[1]]);
    cluster.follows(4..=6, second).await;

    let loser = cluster.store(1).put(checkpoint(first, 2)).await.unwrap();
    let winner = cluster.store(4).put(checkpoint(second, 1)).await.unwrap();
    for receipt in [&loser, &winner] {
        assert_eq!(receipt.guarantee, Guarantee::Holders { holders: 3 });
    }
    assert_eq!(cluster.store(3).latest().await.unwrap(), Some(checkpoint(first, 2)));

    cluster.network.heal();
    cluster.follows(1..=6, second).await;
    assert_eq!(cluster.noted(&StoreEvent::RivalAggregators { stays: second, yields: first }), [1]);
    // What it cannot promise: rounds 1 and 2 were acknowledged, and the job goes on as if they had not been.
    let refused = cluster.store(1).put(checkpoint(first, 3)).await.unwrap_err();
    assert_eq!(refused, replication::StoreError::Fenced { epoch: first, current: Some(second) });
    cluster.store(4).put(checkpoint(second, 2)).await.unwrap();
    for node in 1..=6 {
        assert_eq!(cluster.store(node).latest().await.unwrap(), Some(checkpoint(second, 2)), "node {node}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_succession_follows_the_ids_around() {
    let cluster = Cluster::start(5, 2).await;
    let mut at = epoch(1, 1);
    cluster.follows(1..=5, at).await;
    let named = cluster.store(1).step_down(Some(NodeId(4))).await.unwrap();
    assert_eq!(named, epoch(2, 4));
    cluster.follows(1..=5, named).await;
    cluster.store(4).put(checkpoint(named, 1)).await.unwrap();
    for (dead, heir) in [(4, 5), (5, 1)] {
        cluster.network.crash(NodeId(dead));
        at = epoch(named.counter + dead - 3, heir);
        cluster.follows(1..=3, at).await;
        assert_eq!(cluster.store(heir).latest().await.unwrap(), Some(checkpoint(named, 1)));
    }
    assert!(cluster.noted(&StoreEvent::RivalAggregators { stays: named, yields: epoch(1, 1) }).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_alone_misses_the_aggregator_deposes_nobody() {
    let cluster = Cluster::start(5, 2).await;
    cluster.follows(1..=5, epoch(1, 1)).await;
    cluster.network.cut(NodeId(1), NodeId(2));
    let mut events = cluster.members[&NodeId(2)].events.0.subscribe();
    let suspicions = |events: &Vec<StoreEvent>| {
        events.iter().filter(|event| matches!(event, StoreEvent::Suspected { .. })).count()
    };
    events.wait_for(|events| suspicions(events) >= 5).await.unwrap();
    cluster.network.heal();
    cluster.store(1).put(checkpoint(epoch(1, 1), 1)).await.unwrap();
    cluster.follows(1..=5, epoch(1, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn bytes_that_the_caller_carries_are_sent_only_where_they_do_not_arrive() {
    let cluster = Cluster::start(5, 2).await;
    cluster.follows(1..=5, epoch(1, 1)).await;
    let bytes_sent = || {
        let traffic = cluster.members[&NodeId(1)].transport.traffic();
        traffic
            .frames
            .iter()
            .find(|(class, _)| *class == Class::Blob)
            .map_or(0, |(_, count)| count.sent_bytes)
    };
    let give = |node: u64, written: &Checkpoint| {
        cluster.store(node).provide(Blob::new(Bytes::copy_from_slice(written.parameters())));
    };
    let first = checkpoint(epoch(1, 1), 1);
    give(2, &first);
    let putting = cluster.store(1).put_carried(first.clone(), Carrier::Caller);
    let giving = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        give(3, &first);
    };
    let (receipt, ()) = tokio::join!(putting, giving);
    assert_eq!(receipt.unwrap().holders, [1, 2, 3].map(NodeId));
    assert_eq!(bytes_sent(), 0);

    let second = checkpoint(epoch(1, 1), 2);
    give(2, &second);
    let receipt = cluster.store(1).put_carried(second.clone(), Carrier::Caller).await.unwrap();
    assert_eq!(receipt.holders, [1, 2, 3].map(NodeId));
    let sent = bytes_sent();
    assert!((CHECKPOINT_BYTES as u64..CHECKPOINT_BYTES as u64 * 11 / 10).contains(&sent), "{sent}");
    assert_eq!(cluster.store(3).latest().await.unwrap(), Some(second));
}
