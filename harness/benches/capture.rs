//! What it costs to know a packet: heads parsed and tallied, in memory and from the ring that the kernel fills, against reading that
//! ring and nothing else; and recording latencies in a histogram.
//!
//! Packets are sent over loopback to a port of this process. Without CAP_NET_RAW that part is left out, with a message.

mod inputs;

use std::hint::black_box;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use harness::capture::ring::Ring;
use harness::capture::sniff::{BUFFER_BYTES, Sniffer};
use harness::capture::{CaptureError, Settings, filter};
use harness::stats::histogram;

/// Packets that are sent before the ring is read; it holds 32,768.
const BURST: u32 = 20_000;

fn in_memory(c: &mut Criterion) {
    let packets = inputs::packets(10_000);
    let mut group = c.benchmark_group("capture");
    group.throughput(Throughput::Elements(packets.len() as u64));
    group.bench_function("parse and tally", |b| {
        b.iter_batched_ref(
            inputs::tally,
            |tally| packets.iter().for_each(|packet| tally.packet(packet, inputs::PACKET_BYTES)),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// Sends a burst, and waits for nothing: loopback delivers before `send` returns.
struct Sender {
    from: UdpSocket,
    to: UdpSocket,
}

impl Sender {
    fn new() -> std::io::Result<Self> {
        let (from, to) =
            (UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?, UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?);
        from.connect(to.local_addr()?)?;
        Ok(Self { from, to })
    }

    fn burst(&self) {
        for _ in 0..BURST {
            // What finds no room at the receiver has been captured all the same.
            let _ = self.from.send(&[0; 100]);
        }
    }

    fn settings(&self) -> std::io::Result<Settings> {
        Ok(Settings {
            interface: "lo".into(),
            ports: vec![self.to.local_addr()?.port()],
            others: false,
            only_from: Some(Ipv4Addr::LOCALHOST),
            buffer_bytes: BUFFER_BYTES,
        })
    }
}

/// Time to read `bursts` bursts with `next`, which says whether there was a packet.
fn drain(sender: &Sender, bursts: u64, mut next: impl FnMut() -> bool) -> Duration {
    (0..bursts)
        .map(|_| {
            sender.burst();
            let begun = Instant::now();
            let mut read = 0;
            while next() {
                read += 1;
            }
            let took = begun.elapsed();
            assert_eq!(read, BURST, "packets of a burst");
            took
        })
        .sum()
}

fn from_the_ring(c: &mut Criterion) {
    let sender = Sender::new().expect("sockets on loopback");
    let settings = sender.settings().expect("bound");
    let mut sniffer = match Sniffer::open(&settings) {
        Ok(sniffer) => sniffer,
        Err(error @ CaptureError::NotPermitted) => return eprintln!("the ring is left out: {error}"),
        Err(error) => panic!("{error}"),
    };
    let mut group = c.benchmark_group("capture");
    group.sample_size(10).throughput(Throughput::Elements(BURST.into()));
    group.bench_function("ring, parse and tally", |b| {
        b.iter_custom(|bursts| drain(&sender, bursts, || sniffer.step().expect("the interface is up")));
    });
    drop(sniffer);
    let interfaces = pnet_datalink::interfaces();
    let loopback = interfaces.iter().find(|interface| interface.name == "lo").expect("loopback");
    let program = filter::program(&settings, true);
    let mut ring = Ring::open(loopback.index, &program, BUFFER_BYTES).expect("permitted before");
    group.bench_function("ring alone", |b| {
        b.iter_custom(|bursts| {
            drain(&sender, bursts, || {
                ring.next(|head, length_bytes| {
                    black_box((head.len(), length_bytes));
                })
            })
        });
    });
    group.finish();
}

fn recording(c: &mut Criterion) {
    let samples = inputs::samples_ns(10_000);
    let mut group = c.benchmark_group("histogram");
    group.throughput(Throughput::Elements(samples.len() as u64));
    group.bench_function("record", |b| b.iter(|| histogram::of(&samples)));
    group.finish();
}

criterion_group!(benches, in_memory, from_the_ring, recording);
criterion_main!(benches);
