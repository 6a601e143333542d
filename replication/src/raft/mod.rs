//! Raft: every voter holds every acknowledged checkpoint. Every node votes, or the most suitable do.
//!
//! ```text
//!   RaftStore      the contract: put, latest, get, aggregator, step_down
//!   Proposer       one write: spread the bytes (digest), propose, await the answer
//!   election       when to suspect the leader        types      what a log entry is
//!   network        openraft's messages over transport
//!   log, machine   openraft's storage: entries; acknowledged checkpoints and snapshots
//!   founding       who begins                        membership who replaces a voter that stays away
//!   joining        who comes and goes later
//!   notice         what nodes outside of the group are told
//!   outside        how they read                     recovery   what a node finds on disk when it starts
//!   recover        a new group from one survivor, when the majority is gone for good
//! ```
//!
//! openraft does votes, terms, log replication and commitment (Ongaro and Ousterhout 2014, with pre-vote and leadership
//! transfer from Ongaro's dissertation). This module deliberately does not know what a round is, nor which transport
//! carries it.

#[cfg(feature = "bench")]
pub(crate) mod bench;
mod config;
mod election;
mod founding;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod joining;
mod log;
mod machine;
mod membership;
mod network;
mod notice;
mod outside;
mod proposer;
mod recover;
mod recovery;
mod types;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::ReadPolicy;
use openraft::async_runtime::WatchReceiver;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use self::config::{Electorate, RaftConfig};
use self::log::RaftLog;
use self::machine::RaftCore;
use self::notice::Standing;
use self::outside::Wanted;
use self::proposer::Proposer;
pub use self::recover::Survivor;
use self::recovery::Recovered;
use crate::blob::{Exchange, transfer_timeout};
use crate::config::{ConfigError, Site};
use crate::error::StoreError;
use crate::forward;
use crate::ledger::Record;
use crate::lifeline::Follower;
use crate::storage::Storage;
use crate::store::Payload;
use crate::store::{
    Blob, Carrier, Checkpoint, CheckpointId, CheckpointStore, Confirmation, Epoch, Guarantee, Guarantees,
    Held, NodeId, Receipt, Slot,
};
use crate::suspicion::Suspicion;
use crate::wire;

/// The log is compacted when it holds this many bytes of checkpoints ...
const MAX_LOG_BYTES: usize = 8 * 1024 * 1024;
/// ... or this many entries.
const MAX_LOG_ENTRIES: usize = 512;
/// How long a node waits to be let go.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(60);

/// Full Raft behind the store's contract.
pub struct RaftStore {
    proposer: Arc<Proposer>,
    log: RaftLog,
    /// The newest checkpoint of a slot that was returned, where a read may ask another node: reads never go back.
    returned: std::sync::Mutex<BTreeMap<Slot, CheckpointId>>,
    tasks: Mutex<JoinSet<()>>,
    storage: Option<Storage>,
    /// When the leader was last heard of.
    contact: watch::Receiver<Instant>,
}

impl fmt::Debug for RaftStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftStore")
            .field("node", &self.local())
            .field("config", &self.proposer.config)
            .finish()
    }
}

impl fmt::Display for RaftStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RaftConfig { nodes, payload, .. } = &self.proposer.config;
        match self.proposer.config.electorate {
            Electorate::Everyone => write!(f, "raft ({} voters, {payload})", self.proposer.voters()),
            Electorate::MostSuitable { voters, .. } => {
                write!(f, "raft-subset ({voters} of {} voters, {payload})", nodes.len())
            }
        }
    }
}

