//! Writes the seeds that are real encodings: what nodes of every backend say to each other on the seeded network and leave on
//! disk. After a change of formats, and then by hand:
//!
//! ```sh
//! cargo test --test suite -- --ignored fuzz::seeds
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redb::backends::InMemoryBackend;
use replication::backup::BackupConfig;
use replication::gossip::{Detector, GossipConfig};
use replication::local::LocalConfig;
use replication::raft::{Electorate, RaftConfig};
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::transport::{Class, Frame, Handler, Traffic, Transport, TransportError, frame, head};
use replication::{
    AnyStore, Backend, Checkpoint, CheckpointId, CheckpointStoreExt as _, DEFAULT_RETAINED, Epoch, Metadata,
    NodeId, Payload, Phase, Silent, Site, Slot, Storage, Window, open,
};
use tokio::sync::watch;
use workloads::federated::{
    self, Config, EngineKind, Participant, Partition, Policy, Profile, SizedLearner, Training,
};
use workloads::keyvalue::flood::Message;
use workloads::keyvalue::journal::{Batch, Snapshot};
use workloads::keyvalue::machine::Machine;
use workloads::keyvalue::message::{
    Change, Command, Effect, Freshness, Origin, Request, Response, SessionId, Status,
};

use super::decoders::block_on;
use super::{root, run};

/// Largest seed, in bytes.
const MAX_SEED_BYTES: usize = 4096;

fn write(target: &str, name: &str, bytes: &[u8]) {
    if super::corpus(target).values().any(|known| known == bytes) {
        return;
    }
    assert!(bytes.len() <= MAX_SEED_BYTES, "{target}/{name}: {} bytes", bytes.len());
    std::fs::write(root().join("fuzz/corpus").join(target).join(name), bytes).unwrap();
}

/// Messages by tag and whether they are answers: the shortest and the longest that is not too long.
type Heard = BTreeMap<(u8, bool), [Frame; 2]>;

/// A node's end of a network that takes note of what is said.
#[derive(Debug, Clone)]
struct Tap {
    inner: Arc<dyn Transport>,
    heard: Arc<Mutex<Heard>>,
}

impl Tap {
    fn note(&self, tag: u8, answers: bool, frame: &Frame) {
        let size = |frame: &Frame| frame.head.len() + frame.body_len();
        if size(frame) == 0 || size(frame) > MAX_SEED_BYTES / 2 {
            return;
        }
        let frame = Frame { tag, ..frame.clone() };
        let mut heard = self.heard.lock().unwrap();
        let [shortest, longest] =
            heard.entry((tag, answers)).or_insert_with(|| [frame.clone(), frame.clone()]);
        if size(&frame) < size(shortest) {
            *shortest = frame;
        } else if size(&frame) > size(longest) {
            *longest = frame;
        }
    }
}

#[async_trait]
impl Transport for Tap {
    fn local(&self) -> NodeId {
        self.inner.local()
    }

    fn peers(&self) -> Vec<NodeId> {
        self.inner.peers()
    }

    async fn request(&self, to: NodeId, class: Class, request: Frame) -> Result<Frame, TransportError> {
        self.note(request.tag, false, &request);
        let tag = request.tag;
        let answer = self.inner.request(to, class, request).await;
        answer.inspect(|answer| self.note(tag, true, answer))
    }

    fn serve(&self, handler: Arc<dyn Handler>) {
        self.inner.serve(handler);
    }

    fn connected(&self) -> watch::Receiver<Vec<NodeId>> {
        self.inner.connected()
    }

    fn round_trips(&self) -> Vec<(NodeId, Duration)> {
        self.inner.round_trips()
    }

