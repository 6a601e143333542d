//! Nodes that come and go while a key-value run serves: a client asks for it, the controller does it.

use replication::NodeId;

use super::run::Controller;
use crate::control::{Entry, ToNode};
use crate::place::Placement;
use crate::record::ControllerEvent;

impl<P: Placement> Controller<P> {
    /// A client asked `node` for one more node: starts one, if there is one left.
    pub(super) fn wanted(&mut self, node: NodeId) -> anyhow::Result<()> {
        let Some(newcomer) = self.newcomers.pop_front() else {
            // What it has been told already: nobody came.
            self.tell_peers(&[node], Some(node));
            return Ok(());
        };
        self.progress.note(&format!("node {newcomer} joins"));
        self.entries.insert(newcomer, Entry::Joins);
        self.members_change(|nodes| nodes.push(newcomer), Some(node))?;
        self.launch(newcomer)
    }

    /// `node` has left, and is about to end.
    pub(super) fn left(&mut self, node: NodeId) -> anyhow::Result<()> {
        self.progress.note(&format!("node {node} has left"));
        self.departed.insert(node);
        self.recorder.controller_event(&ControllerEvent::NodeLeaving { target: node })?;
        self.members_change(|nodes| nodes.retain(|other| *other != node), None)
    }

    /// Changes who is there, and tells everybody: running nodes, clients by their file, later runs by the label of the stores.
    /// `asked_by` has it for an answer.
    fn members_change(
        &mut self,
        change: impl FnOnce(&mut Vec<NodeId>),
        asked_by: Option<NodeId>,
    ) -> anyhow::Result<()> {
        change(&mut self.nodes);
        if let Some(folder) = &mut self.folder {
            folder.members_change()?;
        }
        self.cluster.set_nodes(&self.trial.plan, &self.nodes);
        if let Some(file) = &self.file {
            file.replace(&self.cluster)?;
        }
        let nodes = self.nodes.clone();
        self.tell_peers(&nodes, asked_by);
        Ok(())
    }

    /// Tells `nodes` who is there. One that has not said hello yet is told with the order to start.
    fn tell_peers(&self, nodes: &[NodeId], asked_by: Option<NodeId>) {
        for node in nodes.iter().filter(|node| self.listening.contains(node)) {
            if !self.links.send(*node, ToNode::Peers { nodes: self.nodes.clone(), asked_by }) {
                self.progress.warn(&format!("node {node} does not read: it is not told who is there"));
            }
        }
    }

    /// How `node` came into the cluster.
    pub(super) fn entry(&self, node: NodeId) -> Entry {
        self.entries.get(&node).copied().unwrap_or(Entry::Founds)
    }
}
