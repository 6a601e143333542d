//! The key-value service on the seeded network under virtual time: real stores, real servers and clients, faults from a seed,
//! and the history of all answers checked.

#![allow(clippy::unwrap_used, reason = "a failed test is what unwrap is for; helpers are not seen as tests")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use replication::backup::BackupConfig;
use replication::conformance::simulate;
use replication::gossip::{Detector, GossipConfig};
use replication::memory::MemoryCluster;
use replication::raft::{Electorate, RaftConfig};
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::transport::{Class, Frame, Handler, Traffic, Transport, TransportError};
use replication::{AnyStore, Backend, DEFAULT_RETAINED, NodeId, Payload, Silent, Site, Window, open};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use workloads::keyvalue::check::{Verdict, linearizable, staleness};
use workloads::keyvalue::client::Settings;
use workloads::keyvalue::flood::{self, FloodServer};
use workloads::keyvalue::history::{Ended, Kind, Operation, Stage};
use workloads::keyvalue::load::{Clock, Keys, Load, Runner, runners};
use workloads::keyvalue::message::{Request, Response};
use workloads::keyvalue::{Client, ClientError, Delivery, Freshness, MAX_VALUE_BYTES, Server};

const NODES: u64 = 5;
const CLIENTS: u64 = 4;
const WINDOW: Window = Window { from_ms: 400, to_ms: 800 };
const LINK: LinkSpec = LinkSpec {
    delay: Duration::from_millis(2),
    jitter: Duration::from_millis(1),
    loss: 0.0,
    duplication: 0.0,
    bandwidth_bytes_per_s: None,
};

fn nodes() -> Vec<NodeId> {
    (1..=NODES).map(NodeId).collect()
}

fn client_id(client: u64) -> NodeId {
    NodeId(1000 + client)
}

fn raft(seed: u64) -> Backend {
    Backend::Raft(RaftConfig {
        nodes: nodes().into_iter().collect(),
        electorate: Electorate::Everyone,
        payload: Payload::Inline,
        window: WINDOW,
        heartbeat_ms: 100,
        put_timeout_ms: 3000,
        retained: DEFAULT_RETAINED,
        seed,
    })
}

fn gossip(seed: u64) -> Backend {
    Backend::Gossip(GossipConfig {
        nodes: nodes().into_iter().collect(),
        holders: 3,
        interval_ms: 100,
        fan_out: 2,
        phi_milli: 6000,
        detector: Detector::Phi,
        put_timeout_ms: 3000,
        retained: DEFAULT_RETAINED,
        seed,
    })
}

fn backup(seed: u64) -> Backend {
    Backend::Backup(BackupConfig {
        nodes: nodes().into_iter().collect(),
        backups: 2,
        window: WINDOW,
        heartbeat_ms: 100,
        put_timeout_ms: 3000,
        retained: DEFAULT_RETAINED,
        seed,
    })
}

/// Stores on one network, their servers and clients on another.
struct Cluster {
    inner: ChannelNetwork,
    outer: ChannelNetwork,
    servers: Vec<Server>,
    stores: Vec<AnyStore>,
    tasks: JoinSet<()>,
}

impl Cluster {
    fn networks(seed: u64) -> (ChannelNetwork, ChannelNetwork) {
        let everyone = nodes().into_iter().chain((0..CLIENTS).map(client_id));
        (ChannelNetwork::new(seed, LINK, nodes()), ChannelNetwork::new(seed ^ 1, LINK, everyone))
    }

    async fn start(seed: u64, backend: Backend) -> Self {
        let (inner, outer) = Self::networks(seed);
        let mut stores = Vec::new();
        for node in nodes() {
            stores.push(open(backend.clone(), Site::new(inner.join(node), Arc::new(Silent))).await.unwrap());
        }
        Self::over(stores, inner, outer)
    }

