//! Lifelines over TCP and TLS, both ends proven by the run's certificates. When a process ends, however that happens, its
//! kernel closes its connections, and whoever is at the other end learns of it within a round trip.
//!
//! Nothing is said over a lifeline but one byte: the accepting end's word that the peer's certificate is good. Every node
//! listens, on the address of its replication plane; it holds one lifeline of each peer, the newest.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinHandle};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Lifeline, LifelineCount};
use crate::store::NodeId;
use crate::transport::identity::{Identity, IdentityError};

/// How long connecting and the handshake may take, each.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a lifeline that is not there is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// Handshakes of others under way at a time; more wait.
const MAX_HANDSHAKES: usize = 64;
/// Said by the accepting end once the lifeline is there.
const THERE: u8 = 1;

/// Why lifelines cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LifelineError {
    /// The address cannot be listened on.
    #[error("cannot listen for lifelines on TCP {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The node's identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// This node's lifelines.
pub struct TcpLifeline {
    local: SocketAddr,
    identity: Identity,
    peers: BTreeMap<NodeId, SocketAddr>,
    connector: TlsConnector,
    counters: Arc<Counters>,
    listening: JoinHandle<()>,
    held: Held,
}

/// The lifelines of others to this node: the newest of each.
type Held = Arc<Mutex<BTreeMap<NodeId, AbortHandle>>>;

impl fmt::Debug for TcpLifeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpLifeline").field("local", &self.local).finish_non_exhaustive()
    }
}

impl TcpLifeline {
    /// Listens on `local` for lifelines of `peers`, and makes them from its address.
    ///
    /// # Errors
    /// If the address is taken, or the identity cannot be used.
    pub async fn bind(
        identity: Identity,
        local: SocketAddr,
        peers: BTreeMap<NodeId, SocketAddr>,
    ) -> Result<Arc<Self>, LifelineError> {
        let connector = TlsConnector::from(Arc::new(identity.lifeline_client()?));
        let acceptor = TlsAcceptor::from(Arc::new(identity.lifeline_server()?));
        let listener = TcpListener::bind(local).await;
        let listener = listener.map_err(|source| LifelineError::Listen { address: local, source })?;
        let local = listener.local_addr().unwrap_or(local);
        let (counters, held) = (Arc::<Counters>::default(), Held::default());
        let listening = tokio::spawn(listen(Gate {
            listener,
            acceptor,
            identity: identity.clone(),
            candidates: peers.keys().copied().collect(),
            counters: counters.clone(),
            held: held.clone(),
        }));
        Ok(Arc::new(Self { local, identity, peers, connector, counters, listening, held }))
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// What was counted so far.
    #[must_use]
    pub fn count(&self) -> LifelineCount {
        self.counters.snapshot()
    }

    /// Ends the lifelines of others, and listens no more. Idempotent.
    pub fn close(&self) {
        self.listening.abort();
        for lifeline in std::mem::take(&mut *lock(&self.held)).into_values() {
            lifeline.abort();
        }
    }

    /// Makes a lifeline to `node`, and waits for its end.
    async fn once(&self, node: NodeId) -> io::Result<()> {
        let address = self.peers.get(&node).copied().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let name = ServerName::try_from(self.identity.name_of(node)).map_err(io::Error::other)?;
        let connecting = async {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            // So that a capture of this node's address sees it.
            socket.bind(SocketAddr::new(self.local.ip(), 0))?;
            let stream = socket.connect(address).await?;
            stream.set_nodelay(true)?;
            let stream = Counting { stream, counters: self.counters.clone() };
            let mut stream = self.connector.connect(name, stream).await?;
            if stream.read_u8().await? != THERE {
                return Err(io::ErrorKind::InvalidData.into());
            }
            io::Result::Ok(stream)
        };
        let mut stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await??;
        self.counters.lifelines.fetch_add(1, Ordering::Relaxed);
        // Whatever comes now is no lifeline any more.
        let _ = stream.read_u8().await;
        Ok(())
    }
}

impl Drop for TcpLifeline {
    fn drop(&mut self) {
        self.close();
    }
}

#[async_trait]
impl Lifeline for TcpLifeline {
    async fn ended(&self, node: NodeId) {
        while let Err(error) = self.once(node).await {
            tracing::debug!(%error, %node, "no lifeline yet");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// What the listening task works with.
struct Gate {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    identity: Identity,
    candidates: Vec<NodeId>,
    counters: Arc<Counters>,
    held: Held,
}

async fn listen(gate: Gate) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let gate = Arc::new(gate);
    loop {
        let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
        let stream = match gate.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a lifeline was not accepted");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let gate = gate.clone();
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, greet(&gate, stream)).await {
                Ok(Ok((node, lifeline))) => hold(&gate, node, lifeline),
                Ok(Err(error)) => tracing::debug!(%error, "a lifeline was refused"),
                Err(_) => tracing::debug!("a lifeline was not made in time"),
            }
            drop(permit);
        });
    }
}

