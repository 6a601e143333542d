//! Rounds of gossip: writes what this node has to say into chitchat's state, gossips with a few peers, reads what came in.
//!
//! chitchat keeps heartbeats and liveness by its own tick; whom to gossip with, and when, is decided here from the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chitchat::{ChitchatConfig, ChitchatHandle, FailureDetectorConfig, NodeState};
use rand::RngExt;
use rand::seq::IndexedRandom;
use tokio::time::Instant;

use super::MAX_ANNOUNCED;
use super::announce::{Announcement, epoch_to_text, parse_epoch};
use super::config::GossipConfig;
use super::core::Core;
use super::detector::{Accrual, MAX_INTERVALS, Silence, Suspicions};
use super::network::{Addresses, Bridge};
use crate::store::{CheckpointId, Epoch, NodeId};

/// Intervals between signs of life that the mean is taken of, beside chitchat's five prior ones: so few that the mean
/// stays near the gossip interval, and the timeout what is stated, however often news arrives on detours.
const SAMPLES: usize = 1;

/// A connected peer that chitchat has never seen alive is dead after this many timeouts: it may have ended before it had
/// given the two signs of life from which its silence is judged.
const UNSEEN_TIMEOUTS: u32 = 2;

/// A dead node's state is kept for this long.
const DEAD_NODE_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

const SCORE: &str = "s";
const EPOCH: &str = "e";
const RECORD: &str = "r";

/// chitchat's configuration on one node.
pub(super) fn chitchat_config(config: &GossipConfig, id: chitchat::ChitchatId) -> ChitchatConfig {
    let interval = config.interval();
    ChitchatConfig {
        listen_addr: id.gossip_advertise_addr,
        chitchat_id: id,
        cluster_id: "checkpoints".into(),
        gossip_interval: interval,
        seed_nodes: Vec::new(),
        failure_detector_config: FailureDetectorConfig {
            phi_threshold: f64::from(config.phi_milli) / 1000.0,
            sampling_window_size: SAMPLES,
            max_interval: interval * MAX_INTERVALS,
            initial_interval: interval,
            dead_node_grace_period: DEAD_NODE_GRACE,
        },
        marked_for_deletion_grace_period: DEAD_NODE_GRACE,
        catchup_callback: None,
        extra_liveness_predicate: None,
    }
}

/// What this node says from the beginning.
pub(super) fn first_values(score: u32) -> Vec<(String, String)> {
    vec![(SCORE.into(), score.to_string())]
}

/// What gossip says of one node.
struct News {
    /// Life and version.
    version: (u64, u64),
    score: Option<u32>,
    epoch: Option<Epoch>,
    holds: Vec<Announcement>,
}

impl News {
    fn read(life: u64, state: &NodeState) -> Self {
        let holds = state.iter_prefix(RECORD).take(MAX_ANNOUNCED);
        Self {
            version: (life, state.max_version()),
            score: state.get(SCORE).and_then(|score| score.parse().ok()),
            epoch: state.get(EPOCH).and_then(parse_epoch),
            holds: holds.filter_map(|(_, value)| Announcement::parse(&value.value)).collect(),
        }
    }
}

/// The number of a node's newest sign of life: chitchat's heartbeat, which has no other way out.
fn sign_of_life(state: &NodeState) -> u64 {
    u64::from(state.heartbeat())
}

pub(super) struct Driver {
    pub(super) core: Arc<Core>,
    pub(super) handle: ChitchatHandle,
    pub(super) bridge: Bridge,
    pub(super) addresses: Addresses,
    /// Under which key each checkpoint is announced.
    pub(super) places: BTreeMap<CheckpointId, usize>,
    /// What chitchat's detector makes of silence.
    pub(super) accrual: Accrual,
    /// The detector, unless it is chitchat's.
    pub(super) suspicions: Option<Suspicions>,
}

