//! One write: hold it here, spread word of it, wait for enough nodes that hold it and accept it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::announce::Announcement;
use super::core::Core;
use super::core::State;
use super::messages::Heard;
use super::office::Office;
use crate::blob::transfer_timeout;
use crate::error::StoreError;
use crate::ledger::Record;
use crate::store::{Carrier, Checkpoint, CheckpointId, Digest, Epoch, Guarantee, NodeId, Receipt, Slot};
use crate::transport::{Class, Frame};
use crate::wire;

impl Core {
    /// Writes a checkpoint as its epoch's aggregator, or as the worker whose slot it is.
    pub(super) async fn put(
        self: &Arc<Self>,
        checkpoint: Checkpoint,
        carrier: Carrier,
    ) -> Result<Receipt, StoreError> {
        checkpoint.within_limits()?;
        let record = Record::from(&checkpoint);
        let announced = Announcement::from(&record);
        let (id, epoch) = (announced.id, announced.id.epoch);
        self.admit(&announced)?;
        self.archive.room().await;
        let parameters = checkpoint.parameters().clone();
        self.blobs.stage(announced.digest, parameters);
        self.learn(announced, Some(record.metadata), None);
        let timeout =
            Duration::from_millis(self.config.put_timeout_ms).max(transfer_timeout(announced.bytes));
        let deposed = self.changes.until(|| {
            let state = self.state();
            (state.office.in_force() != Some(epoch) || state.closed).then_some(state.closed)
        });
        tokio::select! {
            biased;
            receipt = self.hold_and_replicate(announced, carrier) => receipt,
            closed = deposed => Err(if closed {
                StoreError::Closed { reason: "while a write was under way".into() }
            } else {
                StoreError::Unavailable { reason: "the aggregator changed meanwhile".into() }
            }),
            () = tokio::time::sleep(timeout) => {
                let had = self.accepted(id).len();
                let reason = format!("{had} of {} holders within {timeout:?}", self.state().holders(&self.config));
                Err(StoreError::Unavailable { reason })
            }
        }
    }

    /// Checks who writes, and the order of the slot.
    fn admit(&self, announced: &Announcement) -> Result<(), StoreError> {
        let state = self.state();
        let (id, current) = (announced.id, state.office.in_force());
        if state.closed {
            return Err(StoreError::Closed { reason: "it was closed".into() });
        }
        if current != Some(id.epoch) {
            return Err(match current {
                Some(_) => StoreError::Fenced { epoch: id.epoch, current },
                None => StoreError::NotAggregator { current },
            });
        }
        let own_slot = matches!(id.slot, Slot::Worker { node, .. } if node == self.local);
        // The aggregator may write every slot, a worker its own. Who holds bytes tells the writer, so each writes by itself.
        if !own_slot && (id.epoch.node != self.local || matches!(id.slot, Slot::Worker { .. })) {
            return Err(StoreError::NotAggregator { current });
        }
        fenced(&state.office, id.epoch)?;
        match superseded_by(&state, announced) {
            Some(latest) => Err(StoreError::Superseded { id, latest }),
            None => Ok(()),
        }
    }

    /// The writer counts among the holders once a restart does not lose the checkpoint.
    async fn hold_and_replicate(
        self: &Arc<Self>,
        announced: Announcement,
        carrier: Carrier,
    ) -> Result<Receipt, StoreError> {
        let held = async {
            self.archive.flush().await?;
            self.state().catalogue.accepted_by(announced.id, announced.digest, self.local);
            self.changes.announce();
            Ok::<_, StoreError>(())
        };
        let ((), receipt) = futures_util::try_join!(held, self.replicate(announced, carrier))?;
        // Others may have been faster than the disk here.
        Ok(self.receipt(announced.id, announced.digest).unwrap_or(receipt))
    }

    fn accepted(&self, id: CheckpointId) -> BTreeSet<NodeId> {
        let state = self.state();
        let accepted = state.catalogue.find(id).map(|entry| &entry.accepted);
        accepted.map(|accepted| accepted & state.members.nodes()).unwrap_or_default()
    }

