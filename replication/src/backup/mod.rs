//! Primary and backups: the aggregator has each checkpoint kept by the next nodes in a fixed order of succession.
//!
//! ```text
//!   BackupStore    the contract: put, latest, get, aggregator, step_down
//!   succession     who is next and when, which epoch is in force: pure
//!   office         the task that says "I aggregate", or succeeds who does not any more
//!   writing        one write: its bytes to as many backups as promised
//!   membership     nodes that join and leave     node           what a node knows
//!   network        messages and their answers
//! ```
//!
//! There is no consensus: the cheap control arm. Whoever suspects the aggregator, reaches enough backups and finds nobody
//! who hears it takes over with a higher epoch, and the highest epoch heard of is in force. So a partition gives two
//! aggregators that both acknowledge, if both sides have enough nodes; when it heals, what the lower epoch acknowledged is
//! superseded. The guarantees say so. Nodes that hold nothing ask the aggregator.

mod config;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod membership;
mod network;
mod node;
mod office;
mod succession;
mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use self::config::BackupConfig;
use self::node::{Node, State, Wanted};
use self::succession::Succession;
use crate::archive::{Archive, Opened};
use crate::blob::{Exchange, transfer_timeout};
use crate::config::{ConfigError, Site};
use crate::error::StoreError;
use crate::forward;
use crate::ledger::{Ledger, Record};
use crate::lifeline::Follower;
use crate::members::{self, Members};
use crate::store::{
    Blob, Carrier, Checkpoint, CheckpointId, CheckpointStore, Epoch, Guarantee, Guarantees, Held, NodeId,
    Receipt, Slot,
};
use crate::suspicion::Suspicion;
use crate::transport::{Class, Frame};
use crate::wire;

/// Primary and backups behind the store's contract.
pub struct BackupStore {
    node: Arc<Node>,
    /// The newest checkpoint of a slot that was handed out: nothing older is, whoever aggregates.
    shown: Mutex<BTreeMap<Slot, Checkpoint>>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

impl fmt::Debug for BackupStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackupStore")
            .field("node", &self.node.local())
            .field("config", &self.node.config)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for BackupStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backup ({} of {} nodes)", self.node.config.backups, self.node.config.nodes.len())
    }
}

