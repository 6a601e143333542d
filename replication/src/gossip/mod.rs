//! [`GossipStore`]: the contract on gossip.
//!
//! chitchat carries small facts: who lives, how fit it is, which epoch it follows, which checkpoints it holds. Bytes are
//! pulled from whoever holds them. A write is acknowledged when enough nodes hold it that have promised no later epoch.
//!
//! This module deliberately does not know what rounds do, nor how a transport reaches its peers.

mod announce;
#[cfg(feature = "bench")]
pub(crate) mod bench;
mod candidacy;
mod catalogue;
mod config;
mod core;
mod detector;
mod driver;
mod fetch;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod inbox;
mod membership;
mod messages;
mod network;
mod office;
mod past;
mod pull;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::announce::Announcement;
pub use self::config::{GossipConfig, holders_among};
use self::core::{Core, MESSAGE_TIMEOUT};
pub use self::detector::{Detector, MOST_TIMEOUTS};
use self::messages::HandOver;
use crate::config::{ConfigError, Site};
use crate::error::StoreError;
use crate::lifeline::Follower;
use crate::members;
use crate::store::{
    Blob, Carrier, Checkpoint, CheckpointId, CheckpointStore, Epoch, Guarantee, Guarantees, Held, NodeId,
    Receipt, Slot,
};
use crate::suspicion::Suspicion;
use crate::transport::{Class, Frame, TransportError};
use crate::wire;

/// Checkpoints that a node announces in gossip state.
const MAX_ANNOUNCED: usize = 64;

/// How long a successor may take beyond two detection timeouts.
const HAND_OVER_GRACE: Duration = Duration::from_secs(2);

/// One node's store on gossip.
pub struct GossipStore {
    core: Arc<Core>,
    tasks: Mutex<JoinSet<()>>,
}

impl fmt::Debug for GossipStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GossipStore").field("config", &self.core.config).finish_non_exhaustive()
    }
}

impl fmt::Display for GossipStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.core.config.fmt(f)
    }
}

impl GossipStore {
    /// Opens this node's store.
    ///
    /// # Errors
    /// A configuration that contradicts itself, or a storage that cannot be used.
    pub async fn open(config: GossipConfig, site: Site) -> Result<Arc<Self>, ConfigError> {
        let Site { transport, observer, resources, storage, lifeline, joins, replaces } = site;
        let (local, mut config) = (transport.local(), config);
        config.validate(local)?;
        if joins {
            // What is left are the nodes that the cluster began with: they say what is promised.
            config.nodes.remove(&local);
        }
        let addresses = network::Addresses::new(&config.nodes);
        addresses.learn(local);
        let past = past::Past::read(&config, local, joins, storage).await?;
        let id = network::Addresses::id(local, past.life);
        let rng = ChaCha8Rng::seed_from_u64(config.seed ^ local.0.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let chitchat = driver::chitchat_config(&config, id);
        let score = resources.score();
        let core = Arc::new(Core::new(config, (transport.clone(), observer), past, score, rng));
        let (bridge, ends) = network::Bridge::new(addresses.clone());
        transport.serve(Arc::new(inbox::Inbox { core: core.clone(), bridge: bridge.clone() }));
        let mut tasks = JoinSet::new();
        let values = driver::first_values(score);
        let handle = network::start(chitchat, values, (bridge.clone(), ends), transport, &mut tasks)
            .await
            .map_err(ConfigError::Chitchat)?;
        let timeouts = core.config.detector == Detector::EventuallyPerfect;
        let suspicions = timeouts.then(|| detector::Suspicions::new(core.config.effective_timeout()));
        let driver = driver::Driver {
            core: core.clone(),
            handle,
            bridge,
            addresses,
            places: BTreeMap::new(),
            accrual: detector::Accrual::new(&core.config),
            suspicions,
        };
        tasks.spawn(driver.run());
        tasks.spawn(candidacy::run(core.clone()));
        tasks.spawn(membership::run(core.clone()));
        if joins {
            let core = core.clone();
            tasks.spawn(async move {
                let (aggregator, pause) = (core.aggregator.subscribe(), core.config.interval());
                members::join(&*core.transport, aggregator, pause, || core.wants_in(replaces)).await;
            });
        }
        tasks.spawn(candidacy::heed(core.clone(), Follower::new(lifeline, local)));
        Ok(Arc::new(Self { core, tasks: Mutex::new(tasks) }))
    }

    /// Bytes of checkpoints in this node's memory.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.core.blobs.total_bytes()
    }

