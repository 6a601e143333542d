//! What a node is asked for at each scrape, and the names that figures have. [`Snapshot`] to metrics is pure.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use replication::transport::{DatagramCount, FrameCount, Traffic};
use replication::{NodeId, Suspicion};

use super::observed::Observed;
use crate::control::Status;

/// How a node is at the moment of a scrape.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// What the controller could ask for, too.
    pub status: Status,
    /// The newest round, where something else than the job's events tells of it: batches of a dictionary.
    pub round: u64,
    /// What its failure detector makes of others.
    pub suspicions: Vec<Suspicion>,
    /// Peers with live connections on the learning and the replication plane.
    pub connected: [usize; 2],
}

/// Whoever can be asked for a snapshot.
pub type Source = Arc<dyn Fn() -> Snapshot + Send + Sync>;

/// Asks at each scrape.
pub(super) struct Asked {
    pub(super) node: NodeId,
    pub(super) source: Source,
    pub(super) observed: Arc<Observed>,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").finish_non_exhaustive()
    }
}

impl Collector for Asked {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut to = Metrics(encoder);
        let snapshot = (self.source)();
        to.role(self.node, &snapshot.status)?;
        to.checkpoint(&snapshot, &self.observed)?;
        to.traffic(&snapshot.status)?;
        to.connections(&snapshot)?;
        to.process(&snapshot.status)
    }
}

/// Writes what a snapshot says.
struct Metrics<'a>(DescriptorEncoder<'a>);

impl Metrics<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }

    fn counter(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    fn counters<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: &[([(&'static str, &'static str); N], u64)],
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            ConstCounter::new(*value).encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn role(&mut self, node: NodeId, status: &Status) -> fmt::Result {
        let epoch = status.epoch;
        let aggregates = f64::from(u8::from(epoch.is_some_and(|epoch| epoch.node == node)));
        self.gauge(
            "is_aggregator",
            "1 on a node that aggregates (leads), as far as it knows, else 0",
            aggregates,
        )?;
        // A node id counts from 1, an epoch too.
        let counter = epoch.map_or(0.0, |epoch| epoch.counter as f64);
        self.gauge("epoch", "Counter of the epoch in force, as far as this node knows; 0: none", counter)?;
        let node = epoch.map_or(0.0, |epoch| epoch.node.0 as f64);
        self.gauge(
            "aggregator",
            "Number of the node that aggregates, as far as this node knows; 0: none",
            node,
        )
    }

    fn checkpoint(&mut self, snapshot: &Snapshot, observed: &Observed) -> fmt::Result {
        let last = observed.last();
        let held = snapshot.status.latest.map_or(0, |held| held.id.round);
        let round = snapshot.round.max(last.round).max(held);
        self.gauge(
            "round",
            "The newest round that this node has begun, trained in or holds the state of; of a dictionary the newest batch",
            round as f64,
        )?;
        if let Some((_, at)) = last.checkpoint {
            self.gauge(
                "checkpoint_age_seconds",
                "Time since this node learned of the newest acknowledged checkpoint that it has",
                at.elapsed().as_secs_f64(),
            )?;
        }
        if let Some(holders) = last.holders {
            self.gauge(
                "checkpoint_holders",
                "Nodes known to hold the checkpoint that this node put last, when it was acknowledged",
                holders as f64,
            )?;
        }
        Ok(())
    }

    fn traffic(&mut self, status: &Status) -> fmt::Result {
        let planes = [("learning", &status.learning), ("replication", &status.replication)];
        let mut bytes = frames(planes, |count| [count.sent_bytes, count.received_bytes]);
        let lifeline = &status.lifeline;
        for (direction, count) in [("sent", lifeline.sent_bytes), ("received", lifeline.received_bytes)] {
            bytes.push(([("plane", "replication"), ("class", "lifeline"), ("direction", direction)], count));
        }
        self.counters(
            "bytes",
            "Bytes of messages by what they are for, as encoded, without QUIC, TLS and IP; lifelines as TCP carries them",
            &bytes,
        )?;
        let messages = frames(planes, |count| [count.sent_frames, count.received_frames]);
        self.counters("messages", "Messages by what they are for", &messages)?;
        let lanes = lanes(planes, |count| [count.sent_bytes, count.received_bytes]);
        self.counters("datagram_bytes", "Payload bytes of UDP datagrams", &lanes)?;
        let lost: Vec<_> = planes
            .map(|(plane, traffic)| {
                ([("plane", plane)], traffic.control.lost_packets + traffic.bulk.lost_packets)
            })
            .into();
        self.counters("lost_packets", "QUIC packets that were declared lost", &lost)
    }

    fn connections(&mut self, snapshot: &Snapshot) -> fmt::Result {
        let help = "Peers with live connections";
        let mut encoder = self.0.encode_descriptor("connected_peers", help, None, MetricType::Gauge)?;
        for (plane, peers) in ["learning", "replication"].into_iter().zip(snapshot.connected) {
            ConstGauge::new(peers as i64).encode(encoder.encode_family(&[("plane", plane)])?)?;
        }
        if snapshot.suspicions.is_empty() {
            return Ok(());
        }
        let help = "Silence of a peer as a share of that after which this node suspects it (phi over its threshold): 1 and \
                    more is suspected";
        let mut encoder = self.0.encode_descriptor("suspicion_level", help, None, MetricType::Gauge)?;
        for suspicion in &snapshot.suspicions {
            let labels = [("peer", suspicion.node.to_string())];
            ConstGauge::new(suspicion.level).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn process(&mut self, status: &Status) -> fmt::Result {
        let usage = &status.usage;
        self.gauge("resident_bytes", "Resident memory of the node's process", usage.rss_bytes as f64)?;
        self.counter(
            "cpu_seconds",
            "Processor time of the node's process, all threads",
            usage.cpu_ns as f64 / 1e9,
        )
    }
}

/// Labels of a count of messages.
type ByClass = ([(&'static str, &'static str); 3], u64);

/// A count of messages, sent and received, by plane and class; classes that a plane has not carried are left out.
fn frames(planes: [(&'static str, &Traffic); 2], count: fn(&FrameCount) -> [u64; 2]) -> Vec<ByClass> {
    let mut all = Vec::new();
    for (plane, traffic) in planes {
        for (class, counted) in traffic.frames.iter().filter(|(_, counted)| *counted != FrameCount::default())
        {
            for (direction, count) in ["sent", "received"].into_iter().zip(count(counted)) {
                all.push(([("plane", plane), ("class", class.name()), ("direction", direction)], count));
            }
        }
    }
    all
}

fn lanes(planes: [(&'static str, &Traffic); 2], count: fn(&DatagramCount) -> [u64; 2]) -> Vec<ByClass> {
    let mut all = Vec::new();
    for (plane, traffic) in planes {
        for (lane, counted) in [("control", &traffic.control), ("bulk", &traffic.bulk)] {
            for (direction, count) in ["sent", "received"].into_iter().zip(count(counted)) {
                all.push(([("plane", plane), ("lane", lane), ("direction", direction)], count));
            }
        }
    }
    all
}
