//! Makes connections and keeps them: dialling, accepting, and the greeting by which both ends agree that it stands.
//!
//! ```text
//!   dialler                                                      acceptor
//!      | ------- TLS: I am node-1, this is .../control ---------->  | whose certificate? a peer's?
//!      | --- first stream: magic, version, incarnation, attempt --> | newer than what I have?
//!      | <------------- magic, version, incarnation --------------  | admitted; else closed with a code
//! ```
//!
//! In TLS 1.3 a dialler is done before the acceptor has checked its certificate, so a connection counts as live only
//! when the greeting was answered.
//!
//! The lower id dials at once, the higher one only if nothing came for [`HIGHER_ID_PATIENCE`]: so a restart of either
//! heals, and crossing connections stay rare.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::HandshakeData;
use quinn::rustls::pki_types::CertificateDer;
use quinn::{Connection, ConnectionError, Endpoint, Incoming, SendStream, VarInt};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Shared;
use super::pool::{Counting, Duplicate, Link, Origin, Seat};
use super::socket::{CONTROL_WINDOW_BYTES, MAX_CONTROL_STREAMS};
use super::stream::answer;
use crate::store::NodeId;
use crate::transport::identity::GUEST;
use crate::transport::{Lane, frame};

/// Longest a handshake with greeting may take before it is given up and tried anew, unless configured otherwise.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the higher id waits to be dialled before it dials.
pub const HIGHER_ID_PATIENCE: Duration = Duration::from_millis(100);

/// First attempts of an endpoint under way at once. With many nodes all handshakes of a beginning at once take so long on few
/// cores that they are given up before they are done, and begun again: nobody ever connects.
pub const MAX_FIRST_ATTEMPTS: usize = 8;

/// Pause after a failed attempt; doubles with every further one.
pub const FIRST_BACKOFF: Duration = Duration::from_millis(20);

/// Longest pause between attempts. Each pause is drawn from its upper half.
pub const MAX_BACKOFF: Duration = Duration::from_millis(500);

/// How long requests may finish on a connection that another one of the same two processes replaced.
pub const RETIREMENT: Duration = Duration::from_secs(1);

/// Handshakes accepted at once; more are refused and tried again by their dialler.
pub const MAX_HANDSHAKES: usize = 256;

/// Codes with which a connection is closed.
pub(super) mod code {
    use quinn::VarInt;

    pub(in super::super) const CLOSING: VarInt = VarInt::from_u32(0);
    pub(in super::super) const DUPLICATE: VarInt = VarInt::from_u32(1);
    pub(in super::super) const REFUSED: VarInt = VarInt::from_u32(2);
    pub(in super::super) const REPLACED: VarInt = VarInt::from_u32(3);
}

/// First words of the dialler; the acceptor's answer has attempt 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Greeting {
    incarnation: u64,
    attempt: u64,
}

const GREETING_BYTES: usize = 19;

