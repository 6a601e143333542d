//! A new cluster from one node's storage, when too few of the old one are left for good.
//!
//! Every node of the new cluster is given the same state, so that none of them can aggregate without it. Whatever was
//! acknowledged without the survivor is lost; that cannot be seen from here, so somebody has to accept it. This module
//! deliberately does not decide that, nor does it look at other nodes.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::archive::{FACTS, LEDGER, Row};
use crate::members;
use crate::raft;
use crate::storage::{Batch, Shelf, Storage, StorageError};
use crate::store::{CheckpointId, Digest, Held, NodeId, Slot};

/// What one node's storage holds of its cluster.
#[derive(Debug, Clone)]
pub enum Survivor {
    /// Of a Raft group: its log up to some entry.
    Raft(raft::Survivor),
    /// Of a backend without a log: the checkpoints that it held.
    Holder(Holder),
}

/// What a node held under a backend without a log (gossip, primary and backups, no replication).
#[derive(Debug, Clone)]
pub struct Holder {
    /// Checkpoints whose bytes are here, by slot, oldest first.
    rows: Vec<Row>,
    bytes: BTreeMap<Digest, Bytes>,
    lacking: Vec<CheckpointId>,
    /// What was promised, and which epoch was the last: as it is, so that later epochs are later for everybody.
    facts: Vec<(Bytes, Bytes)>,
}

impl Survivor {
    /// Reads what `storage` holds, and writes nothing; `None` if it never belonged to a cluster.
    ///
    /// # Errors
    /// [`StorageError`]: a content that makes no sense.
    pub async fn read(storage: &Storage) -> Result<Option<Self>, StorageError> {
        if let Some(survivor) = raft::Survivor::read(storage).await? {
            return Ok(Some(Self::Raft(survivor)));
        }
        Ok(Holder::read(storage)?.map(Self::Holder))
    }

    /// Of two survivors of a cluster, the one where this is greater has seen more: term and index of the last log entry, or
    /// counter of the epoch and round of the newest checkpoint.
    #[must_use]
    pub fn position(&self) -> (u64, u64) {
        match self {
            Self::Raft(survivor) => survivor.position(),
            Self::Holder(_) => self.newest().map_or((0, 0), |held| (held.id.epoch.counter, held.id.round)),
        }
    }

    /// The newest checkpoint of the job's state that is here with its bytes.
    #[must_use]
    pub fn newest(&self) -> Option<Held> {
        match self {
            Self::Raft(survivor) => survivor.newest(),
            Self::Holder(holder) => {
                let (_, records) = holder.rows.iter().find(|(slot, _)| *slot == Slot::Global)?;
                records.back().map(|record| Held { id: record.id, digest: record.digest })
            }
        }
    }

    /// Checkpoints that it knows of and whose bytes are not here: a new cluster does without them.
    #[must_use]
    pub fn lacking(&self) -> &[CheckpointId] {
        match self {
            Self::Raft(survivor) => survivor.lacking(),
            Self::Holder(holder) => &holder.lacking,
        }
    }

    /// Writes to the empty `storage` what `node` of a new cluster begins with, and waits until it is on disk.
    ///
    /// # Errors
    /// [`StorageError`]: it is not empty, or cannot be written.
    pub async fn seed(&self, storage: &Storage, node: NodeId) -> Result<(), StorageError> {
        match self {
            Self::Raft(survivor) => survivor.seed(storage, node).await,
            Self::Holder(holder) => holder.seed(storage).await,
        }
    }
}

impl Holder {
    fn read(storage: &Storage) -> Result<Option<Self>, StorageError> {
        let (_, bytes) = Shelf::open(storage.clone())?;
        let facts = storage.load(FACTS)?;
        let (mut rows, mut lacking) = (Vec::<Row>::new(), Vec::new());
        for (slot, records) in storage.load(LEDGER)? {
            let (slot, mut records): Row = (storage.decode(&slot)?, storage.decode(&records)?);
            lacking.extend(
                records.iter().filter(|record| !bytes.contains_key(&record.digest)).map(|record| record.id),
            );
            records.retain(|record| bytes.contains_key(&record.digest));
            rows.push((slot, records));
        }
        let empty = rows.is_empty() && facts.is_empty();
        Ok((!empty).then_some(Self { rows, bytes, lacking, facts }))
    }

    async fn seed(&self, storage: &Storage) -> Result<(), StorageError> {
        if !storage.load(LEDGER)?.is_empty() || !storage.load(FACTS)?.is_empty() {
            return Err(storage.damaged("it should be empty, and holds a node's state".into()));
        }
        let (shelf, _) = Shelf::open(storage.clone())?;
        for record in self.rows.iter().flat_map(|(_, records)| records) {
            if let Some(bytes) = self.bytes.get(&record.digest) {
                storage.room().await;
                shelf.keep(record.digest, bytes);
            }
        }
        let mut batch = Batch::default();
        for (slot, records) in self.rows.iter().filter(|(_, records)| !records.is_empty()) {
            batch.put(LEDGER, Storage::encode(slot), Storage::encode(records));
        }
        storage.write(batch);
        let mut facts = Batch::default();
        // Who belonged to the old cluster does not belong to the new one by that.
        let others = |(name, _): &&(Bytes, Bytes)| name[..] != *members::FACT.as_bytes();
        for (name, fact) in self.facts.iter().filter(others) {
            facts.put(FACTS, name.clone(), fact.clone());
        }
        storage.write_first(facts);
        storage.flush().await
    }
}
