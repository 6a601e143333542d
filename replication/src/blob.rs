//! Checkpoint bytes by digest on one node, and how they move between nodes.
//!
//! [`Blobs`] is the content-addressed memory: what it holds has matched its digest here. What it holds is also on the
//! node's shelf, if it has one. [`Exchange`] carries bytes
//! over a transport: pushed by who has them, or pulled from any holder. Neither knows what is acknowledged; the backend
//! above says which digests it refers to.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;

use crate::error::StoreError;
use crate::event::{Observer, StoreEvent};
use crate::storage::{Shelf, StorageError};
use crate::store::{Blob, Digest, NodeId};
use crate::transport::{Class, Frame, Refusal, Transport, TransportError};
use crate::wire;

/// Bytes that arrived before anything refers to them are kept up to this many bytes (at least the newest blob).
const MAX_STAGED_BYTES: usize = 64 * 1024 * 1024;

/// How long a transfer may take beyond what its size justifies.
const TRANSFER_GRACE: Duration = Duration::from_secs(5);

/// A holder that has not served a pull after this and what its size needs on a fair link is not waited for alone.
const HEDGE_AFTER: Duration = Duration::from_millis(250);

/// A fair link, in bytes per millisecond.
const FAIR_BYTES_PER_MS: u64 = 2000;

/// The slowest link on which a transfer is not given up, in bytes per second.
const SLOWEST_BYTES_PER_SECOND: u64 = 50_000;

/// A peer is not waited for longer than this to be given bytes.
const MAX_PATIENCE: Duration = Duration::from_secs(60);

/// How long one sender may take to give `nodes` nodes `bytes` each, before the store sends them.
pub(crate) fn provision_patience(bytes: u64, nodes: usize) -> Duration {
    let fair_ms = bytes.saturating_mul(nodes as u64) / FAIR_BYTES_PER_MS;
    (HEDGE_AFTER + Duration::from_millis(fair_ms)).min(MAX_PATIENCE)
}

/// How long a transfer of `bytes` may take.
pub(crate) fn transfer_timeout(bytes: u64) -> Duration {
    TRANSFER_GRACE + Duration::from_millis(bytes.saturating_mul(1000) / SLOWEST_BYTES_PER_SECOND)
}

/// Two things keep bytes: acknowledged state that refers to them, and being staged for a write under way.
#[derive(Debug, Default)]
struct Held {
    blobs: BTreeMap<Digest, Bytes>,
    /// Digests that acknowledged state refers to, whether their bytes are here or not.
    referred: BTreeSet<Digest>,
    /// Digests of writes that may still be acknowledged, oldest first.
    staged: VecDeque<Digest>,
    staged_bytes: usize,
    /// The same bytes on disk.
    shelf: Option<Shelf>,
}

impl Held {
    fn stage(&mut self, digest: Digest, bytes: Bytes) {
        let awaited = self.referred.contains(&digest) && !self.blobs.contains_key(&digest);
        let length = bytes.len();
        if let Entry::Vacant(place) = self.blobs.entry(digest) {
            if let Some(shelf) = &self.shelf {
                shelf.keep(digest, &bytes);
            }
            place.insert(bytes);
        }
        if awaited || self.staged.contains(&digest) {
            return;
        }
        self.staged_bytes += length;
        self.staged.push_back(digest);
        while self.staged_bytes > MAX_STAGED_BYTES && self.staged.len() > 1 {
            if let Some(oldest) = self.staged.front().copied() {
                self.unstage(oldest);
                self.drop_unless_kept(oldest);
            }
        }
    }

    fn unstage(&mut self, digest: Digest) {
        if let Some(at) = self.staged.iter().position(|staged| *staged == digest) {
            self.staged.remove(at);
            self.staged_bytes -= self.blobs.get(&digest).map_or(0, Bytes::len);
        }
    }

    fn drop_unless_kept(&mut self, digest: Digest) {
        let kept = self.referred.contains(&digest) || self.staged.contains(&digest);
        if !kept
            && self.blobs.remove(&digest).is_some()
            && let Some(shelf) = &self.shelf
        {
            shelf.release(digest);
        }
    }
}

