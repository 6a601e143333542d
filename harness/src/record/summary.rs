//! summary.json, and the same for `--json`: a run in a few numbers, all raw.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{FailoverSummary, Outcome, TrafficSummary};
use crate::plan::Backend;
use replication::Payload;

/// The checkpoint a run ended with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalCheckpoint {
    /// Its round.
    pub round: u64,
    /// Its phase.
    pub phase: String,
    /// Its epoch's counter.
    pub epoch_counter: u64,
    /// Its epoch's node.
    pub epoch_node: u64,
    /// Its digest, 64 hexadecimal digits.
    pub digest: String,
    /// Living nodes that said they have it, in ascending order.
    pub holders: Vec<u64>,
}

/// A run in a few numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How it ended.
    pub outcome: Outcome,
    /// The same in a sentence.
    pub message: String,
    /// Exit code of the controller.
    pub exit_code: u8,
    /// The results folder.
    pub results: PathBuf,
    /// The backend.
    pub backend: Option<Backend>,
    /// The level of self-recovery, 0 to 4 (docs/RECOVERY.md).
    pub level: u8,
    /// How bytes travelled; none where they do not.
    pub payload: Option<Payload>,
    /// The seed.
    pub seed: u64,
    /// Nodes that were started.
    pub nodes: u64,
    /// Nodes that belonged to the cluster and were alive at the end, before they were told to finish.
    pub nodes_alive: u64,
    /// Rounds that were asked for.
    pub rounds: u64,
    /// Rounds that were finished, each counted once.
    pub rounds_finished: u64,
    /// The newest acknowledged global checkpoint; on completion the final one.
    pub checkpoint: Option<FinalCheckpoint>,
    /// Mean test loss of the last round.
    pub loss: Option<f64>,
    /// Share of test examples classified correctly after the last round.
    pub accuracy: Option<f64>,
    /// Size of a global checkpoint's parameters.
    pub checkpoint_bytes: Option<u64>,
    /// Median time of an acknowledged `put` of a global checkpoint.
    pub put_ns_median: Option<u64>,
    /// Median time of a round.
    pub round_ns_median: Option<u64>,
    /// Epochs (aggregators) that were seen.
    pub epochs: u64,
    /// Changes of aggregator after a fault that struck it.
    pub failovers: FailoverSummary,
    /// Planned hand-overs after which another aggregator served.
    pub hand_overs: u64,
    /// Median time of these from the decision to hand over until the next aggregator accepted its first worker.
    pub hand_over_ns_median: Option<u64>,
    /// Aggregators killed by faults after which another one served.
    pub take_overs: u64,
    /// Median time of these from the kill until the next aggregator accepted its first worker.
    pub take_over_ns_median: Option<u64>,
    /// Nodes that joined while the job ran.
    pub nodes_joined: u64,
    /// Nodes that left on purpose.
    pub nodes_left: u64,
    /// Nodes that came back under a new id, without their memory.
    pub nodes_replaced: u64,
    /// Faults that struck.
    pub faults_struck: u64,
    /// Nodes that died without a fault.
    pub unexpected_deaths: u64,
    /// Voters that were replaced.
    pub voters_replaced: u64,
    /// How often a node suspected an aggregator when no fault had struck either.
    pub false_suspicions: u64,
    /// Pairs of nodes that acted as aggregator at the same time, each counted once.
    pub rival_aggregators: u64,
    /// Answers with bytes that did not match their digest.
    pub corrupt_blobs: u64,
    /// Claims to hold bytes that proved false.
    pub false_claims: u64,
    /// UDP payload that all nodes sent on the learning plane during the job, by their transports.
    pub learning_sent_bytes: u64,
    /// The same on the replication plane.
    pub replication_sent_bytes: u64,
    /// The former per finished round, in units of W S: workers times the size of a checkpoint's parameters.
    pub learning_ws_per_round: Option<f64>,
    /// The latter per acknowledged global checkpoint, in units of S.
    pub replication_s_per_checkpoint: Option<f64>,
    /// Largest resident memory of a node that was reported.
    pub rss_peak_bytes: u64,
    /// Processor time of all nodes, as far as they told.
    pub cpu_ns: u64,
    /// What all nodes spent on hashing, per acknowledged global checkpoint.
    pub hash_ns_per_checkpoint: Option<u64>,
    /// The same for encoding messages and parameters.
    pub encode_ns_per_checkpoint: Option<u64>,
    /// The same for decoding them.
    pub decode_ns_per_checkpoint: Option<u64>,
    /// From the first start of a node until every node was ready.
    pub start_ns: Option<u64>,
    /// Bytes that left their senders, and what is known of the counting.
    pub traffic: TrafficSummary,
    /// Nodes whose board throttled during the run: their times mean little.
    #[serde(default)]
    pub throttled_nodes: u64,
    /// From the start of the run to its end.
    pub elapsed_ns: u64,
    /// Whether the synthetic set was used.
    pub synthetic_data: bool,
    /// The command that repeats the trial.
    pub repeat: String,
}
