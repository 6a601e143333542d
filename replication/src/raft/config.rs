//! Parameters of the Raft backend, and which of them can work together.

use std::collections::BTreeSet;
use std::sync::Arc;

use openraft::SnapshotPolicy;
use serde::{Deserialize, Serialize};

use super::election::Window;
use crate::config::Payload;
use crate::store::NodeId;

/// Entries that stay in the log after compaction, so that a node a little behind needs no snapshot.
const ENTRIES_KEPT: u64 = 4;

/// Earliest begin of an election window: below it openraft's timers, which count in milliseconds, leave no room.
const MIN_WINDOW_MS: u64 = 10;

/// Latest end of an election window.
const MAX_WINDOW_MS: u64 = 3_600_000;

/// Parameters of the Raft backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftConfig {
    /// The nodes that vote and store. The lowest founds the cluster.
    pub voters: BTreeSet<NodeId>,
    /// Whether the log carries the bytes or their digest.
    pub payload: Payload,
    /// When a node that heard nothing of the leader starts an election.
    pub window: Window,
    /// How often the leader proves that it lives, in milliseconds.
    pub heartbeat_ms: u64,
    /// How long a `put` waits for its guarantee, in milliseconds.
    pub put_timeout_ms: u64,
    /// Checkpoints kept per slot.
    pub retained: usize,
    /// Seed of this node's election timer.
    pub seed: u64,
}

/// Timers or voters that cannot work.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConfigError {
    /// A window without extent.
    #[error("the election window {}-{} ms is empty or ends after an hour", .0.from_ms, .0.to_ms)]
    EmptyWindow(Window),
    /// Followers would suspect a leader that is well.
    #[error("a heartbeat every {heartbeat_ms} ms needs an election window that begins at {} ms or later, not at {from_ms} ms",
        (2 * heartbeat_ms).max(MIN_WINDOW_MS))]
    HeartbeatTooSlow {
        /// The heartbeat interval.
        heartbeat_ms: u64,
        /// Where the window begins.
        from_ms: u64,
    },
    /// A heartbeat interval of 0.
    #[error("the heartbeat interval must be at least 1 ms")]
    NoHeartbeat,
    /// This node is not among the voters.
    #[error("node {0} is not a voter")]
    NotAVoter(NodeId),
    /// openraft refused its configuration.
    #[error("openraft: {0}")]
    Openraft(String),
}

impl RaftConfig {
    /// Checks that timers and voters can work together.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Window { from_ms, to_ms } = self.window;
        if self.heartbeat_ms == 0 {
            return Err(ConfigError::NoHeartbeat);
        }
        if from_ms >= to_ms || to_ms > MAX_WINDOW_MS {
            return Err(ConfigError::EmptyWindow(self.window));
        }
        if from_ms < (2 * self.heartbeat_ms).max(MIN_WINDOW_MS) {
            return Err(ConfigError::HeartbeatTooSlow { heartbeat_ms: self.heartbeat_ms, from_ms });
        }
        Ok(())
    }

    pub(super) fn openraft(&self) -> Result<Arc<openraft::Config>, ConfigError> {
        // openraft's election_timeout_max is its lease: for that long after its own last contact a voter refuses other
        // candidates. It ends before the window begins, or the first candidate of a window would be refused.
        let lease_ms = (self.window.from_ms * 3 / 4).max(self.heartbeat_ms + 2);
        let config = openraft::Config {
            cluster_name: "checkpoints".into(),
            heartbeat_interval: self.heartbeat_ms,
            // Serves only as the time a vote may take, since openraft's own elections are off.
            election_timeout_min: lease_ms - 1,
            election_timeout_max: lease_ms,
            enable_elect: false,
            enable_pre_vote: Some(true),
            // A node that comes back is tried again at every heartbeat.
            backoff: format!("{0}ms {0}ms {0}ms", self.heartbeat_ms),
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: ENTRIES_KEPT,
            ..Default::default()
        };
        config.validate().map(Arc::new).map_err(|error| ConfigError::Openraft(error.to_string()))
    }
}