    fn over(stores: Vec<AnyStore>, inner: ChannelNetwork, outer: ChannelNetwork) -> Self {
        let mut tasks = JoinSet::new();
        let mut servers = Vec::new();
        for (node, store) in nodes().into_iter().zip(&stores) {
            let server = Server::new(node, store.clone(), "the test".into());
            outer.join(node).serve(Arc::new(server.clone()));
            let running = server.clone();
            tasks.spawn(async move { running.run().await });
            servers.push(server);
        }
        Self { inner, outer, servers, stores, tasks }
    }

    fn client(&self, number: u64, settings: Settings) -> Client {
        Client::new(self.outer.join(client_id(number)), nodes(), number as usize, settings)
    }

    fn partition(&self, node: NodeId) {
        let (one, others): (Vec<NodeId>, Vec<NodeId>) = nodes().into_iter().partition(|other| *other == node);
        self.inner.partition(&[&one, &others]);
    }

    /// Waits until every node has the same state.
    async fn converge(&self) {
        let same = async {
            loop {
                let copies: Vec<_> =
                    self.servers.iter().map(|server| server.copy().machine().clone()).collect();
                if copies.windows(2).all(|pair| pair[0] == pair[1]) {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(60), same).await.expect("the nodes' states do not become the same");
    }

    async fn close(mut self) {
        self.tasks.shutdown().await;
        for store in self.stores {
            store.close().await;
        }
    }
}

fn load(seed: u64, freshness: Freshness) -> Load {
    Load {
        clients: CLIENTS as u32,
        entries: 6,
        value_bytes: 32,
        read_ratio: 0.5,
        delete_ratio: 0.1,
        keys: Keys::Uniform,
        rate: Some(100.0),
        duration_ns: 20_000_000_000,
        patience_ns: 3_000_000_000,
        freshness,
        exactly_once: true,
        seed,
    }
}

/// Stops or cuts off a drawn node, again and again, and lets it be well in between.
async fn disturb(cluster: &Cluster, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xfa);
    for _ in 0..4 {
        sleep(Duration::from_millis(rng.random_range(500..2000))).await;
        let node = *nodes().choose(&mut rng).unwrap();
        let paused = rng.random_bool(0.5);
        if paused {
            cluster.inner.pause(node);
            cluster.outer.pause(node);
        } else {
            cluster.partition(node);
        }
        sleep(Duration::from_millis(rng.random_range(500..3000))).await;
        cluster.inner.resume(node);
        cluster.outer.resume(node);
        cluster.inner.heal();
    }
}

/// Fills, loads while nodes are disturbed, and verifies; returns what clients saw.
async fn history(cluster: &Cluster, load: Load) -> Vec<Operation> {
    let begun = Instant::now();
    let clock: Clock = Arc::new(move || begun.elapsed().as_nanos() as u64);
    let clients = (0..CLIENTS).map(|number| cluster.client(number, load.settings())).collect();
    let mut clients = stage(runners(load, clients, &clock), Stage::Fill).await;
    let (loaded, ()) = tokio::join!(stage(clients, Stage::Load), disturb(cluster, load.seed));
    cluster.converge().await;
    clients = stage(loaded, Stage::Verify).await;
    clients.iter_mut().flat_map(Runner::take_history).collect()
}

async fn stage(clients: Vec<Runner<Client>>, stage: Stage) -> Vec<Runner<Client>> {
    let mut tasks = Vec::new();
    for mut client in clients {
        tasks.push(tokio::spawn(async move {
            match stage {
                Stage::Fill => client.fill().await,
                Stage::Load => client.run(Instant::now()).await,
                Stage::Verify => client.verify().await,
            }
            client
        }));
    }
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await.unwrap());
    }
    done
}

fn acknowledged(history: &[Operation]) -> usize {
    history.iter().filter(|operation| operation.ended == Ended::Ok && operation.kind != Kind::Get).count()
}

