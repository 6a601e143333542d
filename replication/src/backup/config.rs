//! Parameters of the primary-backup backend, and which of them can work together.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, Window};
use crate::store::NodeId;

/// Parameters of the primary-backup backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupConfig {
    /// Every node that the cluster begins with. Their order is the order of succession.
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

impl BackupConfig {
    /// Checks that there can be so many backups, and that the timers can work together.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let nodes = self.nodes.len() as u32;
        if self.backups == 0 || self.backups >= nodes {
            return Err(ConfigError::OutOfRange { what: "backups", count: self.backups, nodes });
        }
        self.window.validate(self.heartbeat_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aggregator_is_no_backup_of_its_own() {
        let with = |backups| BackupConfig {
            nodes: (1..=3).map(NodeId).collect(),
            backups,
            window: Window { from_ms: 300, to_ms: 600 },
            heartbeat_ms: 60,
            put_timeout_ms: 3000,
            retained: 8,
            seed: 1,
        };
        assert!(with(1).validate().is_ok() && with(2).validate().is_ok());
        for count in [0, 3] {
            let refused = with(count).validate();
            assert!(matches!(refused, Err(ConfigError::OutOfRange { nodes: 3, .. })), "{count}: {refused:?}");
        }
    }
}
