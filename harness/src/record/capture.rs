//! What was counted of the network: rows of capture.csv and capture_totals.csv, and the comparison of three counts:
//! the capture, the interface's counters, and the transport's own. Pure.

use std::collections::BTreeMap;

use replication::NodeId;
use replication::transport::{DatagramCount, Traffic};
use serde::{Deserialize, Serialize};

use crate::capture::{Direction, InterfaceCounts};
use crate::control::{Captured, Status};

/// What the headers of IPv4 and UDP add to each datagram.
const HEADER_BYTES: u64 = 28;

/// Capture and interface must agree to this share.
const TOLERANCE: f64 = 0.001;

/// Who counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The capture, on an interface of the node's own.
    Capture,
    /// The capture, on the loopback interface: packets of up to 64 KB, no result.
    Loopback,
    /// The transport, from its datagrams, with 28 bytes of headers added to each.
    #[default]
    Transport,
}

/// A row of capture.csv.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaptureRow {
    node: u64,
    interface: String,
    from_ns: u64,
    until_ns: u64,
    port: u16,
    direction: Direction,
    packets: u64,
    bytes: u64,
    dropped_packets: u64,
    source: Source,
    exact: bool,
}

impl CaptureRow {
    /// Names of the columns, in order.
    pub const COLUMNS: [&str; 11] = [
        "node",
        "interface",
        "from_ns",
        "until_ns",
        "port",
        "direction",
        "packets",
        "bytes",
        "dropped_packets",
        "source",
        "exact",
    ];

    /// The rows of a second.
    pub fn of(node: NodeId, captured: &Captured) -> impl Iterator<Item = Self> {
        let interval = &captured.interval;
        interval.counts.iter().map(move |count| Self {
            node: node.0,
            interface: captured.interface.clone(),
            from_ns: interval.from_ns,
            until_ns: interval.until_ns,
            port: count.port,
            direction: count.direction,
            packets: count.packets,
            bytes: count.bytes,
            dropped_packets: interval.dropped_packets,
            source: source_of(captured),
            exact: interval.exact,
        })
    }
}

const fn source_of(captured: &Captured) -> Source {
    if captured.loopback { Source::Loopback } else { Source::Capture }
}

/// A row of capture_totals.csv: a node's traffic in one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CaptureTotal {
    node: u64,
    source: Source,
    interface: String,
    direction: Option<Direction>,
    learning_packets: u64,
    learning_bytes: u64,
    replication_packets: u64,
    replication_bytes: u64,
    other_packets: u64,
    other_bytes: u64,
    interface_packets: Option<u64>,
    interface_bytes: Option<u64>,
    transport_learning_bytes: u64,
    transport_replication_bytes: u64,
    dropped_packets: u64,
    complete: bool,
    exact: bool,
}

impl CaptureTotal {
    /// Names of the columns, in order.
    pub const COLUMNS: [&str; 17] = [
        "node",
        "source",
        "interface",
        "direction",
        "learning_packets",
        "learning_bytes",
        "replication_packets",
        "replication_bytes",
        "other_packets",
        "other_bytes",
        "interface_packets",
        "interface_bytes",
        "transport_learning_bytes",
        "transport_replication_bytes",
        "dropped_packets",
        "complete",
        "exact",
    ];

    const fn captured_bytes(&self) -> u64 {
        self.learning_bytes + self.replication_bytes + self.other_bytes
    }

    /// How far the capture is from the interface's counters, as a share of them.
    fn difference(&self) -> Option<f64> {
        let interface = self.interface_bytes.filter(|bytes| *bytes > 0)?;
        Some(self.captured_bytes().abs_diff(interface) as f64 / interface as f64)
    }
}

/// What every node's capture told.
#[derive(Debug, Default)]
pub struct CaptureBook(BTreeMap<NodeId, Captures>);

#[derive(Debug, Default)]
struct Captures {
    source: Source,
    interface: String,
    counts: BTreeMap<(Direction, u16), (u64, u64)>,
    dropped_packets: u64,
    counters: InterfaceCounts,
    complete: bool,
    exact: bool,
}