#[test]
fn raft_is_linearizable_while_nodes_are_stopped_and_cut_off() {
    for seed in 0..20 {
        let freshness = if seed % 2 == 0 { Freshness::Index } else { Freshness::Lease };
        let history = simulate(seed, async {
            let cluster = Cluster::start(seed, raft(seed)).await;
            let history = history(&cluster, load(seed, freshness)).await;
            cluster.close().await;
            history
        });
        assert!(acknowledged(&history) > 100, "seed {seed}: {} writes", acknowledged(&history));
        assert_eq!(linearizable(&history), Verdict::Linearizable, "seed {seed}");
        let doctored = doctor(&history);
        assert_ne!(linearizable(&doctored), Verdict::Linearizable, "seed {seed}, doctored");
    }
}

/// The history with the last read of some key answered by the first value that the key ever had.
fn doctor(history: &[Operation]) -> Vec<Operation> {
    let mut doctored = history.to_vec();
    let last = doctored
        .iter()
        .rposition(|operation| operation.stage == Stage::Verify && operation.ended == Ended::Ok)
        .unwrap();
    let key = doctored[last].key;
    let first = doctored.iter().find(|operation| operation.key == key && operation.stage == Stage::Fill);
    doctored[last].value = first.unwrap().value;
    doctored
}

#[test]
fn gossip_and_backup_converge_with_bounded_staleness() {
    for seed in 0..5 {
        for backend in [gossip(seed), backup(seed)] {
            let history = simulate(seed, async {
                let cluster = Cluster::start(seed, backend.clone()).await;
                let begun = Instant::now();
                let clock: Clock = Arc::new(move || begun.elapsed().as_nanos() as u64);
                let load = load(seed, Freshness::Local);
                let clients = (0..CLIENTS).map(|number| cluster.client(number, load.settings())).collect();
                let clients = stage(runners(load, clients, &clock), Stage::Fill).await;
                let clients = stage(clients, Stage::Load).await;
                cluster.converge().await;
                let mut clients = stage(clients, Stage::Verify).await;
                cluster.close().await;
                clients.iter_mut().flat_map(Runner::take_history).collect::<Vec<_>>()
            });
            let stale = staleness(&history);
            assert!(acknowledged(&history) > 100 && stale.made_up == 0, "seed {seed}: {stale:?}");
            assert!(stale.most_ns < 2_000_000_000, "seed {seed}, {backend:?}: {stale:?}");
            let verified: Vec<Operation> = history
                .into_iter()
                .filter(|operation| operation.stage != Stage::Load || operation.kind != Kind::Get)
                .collect();
            assert_eq!(
                linearizable(&verified),
                Verdict::Linearizable,
                "seed {seed}: what is read in the end"
            );
        }
    }
}

#[test]
fn a_seed_repeats_its_history() {
    let run = |seed| {
        simulate(seed, async move {
            let cluster = Cluster::start(seed, raft(seed)).await;
            let history = history(&cluster, load(seed, Freshness::Index)).await;
            cluster.close().await;
            history
        })
    };
    assert_eq!(run(3), run(3));
}

/// Loses responses: the request is acted on, and whoever asked never hears.
#[derive(Debug)]
struct Deaf {
    inner: Arc<dyn Transport>,
    share: f64,
    rng: Mutex<ChaCha8Rng>,
}

