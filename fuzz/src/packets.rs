//! What a capture sees, answers of etcd, pages of metrics.

use std::time::{Duration, Instant};

use harness::capture::head;
use harness::capture::tally::{ETHERNET_HEADER_BYTES, OTHER_PORT, Own, Tally};
use harness::kv::etcd::message::value_of;
use harness::metrics::text::{self, MAX_SAMPLES, Sample};
use harness::watch::look::Look;
use harness::watch::table::{Row, render};
use harness::watch::targets::Target;

/// Ports that are counted apart.
const PORTS: [u16; 2] = [5000, 8080];

/// Packets with their lengths in front: the first two bytes are those that were captured, the next two those on the wire.
pub(crate) fn packet(mut bytes: &[u8]) -> bool {
    let own = Own::Mac([2, 0, 0, 0, 0, 1]);
    let (mut all, mut some) = (Tally::new(&PORTS, true, own), Tally::new(&PORTS, false, own));
    let (mut packets, mut with_ports) = (0, 0);
    while let Some((&[a, b, c, d], rest)) = bytes.split_first_chunk() {
        let Some((packet, rest)) = rest.split_at_checked(usize::from(u16::from_be_bytes([a, b]))) else {
            break;
        };
        bytes = rest;
        let length = u64::from(u16::from_be_bytes([c, d])) + packet.len() as u64;
        let header = ETHERNET_HEADER_BYTES as usize;
        all.packet(packet, length);
        some.packet(packet, length);
        let Some(behind) = packet.get(header..) else { continue };
        packets += 1;
        let (four, six) = (head::ipv4(behind), head::ipv6(behind));
        assert_eq!((four.is_some(), six.is_some()), (behind.len() >= 20, behind.len() >= 40));
        with_ports += u64::from([four, six].into_iter().flatten().any(|head| head.ports.is_some()));
    }
    let (all, some) = (all.take(), some.take());
    assert_eq!(all.iter().map(|count| count.packets).sum::<u64>(), packets);
    assert!(all.iter().all(|count| count.port == OTHER_PORT || PORTS.contains(&count.port)));
    let apart: Vec<_> = all.into_iter().filter(|count| count.port != OTHER_PORT).collect();
    assert_eq!(apart, some);
    with_ports > 0
}

/// The answer to a read.
pub(crate) fn etcd(bytes: &[u8]) -> bool {
    value_of(bytes).is_some_and(|value| {
        assert!(value.len() <= bytes.len());
        true
    })
}

/// A page, which is written as it was read.
pub(crate) fn metrics(bytes: &[u8]) -> bool {
    let Ok(page) = std::str::from_utf8(bytes) else { return false };
    let samples = match text::parse(page) {
        Ok(samples) => samples,
        Err(text::Malformed::Line { line, .. }) => {
            assert!((1..=page.lines().count()).contains(&line));
            return false;
        }
        Err(text::Malformed::TooLong) => return false,
    };
    assert!(samples.len() <= MAX_SAMPLES);
    let again: String = samples.iter().map(written).collect();
    let read = text::parse(&again).unwrap_or_else(|error| panic!("{again:?}: {error}"));
    assert_eq!(format!("{read:?}"), format!("{samples:?}"));
    let (look, earlier) = (Look::of(&samples), Look::of(&samples[samples.len() / 2..]));
    let _ = look.rates(&earlier, Duration::from_millis(500));
    let mut row = Row::of(Target { at: ([127, 0, 0, 1], 9464).into(), node: None, may_come: false });
    row.take(Ok((earlier, Instant::now())));
    row.take(Ok((look, Instant::now())));
    assert!(!render(&[row], Some(80)).is_empty());
    true
}

fn written(sample: &Sample) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let labels: Vec<String> =
        sample.labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
    format!("{}{{{}}} {}\n", sample.name, labels.join(","), sample.value)
}
