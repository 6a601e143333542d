//! Rows of the CSV files. Integers are raw, units are in the names of the columns.

use replication::suitability::Resources;
use replication::{Guarantee, NodeId, Slot, StoreEvent};
use serde::Serialize;
use workloads::federated::Event;

use crate::control::{NodeEvent, Status};

/// A row of rounds.csv: a round that was finished.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoundRow {
    round: u64,
    epoch_counter: u64,
    epoch_node: u64,
    node: u64,
    at_ns: u64,
    round_ns: u64,
    fit_ns: u64,
    fit_workers: u32,
    fit_examples: u64,
    train_loss: Option<f64>,
    evaluate_workers: u32,
    evaluate_examples: u64,
    loss: Option<f64>,
    accuracy: Option<f64>,
    digest: String,
}

impl RoundRow {
    /// Names of the columns, in order.
    pub const COLUMNS: [&str; 15] = [
        "round",
        "epoch_counter",
        "epoch_node",
        "node",
        "at_ns",
        "round_ns",
        "fit_ns",
        "fit_workers",
        "fit_examples",
        "train_loss",
        "evaluate_workers",
        "evaluate_examples",
        "loss",
        "accuracy",
        "digest",
    ];

    /// The row that follows from an event of `node`, if one does.
    #[must_use]
    pub fn of(node: NodeId, at_ns: u64, event: &Event) -> Option<Self> {
        let Event::RoundFinished {
            epoch,
            round,
            round_ns,
            fit_ns,
            fit_workers,
            fit_examples,
            train_loss,
            evaluate_workers,
            evaluate_examples,
            loss,
            accuracy,
            digest,
        } = *event
        else {
            return None;
        };
        Some(Self {
            round,
            epoch_counter: epoch.counter,
            epoch_node: epoch.node.0,
            node: node.0,
            at_ns,
            round_ns,
            fit_ns,
            fit_workers,
            fit_examples,
            train_loss,
            evaluate_workers,
            evaluate_examples,
            loss,
            accuracy,
            digest: digest.to_hex(),
        })
    }
}

/// A row of checkpoints.csv: a write to the store that returned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckpointRow {
    round: u64,
    epoch_counter: u64,
    epoch_node: u64,
    phase: String,
    slot: &'static str,
    slot_node: Option<u64>,
    slot_part: Option<u16>,
    node: u64,
    at_ns: u64,
    outcome: &'static str,
    digest: Option<String>,
    bytes: Option<u64>,
    put_ns: Option<u64>,
    guarantee: Option<String>,
    holders: Option<usize>,
    holder_nodes: String,
    reason: Option<String>,
}

impl CheckpointRow {
    /// Names of the columns, in order.
    pub const COLUMNS: [&str; 17] = [
        "round",
        "epoch_counter",
        "epoch_node",
        "phase",
        "slot",
        "slot_node",
        "slot_part",
        "node",
        "at_ns",
        "outcome",
        "digest",
        "bytes",
        "put_ns",
        "guarantee",
        "holders",
        "holder_nodes",
        "reason",
    ];

