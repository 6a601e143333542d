//! Bytes by digest on disk. A row stays as long as somebody refers to it; what nobody refers to is removed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{Batch, Storage, StorageError};
use crate::store::{Blob, Digest};

const BLOBS: &str = "blobs";

/// The bytes on disk, and how many refer to each. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Shelf {
    storage: Storage,
    references: Arc<Mutex<BTreeMap<Digest, u32>>>,
}

impl Shelf {
    /// The bytes that are there, each verified against its digest; nobody refers to them yet.
    pub(crate) fn open(storage: Storage) -> Result<(Self, BTreeMap<Digest, Bytes>), StorageError> {
        let mut found = BTreeMap::new();
        for (key, bytes) in storage.load(BLOBS)? {
            let digest: Digest = storage.decode(&key)?;
            if Blob::verified(digest, bytes.clone()).is_none() {
                return Err(storage.damaged(format!("bytes do not match digest {digest}")));
            }
            found.insert(digest, bytes);
        }
        let references = found.keys().map(|digest| (*digest, 0)).collect();
        Ok((Self { storage, references: Arc::new(Mutex::new(references)) }, found))
    }

    fn references(&self) -> MutexGuard<'_, BTreeMap<Digest, u32>> {
        self.references.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the rows are written to.
    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Adds a reference; bytes that are not on the shelf are written.
    pub(crate) fn keep(&self, digest: Digest, bytes: &Bytes) {
        let mut references = self.references();
        *references.entry(digest).or_insert_with(|| {
            let mut batch = Batch::default();
            batch.put(BLOBS, Storage::encode(&digest), bytes.clone());
            self.storage.write(batch);
            0
        }) += 1;
    }

    /// Drops a reference; bytes without any are removed.
    pub(crate) fn release(&self, digest: Digest) {
        let mut references = self.references();
        if let Some(count) = references.get_mut(&digest) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                references.remove(&digest);
                self.remove([digest]);
            }
        }
    }

    /// Removes what nobody refers to.
    pub(crate) fn sweep(&self) {
        let mut references = self.references();
        let orphans: Vec<Digest> =
            references.iter().filter(|(_, count)| **count == 0).map(|(digest, _)| *digest).collect();
        references.retain(|_, count| *count > 0);
        self.remove(orphans);
    }

    fn remove(&self, digests: impl IntoIterator<Item = Digest>) {
        let mut batch = Batch::default();
        for digest in digests {
            batch.remove(BLOBS, Storage::encode(&digest));
        }
        self.storage.write(batch);
    }
}
