//! What only Raft can be asked: bounded memory, who may say what, when a dead leader is suspected, catching up from a
//! snapshot. On the seeded network, under virtual time.

#![allow(clippy::unwrap_used, reason = "a failed test is what unwrap is for; helpers are not seen as tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use replication::conformance::parameters;
use replication::raft::{Electorate, RaftConfig, RaftStore};
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::transport::{Class, Frame, Transport, TransportError};
use replication::{
    Checkpoint, CheckpointId, CheckpointStore, CheckpointStoreExt, DEFAULT_RETAINED, Digest, Epoch, Metadata,
    NodeId, Observer, Payload, Phase, Site, Slot, StoreEvent, Window,
};
use tokio::sync::watch;
use tokio::time::Instant;

/// Size of the paper's model.
const CHECKPOINT_BYTES: usize = 248_024;
const WINDOW: Window = Window { from_ms: 300, to_ms: 600 };

/// Keeps every event of one store, with the moment.
#[derive(Clone)]
struct Notebook(watch::Sender<Vec<(Instant, StoreEvent)>>);

impl Observer for Notebook {
    fn observe(&self, event: StoreEvent) {
        self.0.send_modify(|events| events.push((Instant::now(), event)));
    }
}

impl Notebook {
    fn new() -> Self {
        Self(watch::Sender::new(Vec::new()))
    }

    fn first(&self, wanted: impl Fn(&StoreEvent) -> bool, after: Instant) -> Option<Instant> {
        self.0.borrow().iter().find(|(at, event)| *at >= after && wanted(event)).map(|(at, _)| *at)
    }

