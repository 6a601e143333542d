//! Nodes as child processes, each in a network namespace of its own.
//!
//! The namespaces are anonymous: when the controller and the nodes are gone, however they ended, so are the namespaces
//! and their interfaces. Several runs may use the same addresses side by side.
//!
//! Captures run in this process, a thread in each node's namespace: they begin before the node and outlive its death.

pub mod namespace;
pub mod network;

use std::io;
use std::path::Path;
use std::sync::mpsc;

use anyhow::Context as _;
use replication::NodeId;

use super::process::Processes;
use super::{Pipes, Placement};
use crate::capture::{Capture, CaptureMode, Settings};
use crate::control::Captured;
use crate::plan::Plan;
pub use namespace::Namespace;
use network::{NODE_INTERFACE, Network};

/// Intervals that wait for the controller, about a minute of 244 nodes; beyond that captures wait.
const WAITING_INTERVALS: usize = 16_384;

/// Child processes on this host, each at its own end of a virtual link.
#[derive(Debug)]
pub struct Namespaces {
    // In this order: nodes and captures end before what they run in is let go.
    processes: Processes,
    captures: Vec<Capture>,
    captured: mpsc::Receiver<(NodeId, Captured)>,
    network: Network,
}

impl Namespaces {
    /// Makes the network of `plan`; nodes are started from the executable of this process.
    ///
    /// # Errors
    /// If the network cannot be made, or if captures are required and cannot begin.
    pub fn build(plan: &Plan) -> anyhow::Result<Self> {
        let processes = Processes::of_this_program()?;
        let network = Network::build(&plan.members, &plan.link).context("cannot make the nodes' network")?;
        let (tell, captured) = mpsc::sync_channel(WAITING_INTERVALS);
        let captures = match plan.capture {
            CaptureMode::Off => Vec::new(),
            CaptureMode::Auto | CaptureMode::Required => match capture(plan, &network, &tell) {
                Err(error) if plan.capture == CaptureMode::Auto => {
                    tracing::warn!("no capture: {error:#}");
                    Vec::new()
                }
                captures => captures.context("no capture, which --capture required asks for")?,
            },
        };
        Ok(Self { processes, captures, captured, network })
    }
}

/// Begins a capture on every node's interface.
fn capture(
    plan: &Plan,
    network: &Network,
    tell: &mpsc::SyncSender<(NodeId, Captured)>,
) -> anyhow::Result<Vec<Capture>> {
    let settings = Settings::everything(NODE_INTERFACE, &[plan.learning_port, plan.replication_port]);
    let begin = |node: NodeId| {
        let namespace = network.namespace(node).with_context(|| format!("node {node} has no namespace"))?;
        let tell = tell.clone();
        let tell = move |interval| {
            // Nobody listens any more only when the run is over.
            let captured = Captured { interface: NODE_INTERFACE.into(), loopback: false, interval };
            let _ = tell.send((node, captured));
        };
        // The capture's thread is in the namespace of the one that starts it.
        let capture = namespace.run(|| Capture::start(&settings, tell).map_err(io::Error::other))?;
        anyhow::Ok(capture)
    };
    plan.nodes().into_iter().map(begin).collect()
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

    fn stop(&mut self, node: NodeId) -> anyhow::Result<()> {
        self.processes.stop(node)
    }

    fn resume(&mut self, node: NodeId) -> anyhow::Result<()> {
        self.processes.resume(node)
    }

    fn ended(&mut self, node: NodeId) -> Option<String> {
        self.processes.ended(node)
    }

    fn kill_all(&mut self) {
        self.processes.kill_all();
    }

    fn captured(&mut self) -> Vec<(NodeId, Captured)> {
        self.captured.try_iter().collect()
    }

    fn end_captures(&mut self) {
        self.captures.iter().for_each(Capture::stop);
        self.captures.drain(..).for_each(Capture::finish);
    }
}