impl Driver {
    /// Gossips until the store closes.
    pub(super) async fn run(mut self) {
        let mut connected = self.core.transport.connected();
        connected.mark_changed();
        let mut next = Instant::now();
        loop {
            tokio::select! {
                biased;
                changed = connected.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = connected.borrow_and_update().clone();
                    self.on_connected(&now);
                }
                () = tokio::time::sleep_until(next) => {
                    next = self.next_round();
                    self.write().await;
                    self.gossip();
                    self.read().await;
                    self.core.fetch_missing();
                }
                () = self.bridge.seen() => self.read().await,
            }
        }
    }

    fn next_round(&self) -> Instant {
        let jitter = self.core.state().rng.random_range(0.9..1.1);
        Instant::now() + self.core.config.interval().mul_f64(jitter)
    }

    fn on_connected(&self, now: &[NodeId]) {
        let mut new = Vec::new();
        let mut state = self.core.state();
        for node in now {
            // It may be about to join.
            if self.addresses.learn(*node) {
                state.peers.entry(*node).or_default();
            }
        }
        for (node, peer) in &mut state.peers {
            let connected = now.contains(node);
            if connected && !peer.connected {
                new.push(*node);
                peer.since = Some(Instant::now());
            }
            peer.connected = connected;
        }
        drop(state);
        for node in &new {
            self.gossip_with(*node);
        }
        self.core.claim(new);
        self.core.changes.announce();
    }

    fn gossip(&self) {
        let peers: Vec<NodeId> = {
            let mut state = self.core.state();
            let connected: Vec<NodeId> = state.connected().into_iter().collect();
            connected.sample(&mut state.rng, self.core.config.fan_out as usize).copied().collect()
        };
        for peer in peers {
            self.gossip_with(peer);
        }
    }

    fn gossip_with(&self, peer: NodeId) {
        if self.addresses.learn(peer) && self.handle.gossip(self.addresses.gossip_address(peer)).is_err() {
            tracing::warn!("chitchat has ended");
        }
    }

    /// Writes what has changed on this node.
    async fn write(&mut self) {
        let (epoch, announced) = {
            let state = self.core.state();
            (state.office.in_force(), state.catalogue.to_announce(MAX_ANNOUNCED))
        };
        let before = self.places.len();
        let wanted: BTreeSet<CheckpointId> = announced.iter().map(|announced| announced.id).collect();
        let freed: Vec<usize> =
            self.places.iter().filter(|(id, _)| !wanted.contains(id)).map(|(_, place)| *place).collect();
        self.places.retain(|id, _| wanted.contains(id));
        let mut values = vec![(EPOCH.to_owned(), epoch_to_text(epoch))];
        values.extend(freed.iter().map(|place| (format!("{RECORD}{place}"), String::new())));
        let taken: BTreeSet<usize> = self.places.values().copied().collect();
        let mut free = (0..before + wanted.len()).filter(|place| !taken.contains(place));
        for announced in announced {
            if self.places.contains_key(&announced.id) {
                continue;
            }
            if let Some(place) = free.next() {
                self.places.insert(announced.id, place);
                values.retain(|(key, _)| *key != format!("{RECORD}{place}"));
                values.push((format!("{RECORD}{place}"), announced.to_text()));
            }
        }
        let write = |chitchat: &mut chitchat::Chitchat| {
            for (key, value) in &values {
                // Setting a value to what it is would still be news.
                if chitchat.self_node_state().get(key) != Some(value) {
                    chitchat.self_node_state().set(key, value);
                }
            }
        };
        self.handle.with_chitchat(write).await;
    }

    /// Reads what came in since the last time.
    async fn read(&mut self) {
        let versions: BTreeMap<NodeId, (u64, u64)> =
            self.core.state().peers.iter().map(|(node, peer)| (*node, peer.version)).collect();
        let read = |chitchat: &mut chitchat::Chitchat| {
            let named = |id| self.addresses.named(id);
            let now = Instant::now();
            for (id, state) in chitchat.node_states() {
                let Some((node, life)) = named(id).filter(|(node, _)| *node != self.core.local) else {
                    continue;
                };
                match &mut self.suspicions {
                    None => self.accrual.heard(node, life, sign_of_life(state), now),
                    Some(suspicions) => suspicions.heard(node, life, sign_of_life(state), now),
                }
            }
            let (live, silences): (BTreeSet<NodeId>, Vec<Silence>) = match &mut self.suspicions {
                None => {
                    let live = chitchat.live_nodes().filter_map(named).map(|(node, _)| node).collect();
                    (live, self.accrual.silences().collect())
                }
                Some(suspicions) => (suspicions.live(now).collect(), suspicions.silences().collect()),
            };
            let states = chitchat.node_states().iter().filter_map(|(id, state)| Some((named(id)?, state)));
            // What a node said in an earlier life it does not say any more.
            let new = states.filter(|((node, life), state)| {
                versions.get(node).is_some_and(|version| *version < (*life, state.max_version()))
            });
            let news: BTreeMap<(NodeId, u64), News> =
                new.map(|((node, life), state)| ((node, life), News::read(life, state))).collect();
            let newest: BTreeMap<NodeId, News> =
                news.into_iter().map(|((node, _), news)| (node, news)).collect();
            (live, silences, newest.into_iter().collect::<Vec<_>>())
        };
        let (live, silences, news) = self.handle.with_chitchat(read).await;
        self.note_silences(silences);
        if self.take_note(&live, &news) {
            self.core.look_for_the_aggregator();
            self.core.changes.announce();
        }
        for (node, news) in news {
            self.core.learn_all(node, news.holds);
            // A node's own office is for itself to claim.
            if let Some(epoch) = news.epoch.filter(|epoch| epoch.node != self.core.local) {
                self.core.follow(epoch);
            }
        }
    }

    /// For those who want to look: nothing depends on it.
    fn note_silences(&self, silences: Vec<Silence>) {
        let peers = &mut self.core.state().peers;
        for (node, silence) in silences {
            if let Some(peer) = peers.get_mut(&node) {
                peer.silence = Some(silence);
            }
        }
    }

    /// Whether something changed.
    fn take_note(&self, live: &BTreeSet<NodeId>, news: &[(NodeId, News)]) -> bool {
        let unseen_timeout = self.core.config.effective_timeout() * UNSEEN_TIMEOUTS;
        let state = &mut *self.core.state();
        let mut changed = !news.is_empty();
        for (node, peer) in &mut state.peers {
            // What was never seen alive is not dead at once: the first signs of life may take a while.
            let unseen = || peer.since.is_none_or(|since| since.elapsed() < unseen_timeout);
            let now = match peer.alive {
                _ if live.contains(node) => Some(true),
                None if unseen() => None,
                _ => Some(false),
            };
            changed |= peer.alive != now;
            peer.alive = now;
        }
        for (node, news) in news {
            if let Some(peer) = state.peers.get_mut(node) {
                peer.version = news.version;
            }
            let fitness = state.fitness.entry(*node).or_default();
            fitness.score = news.score.or(fitness.score);
            let globals = news.holds.iter().filter(|held| held.id.slot == crate::store::Slot::Global);
            fitness.freshest = globals.map(Announcement::order).max();
        }
        changed
    }
}