impl Greeting {
    fn encode(self) -> [u8; GREETING_BYTES] {
        let mut bytes = [0; GREETING_BYTES];
        bytes[..2].copy_from_slice(&frame::MAGIC);
        bytes[2] = frame::VERSION;
        bytes[3..11].copy_from_slice(&self.incarnation.to_be_bytes());
        bytes[11..].copy_from_slice(&self.attempt.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, Failure> {
        let [m0, m1, version, rest @ ..] = bytes else { return Err(Failure::refused("a short greeting")) };
        if [*m0, *m1] != frame::MAGIC {
            return Err(Failure::refused(frame::FrameError::Foreign));
        }
        if *version != frame::VERSION {
            return Err(Failure::refused(frame::FrameError::Version {
                ours: frame::VERSION,
                theirs: *version,
            }));
        }
        let word =
            |at: usize| rest.get(at..at + 8).and_then(|word| word.try_into().ok()).map(u64::from_be_bytes);
        match (word(0), word(8)) {
            (Some(incarnation), Some(attempt)) => Ok(Self { incarnation, attempt }),
            _ => Err(Failure::refused("a short greeting")),
        }
    }
}

/// Reads a greeting, for [`crate::fuzz`]: what is accepted is what [`Greeting::encode`] makes, whatever follows.
///
/// # Errors
/// What is wrong with it.
#[cfg(feature = "fuzz")]
pub fn greeting(bytes: &[u8]) -> Result<(), crate::transport::Refusal> {
    let greeting = Greeting::decode(bytes);
    let greeting = greeting.map_err(|failure| crate::transport::Refusal(format!("{failure:?}")))?;
    assert_eq!(Some(greeting.encode().as_slice()), bytes.get(..GREETING_BYTES));
    Ok(())
}

/// Why there is no connection.
#[derive(Debug)]
enum Failure {
    /// This node does not want it.
    Refused(String),
    /// The peer does not want it.
    RefusedByPeer(String),
    /// Another connection is in place.
    Duplicate,
    /// Nobody answered, or somebody stopped answering.
    Lost(String),
}

impl Failure {
    fn refused(reason: impl ToString) -> Self {
        Self::Refused(reason.to_string())
    }

    /// Why a stream of `connection` failed: because the connection did, or by itself.
    fn of(connection: &Connection, error: &dyn fmt::Display) -> Self {
        connection.close_reason().map_or_else(|| Self::Refused(format!("the greeting: {error}")), Self::from)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reason) | Self::RefusedByPeer(reason) | Self::Lost(reason) => f.write_str(reason),
            Self::Duplicate => f.write_str("another connection is in place"),
        }
    }
}

impl From<ConnectionError> for Failure {
    fn from(error: ConnectionError) -> Self {
        match &error {
            ConnectionError::TransportError(_) | ConnectionError::VersionMismatch => {
                Self::Refused(error.to_string())
            }
            ConnectionError::ApplicationClosed(close) if close.error_code == code::DUPLICATE => {
                Self::Duplicate
            }
            ConnectionError::ApplicationClosed(close) if close.error_code == code::REFUSED => {
                Self::RefusedByPeer(String::from_utf8_lossy(&close.reason).into_owned())
            }
            // TLS alerts: wrong certificate, no common protocol.
            ConnectionError::ConnectionClosed(close)
                if (0x100..0x200).contains(&u64::from(close.error_code)) =>
            {
                Self::RefusedByPeer(error.to_string())
            }
            _ => Self::Lost(error.to_string()),
        }
    }
}

/// Keeps one live connection to `peer` on `lane` for as long as the task runs.
pub(super) async fn keep(
    shared: Arc<Shared>,
    endpoint: Endpoint,
    first_attempts: Arc<Semaphore>,
    (peer, lane): (NodeId, Lane),
) {
    let stream = (peer.0 << 1) | u64::from(lane == Lane::Bulk);
    let mut rng = ChaCha8Rng::seed_from_u64(shared.config.seed);
    rng.set_stream(stream);
    let mut serving = JoinSet::new();
    let mut failures = 0;
    let patience = if shared.local < peer || shared.is_guest() { Duration::ZERO } else { HIGHER_ID_PATIENCE };
    loop {
        while serving.try_join_next().is_some() {}
        until(&shared, peer, lane, false).await;
        let pause = patience + backoff(&mut rng, failures);
        if timeout(pause, until(&shared, peer, lane, true)).await.is_ok() {
            failures = 0;
            continue;
        }
        // Further attempts need no turn: they pause longer and longer, and dead peers must not be in the way of living ones.
        let turn = if failures == 0 { first_attempts.acquire().await.ok() } else { None };
        if shared.pool.live(peer, lane).is_some() {
            continue;
        }
        // Not given up when the peer's connection arrives meanwhile: the other end may have admitted this one.
        let result = timeout(shared.config.handshake_timeout, dial(&shared, &endpoint, peer, lane)).await;
        drop(turn);
        match result.unwrap_or_else(|_| Err(Failure::Lost("no answer".into()))) {
            Ok((link, counting)) => {
                failures = 0;
                match shared.pool.admit(link, counting) {
                    Ok((seat, replaced)) => serving.spawn(serve(shared.clone(), seat, replaced)),
                    Err(Duplicate(seat)) => serving.spawn(serve_briefly(shared.clone(), seat)),
                };
            }
            Err(failure) => {
                failures += 1;
                shared.failed(peer, lane, &failure);
            }
        }
    }
}

