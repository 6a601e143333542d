//! A new group from one node's storage, when the majority of the old one is gone for good.
//!
//! What the node had applied is taken, and the entries that follow in its log are applied too: they may have been
//! acknowledged, and who wrote one that was not was told that its outcome is unknown. Whatever was acknowledged without
//! this node is lost; that cannot be seen from here, so somebody has to accept it. This module deliberately does not decide
//! that, nor does it look at other nodes.
//!
//! Every node of the new group is given the same state, so that none of them can be elected without it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use openraft::RaftLogReader;
use tokio::sync::mpsc;

use super::log::{PURGED, RaftLog, STATE, VOTE};
use super::machine::{APPLIED, LEDGER, Machine};
use super::types::{LogId, StoredMembership, Vote};
use crate::blob::Blobs;
use crate::event::Silent;
use crate::ledger::Record;
use crate::storage::{Batch, Shelf, Storage, StorageError};
use crate::store::{CheckpointId, DEFAULT_RETAINED, Digest, Held, NodeId, Slot};

/// What one node's storage holds of its group.
#[derive(Debug, Clone)]
pub struct Survivor {
    applied: LogId,
    membership: StoredMembership,
    inline: bool,
    /// The newest term the node has seen.
    term: u64,
    /// Acknowledged checkpoints whose bytes are here, oldest first.
    slots: BTreeMap<Slot, VecDeque<Record>>,
    bytes: BTreeMap<Digest, Bytes>,
    lacking: Vec<CheckpointId>,
}

impl Survivor {
    /// Reads what `storage` holds, and writes nothing; `None` if it never belonged to a group.
    ///
    /// # Errors
    /// [`StorageError`]: a content that makes no sense.
    pub async fn read(storage: &Storage) -> Result<Option<Self>, StorageError> {
        let (shelf, found) = Shelf::open(storage.clone())?;
        let mut log = RaftLog::open(shelf, &found)?;
        let (blobs, (missing, _missed)) = (Blobs::default(), mpsc::unbounded_channel());
        for (digest, bytes) in &found {
            blobs.stage(*digest, bytes.clone());
        }
        let machine = Machine::new(DEFAULT_RETAINED, blobs, Arc::new(Silent), missing);
        machine.load(storage, DEFAULT_RETAINED)?;
        let next = machine.applied().0.map_or(0, |applied| applied.index.saturating_add(1));
        let rest = log.try_get_log_entries(next..).await;
        for entry in rest.map_err(|error| storage.damaged(error.to_string()))? {
            machine.apply_entry(entry);
        }
        let (applied, membership, inline) = machine.applied();
        let Some(applied) = applied else { return Ok(None) };
        let term = log.term().max(applied.committed_leader_id().term);
        let (mut slots, mut lacking) = (BTreeMap::<Slot, VecDeque<Record>>::new(), Vec::new());
        let mut bytes = BTreeMap::new();
        machine.read(|ledger| {
            for record in ledger.records() {
                match found.get(&record.digest) {
                    Some(here) => {
                        bytes.insert(record.digest, here.clone());
                        slots.entry(record.id.slot).or_default().push_back(record.clone());
                    }
                    None => lacking.push(record.id),
                }
            }
        });
        Ok(Some(Self { applied, membership, inline, term, slots, bytes, lacking }))
    }

    /// Term and index of its last log entry: of two survivors, the one where these are greater has seen more.
    #[must_use]
    pub fn position(&self) -> (u64, u64) {
        (self.applied.committed_leader_id().term, self.applied.index)
    }

    /// The newest term the node has seen; epochs of the new group are later.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Who votes, in ascending order.
    #[must_use]
    pub fn voters(&self) -> Vec<NodeId> {
        self.membership.membership().voter_ids().map(NodeId).collect()
    }

    /// The newest checkpoint of the job's state that is here with its bytes.
    #[must_use]
    pub fn newest(&self) -> Option<Held> {
        let record = self.slots.get(&Slot::Global)?.back()?;
        Some(Held { id: record.id, digest: record.digest })
    }

    /// Acknowledged checkpoints whose bytes are not here: a new group does without them.
    #[must_use]
    pub fn lacking(&self) -> &[CheckpointId] {
        &self.lacking
    }

    /// Writes to the empty `storage` what `node` of a new group begins with, and waits until it is on disk.
    ///
    /// # Errors
    /// [`StorageError`]: it is not empty, or cannot be written.
    pub async fn seed(&self, storage: &Storage, node: NodeId) -> Result<(), StorageError> {
        if !storage.load(STATE)?.is_empty() || !storage.load(APPLIED)?.is_empty() {
            return Err(storage.damaged("it should be empty, and holds a group's state".into()));
        }
        let (shelf, _) = Shelf::open(storage.clone())?;
        for (digest, bytes) in &self.bytes {
            storage.room().await;
            shelf.keep(*digest, bytes);
        }
        let mut batch = Batch::default();
        for (slot, records) in &self.slots {
            batch.put(LEDGER, Storage::encode(slot), Storage::encode(records));
        }
        let applied = Storage::encode(&(Some(self.applied), &self.membership, self.inline));
        batch.put(APPLIED, APPLIED.as_bytes(), applied);
        batch.put(STATE, PURGED, Storage::encode(&self.applied));
        // As if it had stood in vain: whoever is elected is elected in a later term than any of the old group's.
        batch.put(STATE, VOTE, Storage::encode(&Vote::new(self.term, node.0)));
        storage.write(batch);
        storage.flush().await
    }
}