/// Content-addressed bytes in memory. Cheap to clone; clones share the content.
#[derive(Debug, Clone)]
pub(crate) struct Blobs {
    held: Arc<Mutex<Held>>,
    arrivals: watch::Sender<u64>,
}

impl Default for Blobs {
    fn default() -> Self {
        Self { held: Arc::default(), arrivals: watch::Sender::new(0) }
    }
}

impl Blobs {
    /// Content that is on disk too.
    pub(crate) fn on_shelf(shelf: Shelf) -> Self {
        let blobs = Self::default();
        blobs.held().shelf = Some(shelf);
        blobs
    }

    /// Waits until everything staged before this call is on disk, if there is one. The flush begins with the call.
    pub(crate) fn flush(&self) -> impl Future<Output = Result<(), StorageError>> + Send + use<> {
        let flushed = self.held().shelf.as_ref().map(|shelf| shelf.storage().flush());
        async move {
            match flushed {
                Some(flushed) => flushed.await,
                None => Ok(()),
            }
        }
    }

    /// Waits while too many bytes wait for the disk.
    pub(crate) async fn room(&self) {
        let shelf = self.held().shelf.clone();
        if let Some(shelf) = shelf {
            shelf.storage().room().await;
        }
    }

    /// Whether something waits for room on the disk, if there is one.
    pub(crate) fn is_full(&self) -> bool {
        self.held().shelf.as_ref().is_some_and(|shelf| shelf.storage().is_full())
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps `bytes`, which hash to `digest`, until they are referred to or crowded out.
    pub(crate) fn stage(&self, digest: Digest, bytes: Bytes) {
        self.held().stage(digest, bytes);
        self.arrivals.send_modify(|count| *count += 1);
    }

    /// Hashes `bytes` and keeps them if they match.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`].
    pub(crate) fn stage_verified(
        &self,
        digest: Digest,
        bytes: Bytes,
        from: NodeId,
    ) -> Result<(), StoreError> {
        if Digest::of(&bytes) != digest {
            return Err(StoreError::Corrupt { expected: digest, from });
        }
        self.stage(digest, bytes);
        Ok(())
    }

    /// Keeps bytes that came on another way, unless they are here.
    pub(crate) fn provide(&self, blob: &Blob) {
        if self.get(blob.digest()).is_none() {
            self.stage(blob.digest(), blob.bytes().clone());
        }
    }

    /// Says that acknowledged state refers to `digest`: it stays until [`Blobs::release`].
    pub(crate) fn refer(&self, digest: Digest) {
        let mut held = self.held();
        held.referred.insert(digest);
        held.unstage(digest);
    }

    /// Says that acknowledged state does not refer to `digest` any more.
    pub(crate) fn release(&self, digest: Digest) {
        let mut held = self.held();
        held.referred.remove(&digest);
        held.drop_unless_kept(digest);
    }

    /// The bytes, if this node has them.
    pub(crate) fn get(&self, digest: Digest) -> Option<Bytes> {
        self.held().blobs.get(&digest).cloned()
    }

    /// Bytes held in memory.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.held().blobs.values().map(|bytes| bytes.len() as u64).sum()
    }

    /// Waits until the bytes are here, whoever brings them.
    pub(crate) async fn arrival(&self, digest: Digest) -> Bytes {
        let mut arrivals = self.arrivals.subscribe();
        loop {
            if let Some(bytes) = self.get(digest) {
                return bytes;
            }
            if arrivals.changed().await.is_err() {
                // The sender lives in self; this cannot be reached while self is borrowed.
                std::future::pending::<()>().await;
            }
        }
    }
}

type Gates = Arc<Mutex<BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>>>;

/// Moves blobs between nodes.
#[derive(Clone)]
pub(crate) struct Exchange {
    transport: Arc<dyn Transport>,
    blobs: Blobs,
    observer: Arc<dyn Observer>,
    /// Held by whoever pulls a digest, so that the same bytes are not pulled twice at once.
    gates: Gates,
}

