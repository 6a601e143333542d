//! What one node holds, with its bytes and a few facts, across a restart: for backends without a log.
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
pub(crate) const LEDGER: &str = "ledger";
/// Small facts beside them, by name.
pub(crate) const FACTS: &str = "facts";

/// A slot's checkpoints, oldest first.
pub(crate) type Row = (Slot, VecDeque<Record>);

/// Where a node keeps what it holds.
#[derive(Debug, Clone)]
pub(crate) struct Archive(Option<Storage>);

/// What a node finds when it starts.
pub(crate) struct Opened {
    pub(crate) archive: Archive,
    pub(crate) rows: Vec<Row>,
    /// The bytes that the rows refer to, as far as they were here.
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
    ) -> Result<Opened, StorageError> {
        let Some(storage) = storage else {
            return Ok(Opened { archive: Self(None), rows: Vec::new(), blobs: Blobs::default() });
        };
        storage.claim(node, cluster).await?;
        let (shelf, mut found) = Shelf::open(storage.clone())?;
        let rows = Self::rows(&storage)?;
        let blobs = Blobs::on_shelf(shelf.clone());
        for record in rows.iter().flat_map(|(_, records)| records) {
            blobs.refer(record.digest);
            if let Some(bytes) = found.remove(&record.digest) {
                blobs.stage(record.digest, bytes);
            }
        }
        shelf.sweep();
        Ok(Opened { archive: Self(Some(storage)), rows, blobs })
    }

    fn rows(storage: &Storage) -> Result<Vec<Row>, StorageError> {
        let rows = storage.load(LEDGER)?.into_iter();
        rows.map(|(slot, records)| Ok((storage.decode(&slot)?, storage.decode(&records)?))).collect()
    }

    /// Whether anything is kept.
    pub(crate) fn is_durable(&self) -> bool {
        self.0.is_some()
    }

    /// Writes what a slot has now.
    pub(crate) fn keep(&self, slot: Slot, records: Option<&VecDeque<Record>>) {
        let Some(storage) = &self.0 else { return };
        let mut batch = Batch::default();
        let key = Storage::encode(&slot);
        match records {
            Some(records) => batch.put(LEDGER, key, Storage::encode(records)),
            None => batch.remove(LEDGER, key),
        }
        storage.write(batch);
    }

    /// Writes slots as `ledger` has them now.
    pub(crate) fn save(&self, ledger: &Ledger, slots: impl IntoIterator<Item = Slot>) {
        if self.is_durable() {
            slots.into_iter().for_each(|slot| self.keep(slot, ledger.row(slot)));
        }
    }

    /// Writes a fact. On a full disk it often still fits.
    pub(crate) fn note<T: Serialize>(&self, name: &'static str, fact: &T) {
        let Some(storage) = &self.0 else { return };
        let mut batch = Batch::default();
        batch.put(FACTS, name.as_bytes(), Storage::encode(fact));
        storage.write_first(batch);
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

    /// Waits while too many bytes wait for the disk.
    pub(crate) async fn room(&self) {
        if let Some(storage) = &self.0 {
            storage.room().await;
        }
    }

    /// Waits until everything written before this call is on disk, if there is one.
    ///
    /// # Errors
    /// [`StorageError`]: it is not.
    pub(crate) async fn flush(&self) -> Result<(), StorageError> {
        match &self.0 {
            Some(storage) => storage.flush().await,
            None => Ok(()),
        }
    }

    /// Waits until every fact noted before this call is on disk, if there is one.
    ///
    /// # Errors
    /// [`StorageError`]: it is not.
    pub(crate) async fn flush_facts(&self) -> Result<(), StorageError> {
        match &self.0 {
            Some(storage) => storage.flush_first().await,
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