fn backoff(rng: &mut ChaCha8Rng, failures: u32) -> Duration {
    let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
    let ceiling = FIRST_BACKOFF.saturating_mul(1 << doublings.min(16)).min(MAX_BACKOFF);
    ceiling.mul_f64(rng.random_range(0.5..=1.0))
}

/// Waits until there is, or is not, a live connection.
async fn until(shared: &Shared, peer: NodeId, lane: Lane, live: bool) {
    let mut changes = shared.pool.changes();
    // The pool lives as long as `shared`.
    let _ = changes.wait_for(|_| shared.pool.live(peer, lane).is_some() == live).await;
}

/// Dials and greets. The result is not yet in the pool.
async fn dial(
    shared: &Arc<Shared>,
    endpoint: &Endpoint,
    peer: NodeId,
    lane: Lane,
) -> Result<(Link, Counting), Failure> {
    let (addr, config) = shared.way_to(peer, lane).ok_or_else(|| Failure::Lost("no address".into()))?;
    let name = shared.config.identity.name_of(peer);
    let connecting =
        endpoint.connect_with(config, addr, &name).map_err(|error| Failure::Lost(error.to_string()))?;
    let connection = connecting.await?;
    let counting = shared.pool.count(lane, connection.clone());
    if shared.pool.live(peer, lane).is_some() {
        connection.close(code::DUPLICATE, b"");
        return Err(Failure::Duplicate);
    }
    let attempt = shared.next_attempt();
    let greeting = Greeting { incarnation: shared.incarnation, attempt };
    let (mut send, mut recv) = connection.open_bi().await?;
    let greeted = async {
        let failed = |error: &dyn fmt::Display| Failure::of(&connection, error);
        send.write_all(&greeting.encode()).await.map_err(|error| failed(&error))?;
        let _ = send.finish();
        let answer = recv.read_to_end(GREETING_BYTES).await.map_err(|error| failed(&error))?;
        Greeting::decode(&answer)
    };
    let answer = greeted.await.inspect_err(|failure| close_on(&connection, failure))?;
    let origin = Origin { dialled_by: shared.local, attempt, peer_incarnation: answer.incarnation };
    Ok((Link { peer, lane, origin, connection }, counting))
}

fn close_on(connection: &Connection, failure: &Failure) {
    if let Failure::Refused(reason) = failure {
        connection.close(code::REFUSED, reason.as_bytes());
    }
}

/// Accepts connections until the endpoint is closed.
pub(super) async fn accept(shared: Arc<Shared>, endpoint: Endpoint) {
    let mut serving = JoinSet::new();
    let handshakes = Arc::new(tokio::sync::Semaphore::new(MAX_HANDSHAKES));
    while let Some(incoming) = endpoint.accept().await {
        while serving.try_join_next().is_some() {}
        let Ok(slot) = handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let shared = shared.clone();
        serving.spawn(async move {
            let addr = incoming.remote_address();
            let result = timeout(shared.config.handshake_timeout, welcome(&shared, incoming)).await;
            drop(slot);
            match result.unwrap_or_else(|_| Err(Failure::Lost("handshake not completed".into()))) {
                Ok((admitted, mut answer)) => {
                    // Fails only with the connection, which serving will notice.
                    let greeting = Greeting { incarnation: shared.incarnation, attempt: 0 };
                    let _ = answer.write_all(&greeting.encode()).await;
                    let _ = answer.finish();
                    match admitted {
                        Admitted::Peer(seat, replaced) => serve(shared, seat, replaced).await,
                        Admitted::Guest(link, counting) => serve_guest(shared, link, counting).await,
                    }
                }
                Err(Failure::Refused(reason)) => shared.refused_connection(addr, &reason),
                Err(Failure::RefusedByPeer(reason)) => shared.refused_by_peer(addr, &reason),
                Err(failure) => tracing::debug!(%addr, %failure, "incoming connection not established"),
            }
        });
    }
}

