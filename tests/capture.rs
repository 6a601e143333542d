//! What a capture counts: known traffic through a veth between two namespaces that the test makes, with counts and sizes
//! worked out by hand. Needs root.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use harness::capture::sniff::Sniffer;
use harness::capture::{Capture, Count, Direction, Interval, Settings};
use harness::link::Link;
use harness::offload;
use harness::place::netns::network::{NODE_INTERFACE, Network};
use harness::plan::{Member, Plan};
use pnet_datalink::Channel;
use replication::NodeId;

use crate::netns::{PATIENCE, await_some, need_root};

/// Two nodes' namespaces.
fn pair() -> (Network, Vec<Member>) {
    need_root();
    let members = Plan::members_in("10.9.9.0".parse().unwrap(), 2);
    (Network::build(&members, &Link::default()).unwrap(), members)
}

fn inside<T: Send>(network: &Network, node: u64, work: impl FnOnce() -> io::Result<T> + Send) -> T {
    network.namespace(NodeId(node)).unwrap().run(work).unwrap()
}

/// What a capture with `settings` at node 1 counts while `work` goes on, and its last words.
fn counted(settings: &Settings, work: impl FnOnce(&Network, &[Member])) -> (Vec<Count>, Interval) {
    let (network, members) = pair();
    let (tell, told) = mpsc::channel();
    let capture = inside(&network, 1, || {
        // The thread of the capture inherits the namespace.
        Capture::start(settings, move |interval| drop(tell.send(interval))).map_err(io::Error::other)
    });
    work(&network, &members);
    capture.finish();
    let intervals: Vec<Interval> = told.iter().collect();
    let last = intervals.last().unwrap().clone();
    assert!(last.last && last.exact && last.failure.is_none(), "{last:?}");
    assert_eq!(intervals.iter().map(|interval| interval.dropped_packets).sum::<u64>(), 0);
    (intervals.into_iter().flat_map(|interval| interval.counts).collect(), last)
}

/// The size of the next datagram. A signal is no failure: this process has a handler for one, see
/// `signals_do_not_disturb_a_capture`.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> usize {
    loop {
        match socket.recv(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received.unwrap(),
        }
    }
}

/// Sends twenty datagrams of `size` bytes from node 1 to port 8080 of node 2, one after the other.
fn send(network: &Network, [from, to]: [IpAddr; 2], size: usize) {
    let receiver = inside(network, 2, || UdpSocket::bind((to, 8080)));
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let sender = inside(network, 1, || UdpSocket::bind((from, 40_000)));
    let mut buffer = vec![0; 70_000];
    for _ in 0..20 {
        sender.send_to(&vec![7; size], (to, 8080)).unwrap();
        assert_eq!(receive(&receiver, &mut buffer), size);
    }
}

/// Gives each of two nodes an IPv6 address.
fn addresses_v6(network: &Network) -> [IpAddr; 2] {
    [1, 2].map(|node| {
        let address = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, node);
        inside(network, node.into(), || {
            let words = format!("-6 address add {address}/64 dev {NODE_INTERFACE} nodad");
            assert!(Command::new("ip").args(words.split(' ')).status()?.success());
            Ok(())
        });
        address.into()
    })
}

fn sum(counts: &[Count], direction: Direction, of_port: impl Fn(u16) -> bool) -> (u64, u64) {
    let counts = counts.iter().filter(|count| count.direction == direction && of_port(count.port));
    counts.fold((0, 0), |sum, count| (sum.0 + count.packets, sum.1 + count.bytes))
}

fn everything() -> Settings {
    Settings::everything(NODE_INTERFACE, &[8080, 5000])
}

fn only_ports() -> Settings {
    Settings { others: false, ..everything() }
}

#[test]
fn a_flow_over_ipv4_is_counted_exactly_fragmented_or_not() {
    // Up to 1472 bytes fit one packet of 1500; each fragment carries 1480 bytes behind a header of 20.
    for (size, packets, headers) in
        [(1, 1, 28), (1472, 1, 28), (1473, 2, 48), (8000, 6, 128), (65_000, 44, 888)]
    {
        for settings in [everything(), only_ports()] {
            let (counts, last) = counted(&settings, |network, members| {
                send(network, [members[0].ip.into(), members[1].ip.into()], size);
            });
            let flow = sum(&counts, Direction::Egress, |port| port == 8080);
            assert_eq!(flow, (20 * packets, 20 * (size as u64 + headers)), "datagrams of {size} B");
            let all = sum(&counts, Direction::Egress, |_| true);
            let interface = (last.interface.sent_packets, last.interface.sent_bytes);
            assert!(all == interface || !settings.others, "datagrams of {size} B: {all:?} {interface:?}");
        }
    }
}