impl BackupStore {
    /// Opens this node's store. The lowest node aggregates first, once enough others are connected.
    ///
    /// # Errors
    /// Contradictory parameters, a node that is not among the nodes, or a storage that cannot be used.
    pub async fn open(config: BackupConfig, site: Site) -> Result<Arc<Self>, ConfigError> {
        config.validate()?;
        let Site { transport, observer, storage, lifeline, joins, replaces, .. } = site;
        let (local, mut config) = (transport.local(), config);
        if !config.nodes.contains(&local) {
            return Err(ConfigError::NotANode(local));
        }
        if joins {
            // What is left are the nodes that the cluster began with.
            config.nodes.remove(&local);
        }
        let rng = ChaCha8Rng::seed_from_u64(config.seed ^ local.0.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (nodes, backups) = (config.nodes.clone(), config.backups);
        let names: Vec<String> = nodes.iter().map(NodeId::to_string).collect();
        let cluster = format!("{backups} backups among nodes {}", names.join(", "));
        let Opened { archive, rows, blobs } = Archive::open(storage, local, &cluster).await?;
        let begins = || if joins { Members::unknown() } else { Members::founding(nodes) };
        let members: Members = archive.fact(members::FACT)?.unwrap_or_else(begins);
        let nodes = members.nodes().clone();
        let mut succession = Succession::new(nodes, local, backups, config.window, rng, Instant::now());
        if archive.is_durable() {
            succession = succession.remembering(archive.fact(node::EPOCH)?);
        }
        let state = State {
            succession,
            ledger: Ledger::of_rows(config.retained, rows),
            pending: BTreeSet::new(),
            resigning: false,
            appointed: false,
            proposed: members.place().1,
            members,
            leaving: None,
            closed: false,
        };
        let node = Arc::new(Node {
            config,
            exchange: Exchange::new(transport.clone(), blobs, observer.clone()),
            archive,
            transport: transport.clone(),
            observer,
            aggregator: watch::Sender::new(None),
            state: Mutex::new(state),
            changed: Notify::new(),
            changing: tokio::sync::Mutex::new(()),
            leaves: AtomicBool::new(false),
            background: Mutex::default(),
        });
        transport.serve(Arc::new(network::Inbox(node.clone())));
        let mut tasks = JoinSet::new();
        tasks.spawn(office::run(node.clone(), Follower::new(lifeline, local)));
        if joins {
            tasks.spawn(membership::join(node.clone(), replaces));
        }
        Ok(Arc::new(Self { node, shown: Mutex::default(), tasks: tokio::sync::Mutex::new(tasks) }))
    }

    /// Sends a write to the aggregator.
    async fn forward(&self, checkpoint: Checkpoint) -> Result<Receipt, StoreError> {
        let to = checkpoint.id().epoch.node;
        let bytes = checkpoint.parameters().len() as u64;
        let timeout = self.node.put_timeout(bytes) + transfer_timeout(bytes);
        let transport = self.node.transport.as_ref();
        let writing = forward::put(transport, wire::BACKUP_FORWARD, &checkpoint, false);
        let late =
            Err(StoreError::Unavailable { reason: format!("node {to} did not answer within {timeout:?}") });
        tokio::time::timeout(timeout, writing).await.unwrap_or(late)
    }

    /// What the aggregator answers; if it does not, what is known here.
    async fn find(&self, wanted: Wanted) -> Result<Option<Record>, StoreError> {
        let known = || self.node.known(wanted);
        let asked = match self.node.current() {
            Some(epoch) if epoch.node != self.node.local() => epoch.node,
            _ => return Ok(known()),
        };
        let frame = Frame::new(wire::BACKUP_READ, wire::encode(&wanted));
        let request = self.node.transport.request(asked, Class::Digest, frame);
        let reason = match tokio::time::timeout(self.node.patience(), request).await {
            Ok(Ok(response)) => match wire::decode::<Option<Record>>(&response.head) {
                Ok(record) => return Ok(record),
                Err(refusal) => refusal.0,
            },
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("node {asked} did not answer within {:?}", self.node.patience()),
        };
        known().map(Some).ok_or(StoreError::Unavailable { reason })
    }

    async fn read(&self, wanted: Wanted) -> Result<Option<Checkpoint>, StoreError> {
        let Some(record) = self.find(wanted).await? else { return Ok(None) };
        let Record { id, digest, bytes, metadata } = record;
        // The aggregator knows of it, so it is asked first; its backups are next in the order.
        let (local, connected) = (self.node.local(), self.node.connected());
        let first = self.node.current().map_or(local, |epoch| epoch.node);
        let order: Vec<NodeId> =
            std::iter::once(first).chain(self.node.state().succession.after(first)).collect();
        let holders: Vec<NodeId> = order.into_iter().filter(|node| connected.contains(node)).collect();
        let parameters = self.node.exchange.fetch(digest, bytes, &holders).await?;
        Ok(Some(Checkpoint::already_verified(id, digest, parameters, metadata)))
    }

    /// Whether this node is one of the backups that the aggregator would choose now, as far as it sees.
    fn is_next_to_hold(&self) -> bool {
        let (local, connected) = (self.node.local(), self.node.connected());
        let Some(aggregator) = self.node.current().map(|epoch| epoch.node) else { return false };
        let state = self.node.state();
        let order = state.succession.after(aggregator);
        let present = order.into_iter().filter(|node| *node == local || connected.contains(node));
        present.take(self.node.config.backups as usize).any(|node| node == local)
    }

    fn resume(&self) {
        self.node.state().resigning = false;
    }
}

#[async_trait]
impl CheckpointStore for BackupStore {
    async fn put_carried(&self, checkpoint: Checkpoint, carrier: Carrier) -> Result<Receipt, StoreError> {
        checkpoint.within_limits()?;
        let (current, local) = (self.node.current(), self.node.local());
        match current {
            Some(epoch) if epoch == checkpoint.id().epoch && epoch.node != local => {
                if !matches!(checkpoint.id().slot, Slot::Worker { node, .. } if node == local) {
                    return Err(StoreError::NotAggregator { current });
                }
                self.forward(checkpoint).await
            }
            _ => self.node.put(checkpoint, local, carrier).await,
        }
    }

    fn provide(&self, blob: Blob) {
        if self.is_next_to_hold() {
            self.node.exchange.blobs().provide(&blob);
        }
    }

