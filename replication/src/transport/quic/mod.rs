//! The transport between processes and hosts: QUIC, mutually authenticated, one endpoint per plane.
//!
//! ```text
//!   mod      QuicTransport: open, request, close       socket   UDP socket, buffers, windows, timers
//!   endpoint the socket in use, and what runs on it
//!   link     dials, accepts, keeps the mesh warm       stream   one request and its response on one stream
//!   pool     the live connection per peer and lane; datagrams counted
//!   impair   seeded delay, jitter, loss and reordering between endpoint and socket
//! ```
//!
//! Every pair of nodes has two connections, one per [`Lane`], each used in both directions whoever dialled it. They are
//! kept alive and made anew in the background: [`Transport::request`] never dials, so without a live connection it
//! fails at once instead of late.
//!
//! A peer that was killed or cut off is noticed by silence: after the idle timeout, or when its successor answers the
//! old connection with a stateless reset. Both make pending requests [`Interrupted`](TransportError::Interrupted).
//!
//! Bulk cannot delay control by queueing before it, because they share no connection. Congestion control is quinn's
//! default (Cubic): paths are short and shared with other flows, and BBR's gain on long lossy ones is not worth its
//! unfairness. What this module deliberately does not know: what frames mean, and which peer matters.

#[cfg(feature = "fuzz")]
pub use link::greeting;
pub mod corrupt;
mod endpoint;
pub mod impair;
mod link;
mod pool;
mod socket;
mod stream;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use quinn::{AsyncUdpSocket, ClientConfig};
use tokio::sync::watch;
use tokio::task::JoinSet;

use corrupt::Corruption;
use endpoint::{Bound, Running};
pub use link::{
    FIRST_BACKOFF, HANDSHAKE_TIMEOUT, HIGHER_ID_PATIENCE, MAX_BACKOFF, MAX_FIRST_ATTEMPTS, MAX_HANDSHAKES,
    RETIREMENT,
};
use pool::{Pool, lock};
pub use socket::{
    CONTROL_WINDOW_BYTES, MAX_BULK_STREAMS, MAX_BULK_WINDOW_BYTES, MAX_CONTROL_STREAMS,
    MIN_BULK_WINDOW_BYTES, SOCKET_BUFFER_BYTES,
};
use stream::HandlerSlots;
pub use stream::{MAX_BULK_HANDLERS, MAX_CONTROL_HANDLERS};

use super::count::FrameCounters;
use super::identity::{self, Identity, IdentityError, Plane};
use super::{Class, Frame, Handler, Lane, Traffic, Transport, TransportError};
use crate::store::{MAX_PARAMETER_BYTES, NodeId};

/// Longest [`Transport::close`] waits for peers to take note, and then for the socket to be released.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Puts something between the endpoint and its socket: injected delay and loss, or a tap.
pub type SocketWrapper = Arc<dyn Fn(Arc<dyn AsyncUdpSocket>) -> Arc<dyn AsyncUdpSocket> + Send + Sync>;

/// How to open a [`QuicTransport`].
#[derive(Clone)]
pub struct QuicConfig {
    /// Who this node is; [`Transport::local`] is its id.
    pub identity: Identity,
    /// Which traffic the endpoint carries.
    pub plane: Plane,
    /// Where to listen; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// The other nodes' addresses on this plane. Can be set later, see [`QuicTransport::set_peers`].
    pub peers: BTreeMap<NodeId, SocketAddr>,
    /// Limit on the body of a frame in both directions, in bytes.
    pub max_body_bytes: u64,
    /// A connection without a sign of its peer for this long is lost. Both ends' shorter value is in force.
    pub idle_timeout: Duration,
    /// A connection that was idle for this long is probed by the node that dialled it.
    pub keep_alive: Duration,
    /// A handshake that takes longer is given up and tried anew.
    pub handshake_timeout: Duration,
    /// Send and receive buffer asked of the kernel, in bytes.
    pub socket_buffer_bytes: usize,
    /// Receive window of each bulk connection in bytes, instead of the one derived from the socket's buffer.
    pub bulk_window_bytes: Option<u32>,
    /// Seed of the pauses between attempts to connect.
    pub seed: u64,
    /// Whether guests ([`identity::GUEST`]) may connect. They are served on the control lane, any number of them, and are no
    /// peers.
    pub guests: bool,
    /// Wraps the socket.
    pub wrap_socket: Option<SocketWrapper>,
    /// What happens to frames between codec and connection.
    pub corruption: Corruption,
}