    async fn read(&self, announced: &Announcement) -> Option<Checkpoint> {
        let parameters = self.core.bytes(announced).await?;
        let metadata = self.core.state().catalogue.find(announced.id)?.metadata.clone()?;
        Some(Checkpoint::already_verified(announced.id, announced.digest, parameters, metadata))
    }

    fn read_deadline(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.core.config.put_timeout_ms)
    }

    /// Waits before the next attempt to read: connections may be coming back, and word of other holders.
    async fn pause_until(&self, deadline: Instant, wanted: &Announcement) -> Result<(), StoreError> {
        if Instant::now() >= deadline || self.core.state().closed {
            return Err(if self.holders_may_be_away() {
                let reason = "too many nodes are away: those who hold it may be among them".into();
                StoreError::Unavailable { reason }
            } else {
                StoreError::Missing { digest: wanted.digest }
            });
        }
        tokio::time::sleep(self.core.config.interval()).await;
        Ok(())
    }

    /// Whether all who hold an acknowledged checkpoint may be out of reach, where it has so many holders that it cannot be lost with
    /// those whom this backend does without.
    fn holders_may_be_away(&self) -> bool {
        let state = self.core.state();
        let away = state.members.len() - state.live_members(self.core.local).len();
        self.core.config.linear() && away as u32 >= state.holders(&self.core.config)
    }

    /// This node's epoch, if it aggregates.
    fn office(&self) -> Result<Epoch, StoreError> {
        let current = self.core.state().office.in_force();
        let mine = current.filter(|epoch| epoch.node == self.core.local);
        mine.ok_or(StoreError::NotAggregator { current })
    }

    /// Who takes over: the one named, or the fittest that can be asked.
    fn successor(&self, to: Option<NodeId>) -> Option<NodeId> {
        let state = self.core.state();
        let others = || state.members.nodes().iter().copied().filter(|node| *node != self.core.local);
        match to {
            Some(to) => others().find(|other| *other == to),
            None => office::ranked(&state.reachable_of(others().collect()), &state.fitness).first().copied(),
        }
    }

    async fn hand_over(&self, epoch: Epoch, to: NodeId) -> Result<Epoch, StoreError> {
        let unavailable = |reason: String| StoreError::Unavailable { reason };
        let mut aggregator = self.aggregator();
        let timeout = self.core.config.effective_timeout() * 2 + HAND_OVER_GRACE;
        let next = tokio::select! {
            biased;
            next = aggregator.wait_for(|now| *now > Some(epoch)) => {
                *next.map_err(|_| StoreError::Closed { reason: "during a hand-over".into() })?
            }
            refused = self.ask_to_take_over(epoch, to) => return Err(unavailable(refused.to_string())),
            () = tokio::time::sleep(timeout) => {
                return Err(unavailable(format!("node {to} did not take over in {timeout:?}")));
            }
        };
        // An aggregator that has waited for a successor in vain stands again.
        let other = next.filter(|next| next.node != self.core.local);
        other.ok_or_else(|| unavailable(format!("node {to} did not take over")))
    }

    /// Asks `to` to take over. Returns only if it refuses, or cannot be reached and does not live.
    async fn ask_to_take_over(&self, epoch: Epoch, to: NodeId) -> TransportError {
        let members = self.core.state().members.clone();
        let order = Frame::new(wire::GOSSIP_HAND_OVER, wire::encode(&HandOver { epoch, members }));
        loop {
            let request = self.core.transport.request(to, Class::Election, order.clone());
            let error = match tokio::time::timeout(MESSAGE_TIMEOUT, request).await {
                Ok(Ok(_)) => return std::future::pending().await,
                Ok(Err(error)) => Some(error),
                Err(_) => None,
            };
            // A connection that breaks, or makes way for another one, says nothing of the node.
            let breaks = |error: &TransportError| {
                matches!(error, TransportError::Unreachable { .. } | TransportError::Interrupted { .. })
            };
            let lives = self.core.state().live(self.core.local).contains(&to);
            if let Some(error) = error.filter(|error| !(lives && breaks(error))) {
                return error;
            }
            tokio::time::sleep(self.core.config.interval() / 2).await;
        }
    }
}

