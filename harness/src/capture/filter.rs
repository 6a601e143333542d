//! The kernel's filter of a capture, in classic BPF: only heads of packets are handed over, and with ports given only
//! theirs. Pure.

use super::Settings;

/// Most ports of a filter: its jumps reach 255 instructions.
pub const MAX_PORTS: usize = 64;

/// Bytes of an IPv4 packet that are handed over: Ethernet 14, IPv4 with all options 60, ports 4.
pub const HEAD_BYTES: u32 = 96;

/// A whole packet of any other protocol, whose length is not in its head.
const WHOLE_BYTES: u32 = 0x4_0000;

const ETHERTYPE_AT: u32 = 12;
const FRAGMENT_AT: u32 = 20;
const PROTOCOL_AT: u32 = 23;
const SOURCE_AT: u32 = 26;
/// Without the IP header, whose length is in the index register.
const SOURCE_PORT_AT: u32 = 14;
const DESTINATION_PORT_AT: u32 = 16;

/// Where Linux has what is known of a packet beside its bytes: SKF_AD_OFF + SKF_AD_PKTTYPE.
const PACKET_TYPE_AT: u32 = 0xffff_f000 + 4;
const PACKET_OUTGOING: u32 = 4;

const IPV4: u32 = 0x0800;
const TCP: u32 = 6;
const UDP: u32 = 17;
const LATER_FRAGMENT: u32 = 0x1fff;

// Operations.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF_INDEXED: u16 = 0x48;
const INDEX_FROM_HEADER_LENGTH: u16 = 0xb1;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

/// One instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// How many instructions to skip if the comparison holds.
    pub jt: u8,
    /// How many to skip if it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// Where a comparison goes.
#[derive(Clone, Copy)]
enum To {
    Next,
    Accept,
    Reject,
}

/// An instruction whose jumps are not counted out yet.
enum Draft {
    Plain(u16, u32),
    Jump(u16, u32, To, To),
}

/// The filter for `settings`; on a loopback interface, which shows every packet twice, only of what leaves.
#[must_use]
pub fn program(settings: &Settings, loopback: bool) -> Vec<Instruction> {
    let mut draft = Vec::new();
    if loopback {
        draft.push(Draft::Plain(LOAD_WORD, PACKET_TYPE_AT));
        draft.push(Draft::Jump(JUMP_IF_EQUAL, PACKET_OUTGOING, To::Next, To::Reject));
    }
    if let Some(sender) = settings.only_from {
        draft.push(Draft::Plain(LOAD_WORD, SOURCE_AT));
        draft.push(Draft::Jump(JUMP_IF_EQUAL, u32::from(sender), To::Next, To::Reject));
    }
    if settings.others && draft.is_empty() {
        draft.push(Draft::Plain(LOAD_HALF, ETHERTYPE_AT));
        draft.push(Draft::Jump(JUMP_IF_EQUAL, IPV4, To::Accept, To::Reject));
        return resolve(&draft, WHOLE_BYTES);
    }
    draft.push(Draft::Plain(LOAD_HALF, ETHERTYPE_AT));
    draft.push(Draft::Jump(JUMP_IF_EQUAL, IPV4, To::Next, To::Reject));
    // Later fragments carry no ports: the tally knows whose they are.
    draft.push(Draft::Plain(LOAD_HALF, FRAGMENT_AT));
    draft.push(Draft::Jump(JUMP_IF_SET, LATER_FRAGMENT, To::Accept, To::Next));
    draft.push(Draft::Plain(INDEX_FROM_HEADER_LENGTH, SOURCE_PORT_AT));
    draft.push(Draft::Plain(LOAD_BYTE, PROTOCOL_AT));
    // Of two protocols: what is not TCP must be UDP.
    let udp_only = draft.len() + 2;
    draft.push(Draft::Jump(JUMP_IF_EQUAL, TCP, To::Next, To::Next));
    draft.push(Draft::Jump(JUMP_IF_EQUAL, UDP, To::Next, To::Reject));
    for at in [SOURCE_PORT_AT, DESTINATION_PORT_AT] {
        draft.push(Draft::Plain(LOAD_HALF_INDEXED, at));
        for port in &settings.ports {
            draft.push(Draft::Jump(JUMP_IF_EQUAL, u32::from(*port), To::Accept, To::Next));
        }
    }
    let mut program = resolve(&draft, 0);
    // TCP skips the question for UDP.
    if let Some(tcp) = program.get_mut(udp_only - 2) {
        tcp.jt = 1;
    }
    program
}

