//! The UDP socket, and the parameters that follow from it.
//!
//! # Receive windows
//! What peers may have in flight towards a node is bounded by the receive windows it grants. Linux's default receive
//! buffer (212,992 B) is smaller than one checkpoint, and what overruns it is lost and sent again: 1.13 to 1.42 times
//! the traffic in a fan-out. So [`SOCKET_BUFFER_BYTES`] are asked for, the kernel's grant is read back, and
//!
//! > bulk window per connection = grant / peers, at least [`MIN_BULK_WINDOW_BYTES`], at most [`MAX_BULK_WINDOW_BYTES`]
//!
//! With the buffer asked for, all peers at once fit for up to 32 peers. With a default buffer one peer at a time fits,
//! and uploads of all peers at once must be paced by the layer above. Bytes at IP level, both directions, for 9
//! transfers of 248,024 B at once over loopback, by payload (see the fan-out tests, which print them):
//!
//! | buffer | one to nine | nine to one |
//! |---|---|---|
//! | 4 MiB granted | 1.044 | 1.046 |
//! | Linux's default | 1.044 | 1.24 to 1.30 |
//!
//! The floor also bounds throughput to window / round trip: 6.5 MB/s at 20 ms.

use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use socket2::{Domain, Protocol, Socket, Type};

use super::{BindError, QuicConfig};
use crate::transport::{Lane, identity};

/// Send and receive buffer asked of the kernel by default, in bytes; `net.core.rmem_max` may cut it.
pub const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Smallest receive window of a bulk connection, in bytes.
pub const MIN_BULK_WINDOW_BYTES: u32 = 128 * 1024;

/// Largest receive window of a bulk connection, in bytes.
pub const MAX_BULK_WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// Receive window of a control connection, in bytes: small messages, and nothing that could fill a buffer.
pub const CONTROL_WINDOW_BYTES: u32 = 64 * 1024;

/// Bytes a connection may have sent without acknowledgement.
const SEND_WINDOW_BYTES: u64 = 4 * 1024 * 1024;

/// Requests a peer may have open at once on one connection; more wait at the sender.
pub const MAX_CONTROL_STREAMS: u32 = 256;
/// As [`MAX_CONTROL_STREAMS`], on bulk connections.
pub const MAX_BULK_STREAMS: u32 = 32;

/// Round trip assumed of a new path. A lost first packet of a handshake is repeated after three times this.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// A connection id is this long, in bytes.
const CONNECTION_ID_BYTES: usize = 8;

/// Opens and binds the socket with buffers of `wanted` bytes; returns it with the receive buffer granted, in bytes.
pub(super) fn open(addr: SocketAddr, wanted: usize) -> Result<(UdpSocket, usize), BindError> {
    let failed = |source: std::io::Error| BindError::Socket { addr, source };
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP)).map_err(failed)?;
    for (what, result) in
        [("receive", socket.set_recv_buffer_size(wanted)), ("send", socket.set_send_buffer_size(wanted))]
    {
        if let Err(error) = result {
            tracing::debug!(%addr, %error, "the kernel keeps its default {what} buffer");
        }
    }
    socket.bind(&addr.into()).map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => BindError::AddressInUse { addr },
        _ => BindError::Socket { addr, source },
    })?;
    // Linux reports twice what it granted: the other half is for its own bookkeeping.
    let granted = socket.recv_buffer_size().map_err(failed)? / 2;
    if granted < wanted {
        tracing::info!(%addr, granted, "receive buffer below {wanted} B: raise net.core.rmem_max");
    }
    Ok((socket.into(), granted))
}

/// The receive window of each bulk connection, in bytes, by the module's rule.
pub(super) fn bulk_window(granted: usize, peers: usize) -> u32 {
    let share = u32::try_from(granted / peers.max(1)).unwrap_or(u32::MAX);
    share.clamp(MIN_BULK_WINDOW_BYTES, MAX_BULK_WINDOW_BYTES)
}

