//! Packet heads to counts. Pure and total: any bytes are counted somewhere or not at all.
//!
//! A packet counts with the length that its IP header says, header included, whatever was captured of it. It belongs to the counted
//! port that it goes to, else to the one it comes from. Later fragments carry no ports: they belong to the first
//! fragment of their datagram, if that was seen before.

use std::collections::{BTreeMap, VecDeque};

use pnet_packet::Packet as _;
use pnet_packet::ethernet::{EtherTypes, EthernetPacket};
use serde::{Deserialize, Serialize};

use super::head::{self, Datagram, Head, Piece};

/// Stands for every port that is not counted apart, and for packets that have none.
pub const OTHER_PORT: u16 = 0;

/// Bytes of an Ethernet header as captured: without a VLAN tag, which the kernel takes off.
pub const ETHERNET_HEADER_BYTES: u64 = 14;

/// Datagrams whose later fragments may still come.
const MAX_FRAGMENTED: usize = 1024;

/// Where a packet goes, seen from the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// It leaves.
    Egress,
    /// It comes in.
    Ingress,
}

impl Direction {
    /// As written in result files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

/// Packets and bytes of one port and direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The port, or [`OTHER_PORT`].
    pub port: u16,
    /// The direction.
    pub direction: Direction,
    /// Packets; each fragment is one.
    pub packets: u64,
    /// Bytes at IP level, headers included; of other protocols, those behind the Ethernet header.
    pub bytes: u64,
}

/// How the direction of a packet is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    /// The interface's Ethernet address: what bears it as source leaves.
    Mac([u8; 6]),
    /// The filter lets only packets through that leave.
    Outgoing,
}

/// Counts packets.
#[derive(Debug)]
pub struct Tally {
    ports: Vec<u16>,
    others: bool,
    own: Own,
    counts: BTreeMap<(u16, Direction), (u64, u64)>,
    longest_bytes: u64,
    fragmented: BTreeMap<Datagram, u16>,
    /// Those of `fragmented`, the oldest first.
    order: VecDeque<Datagram>,
}

impl Tally {
    /// Counts `ports` apart, and everything else as [`OTHER_PORT`] if `others`.
    #[must_use]
    pub fn new(ports: &[u16], others: bool, own: Own) -> Self {
        Self {
            ports: ports.to_vec(),
            others,
            own,
            counts: BTreeMap::new(),
            longest_bytes: 0,
            fragmented: BTreeMap::new(),
            order: VecDeque::new(),
        }
    }

    /// Counts the packet of `length_bytes` that begins with `head`, an Ethernet header and what follows.
    pub fn packet(&mut self, head: &[u8], length_bytes: u64) {
        let Some(ethernet) = EthernetPacket::new(head) else { return };
        let source = ethernet.get_source();
        let direction = match self.own {
            Own::Mac(own) if <[u8; 6]>::from(source) != own => Direction::Ingress,
            Own::Mac(_) | Own::Outgoing => Direction::Egress,
        };
        let behind = ethernet.payload();
        let head = match ethernet.get_ethertype() {
            EtherTypes::Ipv4 => head::ipv4(behind),
            EtherTypes::Ipv6 => head::ipv6(behind),
            _ => None,
        };
        let (port, bytes) = match head {
            Some(head) => (self.port_of(&head), head.bytes),
            None => (OTHER_PORT, length_bytes.saturating_sub(ETHERNET_HEADER_BYTES)),
        };
        if port == OTHER_PORT && !self.others {
            return;
        }
        let count = self.counts.entry((port, direction)).or_default();
        count.0 += 1;
        count.1 += bytes;
        self.longest_bytes = self.longest_bytes.max(bytes);
    }

    /// Bytes of the longest packet so far. If it is longer than the interface's MTU, it is no packet of the wire.
    #[must_use]
    pub const fn longest_bytes(&self) -> u64 {
        self.longest_bytes
    }

    /// What was counted since the last call.
    pub fn take(&mut self) -> Vec<Count> {
        let counts = std::mem::take(&mut self.counts).into_iter();
        counts
            .map(|((port, direction), (packets, bytes))| Count { port, direction, packets, bytes })
            .collect()
    }

    fn port_of(&mut self, head: &Head) -> u16 {
        if let Piece::Later { datagram, last } = head.piece {
            let port = self.fragmented.get(&datagram).copied();
            if last && port.is_some() {
                self.fragmented.remove(&datagram);
                self.order.retain(|other| *other != datagram);
            }
            return port.unwrap_or(OTHER_PORT);
        }
        let Some((from, to)) = head.ports else { return OTHER_PORT };
        let port = [to, from].into_iter().find(|port| self.ports.contains(port)).unwrap_or(OTHER_PORT);
        if let Piece::First(datagram) = head.piece {
            self.remember(datagram, port);
        }
        port
    }

