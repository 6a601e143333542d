//! Parameters of the gossip backend.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::store::NodeId;

/// Parameters of the gossip backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GossipConfig {
    /// Every node.
    pub nodes: BTreeSet<NodeId>,
    /// Nodes, the writer included, that hold a checkpoint's bytes before `put` returns.
    pub holders: u32,
    /// How often a node gossips, in milliseconds.
    pub interval_ms: u64,
    /// Peers a node gossips with each time.
    pub fan_out: u32,
    /// A node is suspected when it has been silent for this many thousandths of its mean interval between signs of life.
    pub phi_milli: u32,
    /// How long a `put` waits for its holders, in milliseconds.
    pub put_timeout_ms: u64,
    /// Checkpoints kept per slot.
    pub retained: usize,
    /// Seed of every random choice of this node.
    pub seed: u64,
}
