//! Where nodes run. A placement starts a node, gives its two control streams, ends it, and leaves nothing behind.
//!
//! It does not know what is said over the streams.

pub mod inventory;
pub mod netns;
pub mod process;
pub mod ssh;

use std::future::{self, Future};
use std::net::Ipv4Addr;
use std::path::Path;
use std::pin::Pin;

use replication::NodeId;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::board::Board;
use crate::control::Captured;
use crate::facts::Facts;

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

/// A host that nodes run on, as it was found before the run and is after it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// The node that runs there.
    pub node: NodeId,
    /// Its name in the inventory.
    pub name: String,
    /// The node's address.
    pub address: Option<Ipv4Addr>,
    /// What was found before the run.
    pub before: Facts,
    /// The board when the node was last heard of; none: nothing was told.
    pub after: Option<Board>,
    /// Whether the board throttled during the run.
    pub throttled: bool,
}

/// What cuts the power of a host; ends when that is done.
pub type PowerCut = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

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

    /// What cuts the power of the host of `node`, of bounded duration; several may run side by side. When it has succeeded,
    /// [`without_power`](Placement::without_power) is to be told.
    ///
    /// # Errors
    /// If its power cannot be cut.
    fn power_off(&mut self, node: NodeId) -> anyhow::Result<PowerCut> {
        anyhow::bail!("node {node} has no power of its own")
    }

    /// Takes note that the host of `node` has no power any more.
    fn without_power(&mut self, _node: NodeId) {}

    /// How `node` ended, if it has; does not wait.
    fn ended(&mut self, node: NodeId) -> Option<String>;

    /// Kills every node that is left, and waits until they are gone.
    fn kill_all(&mut self);

    /// As [`kill_all`](Placement::kill_all), where that alone cannot see when nodes on other hosts are gone. Waits a bounded time
    /// for what cannot be reached.
    fn end_all(&mut self) -> impl Future<Output = ()> {
        self.kill_all();
        future::ready(())
    }

    /// Whether nodes share the controller's CLOCK_MONOTONIC.
    fn shares_clock(&self) -> bool {
        true
    }

    /// The hosts that nodes run on, if they are others than the controller's.
    fn hosts(&self) -> Vec<HostRecord> {
        Vec::new()
    }

    /// What captures outside of the nodes have counted since the last call. Does not wait.
    fn captured(&mut self) -> Vec<(NodeId, Captured)> {
        Vec::new()
    }

    /// Ends these captures; what they still have comes from [`captured`](Placement::captured).
    fn end_captures(&mut self) {}
}