    /// The row that follows from an event of `node`, if one does.
    #[must_use]
    pub fn of(node: NodeId, at_ns: u64, event: &Event) -> Option<Self> {
        let id = match event {
            Event::CheckpointPut { id, .. } | Event::CheckpointFailed { id, .. } => *id,
            _ => return None,
        };
        let (slot, slot_node, slot_part) = match id.slot {
            Slot::Global => ("global", None, None),
            Slot::Part(part) => ("part", None, Some(part)),
            Slot::Worker { node, part } => ("worker", Some(node.0), Some(part)),
        };
        let row = Self {
            round: id.round,
            epoch_counter: id.epoch.counter,
            epoch_node: id.epoch.node.0,
            phase: id.phase.to_string(),
            slot,
            slot_node,
            slot_part,
            node: node.0,
            at_ns,
            outcome: "failed",
            digest: None,
            bytes: None,
            put_ns: None,
            guarantee: None,
            holders: None,
            holder_nodes: String::new(),
            reason: None,
        };
        Some(match event {
            Event::CheckpointPut { digest, bytes, put_ns, guarantee, holders, .. } => Self {
                outcome: "acknowledged",
                digest: Some(digest.to_hex()),
                bytes: Some(*bytes),
                put_ns: Some(*put_ns),
                guarantee: Some(guarantee_word(*guarantee)),
                holders: Some(holders.len()),
                holder_nodes: holders.iter().map(NodeId::to_string).collect::<Vec<_>>().join(" "),
                ..row
            },
            Event::CheckpointFailed { reason, may_have_happened, .. } => Self {
                outcome: if *may_have_happened { "unknown" } else { "failed" },
                reason: Some(reason.clone()),
                ..row
            },
            _ => row,
        })
    }
}

fn guarantee_word(guarantee: Guarantee) -> String {
    match guarantee {
        Guarantee::LocalMemory => "local_memory".into(),
        Guarantee::LocalDisk => "local_disk".into(),
        Guarantee::Majority { of } => format!("majority_of_{of}"),
        Guarantee::Holders { holders } => format!("{holders}_holders"),
    }
}

/// A row of events.csv: something rare, of a store or about who aggregates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreEventRow {
    at_ns: u64,
    since_start_ns: u64,
    node: u64,
    event: &'static str,
    detail: String,
}

impl StoreEventRow {
    /// Names of the columns, in order.
    pub const COLUMNS: [&str; 5] = ["at_ns", "since_start_ns", "node", "event", "detail"];

    /// The row that follows from an event of `node`, if one does, in a run that began at `started_ns`.
    #[must_use]
    pub fn of(node: NodeId, at_ns: u64, started_ns: u64, event: &NodeEvent) -> Option<Self> {
        let (event, detail) = match event {
            NodeEvent::Store(event) => Self::of_store(event)?,
            NodeEvent::Federated(event) => Self::of_job(event)?,
            NodeEvent::Node(_) => return None,
        };
        Some(Self { at_ns, since_start_ns: at_ns.saturating_sub(started_ns), node: node.0, event, detail })
    }

    fn of_job(event: &Event) -> Option<(&'static str, String)> {
        Some(match event {
            Event::HandingOver { epoch, to } => ("handing_over", format!("epoch={epoch} to={to}")),
            Event::HandOverFailed { epoch, to, reason } => {
                ("hand_over_failed", format!("epoch={epoch} to={to} reason={reason}"))
            }
            _ => return None,
        })
    }

    fn of_store(event: &StoreEvent) -> Option<(&'static str, String)> {
        let of_node =
            |name: &str, node: Option<NodeId>| node.map(|node| format!("{name}={node} ")).unwrap_or_default();
        Some(match event {
            StoreEvent::VotersChanged { lost, joined, voters } => {
                let voters = voters.iter().map(NodeId::to_string).collect::<Vec<_>>().join("+");
                let changed = of_node("lost", *lost) + &of_node("joined", *joined);
                ("voters_changed", format!("{changed}voters={voters}"))
            }
            StoreEvent::RivalAggregators { stays, yields } => {
                ("rival_aggregators", format!("stays={stays} yields={yields}"))
            }
            StoreEvent::CorruptBlob { from, digest } => {
                ("corrupt_blob", format!("from={from} digest={}", digest.to_hex()))
            }
            StoreEvent::FalseClaim { from, digest } => {
                ("false_claim", format!("from={from} digest={}", digest.to_hex()))
            }
            _ => return None,
        })
    }
}

/// A row of clocks.csv: a node's clock beside the controller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ClockRow {
    /// The node.
    pub node: u64,
    /// When they were compared.
    pub at_ns: u64,
    /// Its CLOCK_MONOTONIC less the controller's.
    pub offset_ns: i64,
    /// The offset is at most this wrong.
    pub uncertainty_ns: u64,
}

