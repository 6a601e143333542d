//! The order of writes, and who commits them: a thread of its own, or whoever asks.
//!
//! Writes queue up and are committed together in one transaction (group commit), so that the file always holds a prefix
//! of what was written, and any number of waiters share one fsync. Where the disk is full the transaction is undone, the
//! database opened again (redb goes on with none that has seen an error), and its writes are queued again in front of those
//! that came since. Any other error is the end: what follows could rely on what was lost.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::database::{Changes, Database};
use super::error::StorageError;
use super::medium::Medium;

/// Bytes that may wait for the disk before [`Writer::room`] makes those wait who can.
const MAX_QUEUED_BYTES: usize = 16 * 1024 * 1024;

/// From this many bytes on they are written without anybody having asked.
const UNASKED_BYTES: usize = 4 * 1024 * 1024;

/// What a row costs beside its bytes.
const ROW_BYTES: usize = 64;

/// How often a full disk is looked at again, if nobody asks.
const RETRY: Duration = Duration::from_secs(1);

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
    /// Whoever writes, every write by itself: the file goes through every prefix that a thread may have written when the
    /// power fails.
    Eager,
}

/// What may pass what where there is no room for everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// It relies on no other row.
    First,
    /// It relies on everything before it.
    Rest,
}

/// What a flush does on a full disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// It fails.
    None,
    /// It waits.
    ForRoom,
}

struct Waiter {
    lane: Lane,
    patience: Patience,
    done: Done,
}

#[derive(Default)]
struct Queue {
    first: Changes,
    rest: Changes,
    bytes: usize,
    waiters: Vec<Waiter>,
    /// Somebody waits who has not been tried for.
    asked: bool,
    /// There was no room for what is queued.
    full: bool,
    /// Why nothing is written any more.
    ended: Option<StorageError>,
    closing: bool,
    released: bool,
    closers: Vec<Released>,
}

/// What a row takes of the queue.
fn row_bytes(key: &Bytes, value: Option<&Bytes>) -> usize {
    key.len() + value.map_or(0, Bytes::len) + ROW_BYTES
}

impl Queue {
    fn due(&self) -> bool {
        self.closing || self.asked || self.bytes > UNASKED_BYTES
    }

    fn lane(&mut self, lane: Lane) -> &mut Changes {
        match lane {
            Lane::First => &mut self.first,
            Lane::Rest => &mut self.rest,
        }
    }

    fn add(&mut self, lane: Lane, table: &'static str, key: Bytes, value: Option<Bytes>) {
        self.bytes += row_bytes(&key, value.as_ref());
        let rows = self.lane(lane).entry(table).or_default();
        if let Some((key, replaced)) = rows.remove_entry(&key) {
            self.bytes -= row_bytes(&key, replaced.as_ref());
        }
        self.lane(lane).entry(table).or_default().insert(key, value);
    }

    /// Queues what there was no room for, in front of what came since.
    fn put_back(&mut self, lane: Lane, changes: Changes) {
        for (table, rows) in changes {
            for (key, value) in rows {
                let newer: &mut BTreeMap<_, _> = self.lane(lane).entry(table).or_default();
                if !newer.contains_key(&key) {
                    self.add(lane, table, key, value);
                }
            }
        }
    }
}

pub(super) struct Writer {
    /// None while there is no room, and after the end.
    database: Mutex<Option<Arc<Database>>>,
    /// None after the end.
    medium: Mutex<Option<Medium>>,
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
    pub(super) fn new(database: Database, medium: Medium, file: String, mode: Mode) -> Self {
        Self {
            database: Mutex::new(Some(Arc::new(database))),
            medium: Mutex::new(Some(medium)),
            file,
            mode,
            queue: Mutex::default(),
            wake: Condvar::new(),
            drained: Notify::new(),
        }
    }