    fn count(&self, wanted: impl Fn(&StoreEvent) -> bool) -> usize {
        self.0.borrow().iter().filter(|(_, event)| wanted(event)).count()
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

impl Cluster {
    async fn start(nodes: u64, payload: Payload, seed: u64) -> Self {
        let ids: BTreeSet<NodeId> = (1..=nodes).map(NodeId).collect();
        let link = LinkSpec { delay: Duration::from_millis(1), ..LinkSpec::default() };
        let network = ChannelNetwork::new(seed, link, ids.iter().copied());
        let mut members = BTreeMap::new();
        for node in &ids {
            let config = RaftConfig {
                nodes: ids.clone(),
                electorate: Electorate::Everyone,
                payload,
                window: WINDOW,
                heartbeat_ms: 60,
                put_timeout_ms: 3000,
                retained: DEFAULT_RETAINED,
                seed,
            };
            let transport = network.join(*node);
            let events = Notebook::new();
            let store = RaftStore::open(config, Site::new(transport.clone(), Arc::new(events.clone())))
                .await
                .unwrap();
            members.insert(*node, Member { store, transport, events });
        }
        Self { network, members }
    }

    async fn epoch(&self) -> Epoch {
        self.members.values().next().unwrap().store.await_aggregator().await.unwrap()
    }

    /// Waits until the living agree on an epoch after `before`.
    async fn next_epoch(&self, before: Epoch) -> Epoch {
        let mut newest = before;
        for member in self.members.values() {
            let mut aggregator = member.store.aggregator();
            newest = aggregator.wait_for(|now| *now > Some(before)).await.unwrap().unwrap();
        }
        newest
    }

    async fn crash(&mut self, node: NodeId) {
        self.network.crash(node);
        self.members.remove(&node).unwrap().store.close().await;
    }

    fn leader(&self, epoch: Epoch) -> &Member {
        &self.members[&epoch.node]
    }

    async fn put(&self, epoch: Epoch, round: u64, bytes: Bytes) {
        let checkpoint = Checkpoint::new(id(epoch, round), bytes, Metadata::new());
        self.leader(epoch).store.put(checkpoint).await.unwrap();
    }
}

fn id(epoch: Epoch, round: u64) -> CheckpointId {
    CheckpointId { epoch, round, phase: Phase::AggregateFit, slot: Slot::Global }
}

#[tokio::test(start_paused = true)]
async fn memory_stays_bounded_over_a_thousand_rounds() {
    for payload in [Payload::Inline, Payload::Digest] {
        let cluster = Cluster::start(3, payload, 1).await;
        let epoch = cluster.epoch().await;
        for round in 1..=1000 {
            cluster.put(epoch, round, parameters(round, CHECKPOINT_BYTES)).await;
        }
        for (node, member) in &cluster.members {
            // Retained checkpoints, and what was sent ahead of its acknowledgement.
            let held = member.store.held_bytes();
            assert!(
                held <= 2 * (DEFAULT_RETAINED * CHECKPOINT_BYTES) as u64,
                "node {node} holds {held} bytes"
            );
            let (entries, logged) = member.store.log_size();
            assert!(
                entries <= 600 && logged <= 16_000_000,
                "node {node}: {entries} entries of {logged} bytes"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_missed_the_log_catches_up_from_a_snapshot() {
    for payload in [Payload::Inline, Payload::Digest] {
        let cluster = Cluster::start(5, payload, 2).await;
        let epoch = cluster.epoch().await;
        cluster.put(epoch, 1, parameters(1, CHECKPOINT_BYTES)).await;
        let away = *cluster.members.keys().rev().find(|node| **node != epoch.node).unwrap();
        cluster.network.isolate(away);
        for round in 2..=700 {
            let bytes = if payload == Payload::Inline { CHECKPOINT_BYTES } else { 1000 };
            cluster.put(epoch, round, parameters(round, bytes)).await;
            // As long as a short round takes.
            tokio::time::sleep(Duration::from_millis(200)).await;
            if payload == Payload::Inline && round == 150 {
                break;
            }
        }
        let (entries, logged) = cluster.leader(epoch).store.log_size();
        assert!(
            entries <= 600 && logged <= 16_000_000,
            "nobody's absence keeps {entries} entries of {logged} bytes"
        );
        cluster.network.heal();
        let newest = cluster.leader(epoch).store.latest().await.unwrap().unwrap();
        let behind = &cluster.members[&away];
        let caught_up = async {
            while behind.store.held().map(|held| held.digest) != Some(newest.digest()) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), caught_up).await.expect("catches up");
        let snapshots = behind.events.count(|event| matches!(event, StoreEvent::SnapshotInstalled { .. }));
        assert!(snapshots >= 1, "{payload}");
        assert_eq!(*behind.store.aggregator().borrow(), Some(epoch), "its return disturbs nobody");
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_leader_is_suspected_within_the_window_after_the_last_contact() {
    let mut suspicions = Vec::new();
    for seed in 0..40 {
        let mut cluster = Cluster::start(5, Payload::Inline, seed).await;
        let epoch = cluster.epoch().await;
        cluster.put(epoch, 1, parameters(1, 1000)).await;
        tokio::time::sleep(Duration::from_millis(1000 + seed * 7)).await;
        let killed = Instant::now();
        cluster.crash(epoch.node).await;
        cluster.next_epoch(epoch).await;
        for member in cluster.members.values() {
            let early = |event: &StoreEvent| matches!(event, StoreEvent::Suspected { epoch: Some(old), .. } if *old == epoch);
            suspicions.extend(member.events.first(early, killed).map(|at| at - killed));
        }
    }
    // A contact is at most one heartbeat old when the leader dies; openraft's heartbeats leave up to a tick late.
    let age = Duration::from_millis(60 + 60 * 13 / 64 + 2);
    let earliest = Duration::from_millis(WINDOW.from_ms) - age;
    let latest = Duration::from_millis(WINDOW.to_ms + 2);
    assert!(suspicions.iter().all(|after| (earliest..=latest).contains(after)), "{suspicions:?}");
    assert!(suspicions.len() >= 40);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_well_is_never_suspected() {
    let cluster = Cluster::start(5, Payload::Inline, 3).await;
    let epoch = cluster.epoch().await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    for member in cluster.members.values() {
        assert_eq!(member.events.count(|event| matches!(event, StoreEvent::Suspected { .. })), 0);
        assert_eq!(*member.store.aggregator().borrow(), Some(epoch));
    }
}

/// What the wire calls them; a peer that misbehaves does not use our constants either.
const VOTE: u8 = 2;
const FORWARD_PUT: u8 = 6;
const BLOB_PUSH: u8 = 16;

#[tokio::test(start_paused = true)]
async fn bytes_that_do_not_match_their_digest_are_refused_and_told_of() {
    let cluster = Cluster::start(3, Payload::Digest, 4).await;
    let epoch = cluster.epoch().await;
    let liar = cluster.members.values().find(|member| member.transport.local() != epoch.node).unwrap();
    let promised = Digest::of(b"promised");
    let head = postcard::to_stdvec(&promised).unwrap();
    let push = Frame::new(BLOB_PUSH, head).with_segment(Bytes::from_static(b"served"));
    let refusal = liar.transport.request(epoch.node, Class::Blob, push).await;
    assert!(matches!(refusal, Err(TransportError::Refused { .. })), "{refusal:?}");

    // A forwarded write: name, digest, size, metadata, whether the bytes come along; then bytes of another digest.
    let slot = Slot::Worker { node: liar.transport.local(), part: 0 };
    let named = CheckpointId { slot, ..id(epoch, 1) };
    let head =
        |carried: bool| postcard::to_stdvec(&(named, promised, 6_u64, Metadata::new(), carried)).unwrap();
    let put = Frame::new(FORWARD_PUT, head(true)).with_segment(Bytes::from_static(b"served"));
    let answer = liar.transport.request(epoch.node, Class::Blob, put).await.unwrap();
    type Answer = Option<Result<replication::Receipt, replication::StoreError>>;
    let outcome: Answer = postcard::from_bytes(&answer.head).unwrap();
    assert!(
        matches!(outcome, Some(Err(replication::StoreError::Corrupt { expected, .. })) if expected == promised)
    );
    // Bytes that are not there either have to be sent.
    let put = Frame::new(FORWARD_PUT, head(false));
    let answer = liar.transport.request(epoch.node, Class::Digest, put).await.unwrap();
    assert_eq!(postcard::from_bytes::<Answer>(&answer.head).unwrap(), None);

    let leader = cluster.leader(epoch);
    let from = liar.transport.local();
    let told = |event: &StoreEvent| *event == StoreEvent::CorruptBlob { from, digest: promised };
    assert_eq!(leader.events.count(told), 2);
    assert_eq!(leader.store.get(named).await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn a_node_cannot_speak_for_another_nor_garbage_harm() {
    let cluster = Cluster::start(3, Payload::Inline, 5).await;
    let epoch = cluster.epoch().await;
    let others: Vec<NodeId> = cluster.members.keys().copied().filter(|node| *node != epoch.node).collect();
    let [liar, victim] = others[..] else { panic!("three nodes") };
    let transport = &cluster.members[&liar].transport;
    // A request for votes in term 99, said to be from the other follower: term, voted_for as an option, committed; no
    // last log id; no leadership transfer.
    let head = postcard::to_stdvec(&((99_u64, Some(victim.0), false), None::<u8>, true)).unwrap();
    let refusal = transport.request(epoch.node, Class::Election, Frame::new(VOTE, head)).await;
    assert!(
        matches!(&refusal, Err(TransportError::Refused { reason, .. }) if reason.contains("may not speak as node")),
        "{refusal:?}"
    );
    let told = |event: &StoreEvent| matches!(event, StoreEvent::Refused { from, .. } if *from == liar);
    assert_eq!(cluster.leader(epoch).events.count(told), 1);
    for tag in 0..=255 {
        for head in [&b""[..], b"\xff\xff\xff\xff\xff\xff\xff", &[0x80; 40], &[1; 40]] {
            let garbage = Frame::new(tag, head.to_vec()).with_segment(Bytes::from_static(&[7; 99]));
            let answer = transport.request(epoch.node, Class::Digest, garbage).await;
            assert!(!matches!(answer, Err(TransportError::Interrupted { .. })), "message {tag}: {answer:?}");
        }
    }
    assert_eq!(*cluster.leader(epoch).store.aggregator().borrow(), Some(epoch));
    cluster.put(epoch, 1, parameters(1, 1000)).await;
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_takes_one_term_and_is_not_for_others_to_order() {
    const TRANSFER: u8 = 5;
    let cluster = Cluster::start(5, Payload::Inline, 6).await;
    let mut epoch = cluster.epoch().await;
    cluster.put(epoch, 1, parameters(1, 1000)).await;
    for _ in 0..20 {
        let next = cluster.leader(epoch).store.step_down(None).await.unwrap();
        assert_eq!(next.counter, epoch.counter + 1, "{epoch} -> {next}");
        assert_eq!(cluster.next_epoch(epoch).await, next);
        epoch = next;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert_eq!(cluster.members.values().map(|member| suspicions(&member.events)).sum::<usize>(), 0);
    let refused = cluster.leader(epoch).store.step_down(Some(epoch.node)).await;
    assert!(refused.is_err(), "{refused:?}");

    let others: Vec<NodeId> = cluster.members.keys().copied().filter(|node| *node != epoch.node).collect();
    let head = ((epoch.counter, Some(epoch.node.0), true), others[0].0, None::<u8>);
    let order = Frame::new(TRANSFER, postcard::to_stdvec(&head).unwrap());
    let refusal = cluster.members[&others[1]].transport.request(others[0], Class::Election, order).await;
    assert!(
        matches!(&refusal, Err(TransportError::Refused { reason, .. }) if reason.contains("speak as node")),
        "{refusal:?}"
    );
}

fn suspicions(events: &Notebook) -> usize {
    events.count(|event| matches!(event, StoreEvent::Suspected { .. }))
}

#[tokio::test(start_paused = true)]
async fn the_same_bytes_are_sent_once() {
    let cluster = Cluster::start(5, Payload::Digest, 7).await;
    let epoch = cluster.epoch().await;
    let sent = || {
        let traffic = cluster.leader(epoch).transport.traffic();
        traffic.frames.iter().find(|(class, _)| *class == Class::Blob).unwrap().1.sent_bytes
    };
    let bytes = parameters(1, CHECKPOINT_BYTES);
    cluster.put(epoch, 1, bytes.clone()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let once = sent();
    assert!(once >= 4 * CHECKPOINT_BYTES as u64 && once < 4 * CHECKPOINT_BYTES as u64 + 2000, "{once}");
    for round in 2..=20 {
        cluster.put(epoch, round, bytes.clone()).await;
    }
    assert_eq!(sent(), once);
    for member in cluster.members.values() {
        assert!(member.store.latest().await.unwrap().is_some_and(|latest| *latest.parameters() == bytes));
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_of_large_metadata_reaches_a_node_that_was_away() {
    let cluster = Cluster::start(3, Payload::Digest, 8).await;
    let epoch = cluster.epoch().await;
    let away = *cluster.members.keys().rev().find(|node| **node != epoch.node).unwrap();
    cluster.network.isolate(away);
    let mut last = None;
    for round in 1..=40 {
        let metadata = Metadata::from([("note".to_owned(), "x".repeat(60_000))]);
        let checkpoint = Checkpoint::new(id(epoch, round), parameters(round, 1000), metadata);
        last = Some(cluster.leader(epoch).store.put(checkpoint).await.unwrap().digest);
    }
    cluster.network.heal();
    let behind = &cluster.members[&away].store;
    let caught_up = async {
        while behind.held().map(|held| held.digest) != last {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), caught_up).await.expect("catches up");
}

#[tokio::test(start_paused = true)]
async fn a_link_slower_than_the_heartbeat_is_named_as_the_cause() {
    let cluster = Cluster::start(3, Payload::Inline, 9).await;
    let epoch = cluster.epoch().await;
    cluster.put(epoch, 1, parameters(1, 1000)).await;
    cluster.network.set_link(LinkSpec { delay: Duration::from_millis(50), ..LinkSpec::default() });
    tokio::time::sleep(Duration::from_secs(5)).await;
    let checkpoint = Checkpoint::new(id(epoch, 2), parameters(2, 1000), Metadata::new());
    let error = cluster.leader(epoch).store.put(checkpoint).await.unwrap_err().to_string();
    assert!(error.contains("a heartbeat within its interval of 60 ms"), "{error}");
    assert_eq!(*cluster.leader(epoch).store.aggregator().borrow(), Some(epoch), "the leader itself is well");
}
