//! Parameters of the Raft backend, and which of them can work together.

use std::collections::BTreeSet;
use std::sync::Arc;

use openraft::SnapshotPolicy;
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, Window};
use crate::store::{NodeId, Payload};

/// Entries that stay in the log after compaction, so that a node a little behind needs no snapshot.
const ENTRIES_KEPT: u64 = 4;

/// Parameters of the Raft backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftConfig {
    /// The nodes that found the cluster, which the lowest sees to; for a node that joins later those it knows, itself
    /// included. Who is a member afterwards is in the log.
    pub nodes: BTreeSet<NodeId>,
    /// Who of them votes and stores.
    pub electorate: Electorate,
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

/// Who votes and stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Electorate {
    /// Every node.
    Everyone,
    /// The most suitable nodes ([`crate::suitability`]). The others are no members of the Raft group, not even learners:
    /// they hold nothing and are told who leads.
    MostSuitable {
        /// How many vote.
        voters: u32,
        /// A voter that is away for longer is replaced by the next most suitable node, in milliseconds.
        grace_ms: u64,
    },
}

impl RaftConfig {
    /// Checks that timers and voters can work together.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.window.validate(self.heartbeat_ms)?;
        let nodes = self.nodes.len() as u32;
        match self.electorate {
            Electorate::MostSuitable { voters, .. } if !(1..=nodes).contains(&voters) => {
                Err(ConfigError::OutOfRange { what: "voters", count: voters, nodes })
            }
            _ => Ok(()),
        }
    }

    /// How many nodes vote when the group is founded.
    pub(super) fn founding_voters(&self) -> u32 {
        match self.electorate {
            Electorate::Everyone => self.nodes.len() as u32,
            Electorate::MostSuitable { voters, .. } => voters,
        }
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
            // An aggregator that was restarted begins a new epoch.
            enable_leader_restore: Some(false),
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
