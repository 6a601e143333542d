//! Which holder to ask for which chunk next, and whose chunks to serve: pure decisions on events and time.
//!
//! One chunk is asked for at a time, and a source is stayed with until it fails: chunks already here are kept, the rest is
//! asked of another. The writer is asked last among equals, so that bytes spread as a tree. Bytes that do not match
//! their digest are blamed on their source if there was only one; otherwise they are fetched again from a single one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;

use crate::store::{Digest, NodeId};

/// Bytes of a chunk.
pub(super) const CHUNK_BYTES: u64 = 64 * 1024;

/// Uploads a node serves at a time.
pub(super) const MAX_UPLOADS: usize = 2;

/// A node that has served this many tenths of the bytes of a digest serves them no more while others hold them.
const MAX_SERVED_TENTHS: u64 = 29;

/// A peer that has not asked for its next chunk after this long has given up.
const UPLOAD_LEASE: Duration = Duration::from_secs(2);

/// Digests of which is remembered how much of them was served.
const DIGESTS_REMEMBERED: usize = 64;

/// A fetch that was put off this often asks its holders to serve it beyond their share.
const PATIENT_TIMES: u32 = 40;

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask `peer` for the bytes from `offset`.
    Ask {
        peer: NodeId,
        offset: u64,
        /// Beyond its share, if need be.
        insist: bool,
    },
    /// Look again at that time, or when there are more holders.
    WaitUntil(Instant),
    /// Everything is here.
    Complete,
    /// There is nobody to ask.
    Stuck,
}

/// One fetch.
#[derive(Debug)]
pub(super) struct Fetch {
    total: u64,
    writer: NodeId,
    received: u64,
    source: Option<NodeId>,
    sources: BTreeSet<NodeId>,
    /// Not to be asked before.
    put_off: BTreeMap<NodeId, Instant>,
    /// Not to be asked again.
    banned: BTreeSet<NodeId>,
    single_source: bool,
    times_put_off: u32,
}

impl Fetch {
    pub(super) fn new(total: u64, writer: NodeId) -> Self {
        Self {
            total,
            writer,
            received: 0,
            source: None,
            sources: BTreeSet::new(),
            put_off: BTreeMap::new(),
            banned: BTreeSet::new(),
            single_source: false,
            times_put_off: 0,
        }
    }

    /// What to do, given who says it holds the bytes and can be reached.
    pub(super) fn next(&mut self, holders: &BTreeSet<NodeId>, now: Instant, rng: &mut ChaCha8Rng) -> Step {
        if self.received == self.total && !self.sources.is_empty() {
            return Step::Complete;
        }
        let insist = self.times_put_off >= PATIENT_TIMES;
        let ask = |peer| Step::Ask { peer, offset: self.received, insist };
        if let Some(source) = self.source.filter(|source| holders.contains(source)) {
            return ask(source);
        }
        let candidates: Vec<NodeId> = holders.difference(&self.banned).copied().collect();
        let ready = |peer: &&NodeId| self.put_off.get(peer).is_none_or(|until| *until <= now);
        let others: Vec<NodeId> =
            candidates.iter().filter(ready).copied().filter(|peer| *peer != self.writer).collect();
        let writer = candidates.iter().filter(ready).copied().find(|peer| *peer == self.writer);
        if let Some(peer) = others.choose(rng).copied().or(writer) {
            let step = ask(peer);
            self.source = Some(peer);
            return step;
        }
        let earliest = candidates.iter().filter_map(|peer| self.put_off.get(peer)).min();
        earliest.map_or(Step::Stuck, |until| Step::WaitUntil(*until))
    }

    /// `bytes` more are here, from `from`.
    pub(super) fn received(&mut self, from: NodeId, bytes: u64) {
        self.received += bytes;
        self.sources.insert(from);
    }

    /// `peer` cannot serve now: it is asked again after `pause`, a little more or less.
    pub(super) fn put_off(&mut self, peer: NodeId, now: Instant, pause: Duration, rng: &mut ChaCha8Rng) {
        self.times_put_off += 1;
        self.put_off.insert(peer, now + pause.mul_f64(rng.random_range(0.5..1.0)));
        self.leave();
    }

