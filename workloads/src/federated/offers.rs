//! Which workers offered themselves to this node, in the epoch in which it aggregates.

use std::collections::BTreeSet;

use replication::{Epoch, NodeId};

/// Workers that offered themselves to this node in one epoch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Offers {
    pub(crate) epoch: Option<Epoch>,
    pub(crate) joined: BTreeSet<NodeId>,
}

impl Offers {
    /// Opens the list for an epoch of this node.
    pub(crate) fn open(&mut self, epoch: Epoch) {
        *self = Self { epoch: Some(epoch), joined: BTreeSet::new() };
    }

    /// Takes an offer; true if it is new.
    pub(crate) fn accept(&mut self, epoch: Epoch, worker: NodeId) -> bool {
        self.epoch == Some(epoch) && self.joined.insert(worker)
    }

    /// Whether the worker is on the list of that epoch.
    pub(crate) fn has(&self, epoch: Epoch, worker: NodeId) -> bool {
        self.epoch == Some(epoch) && self.joined.contains(&worker)
    }
}