impl CaptureBook {
    /// Adds what `node` captured in a second.
    pub fn captured(&mut self, node: NodeId, captured: &Captured) {
        let captures = self.0.entry(node).or_default();
        let interval = &captured.interval;
        captures.source = source_of(captured);
        captures.interface.clone_from(&captured.interface);
        for count in &interval.counts {
            let sum = captures.counts.entry((count.direction, count.port)).or_default();
            sum.0 += count.packets;
            sum.1 += count.bytes;
        }
        captures.dropped_packets += interval.dropped_packets;
        captures.counters = interval.interface;
        captures.complete = interval.last && interval.failure.is_none();
        // A capture that was inexact once stays so.
        captures.exact = interval.exact;
    }

    /// The rows of `node`, by its captures and its last status; `ports` are those of learning and replication.
    #[must_use]
    pub fn rows(&self, node: NodeId, ports: (u16, u16), status: Option<&Status>) -> Vec<CaptureTotal> {
        let nothing = Traffic::default();
        let (learning, replication) =
            status.map_or((&nothing, &nothing), |status| (&status.learning, &status.replication));
        // TCP: without the headers, which nobody here counts.
        let lifeline = status.map(|status| status.lifeline).unwrap_or_default();
        let rows = [Direction::Egress, Direction::Ingress].map(|direction| {
            let mut transport = [learning, replication].map(|traffic| at_ip_level(traffic, direction));
            transport[1].1 += match direction {
                Direction::Egress => lifeline.sent_bytes,
                Direction::Ingress => lifeline.received_bytes,
            };
            let row = CaptureTotal {
                node: node.0,
                direction: Some(direction),
                transport_learning_bytes: transport[0].1,
                transport_replication_bytes: transport[1].1,
                ..CaptureTotal::default()
            };
            match self.0.get(&node) {
                Some(captures) => captures.row(row, direction, ports),
                None => CaptureTotal {
                    learning_packets: transport[0].0,
                    learning_bytes: transport[0].1,
                    replication_packets: transport[1].0,
                    replication_bytes: transport[1].1,
                    ..row
                },
            }
        });
        // On loopback only what is sent is seen.
        let loopback = self.0.get(&node).is_some_and(|captures| captures.source == Source::Loopback);
        rows.into_iter().filter(|row| !loopback || row.direction == Some(Direction::Egress)).collect()
    }
}

impl Captures {
    fn row(
        &self,
        row: CaptureTotal,
        direction: Direction,
        (learning, replication): (u16, u16),
    ) -> CaptureTotal {
        let (mut of_learning, mut of_replication, mut of_others) = ((0, 0), (0, 0), (0, 0));
        for ((_, port), (packets, bytes)) in self.counts.iter().filter(|((of, _), _)| *of == direction) {
            let sum = match *port {
                port if port == learning => &mut of_learning,
                port if port == replication => &mut of_replication,
                _ => &mut of_others,
            };
            *sum = (sum.0 + packets, sum.1 + bytes);
        }
        let own_interface = self.source == Source::Capture;
        let counters = match direction {
            Direction::Egress => (self.counters.sent_packets, self.counters.sent_bytes),
            Direction::Ingress => (self.counters.received_packets, self.counters.received_bytes),
        };
        CaptureTotal {
            source: self.source,
            interface: self.interface.clone(),
            learning_packets: of_learning.0,
            learning_bytes: of_learning.1,
            replication_packets: of_replication.0,
            replication_bytes: of_replication.1,
            other_packets: of_others.0,
            other_bytes: of_others.1,
            interface_packets: own_interface.then_some(counters.0),
            interface_bytes: own_interface.then_some(counters.1),
            dropped_packets: self.dropped_packets,
            complete: self.complete,
            exact: self.exact,
            ..row
        }
    }
}