    /// Whether `peer` is not to be asked again.
    pub(super) fn refuses(&self, peer: NodeId) -> bool {
        self.banned.contains(&peer)
    }

    /// `peer` does not have the bytes, or cannot be reached. Returns whether what is here so far is void.
    pub(super) fn failed(&mut self, peer: NodeId) -> bool {
        self.banned.insert(peer);
        self.leave();
        let void = self.single_source && self.received > 0;
        if void {
            self.restart();
        }
        void
    }

    /// The bytes do not match their digest. Returns who is to blame, if that is known.
    pub(super) fn mismatched(&mut self) -> Option<NodeId> {
        let blamed = if self.sources.len() == 1 { self.sources.first().copied() } else { None };
        self.banned.extend(blamed);
        self.single_source = true;
        self.leave();
        self.restart();
        blamed
    }

    fn leave(&mut self) {
        self.source = None;
    }

    fn restart(&mut self) {
        self.received = 0;
        self.sources.clear();
    }
}

/// What this node serves, and has served.
#[derive(Debug, Default)]
pub(super) struct Uploads {
    /// Under way, and when the last chunk was asked for.
    running: BTreeMap<(NodeId, Digest), Instant>,
    /// Bytes promised to peers, and when some were asked for last; oldest digest first.
    served: Vec<(Digest, u64, Instant)>,
}

impl Uploads {
    /// Whether to serve a peer that still needs `left` bytes of `total`. If `spare`, others could do it; if the peer
    /// insists, they do not.
    pub(super) fn admit(
        &mut self,
        upload: (NodeId, Digest),
        (left, total): (u64, u64),
        (spare, insist): (bool, bool),
        now: Instant,
    ) -> bool {
        self.running.retain(|_, last| now < *last + UPLOAD_LEASE);
        let digest = upload.1;
        if !self.running.contains_key(&upload) {
            let at = self.served.iter().position(|(of, ..)| *of == digest);
            let served = at.map_or(0, |at| self.served[at].1) + left;
            let over = served.saturating_mul(10) > total.saturating_mul(MAX_SERVED_TENTHS);
            // Who was served lately holds the bytes, or will say so soon.
            let spare = spare || at.is_some_and(|at| now < self.served[at].2 + UPLOAD_LEASE);
            if self.running.len() >= MAX_UPLOADS || (over && spare && !insist) {
                return false;
            }
            match at {
                Some(at) => self.served[at].1 = served,
                None => self.served.push((digest, served, now)),
            }
            if self.served.len() > DIGESTS_REMEMBERED {
                self.served.remove(0);
            }
        }
        self.running.insert(upload, now);
        if let Some((_, _, last)) = self.served.iter_mut().find(|(of, ..)| *of == digest) {
            *last = now;
        }
        true
    }

    /// The last chunk has been served.
    pub(super) fn finished(&mut self, upload: (NodeId, Digest)) {
        self.running.remove(&upload);
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const WRITER: NodeId = NodeId(1);

    fn holders(nodes: &[u64]) -> BTreeSet<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    fn rng() -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(1)
    }