impl ClockRow {
    /// Names of the columns, in order.
    pub const COLUMNS: [&str; 4] = ["node", "at_ns", "offset_ns", "uncertainty_ns"];
}

/// A row of nodes.csv: how a node ended, and what it used, as far as it last told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NodeRow {
    node: u64,
    life: u32,
    state: String,
    latest_round: Option<u64>,
    latest_phase: Option<String>,
    latest_digest: Option<String>,
    rss_bytes: u64,
    rss_peak_bytes: u64,
    cpu_ns: u64,
    hash_ns: u64,
    encode_ns: u64,
    decode_ns: u64,
    learning_sent_bytes: u64,
    learning_received_bytes: u64,
    learning_lost_packets: u64,
    replication_sent_bytes: u64,
    replication_received_bytes: u64,
    replication_lost_packets: u64,
    cpu_mb_per_s: Option<u64>,
    memory_bytes: Option<u64>,
    bandwidth_bits_per_s: Option<u64>,
    mains_power: Option<bool>,
    score: Option<u32>,
}

impl NodeRow {
    /// Names of the columns, in order.
    pub const COLUMNS: [&str; 23] = [
        "node",
        "life",
        "state",
        "latest_round",
        "latest_phase",
        "latest_digest",
        "rss_bytes",
        "rss_peak_bytes",
        "cpu_ns",
        "hash_ns",
        "encode_ns",
        "decode_ns",
        "learning_sent_bytes",
        "learning_received_bytes",
        "learning_lost_packets",
        "replication_sent_bytes",
        "replication_received_bytes",
        "replication_lost_packets",
        "cpu_mb_per_s",
        "memory_bytes",
        "bandwidth_bits_per_s",
        "mains_power",
        "score",
    ];

    /// The row of a node in one of its lives (from 1), which is in `state`, by its last status and by what it has to offer.
    #[must_use]
    pub fn of(
        (node, life): (NodeId, u32),
        state: &str,
        status: Option<&Status>,
        resources: Option<(Resources, u32)>,
    ) -> Self {
        let (offer, score) = resources.unzip();
        let row = Self {
            node: node.0,
            life,
            state: state.into(),
            cpu_mb_per_s: offer.map(|offer| offer.cpu_mb_per_s),
            memory_bytes: offer.map(|offer| offer.memory_bytes),
            bandwidth_bits_per_s: offer.map(|offer| offer.bandwidth_bits_per_s),
            mains_power: offer.map(|offer| offer.mains_power),
            score,
            ..Self::default()
        };
        let Some(status) = status else { return row };
        let (learning, replication) = (&status.learning, &status.replication);
        Self {
            latest_round: status.latest.map(|held| held.id.round),
            latest_phase: status.latest.map(|held| held.id.phase.to_string()),
            latest_digest: status.latest.map(|held| held.digest.to_hex()),
            rss_bytes: status.usage.rss_bytes,
            rss_peak_bytes: status.usage.rss_peak_bytes,
            cpu_ns: status.usage.cpu_ns,
            hash_ns: status.usage.work.hash_ns,
            encode_ns: status.usage.work.encode_ns,
            decode_ns: status.usage.work.decode_ns,
            learning_sent_bytes: learning.control.sent_bytes + learning.bulk.sent_bytes,
            learning_received_bytes: learning.control.received_bytes + learning.bulk.received_bytes,
            learning_lost_packets: learning.control.lost_packets + learning.bulk.lost_packets,
            replication_sent_bytes: replication.control.sent_bytes + replication.bulk.sent_bytes,
            replication_received_bytes: replication.control.received_bytes + replication.bulk.received_bytes,
            replication_lost_packets: replication.control.lost_packets + replication.bulk.lost_packets,
            ..row
        }
    }
}