impl Exchange {
    pub(crate) fn new(transport: Arc<dyn Transport>, blobs: Blobs, observer: Arc<dyn Observer>) -> Self {
        Self { transport, blobs, observer, gates: Gates::default() }
    }

    /// What this node holds.
    pub(crate) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Sends `bytes` to `peer` until it has verified and kept them, with `pause` between attempts; false if it did not
    /// within the time their size justifies.
    pub(crate) async fn push(&self, peer: NodeId, digest: Digest, bytes: Bytes, pause: Duration) -> bool {
        let pushing = async {
            let frame = Frame::new(wire::BLOB_PUSH, wire::encode(&digest)).with_segment(bytes.clone());
            loop {
                match self.transport.request(peer, Class::Blob, frame.clone()).await {
                    Ok(_) => return true,
                    Err(TransportError::Unreachable { .. } | TransportError::Interrupted { .. }) => {
                        tokio::time::sleep(pause).await;
                    }
                    Err(_) => return false,
                }
            }
        };
        tokio::time::timeout(transfer_timeout(bytes.len() as u64), pushing).await.unwrap_or(false)
    }

    /// Whether `peer` says within `patience` that it has the bytes.
    pub(crate) async fn is_given(&self, peer: NodeId, digest: Digest, patience: Duration) -> bool {
        let patience_ms = patience.as_millis() as u64;
        let request = Frame::new(wire::BLOB_AWAIT, wire::encode(&(digest, patience_ms)));
        let answer = self.transport.request(peer, Class::Digest, request);
        let answer = tokio::time::timeout(patience + TRANSFER_GRACE, answer).await;
        matches!(answer, Ok(Ok(_)))
    }

    /// Answers [`Exchange::is_given`]; keeps the bytes for the write that asks.
    pub(crate) async fn on_await(&self, request: &Frame) -> Result<Frame, Refusal> {
        let (digest, patience_ms): (Digest, u64) = wire::decode(&request.head)?;
        let patience = Duration::from_millis(patience_ms).min(MAX_PATIENCE);
        let arrived = tokio::time::timeout(patience, self.blobs.arrival(digest)).await;
        let bytes = arrived.map_err(|_| Refusal(format!("{digest} is not here")))?;
        self.blobs.room().await;
        self.blobs.stage(digest, bytes);
        self.blobs.flush().await.map_err(|error| Refusal(error.to_string()))?;
        Ok(Frame::default())
    }

    /// Answers a push, once the bytes are where a restart does not lose them.
    pub(crate) async fn on_push(&self, from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        let digest: Digest = wire::decode(&request.head)?;
        self.blobs.room().await;
        self.accept(from, digest, request.into_body())?;
        self.blobs.flush().await.map_err(|error| Refusal(error.to_string()))?;
        Ok(Frame::default())
    }

    /// Answers a pull.
    pub(crate) fn on_pull(&self, request: &Frame) -> Result<Frame, Refusal> {
        let digest: Digest = wire::decode(&request.head)?;
        match self.blobs.get(digest) {
            Some(bytes) => Ok(Frame::default().with_segment(bytes)),
            None => Err(Refusal(format!("{digest} is not here"))),
        }
    }

    fn accept(&self, from: NodeId, digest: Digest, bytes: Bytes) -> Result<(), Refusal> {
        self.blobs.stage_verified(digest, bytes, from).map_err(|error| {
            self.observer.observe(StoreEvent::CorruptBlob { from, digest });
            Refusal(error.to_string())
        })
    }

    /// The bytes of `digest`: from here, or pulled from whichever of `holders` serves them first. The next holder is
    /// asked when one refuses, or has not answered in the time a fair link needs.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if nobody does.
    pub(crate) async fn fetch(
        &self,
        digest: Digest,
        bytes: u64,
        holders: &[NodeId],
    ) -> Result<Bytes, StoreError> {
        let gate = self.gates().entry(digest).or_default().clone();
        let fetched = {
            let _one_at_a_time = gate.lock().await;
            match self.blobs.get(digest) {
                Some(bytes) => Ok(bytes),
                None => self.pull_from_any(digest, bytes, holders).await,
            }
        };
        self.gates().remove(&digest);
        fetched
    }

