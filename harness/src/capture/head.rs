//! What the head of an IP packet says: its length, its ports, and whether it is a fragment. Pure and total: what is cut
//! off or makes no sense is not there.

use std::net::IpAddr;

use pnet_packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols};
use pnet_packet::ipv4::Ipv4Packet;
use pnet_packet::ipv6::Ipv6Packet;

/// MF of IPv4, in pnet's order of the three flags.
const MORE_FRAGMENTS: u8 = 0b001;

const IPV6_HEADER_BYTES: usize = 40;
const IPV6_FRAGMENT_HEADER_BYTES: usize = 8;
/// Extensions of IPv6 that are walked through at most; the kernel hands over less.
const MAX_EXTENSIONS: usize = 16;

/// The datagram that a fragment belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Datagram {
    source: IpAddr,
    destination: IpAddr,
    /// 0 for IPv6, where the number alone tells.
    protocol: u8,
    id: u32,
}

/// Which piece of its datagram a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// All of it.
    Whole,
    /// The first: others follow.
    First(Datagram),
    /// A later one.
    Later {
        /// Of this datagram.
        datagram: Datagram,
        /// Whether it is the last one.
        last: bool,
    },
}

/// What is known of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Bytes at IP level, header included, whatever was captured of them.
    pub bytes: u64,
    /// Which piece it is.
    pub piece: Piece,
    /// Ports it comes from and goes to. None: neither TCP nor UDP, a later fragment, or cut off.
    pub ports: Option<(u16, u16)>,
}

/// Reads an IPv4 packet, which begins with its header.
#[must_use]
pub fn ipv4(packet: &[u8]) -> Option<Head> {
    let ip = Ipv4Packet::new(packet)?;
    let protocol = ip.get_next_level_protocol();
    let datagram = Datagram {
        source: ip.get_source().into(),
        destination: ip.get_destination().into(),
        protocol: protocol.0,
        id: ip.get_identification().into(),
    };
    let more = ip.get_flags() & MORE_FRAGMENTS != 0;
    let piece = match (ip.get_fragment_offset(), more) {
        (0, false) => Piece::Whole,
        (0, true) => Piece::First(datagram),
        (_, more) => Piece::Later { datagram, last: !more },
    };
    let ports = ports(packet, usize::from(ip.get_header_length()) * 4, protocol, piece);
    Some(Head { bytes: ip.get_total_length().into(), piece, ports })
}

/// Reads an IPv6 packet, which begins with its header.
#[must_use]
pub fn ipv6(packet: &[u8]) -> Option<Head> {
    let ip = Ipv6Packet::new(packet)?;
    let (source, destination) = (ip.get_source().into(), ip.get_destination().into());
    let mut next = ip.get_next_header();
    let mut at = IPV6_HEADER_BYTES;
    let mut piece = Piece::Whole;
    for _ in 0..MAX_EXTENSIONS {
        let Some(&[following, length, ..]) = packet.get(at..) else { break };
        match next {
            IpNextHeaderProtocols::Hopopt
            | IpNextHeaderProtocols::Ipv6Route
            | IpNextHeaderProtocols::Ipv6Opts => at += 8 * (usize::from(length) + 1),
            IpNextHeaderProtocols::Ipv6Frag => {
                let Some(&[_, _, offset_high, offset_low, a, b, c, d]) =
                    packet.get(at..at + IPV6_FRAGMENT_HEADER_BYTES)
                else {
                    break;
                };
                // The offset in units of eight bytes, two bits that are reserved, and whether more follow.
                let word = u16::from_be_bytes([offset_high, offset_low]);
                let id = u32::from_be_bytes([a, b, c, d]);
                let datagram = Datagram { source, destination, protocol: 0, id };
                piece = match (word >> 3, word & 1 == 1) {
                    (0, false) => Piece::Whole,
                    (0, true) => Piece::First(datagram),
                    (_, more) => Piece::Later { datagram, last: !more },
                };
                at += IPV6_FRAGMENT_HEADER_BYTES;
            }
            _ => break,
        }
        next = IpNextHeaderProtocol(following);
        if matches!(piece, Piece::Later { .. }) {
            break;
        }
    }
    let bytes = IPV6_HEADER_BYTES as u64 + u64::from(ip.get_payload_length());
    Some(Head { bytes, piece, ports: ports(packet, at, next, piece) })
}

/// The ports behind the IP header, `at` from the packet's begin.
fn ports(packet: &[u8], at: usize, protocol: IpNextHeaderProtocol, piece: Piece) -> Option<(u16, u16)> {
    let has_ports = matches!(protocol, IpNextHeaderProtocols::Udp | IpNextHeaderProtocols::Tcp)
        && !matches!(piece, Piece::Later { .. });
    match packet.get(at..at + 4) {
        Some(&[from_high, from_low, to_high, to_low]) if has_ports => {
            Some((u16::from_be_bytes([from_high, from_low]), u16::from_be_bytes([to_high, to_low])))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u16).to_be_bytes();
        [&[0x60, 0, 0, 0, length[0], length[1], next, 64][..], &[0xfd; 32], payload].concat()
    }

    const PORTS: [u8; 8] = [0x9c, 0x40, 0x1f, 0x90, 0, 8, 0, 0];

    #[test]
    fn the_ports_of_ipv6_stand_behind_its_extensions() {
        let expected = Some((40_000, 8080));
        assert_eq!(ipv6(&v6(17, &PORTS)).unwrap().ports, expected);
        assert_eq!(ipv6(&v6(6, &PORTS)).unwrap().ports, expected);
        let hop_by_hop = [&[60, 0, 1, 4, 0, 0, 0, 0][..], &[17, 1], &[1; 14], &PORTS].concat();
        let head = ipv6(&v6(0, &hop_by_hop)).unwrap();
        assert_eq!((head.ports, head.bytes, head.piece), (expected, 72, Piece::Whole));
        assert_eq!(ipv6(&v6(58, &PORTS)).unwrap().ports, None);
    }

    #[test]
    fn fragments_of_ipv6_are_told_apart_by_their_number() {
        let fragment = |word: u16, id: u8| {
            let word = word.to_be_bytes();
            ipv6(&v6(44, &[&[17, 0, word[0], word[1], 0, 0, 0, id][..], &PORTS].concat())).unwrap()
        };
        let Head { piece: Piece::First(datagram), ports: Some((40_000, 8080)), .. } = fragment(1, 7) else {
            panic!("{:?}", fragment(1, 7));
        };
        assert_eq!(fragment(181 << 3 | 1, 7).piece, Piece::Later { datagram, last: false });
        let last = fragment(362 << 3, 7);
        assert_eq!((last.piece, last.ports), (Piece::Later { datagram, last: true }, None));
        assert!(
            !matches!(fragment(362 << 3, 8).piece, Piece::Later { datagram: other, .. } if other == datagram)
        );
        assert_eq!(fragment(0, 9).piece, Piece::Whole, "an atomic fragment");
    }

    #[test]
    fn what_is_cut_off_counts_with_its_length_and_has_no_ports() {
        let mut packet = v6(17, &[PORTS.to_vec(), vec![7; 1000]].concat());
        packet.truncate(42);
        assert_eq!(ipv6(&packet), Some(Head { bytes: 1048, piece: Piece::Whole, ports: None }));
        assert_eq!(ipv6(&packet[..39]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(packet in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(ipv4(&packet).is_some(), packet.len() >= 20);
            prop_assert_eq!(ipv6(&packet).is_some(), packet.len() >= 40);
        }
    }
}
