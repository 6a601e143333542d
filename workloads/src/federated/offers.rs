//! Which workers offered themselves to this node, in the epoch in which it aggregates, and which need not be waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use replication::{Epoch, NodeId};
use tokio::time::Instant;

/// A node that died may look connected for this long.
const MAY_BE_DEAD: Duration = Duration::from_secs(10);

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

/// Nodes that lost their office: whoever did not hand it over may be dead.
#[derive(Debug, Default)]
pub(crate) struct Predecessors {
    lost_office: BTreeMap<NodeId, Instant>,
    handed_over: BTreeSet<NodeId>,
    /// The newest round that whoever handed over has finished.
    finished_round: u64,
}

/// What a node that takes over knows of those before it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inheritance {
    /// Not to be waited for.
    pub(crate) perhaps_dead: BTreeSet<NodeId>,
    /// This round and those before it are finished, evaluation included.
    pub(crate) finished_round: u64,
}

impl Predecessors {
    /// `node`, until now the aggregator, is not any more.
    pub(crate) fn lost_office(&mut self, node: NodeId, now: Instant) {
        self.lost_office.insert(node, now);
    }

    /// `node` says that it hands its office over after `finished_round`, and will work.
    pub(crate) fn hands_over(&mut self, node: NodeId, finished_round: u64) {
        self.handed_over.insert(node);
        self.finished_round = self.finished_round.max(finished_round);
    }

    /// This node takes over. That a node handed over counts once.
    pub(crate) fn take_over(&mut self, now: Instant) -> Inheritance {
        for node in std::mem::take(&mut self.handed_over) {
            self.lost_office.remove(&node);
        }
        self.lost_office.retain(|_, lost| now < *lost + MAY_BE_DEAD);
        let perhaps_dead = self.lost_office.keys().copied().collect();
        Inheritance { perhaps_dead, finished_round: self.finished_round }
    }
}
