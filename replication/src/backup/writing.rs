//! One write on the aggregator: its bytes to as many backups as promised, in the order of succession.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::network::{Order, Source};
use super::node::Node;
use crate::error::StoreError;
use crate::ledger::{Admission, Record};
use crate::store::{Carrier, Checkpoint, Epoch, Guarantee, NodeId, Receipt, Slot};
use crate::transport::{Class, Frame};
use crate::wire;

/// A backup that has not answered after the heartbeat interval times this, and what the bytes need, is not waited for
/// alone.
const HEDGE_HEARTBEATS: u64 = 4;

/// A fair link, in bytes per millisecond.
const FAIR_BYTES_PER_MS: u64 = 2000;

impl Node {
    /// How long a backup waits for bytes that somebody else carries, before it asks for them.
    pub(super) fn carried_patience(&self) -> Duration {
        Duration::from_millis(self.config.put_timeout_ms / 2)
    }

    /// Acknowledges a checkpoint that `from` wrote.
    pub(super) async fn put(
        &self,
        checkpoint: Checkpoint,
        from: NodeId,
        carrier: Carrier,
    ) -> Result<Receipt, StoreError> {
        checkpoint.within_limits()?;
        let record = Record::from(&checkpoint);
        let (id, epoch) = (record.id, record.id.epoch);
        self.archive.room().await;
        let source = match (self.begin(&checkpoint, from)?, carrier) {
            (false, _) => Source::There,
            (true, Carrier::Store) => Source::Here,
            (true, Carrier::Caller) => Source::Carried,
        };
        let mut aggregator = self.aggregator.subscribe();
        let timeout = self.put_timeout(record.bytes);
        let digest = record.digest;
        let late = |reason: String| Err(StoreError::Unavailable { reason });
        let holders = tokio::select! {
            biased;
            holders = self.hold_and_spread(epoch, &checkpoint, source) => holders?,
            _ = aggregator.wait_for(|now| *now != Some(epoch)) => {
                return late("this node lost its office meanwhile".into());
            }
            () = tokio::time::sleep(timeout) => {
                return late(format!("fewer than {} backups within {timeout:?}", self.config.backups));
            }
        };
        let mut state = self.state();
        if state.closed || state.resigning || state.succession.epoch() != Some(epoch) {
            return late("this node lost its office meanwhile".into());
        }
        // What counts on a node that leaves is brought to others first: the caller tries again.
        let stay = holders.iter().filter(|node| Some(**node) != state.leaving).count();
        if stay <= self.config.backups as usize {
            return late("one of the backups leaves".into());
        }
        state.pending.remove(&id);
        let guarantee = Guarantee::Holders { holders: holders.len() as u32 };
        Ok(Receipt { id, digest, guarantee, holders: holders.into_iter().collect() })
    }

    /// The aggregator counts among the holders once a restart does not lose the checkpoint.
    async fn hold_and_spread(
        &self,
        epoch: Epoch,
        checkpoint: &Checkpoint,
        source: Source,
    ) -> Result<BTreeSet<NodeId>, StoreError> {
        let held = async { Ok::<_, StoreError>(self.archive.flush().await?) };
        let ((), holders) = futures_util::try_join!(held, self.spread(epoch, checkpoint, source, false))?;
        Ok(holders)
    }

