//! What the benches of this crate are fed with: sizes and contents that are the same in every run.

#![allow(dead_code, reason = "each bench uses a part")]

use harness::capture::Tally;
use harness::capture::tally::Own;

/// Length of a packet, Ethernet header included: a full datagram of the replication plane.
pub(crate) const PACKET_BYTES: u64 = 14 + 20 + 8 + 1_452;

/// What is captured of it: Ethernet, IPv4 and UDP headers.
const HEAD_BYTES: usize = 14 + 20 + 8;

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A tally of the ports of both planes, and of everything else.
pub(crate) fn tally() -> Tally {
    Tally::new(&[5_000, 8_080], true, Own::Mac(OWN))
}

/// Heads of UDP packets as they are captured, in both directions, on both planes' ports and on others.
pub(crate) fn packets(count: u32) -> Vec<Vec<u8>> {
    let packet = |number: u32| {
        let (to, from) = if number.is_multiple_of(2) { (PEER, OWN) } else { (OWN, PEER) };
        let port: u16 = [5_000, 8_080, 53][number as usize % 3];
        let mut head = Vec::with_capacity(HEAD_BYTES);
        head.extend([to, from].concat());
        head.extend([0x08, 0x00]);
        let ip_bytes = (PACKET_BYTES - 14) as u16;
        head.extend([0x45, 0]);
        head.extend(ip_bytes.to_be_bytes());
        head.extend((number as u16).to_be_bytes());
        head.extend([0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        head.extend(40_000_u16.to_be_bytes());
        head.extend(port.to_be_bytes());
        head.extend((ip_bytes - 20).to_be_bytes());
        head.extend([0, 0]);
        head
    };
    (0..count).map(packet).collect()
}

/// Latencies between 50 us and 50 ms.
pub(crate) fn samples_ns(count: u64) -> Vec<u64> {
    (0..count).map(|number| 50_000 + number * 7_919 % 50_000 * 1_000).collect()
}
