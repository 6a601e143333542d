//! Raft among the most suitable nodes: who votes, what the others hold and read, who replaces a voter that stays away. On
//! the seeded network, under virtual time.

#![allow(clippy::unwrap_used, reason = "a failed test is what unwrap is for; helpers are not seen as tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use replication::conformance::parameters;
use replication::raft::{Electorate, RaftConfig, RaftStore};
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::transport::{Class, Frame, Transport, TransportError};
use replication::{
    Checkpoint, CheckpointId, CheckpointStore, ConfigError, DEFAULT_RETAINED, Digest, Epoch, Metadata,
    NodeId, Observer, Payload, Phase, Site, Slot, StoreEvent, Window,
};
use tokio::sync::watch;

/// Size of the paper's model.
const CHECKPOINT_BYTES: usize = 248_024;
const GRACE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone)]
struct Notebook(watch::Sender<Vec<StoreEvent>>);

impl Observer for Notebook {
    fn observe(&self, event: StoreEvent) {
        self.0.send_modify(|events| events.push(event));
    }
}

struct Member {
    store: Arc<RaftStore>,
    transport: Arc<dyn Transport>,
    events: Notebook,
}

struct Cluster {
    network: ChannelNetwork,
    members: BTreeMap<NodeId, Member>,
}

fn config(nodes: u64, voters: u32, payload: Payload, seed: u64) -> RaftConfig {
    RaftConfig {
        nodes: (1..=nodes).map(NodeId).collect(),
        electorate: Electorate::MostSuitable { voters, grace_ms: GRACE.as_millis() as u64 },
        payload,
        window: Window { from_ms: 300, to_ms: 600 },
        heartbeat_ms: 60,
        put_timeout_ms: 3000,
        retained: DEFAULT_RETAINED,
        seed,
    }
}

fn id(epoch: Epoch, round: u64) -> CheckpointId {
    CheckpointId { epoch, round, phase: Phase::AggregateFit, slot: Slot::Global }
}

fn set<const N: usize>(nodes: [u64; N]) -> BTreeSet<NodeId> {
    nodes.map(NodeId).into()
}

impl Cluster {
    /// Three voters; the higher a node, the more suitable. Of seven nodes, 5, 6 and 7 vote.
    async fn start(nodes: u64, payload: Payload, seed: u64) -> Self {
        let config = config(nodes, 3, payload, seed);
        let link = LinkSpec { delay: Duration::from_millis(1), ..LinkSpec::default() };
        let network = ChannelNetwork::new(seed, link, config.nodes.iter().copied());
        let mut members = BTreeMap::new();
        for node in &config.nodes {
            let transport = network.join(*node);
            let events = Notebook(watch::Sender::new(Vec::new()));
            let mut site = Site::new(transport.clone(), Arc::new(events.clone()));
            site.resources.cpu_mb_per_s = 1000 * node.0;
            let store = RaftStore::open(config.clone(), site).await.unwrap();
            members.insert(*node, Member { store, transport, events });
        }
        Self { network, members }
    }

    fn store(&self, node: u64) -> &Arc<RaftStore> {
        &self.members[&NodeId(node)].store
    }

