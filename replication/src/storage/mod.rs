//! What a node keeps across restarts: tables of bytes by key, on an embedded database (redb).
//!
//! ```text
//!   Storage     write: queued, in order.  flush: everything written before is on disk
//!   shelf       bytes by digest, counted by who refers to them
//!   writer      group commit on a thread of its own, or by whoever flushes or writes, for simulations
//!   database    one redb file: checked when opened, redb's errors in our words
//!   medium      the file itself, whose space is taken when it grows
//! ```
//!
//! The file holds a prefix of what was written, in the order in which it was written: whatever comes after a row can rely
//! on that row being there. A full disk loses nothing: what does not fit waits, in its order, until there is room. Only what is
//! written *first*, a few small facts that rely on no other row (votes, promises), may pass it, because they often still fit. This module deliberately does not know Raft or gossip, nor what a row means.

mod database;
mod error;
mod medium;
mod shelf;
mod writer;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use redb::StorageBackend;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use self::database::{Database, META};
pub use self::error::StorageError;
use self::medium::Medium;
pub(crate) use self::shelf::Shelf;
use self::writer::{Lane, Mode, Patience, Writer};
use crate::store::NodeId;
use crate::wire;

const OWNER_KEY: &[u8] = b"owner";
const CLUSTER_KEY: &[u8] = b"cluster";