    fn asked(step: Step) -> (NodeId, u64) {
        match step {
            Step::Ask { peer, offset, .. } => (peer, offset),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_writer_is_asked_only_if_nobody_else_can_be() {
        for seed in 0..50 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut fetch = Fetch::new(100, WRITER);
            assert_ne!(asked(fetch.next(&holders(&[1, 2, 3]), Instant::now(), &mut rng)).0, WRITER);
        }
        let mut fetch = Fetch::new(100, WRITER);
        assert_eq!(asked(fetch.next(&holders(&[1]), Instant::now(), &mut rng())), (WRITER, 0));
    }

    #[test]
    fn what_is_here_is_kept_when_a_holder_vanishes() {
        let (mut rng, now) = (rng(), Instant::now());
        let mut fetch = Fetch::new(100, WRITER);
        let (first, _) = asked(fetch.next(&holders(&[2, 3]), now, &mut rng));
        fetch.received(first, 60);
        assert_eq!(asked(fetch.next(&holders(&[2, 3]), now, &mut rng)), (first, 60));
        assert!(!fetch.failed(first));
        let (second, offset) = asked(fetch.next(&holders(&[2, 3]), now, &mut rng));
        assert!(second != first && offset == 60);
        fetch.received(second, 40);
        assert_eq!(fetch.next(&holders(&[2, 3]), now, &mut rng), Step::Complete);
    }

    #[test]
    fn wrong_bytes_are_blamed_on_a_single_source_only() {
        let (mut rng, now) = (rng(), Instant::now());
        let mut fetch = Fetch::new(100, WRITER);
        fetch.received(NodeId(2), 60);
        fetch.received(NodeId(3), 40);
        assert_eq!(fetch.mismatched(), None);
        let (only, offset) = asked(fetch.next(&holders(&[2, 3]), now, &mut rng));
        assert_eq!(offset, 0);
        fetch.received(only, 100);
        assert_eq!(fetch.mismatched(), Some(only));
        let (other, _) = asked(fetch.next(&holders(&[2, 3]), now, &mut rng));
        assert_ne!(other, only);
        fetch.received(other, 50);
        assert!(fetch.failed(other), "half of a single source's bytes are of no use");
        assert_eq!(fetch.next(&holders(&[2, 3]), now, &mut rng), Step::Stuck);
    }

    #[test]
    fn a_busy_holder_is_asked_again_later() {
        let (mut rng, now) = (rng(), Instant::now());
        let pause = Duration::from_millis(100);
        let mut fetch = Fetch::new(100, WRITER);
        let (busy, _) = asked(fetch.next(&holders(&[2]), now, &mut rng));
        fetch.put_off(busy, now, pause, &mut rng);
        let Step::WaitUntil(until) = fetch.next(&holders(&[2]), now, &mut rng) else { panic!("waits") };
        assert!(until > now && until <= now + pause);
        assert_eq!(asked(fetch.next(&holders(&[2]), until, &mut rng)).0, busy);
    }

    #[test]
    fn nothing_is_fetched_of_nothing() {
        let mut fetch = Fetch::new(0, WRITER);
        assert_eq!(asked(fetch.next(&holders(&[2]), Instant::now(), &mut rng())), (NodeId(2), 0));
        fetch.received(NodeId(2), 0);
        assert_eq!(fetch.next(&holders(&[2]), Instant::now(), &mut rng()), Step::Complete);
    }

    #[test]
    fn two_uploads_at_a_time_and_less_than_three_of_a_digest() {
        let (mut uploads, now, digest) = (Uploads::default(), Instant::now(), Digest::of(b"x"));
        let peer = |node| (NodeId(node), digest);
        assert!(
            uploads.admit(peer(2), (100, 100), (true, false), now)
                && uploads.admit(peer(3), (100, 100), (true, false), now)
        );
        assert!(!uploads.admit(peer(4), (100, 100), (false, false), now), "two at a time");
        assert!(uploads.admit(peer(2), (50, 100), (true, false), now), "goes on");
        uploads.finished(peer(2));
        assert!(!uploads.admit(peer(4), (100, 100), (true, false), now), "others hold it");
        assert!(!uploads.admit(peer(4), (100, 100), (false, false), now), "others will hold it soon");
        assert!(uploads.admit(peer(4), (100, 100), (true, true), now), "nobody else serves it");
        let other = |node| (NodeId(node), Digest::of(b"y"));
        assert!(!uploads.admit(other(5), (100, 100), (true, false), now));
        assert!(
            uploads.admit(other(5), (100, 100), (true, false), now + UPLOAD_LEASE),
            "who is silent has given up"
        );
        let later = now + 2 * UPLOAD_LEASE;
        assert!(uploads.admit(peer(6), (100, 100), (false, false), later), "nobody else holds it");
    }
}
