//! What a store is opened with whichever backend it is: what a node brings, the window of its timers, and what can be wrong.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::event::Observer;
use crate::lifeline::Lifeline;
use crate::storage::{Storage, StorageError};
use crate::store::NodeId;
use crate::suitability::Resources;
use crate::transport::Transport;

/// What one node brings to its store.
#[derive(Clone)]
pub struct Site {
    /// This node's end of the replication plane.
    pub transport: Arc<dyn Transport>,
    /// Takes note of what happens in the store.
    pub observer: Arc<dyn Observer>,
    /// What this node has to offer.
    pub resources: Resources,
    /// Where state survives a restart; without it, it is lost with the process.
    pub storage: Option<Storage>,
    /// This node joins a cluster that runs, instead of taking part in founding one. Its configuration's nodes are those it
    /// knows, itself included.
    pub joins: bool,
    /// A joining node takes the place of this one, which is dead: in memory, a node that restarts has a new id. Where only
    /// the most suitable vote, the group sees to it itself.
    pub replaces: Option<NodeId>,
    /// Tells at once that the aggregator crashed; without it, only silence tells.
    pub lifeline: Option<Arc<dyn Lifeline>>,
}

impl Site {
    /// A site with the reference's resources that keeps everything in memory.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, observer: Arc<dyn Observer>) -> Self {
        Self {
            transport,
            observer,
            resources: Resources::default(),
            storage: None,
            joins: false,
            replaces: None,
            lifeline: None,
        }
    }
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Site").field("transport", &self.transport).finish_non_exhaustive()
    }
}

/// Earliest begin of a window: below it timers that count in milliseconds leave no room.
const MIN_WINDOW_MS: u64 = 10;

/// Latest end of a window.
const MAX_WINDOW_MS: u64 = 3_600_000;

/// When a node that heard nothing of its aggregator suspects it: a moment of this window after the last contact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Earliest, in milliseconds.
    pub from_ms: u64,
    /// Latest (exclusive), in milliseconds.
    pub to_ms: u64,
}

impl Window {
    /// Checks that a node that hears a sign of life every `heartbeat_ms` suspects nobody who is well.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn validate(self, heartbeat_ms: u64) -> Result<(), ConfigError> {
        let Self { from_ms, to_ms } = self;
        if heartbeat_ms == 0 {
            return Err(ConfigError::NoHeartbeat);
        }
        if from_ms >= to_ms || to_ms > MAX_WINDOW_MS {
            return Err(ConfigError::EmptyWindow(self));
        }
        if from_ms < (2 * heartbeat_ms).max(MIN_WINDOW_MS) {
            return Err(ConfigError::HeartbeatTooSlow { heartbeat_ms, from_ms });
        }
        Ok(())
    }
}

/// Parameters of a backend that cannot work together.
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
    /// This node is not among the nodes.
    #[error("node {0} is not among the nodes")]
    NotANode(NodeId),
    /// A number of nodes that shall vote, hold or back up which cannot be.
    #[error("{count} {what} cannot be had from {nodes} nodes")]
    OutOfRange {
        /// What they are for.
        what: &'static str,
        /// How many were asked for.
        count: u32,
        /// How many nodes there are.
        nodes: u32,
    },
    /// A setting outside of its bounds.
    #[error("{what} must be from {least} to {most}")]
    OutOfBounds {
        /// The setting.
        what: &'static str,
        /// Its least value.
        least: u64,
        /// Its greatest value.
        most: u64,
    },
    /// chitchat did not start.
    #[error("chitchat: {0}")]
    Chitchat(String),
    /// openraft refused its configuration, or what it found on disk.
    #[error("openraft: {0}")]
    Openraft(String),
    /// A node that joins later, where quorums are counted among the nodes of the configuration.
    #[error(
        "this backend's set of nodes is fixed: its quorums are counted among the nodes it was begun with"
    )]
    FixedMembers,
    /// What is on disk cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