#[test]
fn a_flow_over_ipv6_is_counted_exactly_fragmented_or_not() {
    // Up to 1452 bytes fit one packet of 1500. Each fragment carries 1448 bytes, of which the first has 8 of UDP, behind
    // headers of 40 and 8.
    for (size, packets, headers) in
        [(1, 1, 48), (1452, 1, 48), (1453, 2, 104), (8000, 6, 296), (65_000, 45, 2168)]
    {
        for settings in [everything(), only_ports()] {
            let (counts, last) = counted(&settings, |network, _| send(network, addresses_v6(network), size));
            let flow = sum(&counts, Direction::Egress, |port| port == 8080);
            assert_eq!(flow, (20 * packets, 20 * (size as u64 + headers)), "datagrams of {size} B");
            let all = sum(&counts, Direction::Egress, |_| true);
            let interface = (last.interface.sent_packets, last.interface.sent_bytes);
            assert!(all == interface || !settings.others, "datagrams of {size} B: {all:?} {interface:?}");
        }
    }
}

/// An IPv4 packet from 10.9.9.9: `words` of options, what the header says its length and fragment are, and its ports.
fn ipv4(options: u8, length: u16, (id, fragment): (u16, u16), protocol: u8, ports: [u16; 2]) -> Vec<u8> {
    let mut packet = vec![0x45 + options, 0];
    for word in [length, id, fragment] {
        packet.extend(word.to_be_bytes());
    }
    packet.extend([64, protocol, 0, 0, 10, 9, 9, 9, 10, 9, 9, 8]);
    packet.resize(packet.len() + 4 * usize::from(options), 1);
    packet.extend(ports.map(u16::to_be_bytes).concat());
    packet.resize(usize::from(length), 0);
    packet
}

/// An IPv6 packet: extensions, and ports behind them, filled up to `payload` bytes behind the header.
fn ipv6(next: u8, extensions: &[u8], payload: u16, ports: [u16; 2]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(payload.to_be_bytes());
    packet.extend([next, 64]);
    packet.extend([0xfd; 32]);
    packet.extend(extensions);
    packet.extend(ports.map(u16::to_be_bytes).concat());
    packet.resize(40 + usize::from(payload), 0);
    packet
}

/// Sends frames with these payloads out of node 1's interface.
fn send_raw(network: &Network, packets: &[([u8; 2], Vec<u8>)]) {
    inside(network, 1, || {
        let all = pnet_datalink::interfaces();
        let interface = all.into_iter().find(|interface| interface.name == NODE_INTERFACE).unwrap();
        let own = interface.mac.unwrap().octets();
        let Channel::Ethernet(mut sender, _) = pnet_datalink::channel(&interface, Default::default())? else {
            panic!("no Ethernet");
        };
        for (ethertype, packet) in packets {
            let mut frame = [&[2, 0, 0, 0, 0, 9][..], &own, ethertype, packet].concat();
            // The least that Ethernet carries: what is padded must not be counted.
            frame.resize(frame.len().max(60), 0);
            sender.send_to(&frame, None).unwrap()?;
        }
        Ok(())
    });
}

