//! Nodes that are started again after a fault killed them: same id, same plan, same credentials, same store, a new process
//! with new streams.

use std::time::Duration;

use replication::NodeId;
use tokio::time::Instant;

use super::Controller;
use crate::place::Placement;

/// What is said of a node whose return the end of the run came before.
const NOT_AGAIN: &str = "killed, not started again";

impl<P: Placement> Controller<P> {
    /// Notes that a killed node is started again after a pause: as what it was if that is on its disk, else as another one.
    pub(super) fn comes_back(&mut self, node: NodeId, after: Duration) {
        let waiting = match self.trial.plan.disk {
            Some(_) => &mut self.returning,
            None => &mut self.replacing,
        };
        waiting.insert(node, Instant::now() + after);
    }

    /// Starts nodes again that were away long enough.
    pub(super) fn bring_back(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let due = |node: &NodeId| self.returning.get(node).is_some_and(|at| *at <= now);
        // Only nodes whose old process is seen to be gone, and with it its sockets and the lock on its store.
        let due: Vec<NodeId> = self.cluster.returning().into_iter().filter(due).collect();
        for node in due {
            self.returning.remove(&node);
            self.struck.remove(&node);
            self.introduced.remove(&node);
            self.timeline.returned(node);
            let life = self.cluster.returned(node);
            self.launch(node, life)?;
            self.progress.note(&format!("node {node} was started again"));
        }
        Ok(())
    }

    /// Gives up nodes that are still away: the run is over.
    pub(super) fn leave_away(&mut self) {
        for node in self.cluster.returning() {
            self.cluster.gone(node, NOT_AGAIN.into(), true);
        }
    }
}
