//! Full Raft: every voter holds every acknowledged checkpoint.
//!
//! ```text
//!   RaftStore      the contract: put, latest, get, aggregator, step_down
//!   Proposer       one write: spread the bytes (digest), propose, await the answer
//!   election       when to suspect the leader        types      what a log entry is
//!   network        openraft's messages over transport
//!   log, machine   openraft's storage: entries; acknowledged checkpoints and snapshots
//!   recovery       what a node finds on disk when it starts
//! ```
//!
//! openraft does votes, terms, log replication and commitment (Ongaro and Ousterhout 2014, with pre-vote and leadership
//! transfer from Ongaro's dissertation). This module deliberately does not know what a round is, nor which transport
//! carries it.

mod config;
mod election;
mod log;
mod machine;
mod network;
mod proposer;
mod recovery;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::async_runtime::WatchReceiver;
use openraft::{EmptyNode, ReadPolicy};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use self::config::{Electorate, RaftConfig};
use self::log::RaftLog;
use self::machine::RaftCore;
use self::proposer::Proposer;
use self::recovery::Recovered;
use crate::blob::{Exchange, transfer_timeout};
use crate::config::{ConfigError, Site};
use crate::error::StoreError;
use crate::ledger::Record;
use crate::storage::Storage;
use crate::store::{
    Blob, Carrier, Checkpoint, CheckpointId, CheckpointStore, Epoch, Guarantee, Guarantees, Held, NodeId,
    Receipt, Slot,
};
use crate::transport::{Class, Frame, Transport};
use crate::wire;

/// The log is compacted when it holds this many bytes of checkpoints ...
const MAX_LOG_BYTES: usize = 8 * 1024 * 1024;
/// ... or this many entries.
const MAX_LOG_ENTRIES: usize = 512;
/// Full Raft behind the store's contract.
pub struct RaftStore {
    proposer: Arc<Proposer>,
    log: RaftLog,
    tasks: Mutex<JoinSet<()>>,
    storage: Option<Storage>,
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
        write!(f, "raft ({} voters, {})", self.proposer.config.nodes.len(), self.proposer.config.payload)
    }
}