type Accepted = tokio_rustls::server::TlsStream<Counting>;

async fn greet(gate: &Gate, stream: TcpStream) -> io::Result<(NodeId, Accepted)> {
    stream.set_nodelay(true)?;
    let stream = Counting { stream, counters: gate.counters.clone() };
    let mut stream = gate.acceptor.accept(stream).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let node = certificate.and_then(|certificate| gate.identity.whose(certificate, &gate.candidates));
    let node = node.ok_or_else(|| io::Error::other("its certificate names no peer"))?;
    stream.write_u8(THERE).await?;
    stream.flush().await?;
    Ok((node, stream))
}

/// Holds a lifeline until its other end goes, in place of an older one.
fn hold(gate: &Gate, node: NodeId, mut lifeline: Accepted) {
    gate.counters.lifelines.fetch_add(1, Ordering::Relaxed);
    let holding = tokio::spawn(async move {
        let _ = lifeline.read_u8().await;
    });
    if let Some(older) = lock(&gate.held).insert(node, holding.abort_handle()) {
        older.abort();
    }
}

fn lock(held: &Held) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, AbortHandle>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Counters {
    lifelines: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

impl Counters {
    fn snapshot(&self) -> LifelineCount {
        LifelineCount {
            lifelines: self.lifelines.load(Ordering::Relaxed),
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            received_bytes: self.received_bytes.load(Ordering::Relaxed),
        }
    }
}

/// A connection whose bytes are counted.
struct Counting {
    stream: TcpStream,
    counters: Arc<Counters>,
}

impl AsyncRead for Counting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let bytes = (buf.filled().len() - before) as u64;
        self.counters.received_bytes.fetch_add(bytes, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(bytes)) = &written {
            self.counters.sent_bytes.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::identity::Authority;

    const LIMIT: Duration = Duration::from_secs(30);

    async fn node(authority: &Authority, node: u64, peers: &[(u64, SocketAddr)]) -> Arc<TcpLifeline> {
        let peers = peers.iter().map(|(node, address)| (NodeId(*node), *address)).collect();
        let identity = authority.issue(NodeId(node)).unwrap();
        TcpLifeline::bind(identity, "127.0.0.1:0".parse().unwrap(), peers).await.unwrap()
    }

    fn nowhere() -> SocketAddr {
        "127.0.0.1:1".parse().unwrap()
    }

    async fn until(what: &str, mut seen: impl FnMut() -> bool) {
        let waiting = async {
            while !seen() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("{what}"));
    }

    #[tokio::test]
    async fn the_end_of_a_node_ends_its_lifelines_and_not_before() {
        let authority = Authority::new("run").unwrap();
        let aggregator = node(&authority, 1, &[(2, nowhere())]).await;
        let worker = node(&authority, 2, &[(1, aggregator.local_addr())]).await;
        let following = worker.clone();
        let ended = tokio::spawn(async move { following.ended(NodeId(1)).await });
        until("a lifeline", || worker.count().lifelines == 1 && aggregator.count().lifelines == 1).await;
        assert!(!ended.is_finished());
        let (sent, received) = (worker.count().sent_bytes, worker.count().received_bytes);
        assert!(sent > 500 && received > 500, "both prove themselves: {sent} {received}");
        aggregator.close();
        tokio::time::timeout(LIMIT, ended).await.unwrap().unwrap();
        assert_eq!(aggregator.count().sent_bytes, worker.count().received_bytes);
    }

    #[tokio::test]
    async fn strangers_get_no_lifeline() {
        let (authority, other) = (Authority::new("run").unwrap(), Authority::new("run").unwrap());
        let aggregator = node(&authority, 1, &[(2, nowhere())]).await;
        for (stranger, whom) in [
            (node(&other, 2, &[(1, aggregator.local_addr())]).await, "of another run"),
            (node(&authority, 9, &[(1, aggregator.local_addr())]).await, "that is no peer"),
        ] {
            let ended = stranger.once(NodeId(1)).await;
            assert!(ended.is_err(), "a node {whom} was accepted");
            assert_eq!(stranger.count().lifelines, 0);
        }
        assert_eq!(aggregator.count().lifelines, 0);
    }

    #[tokio::test]
    async fn a_lifeline_is_made_once_its_node_listens() {
        let authority = Authority::new("run").unwrap();
        let first = node(&authority, 1, &[(2, nowhere())]).await;
        let address = first.local_addr();
        let identity = authority.issue(NodeId(1)).unwrap();
        first.close();
        until("the port is free", || Arc::strong_count(&first) == 1 && first.listening.is_finished()).await;
        let worker = node(&authority, 2, &[(1, address)]).await;
        let following = worker.clone();
        let ended = tokio::spawn(async move { following.ended(NodeId(1)).await });
        let again = TcpLifeline::bind(identity, address, [(NodeId(2), nowhere())].into()).await.unwrap();
        until("a lifeline", || again.count().lifelines == 1).await;
        assert!(!ended.is_finished());
        ended.abort();
    }
}