    /// Waits until all that live agree on an epoch after `before`.
    async fn epoch(&self, before: Option<Epoch>) -> Epoch {
        let mut seen = Vec::new();
        let agreement = async {
            loop {
                seen = self.members.values().map(|member| *member.store.aggregator().borrow()).collect();
                if let Some(Some(epoch)) = seen.first()
                    && Some(*epoch) > before
                    && seen.iter().all(|other| *other == Some(*epoch))
                {
                    return *epoch;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let agreed = tokio::time::timeout(PATIENCE, agreement).await;
        agreed.unwrap_or_else(|_| panic!("no agreement after {before:?}: {seen:?}"))
    }

    async fn put(&self, epoch: Epoch, round: u64) -> Digest {
        let checkpoint =
            Checkpoint::new(id(epoch, round), parameters(round, CHECKPOINT_BYTES), Metadata::new());
        self.store(epoch.node.0).put(checkpoint).await.unwrap().digest
    }

    async fn crash(&mut self, node: NodeId) {
        self.network.crash(node);
        self.members.remove(&node).unwrap().store.close().await;
    }

    /// Changes of voters that any node told of, by the voters they led to.
    fn changes(&self) -> Vec<(Option<NodeId>, Option<NodeId>, Vec<NodeId>)> {
        let mut changes = Vec::new();
        for member in self.members.values() {
            for event in member.events.0.borrow().iter() {
                if let StoreEvent::VotersChanged { lost: Some(lost), joined, voters } = event {
                    changes.push((Some(*lost), *joined, voters.clone()));
                }
            }
        }
        changes
    }

    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let met = async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, met).await.unwrap_or_else(|_| panic!("{what}: {:?}", self.changes()));
    }

    /// Who holds `digest` as its newest checkpoint.
    fn holders(&self, digest: Digest) -> BTreeSet<NodeId> {
        let holds = |store: &RaftStore| store.held().is_some_and(|held| held.digest == digest);
        self.members.iter().filter(|(_, member)| holds(&member.store)).map(|(node, _)| *node).collect()
    }

    /// Body bytes sent on the replication plane by all nodes, heads and tags included.
    fn sent_bytes(&self) -> u64 {
        let traffics = self.members.values().map(|member| member.transport.traffic());
        traffics.flat_map(|traffic| traffic.frames).map(|(_, count)| count.sent_bytes).sum()
    }

    fn suspicions(&self) -> usize {
        let suspected = |event: &&StoreEvent| matches!(event, StoreEvent::Suspected { .. });
        self.members.values().map(|member| member.events.0.borrow().iter().filter(suspected).count()).sum()
    }
}

/// A voter of 5, 6, 7 that does not lead.
fn follower(epoch: Epoch) -> NodeId {
    (5..=7).map(NodeId).find(|node| *node != epoch.node).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_most_suitable_vote_and_the_others_hold_nothing_but_read() {
    for payload in [Payload::Inline, Payload::Digest] {
        let cluster = Cluster::start(7, payload, 1).await;
        let epoch = cluster.epoch(None).await;
        assert!((5..=7).contains(&epoch.node.0), "{epoch}");
        let mut newest = Digest::of(b"none");
        for round in 1..=3 {
            newest = cluster.put(epoch, round).await;
        }
        cluster.until("voters hold", |cluster| cluster.holders(newest) == set([5, 6, 7])).await;
        for node in 1..=7 {
            let latest = cluster.store(node).latest().await.unwrap().unwrap();
            assert_eq!((latest.id(), latest.digest()), (id(epoch, 3), newest), "node {node}");
            let first = cluster.store(node).get(id(epoch, 1)).await.unwrap().unwrap();
            assert_eq!(*first.parameters(), parameters(1, CHECKPOINT_BYTES), "node {node}");
            assert_eq!(cluster.store(node).get(id(epoch, 9)).await, Ok(None), "node {node}");
        }
        for node in 1..=4 {
            assert_eq!(cluster.store(node).held(), None, "node {node}");
            assert_eq!((cluster.store(node).held_bytes(), cluster.store(node).log_size()), (0, (0, 0)));
        }
        let guarantees = cluster.store(1).guarantees();
        assert_eq!((guarantees.tolerated_losses, guarantees.fails_over), (1, true));
        let name = format!("raft-subset (3 of 7 voters, {payload})");
        assert_eq!(cluster.store(1).to_string(), name);
    }
}

#[tokio::test(start_paused = true)]
async fn a_voter_that_stays_away_is_replaced_and_what_was_acknowledged_survives() {
    for payload in [Payload::Inline, Payload::Digest] {
        let mut cluster = Cluster::start(7, payload, 2).await;
        let epoch = cluster.epoch(None).await;
        for round in 1..=5 {
            cluster.put(epoch, round).await;
        }
        let lost = follower(epoch);
        cluster.crash(lost).await;
        cluster.until("replaced", |cluster| !cluster.changes().is_empty()).await;
        let voters: BTreeSet<NodeId> = set([4, 5, 6, 7]).into_iter().filter(|node| *node != lost).collect();
        let change = (Some(lost), Some(NodeId(4)), voters.iter().copied().collect());
        assert_eq!(cluster.changes(), [change]);
        assert_eq!(*cluster.store(1).aggregator().borrow(), Some(epoch), "the leader stays");

        let newest = cluster.put(epoch, 6).await;
        cluster.until("the new voter holds", |cluster| cluster.holders(newest) == voters).await;
        cluster.crash(epoch.node).await;
        let next = cluster.epoch(Some(epoch)).await;
        assert!(voters.contains(&next.node), "{next}");
        for node in cluster.members.keys() {
            assert_eq!(cluster.store(node.0).latest().await.unwrap().unwrap().digest(), newest);
        }
        for round in 1..=6 {
            let found = cluster.store(4).get(id(epoch, round)).await.unwrap().unwrap();
            assert_eq!(*found.parameters(), parameters(round, CHECKPOINT_BYTES));
        }
        // The leader that died is replaced too, and then another of the first voters may go.
        cluster
            .until("the leader is replaced", |cluster| {
                cluster.changes().iter().any(|change| change.0 == Some(epoch.node))
            })
            .await;
        let third = cluster.put(next, 7).await;
        cluster.crash(next.node).await;
        let last = cluster.epoch(Some(next)).await;
        assert_eq!(cluster.store(last.node.0).latest().await.unwrap().unwrap().digest(), third);
    }
}

#[tokio::test(start_paused = true)]
async fn a_voter_that_is_back_in_time_stays() {
    let cluster = Cluster::start(5, Payload::Inline, 3).await;
    let epoch = cluster.epoch(None).await;
    cluster.put(epoch, 1).await;
    let away = (3..=5).map(NodeId).find(|node| *node != epoch.node).unwrap();
    for round in 2..=4 {
        cluster.network.isolate(away);
        tokio::time::sleep(GRACE - Duration::from_millis(500)).await;
        cluster.network.heal();
        let newest = cluster.put(epoch, round).await;
        cluster.until("it holds the newest", |cluster| cluster.holders(newest).contains(&away)).await;
    }
    tokio::time::sleep(2 * GRACE).await;
    assert_eq!(cluster.changes(), []);
    assert_eq!(cluster.epoch(None).await, epoch);
}

#[tokio::test(start_paused = true)]
async fn a_voter_that_returns_too_late_disturbs_nobody_and_reads_as_the_others() {
    for (seed, payload) in [(4, Payload::Inline), (5, Payload::Digest)] {
        let cluster = Cluster::start(7, payload, seed).await;
        let epoch = cluster.epoch(None).await;
        cluster.put(epoch, 1).await;
        let lost = follower(epoch);
        cluster.network.isolate(lost);
        cluster.until("replaced", |cluster| !cluster.changes().is_empty()).await;
        let newest = cluster.put(epoch, 2).await;
        cluster.network.heal();
        let returned = cluster.store(lost.0);
        cluster.until("it learns that it votes no more", |_| returned.held().is_none()).await;
        let suspicions = cluster.suspicions();
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(cluster.suspicions(), suspicions, "it stands for no election");
        assert_eq!(cluster.epoch(None).await, epoch);
        let latest = returned.latest().await.unwrap().unwrap();
        assert_eq!((latest.id(), latest.digest()), (id(epoch, 2), newest));

        // It is the most suitable of the rest: the next one lost gives it back its vote.
        let second = set([4, 5, 6, 7]).into_iter().find(|node| *node != lost && *node != epoch.node).unwrap();
        cluster.network.isolate(second);
        cluster.until("taken in again", |cluster| cluster.changes().len() == 2).await;
        let newest = cluster.put(epoch, 3).await;
        cluster.until("it holds again", |cluster| cluster.holders(newest).contains(&lost)).await;
        let found = returned.get(id(epoch, 2)).await.unwrap().unwrap();
        assert_eq!(*found.parameters(), parameters(2, CHECKPOINT_BYTES));
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_replaced_when_nobody_can_replace() {
    let mut cluster = Cluster::start(3, Payload::Inline, 6).await;
    let epoch = cluster.epoch(None).await;
    let lost = cluster.members.keys().copied().find(|node| *node != epoch.node).unwrap();
    cluster.crash(lost).await;
    tokio::time::sleep(10 * GRACE).await;
    cluster.put(epoch, 1).await;
    assert_eq!(cluster.changes(), []);
}

#[tokio::test(start_paused = true)]
async fn a_put_moves_its_bytes_to_the_voters_only() {
    for payload in [Payload::Inline, Payload::Digest] {
        let cluster = Cluster::start(10, payload, 7).await;
        let epoch = cluster.epoch(None).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = cluster.sent_bytes();
        for round in 1..=10 {
            let newest = cluster.put(epoch, round).await;
            cluster.until("voters hold", |cluster| cluster.holders(newest).len() == 3).await;
        }
        let per_put = (cluster.sent_bytes() - before) as f64 / 10.0;
        let (least, most) = (2.0 * CHECKPOINT_BYTES as f64, 2.01 * CHECKPOINT_BYTES as f64);
        assert!((least..most).contains(&per_put), "{payload}: {per_put} bytes per put");
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_leader_tells_who_leads_and_only_the_lowest_founds() {
    const FOUND: u8 = 8;
    const NOTICE: u8 = 9;
    let cluster = Cluster::start(5, Payload::Inline, 8).await;
    let epoch = cluster.epoch(None).await;
    let liar = &cluster.members[&NodeId(2)].transport;
    let forged = Epoch { counter: epoch.counter + 1, node: epoch.node };
    let head = postcard::to_stdvec(&(forged, None::<(u64, u64)>, set([1, 2, 3]))).unwrap();
    let refusal = liar.request(NodeId(1), Class::Heartbeat, Frame::new(NOTICE, head)).await;
    assert!(
        matches!(&refusal, Err(TransportError::Refused { reason, .. }) if reason.contains("may not speak as node")),
        "{refusal:?}"
    );
    for (from, at) in [(2, 1), (1, 2)] {
        let head = postcard::to_stdvec(&set([1, 2, 3])).unwrap();
        let founding = Frame::new(FOUND, head);
        let transport = &cluster.members[&NodeId(from)].transport;
        let refusal = transport.request(NodeId(at), Class::Election, founding).await;
        assert!(matches!(refusal, Err(TransportError::Refused { .. })), "{refusal:?}");
    }
    assert_eq!(cluster.epoch(None).await, epoch);
}

#[tokio::test(start_paused = true)]
async fn the_group_is_founded_without_nodes_that_never_come() {
    let config = config(5, 3, Payload::Inline, 9);
    let network = ChannelNetwork::new(9, LinkSpec::default(), config.nodes.iter().copied());
    let mut stores = Vec::new();
    for node in 1..=3 {
        let transport = network.join(NodeId(node));
        let site = Site::new(transport, Arc::new(replication::Silent));
        stores.push(RaftStore::open(config.clone(), site).await.unwrap());
    }
    let mut aggregator = stores[0].aggregator();
    let epoch =
        tokio::time::timeout(PATIENCE, aggregator.wait_for(Option::is_some)).await.unwrap().unwrap().unwrap();
    let checkpoint = Checkpoint::new(id(epoch, 1), parameters(1, 1000), Metadata::new());
    stores[epoch.node.0 as usize - 1].put(checkpoint).await.unwrap();
}

#[test]
fn as_many_vote_as_there_are_at_most() {
    for voters in [0, 6] {
        let refusal = config(5, voters, Payload::Inline, 1).validate();
        assert!(
            matches!(refusal, Err(ConfigError::OutOfRange { what: "voters", count, nodes: 5 }) if count == voters),
            "{refusal:?}"
        );
    }
    assert!(config(5, 5, Payload::Inline, 1).validate().is_ok());
}
