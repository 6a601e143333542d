//! Rows of results files, as far as a report reads them. Columns that it does not know are passed over; one that a file
//! lacks is unknown.

use serde::Deserialize;

/// Of rounds.csv.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Round {
    /// From 1.
    pub round: u64,
    /// Counter of the epoch it was finished in.
    pub epoch_counter: u64,
    /// Aggregator of that epoch.
    pub epoch_node: u64,
    /// When, on CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// How long it took.
    pub round_ns: u64,
    /// Workers that trained; 0: it was only evaluated.
    pub fit_workers: u64,
    /// Mean test loss.
    pub loss: Option<f64>,
    /// Share of test examples classified correctly.
    pub accuracy: Option<f64>,
}

/// Of checkpoints.csv.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Checkpoint {
    /// Of the checkpoint.
    pub round: u64,
    /// Counter of its epoch.
    pub epoch_counter: u64,
    /// Aggregator of its epoch.
    pub epoch_node: u64,
    /// `configure_fit`, `aggregate_fit`, `configure_evaluate`.
    pub phase: String,
    /// `global`, `part`, `worker`.
    pub slot: String,
    /// When `put` returned.
    pub at_ns: u64,
    /// `acknowledged`, `failed`, `unknown`.
    pub outcome: String,
    /// BLAKE3 of its parameters.
    pub digest: Option<String>,
    /// Size of its parameters.
    pub bytes: Option<u64>,
    /// How long `put` took.
    pub put_ns: Option<u64>,
}

impl Checkpoint {
    /// Whether it is a state from which the job can be resumed, and acknowledged.
    #[must_use]
    pub fn is_acknowledged_state(&self) -> bool {
        self.outcome == "acknowledged" && self.slot == "global"
    }

    /// Position in the job: round, then phase.
    #[must_use]
    pub fn position(&self) -> (u64, u8) {
        (self.round, phase_rank(&self.phase))
    }
}

/// Where a phase is in its round.
#[must_use]
pub fn phase_rank(phase: &str) -> u8 {
    match phase {
        "configure_fit" => 0,
        "aggregate_fit" => 1,
        _ => 2,
    }
}

/// Of failovers.csv. Stages are in ns since the fault struck.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Failover {
    /// As on the command line.
    pub fault: String,
    /// Right before the first node was struck.
    pub struck_at_ns: u64,
    /// Whether the aggregator then in force was among the struck.
    pub struck_aggregator: bool,
    /// Counter of the new epoch.
    pub to_epoch_counter: u64,
    /// Its aggregator.
    pub to_epoch_node: u64,
    /// The first survivor held the aggregator for dead.
    pub suspected_ns: Option<u64>,
    /// The new aggregator knew.
    pub elected_ns: Option<u64>,
    /// Every survivor knew.
    pub agreed_ns: Option<u64>,
    /// The new aggregator had the parameters.
    pub restored_ns: Option<u64>,
    /// It had accepted its first worker.
    pub serving_ns: Option<u64>,
    /// Its first checkpoint was acknowledged.
    pub resumed_ns: Option<u64>,
}

/// Stages in order.
pub const STAGES: [&str; 6] = ["suspected", "elected", "agreed", "restored", "serving", "resumed"];

impl Failover {
    /// Nanoseconds since the fault, in the order of [`STAGES`].
    #[must_use]
    pub fn stages_ns(&self) -> [Option<u64>; STAGES.len()] {
        [
            self.suspected_ns,
            self.elected_ns,
            self.agreed_ns,
            self.restored_ns,
            self.serving_ns,
            self.resumed_ns,
        ]
    }
}

/// Of traffic.csv.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Traffic {
    /// `startup`, `job`.
    pub span: String,
    /// `frames`, `datagrams`.
    pub unit: String,
    /// What the frames were for, or the connection of the datagrams.
    pub class: String,
    /// Bytes that were sent.
    pub sent_bytes: u64,
}

/// Of capture_totals.csv.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct CaptureTotal {
    /// `capture`, `loopback`, `transport`.
    pub source: String,
    /// `egress`, `ingress`.
    pub direction: String,
    /// On the learning port, IP level.
    pub learning_bytes: u64,
    /// On the replication port, IP level.
    pub replication_bytes: u64,
    /// Packets the kernel dropped.
    pub dropped_packets: u64,
    /// Whether the counted packets are those of the wire: no offload has joined some.
    pub exact: Option<bool>,
}

/// Of nodes.csv.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Node {
    /// The node.
    pub node: u64,
    /// From 1; more after a restart.
    #[serde(default)]
    pub life: u64,
    /// How it ended.
    pub state: String,
    /// The newest acknowledged state whose bytes it had.
    pub latest_round: Option<u64>,
    /// Its phase.
    pub latest_phase: Option<String>,
    /// Resident memory at most.
    pub rss_peak_bytes: u64,
    /// Processor time, all threads.
    pub cpu_ns: u64,
    /// Time spent encoding messages and parameters, where it was measured.
    pub encode_ns: Option<u64>,
    /// Time spent decoding them.
    pub decode_ns: Option<u64>,
    /// Time spent hashing checkpoints and updates.
    pub hash_ns: Option<u64>,
}

/// Of events.csv.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Event {
    /// When.
    pub at_ns: u64,
    /// Who says so.
    pub node: u64,
    /// What happened.
    pub event: String,
    /// `name=value`, separated by blanks.
    pub detail: String,
}

/// Of elections.csv.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Election {
    /// As on the command line.
    pub backend: String,
    /// How many nodes there are.
    pub nodes: u64,
    /// Earliest suspicion after the last contact.
    pub window_lo_ns: u64,
    /// Latest suspicion after the last contact.
    pub window_hi_ns: u64,
    /// Interval of signs of life.
    pub heartbeat_ns: u64,
    /// Whether a crash is heard of at once.
    pub fast_failover: Option<bool>,
    /// Whether all logs were equally long.
    pub equal_logs: Option<bool>,
    /// What struck the aggregator; empty: it was killed.
    #[serde(default)]
    pub fault: String,
    /// What no election could have beaten: the earliest of the survivors' deadlines, less the heartbeat's age.
    pub floor_ns: Option<u64>,
    /// The first survivor held the aggregator for dead.
    pub suspected_ns: Option<u64>,
    /// The new aggregator knew.
    pub elected_ns: Option<u64>,
    /// Every survivor knew.
    pub agreed_ns: Option<u64>,
    /// Aggregators that were suspected although they lived.
    pub false_suspicions: Option<u64>,
}
