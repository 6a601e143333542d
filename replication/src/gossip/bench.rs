//! One node of a large cluster, for benches: what it makes of what all others announce, whom it plans to ask for what, and what it
//! serves. Nothing is sent.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use super::announce::{Announcement, metadata_digest};
use super::config::GossipConfig;
use super::core::{Core, Peer};
use super::detector::Detector;
use super::fetch::{CHUNK_BYTES, Fetch, Step};
use super::messages::Pull;
use super::past::Past;
use crate::event::Silent;
use crate::store::{CheckpointId, DEFAULT_RETAINED, Digest, Epoch, Metadata, NodeId, Phase, Slot};
use crate::transport::Frame;
use crate::transport::channel::{ChannelNetwork, LinkSpec};
use crate::wire;

const LOCAL: NodeId = NodeId(1);
const WRITER: NodeId = NodeId(2);

/// Node 1 of a cluster in which every other node is connected and announces the same checkpoints.
pub struct Neighbourhood {
    core: Arc<Core>,
    /// What each of the others announces, as in gossip state.
    said: Vec<(NodeId, Vec<String>)>,
    _runtime: Runtime,
}

impl fmt::Debug for Neighbourhood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Neighbourhood").field("others", &self.said.len()).finish_non_exhaustive()
    }
}

fn announced(round: u64, digest: Digest, bytes: u64) -> Announcement {
    let epoch = Epoch { counter: 1, node: WRITER };
    let id = CheckpointId { epoch, round, phase: Phase::AggregateFit, slot: Slot::Global };
    Announcement { id, digest, bytes, metadata: metadata_digest(&Metadata::new()) }
}

impl Neighbourhood {
    /// `nodes` nodes, all but this one with as many checkpoints of `bytes` bytes as are retained.
    ///
    /// # Panics
    /// Without a runtime.
    #[must_use]
    pub fn new(nodes: u64, bytes: u64) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let Ok(runtime) = runtime else { panic!("no runtime") };
        let all: BTreeSet<NodeId> = (1..=nodes).map(NodeId).collect();
        let config = GossipConfig {
            nodes: all.clone(),
            holders: nodes as u32 / 2 + 1,
            interval_ms: 100,
            fan_out: 2,
            phi_milli: 8000,
            detector: Detector::Phi,
            put_timeout_ms: 1000,
            retained: DEFAULT_RETAINED,
            seed: 1,
        };
        let core = runtime.block_on(async {
            let transport = ChannelNetwork::new(1, LinkSpec::default(), [LOCAL, WRITER]).join(LOCAL);
            let Ok(past) = Past::read(&config, LOCAL, false, None).await else {
                panic!("no storage, no error")
            };
            let rng = ChaCha8Rng::seed_from_u64(1);
            Arc::new(Core::new(config, (transport, Arc::new(Silent)), past, 1, rng))
        });
        for peer in core.state().peers.values_mut() {
            *peer = Peer { connected: true, alive: Some(true), ..Peer::default() };
        }
        let texts: Vec<String> = (1..=DEFAULT_RETAINED as u64)
            .map(|round| announced(round, Digest::of(&round.to_le_bytes()), bytes).to_text())
            .collect();
        let others = all.into_iter().filter(|node| *node != LOCAL);
        Self { core, said: others.map(|node| (node, texts.clone())).collect(), _runtime: runtime }
    }

    /// Reads what every other node announces and takes note of it. Returns how many checkpoints are missed then.
    #[must_use]
    pub fn take_note(&self) -> usize {
        for (node, texts) in &self.said {
            let announced = texts.iter().filter_map(|text| Announcement::parse(text)).collect();
            self.core.learn_all(*node, announced);
        }
        self.core.missing().len()
    }

    /// As after [`Self::take_note`].
    #[must_use]
    pub fn noted(self) -> Self {
        let _ = self.take_note();
        self
    }

    /// Plans the fetch of everything that is missed, chunk by chunk, as if each came at once. Returns the number of chunks.
    #[must_use]
    pub fn plan(&self) -> usize {
        let now = Instant::now();
        let mut chunks = 0;
        for announced in self.core.missing() {
            let mut fetch = Fetch::new(announced.bytes, announced.writer());
            loop {
                let holders = self.core.sources(&announced);
                let step = fetch.next(&holders, now, &mut self.core.state().rng);
                let Step::Ask { peer, offset, .. } = step else { break };
                fetch.received(peer, CHUNK_BYTES.min(announced.bytes - offset));
                chunks += 1;
            }
        }
        chunks
    }

    /// With these bytes in hand.
    #[must_use]
    pub fn holding(self, bytes: &Bytes) -> Self {
        self.core.blobs.stage(Digest::of(bytes), bytes.clone());
        self
    }

    /// Answers every pull of one peer that fetches what [`Self::holding`] gave. Returns the bytes served.
    #[must_use]
    pub fn serve(&self, digest: Digest, bytes: u64) -> usize {
        let chunks = (0..bytes).step_by(CHUNK_BYTES as usize);
        let served = chunks.map(|offset| {
            let request = Frame::new(wire::GOSSIP_PULL, wire::encode(&Pull { digest, offset, insist: true }));
            self.core.on_pull(WRITER, &request).map_or(0, |answer| answer.body_len())
        });
        served.sum()
    }
}
