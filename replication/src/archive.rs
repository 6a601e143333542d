//! What is acknowledged on one node, with its bytes, across a restart: for backends that keep one ledger.
//!
//! A slot's checkpoints are one row, written whenever they change; what they refer to is on the shelf before. Without a
//! storage nothing is kept. Deliberately knows neither the order rules nor when something has to be durable.

use std::collections::VecDeque;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::blob::Blobs;
use crate::ledger::{Ledger, Record};
use crate::storage::{Batch, Shelf, Storage, StorageError};
use crate::store::{NodeId, Slot};

/// A slot's checkpoints, by slot.
const LEDGER: &str = "ledger";
/// Small facts beside them, by name.
const FACTS: &str = "facts";

/// Where a node's ledger is kept.
#[derive(Debug, Clone)]
pub(crate) struct Archive(Option<Storage>);

/// What a node finds when it starts.
pub(crate) struct Opened {
    pub(crate) archive: Archive,
    pub(crate) ledger: Ledger,
    /// The bytes that the ledger refers to, as far as they were here.
    pub(crate) blobs: Blobs,
}

impl Archive {
    /// Opens what `node` of `cluster` kept in `storage`; nothing without one.
    ///
    /// # Errors
    /// [`StorageError`]: somebody else's file, or rows that make no sense.
    pub(crate) async fn open(
        storage: Option<Storage>,
        node: NodeId,
        cluster: &str,
        retained: usize,
    ) -> Result<Opened, StorageError> {
        let Some(storage) = storage else {
            let ledger = Ledger::new(retained);
            return Ok(Opened { archive: Self(None), ledger, blobs: Blobs::default() });
        };
        storage.claim(node, cluster).await?;
        let (shelf, mut found) = Shelf::open(storage.clone())?;
        let mut rows: Vec<(Slot, VecDeque<Record>)> = Vec::new();
        for (slot, records) in storage.load(LEDGER)? {
            rows.push((storage.decode(&slot)?, storage.decode(&records)?));
        }
        let ledger = Ledger::of_rows(retained, rows);
        let blobs = Blobs::on_shelf(shelf.clone());
        for record in ledger.records() {
            blobs.refer(record.digest);
            if let Some(bytes) = found.remove(&record.digest) {
                blobs.stage(record.digest, bytes);
            }
        }
        shelf.sweep();
        Ok(Opened { archive: Self(Some(storage)), ledger, blobs })
    }

    /// Whether anything is kept.
    pub(crate) fn is_durable(&self) -> bool {
        self.0.is_some()
    }

    /// Writes slots as `ledger` has them now.
    pub(crate) fn save(&self, ledger: &Ledger, slots: impl IntoIterator<Item = Slot>) {
        let Some(storage) = &self.0 else { return };
        let mut batch = Batch::default();
        for slot in slots {
            let key = Storage::encode(&slot);
            match ledger.row(slot) {
                Some(records) => batch.put(LEDGER, key, Storage::encode(records)),
                None => batch.remove(LEDGER, key),
            }
        }
        storage.write(batch);
    }

    /// Writes a fact.
    pub(crate) fn note<T: Serialize>(&self, name: &'static str, fact: &T) {
        let Some(storage) = &self.0 else { return };
        let mut batch = Batch::default();
        batch.put(FACTS, name.as_bytes(), Storage::encode(fact));
        storage.write(batch);
    }

    /// A fact that was written.
    ///
    /// # Errors
    /// [`StorageError`]: it cannot be read, or is something else.
    pub(crate) fn fact<T: DeserializeOwned>(&self, name: &'static str) -> Result<Option<T>, StorageError> {
        let Some(storage) = &self.0 else { return Ok(None) };
        let found = storage.load(FACTS)?.into_iter().find(|(key, _)| key[..] == *name.as_bytes());
        found.map(|(_, fact)| storage.decode(&fact)).transpose()
    }

    /// An error that says that what is kept makes no sense.
    pub(crate) fn damaged(&self, reason: String) -> StorageError {
        match &self.0 {
            Some(storage) => storage.damaged(reason),
            None => StorageError::Damaged { file: "memory".into(), reason },
        }
    }

    /// Waits until everything written before this call is on disk, if there is one.
    ///
    /// # Errors
    /// [`StorageError`]; it fails for good.
    pub(crate) async fn flush(&self) -> Result<(), StorageError> {
        match &self.0 {
            Some(storage) => storage.flush().await,
            None => Ok(()),
        }
    }

    /// Writes what is queued and releases the file.
    pub(crate) async fn close(&self) {
        if let Some(storage) = &self.0 {
            storage.close().await;
        }
    }
}