    fn remember(&mut self, datagram: Datagram, port: u16) {
        if self.fragmented.insert(datagram, port).is_none() {
            self.order.push_back(datagram);
        }
        if self.order.len() > MAX_FRAGMENTED
            && let Some(oldest) = self.order.pop_front()
        {
            self.fragmented.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const PEER: [u8; 6] = [2, 0, 0, 0, 0, 2];

    /// The head of an IPv4 packet over Ethernet, without what its length says.
    fn head(source: [u8; 6], length: u16, id: u16, fragment: u16, ports: (u16, u16)) -> Vec<u8> {
        let mut frame = [PEER, source].concat();
        frame.extend([0x08, 0x00, 0x45, 0]);
        for word in [length, id, fragment] {
            frame.extend(word.to_be_bytes());
        }
        frame.extend([64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        for word in [ports.0, ports.1, 0, 0] {
            frame.extend(word.to_be_bytes());
        }
        frame
    }

    fn tally(others: bool) -> Tally {
        Tally::new(&[8080, 5000], others, Own::Mac(OWN))
    }

    fn count(port: u16, direction: Direction, packets: u64, bytes: u64) -> Count {
        Count { port, direction, packets, bytes }
    }

    #[test]
    fn a_packet_counts_once_with_its_total_length() {
        let mut tally = tally(true);
        tally.packet(&head(OWN, 1500, 1, 0, (8080, 8080)), 1514);
        tally.packet(&head(OWN, 40, 2, 0, (40_000, 5000)), 1514);
        tally.packet(&head(PEER, 60, 3, 0, (5000, 40_000)), 1514);
        tally.packet(&head(OWN, 100, 4, 0, (53, 54)), 1514);
        let expected = [
            count(OTHER_PORT, Direction::Egress, 1, 100),
            count(5000, Direction::Egress, 1, 40),
            count(5000, Direction::Ingress, 1, 60),
            count(8080, Direction::Egress, 1, 1500),
        ];
        assert_eq!(tally.take(), expected);
        assert_eq!(tally.take(), [], "what was taken is not counted again");
    }

    #[test]
    fn later_fragments_belong_to_the_first() {
        let mut tally = tally(true);
        tally.packet(&head(OWN, 1500, 9, 0x2000, (40_000, 8080)), 1514);
        tally.packet(&head(OWN, 1500, 9, 0x2000 | 185, (1, 1)), 1514);
        tally.packet(&head(OWN, 200, 9, 370, (1, 1)), 1514);
        assert_eq!(tally.take(), [count(8080, Direction::Egress, 3, 3200)]);
        tally.packet(&head(OWN, 200, 9, 370, (8080, 8080)), 1514);
        assert_eq!(tally.take(), [count(OTHER_PORT, Direction::Egress, 1, 200)], "the datagram was complete");
    }

    #[test]
    fn fragments_of_two_datagrams_may_alternate() {
        let mut tally = tally(true);
        tally.packet(&head(OWN, 1500, 1, 0x2000, (40_000, 8080)), 1514);
        tally.packet(&head(OWN, 1500, 2, 0x2000, (40_000, 5000)), 1514);
        tally.packet(&head(OWN, 300, 1, 185, (1, 1)), 1514);
        tally.packet(&head(OWN, 400, 2, 185, (1, 1)), 1514);
        let expected = [count(5000, Direction::Egress, 2, 1900), count(8080, Direction::Egress, 2, 1800)];
        assert_eq!(tally.take(), expected);
    }

    #[test]
    fn fragments_of_others_are_not_counted_under_a_filter() {
        let mut tally = tally(false);
        tally.packet(&head(OWN, 1500, 1, 370, (8080, 8080)), 1514);
        tally.packet(&head(OWN, 100, 4, 0, (53, 54)), 1514);
        assert_eq!(tally.take(), []);
    }

    #[test]
    fn the_memory_of_fragments_is_bounded() {
        let mut tally = tally(true);
        for id in 0..u16::MAX {
            tally.packet(&head(OWN, 1500, id, 0x2000, (40_000, 8080)), 1514);
        }
        assert_eq!((tally.fragmented.len(), tally.order.len()), (MAX_FRAGMENTED, MAX_FRAGMENTED));
    }

    #[test]
    fn what_is_not_ip_counts_behind_its_ethernet_header() {
        let mut tally = tally(true);
        let mut arp = [PEER, OWN].concat();
        arp.extend([0x08, 0x06]);
        arp.extend([0; 28]);
        tally.packet(&arp, arp.len() as u64);
        assert_eq!(tally.take(), [count(OTHER_PORT, Direction::Egress, 1, 28)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..20)) {
            let mut tally = tally(true);
            for frame in &frames {
                tally.packet(frame, frame.len() as u64);
            }
            let packets: u64 = tally.take().iter().map(|count| count.packets).sum();
            let long_enough = frames.iter().filter(|frame| frame.len() >= ETHERNET_HEADER_BYTES as usize).count();
            prop_assert_eq!(packets, long_enough as u64);
        }
    }
}