    /// Checks whether `from` may write this now, and keeps it as a write under way; false if it is acknowledged already.
    fn begin(&self, checkpoint: &Checkpoint, from: NodeId) -> Result<bool, StoreError> {
        let id = checkpoint.id();
        let mut state = self.state();
        if state.closed {
            return Err(StoreError::Closed { reason: "it was closed".into() });
        }
        let current = state.succession.epoch();
        if current != Some(id.epoch) {
            return Err(match current {
                Some(_) => StoreError::Fenced { epoch: id.epoch, current },
                None => StoreError::NotAggregator { current },
            });
        }
        let own_slot = matches!(id.slot, Slot::Worker { node, .. } if node == from);
        if !state.succession.leads() || (from != id.epoch.node && !own_slot) {
            return Err(StoreError::NotAggregator { current });
        }
        if state.resigning {
            return Err(StoreError::Unavailable { reason: "this node is handing over".into() });
        }
        let record = Record::from(checkpoint);
        let (digest, bytes) = (record.digest, record.bytes);
        let (admission, released) = state.ledger.insert(record);
        admission.into_result(id)?;
        if admission == Admission::New {
            state.pending.insert(id);
            self.exchange.blobs().stage(digest, checkpoint.parameters().clone());
            self.exchange.blobs().refer(digest);
            self.archive.save(&state.ledger, [id.slot]);
            self.observer.observe(crate::StoreEvent::Applied { id, digest, bytes });
        }
        // After the rows that referred to them.
        for digest in released {
            self.exchange.blobs().release(digest);
        }
        Ok(state.pending.contains(&id))
    }

    /// Has the checkpoint kept by the first nodes in the order of succession that do; returns all who have it. Comes back
    /// to those who did not answer for as long as the caller waits.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if a backup follows a higher epoch.
    pub(super) async fn spread(
        &self,
        epoch: Epoch,
        checkpoint: &Checkpoint,
        source: Source,
        fills: bool,
    ) -> Result<BTreeSet<NodeId>, StoreError> {
        let wanted = self.config.backups as usize + 1;
        let mut holders = BTreeSet::from([self.local()]);
        let mut patience = Duration::from_millis(
            self.config.heartbeat_ms * HEDGE_HEARTBEATS
                + checkpoint.parameters().len() as u64 / FAIR_BYTES_PER_MS,
        );
        if source == Source::Carried {
            patience += self.carried_patience();
        }
        loop {
            let connected = self.connected();
            let (candidates, leaving) = {
                let state = self.state();
                (state.succession.candidates(&connected), state.leaving)
            };
            let stays = |node: &NodeId| Some(*node) != leaving;
            holders.retain(stays);
            let mut next = candidates
                .into_iter()
                .filter(|node| !holders.contains(node) && stays(node))
                .collect::<Vec<_>>()
                .into_iter();
            let mut asked = FuturesUnordered::new();
            let mut due = wanted - holders.len();
            while holders.len() < wanted {
                asked.extend(
                    next.by_ref().take(due).map(|node| self.ask(node, epoch, checkpoint, (source, fills))),
                );
                if asked.is_empty() {
                    break;
                }
                due = match tokio::time::timeout(patience, asked.next()).await {
                    Ok(Some((node, Ok(())))) => {
                        holders.insert(node);
                        0
                    }
                    Ok(Some((_, Err(fenced @ StoreError::Fenced { .. })))) => return Err(fenced),
                    // It failed, or is too slow: the next in its place.
                    Ok(_) | Err(_) => 1,
                };
            }
            if holders.len() >= wanted {
                return Ok(holders);
            }
            tokio::time::sleep(Duration::from_millis(self.config.heartbeat_ms)).await;
        }
    }

    async fn ask(
        &self,
        backup: NodeId,
        epoch: Epoch,
        checkpoint: &Checkpoint,
        (source, fills): (Source, bool),
    ) -> (NodeId, Result<(), StoreError>) {
        let order = Order { epoch, record: Record::from(checkpoint), source, fills };
        let mut frame = Frame::new(wire::BACKUP_STORE, wire::encode(&order));
        let mut class = Class::Digest;
        if source == Source::Here {
            frame = frame.with_segment(checkpoint.parameters().clone());
            class = Class::Blob;
        }
        let unavailable = |reason: String| StoreError::Unavailable { reason };
        let answer = match self.transport.request(backup, class, frame).await {
            Ok(response) => wire::decode::<Result<(), StoreError>>(&response.head)
                .map_err(|refusal| unavailable(refusal.0))
                .flatten(),
            Err(error) => Err(unavailable(error.to_string())),
        };
        if let Err(StoreError::Fenced { current: Some(current), .. }) = &answer {
            // An error says that a still higher one is known here.
            let _ = self.hear(*current);
        }
        (backup, answer)
    }
}