#[async_trait]
impl CheckpointStore for GossipStore {
    async fn put_carried(&self, checkpoint: Checkpoint, carrier: Carrier) -> Result<Receipt, StoreError> {
        self.core.put(checkpoint, carrier).await
    }

    fn provide(&self, blob: Blob) {
        self.core.blobs.provide(&blob);
        self.core.settle(blob.digest());
    }

    async fn newest(&self, slot: Slot) -> Result<Option<Checkpoint>, StoreError> {
        let deadline = self.read_deadline();
        loop {
            let known: Vec<Announcement> = {
                let state = self.core.state();
                state.catalogue.newest_first(slot).map(|entry| entry.announced).collect()
            };
            for announced in &known {
                if let Some(checkpoint) = self.read(announced).await {
                    let mut state = self.core.state();
                    if slot == Slot::Global && state.office.is_mine() {
                        state.base = state.base.max(Some(announced.id));
                    }
                    return Ok(Some(checkpoint));
                }
            }
            let Some(newest) = known.first() else { return Ok(None) };
            self.pause_until(deadline, newest).await?;
        }
    }

    async fn get(&self, id: CheckpointId) -> Result<Option<Checkpoint>, StoreError> {
        let deadline = self.read_deadline();
        loop {
            let known = self.core.state().catalogue.find(id).map(|entry| entry.announced);
            let Some(announced) = known else { return Ok(None) };
            if let Some(checkpoint) = self.read(&announced).await {
                return Ok(Some(checkpoint));
            }
            self.pause_until(deadline, &announced).await?;
        }
    }

    fn held(&self) -> Option<Held> {
        let state = self.core.state();
        let newest = &state.catalogue.held_global()?.announced;
        Some(Held { id: newest.id, digest: newest.digest })
    }

    fn aggregator(&self) -> watch::Receiver<Option<Epoch>> {
        self.core.aggregator.subscribe()
    }

    fn candidates(&self) -> Vec<NodeId> {
        let mut live = self.core.state().live_members(self.core.local);
        live.remove(&self.core.local);
        live.into_iter().collect()
    }

    fn suspicions(&self) -> Vec<Suspicion> {
        let state = self.core.state();
        let live = state.live(self.core.local);
        let of = |(node, peer): (&NodeId, &core::Peer)| {
            let (heard_at, timeout) = peer.silence?;
            let suspicion = Suspicion::of(*node, heard_at.elapsed(), timeout);
            Some(if live.contains(node) { suspicion } else { suspicion.suspected() })
        };
        state.peers.iter().filter_map(of).collect()
    }

    async fn step_down(&self, to: Option<NodeId>) -> Result<Epoch, StoreError> {
        let epoch = self.office()?;
        let nobody = || StoreError::Unavailable { reason: "there is nobody to hand over to".into() };
        let to = self.successor(to).ok_or_else(nobody)?;
        {
            let mut state = self.core.state();
            state.handing_over = Some(epoch);
            state.office.awaits_successor(Instant::now());
        }
        let outcome = self.hand_over(epoch, to).await;
        if outcome.is_err() {
            self.core.state().handing_over = None;
        }
        outcome
    }

    async fn leave(&self) -> Result<(), StoreError> {
        let (inside, left) = {
            let state = self.core.state();
            (state.members.contains(self.core.local), state.members.len().saturating_sub(1))
        };
        let needed = self.core.config.holders_among(left);
        if inside && (left as u32) < needed {
            return Err(StoreError::TooFewWouldBeLeft { left: left as u32, needed });
        }
        self.core.leaving.store(true, Ordering::Relaxed);
        let outcome = members::leave(self, &*self.core.transport, self.core.config.interval()).await;
        if outcome.is_err() {
            self.core.leaving.store(false, Ordering::Relaxed);
        }
        outcome
    }

    fn guarantees(&self) -> Guarantees {
        let (holders, of) = {
            let state = self.core.state();
            (state.holders(&self.core.config), state.members.len() as u32)
        };
        let linear = self.core.config.linear();
        Guarantees {
            acknowledged: Guarantee::Holders { holders },
            tolerated_losses: (holders - 1).min(of.saturating_sub(holders)),
            linear,
            minority_refuses: linear,
            fails_over: of > 2,
            survives_full_restart: self.core.archive.is_durable(),
            takes_provided: true,
            in_order: false,
        }
    }

    async fn close(&self) {
        self.core.close();
        self.tasks.lock().await.shutdown().await;
        self.core.archive.close().await;
    }
}
