//! Where nodes run. A placement starts a node, gives its two control streams, ends it, and leaves nothing behind.
//!
//! It does not know what is said over the streams.

pub mod inventory;
pub mod netns;
pub mod process;

use std::path::Path;

use replication::NodeId;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::control::Captured;

/// The control streams of a started node.
pub struct Pipes {
    /// To the node.
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    /// From the node; ends when the node does.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
}

impl std::fmt::Debug for Pipes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pipes")
    }
}

/// Starts and ends nodes. Dropping it kills every node it started, and waits until they are gone.
pub trait Placement {
    /// Starts `node`, whose standard error is appended to `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    fn start(&mut self, node: NodeId, log: &Path) -> anyhow::Result<Pipes>;

    /// Kills `node` at once, without a chance to say anything. A node that is gone is no error.
    ///
    /// # Errors
    /// If it could not be killed.
    fn kill(&mut self, node: NodeId) -> anyhow::Result<()>;

    /// Stops `node` without its noticing, until [`resume`](Placement::resume). A node that is gone is no error.
    ///
    /// # Errors
    /// If it could not be stopped.
    fn stop(&mut self, node: NodeId) -> anyhow::Result<()>;

    /// Lets a stopped `node` go on. A node that is gone is no error.
    ///
    /// # Errors
    /// If it could not be told.
    fn resume(&mut self, node: NodeId) -> anyhow::Result<()>;

    /// How `node` ended, if it has; does not wait.
    fn ended(&mut self, node: NodeId) -> Option<String>;

    /// Kills every node that is left, and waits until they are gone.
    fn kill_all(&mut self);

    /// What captures outside of the nodes have counted since the last call. Does not wait.
    fn captured(&mut self) -> Vec<(NodeId, Captured)> {
        Vec::new()
    }

    /// Ends these captures; what they still have comes from [`captured`](Placement::captured).
    fn end_captures(&mut self) {}
}