impl RaftStore {
    /// Opens this node's store on `site`. The lowest node sees to it that the group is founded once a majority is
    /// connected; the others join it, or are told of it. A node whose storage holds a log goes on with it at once.
    ///
    /// # Errors
    /// Contradictory timers, voters that cannot be had, a node that is not among the nodes, or a storage that cannot be
    /// used.
    pub async fn open(config: RaftConfig, site: Site) -> Result<Arc<Self>, ConfigError> {
        config.validate()?;
        let Site { transport, observer, resources, storage, joins, replaces, lifeline } = site;
        let local = transport.local();
        if !config.nodes.contains(&local) {
            return Err(ConfigError::NotANode(local));
        }
        let (missing, missed) = mpsc::unbounded_channel();
        let Recovered { blobs, log, machine } =
            recovery::recover(local, &config, storage.clone(), observer.clone(), missing).await?;
        let restored_term = log.term();
        let exchange = Exchange::new(transport.clone(), blobs, observer.clone());
        let peers = network::Peers(transport.clone());
        let seed = config.seed ^ local.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let starting = RaftCore::new(local.0, config.openraft()?, peers, log.clone(), machine.clone());
        let raft = types::Seeded::scope(seed, starting)
            .await
            .map_err(|error| ConfigError::Openraft(error.to_string()))?;
        let (announce, aggregator) = watch::channel(None);
        let proposer = Arc::new(Proposer {
            raft: raft.clone(),
            machine,
            exchange: exchange.clone(),
            transport: transport.clone(),
            aggregator,
            config: config.clone(),
            standing: Standing::new(raft.clone()),
            resources,
            observer: observer.clone(),
            spread: proposer::Spread::default(),
            background: std::sync::Mutex::default(),
            changing: Mutex::default(),
            let_go: std::sync::Mutex::default(),
            leaving: AtomicBool::new(false),
        });
        let (contact, contacted) = watch::channel(Instant::now());
        let inbox = network::Inbox {
            raft: raft.clone(),
            exchange,
            proposer: proposer.clone(),
            observer: observer.clone(),
            contact: network::Contact(contact),
        };
        transport.serve(Arc::new(inbox));

        let rng = ChaCha8Rng::seed_from_u64(seed);
        let deadline = election::Deadline::new(config.window, rng, Instant::now());
        let mut tasks = JoinSet::new();
        let standing = proposer.standing.clone();
        let changed = Arc::new(Notify::new());
        tasks.spawn(election::run(
            election::Voter { raft: raft.clone(), standing, transport, restored_term, observer },
            changed.clone(),
            deadline,
            contacted.clone(),
            announce,
            Follower::new(lifeline, local),
        ));
        tasks.spawn(compact(raft, log.clone()));
        tasks.spawn(complete(proposer.clone(), missed));
        tasks.spawn(membership::run(proposer.clone()));
        let everyone = config.electorate == Electorate::Everyone;
        if !everyone {
            tasks.spawn(notice::run(proposer.clone(), changed));
        }
        if !joins {
            tasks.spawn(founding::run(proposer.clone()));
        } else if everyone {
            tasks.spawn(joining::run(proposer.clone(), replaces));
        }
        let returned = std::sync::Mutex::default();
        Ok(Arc::new(Self { proposer, log, returned, tasks: Mutex::new(tasks), storage, contact: contacted }))
    }

    fn local(&self) -> NodeId {
        self.proposer.transport.local()
    }

    fn current(&self) -> Option<Epoch> {
        *self.proposer.aggregator.borrow()
    }

