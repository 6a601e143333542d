//! Brings in the bytes of checkpoints that this node has word of, and serves those it holds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rand::seq::IndexedRandom;
use tokio::time::Instant;

use super::announce::Announcement;
use super::core::{Core, MESSAGE_TIMEOUT};
use super::fetch::{CHUNK_BYTES, Fetch, Step};
use super::messages::{MAX_REFERRALS, Pull, Pulled};
use crate::blob::transfer_timeout;
use crate::event::StoreEvent;
use crate::store::{CheckpointId, Digest, Metadata, NodeId};
use crate::transport::frame::MAX_UNPROVEN_BYTES;
use crate::transport::{Class, Frame, Refusal};
use crate::wire;

/// How long bytes that somebody else is bringing are waited for, beyond what their size needs.
const CARRIER_PATIENCE: Duration = Duration::from_millis(250);

/// A link on which nobody has to hurry, in bytes per millisecond.
const FAIR_BYTES_PER_MS: u64 = 2000;

/// Least pause before a busy holder is asked again.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

impl Core {
    /// Fetches what this node knows of and does not hold, as far as somebody can be asked.
    pub(super) fn fetch_missing(self: &Arc<Self>) {
        for announced in self.missing().into_iter().rev() {
            self.fetch(announced, false);
        }
    }

    /// What this node knows of, does not hold and does not fetch, as far as somebody can be asked.
    pub(super) fn missing(&self) -> Vec<Announcement> {
        let state = self.state();
        let reachable = state.reachable();
        let wanted = state.catalogue.entries().filter(|entry| {
            !entry.held
                && !state.fetching.contains(&entry.announced.digest)
                && (!entry.holders.is_disjoint(&reachable) || reachable.contains(&entry.announced.writer()))
        });
        wanted.map(|entry| entry.announced).collect()
    }

    /// Begins to fetch a checkpoint, unless its bytes are being fetched.
    pub(super) fn fetch(self: &Arc<Self>, announced: Announcement, carried: bool) {
        let digest = announced.digest;
        {
            let mut state = self.state();
            let held = state.catalogue.find(announced.id).is_none_or(|entry| entry.held);
            if held || state.closed || !state.fetching.insert(digest) {
                return;
            }
        }
        let core = self.clone();
        self.spawn(async move {
            if carried {
                let patience = announced.bytes * core.state().members.len() as u64 / FAIR_BYTES_PER_MS;
                let patience = CARRIER_PATIENCE + Duration::from_millis(patience);
                let _ = tokio::time::timeout(patience, core.blobs.arrival(digest)).await;
            }
            if core.describe(&announced).await && core.blobs.get(digest).is_none() {
                let timeout = transfer_timeout(announced.bytes) * (core.state().members.len() as u32).max(1);
                let _ = tokio::time::timeout(timeout, core.pull(&announced)).await;
            }
            core.settle(digest);
            core.state().fetching.remove(&digest);
            core.changes.announce();
        });
    }

    /// Who can be asked: whoever says it holds the bytes, and the writer.
    pub(super) fn sources(&self, announced: &Announcement) -> BTreeSet<NodeId> {
        let state = self.state();
        let mut holders = state.catalogue.holders(announced.digest);
        holders.insert(announced.writer());
        state.reachable_of(holders)
    }

    /// The answer of `peer`; none if it refuses, takes longer than `patience`, or comes to be suspected.
    async fn answer(&self, peer: NodeId, class: Class, request: Frame, patience: Duration) -> Option<Frame> {
        let suspected = || !self.state().live(self.local).contains(&peer);
        tokio::select! {
            biased;
            answer = tokio::time::timeout(patience, self.transport.request(peer, class, request)) => answer.ok()?.ok(),
            () = self.changes.until(|| suspected().then_some(())) => None,
        }
    }

    /// Learns the metadata of a checkpoint, if it is not known; false if nobody tells it.
    async fn describe(&self, announced: &Announcement) -> bool {
        let known = |core: &Self| {
            core.state().catalogue.find(announced.id).is_some_and(|entry| entry.metadata.is_some())
        };
        let mut left: Vec<NodeId> = self.sources(announced).into_iter().collect();
        while !known(self) {
            let Some(peer) = left.choose(&mut self.state().rng).copied() else { return false };
            left.retain(|other| *other != peer);
            let request = Frame::new(wire::GOSSIP_DESCRIBE, wire::encode(&announced.id));
            let answer = self.answer(peer, Class::Digest, request, MESSAGE_TIMEOUT).await;
            let Some(response) = answer else { continue };
            if let Ok(Some(metadata)) = wire::decode::<Option<Metadata>>(&response.head) {
                self.state().catalogue.describe(announced.id, metadata);
            }
        }
        true
    }

