//! Checkpoint bytes by digest on one node, and how they move between nodes.
//!
//! [`Blobs`] is the content-addressed memory: what it holds has matched its digest here. [`Exchange`] carries bytes
//! over a transport: pushed by who has them, or pulled from any holder. Neither knows what is acknowledged; the backend
//! above says which digests it refers to.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::error::StoreError;
use crate::store::{Digest, NodeId, Observer, StoreEvent};
use crate::transport::{Class, Frame, Refusal, Transport};
use crate::wire;

/// Bytes that arrived before anything refers to them are kept up to this many bytes (at least the newest blob).
const MAX_STAGED_BYTES: usize = 64 * 1024 * 1024;

/// How long one holder may take to begin serving a pull, beyond what its size justifies.
const PULL_TIMEOUT: Duration = Duration::from_secs(5);

/// The slowest link on which a transfer is not given up, in bytes per second.
const SLOWEST_BYTES_PER_SECOND: u64 = 50_000;

/// How long a transfer of `bytes` may take.
pub(crate) fn transfer_timeout(bytes: u64) -> Duration {
    PULL_TIMEOUT + Duration::from_millis(bytes * 1000 / SLOWEST_BYTES_PER_SECOND)
}

#[derive(Debug, Default)]
struct Held {
    blobs: BTreeMap<Digest, Bytes>,
    /// Digests nothing refers to yet, oldest first.
    staged: VecDeque<Digest>,
    staged_bytes: usize,
}

impl Held {
    fn stage(&mut self, digest: Digest, bytes: Bytes) {
        if self.blobs.contains_key(&digest) {
            return;
        }
        self.staged_bytes += bytes.len();
        self.staged.push_back(digest);
        self.blobs.insert(digest, bytes);
        while self.staged_bytes > MAX_STAGED_BYTES && self.staged.len() > 1 {
            if let Some(oldest) = self.staged.pop_front() {
                self.forget(oldest);
            }
        }
    }

    fn refer(&mut self, digest: Digest) {
        if let Some(at) = self.staged.iter().position(|staged| *staged == digest) {
            self.staged.remove(at);
            self.staged_bytes -= self.blobs.get(&digest).map_or(0, Bytes::len);
        }
    }

    fn forget(&mut self, digest: Digest) {
        if let Some(bytes) = self.blobs.remove(&digest) {
            self.staged_bytes = self.staged_bytes.saturating_sub(bytes.len());
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

    /// Says that acknowledged state refers to `digest`: it stays until [`Blobs::release`].
    pub(crate) fn refer(&self, digest: Digest) {
        self.held().refer(digest);
    }

    /// Drops bytes that acknowledged state does not refer to any more.
    pub(crate) fn release(&self, digest: Digest) {
        let mut held = self.held();
        if let Some(bytes) = held.blobs.remove(&digest)
            && let Some(at) = held.staged.iter().position(|staged| *staged == digest)
        {
            held.staged.remove(at);
            held.staged_bytes -= bytes.len();
        }
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

/// Moves blobs between nodes.
#[derive(Clone)]
pub(crate) struct Exchange {
    transport: Arc<dyn Transport>,
    blobs: Blobs,
    observer: Arc<dyn Observer>,
    /// Held by whoever pulls, so that the same bytes are not pulled twice at once.
    pulling: Arc<tokio::sync::Mutex<()>>,
}

impl Exchange {
    pub(crate) fn new(transport: Arc<dyn Transport>, blobs: Blobs, observer: Arc<dyn Observer>) -> Self {
        Self { transport, blobs, observer, pulling: Arc::default() }
    }

    /// What this node holds.
    pub(crate) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Keeps `bytes` of this node's own making.
    pub(crate) fn stage(&self, digest: Digest, bytes: Bytes) {
        self.blobs.stage(digest, bytes);
    }

    /// Sends `bytes` to `peer`; true once it has verified and kept them.
    pub(crate) async fn push(&self, peer: NodeId, digest: Digest, bytes: Bytes) -> bool {
        let timeout = transfer_timeout(bytes.len() as u64);
        let frame = Frame::new(wire::BLOB_PUSH, wire::encode(&digest)).with_segment(bytes);
        let outcome = tokio::time::timeout(timeout, self.transport.request(peer, Class::Blob, frame)).await;
        matches!(outcome, Ok(Ok(_)))
    }

    /// Answers a push.
    pub(crate) fn on_push(&self, from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        let digest: Digest = wire::decode(&request.head)?;
        self.accept(from, digest, request.into_body())?;
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

    /// The bytes of `digest`: from here, or pulled from the first of `holders` that serves them.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if nobody does.
    pub(crate) async fn fetch(
        &self,
        digest: Digest,
        bytes: u64,
        holders: &[NodeId],
    ) -> Result<Bytes, StoreError> {
        let _one_at_a_time = self.pulling.lock().await;
        if let Some(bytes) = self.blobs.get(digest) {
            return Ok(bytes);
        }
        for holder in holders {
            let request = self.transport.request(
                *holder,
                Class::Blob,
                Frame::new(wire::BLOB_PULL, wire::encode(&digest)),
            );
            let Ok(Ok(response)) = tokio::time::timeout(transfer_timeout(bytes), request).await else {
                continue;
            };
            let body = response.into_body();
            if self.accept(*holder, digest, body.clone()).is_ok() {
                return Ok(body);
            }
        }
        Err(StoreError::Missing { digest })
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
