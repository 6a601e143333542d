//! The kernel's filter of a capture, in classic BPF: only heads of packets are handed over, and with ports given only
//! theirs. Pure.

use super::Settings;

/// Most ports of a filter: its jumps reach 255 instructions.
pub const MAX_PORTS: usize = 64;

/// Bytes of an IP packet that are handed over: Ethernet 14; IPv4 with all options 60, or IPv6 40 with up to 70 of
/// extensions; ports 4.
pub const HEAD_BYTES: u32 = 128;

const ETHERTYPE_AT: u32 = 12;
const FRAGMENT_AT: u32 = 20;
const PROTOCOL_AT: u32 = 23;
const SOURCE_AT: u32 = 26;
const IPV6_NEXT_AT: u32 = 20;
const IPV6_HEADER_BYTES: u32 = 40;
/// Without the IP header, whose length is in the index register.
const SOURCE_PORT_AT: u32 = 14;
const DESTINATION_PORT_AT: u32 = 16;

/// Where Linux has what is known of a packet beside its bytes: SKF_AD_OFF + SKF_AD_PKTTYPE.
const PACKET_TYPE_AT: u32 = 0xffff_f000 + 4;
const PACKET_OUTGOING: u32 = 4;

const IPV4: u32 = 0x0800;
const IPV6: u32 = 0x86dd;
/// Headers of IPv6 that stand before the ports, or before a later fragment: hop by hop, routing, fragment, destination.
const EXTENSIONS: [u32; 4] = [0, 43, 44, 60];
const TCP: u32 = 6;
const UDP: u32 = 17;
const LATER_FRAGMENT: u32 = 0x1fff;

// Operations.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF_INDEXED: u16 = 0x48;
const INDEX_FROM_HEADER_LENGTH: u16 = 0xb1;
const INDEX: u16 = 0x01;
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
    /// To the label of this name.
    Label(Label),
    Accept,
    Reject,
}

/// A place in a draft that is jumped to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Ipv6,
    Ports,
}

/// An instruction whose jumps are not counted out yet.
enum Draft {
    Plain(u16, u32),
    Jump(u16, u32, To, To),
    /// No instruction: what follows has this name.
    Here(Label),
}

/// The filter for `settings`; on a loopback interface, which shows every packet twice, only of what leaves.
#[must_use]
pub fn program(settings: &Settings, loopback: bool) -> Vec<Instruction> {
    if settings.others && settings.only_from.is_none() && !loopback {
        return vec![returning(HEAD_BYTES)];
    }
    let mut draft = Vec::new();
    if loopback {
        draft.push(Draft::Plain(LOAD_WORD, PACKET_TYPE_AT));
        draft.push(Draft::Jump(JUMP_IF_EQUAL, PACKET_OUTGOING, To::Next, To::Reject));
    }
    if let Some(sender) = settings.only_from {
        draft.push(Draft::Plain(LOAD_HALF, ETHERTYPE_AT));
        draft.push(Draft::Jump(JUMP_IF_EQUAL, IPV4, To::Next, To::Reject));
        draft.push(Draft::Plain(LOAD_WORD, SOURCE_AT));
        draft.push(Draft::Jump(JUMP_IF_EQUAL, u32::from(sender), To::Next, To::Reject));
    }
    draft.push(Draft::Plain(LOAD_HALF, ETHERTYPE_AT));
    draft.push(Draft::Jump(JUMP_IF_EQUAL, IPV4, To::Next, To::Label(Label::Ipv6)));
    // Later fragments carry no ports: the tally knows whose they are.
    draft.push(Draft::Plain(LOAD_HALF, FRAGMENT_AT));
    draft.push(Draft::Jump(JUMP_IF_SET, LATER_FRAGMENT, To::Accept, To::Next));
    draft.push(Draft::Plain(INDEX_FROM_HEADER_LENGTH, SOURCE_PORT_AT));
    draft.push(Draft::Plain(LOAD_BYTE, PROTOCOL_AT));
    draft.push(Draft::Jump(JUMP_IF_EQUAL, TCP, To::Label(Label::Ports), To::Next));
    draft.push(Draft::Jump(JUMP_IF_EQUAL, UDP, To::Label(Label::Ports), To::Reject));
    draft.push(Draft::Here(Label::Ipv6));
    draft.push(Draft::Jump(JUMP_IF_EQUAL, IPV6, To::Next, To::Reject));
    draft.push(Draft::Plain(LOAD_BYTE, IPV6_NEXT_AT));
    // The tally walks through extensions; this program cannot.
    draft.extend(EXTENSIONS.map(|header| Draft::Jump(JUMP_IF_EQUAL, header, To::Accept, To::Next)));
    draft.push(Draft::Plain(INDEX, IPV6_HEADER_BYTES));
    draft.push(Draft::Jump(JUMP_IF_EQUAL, TCP, To::Label(Label::Ports), To::Next));
    draft.push(Draft::Jump(JUMP_IF_EQUAL, UDP, To::Next, To::Reject));
    draft.push(Draft::Here(Label::Ports));
    for at in [SOURCE_PORT_AT, DESTINATION_PORT_AT] {
        draft.push(Draft::Plain(LOAD_HALF_INDEXED, at));
        for port in &settings.ports {
            draft.push(Draft::Jump(JUMP_IF_EQUAL, u32::from(*port), To::Accept, To::Next));
        }
    }
    resolve(&draft)
}

