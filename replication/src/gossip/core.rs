//! What a node of the gossip backend knows, shared by its tasks: one state behind one lock, and the word that it changed.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::announce::Announcement;
use super::catalogue::{Catalogue, Learned};
use super::config::GossipConfig;
use super::fetch::Uploads;
use super::messages::{Have, MAX_RUMOUR_METADATA_BYTES, Rumour, Yield};
use super::office::{Fitness, Followed, Office};
use super::past::{Past, keep_promises, keep_slot};
use crate::archive::Archive;
use crate::blob::Blobs;
use crate::event::{Observer, StoreEvent};
use crate::members::{Members, Place};
use crate::store::{CheckpointId, Digest, Epoch, Metadata, NodeId};
use crate::transport::{Class, Frame, Transport, TransportError};
use crate::wire;

/// Pairs of rivals of which is remembered that they were told of.
const RIVALS_REMEMBERED: usize = 64;

/// Small messages under way at a time; beyond it they are not sent, and gossip brings the news.
const MAX_MESSAGES: usize = 256;

/// How long a small message may take.
pub(super) const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Tells of every change of the state, in the order in which tasks began to wait.
#[derive(Default)]
pub(super) struct Changes(Notify);

impl Changes {
    pub(super) fn announce(&self) {
        self.0.notify_waiters();
    }

    /// Waits until `look` sees something.
    pub(super) async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        loop {
            let mut change = pin!(self.0.notified());
            // Counts as waiting from here, so that no change slips in between looking and waiting.
            change.as_mut().enable();
            if let Some(seen) = look() {
                return seen;
            }
            change.await;
        }
    }
}

/// A peer, as gossip tells.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Peer {
    pub(super) connected: bool,
    /// Since when, or when it was last; or since when it aggregates, if it has not been.
    pub(super) since: Option<Instant>,
    /// chitchat says it lives, or has said so once.
    pub(super) alive: Option<bool>,
    /// When it gave its newest sign of life, and for how long it may be silent after that.
    pub(super) silence: Option<(Instant, Duration)>,
    /// Life and version of its gossip state that was read last.
    pub(super) version: (u64, u64),
}

impl Peer {
    fn lives(&self) -> bool {
        self.alive.unwrap_or(self.connected)
    }

    fn reachable(&self) -> bool {
        self.connected && self.lives()
    }
}

pub(super) struct State {
    pub(super) office: Office,
    pub(super) catalogue: Catalogue,
    pub(super) uploads: Uploads,
    pub(super) peers: BTreeMap<NodeId, Peer>,
    pub(super) fitness: BTreeMap<NodeId, Fitness>,
    pub(super) members: Members,
    /// Which configuration each node has confirmed to this aggregator, and which was found settled.
    pub(super) confirmed: BTreeMap<NodeId, Place>,
    pub(super) settled: Option<Place>,
    /// What this node as aggregator continues from.
    pub(super) base: Option<CheckpointId>,
    /// Being fetched.
    pub(super) fetching: BTreeSet<Digest>,
    pub(super) rng: ChaCha8Rng,
    /// This node has asked another to take over its epoch.
    pub(super) handing_over: Option<Epoch>,
    suspected: Option<Epoch>,
    /// A lifeline told that the aggregator of this epoch crashed: until then it counts as dead, whatever gossip says.
    crashed: Option<(Epoch, Instant)>,
    rivals: BTreeSet<(Epoch, Epoch)>,
    pub(super) closed: bool,
}

/// One node.
pub(super) struct Core {
    pub(super) config: GossipConfig,
    pub(super) local: NodeId,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) archive: Archive,
    pub(super) blobs: Blobs,
    pub(super) changes: Changes,
    pub(super) aggregator: watch::Sender<Option<Epoch>>,
    /// Held while members change: one change at a time.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// This node wants to be let go.
    pub(super) leaving: AtomicBool,
    state: Mutex<State>,
    background: Mutex<JoinSet<()>>,
}

impl State {
    /// The aggregator, if a lifeline tells that it crashed.
    fn crashed(&self) -> Option<NodeId> {
        let (epoch, until) = self.crashed?;
        (self.office.in_force() == Some(epoch) && Instant::now() < until).then_some(epoch.node)
    }