#[test]
fn crafted_packets_count_with_what_their_headers_say() {
    const V4: [u8; 2] = [0x08, 0x00];
    const V6: [u8; 2] = [0x86, 0xdd];
    const ARP: [u8; 2] = [0x08, 0x06];
    let first_of = |id| [&[17, 0, 0, 1, 0, 0, 0, id][..]].concat();
    let last_of = |id| [&[17, 0, 3, 0x80, 0, 0, 0, id][..]].concat();
    let long_option = [&[17, 24][..], &[0; 198]].concat();
    let packets = [
        (V4, ipv4(0, 29, (1, 0), 17, [40_000, 8080])),
        // Options to the full, and the port where it comes from.
        (V4, ipv4(10, 100, (2, 0), 6, [5000, 40_000])),
        // Two datagrams, whose fragments alternate.
        (V4, ipv4(0, 1500, (3, 0x2000), 17, [40_000, 8080])),
        (V4, ipv4(0, 1500, (4, 0x2000), 17, [40_000, 5000])),
        (V4, ipv4(0, 60, (3, 185), 17, [5000, 5000])),
        (V4, ipv4(0, 70, (4, 185), 17, [8080, 8080])),
        // Hop by hop and destination options of 8 bytes each.
        (V6, ipv6(0, &[60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0], 24, [40_000, 5000])),
        (V6, ipv6(44, &first_of(7), 1000, [40_000, 8080])),
        (V6, ipv6(44, &first_of(8), 900, [40_000, 5000])),
        (V6, ipv6(44, &last_of(7), 100, [5000, 5000])),
        (V6, ipv6(44, &last_of(8), 200, [8080, 8080])),
        // Its ports are behind what is read of it.
        (V6, ipv6(0, &long_option, 208, [40_000, 8080])),
        (ARP, vec![0; 46]),
    ];
    let (counts, last) = counted(&everything(), |network, _| send_raw(network, &packets));
    let of = |counts: &[Count], port| sum(counts, Direction::Egress, |other| other == port);
    let (learning, replication) = ((5, 29 + 1500 + 60 + 1040 + 140), (6, 100 + 1500 + 70 + 64 + 940 + 240));
    assert_eq!((of(&counts, 8080), of(&counts, 5000)), (learning, replication));
    let all = sum(&counts, Direction::Egress, |_| true);
    // The interface counts the padding of the first packet, to 46 bytes.
    assert_eq!((all.0, all.1 + 17), (last.interface.sent_packets, last.interface.sent_bytes));
    assert!(all.1 >= learning.1 + replication.1 + 248 + 46, "the two of no port are in {counts:?}");

    let (counts, _) = counted(&only_ports(), |network, _| send_raw(network, &packets));
    assert_eq!((of(&counts, 8080), of(&counts, 5000)), (learning, replication), "by the kernel's filter");
    assert!(counts.iter().all(|count| count.port != 0), "{counts:?}");
}

#[test]
fn tcp_on_a_port_is_counted_too() {
    let (counts, last) = counted(&everything(), |network, members| {
        let listener = inside(network, 2, || TcpListener::bind((members[1].ip, 5000)));
        let mut near = inside(network, 1, || TcpStream::connect((members[1].ip, 5000)));
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(&[7; 100_000]).unwrap();
        far.read_exact(&mut [0; 100_000]).unwrap();
    });
    let (packets, bytes) = sum(&counts, Direction::Egress, |port| port == 5000);
    let others = sum(&counts, Direction::Egress, |port| port != 5000);
    assert_eq!(
        (packets + others.0, bytes + others.1),
        (last.interface.sent_packets, last.interface.sent_bytes)
    );
    // 40 to 60 bytes of headers each, at most 1500 with them.
    assert!(bytes >= 100_000 + 40 * packets && packets >= 100_000 / 1460, "{packets} packets, {bytes} B");
}

#[test]
fn with_offloads_left_on_a_count_is_marked_inexact() {
    let (network, members) = pair();
    let exact = || {
        inside(&network, 1, || {
            let mut sniffer = Sniffer::open(&everything()).map_err(io::Error::other)?;
            Ok(sniffer.take().exact)
        })
    };
    assert!(exact());
    inside(&network, 1, || offload::switch(NODE_INTERFACE, true));
    assert!(!exact());
    // The rows of the tool, too.
    let dir = tempfile::tempdir().unwrap();
    let receiver = inside(&network, 2, || UdpSocket::bind((members[1].ip, 8080)));
    let sender = inside(&network, 1, || UdpSocket::bind((members[0].ip, 40_000)));
    let mut command = Command::new(env!("CARGO_BIN_EXE_harness"));
    command.args(["capture", "--interface", NODE_INTERFACE, "--port", "8080", "--csv", "x.csv", "--quiet"]);
    command.current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = inside(&network, 1, || command.spawn());
    let csv = dir.path().join("x.csv");
    await_some("the capture", || csv.exists().then_some(()));
    sender.send_to(&[7; 72], (members[1].ip, 8080)).unwrap();
    receive(&receiver, &mut [0; 72]);
    await_some("a row", || {
        fs::read_to_string(&csv).unwrap().contains("8080,egress,1,100,0,false").then_some(())
    });
    interrupt(child.id());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("ethtool -K eth0 tso off gso off gro off"), "{said}");
}

/// SIGINT.
fn interrupt(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
}

extern "C" fn nothing(_signal: libc::c_int) {}

