//! Parameters of the gossip backend.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::detector::Detector;
use crate::config::ConfigError;
use crate::store::NodeId;

/// Largest interval between two rounds of gossip: an hour.
const MAX_INTERVAL_MS: u64 = 3_600_000;

/// Parameters of the gossip backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GossipConfig {
    /// Every node that the cluster begins with.
    pub nodes: BTreeSet<NodeId>,
    /// Nodes, the writer included, that hold a checkpoint's bytes before `put` returns.
    pub holders: u32,
    /// How often a node gossips, in milliseconds.
    pub interval_ms: u64,
    /// Peers a node gossips with each time.
    pub fan_out: u32,
    /// A node is suspected when it has been silent for this many thousandths of its mean interval between signs of life.
    pub phi_milli: u32,
    /// Who says that a node is suspected: chitchat, or timeouts that begin with phi times the interval.
    pub detector: Detector,
    /// How long a `put` waits for its holders, in milliseconds.
    pub put_timeout_ms: u64,
    /// Checkpoints kept per slot.
    pub retained: usize,
    /// Seed of every random choice of this node.
    pub seed: u64,
}

/// Holders that a write awaits among `members`, where `holders` of `founders` were configured.
#[must_use]
pub fn holders_among(holders: u32, founders: usize, members: usize) -> u32 {
    if holders as usize > founders / 2 { holders.max(members as u32 / 2 + 1) } else { holders }
}

impl GossipConfig {
    /// Checks that the settings can work together on node `local`.
    ///
    /// # Errors
    /// What is out of range.
    pub fn validate(&self, local: NodeId) -> Result<(), ConfigError> {
        let nodes = self.nodes.len() as u32;
        if !self.nodes.contains(&local) {
            return Err(ConfigError::NotANode(local));
        }
        if self.holders == 0 || self.holders > nodes {
            return Err(ConfigError::OutOfRange { what: "holders", count: self.holders, nodes });
        }
        if self.interval_ms == 0 || self.interval_ms > MAX_INTERVAL_MS {
            return Err(ConfigError::OutOfBounds {
                what: "the gossip interval in ms",
                least: 1,
                most: MAX_INTERVAL_MS,
            });
        }
        if self.fan_out == 0 {
            let most = u64::from(nodes);
            return Err(ConfigError::OutOfBounds { what: "the gossip fan-out", least: 1, most });
        }
        if self.phi_milli <= 1000 {
            let most = u64::from(u32::MAX);
            return Err(ConfigError::OutOfBounds { what: "phi in thousandths", least: 1001, most });
        }
        Ok(())
    }

    /// How long a node is silent before it is suspected, in milliseconds: phi times the interval. The mean interval
    /// between signs of life is held near the gossip interval; liveness is looked at once per interval.
    #[must_use]
    pub fn effective_timeout_ms(&self) -> u64 {
        u64::from(self.phi_milli).saturating_mul(self.interval_ms) / 1000
    }

    /// Whether every two groups of holders, and of promises, have a node in common.
    #[must_use]
    pub fn linear(&self) -> bool {
        self.holders as usize > self.nodes.len() / 2
    }

    /// Holders awaited by a write among `members` nodes: never fewer than configured, and a majority where it was one among
    /// those that the cluster began with.
    #[must_use]
    pub fn holders_among(&self, members: usize) -> u32 {
        holders_among(self.holders, self.nodes.len(), members)
    }

    pub(super) fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms)
    }

    pub(super) fn effective_timeout(&self) -> Duration {
        Duration::from_millis(self.effective_timeout_ms())
    }
}

impl fmt::Display for GossipConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { holders, interval_ms, detector, .. } = self;
        let (of, after_ms) = (self.nodes.len(), self.effective_timeout_ms());
        write!(
            f,
            "gossip ({holders} of {of} holders, every {interval_ms} ms, suspected after about {after_ms} ms{})",
            match detector {
                Detector::Phi => "",
                Detector::EventuallyPerfect => ", later after each false suspicion",
            }
        )
    }
}