    /// Bytes of checkpoints in this node's memory, log excluded.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.proposer.exchange.blobs().total_bytes()
    }

    /// Entries in this node's log, and the bytes of checkpoints they hold.
    #[must_use]
    pub fn log_size(&self) -> (usize, usize) {
        self.log.size()
    }

    /// Sends a write to the node that leads.
    async fn forward(&self, checkpoint: Checkpoint) -> Result<Receipt, StoreError> {
        let to = checkpoint.id().epoch.node;
        let bytes = checkpoint.parameters().len() as u64;
        let timeout = self.proposer.timeout(bytes) + transfer_timeout(bytes);
        let inline = self.proposer.config.payload == Payload::Inline;
        let transport = self.proposer.transport.as_ref();
        let unavailable = |reason: String| Err(StoreError::Unavailable { reason });
        let mut aggregator = self.aggregator();
        tokio::select! {
            biased;
            receipt = forward::put(transport, wire::FORWARD_PUT, &checkpoint, inline) => receipt,
            _ = aggregator.wait_for(|now| *now != Some(checkpoint.id().epoch)) => {
                unavailable(format!("node {to} lost its office meanwhile"))
            }
            () = tokio::time::sleep(timeout) => unavailable(format!("node {to} did not answer within {timeout:?}")),
        }
    }

    /// Hands over, and asks whoever leads to be let go until that is in force.
    async fn leave_group(&self) -> Result<(), StoreError> {
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        let pause = Duration::from_millis(self.proposer.config.heartbeat_ms);
        loop {
            let reason = if self.current().is_some_and(|epoch| epoch.node == self.local()) {
                self.step_down(None).await.err().map(|error| error.to_string())
            } else {
                match self.proposer.ask_leader(joining::Request::Leave).await {
                    Ok(joining::Answer::Done(notice)) => {
                        // The leader does not send this node the log any more.
                        self.proposer.standing.hear(notice);
                        return Ok(());
                    }
                    Ok(joining::Answer::UnderWay) => Some("the change of voters was not committed".into()),
                    Ok(joining::Answer::Elsewhere(_)) => Some("no node that leads is connected".into()),
                    Err(refusal) => return Err(StoreError::Unavailable { reason: refusal.0 }),
                }
            };
            match reason {
                Some(reason) if Instant::now() >= deadline => return Err(StoreError::Unavailable { reason }),
                _ => tokio::time::sleep(pause).await,
            }
        }
    }

    /// Waits until this leader has applied everything acknowledged before; returns the term in which it leads.
    async fn caught_up(&self, policy: ReadPolicy) -> Result<u64, StoreError> {
        let timeout = Duration::from_millis(self.proposer.config.put_timeout_ms);
        let unavailable = |reason: String| StoreError::Unavailable { reason };
        match tokio::time::timeout(timeout, self.proposer.raft.ensure_linearizable(policy)).await {
            Ok(Ok(read)) => Ok(read.committed_leader_id().term),
            Ok(Err(error)) => Err(unavailable(error.to_string())),
            Err(_) => Err(unavailable(format!("no majority within {timeout:?}"))),
        }
    }

    /// Whether acknowledged state is read from this node: everyone's if everyone votes, else a voter's.
    fn holds_state(&self) -> bool {
        self.proposer.config.electorate == Electorate::Everyone || self.proposer.standing.votes()
    }

    /// Reads here if this node has what `wanted` takes, elsewhere if not, until somebody answers.
    async fn read_anywhere(&self, wanted: Wanted) -> Result<Option<Checkpoint>, StoreError> {
        let deadline = Instant::now() + Duration::from_millis(self.proposer.config.put_timeout_ms);
        let pause = Duration::from_millis(self.proposer.config.heartbeat_ms);
        loop {
            let newest = match wanted {
                Wanted::Newest(slot) => self.newest_returned(slot),
                Wanted::Named(_) => None,
            };
            let here = self.proposer.find(wanted);
            // A voter that joined lately may be behind what it read as a node outside of the group.
            let behind = here.as_ref().map(|record| record.id) < newest;
            if self.holds_state() && !behind {
                return self.read(here).await;
            }
            match self.proposer.ask(wanted, newest).await {
                Err(_) if Instant::now() < deadline => tokio::time::sleep(pause).await,
                answer => return answer,
            }
        }
    }

    fn newest_returned(&self, slot: Slot) -> Option<CheckpointId> {
        self.returned.lock().unwrap_or_else(PoisonError::into_inner).get(&slot).copied()
    }

    async fn read(&self, record: Option<Record>) -> Result<Option<Checkpoint>, StoreError> {
        let Some(record) = record else { return Ok(None) };
        let deadline = Instant::now() + Duration::from_millis(self.proposer.config.put_timeout_ms);
        let pause = Duration::from_millis(self.proposer.config.heartbeat_ms);
        let parameters = loop {
            match self.proposer.bytes(&record).await {
                // Connections may be coming back.
                Err(StoreError::Missing { .. }) if Instant::now() < deadline => {
                    let arrival = self.proposer.exchange.blobs().arrival(record.digest);
                    let _ = tokio::time::timeout(pause, arrival).await;
                }
                bytes => break bytes?,
            }
        };
        Ok(Some(Checkpoint::already_verified(record.id, record.digest, parameters, record.metadata)))
    }
}