impl QuicConfig {
    /// A configuration with no peers yet and default limits and timers.
    #[must_use]
    pub fn new(identity: Identity, plane: Plane, bind: SocketAddr) -> Self {
        Self {
            seed: identity.node().0,
            guests: false,
            identity,
            plane,
            bind,
            peers: BTreeMap::new(),
            max_body_bytes: MAX_PARAMETER_BYTES,
            idle_timeout: Duration::from_secs(5),
            keep_alive: Duration::from_secs(1),
            handshake_timeout: HANDSHAKE_TIMEOUT,
            socket_buffer_bytes: SOCKET_BUFFER_BYTES,
            bulk_window_bytes: None,
            wrap_socket: None,
            corruption: Corruption::default(),
        }
    }
}

impl fmt::Debug for QuicConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicConfig")
            .field("identity", &self.identity)
            .field("plane", &self.plane)
            .field("bind", &self.bind)
            .field("peers", &self.peers)
            .field("max_body_bytes", &self.max_body_bytes)
            .field("idle_timeout", &self.idle_timeout)
            .field("keep_alive", &self.keep_alive)
            .field("socket_buffer_bytes", &self.socket_buffer_bytes)
            .field("bulk_window_bytes", &self.bulk_window_bytes)
            .field("seed", &self.seed)
            .field("guests", &self.guests)
            .field("wrap_socket", &self.wrap_socket.is_some())
            .finish()
    }
}

/// Why a transport cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another socket has the address.
    #[error("UDP port {} of {} is already in use by another process", .addr.port(), .addr.ip())]
    AddressInUse {
        /// The address.
        addr: SocketAddr,
    },
    /// The socket cannot be opened for another reason.
    #[error("cannot open a UDP socket on {addr}: {source}")]
    Socket {
        /// The address.
        addr: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// TLS cannot be set up for QUIC.
    #[error("cannot set up TLS for QUIC: {0}")]
    Crypto(String),
    /// A setting makes no sense.
    #[error("invalid transport configuration: {0}")]
    Config(String),
    /// There is no tokio runtime to run on.
    #[error("a transport must be opened inside a tokio runtime")]
    NoRuntime,
}

/// Connections and frames that were refused since the transport was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Connections this node refused: certificate, identity or protocol of the other side.
    pub connections: u64,
    /// Connections of this node that the other side refused.
    pub by_peers: u64,
    /// Streams of authenticated peers that carried no acceptable request.
    pub frames: u64,
    /// Who was refused last, and why.
    pub last: Option<String>,
}

/// What the transport's tasks share.
struct Shared {
    local: NodeId,
    /// Tells this process from an earlier one of the same node.
    incarnation: u64,
    config: QuicConfig,
    granted_buffer: usize,
    attempts: AtomicU64,
    ways: Mutex<Ways>,
    pool: Arc<Pool>,
    frames: FrameCounters,
    handlers: HandlerSlots,
    handler: watch::Sender<Option<Arc<dyn Handler>>>,
    refusals: watch::Sender<Refusals>,
    closed: AtomicBool,
}

/// Where peers are, and how they are dialled.
struct Ways {
    peers: BTreeMap<NodeId, SocketAddr>,
    control: ClientConfig,
    bulk: ClientConfig,
}

impl Shared {
    fn peers(&self) -> Vec<NodeId> {
        lock(&self.ways).peers.keys().copied().collect()
    }

    fn way_to(&self, peer: NodeId, lane: Lane) -> Option<(SocketAddr, ClientConfig)> {
        let ways = lock(&self.ways);
        let config = match lane {
            Lane::Control => &ways.control,
            Lane::Bulk => &ways.bulk,
        };
        ways.peers.get(&peer).map(|addr| (*addr, config.clone()))
    }

    /// Whether this end is a guest of the nodes it dials.
    fn is_guest(&self) -> bool {
        self.local == identity::GUEST
    }