    fn traffic(&self) -> Traffic {
        self.inner.traffic()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

fn nodes() -> BTreeSet<NodeId> {
    (1..=4).map(NodeId).collect()
}

const WINDOW: Window = Window { from_ms: 300, to_ms: 600 };

fn raft(electorate: Electorate, payload: Payload) -> Backend {
    Backend::Raft(RaftConfig {
        nodes: nodes(),
        electorate,
        payload,
        window: WINDOW,
        heartbeat_ms: 60,
        put_timeout_ms: 3000,
        retained: DEFAULT_RETAINED,
        seed: 1,
    })
}

/// Every backend by a name for its files.
fn backends() -> [(&'static str, Backend); 6] {
    let (nodes, heartbeat_ms, put_timeout_ms, retained, seed) = (nodes(), 60, 3000, DEFAULT_RETAINED, 1);
    let subset = Electorate::MostSuitable { voters: 3, grace_ms: 1000 };
    let gossip = GossipConfig {
        nodes: nodes.clone(),
        holders: 3,
        interval_ms: 50,
        fan_out: 2,
        phi_milli: 8000,
        detector: Detector::Phi,
        put_timeout_ms,
        retained,
        seed,
    };
    let backup = BackupConfig {
        nodes: nodes.clone(),
        backups: 2,
        window: WINDOW,
        heartbeat_ms,
        put_timeout_ms,
        retained,
        seed,
    };
    [
        ("raft-inline", raft(Electorate::Everyone, Payload::Inline)),
        ("raft-digest", raft(Electorate::Everyone, Payload::Digest)),
        ("raft-subset", raft(subset, Payload::Inline)),
        ("gossip", Backend::Gossip(gossip)),
        ("backup", Backend::Backup(backup)),
        ("local", Backend::Local(LocalConfig { nodes, heartbeat_ms, put_timeout_ms, retained })),
    ]
}

fn link() -> LinkSpec {
    LinkSpec { delay: Duration::from_millis(2), jitter: Duration::from_millis(1), ..LinkSpec::default() }
}

fn checkpoint(epoch: Epoch, round: u64, slot: Slot) -> Checkpoint {
    let metadata = Metadata::from([("loss".to_owned(), "0.5".to_owned())]);
    let id = CheckpointId { epoch, round, phase: Phase::AggregateFit, slot };
    Checkpoint::new(id, Bytes::from(vec![round as u8; 24]), metadata)
}

/// A cluster's life: elected, written by the aggregator and workers, read, handed over, left, and the aggregator lost; what was
/// said, and the longest rows of a storage before the loss.
async fn live(backend: Backend) -> (Heard, Vec<u8>) {
    let heard: Arc<Mutex<Heard>> = Arc::default();
    let network = ChannelNetwork::new(7, link(), nodes());
    let mut stores: BTreeMap<NodeId, AnyStore> = BTreeMap::new();
    let mut storages = BTreeMap::new();
    for node in nodes() {
        let storage = Storage::inline_on(InMemoryBackend::new()).unwrap();
        storages.insert(node, storage.clone());
        let tap = Arc::new(Tap { inner: network.join(node), heard: Arc::clone(&heard) });
        let mut site = Site { storage: Some(storage), ..Site::new(tap, Arc::new(Silent)) };
        site.resources.cpu_mb_per_s = 1000 * node.0;
        stores.insert(node, open(backend.clone(), site).await.unwrap());
    }
    let patience = Duration::from_secs(20);
    let epoch = stores[&NodeId(2)].await_aggregator().await.unwrap();
    for round in 1..=3 {
        let _ =
            tokio::time::timeout(patience, stores[&epoch.node].put(checkpoint(epoch, round, Slot::Global)))
                .await;
        for node in nodes().into_iter().filter(|node| *node != epoch.node) {
            let slot = Slot::Worker { node, part: 1 };
            let _ = tokio::time::timeout(patience, stores[&node].put(checkpoint(epoch, round, slot))).await;
        }
    }
    for store in stores.values() {
        let _ = tokio::time::timeout(patience, store.latest()).await;
        let _ = tokio::time::timeout(patience, store.get(checkpoint(epoch, 2, Slot::Global).id())).await;
    }
    let _ = tokio::time::timeout(patience, stores[&epoch.node].step_down(None)).await;
    tokio::time::sleep(patience).await;
    let leads = |node: &NodeId| stores[node].aggregator().borrow().is_some_and(|epoch| epoch.node == *node);
    let leaves = nodes().into_iter().find(|node| !leads(node)).unwrap();
    let _ = tokio::time::timeout(patience, stores[&leaves].leave()).await;
    let mut longest = Vec::new();
    for storage in storages.values() {
        storage.flush().await.unwrap();
        let rows = rows(storage);
        if rows.len() > longest.len() && rows.len() <= MAX_SEED_BYTES {
            longest = rows;
        }
    }
    let aggregator = stores[&NodeId(2)].aggregator().borrow().map(|epoch| epoch.node);
    if let Some(lost) = aggregator {
        network.crash(lost);
        stores[&lost].close().await;
    }
    tokio::time::sleep(patience).await;
    let heard = heard.lock().unwrap().clone();
    (heard, longest)
}

/// The rows of a storage, as the target `storage` reads them.
fn rows(storage: &Storage) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, table) in
        ["raft_state", "raft_log", "raft_ledger", "raft_applied", "ledger", "facts", "blobs"]
            .into_iter()
            .enumerate()
    {
        for (key, value) in storage.load(table).unwrap() {
            bytes.extend([number as u8, key.len() as u8]);
            bytes.extend((value.len() as u16).to_le_bytes());
            bytes.extend([&key[..], &value].concat());
        }
    }
    bytes
}

/// A message as the targets of planes read it.
fn message(frame: &Frame, answers: bool, with_length: bool) -> Vec<u8> {
    let length = (frame.head.len() as u16).to_le_bytes();
    let length = if with_length { &length[..] } else { &[] };
    [&[frame.tag | u8::from(answers) << 7], length, &frame.head, &frame.body.concat()].concat()
}

#[test]
#[ignore = "writes fuzz/corpus"]
fn of_the_replication_plane_and_storage() {
    for (name, backend) in backends() {
        let (heard, rows) = block_on(live(backend));
        for ((tag, answers), frames) in &heard {
            for (which, frame) in ["short", "long"].into_iter().zip(frames) {
                let bytes = message(frame, *answers, true);
                if run("replication_plane", &bytes) {
                    let kind = if *answers { "answer" } else { "request" };
                    write("replication_plane", &format!("{name}-{tag}-{kind}-{which}"), &bytes);
                }
                if *tag == 32 {
                    write("gossip_state", &format!("{name}-{answers}-{which}"), &frame.head);
                }
            }
        }
        let frame = &heard.values().next().unwrap()[1];
        let wire = frame::encode(frame::Status::Request, Class::Election, frame, u64::MAX).unwrap().concat();
        write("frame", name, &[&[0x10], &wire[..]].concat());
        write("storage", name, &rows);
    }
    let greeting =
        [&frame::MAGIC[..], &[frame::VERSION], &7_u64.to_be_bytes(), &1_u64.to_be_bytes()].concat();
    write("replication_plane", "greeting", &[&[0], &greeting[..]].concat());
    write("gossip_state", "epoch", b"12@3");
}

/// What the nodes of a federated job of two rounds say to each other.
async fn job() -> Heard {
    let config = Config {
        rounds: 2,
        training: Training { local_epochs: 1, batch_size: 32, lr: 0.001, momentum: 0.9 },
        examples_per_node: 100,
        test_examples_per_node: 10,
        partition: Partition::Iid,
        data: None,
        seed: 5,
        profile: Profile::Prototype,
        min_fit_clients: 2,
        round_deadline_ms: 20_000,
        aggregator_trains: false,
        resend: false,
        reuse: true,
        stateless: false,
        policy: Policy::First,
        engine: EngineKind::None,
        parameter_bytes: 64,
    };
    let heard: Arc<Mutex<Heard>> = Arc::default();
    let (replication, learning) =
        (ChannelNetwork::new(1, link(), nodes()), ChannelNetwork::new(2, link(), nodes()));
    let mut jobs = tokio::task::JoinSet::new();
    for node in nodes() {
        let site = Site::new(replication.join(node), Arc::new(Silent));
        let store = open(raft(Electorate::Everyone, Payload::Inline), site).await.unwrap();
        jobs.spawn(federated::run(Participant {
            config: config.clone(),
            store,
            learning: Arc::new(Tap { inner: learning.join(node), heard: Arc::clone(&heard) }),
            learner: Arc::new(SizedLearner::new(&config, node)),
            score: 500,
            initial: SizedLearner::initial(&config).unwrap(),
            events: Arc::new(|_| {}),
        }));
    }
    let _ = tokio::time::timeout(Duration::from_secs(600), jobs.join_next()).await;
    heard.lock().unwrap().clone()
}

#[test]
#[ignore = "writes fuzz/corpus"]
fn of_the_learning_plane() {
    for ((tag, answers), [frame, _]) in block_on(job()) {
        let bytes = message(&Frame { body: Vec::new(), ..frame }, answers, false);
        if run("learning_plane", &bytes) {
            write("learning_plane", &format!("{tag}-{}", if answers { "answer" } else { "request" }), &bytes);
        }
    }
    let epoch = Epoch { counter: 3, node: NodeId(1) };
    let parts: Vec<CheckpointId> = (0..3).map(|part| checkpoint(epoch, 2, Slot::Part(part)).id()).collect();
    let index = head::encode(&(replication::Digest::of(b"parameters"), parts));
    write("learning_plane", "index", &[&[0], &index[..]].concat());
    write("learning_plane", "parameters", &[&[1], &0.25_f32.to_le_bytes()[..]].concat());
}

#[test]
#[ignore = "writes fuzz/corpus"]
fn of_the_dictionary() {
    let (key, epoch) = (|| "a key".to_owned(), Epoch { counter: 3, node: NodeId(1) });
    let origin = Some(Origin { session: SessionId(1), serial: 2 });
    let commands = vec![
        Command::OpenSession,
        Command::Change { origin: None, change: Change::Set { key: key(), value: "a value".into() } },
        Command::Change { origin, change: Change::Add { key: "n".into(), by: -5 } },
        Command::Once { key: "once".into(), change: Change::Delete { key: key() } },
    ];
    let mut all: Vec<(u8, Bytes)> = Vec::new();
    all.extend(commands.iter().map(|command| (0, head::encode(&Request::Write(command.clone())))));
    all.extend([
        (0, head::encode(&Request::Read { key: key(), freshness: Freshness::Lease })),
        (0, head::encode(&Request::Page { after: Some(key()), freshness: Freshness::Local })),
        (0, head::encode(&Request::Log { lines: 20 })),
        (
            1,
            head::encode(&Response::Status(Box::new(Status {
                members: vec![NodeId(1)],
                ..Status::default()
            }))),
        ),
        (1, head::encode(&Response::Invalid { reason: "no key".into() })),
        (1, head::encode(&Response::Added { node: NodeId(4), address: "127.0.0.4:8080".into() })),
    ]);
    let known = BTreeMap::from([(NodeId(1), commands.clone()), (NodeId(2), Vec::new())]);
    all.push((2, head::encode(&Message { instance: 4, round: 1, known })));
    let previous = Some(checkpoint(epoch, 1, Slot::Part(1)).id());
    all.push((3, head::encode(&Batch { previous, commands: commands.clone() })));
    let mut machine = Machine::default();
    assert_eq!(machine.apply(&commands[0]), Effect::Opened(SessionId(1)));
    for command in &commands[1..] {
        machine.apply(command);
    }
    all.push((4, head::encode(&Snapshot { last: previous, machine })));
    for (number, (kind, bytes)) in all.into_iter().enumerate() {
        write("keyvalue", &format!("{kind}-{number}"), &[&[kind], &bytes[..]].concat());
    }
}