#[async_trait]
impl CheckpointStore for RaftStore {
    async fn put_carried(&self, checkpoint: Checkpoint, carrier: Carrier) -> Result<Receipt, StoreError> {
        checkpoint.within_limits()?;
        let current = self.current();
        match current {
            Some(epoch) if epoch == checkpoint.id().epoch && epoch.node != self.local() => {
                if !matches!(checkpoint.id().slot, Slot::Worker { node, .. } if node == self.local()) {
                    return Err(StoreError::NotAggregator { current });
                }
                self.forward(checkpoint).await
            }
            _ => self.proposer.put(checkpoint, self.local(), carrier).await,
        }
    }

    fn provide(&self, blob: Blob) {
        let voters = self.proposer.standing.voters();
        // Before the group is founded, this node may yet be one of them.
        let outside = !voters.is_empty() && !voters.contains(&self.local());
        if self.guarantees().takes_provided && !outside {
            self.proposer.exchange.blobs().provide(&blob);
        }
    }

    async fn newest(&self, slot: Slot) -> Result<Option<Checkpoint>, StoreError> {
        if self.current().is_some_and(|epoch| epoch.node == self.local()) {
            self.caught_up(ReadPolicy::ReadIndex).await?;
        }
        let newest = self.read_anywhere(Wanted::Newest(slot)).await?;
        if let Some(id) = newest.as_ref().map(Checkpoint::id) {
            let mut returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
            let before = returned.entry(slot).or_insert(id);
            *before = id.max(*before);
        }
        Ok(newest)
    }

    async fn get(&self, id: CheckpointId) -> Result<Option<Checkpoint>, StoreError> {
        self.read_anywhere(Wanted::Named(id)).await
    }

    fn held(&self) -> Option<Held> {
        if !self.holds_state() {
            return None;
        }
        let blobs = self.proposer.exchange.blobs();
        self.proposer.machine.read(|ledger| {
            let here = ledger.newest_first(Slot::Global).find(|record| blobs.get(record.digest).is_some())?;
            Some(Held { id: here.id, digest: here.digest })
        })
    }

    fn aggregator(&self) -> watch::Receiver<Option<Epoch>> {
        self.proposer.aggregator.clone()
    }

    fn candidates(&self) -> Vec<NodeId> {
        let local = self.local();
        self.proposer.standing.voters().into_iter().filter(|node| *node != local).collect()
    }

    fn suspicions(&self) -> Vec<Suspicion> {
        let watched = self.current().map(|epoch| epoch.node).filter(|leader| *leader != self.local());
        // The moment of suspicion is drawn from the window: at its end every draw is over.
        let timeout = Duration::from_millis(self.proposer.config.window.to_ms);
        let silence = self.contact.borrow().elapsed();
        let watched = watched.filter(|_| self.proposer.standing.votes());
        watched.map(|leader| Suspicion::of(leader, silence, timeout)).into_iter().collect()
    }

    async fn confirm(&self, epoch: Epoch, by: Confirmation) -> Result<(), StoreError> {
        let policy = match by {
            Confirmation::Index => ReadPolicy::ReadIndex,
            Confirmation::Lease => ReadPolicy::LeaseRead,
        };
        // A leader reads at or after the first entry of its term, so the term is that of its leadership.
        if epoch.node == self.local() && self.caught_up(policy).await? == epoch.counter {
            return Ok(());
        }
        Err(StoreError::NotAggregator { current: self.current() })
    }