/// Packets, and bytes with the headers of IP and UDP.
fn at_ip_level(traffic: &Traffic, direction: Direction) -> (u64, u64) {
    let count = |lane: &DatagramCount| match direction {
        Direction::Egress => (lane.sent_datagrams, lane.sent_bytes),
        Direction::Ingress => (lane.received_datagrams, lane.received_bytes),
    };
    let (control, bulk) = (count(&traffic.control), count(&traffic.bulk));
    let packets = control.0 + bulk.0;
    (packets, control.1 + bulk.1 + HEADER_BYTES * packets)
}

/// All nodes' traffic in a few numbers; each packet once, where it left its sender.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrafficSummary {
    /// Who counted; the least trustworthy if nodes differ.
    pub source: Source,
    /// Bytes of the learning plane at IP level.
    pub learning_bytes: u64,
    /// Bytes of the replication plane at IP level.
    pub replication_bytes: u64,
    /// Bytes of everything else; none where only the two planes were counted.
    pub other_bytes: Option<u64>,
    /// The same two planes by the transports' own counts, with 28 bytes of headers for each datagram.
    pub transport_bytes: u64,
    /// The same by the interfaces' counters, everything included; none where nodes have no interface of their own.
    pub interface_bytes: Option<u64>,
    /// Largest difference between a node's capture and its interface, as a share; none where nothing was compared.
    pub interface_difference: Option<f64>,
    /// Difference between all captures and all transports on the two planes, as a share of the former; none where nobody
    /// captured. Packets of no connection explain some of it, and a killed node's last words.
    pub transport_difference: Option<f64>,
    /// Captures, of nodes with an interface of their own, that ended before they were told to.
    pub incomplete_captures: u64,
    /// Packets that captures dropped.
    pub dropped_packets: u64,
    /// Whether every count is one of packets as on the wire: by a capture, with no offload in between.
    pub exact: bool,
    /// Whether nothing speaks against these counts. Those of the transport alone are not in doubt, but not at wire
    /// level either: see `source`.
    pub valid: bool,
}

impl TrafficSummary {
    /// Adds up the rows of all nodes.
    #[must_use]
    pub fn of(rows: &[CaptureTotal]) -> Self {
        let sent = || rows.iter().filter(|row| row.direction == Some(Direction::Egress));
        let sum = |of: fn(&CaptureTotal) -> u64| sent().map(of).sum::<u64>();
        let source = sent().map(|row| row.source).max().unwrap_or_default();
        let captured = source == Source::Capture;
        // A capture that ended early and its interface were counted at different moments.
        let differences = rows.iter().filter(|row| row.complete).filter_map(CaptureTotal::difference);
        let mut summary = Self {
            source,
            learning_bytes: sum(|row| row.learning_bytes),
            replication_bytes: sum(|row| row.replication_bytes),
            other_bytes: captured.then(|| sum(|row| row.other_bytes)),
            transport_bytes: sum(|row| row.transport_learning_bytes + row.transport_replication_bytes),
            interface_bytes: captured.then(|| sum(|row| row.interface_bytes.unwrap_or(0))),
            interface_difference: differences.reduce(f64::max),
            transport_difference: None,
            // On loopback a node that is killed takes its capture along.
            incomplete_captures: sent().filter(|row| row.source == Source::Capture && !row.complete).count()
                as u64,
            dropped_packets: sum(|row| row.dropped_packets),
            exact: captured && rows.iter().all(|row| row.exact),
            valid: true,
        };
        let planes = summary.learning_bytes + summary.replication_bytes;
        summary.transport_difference =
            (captured && planes > 0).then(|| planes.abs_diff(summary.transport_bytes) as f64 / planes as f64);
        summary.valid = summary.doubt().is_none();
        summary
    }