    fn gates(&self) -> MutexGuard<'_, BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pull_from_any(
        &self,
        digest: Digest,
        bytes: u64,
        holders: &[NodeId],
    ) -> Result<Bytes, StoreError> {
        let mut next = holders.iter().copied();
        let mut asked = FuturesUnordered::new();
        let patience = HEDGE_AFTER + Duration::from_millis(bytes / FAIR_BYTES_PER_MS);
        loop {
            let more = next.next().map(|holder| asked.push(self.pull(holder, digest, bytes)));
            if more.is_none() && asked.is_empty() {
                return Err(StoreError::Missing { digest });
            }
            let answer = match more {
                Some(()) => tokio::time::timeout(patience, asked.next()).await.ok().flatten(),
                // Nobody else can be asked: wait for those who were.
                None => asked.next().await,
            };
            if let Some(Some(bytes)) = answer {
                return Ok(bytes);
            }
        }
    }

    async fn pull(&self, holder: NodeId, digest: Digest, bytes: u64) -> Option<Bytes> {
        let frame = Frame::new(wire::BLOB_PULL, wire::encode(&digest));
        let request = self.transport.request(holder, Class::Blob, frame);
        let response = tokio::time::timeout(transfer_timeout(bytes), request).await.ok()?.ok()?;
        let body = response.into_body();
        self.accept(holder, digest, body.clone()).ok()?;
        Some(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staged_bytes_are_bounded_and_referred_bytes_stay() {
        let blobs = Blobs::default();
        let kept = Bytes::from(vec![0; 1024]);
        blobs.stage(Digest::of(&kept), kept.clone());
        blobs.refer(Digest::of(&kept));
        for fill in 1..=70u8 {
            let bytes = Bytes::from(vec![fill; 1024 * 1024]);
            blobs.stage(Digest::of(&bytes), bytes);
        }
        assert!(blobs.total_bytes() <= MAX_STAGED_BYTES as u64 + 1024);
        assert_eq!(blobs.get(Digest::of(&kept)), Some(kept.clone()));
        blobs.release(Digest::of(&kept));
        assert_eq!(blobs.get(Digest::of(&kept)), None);
    }

    #[test]
    fn bytes_that_arrive_after_they_are_referred_to_stay() {
        let blobs = Blobs::default();
        let late = Bytes::from(vec![1; 1024]);
        blobs.refer(Digest::of(&late));
        blobs.stage(Digest::of(&late), late.clone());
        for fill in 1..=70u8 {
            let bytes = Bytes::from(vec![fill; 1024 * 1024]);
            blobs.stage(Digest::of(&bytes), bytes);
        }
        assert_eq!(blobs.get(Digest::of(&late)), Some(late));
    }

    #[test]
    fn a_write_under_way_keeps_bytes_that_an_older_checkpoint_lets_go() {
        let blobs = Blobs::default();
        let bytes = Bytes::from_static(b"the same in two slots");
        let digest = Digest::of(&bytes);
        blobs.stage(digest, bytes.clone());
        blobs.refer(digest);
        blobs.stage(digest, bytes.clone());
        blobs.release(digest);
        assert_eq!(blobs.get(digest), Some(bytes));
        blobs.refer(digest);
        blobs.release(digest);
        assert_eq!(blobs.get(digest), None);
    }

    #[test]
    fn bytes_that_do_not_match_are_refused() {
        let blobs = Blobs::default();
        let promised = Digest::of(b"promised");
        let refusal = blobs.stage_verified(promised, Bytes::from_static(b"served"), NodeId(4));
        assert!(
            matches!(refusal, Err(StoreError::Corrupt { expected, from: NodeId(4) }) if expected == promised)
        );
        assert_eq!(blobs.get(promised), None);
    }
}