    /// The receipt of a checkpoint, once enough members hold it.
    fn receipt(&self, id: CheckpointId, digest: Digest) -> Option<Receipt> {
        let (accepted, holders) = {
            let state = self.state();
            let accepted = state.catalogue.find(id).map(|entry| &entry.accepted & state.members.nodes());
            (accepted?, state.holders(&self.config))
        };
        let guarantee = Guarantee::Holders { holders };
        let enough = accepted.len() >= holders as usize;
        enough.then(|| Receipt { id, digest, guarantee, holders: accepted.into_iter().collect() })
    }

    /// Spreads word of a checkpoint until enough nodes hold it.
    async fn replicate(
        self: &Arc<Self>,
        announced: Announcement,
        carrier: Carrier,
    ) -> Result<Receipt, StoreError> {
        let Announcement { id, digest, .. } = announced;
        let mut rumour = self.rumour(announced, carrier == Carrier::Caller);
        if id.epoch.node != self.local {
            self.ask_aggregator(&rumour, id.epoch).await?;
        }
        loop {
            let last_word = self.receipt(id, digest);
            // Those that have not answered are told again; gossip brings the news to whom nobody tells.
            self.spread(&rumour, &self.accepted(id));
            if let Some(receipt) = last_word {
                return Ok(receipt);
            }
            let enough = self.changes.until(|| self.receipt(id, digest));
            if let Ok(receipt) = tokio::time::timeout(self.config.interval(), enough).await {
                return Ok(receipt);
            }
            rumour.carried = false;
        }
    }

    /// A worker's write begins with its aggregator, which knows whether the epoch is still in force.
    async fn ask_aggregator(&self, rumour: &super::messages::Rumour, epoch: Epoch) -> Result<(), StoreError> {
        let frame = Frame::new(wire::GOSSIP_RUMOUR, wire::encode(rumour));
        let heard = loop {
            match self.transport.request(epoch.node, Class::Digest, frame.clone()).await {
                Ok(response) => break wire::decode::<Heard>(&response.head),
                Err(error) if Self::gone(&error) => tokio::time::sleep(self.config.interval()).await,
                Err(error) => return Err(StoreError::Unavailable { reason: error.to_string() }),
            }
        };
        match heard {
            Ok(Heard { fenced_by: None }) => Ok(()),
            Ok(Heard { fenced_by }) => Err(StoreError::Fenced { epoch, current: fenced_by }),
            Err(refusal) => Err(StoreError::Unavailable { reason: refusal.0 }),
        }
    }
}

/// A node that has promised a later epoch writes nothing in this one.
fn fenced(office: &Office, epoch: Epoch) -> Result<(), StoreError> {
    match office.fences(epoch) {
        Some(_) => Err(StoreError::Fenced { epoch, current: office.in_force() }),
        None => Ok(()),
    }
}

/// The checkpoint that this one would have to be newer than, and is not. What an earlier epoch left counts as far as this
/// epoch continues from it.
fn superseded_by(state: &State, announced: &Announcement) -> Option<CheckpointId> {
    let id = announced.id;
    let place = (id.round, id.phase);
    let mut known = state.catalogue.newest_first(id.slot).map(|entry| &entry.announced);
    let newest = known.find(|other| other.id.epoch <= id.epoch)?;
    if newest.id.epoch == id.epoch {
        let same = state.catalogue.find(id).is_some_and(|entry| entry.announced == *announced);
        return Some(newest.id).filter(|newest| !same && place <= (newest.round, newest.phase));
    }
    let before = if id.slot == Slot::Global { state.base? } else { newest.id };
    let later = place > (before.round, before.phase);
    // Parts of a phase that the epoch before left unfinished are written again.
    let again = id.slot != Slot::Global && place == (before.round, before.phase);
    (!later && !again).then_some(before)
}
