//! The order of writes, and who commits them: a thread of its own, or whoever asks.
//!
//! Writes queue up and are committed together in one transaction (group commit), so that the file always holds a prefix
//! of what was written, and any number of waiters share one fsync.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::database::{Changes, Database};
use super::error::StorageError;

/// Bytes that may wait for the disk before [`Writer::room`] makes those wait who can.
const MAX_QUEUED_BYTES: usize = 16 * 1024 * 1024;

/// From this many bytes on they are written without anybody having asked.
const UNASKED_BYTES: usize = 4 * 1024 * 1024;

/// What a row costs beside its bytes.
const ROW_BYTES: usize = 64;

/// Told of the end of a flush.
pub(super) type Done = Box<dyn FnOnce(Result<(), StorageError>) + Send>;

/// Told that the file is released.
pub(super) type Released = Box<dyn FnOnce() + Send>;

/// Who commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// A thread, so that nobody else waits for the disk.
    Thread,
    /// Whoever flushes: no thread, so that a simulation stays reproducible.
    Inline,
}

#[derive(Default)]
struct Queue {
    changes: Changes,
    bytes: usize,
    waiters: Vec<Done>,
    /// Why nothing is written any more.
    ended: Option<StorageError>,
    closing: bool,
    released: bool,
    closers: Vec<Released>,
}

impl Queue {
    fn due(&self) -> bool {
        self.closing || !self.waiters.is_empty() || self.bytes > UNASKED_BYTES
    }
}

pub(super) struct Writer {
    database: Mutex<Option<Arc<Database>>>,
    file: String,
    mode: Mode,
    queue: Mutex<Queue>,
    wake: Condvar,
    drained: Notify,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("file", &self.file).field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Writer {
    pub(super) fn start(database: Database, mode: Mode) -> Result<Arc<Self>, StorageError> {
        let file = database.file().to_owned();
        let writer = Arc::new(Self {
            database: Mutex::new(Some(Arc::new(database))),
            file,
            mode,
            queue: Mutex::default(),
            wake: Condvar::new(),
            drained: Notify::new(),
        });
        if mode == Mode::Thread {
            let writing = writer.clone();
            let thread = std::thread::Builder::new().name("storage".into());
            thread.spawn(move || writing.run()).map_err(|error| StorageError::Io {
                file: writer.file.clone(),
                reason: format!("no thread to write with: {error}"),
            })?;
        }
        Ok(writer)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database, for reading.
    pub(super) fn database(&self) -> Result<Arc<Database>, StorageError> {
        let database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        database.clone().ok_or_else(|| StorageError::Closed { file: self.file.clone() })
    }

    pub(super) fn file(&self) -> &str {
        &self.file
    }

    /// Queues changes of rows behind everything queued before.
    pub(super) fn write(&self, changes: Vec<(&'static str, Bytes, Option<Bytes>)>) {
        let mut queue = self.queue();
        if queue.ended.is_some() {
            return;
        }
        for (table, key, value) in changes {
            let size = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len);
            queue.bytes += key.len() + size(&value) + ROW_BYTES;
            let replaced = queue.changes.entry(table).or_default().insert(key, value);
            queue.bytes -= replaced.as_ref().map_or(0, size);
        }
        if self.mode == Mode::Thread && queue.due() {
            self.wake.notify_one();
        }
    }

    /// Calls `done` once everything queued before is durable, or will never be.
    pub(super) fn flush(&self, done: Done) {
        let mut queue = self.queue();
        if let Some(ended) = queue.ended.clone() {
            drop(queue);
            return done(Err(ended));
        }
        queue.waiters.push(done);
        drop(queue);
        match self.mode {
            Mode::Thread => self.wake.notify_one(),
            Mode::Inline => self.commit(),
        }
    }

    /// Waits while too much waits for the disk.
    pub(super) async fn room(&self) {
        loop {
            let drained = self.drained.notified();
            tokio::pin!(drained);
            // Registered before looking, so that no wake-up falls in between.
            drained.as_mut().enable();
            {
                let queue = self.queue();
                if queue.bytes <= MAX_QUEUED_BYTES || queue.ended.is_some() {
                    return;
                }
            }
            if self.mode == Mode::Inline {
                self.commit();
                return;
            }
            drained.await;
        }
    }

    /// Asks for the end: what is queued is written, then the file is released and `done` is called.
    pub(super) fn close(&self, done: Released) {
        let mut queue = self.queue();
        if queue.released {
            drop(queue);
            return done();
        }
        queue.closing = true;
        queue.closers.push(done);
        drop(queue);
        match self.mode {
            Mode::Thread => self.wake.notify_one(),
            Mode::Inline => {
                self.commit();
                self.release();
            }
        }
    }

    fn run(&self) {
        loop {
            let closing = {
                let waiting = self.wake.wait_while(self.queue(), |queue| !queue.due());
                waiting.unwrap_or_else(PoisonError::into_inner).closing
            };
            self.commit();
            if closing {
                return self.release();
            }
        }
    }

    fn commit(&self) {
        let (changes, waiters, ended) = {
            let mut queue = self.queue();
            queue.bytes = 0;
            (std::mem::take(&mut queue.changes), std::mem::take(&mut queue.waiters), queue.ended.clone())
        };
        let result = match ended {
            Some(ended) => Err(ended),
            None if changes.is_empty() => Ok(()),
            None => self.database().and_then(|database| database.commit(&changes)),
        };
        if let Err(error) = &result {
            // Nothing may become durable after what was lost.
            self.queue().ended.get_or_insert(error.clone());
        }
        self.drained.notify_waiters();
        for done in waiters {
            done(result.clone());
        }
    }

    fn release(&self) {
        // Whoever still reads keeps the file open until it is done.
        drop(self.database.lock().unwrap_or_else(PoisonError::into_inner).take());
        let closed = StorageError::Closed { file: self.file.clone() };
        let (waiters, closers) = {
            let mut queue = self.queue();
            queue.ended.get_or_insert(closed.clone());
            queue.released = true;
            (std::mem::take(&mut queue.waiters), std::mem::take(&mut queue.closers))
        };
        self.drained.notify_waiters();
        for done in waiters {
            done(Err(closed.clone()));
        }
        for done in closers {
            done();
        }
    }
}