impl RaftStore {
    /// Opens this node's store on `transport`. The lowest voter founds the cluster once a majority is connected;
    /// the others join it. A node whose storage holds a log goes on with it at once.
    ///
    /// # Errors
    /// Contradictory timers, a node that is no voter, or a storage that cannot be used.
    pub async fn open(config: RaftConfig, site: Site) -> Result<Arc<Self>, ConfigError> {
        config.validate()?;
        let Site { transport, observer, storage, .. } = site;
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
        let raft = RaftCore::new(local.0, config.openraft()?, peers, log.clone(), machine.clone())
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
            spread: proposer::Spread::default(),
            background: std::sync::Mutex::default(),
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

        let rng = ChaCha8Rng::seed_from_u64(config.seed ^ local.0.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let deadline = election::Deadline::new(config.window, rng, Instant::now());
        let mut tasks = JoinSet::new();
        tasks.spawn(election::run(raft.clone(), restored_term, deadline, contacted, announce, observer));
        tasks.spawn(compact(raft.clone(), log.clone()));
        tasks.spawn(complete(proposer.clone(), missed));
        tasks.spawn(found(raft, transport, config.nodes));
        Ok(Arc::new(Self { proposer, log, tasks: Mutex::new(tasks), storage }))
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
        let record = Record::from(&checkpoint);
        let timeout = self.proposer.timeout(record.bytes) + transfer_timeout(record.bytes);
        let frame = Frame::new(wire::FORWARD_PUT, wire::encode(&record))
            .with_segment(checkpoint.parameters().clone());
        let unavailable = |reason: String| StoreError::Unavailable { reason };
        let response = tokio::time::timeout(timeout, self.proposer.transport.request(to, Class::Log, frame))
            .await
            .map_err(|_| unavailable(format!("node {to} did not answer within {timeout:?}")))?
            .map_err(|error| unavailable(error.to_string()))?;
        wire::decode::<Result<Receipt, StoreError>>(&response.head)
            .map_err(|refusal| unavailable(refusal.0))?
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
    async fn put_carried(&self, checkpoint: Checkpoint, _carrier: Carrier) -> Result<Receipt, StoreError> {
        checkpoint.within_limits()?;
        let current = self.current();
        match current {
            Some(epoch) if epoch == checkpoint.id().epoch && epoch.node != self.local() => {
                if !matches!(checkpoint.id().slot, Slot::Worker { node, .. } if node == self.local()) {
                    return Err(StoreError::NotAggregator { current });
                }
                self.forward(checkpoint).await
            }
            _ => self.proposer.put(checkpoint, self.local()).await,
        }
    }

    fn provide(&self, _blob: Blob) {}

    async fn latest(&self) -> Result<Option<Checkpoint>, StoreError> {
        if self.current().is_some_and(|epoch| epoch.node == self.local()) {
            let timeout = Duration::from_millis(self.proposer.config.put_timeout_ms);
            let caught_up = self.proposer.raft.ensure_linearizable(ReadPolicy::ReadIndex);
            match tokio::time::timeout(timeout, caught_up).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(StoreError::Unavailable { reason: error.to_string() }),
                Err(_) => {
                    return Err(StoreError::Unavailable {
                        reason: format!("no majority within {timeout:?}"),
                    });
                }
            }
        }
        self.read(self.proposer.machine.read(|ledger| ledger.latest().cloned())).await
    }

    async fn get(&self, id: CheckpointId) -> Result<Option<Checkpoint>, StoreError> {
        self.read(self.proposer.machine.read(|ledger| ledger.find(id).cloned())).await
    }

    fn held(&self) -> Option<Held> {
        let blobs = self.proposer.exchange.blobs();
        self.proposer.machine.read(|ledger| {
            let here = ledger.globals().find(|record| blobs.get(record.digest).is_some())?;
            Some(Held { id: here.id, digest: here.digest })
        })
    }

    fn aggregator(&self) -> watch::Receiver<Option<Epoch>> {
        self.proposer.aggregator.clone()
    }

    async fn step_down(&self, to: Option<NodeId>) -> Result<Epoch, StoreError> {
        let current = self.current();
        if current.is_none_or(|epoch| epoch.node != self.local()) {
            return Err(StoreError::NotAggregator { current });
        }
        let successor = to.or_else(|| self.proposer.most_caught_up());
        let successor = successor.filter(|to| *to != self.local() && self.proposer.config.nodes.contains(to));
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

    fn guarantees(&self) -> Guarantees {
        let of = self.proposer.config.nodes.len() as u32;
        Guarantees {
            acknowledged: Guarantee::Majority { of },
            tolerated_losses: (of - 1) / 2,
            linear: true,
            minority_refuses: true,
            fails_over: of > 2,
            survives_full_restart: self.storage.is_some(),
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

/// Founds the cluster on the lowest voter, once enough others are connected to elect it.
async fn found(raft: RaftCore, transport: Arc<dyn Transport>, voters: BTreeSet<NodeId>) {
    // Whoever finds a log on disk is part of a cluster already.
    if voters.first() != Some(&transport.local()) || !matches!(raft.is_initialized().await, Ok(false)) {
        return;
    }
    let mut connected = transport.connected();
    let majority = |peers: &Vec<NodeId>| {
        let voting = peers.iter().filter(|peer| voters.contains(peer)).count();
        voting + 1 > voters.len() / 2
    };
    if connected.wait_for(majority).await.is_err() {
        return;
    }
    let members: BTreeMap<u64, EmptyNode> = voters.iter().map(|voter| (voter.0, EmptyNode {})).collect();
    // openraft has the founder stand for election at once.
    if let Err(error) = raft.initialize(members).await {
        tracing::info!(%error, "the cluster exists already");
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
    tokio::select! {
        biased;
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