#[async_trait]
impl Transport for Deaf {
    fn local(&self) -> NodeId {
        self.inner.local()
    }
    fn peers(&self) -> Vec<NodeId> {
        self.inner.peers()
    }
    async fn request(&self, to: NodeId, class: Class, request: Frame) -> Result<Frame, TransportError> {
        let response = self.inner.request(to, class, request).await?;
        if self.rng.lock().unwrap().random_bool(self.share) {
            return Err(TransportError::Interrupted { peer: to, reason: "the response was lost".into() });
        }
        Ok(response)
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

/// What a counter reads after each of four clients has added 1 to it 100 times, a fifth of all responses lost.
async fn counted(delivery: Delivery) -> i64 {
    let cluster = Cluster::start(11, raft(11)).await;
    let mut tasks = JoinSet::new();
    for number in 0..CLIENTS {
        let transport = Deaf {
            inner: cluster.outer.join(client_id(number)),
            share: 0.2,
            rng: Mutex::new(ChaCha8Rng::seed_from_u64(number)),
        };
        let settings = Settings { delivery, patience: Duration::from_secs(60), ..Settings::default() };
        let mut client = Client::new(Arc::new(transport), nodes(), 0, settings);
        tasks.spawn(async move {
            for _ in 0..100 {
                client.add("counter", 1).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let server = &cluster.servers[0];
    cluster.converge().await;
    let counter = server.copy().machine().get("counter").unwrap().clone();
    cluster.close().await;
    std::str::from_utf8(&counter).unwrap().parse().unwrap()
}

#[test]
fn counters_are_exact_although_responses_are_lost_and_not_with_at_least_once() {
    assert_eq!(simulate(1, counted(Delivery::ExactlyOnce)), 400);
    let counted_again = simulate(1, counted(Delivery::AtLeastOnce));
    assert!(counted_again > 430, "a fifth of the responses is lost: {counted_again}");
}

fn over_memory() -> Cluster {
    let memory = MemoryCluster::new(nodes());
    let stores = nodes().into_iter().map(|node| memory.store(node) as AnyStore).collect();
    let (inner, outer) = Cluster::networks(1);
    Cluster::over(stores, inner, outer)
}

#[test]
fn a_dictionary_is_read_written_and_iterated_from_any_node() {
    simulate(1, async {
        let cluster = over_memory();
        let mut client = cluster.client(3, Settings::default());
        assert_eq!(client.get("none").await, Ok(None));
        for number in 0..400 {
            let existed =
                client.set(&format!("key-{number:03}"), Bytes::from(vec![b'x'; 1000])).await.unwrap();
            assert!(!existed);
        }
        assert!(client.delete("key-007").await.unwrap());
        assert_eq!(client.get("key-007").await, Ok(None));
        let entries = client.entries().await.unwrap();
        assert_eq!(entries.len(), 399, "more than one page");
        assert!(entries.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(client.configuration().await.unwrap(), "the test");
        assert!(client.tally().redirects > 0, "the client asked node 4 first");
        let status = client.status(NodeId(1)).await.unwrap();
        assert!(status.leads && status.writes > 400 && status.appends > 0, "{status:?}");
        let log = client.log(NodeId(1), 2).await.unwrap();
        assert_eq!(log.last().unwrap().command, "delete key-007");
        let too_large = client.set("k", vec![0; MAX_VALUE_BYTES + 1].into()).await.unwrap_err();
        assert!(matches!(too_large, ClientError::TooLarge(_)) && !too_large.maybe());
        cluster.close().await;
    });
}

/// Sends whoever asks to another node, or to nobody.
struct Misleading(Option<NodeId>);

#[async_trait]
impl Handler for Misleading {
    async fn handle(&self, _from: NodeId, request: Frame) -> Result<Frame, replication::transport::Refusal> {
        let _: Request = workloads::keyvalue::message::decode(request)?;
        Ok(workloads::keyvalue::message::encode(&Response::Elsewhere { leader: self.0 }))
    }
}

fn misled(leaders: [Option<NodeId>; 2]) -> ClientError {
    simulate(1, async move {
        let network = ChannelNetwork::new(1, LINK, [NodeId(1), NodeId(2), client_id(0)]);
        let ends = [NodeId(1), NodeId(2)].map(|node| network.join(node));
        for (end, leader) in ends.iter().zip(leaders) {
            end.serve(Arc::new(Misleading(leader)));
        }
        let settings = Settings { patience: Duration::from_secs(2), ..Settings::default() };
        let mut client = Client::new(network.join(client_id(0)), vec![NodeId(1), NodeId(2)], 0, settings);
        client.set("k", Bytes::new()).await.unwrap_err()
    })
}

#[test]
fn a_redirect_loop_and_no_leader_end_with_the_client_s_patience() {
    let looped = misled([Some(NodeId(2)), Some(NodeId(1))]);
    assert!(looped.to_string().starts_with("nodes 1, 2 sent the request to each other for 2"), "{looped}");
    let nobody = misled([None, None]);
    assert!(nobody.to_string().starts_with("no node led within 2"), "{nobody}");
}

/// What clients saw of servers by flooding, of which one crashes; and the frames that servers sent to each other in each instance.
async fn flooded(seed: u64, crash: bool) -> (Vec<Operation>, f64) {
    let everyone = nodes().into_iter().chain((0..CLIENTS).map(client_id));
    let outer = ChannelNetwork::new(seed ^ 1, LINK, everyone);
    // A crash is known of soon.
    let idle = Duration::from_millis(200);
    let inner = ChannelNetwork::with_limits(seed, LINK, nodes(), idle, 1 << 20);
    let (mut servers, mut transports, mut tasks) = (Vec::new(), Vec::new(), JoinSet::new());
    for node in nodes() {
        let server = FloodServer::new(node, &nodes(), "the test".into());
        let transport = inner.join(node);
        transport.serve(Arc::new(server.clone()));
        outer.join(node).serve(Arc::new(server.clone()));
        servers.push(server);
        transports.push(transport);
    }
    for (server, transport) in servers.iter().zip(&transports) {
        transport.connected().wait_for(|peers| peers.len() as u64 == NODES - 1).await.unwrap();
        let (server, transport) = (server.clone(), transport.clone());
        tasks.spawn(async move { server.run(transport).await });
    }
    let begun = Instant::now();
    let clock: Clock = Arc::new(move || begun.elapsed().as_nanos() as u64);
    let load = Load { duration_ns: 5_000_000_000, ..load(seed, Freshness::Index) };
    let client = |number| {
        let transport = outer.join(client_id(number));
        Client::new(transport, nodes(), number as usize, load.settings())
    };
    let clients = stage(runners(load, (0..CLIENTS).map(client).collect(), &clock), Stage::Fill).await;
    let crashes = async {
        sleep(Duration::from_millis(1000 + seed * 37)).await;
        if crash {
            inner.crash(NodeId(2));
            outer.crash(NodeId(2));
        }
    };
    let (clients, ()) = tokio::join!(stage(clients, Stage::Load), crashes);
    let mut clients = stage(clients, Stage::Verify).await;
    let alive = || (0..NODES as usize).filter(|index| !(crash && *index == 1));
    let sent: u64 =
        alive().flat_map(|index| transports[index].traffic().frames).map(|(_, of)| of.sent_frames).sum();
    // What was decided last may not be decided everywhere yet.
    let decided = || alive().map(|index| servers[index].decided());
    let most = decided().max().unwrap();
    let same = async {
        while decided().any(|of| of < most) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(5), same).await.expect("not all decide");
    let copies: Vec<_> = alive().map(|index| servers[index].copy()).collect();
    assert!(copies.windows(2).all(|pair| pair[0] == pair[1]), "seed {seed}");
    tasks.shutdown().await;
    (clients.iter_mut().flat_map(Runner::take_history).collect(), sent as f64 / most as f64)
}

#[test]
fn flooding_agrees_and_costs_what_it_must() {
    for seed in 0..6 {
        let crash = seed % 2 == 1;
        let (history, frames) = simulate(seed, flooded(seed, crash));
        assert!(acknowledged(&history) > 100, "seed {seed}: {} writes", acknowledged(&history));
        assert_eq!(linearizable(&history), Verdict::Linearizable, "seed {seed}");
        // A message and its receipt.
        let most = 2.0 * flood::bound(NODES) as f64;
        assert!(frames <= most, "seed {seed}: {frames} frames an instance, at most {most}");
        assert!(crash || frames > 0.97 * most, "seed {seed}: {frames} frames an instance, {most} are needed");
    }
}