    async fn newest(&self, slot: Slot) -> Result<Option<Checkpoint>, StoreError> {
        let found = self.read(Wanted::Newest(slot)).await?;
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = found
            && shown.get(&slot).is_none_or(|shown| found.id() > shown.id())
        {
            shown.insert(slot, found);
        }
        Ok(shown.get(&slot).cloned())
    }

    async fn get(&self, id: CheckpointId) -> Result<Option<Checkpoint>, StoreError> {
        self.read(Wanted::Named(id)).await
    }

    fn held(&self) -> Option<Held> {
        self.node.held()
    }

    fn aggregator(&self) -> watch::Receiver<Option<Epoch>> {
        self.node.aggregator.subscribe()
    }

    fn candidates(&self) -> Vec<NodeId> {
        let connected = self.node.connected();
        let mut candidates = self.node.state().succession.candidates(&connected);
        candidates.sort();
        candidates
    }

    fn suspicions(&self) -> Vec<Suspicion> {
        let state = self.node.state();
        let succession = &state.succession;
        let watched = succession.epoch().map(|epoch| epoch.node).filter(|node| *node != self.node.local());
        let silence = Duration::from_nanos(succession.silence_ns(Instant::now()));
        // The first in the order suspects before the window ends.
        let timeout = Duration::from_millis(self.node.config.window.to_ms);
        watched.map(|node| Suspicion::of(node, silence, timeout)).into_iter().collect()
    }

    async fn step_down(&self, to: Option<NodeId>) -> Result<Epoch, StoreError> {
        let connected = self.node.connected();
        let (epoch, successor) = {
            let mut state = self.node.state();
            let current = state.succession.epoch();
            let Some(epoch) = current.filter(|_| state.succession.leads()) else {
                return Err(StoreError::NotAggregator { current });
            };
            let candidates = state.succession.candidates(&connected);
            let successor = to.or(candidates.first().copied()).filter(|to| candidates.contains(to));
            state.resigning = successor.is_some();
            (epoch, successor)
        };
        let unavailable = |reason: String| StoreError::Unavailable { reason };
        let to = successor.ok_or_else(|| unavailable("there is nobody to hand over to".into()))?;
        let mut aggregator = self.aggregator();
        let timeout = Duration::from_millis(2 * self.node.config.window.to_ms);
        let handing_over = async {
            let frame = Frame::new(wire::BACKUP_HAND_OVER, wire::encode(&epoch));
            let asked = self.node.transport.request(to, Class::Election, frame).await;
            asked.map_err(|error| unavailable(error.to_string()))?;
            let taken = aggregator.wait_for(|now| *now > Some(epoch)).await;
            let taken = taken.map_err(|_| StoreError::Closed { reason: "while handing over".into() })?;
            taken.ok_or_else(|| unavailable("nobody took over".into()))
        };
        let late = Err(unavailable(format!("node {to} did not take over in {timeout:?}")));
        let outcome = tokio::time::timeout(timeout, handing_over).await.unwrap_or(late);
        if outcome.is_err() {
            self.resume();
        }
        outcome
    }

    async fn leave(&self) -> Result<(), StoreError> {
        self.node.may_leave()?;
        self.node.leaves.store(true, Ordering::Relaxed);
        let pause = Duration::from_millis(self.node.config.heartbeat_ms);
        let outcome = members::leave(self, self.node.transport.as_ref(), pause).await;
        if outcome.is_err() {
            self.node.leaves.store(false, Ordering::Relaxed);
        }
        outcome
    }

    fn guarantees(&self) -> Guarantees {
        let (nodes, backups) = (self.node.state().members.len() as u32, self.node.config.backups);
        Guarantees {
            acknowledged: Guarantee::Holders { holders: backups + 1 },
            // Those that are left must be enough backups for whoever succeeds.
            tolerated_losses: backups.min(nodes.saturating_sub(1 + backups)),
            linear: false,
            minority_refuses: false,
            fails_over: true,
            survives_full_restart: self.node.archive.is_durable(),
            takes_provided: true,
            in_order: true,
        }
    }

    async fn close(&self) {
        self.node.state().closed = true;
        self.tasks.lock().await.shutdown().await;
        self.node.background().abort_all();
        self.node.archive.close().await;
    }
}