const fn returning(bytes: u32) -> Instruction {
    Instruction { code: RETURN, jt: 0, jf: 0, k: bytes }
}

/// Counts the jumps out. Behind the draft come: return nothing, return the head.
fn resolve(draft: &[Draft]) -> Vec<Instruction> {
    let instructions = |steps: &[Draft]| steps.iter().filter(|step| !matches!(step, Draft::Here(_))).count();
    let length = instructions(draft);
    let place = |label: Label| {
        let steps = draft.iter().position(|step| matches!(step, Draft::Here(name) if *name == label));
        instructions(&draft[..steps.unwrap_or(draft.len())])
    };
    let mut program = Vec::with_capacity(length + 2);
    for step in draft {
        let skip = |to| match to {
            To::Next => 0,
            To::Label(label) => (place(label) - program.len() - 1) as u8,
            To::Reject => (length - program.len() - 1) as u8,
            To::Accept => (length - program.len()) as u8,
        };
        match *step {
            Draft::Plain(code, k) => program.push(Instruction { code, jt: 0, jf: 0, k }),
            Draft::Jump(code, k, yes, no) => {
                let (jt, jf) = (skip(yes), skip(no));
                program.push(Instruction { code, jt, jf, k });
            }
            Draft::Here(_) => {}
        }
    }
    program.extend([0, HEAD_BYTES].map(returning));
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
                INDEX => {
                    x = k as usize;
                    continue;
                }
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

    /// An IPv6 packet whose next header is `next`; the ports stand right behind the header.
    fn packet_v6(next: u8, from: u16, to: u16) -> Vec<u8> {
        let mut packet = vec![0; 12];
        packet.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 60, next, 64]);
        packet.extend([0xfd; 32]);
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
            (&few, packet_v6(17, 8080, 1), HEAD_BYTES),
            (&few, packet_v6(6, 1, 5000), HEAD_BYTES),
            (&few, packet_v6(17, 1, 2), 0),
            (&few, packet_v6(58, 8080, 8080), 0),
            (&few, packet_v6(44, 1, 2), HEAD_BYTES),
            (&few, packet_v6(0, 1, 2), HEAD_BYTES),
            (&many, packet_v6(6, 9999, 64), HEAD_BYTES),
            (&many, packet_v6(6, 9999, 65), 0),
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
        assert_eq!(run(&program, &packet_v6(58, 1, 2), 0), HEAD_BYTES);
        let mut arp = packet(17, 0, 1, 2);
        arp[13] = 6;
        assert_eq!(run(&program, &arp, 0), HEAD_BYTES);
    }

    #[test]
    fn on_loopback_only_what_the_sender_sends_passes_and_once() {
        let own = Settings { only_from: Some(Ipv4Addr::new(127, 0, 0, 1)), ..settings(&[8080]) };
        let other = Settings { only_from: Some(Ipv4Addr::new(127, 0, 0, 9)), ..settings(&[8080]) };
        let packet = packet(17, 0, 8080, 8080);
        assert_eq!(run(&program(&own, true), &packet, PACKET_OUTGOING), HEAD_BYTES);
        assert_eq!(run(&program(&own, true), &packet, 0), 0);
        assert_eq!(run(&program(&other, true), &packet, PACKET_OUTGOING), 0);
        assert_eq!(run(&program(&own, true), &packet_v6(17, 8080, 8080), PACKET_OUTGOING), 0);
        assert_eq!(
            run(&program(&settings(&[8080]), true), &packet_v6(17, 8080, 1), PACKET_OUTGOING),
            HEAD_BYTES
        );
    }
}
