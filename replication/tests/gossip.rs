//! What only gossip can be asked: what it sends, two aggregators in a partition, holders that lie, a fetch that goes on
//! elsewhere. On the seeded network, under virtual time.

#![allow(clippy::unwrap_used, reason = "a failed test is what unwrap is for; helpers are not seen as tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use replication::conformance::parameters;
use replication::gossip::{Detector, GossipConfig, GossipStore};
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::transport::{Class, Frame, Handler, Refusal, Transport};
use replication::{
    Checkpoint, CheckpointId, CheckpointStore, CheckpointStoreExt, DEFAULT_RETAINED, Digest, Epoch, Metadata,
    NodeId, Observer, Phase, Site, Slot, StoreError, StoreEvent,
};
use tokio::sync::watch;

/// Size of the paper's model.
const CHECKPOINT_BYTES: usize = 248_024;
const S: u64 = CHECKPOINT_BYTES as u64;

/// Keeps every event of one store.
#[derive(Clone)]
struct Notebook(watch::Sender<Vec<StoreEvent>>);

impl Observer for Notebook {
    fn observe(&self, event: StoreEvent) {
        self.0.send_modify(|events| events.push(event));
    }
}

impl Notebook {
    fn count(&self, wanted: impl Fn(&StoreEvent) -> bool) -> usize {
        self.0.borrow().iter().filter(|event| wanted(event)).count()
    }
}

struct Member {
    store: Arc<GossipStore>,
    transport: Arc<dyn Transport>,
    events: Notebook,
}

impl Member {
    fn sent(&self, class: Class) -> u64 {
        self.transport.traffic().frames.iter().find(|(of, _)| *of == class).unwrap().1.sent_bytes
    }

    fn sent_in_all(&self) -> u64 {
        self.transport.traffic().frames.iter().map(|(_, count)| count.sent_bytes).sum()
    }
}

struct Cluster {
    network: ChannelNetwork,
    members: BTreeMap<NodeId, Member>,
}

impl Cluster {
    /// Nodes 1 to `stores` of `nodes`; the others are left to the test.
    async fn start(stores: u64, config: GossipConfig, bandwidth: u64) -> Self {
        let link = LinkSpec { bandwidth_bytes_per_s: Some(bandwidth), ..LinkSpec::default() };
        let network = ChannelNetwork::new(config.seed, link, config.nodes.iter().copied());
        let mut members = BTreeMap::new();
        for node in (1..=stores).map(NodeId) {
            let transport = network.join(node);
            let events = Notebook(watch::Sender::new(Vec::new()));
            let site = Site::new(transport.clone(), Arc::new(events.clone()));
            let store = GossipStore::open(config.clone(), site).await.unwrap();
            members.insert(node, Member { store, transport, events });
        }
        Self { network, members }
    }

    async fn epoch(&self) -> Epoch {
        for member in self.members.values() {
            member.store.await_aggregator().await.unwrap();
        }
        self.members[&NodeId(1)].store.await_aggregator().await.unwrap()
    }

    /// Cuts a candidate off from all but the aggregator. Returns the epoch of that one, and the candidate.
    async fn cut_off_a_candidate(&self) -> (Epoch, NodeId) {
        let epoch = self.epoch().await;
        let candidates = self.members[&epoch.node].store.candidates();
        for other in &candidates[1..] {
            self.network.cut(candidates[0], *other);
        }
        (epoch, candidates[0])
    }

