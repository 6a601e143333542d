//! What a database's bytes are on: a file whose space is taken when it grows, or whatever a test gives.
//!
//! A file that only says that it is longer has no room yet, so that a full disk would show in the middle of a write. Here it
//! shows when the file grows, before anything is written, and what is free inside of the file can always be written. Whether a
//! database is well is for redb to know.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Bound;
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// Clones are the same medium: it outlives a database that has to be opened again.
#[derive(Debug, Clone)]
pub(super) struct Medium {
    backend: Arc<dyn StorageBackend>,
    /// The same file, to take space in it.
    file: Option<Arc<File>>,
}

impl Medium {
    pub(super) fn of_file(file: File) -> Result<Self, DatabaseError> {
        let space = Arc::new(file.try_clone().map_err(redb::StorageError::from)?);
        Ok(Self { backend: Arc::new(FileBackend::new(file)?), file: Some(space) })
    }

    pub(super) fn of(backend: impl StorageBackend) -> Self {
        Self { backend: Arc::new(backend), file: None }
    }
}

impl StorageBackend for Medium {
    fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let Some(file) = self.file.as_ref().filter(|_| self.backend.len().is_ok_and(|now| len > now)) else {
            return self.backend.set_len(len);
        };
        match fallocate(file, FallocateFlags::empty(), 0, len) {
            // A file system that takes no space in advance.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.backend.set_len(len),
            taken => Ok(taken?),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        // What was written may be lost, whatever the reason: this is no error that passes.
        self.backend.sync_data().map_err(|error| match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => io::Error::other(error),
            _ => error,
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.backend.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.query_lock_range(start, end)
    }
}