/// Who was let in.
enum Admitted {
    /// A peer, with the connection that this one replaces.
    Peer(Seat, Option<Link>),
    /// One of any number of guests.
    Guest(Link, Counting),
}

/// Identifies who dialled, and admits or refuses the connection. The stream awaits the answer to the greeting.
async fn welcome(shared: &Arc<Shared>, incoming: Incoming) -> Result<(Admitted, SendStream), Failure> {
    let connection = incoming.await?;
    let (peer, lane) = identify(shared, &connection).inspect_err(|failure| close_on(&connection, failure))?;
    let counting = shared.pool.count(lane, connection.clone());
    if lane == Lane::Control {
        connection.set_receive_window(VarInt::from_u32(CONTROL_WINDOW_BYTES));
        connection.set_max_concurrent_bi_streams(VarInt::from_u32(MAX_CONTROL_STREAMS));
    }
    let (send, mut recv) = connection.accept_bi().await?;
    let bytes = recv.read_to_end(GREETING_BYTES).await.map_err(|error| Failure::of(&connection, &error));
    let greeting = bytes
        .and_then(|bytes| Greeting::decode(&bytes))
        .inspect_err(|failure| close_on(&connection, failure))?;
    let origin =
        Origin { dialled_by: peer, attempt: greeting.attempt, peer_incarnation: greeting.incarnation };
    let link = Link { peer, lane, origin, connection };
    if peer == GUEST {
        return Ok((Admitted::Guest(link, counting), send));
    }
    let (seat, replaced) = shared.pool.admit(link, counting).map_err(|Duplicate(seat)| {
        // Its dialler does not use it before its greeting was answered.
        seat.link.connection.close(code::DUPLICATE, b"");
        Failure::Duplicate
    })?;
    Ok((Admitted::Peer(seat, replaced), send))
}

/// The peer by its certificate, and the lane by the application protocol.
fn identify(shared: &Shared, connection: &Connection) -> Result<(NodeId, Lane), Failure> {
    let certificates = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    let certificate = certificates
        .as_deref()
        .and_then(|certificates| certificates.first())
        .ok_or_else(|| Failure::refused("it has no certificate"))?;
    let mut candidates = shared.peers();
    candidates.push(shared.local);
    if shared.config.guests {
        candidates.push(GUEST);
    }
    let peer = match shared.config.identity.whose(certificate, &candidates) {
        Some(peer) if peer == shared.local => {
            return Err(Failure::Refused(format!("it claims to be node {peer}, which is this node")));
        }
        Some(peer) => peer,
        None => return Err(Failure::refused("its certificate is that of no peer")),
    };
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol);
    [Lane::Control, Lane::Bulk]
        .into_iter()
        .filter(|lane| peer != GUEST || *lane == Lane::Control)
        .find(|lane| protocol.as_deref() == Some(&shared.config.plane.protocol(*lane)[..]))
        .map(|lane| (peer, lane))
        .ok_or_else(|| Failure::refused("it speaks another protocol"))
}

/// Answers the peer's requests until the connection ends.
async fn serve(shared: Arc<Shared>, seat: Seat, replaced: Option<Link>) {
    let link = &seat.link;
    tracing::debug!(peer = %link.peer, lane = ?link.lane, dialled_by = %link.origin.dialled_by, "connected");
    let mut handlers = JoinSet::new();
    let mut retired = replaced.is_none();
    let mut retirement = pin!(retire(replaced.map(Retiring), link.origin.peer_incarnation));
    let reason = loop {
        tokio::select! {
            stream = link.connection.accept_bi() => match stream {
                Ok((send, recv)) => {
                    handlers.spawn(answer(shared.clone(), link.peer, link.lane, send, recv));
                }
                Err(reason) => break reason,
            },
            Some(ended) = handlers.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(peer = %link.peer, %error, "a handler failed");
                }
            }
            () = &mut retirement, if !retired => retired = true,
        }
    };
    tracing::debug!(peer = %link.peer, lane = ?link.lane, %reason, "disconnected");
}

