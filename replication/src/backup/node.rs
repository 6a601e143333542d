//! One node's state: who aggregates, and which checkpoints it took; what follows when it hears of an epoch.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::config::BackupConfig;
use super::succession::{Heard, Succession};
use crate::archive::Archive;
use crate::blob::{Exchange, transfer_timeout};
use crate::error::StoreError;
use crate::event::{Observer, StoreEvent};
use crate::ledger::{Admission, Ledger, Record};
use crate::members::Members;
use crate::store::{CheckpointId, Epoch, Held, NodeId, Slot};
use crate::transport::Transport;

/// What a reader asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Wanted {
    /// The newest checkpoint of a slot.
    Newest(Slot),
    /// A checkpoint by name.
    Named(CheckpointId),
}

/// The fact that says which epoch is the highest that this node heard of.
pub(super) const EPOCH: &str = "epoch";

/// What changes on a node.
pub(super) struct State {
    pub(super) succession: Succession,
    /// What this node took, as aggregator or from it.
    pub(super) ledger: Ledger,
    /// Writes of this node's own epoch that its backups have not acknowledged.
    pub(super) pending: BTreeSet<CheckpointId>,
    /// This node is handing over: it acknowledges nothing.
    pub(super) resigning: bool,
    /// The aggregator asked this node to take over.
    pub(super) appointed: bool,
    /// Who belongs to the cluster.
    pub(super) members: Members,
    /// The highest version of a configuration that this node made: no two share a place.
    pub(super) proposed: u64,
    /// A node that is about to leave: no write counts on it.
    pub(super) leaving: Option<NodeId>,
    pub(super) closed: bool,
}

/// One node of the cluster.
pub(super) struct Node {
    pub(super) config: BackupConfig,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) exchange: Exchange,
    pub(super) archive: Archive,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) aggregator: watch::Sender<Option<Epoch>>,
    pub(super) state: Mutex<State>,
    /// Held while members change: one change at a time.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// This node wants to be let go.
    pub(super) leaves: AtomicBool,
    /// The state changed so that what this node does next may be something else.
    pub(super) changed: Notify,
    /// What outlives the call that began it.
    pub(super) background: Mutex<JoinSet<()>>,
}

impl Node {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn background(&self) -> MutexGuard<'_, JoinSet<()>> {
        let mut background = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        while background.try_join_next().is_some() {}
        background
    }

    pub(super) fn local(&self) -> NodeId {
        self.transport.local()
    }

    pub(super) fn current(&self) -> Option<Epoch> {
        *self.aggregator.borrow()
    }

    /// Members with a live connection, in ascending order.
    pub(super) fn connected(&self) -> Vec<NodeId> {
        let mut connected = self.transport.connected().borrow().clone();
        let state = self.state();
        connected.retain(|node| state.members.contains(*node));
        connected
    }

    /// How long somebody who lives may take to answer a small message.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_millis(self.config.window.from_ms)
    }

    pub(super) fn put_timeout(&self, bytes: u64) -> Duration {
        Duration::from_millis(self.config.put_timeout_ms).max(transfer_timeout(bytes))
    }

    /// Takes note of an epoch that somebody named.
    ///
    /// # Errors
    /// The epoch in force, if that one has ended.
    pub(super) fn hear(&self, epoch: Epoch) -> Result<(), Epoch> {
        let mut state = self.state();
        match state.succession.hear(epoch, Instant::now()) {
            Heard::Stale(current) => Err(current),
            Heard::Known => Ok(()),
            Heard::New(before) => {
                let yields = before.filter(|before| before.node == self.local() && !state.resigning);
                if let Some(yields) = yields {
                    self.observer.observe(StoreEvent::RivalAggregators { stays: epoch, yields });
                }
                self.archive.note(EPOCH, &epoch);
                self.publish(&mut state, epoch);
                Ok(())
            }
        }
    }

    /// Says that `epoch` is in force. Under the lock, so that epochs are published in their order.
    pub(super) fn publish(&self, state: &mut State, epoch: Epoch) {
        (state.resigning, state.appointed) = (false, false);
        self.aggregator.send_replace(Some(epoch));
        self.observer.observe(StoreEvent::AggregatorChanged { epoch: Some(epoch) });
        self.changed.notify_one();
    }

    /// Hears `epoch` from the node that holds it, which is thereby alive.
    pub(super) fn hear_from_aggregator(&self, epoch: Epoch) -> Result<(), Epoch> {
        self.hear(epoch)?;
        self.state().succession.wait_anew(Instant::now());
        Ok(())
    }

    /// Takes a checkpoint, whose bytes are here, on the word of the aggregator of `epoch`; returns once a restart does not
    /// lose it.
    pub(super) async fn take(&self, record: Record, epoch: Epoch, fills: bool) -> Result<(), StoreError> {
        self.note(record, epoch, fills)?;
        Ok(self.archive.flush().await?)
    }

    /// With `fills` it is acknowledged, and may be older than what is here.
    fn note(&self, record: Record, epoch: Epoch, fills: bool) -> Result<(), StoreError> {
        let mut state = self.state();
        let current = state.succession.epoch();
        if state.closed || current != Some(epoch) {
            return Err(StoreError::Fenced { epoch, current });
        }
        let (id, digest, bytes) = (record.id, record.digest, record.bytes);
        let (admission, released) =
            if fills { state.ledger.fill(record) } else { state.ledger.overrule(record, epoch) };
        if admission == Admission::New {
            self.exchange.blobs().refer(digest);
            self.observer.observe(StoreEvent::Applied { id, digest, bytes });
        }
        self.archive.save(&state.ledger, [id.slot]);
        // After the rows that referred to them.
        for digest in released {
            self.exchange.blobs().release(digest);
        }
        admission.into_result(id)
    }

    /// What this node knows to be acknowledged, or may be for all it knows.
    pub(super) fn known(&self, wanted: Wanted) -> Option<Record> {
        let State { ledger, pending, .. } = &*self.state();
        match wanted {
            Wanted::Newest(slot) => {
                ledger.newest_first(slot).find(|record| !pending.contains(&record.id)).cloned()
            }
            Wanted::Named(id) => ledger.find(id).filter(|record| !pending.contains(&record.id)).cloned(),
        }
    }

    pub(super) fn held(&self) -> Option<Held> {
        let State { ledger, pending, .. } = &*self.state();
        let blobs = self.exchange.blobs();
        let here = |record: &&Record| !pending.contains(&record.id) && blobs.get(record.digest).is_some();
        ledger
            .newest_first(Slot::Global)
            .find(here)
            .map(|record| Held { id: record.id, digest: record.digest })
    }
}
