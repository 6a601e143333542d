//! Nodes to test with: a handler that does what a frame's tag says, meshes over both transports, and waiting.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use replication::NodeId;
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::transport::identity::{Authority, Identity, Plane};
use replication::transport::quic::{QuicConfig, QuicTransport, SOCKET_BUFFER_BYTES};
use replication::transport::{Frame, Handler, Refusal, Transport};
use tokio::sync::watch;

/// Answer with the request's head and body.
pub(crate) const ECHO: u8 = 1;
/// Refuse with the head as text.
pub(crate) const REFUSE: u8 = 2;
/// Never answer.
pub(crate) const HANG: u8 = 3;
/// Answer with the id of the asker and the length of the body in the head.
pub(crate) const MEASURE: u8 = 4;

/// How long anything may take before a test says what it waits for.
const PATIENCE: Duration = Duration::from_secs(30);

/// Idle timeout of both transports in these tests.
pub(crate) const IDLE: Duration = Duration::from_millis(1500);

/// Waits for `future`; on timeout says what was awaited.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} in vain: {what}"),
    }
}

/// Does what a frame's tag says, and counts the handlers that hang.
#[derive(Debug, Default)]
pub(crate) struct Actor {
    pub(crate) hanging: watch::Sender<i64>,
}

struct Hanging<'a>(&'a watch::Sender<i64>);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|hanging| *hanging -= 1);
    }
}

#[async_trait]
impl Handler for Actor {
    async fn handle(&self, from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        match request.tag {
            ECHO => Ok(request),
            REFUSE => Err(Refusal(String::from_utf8_lossy(&request.head).into_owned())),
            HANG => {
                self.hanging.send_modify(|hanging| *hanging += 1);
                let _hanging = Hanging(&self.hanging);
                std::future::pending().await
            }
            MEASURE => Ok(Frame::new(MEASURE, format!("{from} {}", request.body_len()))),
            tag => Err(Refusal(format!("unknown tag {tag}"))),
        }
    }
}

impl Actor {
    pub(crate) async fn until_hanging(&self, count: i64) {
        let mut hanging = self.hanging.subscribe();
        let _ = within("handlers to hang", hanging.wait_for(|hanging| *hanging == count)).await;
    }
}

/// Closes transports at the same time: one after the other, the rest would be dialling what is gone.
pub(crate) async fn close_all<T: Transport + ?Sized>(transports: impl IntoIterator<Item = Arc<T>>) {
    let closing = transports.into_iter().map(|transport| async move { transport.close().await });
    within("transports to close", join_all(closing)).await;
}

pub(crate) fn body(bytes: usize) -> Bytes {
    (0..bytes).map(|at| (at % 251) as u8).collect::<Vec<_>>().into()
}

pub(crate) fn ids(count: u64) -> Vec<NodeId> {
    (1..=count).map(NodeId).collect()
}

pub(crate) fn localhost() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

pub(crate) struct Node {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) actor: Arc<Actor>,
}

impl Node {
    fn new(transport: Arc<dyn Transport>) -> Self {
        let actor = Arc::new(Actor::default());
        transport.serve(actor.clone());
        Self { transport, actor }
    }
}

enum Network {
    Quic(Box<QuicNetwork>),
    Channel(ChannelNetwork),
}

/// Nodes 1 to n, all connected.
pub(crate) struct Mesh {
    network: Network,
    nodes: BTreeMap<NodeId, Node>,
}

impl Mesh {
    pub(crate) async fn quic(count: u64) -> Self {
        let mut network = QuicNetwork::new(ids(count));
        let nodes = network.ids.clone().into_iter().map(|id| (id, Node::new(network.open(id)))).collect();
        network.introduce();
        network.ready().await;
        Self { network: Network::Quic(Box::new(network)), nodes }
    }

    pub(crate) async fn channel(count: u64) -> Self {
        let ids = ids(count);
        let link = LinkSpec::default();
        let network = ChannelNetwork::with_limits(1, link, ids.clone(), IDLE, MAX_BODY_BYTES);
        let nodes = ids.iter().map(|id| (*id, Node::new(network.join(*id)))).collect();
        let mesh = Self { network: Network::Channel(network), nodes };
        for id in &ids {
            mesh.until_connected(*id, &mesh.others(*id)).await;
        }
        mesh
    }

    pub(crate) fn node(&self, id: u64) -> &Node {
        &self.nodes[&NodeId(id)]
    }

    pub(crate) fn others(&self, id: NodeId) -> Vec<NodeId> {
        self.nodes.keys().copied().filter(|other| *other != id).collect()
    }

    pub(crate) async fn until_connected(&self, id: NodeId, peers: &[NodeId]) {
        let mut connected = self.nodes[&id].transport.connected();
        let what = format!("node {id} to be connected to {peers:?}");
        let _ = within(&what, connected.wait_for(|connected| connected == peers)).await;
    }

