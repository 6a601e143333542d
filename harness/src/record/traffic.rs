//! traffic.csv: what nodes sent and received, by class and by connection, as their transports counted it.

use replication::NodeId;
use replication::lifeline::LifelineCount;
use replication::transport::{Class, DatagramCount, FrameCount, Traffic};
use serde::Serialize;

use crate::control::{Counted, Status};

/// A row of traffic.csv.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TrafficRow {
    source: &'static str,
    node: u64,
    plane: &'static str,
    span: &'static str,
    unit: &'static str,
    class: &'static str,
    sent: u64,
    sent_bytes: u64,
    received: u64,
    received_bytes: u64,
    lost_packets: Option<u64>,
}

/// Payload bytes of UDP and TCP that a node sent during the job, by plane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// On the learning plane.
    pub learning_bytes: u64,
    /// On the replication plane.
    pub replication_bytes: u64,
}

impl TrafficRow {
    /// Names of the columns, in order.
    pub const COLUMNS: [&str; 11] = [
        "source",
        "node",
        "plane",
        "span",
        "unit",
        "class",
        "sent",
        "sent_bytes",
        "received",
        "received_bytes",
        "lost_packets",
    ];

    /// The rows of `node`: until its part of the job began, and from then to its last status. A node that never began has
    /// the former only, by its last status.
    #[must_use]
    pub fn of(node: NodeId, begin: Option<&Counted>, last: Option<&Status>) -> Vec<Self> {
        let nothing = Counted::default();
        let last = last.map(Counted::of);
        let (startup, job) = match (begin, &last) {
            (Some(begin), last) => (begin, last.as_ref().map(|last| last.since(begin))),
            (None, Some(last)) => (last, None),
            (None, None) => (&nothing, None),
        };
        let spans = [("startup", Some(startup)), ("job", job.as_ref())];
        let mut rows = Vec::new();
        for (span, counted) in spans.into_iter().filter_map(|(span, counted)| Some((span, counted?))) {
            for (plane, traffic) in [("learning", &counted.learning), ("replication", &counted.replication)] {
                rows.extend(rows_of(node, plane, span, traffic));
            }
            rows.extend(lifeline_row(node, span, counted.lifeline));
        }
        rows
    }
}

/// Lifelines are TCP: their bytes are in no other row. None where there were none.
fn lifeline_row(node: NodeId, span: &'static str, count: LifelineCount) -> Option<TrafficRow> {
    (count != LifelineCount::default()).then_some(TrafficRow {
        source: "transport",
        node: node.0,
        plane: "replication",
        span,
        unit: "stream",
        class: "lifeline",
        sent: count.lifelines,
        sent_bytes: count.sent_bytes,
        received: count.lifelines,
        received_bytes: count.received_bytes,
        lost_packets: None,
    })
}

fn rows_of(node: NodeId, plane: &'static str, span: &'static str, traffic: &Traffic) -> Vec<TrafficRow> {
    let row = TrafficRow {
        source: "transport",
        node: node.0,
        plane,
        span,
        unit: "frames",
        class: "",
        sent: 0,
        sent_bytes: 0,
        received: 0,
        received_bytes: 0,
        lost_packets: None,
    };
    let of_plane =
        |class: Class| matches!(class, Class::LearningControl | Class::LearningBulk) == (plane == "learning");
    let frames =
        traffic.frames.iter().filter(|(class, _)| of_plane(*class)).map(|(class, count)| TrafficRow {
            class: class.name(),
            sent: count.sent_frames,
            sent_bytes: count.sent_bytes,
            received: count.received_frames,
            received_bytes: count.received_bytes,
            ..row.clone()
        });
    let lanes = [("control", traffic.control), ("bulk", traffic.bulk)];
    let datagrams = lanes.into_iter().map(|(class, count)| TrafficRow {
        unit: "datagrams",
        class,
        sent: count.sent_datagrams,
        sent_bytes: count.sent_bytes,
        received: count.received_datagrams,
        received_bytes: count.received_bytes,
        lost_packets: Some(count.lost_packets),
        ..row.clone()
    });
    frames.chain(datagrams).collect()
}

impl Counted {
    fn of(status: &Status) -> Self {
        Self {
            learning: status.learning.clone(),
            replication: status.replication.clone(),
            lifeline: status.lifeline,
        }
    }

    /// What was counted after `begin`. A status that is older than that has nothing to add.
    fn since(&self, begin: &Self) -> Self {
        Self {
            learning: since(&self.learning, &begin.learning),
            replication: since(&self.replication, &begin.replication),
            lifeline: LifelineCount {
                lifelines: self.lifeline.lifelines.saturating_sub(begin.lifeline.lifelines),
                sent_bytes: self.lifeline.sent_bytes.saturating_sub(begin.lifeline.sent_bytes),
                received_bytes: self.lifeline.received_bytes.saturating_sub(begin.lifeline.received_bytes),
            },
        }
    }
}