    /// What speaks against the counts, in words.
    #[must_use]
    pub fn doubt(&self) -> Option<String> {
        if self.dropped_packets > 0 {
            return Some(format!("the kernel dropped {} packets of the captures", self.dropped_packets));
        }
        if self.incomplete_captures > 0 {
            return Some(format!("{} captures ended early", self.incomplete_captures));
        }
        let difference = self.interface_difference.filter(|difference| *difference > TOLERANCE)?;
        Some(format!("a capture differs from its interface by {:.2} %", difference * 100.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::{Count, Interval};

    fn captured(bytes: u64, dropped_packets: u64) -> Captured {
        let count = |port, direction, bytes| Count { port, direction, packets: 2, bytes };
        Captured {
            interface: "eth0".into(),
            loopback: false,
            interval: Interval {
                counts: vec![
                    count(0, Direction::Egress, 56),
                    count(5000, Direction::Egress, bytes),
                    count(8080, Direction::Egress, 500),
                    count(8080, Direction::Ingress, 700),
                ],
                dropped_packets,
                interface: InterfaceCounts {
                    sent_packets: 6,
                    sent_bytes: 100_556,
                    received_packets: 2,
                    received_bytes: 700,
                },
                last: true,
                ..Interval::default()
            },
        }
    }

    fn summary(captured: &Captured) -> TrafficSummary {
        let mut book = CaptureBook::default();
        book.captured(NodeId(1), captured);
        TrafficSummary::of(&book.rows(NodeId(1), (8080, 5000), None))
    }

    #[test]
    fn counts_that_agree_are_valid() {
        let summary = summary(&captured(100_000, 0));
        assert_eq!(
            (summary.learning_bytes, summary.replication_bytes, summary.other_bytes),
            (500, 100_000, Some(56))
        );
        assert_eq!((summary.interface_difference, summary.valid), (Some(0.0), true));
        assert_eq!(summary.transport_difference, Some(1.0), "no transport told anything");
        assert_eq!(summary.source, Source::Capture);
    }

    #[test]
    fn drops_and_differences_make_a_trial_invalid() {
        let dropped = summary(&captured(100_000, 3));
        assert!(!dropped.valid && dropped.doubt().unwrap().contains("dropped 3 packets"));
        let differs = summary(&captured(99_000, 0));
        assert!(!differs.valid && differs.doubt().unwrap().contains("differs"), "{differs:?}");
    }

    #[test]
    fn a_capture_that_ended_early_makes_a_trial_invalid_and_one_offload_makes_it_inexact() {
        let mut early = captured(100_000, 0);
        early.interval.failure = Some("the interface is gone".into());
        assert_eq!(summary(&early).doubt().as_deref(), Some("1 captures ended early"));
        let mut offloaded = captured(100_000, 0);
        assert!(!summary(&offloaded).exact);
        offloaded.interval.exact = true;
        assert!(summary(&offloaded).exact && summary(&offloaded).valid);
    }

    #[test]
    fn seconds_are_added_up() {
        let mut book = CaptureBook::default();
        book.captured(NodeId(1), &captured(100, 1));
        book.captured(NodeId(1), &captured(100, 2));
        let rows = book.rows(NodeId(1), (8080, 5000), None);
        assert_eq!((rows[0].replication_bytes, rows[0].dropped_packets), (200, 3));
        assert_eq!((rows[1].learning_packets, rows[1].learning_bytes), (4, 1400));
    }

    #[test]
    fn without_a_capture_the_transport_counts_with_headers_and_says_so() {
        let lane = DatagramCount { sent_datagrams: 10, sent_bytes: 1000, ..DatagramCount::default() };
        let traffic = Traffic { control: lane, bulk: lane, ..Traffic::default() };
        let status = Status { learning: traffic, ..Status::default() };
        let rows = CaptureBook::default().rows(NodeId(1), (8080, 5000), Some(&status));
        assert_eq!((rows[0].learning_packets, rows[0].learning_bytes), (20, 2560));
        let summary = TrafficSummary::of(&rows);
        assert_eq!((summary.source, summary.learning_bytes, summary.valid), (Source::Transport, 2560, true));
        assert_eq!((summary.interface_bytes, summary.interface_difference), (None, None));
        assert_eq!(summary.transport_difference, None);
    }
}