    pub(super) fn start(self) -> Result<Arc<Self>, StorageError> {
        let writer = Arc::new(self);
        if writer.mode == Mode::Thread {
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

    fn open_database(&self) -> MutexGuard<'_, Option<Arc<Database>>> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database, for reading; opened again if it was closed for want of room.
    pub(super) fn database(&self) -> Result<Arc<Database>, StorageError> {
        let mut open = self.open_database();
        if let Some(database) = &*open {
            return Ok(database.clone());
        }
        let medium = self.medium.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let medium = medium.ok_or_else(|| StorageError::Closed { file: self.file.clone() })?;
        let database = Arc::new(Database::on(medium, self.file.clone())?);
        *open = Some(database.clone());
        Ok(database)
    }

    pub(super) fn file(&self) -> &str {
        &self.file
    }

    pub(super) fn is_full(&self) -> bool {
        self.queue().full
    }

    /// Queues changes of rows behind everything queued before.
    pub(super) fn write(&self, lane: Lane, changes: Vec<(&'static str, Bytes, Option<Bytes>)>) {
        let mut queue = self.queue();
        if queue.ended.is_some() {
            return;
        }
        for (table, key, value) in changes {
            queue.add(lane, table, key, value);
        }
        match self.mode {
            Mode::Thread if queue.due() => self.wake.notify_one(),
            Mode::Thread | Mode::Inline => {}
            Mode::Eager => {
                drop(queue);
                self.commit();
            }
        }
    }

    /// Calls `done` once everything queued before in this lane is durable, or will never be.
    pub(super) fn flush(&self, lane: Lane, patience: Patience, done: Done) {
        let mut queue = self.queue();
        if let Some(ended) = queue.ended.clone() {
            drop(queue);
            return done(Err(ended));
        }
        queue.waiters.push(Waiter { lane, patience, done });
        queue.asked = true;
        drop(queue);
        match self.mode {
            Mode::Thread => self.wake.notify_one(),
            Mode::Inline | Mode::Eager => self.commit(),
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
                if queue.bytes <= MAX_QUEUED_BYTES || queue.full || queue.ended.is_some() {
                    return;
                }
            }
            if self.mode != Mode::Thread {
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
            Mode::Inline | Mode::Eager => {
                self.commit();
                self.release();
            }
        }
    }

    fn run(&self) {
        loop {
            let closing = {
                let queue = self.queue();
                if queue.full {
                    let waiting =
                        self.wake.wait_timeout_while(queue, RETRY, |queue| !(queue.closing || queue.asked));
                    waiting.unwrap_or_else(PoisonError::into_inner).0.closing
                } else {
                    let waiting = self.wake.wait_while(queue, |queue| !queue.due());
                    waiting.unwrap_or_else(PoisonError::into_inner).closing
                }
            };
            self.commit();
            if closing {
                return self.release();
            }
        }
    }

    /// Writes what is queued, and tells those who wait.
    fn commit(&self) {
        let (first, rest, waiters, ended) = {
            let mut queue = self.queue();
            (queue.bytes, queue.asked) = (0, false);
            let (first, rest) = (std::mem::take(&mut queue.first), std::mem::take(&mut queue.rest));
            (first, rest, std::mem::take(&mut queue.waiters), queue.ended.clone())
        };
        let is_full = |result: &Result<(), StorageError>| matches!(result, Err(StorageError::Full { .. }));
        let all = ended.map_or_else(|| self.apply(&[&first, &rest]), Err);
        let alone = if is_full(&all) && !first.is_empty() { self.apply(&[&first]) } else { all.clone() };
        let mut told = Vec::new();
        {
            let mut queue = self.queue();
            if queue.full != is_full(&all) {
                let file = &self.file;
                if queue.full {
                    tracing::info!(file, "the disk has room again");
                } else {
                    tracing::warn!(file, "the disk is full: what is to be written waits for room");
                }
            }
            queue.full = is_full(&all);
            if is_full(&all) {
                queue.put_back(Lane::Rest, rest);
            }
            if is_full(&alone) {
                queue.put_back(Lane::First, first);
            }
            // Nothing may become durable after what was lost.
            let lost = [&all, &alone].into_iter().find(|result| result.is_err() && !is_full(result));
            if let Some(Err(error)) = lost {
                queue.ended.get_or_insert(error.clone());
            }
            let mut patient = Vec::new();
            for waiter in waiters {
                let result = if waiter.lane == Lane::First { &alone } else { &all };
                if waiter.patience == Patience::ForRoom && is_full(result) {
                    patient.push(waiter);
                } else {
                    told.push((waiter.done, result.clone()));
                }
            }
            queue.waiters.splice(0..0, patient);
        }
        self.drained.notify_waiters();
        for (done, result) in told {
            done(result);
        }
    }

    /// One transaction. After a full disk the database is closed, since redb takes nothing more then.
    fn apply(&self, changes: &[&Changes]) -> Result<(), StorageError> {
        if changes.iter().all(|changes| changes.is_empty()) {
            return Ok(());
        }
        let written = self.database().and_then(|database| database.commit(changes));
        if matches!(written, Err(StorageError::Full { .. })) {
            drop(self.open_database().take());
        }
        written
    }

    fn release(&self) {
        // Whoever still reads keeps the file open until it is done.
        drop(self.open_database().take());
        drop(self.medium.lock().unwrap_or_else(PoisonError::into_inner).take());
        let closed = StorageError::Closed { file: self.file.clone() };
        let (waiters, closers) = {
            let mut queue = self.queue();
            queue.ended.get_or_insert(closed.clone());
            queue.released = true;
            (std::mem::take(&mut queue.waiters), std::mem::take(&mut queue.closers))
        };
        self.drained.notify_waiters();
        for waiter in waiters {
            (waiter.done)(Err(closed.clone()));
        }
        for done in closers {
            done();
        }
    }
}
