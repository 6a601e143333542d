//! An in-process cluster of stores that share one memory: the reference the other backends are held to.
//!
//! It keeps the whole contract with no replication at all, which is why it is useful: whatever the conformance suite asks
//! of it, it asks of every backend.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::blob::Blobs;
use crate::error::StoreError;
use crate::ledger::{Admission, Ledger, Record};
use crate::store::{
    Blob, Carrier, Checkpoint, CheckpointId, CheckpointStore, DEFAULT_RETAINED, Epoch, Guarantee, Guarantees,
    Held, NodeId, Receipt, Slot,
};

#[derive(Debug)]
struct Shared {
    ledger: Ledger,
    blobs: Blobs,
    alive: BTreeSet<NodeId>,
    aggregator: watch::Sender<Option<Epoch>>,
}

/// A cluster whose nodes share one memory. The lowest living node aggregates.
#[derive(Debug, Clone)]
pub struct MemoryCluster(Arc<Mutex<Shared>>);

impl MemoryCluster {
    /// A cluster of `nodes`, all alive.
    #[must_use]
    pub fn new(nodes: impl IntoIterator<Item = NodeId>) -> Self {
        let alive: BTreeSet<NodeId> = nodes.into_iter().collect();
        let first = alive.first().map(|node| Epoch { counter: 1, node: *node });
        let shared = Shared {
            ledger: Ledger::new(DEFAULT_RETAINED),
            blobs: Blobs::default(),
            alive,
            aggregator: watch::Sender::new(first),
        };
        Self(Arc::new(Mutex::new(shared)))
    }

    /// The store of one node.
    #[must_use]
    pub fn store(&self, node: NodeId) -> Arc<MemoryStore> {
        Arc::new(MemoryStore { node, cluster: self.clone() })
    }

    /// Ends a node at once.
    pub fn crash(&self, node: NodeId) {
        let mut shared = self.shared();
        shared.alive.remove(&node);
        let current = *shared.aggregator.borrow();
        if current.is_some_and(|epoch| epoch.node == node) {
            let next = shared.alive.first().copied();
            shared.appoint(next);
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn appoint(&mut self, node: Option<NodeId>) {
        let counter = self.aggregator.borrow().map_or(0, |epoch| epoch.counter) + 1;
        self.aggregator.send_replace(node.map(|node| Epoch { counter, node }));
    }

    fn put(&mut self, checkpoint: &Checkpoint, from: NodeId) -> Result<Receipt, StoreError> {
        let (id, digest) = (checkpoint.id(), checkpoint.digest());
        let current = *self.aggregator.borrow();
        let epoch = current.ok_or(StoreError::NotAggregator { current })?;
        if epoch != id.epoch {
            return Err(StoreError::Fenced { epoch: id.epoch, current });
        }
        if epoch.node != from && !matches!(id.slot, Slot::Worker { node, .. } if node == from) {
            return Err(StoreError::NotAggregator { current });
        }
        let (admission, released) = self.ledger.insert(Record::from(checkpoint));
        admission.into_result(id)?;
        if admission == Admission::New {
            self.blobs.stage(digest, checkpoint.parameters().clone());
            self.blobs.refer(digest);
        }
        for digest in released {
            self.blobs.release(digest);
        }
        Ok(Receipt {
            id,
            digest,
            guarantee: Guarantee::LocalMemory,
            holders: self.alive.iter().copied().collect(),
        })
    }

    fn read(&self, record: Option<&Record>) -> Result<Option<Checkpoint>, StoreError> {
        let Some(Record { id, digest, metadata, .. }) = record.cloned() else { return Ok(None) };
        let parameters = self.blobs.get(digest).ok_or(StoreError::Missing { digest })?;
        Ok(Some(Checkpoint::already_verified(id, digest, parameters, metadata)))
    }
}

/// One node's view of a [`MemoryCluster`].
#[derive(Debug)]
pub struct MemoryStore {
    node: NodeId,
    cluster: MemoryCluster,
}

impl fmt::Display for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory (in-process reference)")
    }
}

impl MemoryStore {
    fn living(&self) -> Result<MutexGuard<'_, Shared>, StoreError> {
        let shared = self.cluster.shared();
        if shared.alive.contains(&self.node) {
            Ok(shared)
        } else {
            Err(StoreError::Closed { reason: format!("node {} has ended", self.node) })
        }
    }
}

#[async_trait]
impl CheckpointStore for MemoryStore {
    async fn put_carried(&self, checkpoint: Checkpoint, _carrier: Carrier) -> Result<Receipt, StoreError> {
        checkpoint.within_limits()?;
        self.living()?.put(&checkpoint, self.node)
    }

    fn provide(&self, _blob: Blob) {}

    async fn newest(&self, slot: Slot) -> Result<Option<Checkpoint>, StoreError> {
        let shared = self.living()?;
        shared.read(shared.ledger.newest(slot))
    }

    async fn get(&self, id: CheckpointId) -> Result<Option<Checkpoint>, StoreError> {
        let shared = self.living()?;
        shared.read(shared.ledger.find(id))
    }

    fn held(&self) -> Option<Held> {
        self.living().ok()?.ledger.latest().map(|record| Held { id: record.id, digest: record.digest })
    }

    fn aggregator(&self) -> watch::Receiver<Option<Epoch>> {
        self.cluster.shared().aggregator.subscribe()
    }

    fn candidates(&self) -> Vec<NodeId> {
        self.cluster.shared().alive.iter().copied().filter(|node| *node != self.node).collect()
    }

    async fn step_down(&self, to: Option<NodeId>) -> Result<Epoch, StoreError> {
        let mut shared = self.living()?;
        let current = *shared.aggregator.borrow();
        if current.is_none_or(|epoch| epoch.node != self.node) {
            return Err(StoreError::NotAggregator { current });
        }
        let successor = to.or_else(|| shared.alive.iter().copied().find(|node| *node != self.node));
        match successor.filter(|node| shared.alive.contains(node) && *node != self.node) {
            Some(node) => shared.appoint(Some(node)),
            None => return Err(StoreError::Unavailable { reason: "there is nobody to hand over to".into() }),
        }
        let now = *shared.aggregator.borrow();
        now.ok_or(StoreError::NotAggregator { current: None })
    }

    async fn leave(&self) -> Result<(), StoreError> {
        let mut shared = self.living()?;
        let others = shared.alive.iter().copied().find(|node| *node != self.node);
        let next = others
            .ok_or_else(|| StoreError::Unavailable { reason: "there is nobody to hand over to".into() })?;
        if shared.aggregator.borrow().is_some_and(|epoch| epoch.node == self.node) {
            shared.appoint(Some(next));
        }
        shared.alive.remove(&self.node);
        Ok(())
    }

    fn guarantees(&self) -> Guarantees {
        let nodes = self.cluster.shared().alive.len() as u32;
        Guarantees {
            acknowledged: Guarantee::LocalMemory,
            tolerated_losses: nodes.saturating_sub(1),
            linear: true,
            minority_refuses: false,
            fails_over: true,
            survives_full_restart: false,
            takes_provided: false,
            in_order: true,
        }
    }

    async fn close(&self) {
        self.cluster.crash(self.node);
    }
}
