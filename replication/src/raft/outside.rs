//! Reads on a node that holds nothing: it asks the leader, or another voter if the leader is gone.

use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use serde::{Deserialize, Serialize};

use super::proposer::Proposer;
use crate::blob::transfer_timeout;
use crate::error::StoreError;
use crate::event::StoreEvent;
use crate::ledger::Record;
use crate::store::{Checkpoint, CheckpointId, MAX_PARAMETER_BYTES, NodeId, Slot};
use crate::transport::{Class, Frame, Refusal};
use crate::wire;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wanted {
    /// The newest checkpoint of a slot.
    Newest(Slot),
    /// A checkpoint by name.
    Named(CheckpointId),
}

impl Wanted {
    /// Whether `found` may be returned on a node that returned `newest` before: reads never go back.
    fn is_met_by(self, found: Option<CheckpointId>, newest: Option<CheckpointId>) -> bool {
        match self {
            Self::Newest(_) => found >= newest,
            Self::Named(id) => found.is_none_or(|found| found == id),
        }
    }
}

impl Proposer {
    /// Asks voters, the leader first, the next one when one refuses, or takes as long as it takes to declare it dead.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if nobody has an answer that is not older than `newest`.
    pub(crate) async fn ask(
        &self,
        wanted: Wanted,
        newest: Option<CheckpointId>,
    ) -> Result<Option<Checkpoint>, StoreError> {
        let connected = self.transport.connected().borrow().clone();
        let leader = self.aggregator.borrow().map(|epoch| epoch.node);
        let mut voters: Vec<NodeId> =
            self.standing.voters().into_iter().filter(|voter| Some(*voter) != leader).collect();
        voters.splice(0..0, leader);
        voters.retain(|voter| connected.contains(voter));
        let mut next = voters.into_iter();
        let mut asked = FuturesUnordered::new();
        let patience = Duration::from_millis(self.config.window.to_ms);
        loop {
            let more = next.next().map(|voter| asked.push(self.ask_one(voter, wanted)));
            if more.is_none() && asked.is_empty() {
                return Err(StoreError::Unavailable { reason: "no voter answers a read".into() });
            }
            let answer = match more {
                Some(()) => tokio::time::timeout(patience, asked.next()).await.ok().flatten(),
                None => asked.next().await,
            };
            if let Some(Some(found)) = answer
                && wanted.is_met_by(found.as_ref().map(Checkpoint::id), newest)
            {
                return Ok(found);
            }
        }
    }

    async fn ask_one(&self, voter: NodeId, wanted: Wanted) -> Option<Option<Checkpoint>> {
        let request =
            self.transport.request(voter, Class::Blob, Frame::new(wire::READ, wire::encode(&wanted)));
        // Its size is not known here.
        let answer = tokio::time::timeout(transfer_timeout(MAX_PARAMETER_BYTES), request).await.ok()?.ok()?;
        let record: Option<Record> = wire::decode(&answer.head).ok()?;
        let Some(record) = record else { return Some(None) };
        match Checkpoint::verified(record.id, record.digest, answer.into_body(), record.metadata, voter) {
            Ok(checkpoint) => Some(Some(checkpoint)),
            Err(_) => {
                self.observer.observe(StoreEvent::CorruptBlob { from: voter, digest: record.digest });
                None
            }
        }
    }

    /// What is acknowledged here.
    pub(crate) fn find(&self, wanted: Wanted) -> Option<Record> {
        self.machine.read(|ledger| match wanted {
            Wanted::Newest(slot) => ledger.newest(slot).cloned(),
            Wanted::Named(id) => ledger.find(id).cloned(),
        })
    }

    /// Answers a read of a node outside of the group.
    pub(crate) async fn on_read(&self, request: &Frame) -> Result<Frame, Refusal> {
        let wanted: Wanted = wire::decode(&request.head)?;
        if !self.standing.votes() {
            return Err(Refusal("this node does not vote".into()));
        }
        let record = self.find(wanted);
        let head = wire::encode(&record);
        let answer = Frame::new(wire::READ, head);
        match record {
            None => Ok(answer),
            Some(record) => {
                let bytes = self.bytes(&record).await.map_err(|error| Refusal(error.to_string()))?;
                Ok(answer.with_segment(bytes))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Epoch, Phase};

    #[test]
    fn reads_never_go_back() {
        let id = |round| CheckpointId {
            epoch: Epoch { counter: 1, node: NodeId(1) },
            round,
            phase: Phase::AggregateFit,
            slot: Slot::Global,
        };
        assert!(Wanted::Newest(Slot::Global).is_met_by(None, None));
        assert!(Wanted::Newest(Slot::Global).is_met_by(Some(id(2)), Some(id(2))));
        assert!(!Wanted::Newest(Slot::Global).is_met_by(Some(id(1)), Some(id(2))));
        assert!(!Wanted::Newest(Slot::Global).is_met_by(None, Some(id(2))));
        assert!(Wanted::Named(id(1)).is_met_by(Some(id(1)), Some(id(2))));
        assert!(!Wanted::Named(id(1)).is_met_by(Some(id(2)), None));
    }
}