    /// Nodes that live, this one included: chitchat says so, or has not yet said anything of a connected one, or of the
    /// aggregator, which others may know of before there is a connection to it.
    pub(super) fn live(&self, local: NodeId) -> BTreeSet<NodeId> {
        let (crashed, aggregator) = (self.crashed(), self.office.in_force().map(|epoch| epoch.node));
        let unseen = |node: &NodeId, peer: &Peer| peer.alive.is_none() && Some(*node) == aggregator;
        let lives =
            |node: &NodeId, peer: &Peer| Some(*node) != crashed && (peer.lives() || unseen(node, peer));
        let live = self.peers.iter().filter(|(node, peer)| lives(node, peer));
        live.map(|(node, _)| *node).chain([local]).collect()
    }

    /// Peers that can be asked for something. A dead node stays connected for seconds, until when it is suspected.
    pub(super) fn reachable(&self) -> BTreeSet<NodeId> {
        let crashed = self.crashed();
        let reachable = self.peers.iter().filter(|(node, peer)| Some(**node) != crashed && peer.reachable());
        reachable.map(|(node, _)| *node).collect()
    }

    /// Those of `nodes` that can be asked for something.
    pub(super) fn reachable_of(&self, mut nodes: BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let crashed = self.crashed();
        nodes.retain(|node| Some(*node) != crashed && self.peers.get(node).is_some_and(Peer::reachable));
        nodes
    }

    pub(super) fn connected(&self) -> BTreeSet<NodeId> {
        self.peers.iter().filter(|(_, peer)| peer.connected).map(|(node, _)| *node).collect()
    }
}