#[test]
fn signals_do_not_disturb_a_capture() {
    // SAFETY: the handler does nothing, so it may run at any moment; the action is all zeroes otherwise, which is valid and
    // means that system calls are not restarted.
    let outcome = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as libc::sighandler_t;
        libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut())
    };
    assert_eq!(outcome, 0);
    let (network, members) = pair();
    let sender = inside(&network, 1, || UdpSocket::bind((members[0].ip, 40_000)));
    let (tell, told) = mpsc::channel();
    let packets = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            inside(&network, 1, || {
                let mut sniffer = Sniffer::open(&everything()).map_err(io::Error::other)?;
                // SAFETY: has no preconditions.
                tell.send(unsafe { libc::pthread_self() }).unwrap();
                let mut packets = 0;
                while packets < 200 {
                    sniffer.step()?;
                    packets += sum(&sniffer.take().counts, Direction::Egress, |port| port == 8080).0;
                }
                Ok(packets)
            })
        });
        let thread = told.recv().unwrap();
        for _ in 0..200 {
            // SAFETY: the thread lives until it has counted the last packet, which is not sent yet.
            unsafe { libc::pthread_kill(thread, libc::SIGUSR2) };
            sender.send_to(&[7], (members[1].ip, 8080)).unwrap();
        }
        reader.join().unwrap()
    });
    assert_eq!(packets, 200);
}

#[test]
fn a_capture_that_is_too_slow_reports_what_it_dropped() {
    let (network, members) = pair();
    let receiver = inside(&network, 2, || UdpSocket::bind((members[1].ip, 8080)));
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let sender = inside(&network, 1, || UdpSocket::bind((members[0].ip, 40_000)));
    // Packets that wait for an address to be resolved may be dropped before they leave: here none has to.
    sender.send_to(&[7], (members[1].ip, 8080)).unwrap();
    receive(&receiver, &mut [0; 1]);
    let settings = Settings { buffer_bytes: 4096, ..Settings::everything(NODE_INTERFACE, &[8080]) };
    let (read, dropped) = inside(&network, 1, || {
        let mut sniffer = Sniffer::open(&settings).map_err(io::Error::other)?;
        for _ in 0..500 {
            sender.send_to(&[7; 1000], (members[1].ip, 8080))?;
        }
        while sniffer.step()? {}
        let interval = sniffer.take();
        Ok((sum(&interval.counts, Direction::Egress, |port| port == 8080).0, interval.dropped_packets))
    });
    assert!(dropped > 0 && read + dropped >= 500, "read {read}, dropped {dropped}");
}

#[test]
fn an_interface_that_vanishes_ends_the_capture_with_a_reason() {
    let (network, _) = pair();
    let (tell, told) = mpsc::channel();
    let settings = Settings::everything(NODE_INTERFACE, &[8080]);
    let capture = inside(&network, 1, || {
        Capture::start(&settings, move |interval| drop(tell.send(interval))).map_err(io::Error::other)
    });
    inside(&network, 1, || {
        let status = Command::new("ip").args(["link", "delete", NODE_INTERFACE]).status()?;
        assert!(status.success());
        Ok(())
    });
    await_some("the capture's end", || (!capture.is_running()).then_some(()));
    let last = told.iter().last().unwrap();
    assert!(last.last && last.failure.is_some(), "{last:?}");
}

#[test]
fn offloads_of_a_node_s_interface_are_off() {
    let (network, _) = pair();
    let state = inside(&network, 1, || offload::state(NODE_INTERFACE));
    assert!(state.iter().all(|(_, on)| !on), "{state:?}");
}

#[test]
fn harness_capture_counts_each_packet_of_loopback_once() {
    need_root();
    let dir = tempfile::tempdir().unwrap();
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = receiver.local_addr().unwrap().port().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_harness"));
    command.args(["capture", "--interface", "lo", "--port", &port, "--csv", "x.csv", "--quiet"]);
    command.current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    // The file is made once the capture reads, and the handler of the signal is there when it has a header.
    let csv = dir.path().join("x.csv");
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    await_some("the capture", || csv.exists().then_some(()));
    for _ in 0..10 {
        sender.send_to(&[7; 72], receiver.local_addr().unwrap()).unwrap();
    }
    await_some("a row", || fs::read_to_string(&csv).unwrap().contains("egress").then_some(()));
    interrupt(child.id());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let mut rows = csv::Reader::from_path(&csv).unwrap();
    let rows: Vec<BTreeMap<String, String>> = rows.deserialize().map(|row| row.unwrap()).collect();
    let sum = |name: &str| rows.iter().map(|row| row[name].parse::<u64>().unwrap()).sum::<u64>();
    assert_eq!((sum("packets"), sum("bytes")), (10, 1000), "{rows:?}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("1000"));
}