    /// Pulls bytes until they are here and match, or nobody is left to be asked.
    async fn pull(self: &Arc<Self>, announced: &Announcement) {
        let digest = announced.digest;
        let mut fetch = Fetch::new(announced.bytes, announced.writer());
        // On the word of an announcement no more is reserved than on that of a frame's header.
        let mut received = BytesMut::with_capacity(announced.bytes.min(MAX_UNPROVEN_BYTES as u64) as usize);
        loop {
            let holders = self.sources(announced);
            let step = fetch.next(&holders, Instant::now(), &mut self.state().rng);
            match step {
                Step::Stuck => return,
                Step::WaitUntil(until) => {
                    tokio::select! {
                        biased;
                        _ = self.blobs.arrival(digest) => return,
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
                Step::Ask { peer, offset, insist } => {
                    let pull = Pull { digest, offset, insist };
                    self.ask(announced, &mut fetch, &mut received, (peer, pull)).await;
                }
                Step::Complete => {
                    let bytes = std::mem::take(&mut received).freeze();
                    if Digest::of(&bytes) == digest {
                        self.archive.room().await;
                        self.blobs.stage(digest, bytes);
                        return;
                    }
                    if let Some(from) = fetch.mismatched() {
                        self.state().catalogue.not_held_by(digest, from);
                        self.observer.observe(StoreEvent::CorruptBlob { from, digest });
                    }
                }
            }
        }
    }

    /// Asks for one chunk, and takes note of what comes of it.
    async fn ask(
        &self,
        announced: &Announcement,
        fetch: &mut Fetch,
        received: &mut BytesMut,
        (peer, pull): (NodeId, Pull),
    ) {
        let left = announced.bytes - pull.offset;
        let request = Frame::new(wire::GOSSIP_PULL, wire::encode(&pull));
        let patience = transfer_timeout(left.min(CHUNK_BYTES));
        let Some(response) = self.answer(peer, Class::Blob, request, patience).await else {
            if fetch.failed(peer) {
                received.clear();
            }
            return;
        };
        match wire::decode(&response.head) {
            Ok(Pulled::Chunk) if response.body_len() as u64 == left.min(CHUNK_BYTES) => {
                let chunk = response.into_body();
                fetch.received(peer, chunk.len() as u64);
                received.extend_from_slice(&chunk);
            }
            Ok(Pulled::Busy { holders }) => {
                let pause = BUSY_PAUSE + Duration::from_millis(announced.bytes / FAIR_BYTES_PER_MS);
                let mut state = self.state();
                fetch.put_off(peer, Instant::now(), pause, &mut state.rng);
                for holder in holders.into_iter().take(MAX_REFERRALS) {
                    if state.peers.contains_key(&holder) && !fetch.refuses(holder) {
                        state.catalogue.held_by(announced.id, holder);
                    }
                }
            }
            // A chunk of another size is no chunk of these bytes.
            Ok(Pulled::NotHere | Pulled::Chunk) | Err(_) => {
                if fetch.failed(peer) {
                    received.clear();
                }
                self.state().catalogue.not_held_by(pull.digest, peer);
                self.observer.observe(StoreEvent::FalseClaim { from: peer, digest: pull.digest });
            }
        }
    }

    /// Answers a pull.
    pub(super) fn on_pull(&self, from: NodeId, request: &Frame) -> Result<Frame, Refusal> {
        let Pull { digest, offset, insist } = wire::decode(&request.head)?;
        let answer = |pulled: &Pulled| Frame::new(0, wire::encode(pulled));
        let Some(bytes) = self.blobs.get(digest) else { return Ok(answer(&Pulled::NotHere)) };
        let total = bytes.len() as u64;
        if offset > total {
            return Err(Refusal(format!("offset {offset} is beyond the {total} bytes of {digest}")));
        }
        let end = total.min(offset + CHUNK_BYTES);
        let mut state = self.state();
        let mut holders = state.catalogue.holders(digest);
        holders.retain(|holder| *holder != from && *holder != self.local);
        if !state.uploads.admit(
            (from, digest),
            (total - offset, total),
            (!holders.is_empty(), insist),
            Instant::now(),
        ) {
            let holders = holders.into_iter().take(MAX_REFERRALS).collect();
            return Ok(answer(&Pulled::Busy { holders }));
        }
        if end == total {
            state.uploads.finished((from, digest));
        }
        Ok(answer(&Pulled::Chunk).with_segment(bytes.slice(offset as usize..end as usize)))
    }

    /// Answers who asks for metadata.
    pub(super) fn on_describe(&self, request: &Frame) -> Result<Frame, Refusal> {
        let id: CheckpointId = wire::decode(&request.head)?;
        let metadata = self.state().catalogue.find(id).and_then(|entry| entry.metadata.clone());
        Ok(Frame::new(0, wire::encode(&metadata)))
    }

    /// The bytes of a checkpoint: from here, or fetched now.
    pub(super) async fn bytes(self: &Arc<Self>, announced: &Announcement) -> Option<Bytes> {
        self.fetch(*announced, false);
        self.changes
            .until(|| {
                let state = self.state();
                let held = state.catalogue.find(announced.id).is_none_or(|entry| entry.held);
                (held || state.closed || !state.fetching.contains(&announced.digest)).then_some(())
            })
            .await;
        let held = self.state().catalogue.find(announced.id).is_some_and(|entry| entry.held);
        if held { self.blobs.get(announced.digest) } else { None }
    }
}
