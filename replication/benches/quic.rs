//! What a request costs beside bare QUIC: the round trip of a small one, and the throughput of 10 MB, between two nodes on loopback,
//! on the transport and on bare quinn streams.
//!
//! After criterion's own figures a last part measures both in turn and prints the ratios of their medians: compare those, since
//! only they saw the same machine.

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use criterion::{Criterion, Throughput};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Endpoint, ServerConfig, TransportConfig, VarInt};
use replication::NodeId;
use replication::conformance::parameters;
use replication::transport::identity::{Authority, Plane};
use replication::transport::quic::{MAX_BULK_WINDOW_BYTES, QuicConfig, QuicTransport};
use replication::transport::{Class, Frame, Handler, Lane, Refusal, Transport};
use tokio::runtime::Runtime;

const SMALL_BYTES: usize = 64;
const LARGE_BYTES: usize = 10_000_000;
const INTERLEAVED_SAMPLES: usize = 50;

/// Answers with an empty frame.
struct Taker;

#[async_trait]
impl Handler for Taker {
    async fn handle(&self, _from: NodeId, _request: Frame) -> Result<Frame, Refusal> {
        Ok(Frame::default())
    }
}

/// Two nodes on the transport.
struct Ours {
    from: Arc<QuicTransport>,
    _to: Arc<QuicTransport>,
}

impl Ours {
    async fn start() -> Self {
        let authority = Authority::new("bench").expect("a certificate authority");
        let bind = |node| {
            let identity = authority.issue(NodeId(node)).expect("a certificate");
            QuicTransport::bind(QuicConfig::new(identity, Plane::Replication, common::loopback()))
                .expect("a socket")
        };
        let [from, to] = [1, 2].map(bind);
        let addresses: BTreeMap<NodeId, SocketAddr> =
            [&from, &to].into_iter().map(|quic| (quic.local(), quic.local_addr())).collect();
        for quic in [&from, &to] {
            quic.serve(Arc::new(Taker));
            quic.set_peers(addresses.clone()).expect("peers");
        }
        from.ready(&from.peers()).await;
        to.ready(&to.peers()).await;
        Self { from, _to: to }
    }

    async fn send(&self, class: Class, bytes: &Bytes) {
        let frame = Frame::new(1, Bytes::new()).with_segment(bytes.clone());
        self.from.request(NodeId(2), class, frame).await.expect("answered");
    }
}

/// A bare connection, whose other end reads a stream to its end and answers one byte.
struct Bare {
    connection: Connection,
    _endpoint: Endpoint,
}

/// Windows as the transport's largest.
fn windows() -> Arc<TransportConfig> {
    let mut windows = TransportConfig::default();
    windows.stream_receive_window(VarInt::from_u32(MAX_BULK_WINDOW_BYTES));
    windows.receive_window(VarInt::from_u32(MAX_BULK_WINDOW_BYTES));
    Arc::new(windows)
}

impl Bare {
    async fn start() -> Self {
        let authority = Authority::new("bare").expect("a certificate authority");
        let [client, server] = [1, 2].map(|node| authority.issue(NodeId(node)).expect("a certificate"));
        let tls = server.server_config(Plane::Replication).expect("TLS");
        let tls = Arc::new(QuicServerConfig::try_from(tls).expect("TLS 1.3"));
        let mut config = ServerConfig::with_crypto(tls);
        config.transport_config(windows());
        let other = Endpoint::server(config, common::loopback()).expect("a socket");
        let addr = other.local_addr().expect("bound");
        tokio::spawn(common::read_streams(other, LARGE_BYTES));
        let tls = client.client_config(Plane::Replication, Lane::Bulk).expect("TLS");
        let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("TLS 1.3")));
        config.transport_config(windows());
        let endpoint = Endpoint::client(common::loopback()).expect("a socket");
        let connecting = endpoint.connect_with(config, addr, &server.name()).expect("a valid name");
        Self { connection: connecting.await.expect("connected"), _endpoint: endpoint }
    }

    async fn send(&self, bytes: &Bytes) {
        common::send(&self.connection, bytes.clone()).await;
    }
}

fn criterion_part(runtime: &Runtime, ours: &Ours, bare: &Bare) {
    let mut criterion = Criterion::default().configure_from_args();
    for (name, class, bytes) in
        [("round_trip", Class::Digest, SMALL_BYTES), ("bulk_10MB", Class::Blob, LARGE_BYTES)]
    {
        let content = parameters(1, bytes);
        let mut group = criterion.benchmark_group(format!("quic_{name}"));
        group.sample_size(20).throughput(Throughput::Bytes(bytes as u64));
        group.bench_function("bare_quinn", |b| b.iter(|| runtime.block_on(bare.send(&content))));
        group.bench_function("transport", |b| b.iter(|| runtime.block_on(ours.send(class, &content))));
        group.finish();
    }
    criterion.final_summary();
}

fn interleaved(runtime: &Runtime, ours: &Ours, bare: &Bare) {
    println!("interleaved medians of {INTERLEAVED_SAMPLES}:");
    for (name, class, bytes) in
        [("round trip", Class::Digest, SMALL_BYTES), ("10 MB", Class::Blob, LARGE_BYTES)]
    {
        let content = parameters(1, bytes);
        let mut samples = [Vec::new(), Vec::new()];
        for _ in 0..INTERLEAVED_SAMPLES {
            let begun = Instant::now();
            runtime.block_on(bare.send(&content));
            samples[0].push(begun.elapsed().as_micros());
            let begun = Instant::now();
            runtime.block_on(ours.send(class, &content));
            samples[1].push(begun.elapsed().as_micros());
        }
        let [bare, ours] = samples.map(|mut samples| common::median(&mut samples));
        println!(
            "  {name}: bare quinn {bare} us, transport {ours} us, {:.2} times",
            ours as f64 / bare as f64
        );
    }
}

fn main() {
    let runtime = common::runtime();
    let (ours, bare) = runtime.block_on(async { (Ours::start().await, Bare::start().await) });
    criterion_part(&runtime, &ours, &bare);
    interleaved(&runtime, &ours, &bare);
    // Nobody need take leave of anybody.
    runtime.shutdown_timeout(Duration::ZERO);
}