    /// One more node, without a handler and not part of the mesh's list.
    pub(crate) async fn join_mute(&mut self, id: u64) -> Arc<dyn Transport> {
        let id = NodeId(id);
        let transport: Arc<dyn Transport> = match &mut self.network {
            Network::Quic(network) => {
                let transport = network.open(id);
                network.introduce();
                network.ready().await;
                transport
            }
            Network::Channel(network) => network.join(id),
        };
        let mut connected = transport.connected();
        let all = |connected: &Vec<NodeId>| connected.len() == self.nodes.len();
        let _ = within("the new node to be connected", connected.wait_for(all)).await;
        transport
    }

    /// Nothing is heard of a node any more.
    pub(crate) fn silence(&mut self, id: u64) {
        match &mut self.network {
            Network::Quic(network) => network.silence(NodeId(id), true),
            Network::Channel(network) => network.crash(NodeId(id)),
        }
    }

    /// Ends a node without a word.
    pub(crate) async fn kill(&mut self, id: u64) {
        let id = NodeId(id);
        match &mut self.network {
            Network::Quic(network) => network.kill(id).await,
            Network::Channel(network) => network.crash(id),
        }
    }

    /// A new life of a killed node, at the same address.
    pub(crate) async fn restart(&mut self, id: u64) {
        let id = NodeId(id);
        let transport = match &mut self.network {
            Network::Quic(network) => {
                let transport = network.open(id);
                network.introduce();
                transport
            }
            Network::Channel(network) => network.restart(id),
        };
        self.nodes.insert(id, Node::new(transport));
    }

    pub(crate) async fn close(&self) {
        close_all(self.nodes.values().map(|node| node.transport.clone())).await;
    }
}

/// Limit on bodies in these tests.
pub(crate) const MAX_BODY_BYTES: u64 = 64 * 1024 * 1024;

/// QUIC endpoints on 127.0.0.1 that can be silenced.
pub(crate) struct QuicNetwork {
    pub(crate) ids: Vec<NodeId>,
    pub(crate) authority: Authority,
    identities: BTreeMap<NodeId, Identity>,
    pub(crate) transports: BTreeMap<NodeId, Arc<QuicTransport>>,
    addrs: BTreeMap<NodeId, SocketAddr>,
    silences: BTreeMap<NodeId, Arc<AtomicBool>>,
    pub(crate) socket_buffer_bytes: usize,
}

impl QuicNetwork {
    pub(crate) fn new(ids: Vec<NodeId>) -> Self {
        Self {
            ids,
            authority: Authority::new("test").unwrap(),
            identities: BTreeMap::new(),
            transports: BTreeMap::new(),
            addrs: BTreeMap::new(),
            silences: BTreeMap::new(),
            socket_buffer_bytes: SOCKET_BUFFER_BYTES,
        }
    }

    /// Opens a node's endpoint, where it was before if it was. It has no peers yet.
    pub(crate) fn open(&mut self, id: NodeId) -> Arc<QuicTransport> {
        let bind = self.addrs.get(&id).copied().unwrap_or_else(localhost);
        let silence = Arc::new(AtomicBool::new(false));
        let identity = self.identities.entry(id).or_insert_with(|| self.authority.issue(id).unwrap()).clone();
        let mut config = quic_config(identity, bind);
        config.socket_buffer_bytes = self.socket_buffer_bytes;
        let silenced = silence.clone();
        config.wrap_socket =
            Some(Arc::new(move |inner| Arc::new(Silencer { inner, silence: silenced.clone() })));
        let transport = QuicTransport::bind(config).unwrap();
        self.addrs.insert(id, transport.local_addr());
        self.silences.insert(id, silence);
        self.transports.insert(id, transport.clone());
        transport
    }

    /// Tells everybody where the others are.
    pub(crate) fn introduce(&self) {
        for transport in self.transports.values() {
            transport.set_peers(self.addrs.clone()).unwrap();
        }
    }

    pub(crate) async fn ready(&self) {
        for (id, transport) in &self.transports {
            let others: Vec<_> = self.transports.keys().copied().filter(|other| other != id).collect();
            within(&format!("node {id} to be connected"), transport.ready(&others)).await;
        }
    }

    pub(crate) fn silence(&self, id: NodeId, silent: bool) {
        self.silences[&id].store(silent, Ordering::SeqCst);
    }

    /// Nothing leaves the node any more; then its socket is released.
    pub(crate) async fn kill(&mut self, id: NodeId) {
        self.silence(id, true);
        if let Some(transport) = self.transports.remove(&id) {
            transport.close().await;
        }
    }
}

pub(crate) fn quic_config(identity: Identity, bind: SocketAddr) -> QuicConfig {
    QuicConfig {
        idle_timeout: IDLE,
        keep_alive: IDLE / 5,
        max_body_bytes: MAX_BODY_BYTES,
        ..QuicConfig::new(identity, Plane::Replication, bind)
    }
}

/// A socket that can be told to lose everything, in both directions.
#[derive(Debug)]
struct Silencer {
    inner: Arc<dyn AsyncUdpSocket>,
    silence: Arc<AtomicBool>,
}

impl AsyncUdpSocket for Silencer {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.silence.load(Ordering::SeqCst) { Ok(()) } else { self.inner.try_send(transmit) }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let received = self.inner.poll_recv(cx, bufs, meta);
            if received.is_pending() || !self.silence.load(Ordering::SeqCst) {
                return received;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
