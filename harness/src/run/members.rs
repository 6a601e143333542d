//! Nodes that come and go while a run is under way: who joins is told to the others and started, who leaves is asked to, and a
//! node that lost its memory comes back under a new id, in its own place.

use replication::NodeId;
use tokio::time::Instant;

use super::Controller;
use crate::clock;
use crate::control::{Entry, ToNode};
use crate::place::Placement;

impl<P: Placement> Controller<P> {
    /// Starts `node`, which enters the cluster that runs.
    pub(super) fn enter(&mut self, node: NodeId, entry: Entry) -> anyhow::Result<()> {
        self.cluster.joined(node);
        self.entries.insert(node, entry);
        // Before it calls, so that nobody refuses it.
        self.tell_peers();
        self.launch(node, 1)
    }

    /// Asks `node` to leave.
    pub(super) fn let_leave(&mut self, node: NodeId) {
        if let Some(epoch) = self.cluster.aggregator.filter(|epoch| epoch.node == node) {
            // Nobody has to be suspected: it hands over.
            let at_ns = clock::monotonic_ns();
            self.vacancies.hands_over(at_ns, epoch);
            self.failovers.hands_over(at_ns, epoch);
        }
        if !self.links.send(node, ToNode::Leave) {
            self.progress.warn(&format!("node {node} does not read: it is not asked to leave"));
        }
    }

    /// A node has left, and is about to end.
    pub(super) fn left(&mut self, node: NodeId) {
        self.cluster.departed(node);
        self.leavers += 1;
        self.progress.note(&format!("node {node} has left"));
    }

    /// A node was not let go, and goes on.
    pub(super) fn stays(&mut self, node: NodeId, reason: &str) {
        self.timeline.stays(node);
        self.progress.warn(&format!("node {node} did not leave: {reason}"));
    }

    /// Starts nodes in the place of those that lost their memory, if they were away long enough.
    pub(super) fn replace(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let due: Vec<NodeId> =
            self.replacing.iter().filter(|(_, at)| **at <= now).map(|(node, _)| *node).collect();
        for dead in due {
            self.replacing.remove(&dead);
            let Some(node) = self.spares.pop_front() else { continue };
            self.cluster.departed(dead);
            self.timeline.replaced(dead, node);
            self.progress.note(&format!("node {dead} comes back without its memory, as node {node}"));
            self.enter(node, Entry::Replaces { node: dead, device: self.device(dead) })?;
        }
        Ok(())
    }

    /// The node whose data `node` has.
    fn device(&self, node: NodeId) -> NodeId {
        self.entry(node).device(node)
    }

    /// How `node` came into the cluster.
    pub(super) fn entry(&self, node: NodeId) -> Entry {
        self.entries.get(&node).copied().unwrap_or(Entry::Founds)
    }

    /// Nodes that may be reached: all that belong to the cluster.
    pub(super) fn peers(&self) -> Vec<NodeId> {
        self.cluster.roll().members
    }

    /// Tells running nodes whom they can reach.
    pub(super) fn tell_peers(&self) {
        let nodes = self.peers();
        // Whoever has not said hello yet is told with the order to start.
        for node in self.cluster.running().into_iter().filter(|node| self.introduced.contains(node)) {
            if !self.links.send(node, ToNode::Peers { nodes: nodes.clone(), asked_by: None }) {
                self.progress.warn(&format!("node {node} does not read: it is not told who is there"));
            }
        }
    }
}