    fn next_attempt(&self) -> u64 {
        self.attempts.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// `error`, unless the transport itself was closed.
    fn gone(&self, error: TransportError) -> TransportError {
        if self.closed.load(Ordering::Acquire) { TransportError::Closed } else { error }
    }

    fn refused_connection(&self, who: impl fmt::Display, reason: &str) {
        tracing::warn!(%who, reason, "connection refused");
        self.note(format!("{who}: {reason}"), |refusals| refusals.connections += 1);
    }

    fn refused_by_peer(&self, who: impl fmt::Display, reason: &str) {
        tracing::warn!(%who, reason, "the peer refused this node's connection");
        self.note(format!("by {who}: {reason}"), |refusals| refusals.by_peers += 1);
    }

    fn refused_frame(&self, peer: NodeId, reason: &str) {
        tracing::warn!(%peer, reason, "frame refused");
        self.note(format!("node {peer}: {reason}"), |refusals| refusals.frames += 1);
    }

    fn note(&self, last: String, count: impl FnOnce(&mut Refusals)) {
        self.refusals.send_modify(|refusals| {
            count(refusals);
            refusals.last = Some(last);
        });
    }
}

/// One node's end of one plane, over QUIC. See the module's documentation.
pub struct QuicTransport {
    shared: Arc<Shared>,
    addr: SocketAddr,
    running: Mutex<Option<Running>>,
    /// Held while closing, so that whoever closes second waits for the first.
    closing: tokio::sync::Mutex<()>,
}

impl fmt::Debug for QuicTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicTransport")
            .field("local", &self.shared.local)
            .field("plane", &self.shared.config.plane)
            .field("addr", &self.addr)
            .field("connected", &*self.shared.pool.connected().borrow())
            .finish_non_exhaustive()
    }
}

impl QuicTransport {
    /// Binds the socket and begins to connect to the peers. Dropping the transport stops everything; prefer
    /// [`Transport::close`], which tells the peers and waits.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(config: QuicConfig) -> Result<Arc<Self>, BindError> {
        let bound = Arc::new(Bound::open(&config)?);
        Self::on(bound, config)
    }

    /// As [`QuicTransport::bind`] for `count` guests over one socket, each with connections of its own: one wake-up reads what
    /// arrived for all of them.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind_guests(config: &QuicConfig, count: usize) -> Result<Vec<Arc<Self>>, BindError> {
        if config.identity.node() != identity::GUEST {
            return Err(BindError::Config("only guests share a socket".into()));
        }
        let bound = Arc::new(Bound::open(config)?);
        // Of their own minds, so that those who are refused do not all come again at once.
        let config = |number| QuicConfig { seed: config.seed.wrapping_add(number), ..config.clone() };
        (0..count as u64).map(|number| Self::on(bound.clone(), config(number))).collect()
    }

    fn on(bound: Arc<Bound>, config: QuicConfig) -> Result<Arc<Self>, BindError> {
        if config.keep_alive >= config.idle_timeout {
            return Err(BindError::Config("keep_alive must be below idle_timeout".into()));
        }
        let (addr, granted_buffer) = (bound.addr, bound.granted_buffer);
        let (server, control, bulk) = connection_configs(&config, granted_buffer, config.peers.len())?;
        // Nobody calls a guest.
        if config.identity.node() != identity::GUEST {
            bound.endpoint.set_server_config(Some(server));
        }
        let mut incarnation = [0; 8];
        identity::random(&mut incarnation)?;
        let peers = config.peers.clone();
        let shared = Arc::new(Shared {
            local: config.identity.node(),
            incarnation: u64::from_be_bytes(incarnation),
            granted_buffer,
            attempts: AtomicU64::new(0),
            ways: Mutex::new(Ways { peers: BTreeMap::new(), control, bulk }),
            pool: Arc::new(Pool::new()),
            frames: FrameCounters::default(),
            handlers: HandlerSlots::new(),
            handler: watch::Sender::new(None),
            refusals: watch::Sender::new(Refusals::default()),
            closed: AtomicBool::new(false),
            config,
        });
        let mut accepting = JoinSet::new();
        if !shared.is_guest() {
            accepting.spawn(link::accept(shared.clone(), bound.endpoint.clone()));
        }
        let running = Running { bound, accepting, keeping: BTreeMap::new() };
        let transport = Arc::new(Self {
            shared,
            addr,
            running: Mutex::new(Some(running)),
            closing: tokio::sync::Mutex::new(()),
        });
        transport.set_peers(peers)?;
        Ok(transport)
    }

    /// The address the socket is bound to.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Replaces the peers. Connections to nodes that are no longer among them are closed; a new address is used from
    /// the next attempt on. This node itself is ignored. Does nothing once the transport is closed.
    ///
    /// # Errors
    /// [`BindError::Identity`] or [`BindError::Crypto`], as when opening.
    pub fn set_peers(&self, mut peers: BTreeMap<NodeId, SocketAddr>) -> Result<(), BindError> {
        let shared = &self.shared;
        peers.remove(&shared.local);
        let (server, control, bulk) = connection_configs(&shared.config, shared.granted_buffer, peers.len())?;
        let mut running = lock(&self.running);
        let Some(running) = running.as_mut() else { return Ok(()) };
        if !shared.is_guest() {
            running.accept(server);
        }
        *lock(&shared.ways) = Ways { peers: peers.clone(), control, bulk };
        running.keeping.retain(|id, _| peers.contains_key(id));
        for link in shared.pool.remove_unless(|id| peers.contains_key(&id)) {
            link.connection.close(link::code::REFUSED, b"no longer a peer");
        }
        for id in peers.into_keys() {
            running.keeping.entry(id).or_insert_with(|| {
                let keep = |lane| {
                    let bound = &running.bound;
                    link::keep(
                        shared.clone(),
                        bound.endpoint.clone(),
                        bound.first_attempts.clone(),
                        (id, lane),
                    )
                };
                let lanes: &[Lane] =
                    if shared.is_guest() { &[Lane::Control] } else { &[Lane::Control, Lane::Bulk] };
                lanes.iter().copied().map(keep).collect()
            });
        }
        Ok(())
    }

    /// Follows what was refused, on either side.
    #[must_use]
    pub fn refusals(&self) -> watch::Receiver<Refusals> {
        self.shared.refusals.subscribe()
    }

    /// Whether there is a live connection to `peer` on `lane`.
    #[must_use]
    pub fn is_live(&self, peer: NodeId, lane: Lane) -> bool {
        self.shared.pool.live(peer, lane).is_some()
    }

    /// Waits until there is a live control connection to one of the peers. Has no timeout of its own.
    pub async fn any_ready(&self) {
        let mut changes = self.shared.pool.changes();
        let live = |id: NodeId| self.is_live(id, Lane::Control);
        // The pool lives as long as this transport.
        let _ = changes.wait_for(|_| self.shared.peers().into_iter().any(live)).await;
    }

    /// Waits until there are live connections to all of `peers` on both lanes. Has no timeout of its own.
    pub async fn ready(&self, peers: &[NodeId]) {
        let mut changes = self.shared.pool.changes();
        let live = |id: &NodeId| self.is_live(*id, Lane::Control) && self.is_live(*id, Lane::Bulk);
        // The pool lives as long as this transport.
        let _ = changes.wait_for(|_| peers.iter().all(live)).await;
    }

    /// Receive buffer of the socket, in bytes, as the kernel granted it (of [`QuicConfig::socket_buffer_bytes`]).
    #[must_use]
    pub fn granted_buffer_bytes(&self) -> usize {
        self.shared.granted_buffer
    }
}