/// Changes of rows, written together.
#[derive(Debug, Clone, Default)]
pub struct Batch(Vec<(&'static str, Bytes, Option<Bytes>)>);

impl Batch {
    /// Sets a row.
    pub fn put(&mut self, table: &'static str, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.0.push((table, key.into(), Some(value.into())));
    }

    /// Removes a row, if it is there.
    pub fn remove(&mut self, table: &'static str, key: impl Into<Bytes>) {
        self.0.push((table, key.into(), None));
    }
}

/// One node's durable storage. Clones share it; the file is released by [`close`](Self::close), or when the last clone
/// is gone.
#[derive(Debug, Clone)]
pub struct Storage(Arc<Handle>);

#[derive(Debug)]
struct Handle(Arc<Writer>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close(Box::new(|| {}));
    }
}

impl Storage {
    /// Opens the file at `path`, or makes it. Reads the whole file to check it, and blocks while it does.
    ///
    /// # Errors
    /// [`StorageError`]: in use, damaged, of another format, or not accessible.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StorageError> {
        let file = path.as_ref().display().to_string();
        let (database, medium) = Database::open(path.as_ref())?;
        Self::start(Writer::new(database, medium, file, Mode::Thread))
    }

    /// As [`open`](Self::open), on another medium.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn on(backend: impl StorageBackend) -> Result<Self, StorageError> {
        Self::on_medium(Medium::of(backend), Mode::Thread)
    }

    /// As [`on`](Self::on), without a thread: whoever flushes also commits. For simulations under virtual time.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn inline_on(backend: impl StorageBackend) -> Result<Self, StorageError> {
        Self::on_medium(Medium::of(backend), Mode::Inline)
    }

    /// As [`inline_on`](Self::inline_on), where every write is committed by itself: for tests of what a power loss leaves, which
    /// may be any prefix of the writes.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn eager_on(backend: impl StorageBackend) -> Result<Self, StorageError> {
        Self::on_medium(Medium::of(backend), Mode::Eager)
    }

    fn on_medium(medium: Medium, mode: Mode) -> Result<Self, StorageError> {
        let file = String::from("storage");
        let database = Database::on(medium.clone(), file.clone())?;
        Self::start(Writer::new(database, medium, file, mode))
    }

    fn start(writer: Writer) -> Result<Self, StorageError> {
        Ok(Self(Arc::new(Handle(writer.start()?))))
    }

    fn writer(&self) -> &Writer {
        &self.0.0
    }

    /// Says who keeps what here. The first to say so owns the file.
    ///
    /// # Errors
    /// [`StorageError::OtherOwner`] for everybody else.
    pub async fn claim(&self, node: NodeId, cluster: &str) -> Result<(), StorageError> {
        self.claim_as(OWNER_KEY, node, cluster).await
    }

    /// Says which cluster, by a name that no other one has, the file's node belongs to. The first to say so decides. It is
    /// asked beside [`claim`](Self::claim), whose description other clusters of the same kind share.
    ///
    /// # Errors
    /// [`StorageError::OtherOwner`] for every other node or name.
    pub async fn identify(&self, node: NodeId, cluster: &str) -> Result<(), StorageError> {
        self.claim_as(CLUSTER_KEY, node, cluster).await
    }

    async fn claim_as(&self, key: &'static [u8], node: NodeId, cluster: &str) -> Result<(), StorageError> {
        let owner = self.load(META)?.into_iter().find(|(found, _)| found[..] == *key);
        let Some((_, owner)) = owner else {
            let mut batch = Batch::default();
            batch.put(META, key, wire::encode(&(node, cluster)));
            self.write(batch);
            return self.flush().await;
        };
        let (found, found_cluster): (NodeId, String) = self.decode(&owner)?;
        if found == node && found_cluster == cluster {
            return Ok(());
        }
        let (file, cluster) = (self.writer().file().to_owned(), cluster.to_owned());
        Err(StorageError::OtherOwner { file, found, found_cluster, node, cluster })
    }

    /// Every row of `table` that is on disk, in the order of its keys.
    ///
    /// # Errors
    /// [`StorageError`]: damaged, not readable, closed.
    pub fn load(&self, table: &'static str) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        self.writer().database()?.load(table)
    }

    /// Decodes a row's key or value that was encoded with postcard.
    ///
    /// # Errors
    /// [`StorageError::Damaged`].
    pub fn decode<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, StorageError> {
        wire::decode(bytes).map_err(|refusal| self.damaged(refusal.0))
    }

    /// Encodes what [`decode`](Self::decode) reads.
    #[must_use]
    pub fn encode<T: Serialize>(value: &T) -> Bytes {
        wire::encode(value)
    }

    /// An error that says that the content makes no sense.
    #[must_use]
    pub fn damaged(&self, reason: String) -> StorageError {
        StorageError::Damaged { file: self.writer().file().into(), reason }
    }

    /// Queues changes behind everything written before. They are on disk once a later [`flush`](Self::flush) says so;
    /// that a write fails is told there too.
    pub fn write(&self, batch: Batch) {
        self.writer().write(Lane::Rest, batch.0);
    }

    /// Queues small facts that rely on no other row: where the disk is full they are tried alone. A row is always written in
    /// this way, or never.
    pub fn write_first(&self, batch: Batch) {
        self.writer().write(Lane::First, batch.0);
    }

    /// Waits until everything written before this call is on disk. The flush begins with the call, not with the await.
    ///
    /// # Errors
    /// [`StorageError::Full`], until there is room; any other for good.
    pub fn flush(&self) -> impl Future<Output = Result<(), StorageError>> + Send + use<> {
        self.flushed(Lane::Rest, Patience::None)
    }

    /// As [`flush`](Self::flush), for what was written *first*.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    pub fn flush_first(&self) -> impl Future<Output = Result<(), StorageError>> + Send + use<> {
        self.flushed(Lane::First, Patience::None)
    }

    /// As [`flush`](Self::flush); waits for room, however long that takes.
    ///
    /// # Errors
    /// Any but [`StorageError::Full`], for good.
    pub fn flush_patiently(&self) -> impl Future<Output = Result<(), StorageError>> + Send + use<> {
        self.flushed(Lane::Rest, Patience::ForRoom)
    }

    /// As [`flush_first`](Self::flush_first); waits for room, however long that takes.
    ///
    /// # Errors
    /// Any but [`StorageError::Full`], for good.
    pub fn flush_first_patiently(&self) -> impl Future<Output = Result<(), StorageError>> + Send + use<> {
        self.flushed(Lane::First, Patience::ForRoom)
    }

    fn flushed(
        &self,
        lane: Lane,
        patience: Patience,
    ) -> impl Future<Output = Result<(), StorageError>> + Send + use<> {
        let (done, flushed) = oneshot::channel();
        // Nobody may be waiting any more.
        self.writer().flush(lane, patience, Box::new(move |result| drop(done.send(result))));
        let file = self.writer().file().to_owned();
        async move { flushed.await.unwrap_or(Err(StorageError::Closed { file })) }
    }

    /// As [`flush`](Self::flush), with a callback, which must not block.
    pub fn flush_then(&self, done: impl FnOnce(Result<(), StorageError>) + Send + 'static) {
        self.writer().flush(Lane::Rest, Patience::None, Box::new(done));
    }

    /// As [`flush_patiently`](Self::flush_patiently), with a callback, which must not block.
    pub fn flush_patiently_then(&self, done: impl FnOnce(Result<(), StorageError>) + Send + 'static) {
        self.writer().flush(Lane::Rest, Patience::ForRoom, Box::new(done));
    }

    /// Whether something waits for room on the disk.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.writer().is_full()
    }

    /// Waits while too many bytes wait for the disk; to be awaited before writing much. Not for room on a full one.
    pub async fn room(&self) {
        self.writer().room().await;
    }

    /// Writes what is queued and releases the file. Idempotent.
    pub async fn close(&self) {
        let flushed = self.flush();
        let (closed, released) = oneshot::channel();
        self.writer().close(Box::new(move || {
            let _ = closed.send(());
        }));
        // An error was told to whoever wrote.
        let _ = flushed.await;
        let _ = released.await;
    }
}