/// Answers a guest's requests until the connection ends. Guests have no place in the pool: nobody asks anything of them.
async fn serve_guest(shared: Arc<Shared>, link: Link, counting: Counting) {
    let mut handlers = JoinSet::new();
    while let Ok((send, recv)) = link.connection.accept_bi().await {
        while handlers.try_join_next().is_some() {}
        handlers.spawn(answer(shared.clone(), link.peer, link.lane, send, recv));
    }
    drop(counting);
}

/// Serves a connection that lost against one which crossed it. The peer answered its greeting, so it may already be
/// sending requests on it, and learns of the other one only now.
async fn serve_briefly(shared: Arc<Shared>, seat: Seat) {
    let connection = seat.link.connection.clone();
    let mut serving = pin!(serve(shared, seat, None));
    if timeout(RETIREMENT, &mut serving).await.is_err() {
        connection.close(code::REPLACED, b"");
    }
}

/// A connection that was replaced: closed when dropped.
struct Retiring(Link);

impl Drop for Retiring {
    fn drop(&mut self) {
        self.0.connection.close(code::REPLACED, b"");
    }
}

/// Gives requests on a replaced connection their time, unless its peer process is gone.
async fn retire(old: Option<Retiring>, peer_incarnation: u64) {
    if old.as_ref().is_some_and(|old| old.0.origin.peer_incarnation == peer_incarnation) {
        sleep(RETIREMENT).await;
    }
}

impl Shared {
    fn failed(&self, peer: NodeId, lane: Lane, failure: &Failure) {
        match failure {
            Failure::Refused(reason) => self.refused_connection(peer, reason),
            Failure::RefusedByPeer(reason) => self.refused_by_peer(peer, reason),
            failure => tracing::debug!(%peer, ?lane, %failure, "not connected"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_survives_and_garbage_is_refused() {
        let greeting = Greeting { incarnation: u64::MAX - 3, attempt: 9 };
        let bytes = greeting.encode();
        assert_eq!(Greeting::decode(&bytes).unwrap(), greeting);
        for end in 0..bytes.len() {
            assert!(matches!(Greeting::decode(&bytes[..end]), Err(Failure::Refused(_))));
        }
        let mut other = bytes;
        other[2] = 77;
        let Err(Failure::Refused(reason)) = Greeting::decode(&other) else {
            panic!("version 77 was accepted")
        };
        assert!(reason.contains("77") && reason.contains(&frame::VERSION.to_string()), "{reason}");
    }

    #[test]
    fn backoff_starts_short_grows_and_stays_below_its_ceiling() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        assert_eq!(backoff(&mut rng, 0), Duration::ZERO);
        for failures in 1..100 {
            let pause = backoff(&mut rng, failures);
            assert!(pause >= FIRST_BACKOFF / 2 && pause <= MAX_BACKOFF, "{failures}: {pause:?}");
        }
        assert!(backoff(&mut rng, 1) <= FIRST_BACKOFF);
        assert!(backoff(&mut rng, 50) >= MAX_BACKOFF / 2);
    }
    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_greeting_or_refused(bytes in proptest::collection::vec(0_u8.., 0..40)) {
            for bytes in [bytes.clone(), [&frame::MAGIC[..], &[frame::VERSION], &bytes].concat()] {
                if let Ok(greeting) = Greeting::decode(&bytes) {
                    proptest::prop_assert_eq!(&greeting.encode()[..], &bytes[..GREETING_BYTES]);
                }
            }
        }
    }
}
