//! Nodes as child processes, each in a network namespace of its own.
//!
//! The namespaces are anonymous: when the controller and the nodes are gone, however they ended, so are the namespaces
//! and their interfaces. Several runs may use the same addresses side by side.

mod namespace;
pub mod network;
mod offload;

use std::path::Path;

use anyhow::Context as _;
use replication::NodeId;

use super::process::Processes;
use super::{Pipes, Placement};
use crate::plan::Plan;
pub use namespace::{Namespace, enter};
use network::Network;
pub use offload::state as offload_state;

/// Child processes on this host, each at its own end of a virtual link.
#[derive(Debug)]
pub struct Namespaces {
    // In this order: nodes end before what they run in is let go.
    processes: Processes,
    network: Network,
}

impl Namespaces {
    /// Makes the network of `plan`; nodes are started from the executable of this process.
    ///
    /// # Errors
    /// If the network cannot be made.
    pub fn build(plan: &Plan) -> anyhow::Result<Self> {
        let processes = Processes::of_this_program()?;
        let network = Network::build(&plan.members, &plan.link).context("cannot make the nodes' network")?;
        Ok(Self { processes, network })
    }
}

impl Placement for Namespaces {
    fn start(&mut self, node: NodeId, log: &Path) -> anyhow::Result<Pipes> {
        let namespace = self.network.namespace(node);
        let namespace = namespace.with_context(|| format!("node {node} has no namespace"))?;
        self.processes.start_in(node, log, Some(namespace))
    }

    fn kill(&mut self, node: NodeId) -> anyhow::Result<()> {
        self.processes.kill(node)
    }

    fn ended(&mut self, node: NodeId) -> Option<String> {
        self.processes.ended(node)
    }

    fn kill_all(&mut self) {
        self.processes.kill_all();
    }
}