/// Counts the jumps out. Behind the draft come: return `rejected` bytes, return the head.
fn resolve(draft: &[Draft], rejected: u32) -> Vec<Instruction> {
    let length = draft.len();
    let mut program: Vec<Instruction> = draft
        .iter()
        .enumerate()
        .map(|(at, step)| match *step {
            Draft::Plain(code, k) => Instruction { code, jt: 0, jf: 0, k },
            Draft::Jump(code, k, yes, no) => {
                let skip = |to| match to {
                    To::Next => 0,
                    To::Reject => (length - at - 1) as u8,
                    To::Accept => (length - at) as u8,
                };
                Instruction { code, jt: skip(yes), jf: skip(no), k }
            }
        })
        .collect();
    program.extend([rejected, HEAD_BYTES].map(|k| Instruction { code: RETURN, jt: 0, jf: 0, k }));
    program
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// Runs a program as the kernel would; returns the bytes that are handed over.
    fn run(program: &[Instruction], packet: &[u8], packet_type: u32) -> u32 {
        let (mut a, mut x, mut at) = (0_u32, 0_usize, 0_usize);
        let bytes = |from: usize, count: usize| {
            packet
                .get(from..from + count)
                .map(|bytes| bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
        };
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            let loaded = match code {
                LOAD_WORD if k == PACKET_TYPE_AT => Some(packet_type),
                LOAD_WORD => bytes(k as usize, 4),
                LOAD_HALF => bytes(k as usize, 2),
                LOAD_BYTE => bytes(k as usize, 1),
                LOAD_HALF_INDEXED => bytes(x + k as usize, 2),
                INDEX_FROM_HEADER_LENGTH => {
                    x = 4 * (packet[k as usize] & 0xf) as usize;
                    continue;
                }
                JUMP_IF_EQUAL => {
                    at += usize::from(if a == k { jt } else { jf });
                    continue;
                }
                JUMP_IF_SET => {
                    at += usize::from(if a & k != 0 { jt } else { jf });
                    continue;
                }
                RETURN => return k,
                _ => panic!("operation {code:#x}"),
            };
            // Reading beyond the packet ends the program with 0.
            let Some(loaded) = loaded else { return 0 };
            a = loaded;
        }
    }

    /// An IPv4 packet with four bytes of options.
    fn packet(protocol: u8, fragment: u16, from: u16, to: u16) -> Vec<u8> {
        let mut packet = vec![0; 12];
        packet.extend([0x08, 0, 0x46, 0, 0, 100, 0, 1]);
        packet.extend(fragment.to_be_bytes());
        packet.extend([64, protocol, 0, 0, 127, 0, 0, 1, 127, 0, 0, 2, 1, 1, 1, 1]);
        packet.extend(from.to_be_bytes());
        packet.extend(to.to_be_bytes());
        packet
    }

    fn settings(ports: &[u16]) -> Settings {
        Settings { others: false, ..Settings::everything("lo", ports) }
    }

    #[test]
    fn only_the_ports_and_later_fragments_pass() {
        let most: Vec<u16> = (1..=MAX_PORTS as u16).collect();
        let (few, many) = (program(&settings(&[8080, 5000]), false), program(&settings(&most), false));
        for (program, packet, expected) in [
            (&few, packet(17, 0, 8080, 1), HEAD_BYTES),
            (&few, packet(6, 0, 1, 5000), HEAD_BYTES),
            (&few, packet(17, 0x2000, 1, 5000), HEAD_BYTES),
            (&few, packet(17, 185, 1, 2), HEAD_BYTES),
            (&few, packet(17, 0, 1, 2), 0),
            (&few, packet(1, 0, 8080, 8080), 0),
            (&many, packet(17, 0, 1, 9999), HEAD_BYTES),
            (&many, packet(17, 0, 9999, 64), HEAD_BYTES),
            (&many, packet(17, 0, 9999, 65), 0),
        ] {
            assert_eq!(run(program, &packet, 0), expected, "{packet:?}");
        }
        let mut arp = packet(17, 0, 8080, 8080);
        arp[13] = 6;
        assert_eq!(run(&few, &arp, 0), 0);
        assert_eq!(run(&few, &[], 0), 0);
    }

    #[test]
    fn with_others_everything_passes() {
        let program = program(&Settings::everything("eth0", &[8080]), false);
        assert_eq!(run(&program, &packet(17, 0, 1, 2), 0), HEAD_BYTES);
        let mut arp = packet(17, 0, 1, 2);
        arp[13] = 6;
        assert_eq!(run(&program, &arp, 0), WHOLE_BYTES);
    }

    #[test]
    fn on_loopback_only_what_the_sender_sends_passes_and_once() {
        let own = Settings { only_from: Some(Ipv4Addr::new(127, 0, 0, 1)), ..settings(&[8080]) };
        let other = Settings { only_from: Some(Ipv4Addr::new(127, 0, 0, 9)), ..settings(&[8080]) };
        let packet = packet(17, 0, 8080, 8080);
        assert_eq!(run(&program(&own, true), &packet, PACKET_OUTGOING), HEAD_BYTES);
        assert_eq!(run(&program(&own, true), &packet, 0), 0);
        assert_eq!(run(&program(&other, true), &packet, PACKET_OUTGOING), 0);
    }
}