/// Endpoint parameters: a restarted node's resets are honoured, because the key is derived from its identity, and
/// because connection ids of its former life are not rejected before a reset is considered.
pub(super) fn endpoint_config(config: &QuicConfig) -> Result<EndpointConfig, BindError> {
    let key = ResetKey(config.identity.derive_key("checkpoint transport, stateless reset key, 1"));
    let mut endpoint = EndpointConfig::new(Arc::new(key));
    let mut seed = [0; 32];
    identity::random(&mut seed).map_err(|error| BindError::Crypto(error.to_string()))?;
    endpoint.cid_generator(move || Box::new(RandomIds(ChaCha20Rng::from_seed(seed))));
    Ok(endpoint)
}

/// TLS and transport parameters of accepted connections.
pub(super) fn server_config(config: &QuicConfig, bulk_window: u32) -> Result<quinn::ServerConfig, BindError> {
    let tls = config.identity.server_config(config.plane)?;
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| BindError::Crypto(error.to_string()))?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    // The lane is known only after the handshake, so accepted connections start with bulk's parameters; see `link`.
    server.transport_config(Arc::new(transport_config(config, Lane::Bulk, bulk_window, false)?));
    server.migration(false);
    Ok(server)
}

/// TLS and transport parameters of dialled connections.
pub(super) fn client_config(
    config: &QuicConfig,
    lane: Lane,
    bulk_window: u32,
) -> Result<quinn::ClientConfig, BindError> {
    let tls = config.identity.client_config(config.plane, lane)?;
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| BindError::Crypto(error.to_string()))?;
    let mut client = quinn::ClientConfig::new(Arc::new(crypto));
    client.transport_config(Arc::new(transport_config(config, lane, bulk_window, true)?));
    Ok(client)
}

/// Only the dialling side keeps a connection alive: its pings and their acknowledgements serve both.
fn transport_config(
    config: &QuicConfig,
    lane: Lane,
    bulk_window: u32,
    dialling: bool,
) -> Result<TransportConfig, BindError> {
    let idle = IdleTimeout::try_from(config.idle_timeout)
        .map_err(|_| BindError::Config("the idle timeout is too long for QUIC".into()))?;
    let (window, streams) = match lane {
        Lane::Control => (CONTROL_WINDOW_BYTES, MAX_CONTROL_STREAMS),
        Lane::Bulk => (bulk_window, MAX_BULK_STREAMS),
    };
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(window))
        .receive_window(VarInt::from_u32(window))
        .send_window(SEND_WINDOW_BYTES)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(dialling.then_some(config.keep_alive))
        .initial_rtt(INITIAL_RTT)
        .datagram_receive_buffer_size(None);
    Ok(transport)
}

/// Signs stateless resets with keyed BLAKE3.
struct ResetKey([u8; 32]);

impl ResetKey {
    fn signature(&self, data: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.0, data).as_bytes()
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(&self.signature(data));
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        // Comparing `blake3::Hash` takes constant time.
        let expected = blake3::Hash::from(self.signature(data));
        if expected == *signature { Ok(()) } else { Err(CryptoError) }
    }
}

/// Random connection ids. quinn's own are keyed per process and make a restarted node drop what it should reset.
#[derive(Debug)]
struct RandomIds(ChaCha20Rng);

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID_BYTES];
        self.0.fill_bytes(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

impl fmt::Debug for ResetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_share_the_buffer() {
        assert_eq!(bulk_window(212_992, 9), MIN_BULK_WINDOW_BYTES);
        assert_eq!(bulk_window(212_992, 1), 212_992);
        assert_eq!(bulk_window(SOCKET_BUFFER_BYTES, 8), 512 * 1024);
        assert_eq!(bulk_window(SOCKET_BUFFER_BYTES, 0), MAX_BULK_WINDOW_BYTES);
    }
}
