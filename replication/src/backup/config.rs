//! Parameters of the primary-backup backend.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::config::Window;
use crate::store::NodeId;

/// Parameters of the primary-backup backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupConfig {
    /// Every node. Their order is the order of succession.
    pub nodes: BTreeSet<NodeId>,
    /// Nodes beside the aggregator that hold a checkpoint's bytes before `put` returns.
    pub backups: u32,
    /// When the first in the order of succession suspects the aggregator.
    pub window: Window,
    /// How often the aggregator proves that it lives, in milliseconds.
    pub heartbeat_ms: u64,
    /// How long a `put` waits for its backups, in milliseconds.
    pub put_timeout_ms: u64,
    /// Checkpoints kept per slot.
    pub retained: usize,
    /// Seed of this node's timers.
    pub seed: u64,
}