impl Core {
    pub(super) fn new(
        config: GossipConfig,
        (transport, observer): (Arc<dyn Transport>, Arc<dyn Observer>),
        past: Past,
        score: u32,
        rng: ChaCha8Rng,
    ) -> Self {
        let local = transport.local();
        let Past { archive, blobs, catalogue, promises, members, .. } = past;
        let among = (members.len(), config.linear());
        let office = Office::new(local, among, config.interval(), promises, Instant::now());
        let freshest = catalogue.held_global().map(|entry| entry.announced.order());
        let state = State {
            office,
            catalogue,
            uploads: Uploads::default(),
            peers: members
                .nodes()
                .iter()
                .filter(|node| **node != local)
                .map(|node| (*node, Peer::default()))
                .collect(),
            fitness: BTreeMap::from([(local, Fitness { freshest, score: Some(score) })]),
            members,
            confirmed: BTreeMap::new(),
            settled: None,
            base: None,
            fetching: BTreeSet::new(),
            rng,
            handing_over: None,
            suspected: None,
            crashed: None,
            rivals: BTreeSet::new(),
            closed: false,
        };
        Self {
            config,
            local,
            transport,
            observer,
            archive,
            blobs,
            changes: Changes::default(),
            aggregator: watch::Sender::new(None),
            changing: tokio::sync::Mutex::new(()),
            leaving: AtomicBool::new(false),
            state: Mutex::new(state),
            background: Mutex::default(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `task` until it ends or the store closes.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut background = self.background();
        if !self.state().closed {
            background.spawn(task);
        }
    }

    /// What is under way, without what has ended: that would count, too, until somebody takes note.
    fn background(&self) -> MutexGuard<'_, JoinSet<()>> {
        let mut background = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        while background.try_join_next().is_some() {}
        background
    }

    /// Ends everything in the background.
    pub(super) fn close(&self) {
        let mut background = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        self.state().closed = true;
        background.abort_all();
        drop(background);
        self.changes.announce();
    }

    /// Whether another small message may be under way.
    fn may_tell(&self) -> bool {
        self.background().len() < MAX_MESSAGES
    }

    /// Sends a small message, on which nothing depends: gossip brings the same news later.
    pub(super) fn tell(self: &Arc<Self>, peer: NodeId, class: Class, frame: Frame) {
        if !self.may_tell() {
            return;
        }
        let transport = self.transport.clone();
        self.spawn(async move {
            let _ = tokio::time::timeout(MESSAGE_TIMEOUT, transport.request(peer, class, frame)).await;
        });
    }

    /// Takes note of a checkpoint and of a node that says it holds it.
    pub(super) fn learn(
        self: &Arc<Self>,
        announced: Announcement,
        metadata: Option<Metadata>,
        holder: Option<NodeId>,
    ) -> Learned {
        if !announced.plausible() {
            return Learned::Refused;
        }
        let learned = {
            let mut state = self.state();
            let learned = state.catalogue.learn(announced, holder.filter(|node| *node != self.local));
            if let (Some(metadata), false) = (metadata, learned == Learned::Refused) {
                state.catalogue.describe(announced.id, metadata);
            }
            if matches!(&learned, Learned::New(released) if !released.is_empty()) {
                // Before the bytes that it refers to are let go.
                keep_slot(&self.archive, &state.catalogue, announced.id.slot);
            }
            learned
        };
        if let Learned::New(released) = &learned {
            released.iter().for_each(|digest| self.blobs.release(*digest));
        }
        self.settle(announced.digest);
        self.changes.announce();
        learned
    }

    /// Holds what can be held with the bytes of `digest`, if they are here, and says so to the writers.
    pub(super) fn settle(self: &Arc<Self>, digest: Digest) {
        if self.blobs.get(digest).is_none() {
            return;
        }
        let held = {
            let mut state = self.state();
            let held = state.catalogue.arrived(digest, self.local);
            if !held.is_empty() {
                self.blobs.refer(digest);
            }
            for announced in &held {
                keep_slot(&self.archive, &state.catalogue, announced.id.slot);
            }
            let freshest = state.catalogue.held_global().map(|entry| entry.announced.order());
            state.fitness.entry(self.local).or_default().freshest = freshest;
            held
        };
        for announced in held {
            let Announcement { id, digest, bytes, .. } = announced;
            self.observer.observe(StoreEvent::Applied { id, digest, bytes });
            self.acknowledge(&announced);
        }
        self.changes.announce();
    }

    /// Tells the writer that this node holds a checkpoint, once a restart does not lose it, unless a later epoch is promised.
    pub(super) fn acknowledge(self: &Arc<Self>, announced: &Announcement) {
        let Announcement { id, digest, .. } = *announced;
        let writer = announced.writer();
        if writer == self.local || !self.may_tell() {
            return;
        }
        let core = self.clone();
        self.spawn(async move {
            if let Err(error) = core.archive.flush().await {
                tracing::warn!(%error, %id, "not kept");
                return;
            }
            // Whoever is promised a later epoch from here on is told that it is held.
            if core.state().office.fences(id.epoch).is_none() {
                let members = core.state().members.place();
                let have = Frame::new(wire::GOSSIP_HAVE, wire::encode(&Have { id, digest, members }));
                let request = core.transport.request(writer, Class::Digest, have);
                let _ = tokio::time::timeout(MESSAGE_TIMEOUT, request).await;
            }
        });
    }

    /// Writes what the office has promised now. It counts once it is flushed.
    pub(super) fn keep_promises(&self, state: &State) {
        keep_promises(&self.archive, state.office.promises());
    }

    /// The rumour of a checkpoint this node knows.
    pub(super) fn rumour(&self, announced: Announcement, carried: bool) -> Rumour {
        let metadata = self.state().catalogue.find(announced.id).and_then(|entry| entry.metadata.clone());
        let small = |metadata: &Metadata| wire::encode(metadata).len() <= MAX_RUMOUR_METADATA_BYTES;
        Rumour { announced, metadata: metadata.filter(small), carried }
    }

    /// Some connected nodes for a rumour, none of `without`.
    pub(super) fn some_peers(&self, without: &BTreeSet<NodeId>) -> Vec<NodeId> {
        let mut state = self.state();
        let peers: Vec<NodeId> = state.connected().difference(without).copied().collect();
        peers.sample(&mut state.rng, self.config.fan_out as usize).copied().collect()
    }

    /// Passes a rumour on.
    pub(super) fn spread(self: &Arc<Self>, rumour: &Rumour, without: &BTreeSet<NodeId>) {
        let peers = self.some_peers(without);
        let frame = Frame::new(wire::GOSSIP_RUMOUR, wire::encode(rumour));
        for peer in peers {
            let (core, frame, epoch) = (self.clone(), frame.clone(), rumour.announced.id.epoch);
            self.spawn(async move {
                let request = core.transport.request(peer, Class::Digest, frame);
                if let Ok(Ok(response)) = tokio::time::timeout(MESSAGE_TIMEOUT, request).await {
                    core.heard(epoch, &response);
                }
            });
        }
    }

    /// Takes note of the answer to a rumour of `epoch`.
    fn heard(&self, epoch: Epoch, response: &Frame) {
        let heard: Result<super::messages::Heard, _> = wire::decode(&response.head);
        if let Some(fenced_by) = heard.ok().and_then(|heard| heard.fenced_by).filter(|by| *by > epoch) {
            self.state().office.fenced_by(fenced_by);
            self.changes.announce();
        }
    }

    /// Follows `epoch` if it is newer than the one in force, and tells of what that means.
    pub(super) fn follow(self: &Arc<Self>, epoch: Epoch) -> bool {
        let (followed, yields) = {
            let mut state = self.state();
            // Who is neither a member nor connected is nobody.
            let known = epoch.node == self.local || state.peers.contains_key(&epoch.node);
            if !known && !state.members.contains(epoch.node) {
                return false;
            }
            let followed = state.office.follow(epoch);
            let Followed::Now { before } = followed else { return false };
            if let Some(peer) = state.peers.get_mut(&epoch.node) {
                peer.since.get_or_insert_with(Instant::now);
            }
            self.keep_promises(&state);
            let mine = before.filter(|before| before.node == self.local && epoch.node != self.local);
            let yields = mine.filter(|mine| state.handing_over != Some(*mine) && !self.config.linear());
            self.aggregator.send_replace(Some(epoch));
            (epoch, yields)
        };
        self.observer.observe(StoreEvent::AggregatorChanged { epoch: Some(followed) });
        if let Some(yields) = yields {
            let rivals = Yield { stays: epoch, yields };
            self.rivals(rivals);
            let connected = self.state().connected();
            for peer in connected {
                self.tell(peer, Class::Election, Frame::new(wire::GOSSIP_YIELD, wire::encode(&rivals)));
            }
        }
        self.changes.announce();
        true
    }

    /// Tells of two aggregators at the same time, once.
    pub(super) fn rivals(&self, Yield { stays, yields }: Yield) {
        let new = {
            let mut state = self.state();
            if state.rivals.len() >= RIVALS_REMEMBERED {
                state.rivals.pop_first();
            }
            state.rivals.insert((stays, yields))
        };
        if new {
            self.observer.observe(StoreEvent::RivalAggregators { stays, yields });
        }
    }

    /// Says to `peers` that this node aggregates, if it does.
    pub(super) fn claim(self: &Arc<Self>, peers: impl IntoIterator<Item = NodeId>) {
        let mine = self.state().office.in_force().filter(|epoch| epoch.node == self.local);
        if let Some(epoch) = mine {
            for peer in peers {
                self.tell(peer, Class::Election, Frame::new(wire::GOSSIP_CLAIM, wire::encode(&epoch)));
            }
        }
    }

    /// Tells once of an aggregator that does not seem to live.
    pub(super) fn look_for_the_aggregator(&self) {
        let suspected = {
            let mut state = self.state();
            let live = state.live(self.local);
            let gone = state.office.in_force().filter(|epoch| !live.contains(&epoch.node));
            let new = gone.is_some() && state.suspected != gone;
            state.suspected = gone;
            gone.filter(|_| new)
        };
        if suspected.is_some() {
            let lifeline = self.state().crashed().is_some();
            self.observer.observe(StoreEvent::Suspected { epoch: suspected, silence_ns: None, lifeline });
        }
    }

    /// A lifeline ended: the aggregator of `epoch` counts as dead for as long as gossip may take to find out.
    pub(super) fn crashed(&self, epoch: Epoch) {
        self.state().crashed = Some((epoch, Instant::now() + self.config.effective_timeout()));
        self.look_for_the_aggregator();
        self.changes.announce();
    }

    /// The newest checkpoint of the job's state that this node holds.
    pub(super) fn global_base(&self) -> Option<CheckpointId> {
        self.state().catalogue.held_global().map(|entry| entry.announced.id)
    }

    /// Whether the peer certainly did not get the request.
    pub(super) fn gone(error: &TransportError) -> bool {
        matches!(error, TransportError::Unreachable { .. } | TransportError::Closed)
    }
}