    async fn step_down(&self, to: Option<NodeId>) -> Result<Epoch, StoreError> {
        let current = self.current();
        if current.is_none_or(|epoch| epoch.node != self.local()) {
            return Err(StoreError::NotAggregator { current });
        }
        let successor = to.or_else(|| self.proposer.most_caught_up());
        let successor =
            successor.filter(|to| *to != self.local() && self.proposer.standing.voters().contains(to));
        let to = successor
            .ok_or_else(|| StoreError::Unavailable { reason: "there is nobody to hand over to".into() })?;
        let closed = |error: &dyn fmt::Display| StoreError::Closed { reason: error.to_string() };
        self.proposer.raft.trigger().transfer_leader(to.0).await.map_err(|error| closed(&error))?;
        let mut aggregator = self.aggregator();
        let timeout = Duration::from_millis(2 * self.proposer.config.window.to_ms);
        let taken = aggregator.wait_for(|now| now.is_some() && *now > current);
        match tokio::time::timeout(timeout, taken).await {
            Ok(Ok(epoch)) => {
                epoch.ok_or_else(|| StoreError::Unavailable { reason: "nobody took over".into() })
            }
            Ok(Err(error)) => Err(closed(&error)),
            Err(_) => {
                Err(StoreError::Unavailable { reason: format!("node {to} did not take over in {timeout:?}") })
            }
        }
    }

    async fn leave(&self) -> Result<(), StoreError> {
        self.proposer.leaving.store(true, Ordering::Relaxed);
        let left = self.leave_group().await;
        if left.is_err() {
            self.proposer.leaving.store(false, Ordering::Relaxed);
        }
        left
    }

    fn guarantees(&self) -> Guarantees {
        let of = self.proposer.voters();
        Guarantees {
            acknowledged: Guarantee::Majority { of },
            tolerated_losses: (of - 1) / 2,
            linear: true,
            minority_refuses: true,
            fails_over: of > 2,
            survives_full_restart: self.storage.is_some(),
            takes_provided: self.proposer.config.payload == Payload::Digest,
            in_order: true,
        }
    }

    async fn close(&self) {
        let mut tasks = self.tasks.lock().await;
        tasks.shutdown().await;
        self.proposer.close();
        if let Err(error) = self.proposer.raft.shutdown().await {
            tracing::warn!(%error, "raft did not shut down in order");
        }
        if let Some(storage) = &self.storage {
            storage.close().await;
        }
    }
}

/// Keeps the log small: asks for a snapshot when it holds too much.
async fn compact(raft: RaftCore, log: RaftLog) {
    let mut metrics = raft.data_metrics();
    let mut compacted_to = None;
    while metrics.changed().await.is_ok() {
        let applied = metrics.borrow_and_update().last_applied;
        let (entries, bytes) = log.size();
        if (bytes > MAX_LOG_BYTES || entries > MAX_LOG_ENTRIES) && applied > compacted_to {
            if raft.trigger().snapshot().await.is_err() {
                return;
            }
            compacted_to = applied;
        }
    }
}

/// Brings in the bytes of acknowledged checkpoints that arrived without them.
async fn complete(proposer: Arc<Proposer>, mut missed: mpsc::UnboundedReceiver<Record>) {
    let mut fetching = FuturesUnordered::new();
    loop {
        tokio::select! {
            record = missed.recv() => match record {
                Some(record) => fetching.push(complete_one(&proposer, record)),
                None => return,
            },
            Some(()) = fetching.next(), if !fetching.is_empty() => {}
        }
    }
}

/// Whoever writes a checkpoint sends its bytes to every voter: wait for them as long as it leads and they may be under
/// way, then ask others.
async fn complete_one(proposer: &Proposer, record: Record) {
    let mut aggregator = proposer.aggregator.clone();
    let writer = record.id.epoch;
    // Nobody sends them to a node that does not vote yet.
    tokio::select! {
        biased;
        () = std::future::ready(()), if !proposer.standing.votes() => {}
        _ = proposer.exchange.blobs().arrival(record.digest) => return,
        _ = aggregator.wait_for(|now| *now != Some(writer)) => {}
        () = tokio::time::sleep(transfer_timeout(record.bytes)) => {}
    }
    while proposer.machine.read(|ledger| ledger.refers_to(record.digest)) {
        match proposer.bytes(&record).await {
            Ok(_) => return,
            Err(error) => tracing::debug!(%error, id = %record.id, "no holder serves the bytes yet"),
        }
        let pause = Duration::from_millis(proposer.config.heartbeat_ms * 10);
        if tokio::time::timeout(pause, proposer.exchange.blobs().arrival(record.digest)).await.is_ok() {
            return;
        }
    }
}