    async fn all_hold(&self, digest: Digest) {
        for (node, member) in &self.members {
            let held = async {
                while member.store.held().map(|held| held.digest) != Some(digest) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let held = tokio::time::timeout(Duration::from_secs(60), held).await;
            held.unwrap_or_else(|_| panic!("node {node} holds {:?}", member.store.held()));
        }
    }
}

fn config(nodes: u64, holders: u32, seed: u64) -> GossipConfig {
    GossipConfig {
        nodes: (1..=nodes).map(NodeId).collect(),
        holders,
        interval_ms: 500,
        fan_out: 2,
        phi_milli: 6000,
        detector: Detector::Phi,
        put_timeout_ms: 10_000,
        retained: DEFAULT_RETAINED,
        seed,
    }
}

fn checkpoint(epoch: Epoch, round: u64) -> Checkpoint {
    let id = CheckpointId { epoch, round, phase: Phase::AggregateFit, slot: Slot::Global };
    Checkpoint::new(id, parameters(round ^ epoch.counter << 32, CHECKPOINT_BYTES), Metadata::new())
}

#[tokio::test(start_paused = true)]
async fn bytes_spread_without_a_hot_spot() {
    for seed in 1..=10 {
        let cluster = Cluster::start(10, config(10, 6, seed), 12_500_000).await;
        let epoch = cluster.epoch().await;
        let writer = &cluster.members[&epoch.node];
        let before: BTreeMap<NodeId, u64> =
            cluster.members.iter().map(|(node, member)| (*node, member.sent_in_all())).collect();
        let written = checkpoint(epoch, 1);
        writer.store.put(written.clone()).await.unwrap();
        cluster.all_hold(written.digest()).await;
        let sent: Vec<u64> =
            cluster.members.iter().map(|(node, member)| member.sent_in_all() - before[node]).collect();
        assert!(sent.iter().all(|sent| *sent <= 3 * S), "seed {seed}: {sent:?}");
        assert!(sent.iter().sum::<u64>() <= 9 * S * 112 / 100, "seed {seed}: {sent:?}");

        let before: u64 = cluster.members.values().map(Member::sent_in_all).sum();
        let id = CheckpointId { round: 2, ..written.id() };
        let again = Checkpoint::new(id, written.parameters().clone(), Metadata::new());
        writer.store.put(again).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let sent = cluster.members.values().map(Member::sent_in_all).sum::<u64>() - before;
        assert!(sent <= 9 * S / 10, "seed {seed}: {sent} bytes although everybody has them");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_node_sends_little_and_suspects_nobody() {
    let cluster = Cluster::start(10, config(10, 6, 1), 12_500_000).await;
    let epoch = cluster.epoch().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let sent = |member: &Member| {
        let traffic = member.transport.traffic();
        [traffic.control, traffic.bulk]
            .iter()
            .map(|lane| lane.sent_bytes + 28 * lane.sent_datagrams)
            .sum::<u64>()
    };
    let before: Vec<u64> = cluster.members.values().map(sent).collect();
    tokio::time::sleep(Duration::from_secs(120)).await;
    let per_second: Vec<u64> = cluster
        .members
        .values()
        .map(sent)
        .zip(before)
        .map(|(after, before)| (after - before) / 120)
        .collect();
    println!("idle, in bytes per second: {per_second:?}");
    assert!(per_second.iter().all(|sent| *sent <= 8000), "{per_second:?}");
    for member in cluster.members.values() {
        assert_eq!(member.events.count(|event| matches!(event, StoreEvent::Suspected { .. })), 0);
        assert_eq!(*member.store.aggregator().borrow(), Some(epoch));
    }
}

#[tokio::test(start_paused = true)]
async fn two_aggregators_in_a_partition_are_told_of_and_one_stays() {
    let cluster = Cluster::start(5, config(5, 1, 3), 12_500_000).await;
    let old = cluster.epoch().await;
    cluster.network.isolate(old.node);
    let lost = checkpoint(old, 1);
    cluster.members[&old.node].store.put(lost.clone()).await.unwrap();
    let others: Vec<&Member> =
        cluster.members.iter().filter(|(node, _)| **node != old.node).map(|(_, member)| member).collect();
    let mut new = old;
    for member in &others {
        let mut aggregator = member.store.aggregator();
        new = aggregator.wait_for(|now| *now > Some(old)).await.unwrap().unwrap();
    }
    let kept = checkpoint(new, 1);
    cluster.members[&new.node].store.put(kept.clone()).await.unwrap();
    assert_eq!(*cluster.members[&old.node].store.aggregator().borrow(), Some(old), "two aggregate");
    cluster.network.heal();
    for member in cluster.members.values() {
        let mut aggregator = member.store.aggregator();
        aggregator.wait_for(|now| *now == Some(new)).await.unwrap();
    }
    cluster.all_hold(kept.digest()).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    for (node, member) in &cluster.members {
        let rivals = StoreEvent::RivalAggregators { stays: new, yields: old };
        assert_eq!(member.events.count(|event| *event == rivals), 1, "node {node}");
        assert_eq!(*member.store.aggregator().borrow(), Some(new));
        assert_eq!(member.store.latest().await.unwrap(), Some(kept.clone()));
        assert_eq!(member.store.get(lost.id()).await.unwrap(), Some(lost.clone()), "node {node}");
    }
}

/// What the wire calls them; a peer that misbehaves does not use our constants either.
const RUMOUR: u8 = 33;
const HAVE: u8 = 34;
const PULL: u8 = 35;

/// Says that it holds whatever it hears of, and serves what it likes.
struct Impostor {
    transport: OnceLock<Arc<dyn Transport>>,
    /// Serves wrong bytes, or nothing.
    serves: bool,
}

#[async_trait]
impl Handler for Impostor {
    async fn handle(&self, _from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        match request.tag {
            RUMOUR => {
                let ((id, digest, _, _), _, _): (
                    (CheckpointId, Digest, u64, Digest),
                    Option<Metadata>,
                    bool,
                ) = postcard::from_bytes(&request.head).unwrap();
                let founders = (Epoch::default(), 1_u64);
                let have = Frame::new(HAVE, postcard::to_stdvec(&(id, digest, founders)).unwrap());
                let transport = self.transport.get().unwrap();
                transport.request(id.epoch.node, Class::Digest, have).await.unwrap();
                Ok(Frame::new(0, postcard::to_stdvec(&None::<Epoch>).unwrap()))
            }
            PULL if self.serves => {
                let (_, offset, _): (Digest, u64, bool) = postcard::from_bytes(&request.head).unwrap();
                let length = (S - offset).min(64 * 1024) as usize;
                Ok(Frame::new(0, vec![0]).with_segment(vec![7; length].into()))
            }
            PULL => Ok(Frame::new(0, vec![2])),
            _ => Err(Refusal("an impostor".into())),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_lies_is_told_of_and_another_is_asked() {
    let liar = NodeId(6);
    for serves in [true, false] {
        let config = GossipConfig { fan_out: 5, ..config(6, 4, 4) };
        let cluster = Cluster::start(5, config, 1_000_000).await;
        let impostor = Arc::new(Impostor { transport: OnceLock::new(), serves });
        let transport = cluster.network.join(liar);
        let _ = impostor.transport.set(transport.clone());
        transport.serve(impostor);
        let epoch = cluster.epoch().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let written = checkpoint(epoch, 1);
        let digest = written.digest();
        cluster.members[&epoch.node].store.put(written).await.unwrap();
        cluster.all_hold(digest).await;
        let expected = if serves {
            StoreEvent::CorruptBlob { from: liar, digest }
        } else {
            StoreEvent::FalseClaim { from: liar, digest }
        };
        let counts: Vec<usize> =
            cluster.members.values().map(|member| member.events.count(|event| *event == expected)).collect();
        assert!(counts.iter().any(|count| *count > 0), "{counts:?}");
        assert!(counts.iter().all(|count| *count <= 1), "nobody asks a liar again: {counts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fetch_goes_on_at_another_holder() {
    let mut cluster = Cluster::start(5, config(5, 3, 5), 1_000_000).await;
    let epoch = cluster.epoch().await;
    let away = *cluster.members.keys().rev().find(|node| **node != epoch.node).unwrap();
    cluster.network.isolate(away);
    let written = checkpoint(epoch, 1);
    cluster.members[&epoch.node].store.put(written.clone()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before: BTreeMap<NodeId, u64> =
        cluster.members.iter().map(|(node, member)| (*node, member.sent(Class::Blob))).collect();
    cluster.network.heal();
    // The second chunk is on its way.
    let source = loop {
        let serving =
            cluster.members.iter().find(|(node, member)| member.sent(Class::Blob) > before[node] + 100_000);
        if let Some((node, _)) = serving {
            break *node;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert_ne!(source, epoch.node, "the writer is asked last");
    cluster.network.crash(source);
    cluster.members.remove(&source).unwrap().store.close().await;
    cluster.all_hold(written.digest()).await;
    let again: u64 =
        cluster.members.iter().map(|(node, member)| member.sent(Class::Blob) - before[node]).sum();
    assert!(again < S, "{again} bytes were sent by others, after some had arrived");
    let living: BTreeSet<NodeId> = cluster.members.keys().copied().collect();
    assert!(living.contains(&away));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_died_with_its_writer_stops_nobody() {
    let mut cluster = Cluster::start(5, config(5, 3, 6), 100_000).await;
    let epoch = cluster.epoch().await;
    let first = Checkpoint::new(checkpoint(epoch, 1).id(), parameters(1, 1000), Metadata::new());
    cluster.members[&epoch.node].store.put(first.clone()).await.unwrap();
    let writer = cluster.members.remove(&epoch.node).unwrap();
    // Long enough for gossip to say that the writer holds it, too short for anybody else to.
    let attempt =
        tokio::time::timeout(Duration::from_millis(2000), writer.store.put(checkpoint(epoch, 2))).await;
    assert!(attempt.is_err(), "{attempt:?}");
    cluster.network.crash(epoch.node);
    writer.store.close().await;
    let successor = async {
        let mut newest = epoch;
        for member in cluster.members.values() {
            newest = member.store.aggregator().wait_for(|now| *now > Some(epoch)).await.unwrap().unwrap();
        }
        newest
    };
    let next = tokio::time::timeout(Duration::from_secs(60), successor).await.expect("somebody takes over");
    let store = &cluster.members[&next.node].store;
    assert_eq!(store.latest().await.unwrap(), Some(first));
    let second = checkpoint(next, 2);
    store.put(second.clone()).await.unwrap();
    cluster.all_hold(second.digest()).await;
}

#[tokio::test(start_paused = true)]
async fn an_aggregator_that_dies_young_is_replaced_in_time() {
    for seed in 1..=20 {
        let config = GossipConfig { interval_ms: 250, ..config(3, 2, seed) };
        let timeout = Duration::from_millis(config.effective_timeout_ms());
        let cluster = Cluster::start(3, config, 2_000_000).await;
        let epoch = cluster.epoch().await;
        let written = checkpoint(epoch, 1);
        cluster.members[&epoch.node].store.put(written.clone()).await.unwrap();
        // One other has the bytes; the third may be about to ask the writer, whose connections stay.
        cluster.network.pause(epoch.node);
        let begun = tokio::time::Instant::now();
        let (_, survivor) = cluster.members.iter().find(|(node, _)| **node != epoch.node).unwrap();
        let mut aggregator = survivor.store.aggregator();
        let next = aggregator.wait_for(|now| *now > Some(epoch)).await.unwrap().unwrap();
        assert_eq!(cluster.members[&next.node].store.latest().await.unwrap(), Some(written));
        // Who has hardly heard of it waits for two timeouts; a failed candidacy costs one more turn. Its connections last longer.
        assert!(begun.elapsed() < 3 * timeout, "seed {seed}: {:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_right_after_an_election_succeeds_at_once() {
    for seed in 1..=20 {
        let cluster = Cluster::start(5, config(5, 3, seed), 12_500_000).await;
        let first = cluster.members.values().map(|member| {
            let mut aggregator = member.store.aggregator();
            Box::pin(async move { aggregator.wait_for(Option::is_some).await.unwrap().unwrap() })
        });
        let (mut epoch, ..) = futures_util::future::select_all(first).await;
        for _ in 0..10 {
            // It knows before anybody else does, and before they know who belongs to its cluster.
            let store = &cluster.members[&epoch.node].store;
            let mut aggregator = store.aggregator();
            aggregator.wait_for(|now| *now == Some(epoch)).await.unwrap();
            let begun = tokio::time::Instant::now();
            let next =
                store.step_down(None).await.unwrap_or_else(|error| panic!("seed {seed}, {epoch}: {error}"));
            assert!(next > epoch && next.node != epoch.node, "seed {seed}: {epoch} -> {next}");
            assert!(begun.elapsed() < Duration::from_millis(500), "seed {seed}: {:?}", begun.elapsed());
            epoch = next;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_to_a_node_that_nobody_else_can_reach_is_none() {
    let cluster = Cluster::start(5, config(5, 3, 1), 12_500_000).await;
    let (epoch, to) = cluster.cut_off_a_candidate().await;
    let store = &cluster.members[&epoch.node].store;
    let error = store.step_down(Some(to)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    let again = store.aggregator().borrow().unwrap();
    assert!(again > epoch && again.node == epoch.node, "{epoch} -> {again}");
    store.put(checkpoint(again, 1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_to_a_node_whose_connections_come_late_succeeds() {
    for seed in 1..=20 {
        let cluster = Cluster::start(5, config(5, 3, seed), 12_500_000).await;
        let (epoch, to) = cluster.cut_off_a_candidate().await;
        let store = &cluster.members[&epoch.node].store;
        let late = async {
            // After it has waited for promises in vain for the first time.
            tokio::time::sleep(Duration::from_millis(1800)).await;
            cluster.network.heal();
        };
        let (next, ()) = tokio::join!(store.step_down(Some(to)), late);
        let next = next.unwrap_or_else(|error| panic!("seed {seed}, {epoch}: {error}"));
        assert_eq!(next.node, to, "seed {seed}: {epoch} -> {next}");
        let checkpoint = checkpoint(next, 1);
        cluster.members[&to].store.put(checkpoint).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_aggregator_to_which_there_is_no_connection_yet_is_not_taken_for_dead() {
    let (fittest, behind) = (NodeId(1), NodeId(2));
    for seed in 1..=20 {
        let cluster = Cluster::start(5, config(5, 3, seed), 12_500_000).await;
        cluster.network.cut(fittest, behind);
        let member = &cluster.members[&behind];
        let mut aggregator = member.store.aggregator();
        // Others tell it. Before that it may have stood itself.
        let epoch = aggregator.wait_for(Option::is_some).await.unwrap().unwrap();
        assert_eq!(epoch.node, fittest, "seed {seed}");
        let before = member.sent(Class::Election);
        tokio::time::sleep(Duration::from_millis(1000)).await;
        assert_eq!(member.sent(Class::Election), before, "seed {seed}: it stands");
        cluster.network.heal();
        let checkpoint = checkpoint(epoch, 1);
        cluster.members[&fittest].store.put(checkpoint).await.unwrap();
    }
}