/// Parameters of accepted, control and bulk connections.
fn connection_configs(
    config: &QuicConfig,
    granted_buffer: usize,
    peers: usize,
) -> Result<(quinn::ServerConfig, ClientConfig, ClientConfig), BindError> {
    let window = config.bulk_window_bytes.unwrap_or_else(|| socket::bulk_window(granted_buffer, peers));
    Ok((
        socket::server_config(config, window)?,
        socket::client_config(config, Lane::Control, window)?,
        socket::client_config(config, Lane::Bulk, window)?,
    ))
}

#[async_trait]
impl Transport for QuicTransport {
    fn local(&self) -> NodeId {
        self.shared.local
    }

    fn peers(&self) -> Vec<NodeId> {
        self.shared.peers()
    }

    async fn request(&self, to: NodeId, class: Class, request: Frame) -> Result<Frame, TransportError> {
        stream::request(&self.shared, to, class, request).await
    }

    fn serve(&self, handler: Arc<dyn Handler>) {
        if !self.shared.closed.load(Ordering::Acquire) {
            self.shared.handler.send_replace(Some(handler));
        }
    }

    fn connected(&self) -> watch::Receiver<Vec<NodeId>> {
        self.shared.pool.connected()
    }

    fn round_trips(&self) -> Vec<(NodeId, Duration)> {
        self.shared.pool.round_trips()
    }

    fn traffic(&self) -> Traffic {
        let (control, bulk) = self.shared.pool.datagrams();
        Traffic { frames: self.shared.frames.snapshot(), control, bulk }
    }

    async fn close(&self) {
        let _closing = self.closing.lock().await;
        self.shared.closed.store(true, Ordering::Release);
        let running = lock(&self.running).take();
        if let Some(running) = running {
            running.shut_down().await;
        }
        self.shared.pool.remove_unless(|_| false);
        // A handler often owns this transport: let go of it.
        self.shared.handler.send_replace(None);
    }
}