fn since(last: &Traffic, begin: &Traffic) -> Traffic {
    let lane = |last: DatagramCount, begin: DatagramCount| DatagramCount {
        sent_datagrams: last.sent_datagrams.saturating_sub(begin.sent_datagrams),
        sent_bytes: last.sent_bytes.saturating_sub(begin.sent_bytes),
        received_datagrams: last.received_datagrams.saturating_sub(begin.received_datagrams),
        received_bytes: last.received_bytes.saturating_sub(begin.received_bytes),
        lost_packets: last.lost_packets.saturating_sub(begin.lost_packets),
    };
    let frames = last.frames.iter().map(|(class, count)| {
        let before = begin.frames.iter().find(|(other, _)| other == class).map(|(_, count)| *count);
        let before = before.unwrap_or_default();
        let count = FrameCount {
            sent_frames: count.sent_frames.saturating_sub(before.sent_frames),
            sent_bytes: count.sent_bytes.saturating_sub(before.sent_bytes),
            received_frames: count.received_frames.saturating_sub(before.received_frames),
            received_bytes: count.received_bytes.saturating_sub(before.received_bytes),
        };
        (*class, count)
    });
    Traffic {
        frames: frames.collect(),
        control: lane(last.control, begin.control),
        bulk: lane(last.bulk, begin.bulk),
    }
}

impl Sent {
    /// What a node sent between the begin of its part of the job and its last status.
    #[must_use]
    pub fn during_job(begin: Option<&Counted>, last: Option<&Status>) -> Self {
        let (Some(begin), Some(last)) = (begin, last) else { return Self::default() };
        let job = Counted::of(last).since(begin);
        Self {
            learning_bytes: job.learning.control.sent_bytes + job.learning.bulk.sent_bytes,
            replication_bytes: job.replication.control.sent_bytes
                + job.replication.bulk.sent_bytes
                + job.lifeline.sent_bytes,
        }
    }
}

impl std::iter::Sum for Sent {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |sum, part| Self {
            learning_bytes: sum.learning_bytes + part.learning_bytes,
            replication_bytes: sum.replication_bytes + part.replication_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(bytes: u64) -> Traffic {
        let frames = FrameCount { sent_frames: bytes / 10, sent_bytes: bytes, ..FrameCount::default() };
        let lane = DatagramCount { sent_datagrams: 1, sent_bytes: bytes + 5, ..DatagramCount::default() };
        Traffic {
            frames: Class::ALL.iter().map(|class| (*class, frames)).collect(),
            control: lane,
            bulk: DatagramCount::default(),
        }
    }

    #[test]
    fn the_start_is_kept_apart_from_the_job() {
        let begin = Counted { learning: traffic(10), replication: traffic(100), ..Counted::default() };
        let last = Status { learning: traffic(50), replication: traffic(1000), ..Status::default() };
        let rows = TrafficRow::of(NodeId(3), Some(&begin), Some(&last));
        // Two spans of two classes and five, and of two lanes on both planes.
        assert_eq!(rows.len(), 2 * (2 + 5 + 2 * 2));
        let find = |span, plane, class| {
            let is = |row: &&TrafficRow| (row.span, row.plane, row.class) == (span, plane, class);
            rows.iter().find(is).unwrap()
        };
        assert_eq!(find("startup", "replication", "log").sent_bytes, 100);
        assert_eq!(find("job", "replication", "log").sent_bytes, 900);
        assert_eq!(
            (find("job", "learning", "learning_bulk").sent, find("job", "learning", "control").sent),
            (4, 0)
        );
        assert_eq!(find("job", "learning", "control").lost_packets, Some(0));
        let sent = Sent::during_job(Some(&begin), Some(&last));
        assert_eq!((sent.learning_bytes, sent.replication_bytes), (40, 900));
    }

    #[test]
    fn lifelines_have_a_row_where_there_are_any() {
        let lifeline = LifelineCount { lifelines: 2, sent_bytes: 5000, received_bytes: 4000 };
        let last = Status { lifeline, ..Status::default() };
        let rows = TrafficRow::of(NodeId(3), Some(&Counted::default()), Some(&last));
        let lifelines: Vec<_> = rows.iter().filter(|row| row.class == "lifeline").collect();
        assert_eq!(lifelines.len(), 1, "none in the span without any");
        let row = lifelines[0];
        assert_eq!((row.span, row.unit, row.sent, row.sent_bytes), ("job", "stream", 2, 5000));
        assert_eq!(Sent::during_job(Some(&Counted::default()), Some(&last)).replication_bytes, 5000);
    }

    #[test]
    fn a_node_that_did_not_tell_has_sent_nothing_that_is_known() {
        let status = Status { replication: traffic(7), ..Status::default() };
        assert!(TrafficRow::of(NodeId(1), None, Some(&status)).iter().all(|row| row.span == "startup"));
        let begin = Counted { learning: traffic(10), replication: traffic(100), ..Counted::default() };
        assert!(TrafficRow::of(NodeId(1), Some(&begin), None).iter().all(|row| row.span == "startup"));
        assert_eq!(Sent::during_job(None, Some(&status)), Sent::default());
        assert_eq!(
            Sent::during_job(Some(&begin), Some(&Status::default())),
            Sent::default(),
            "an older status"
        );
    }
}
