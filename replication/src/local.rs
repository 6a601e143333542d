//! The lowest node aggregates, always, and keeps everything itself: what a job has without replication.
//!
//! Without a storage the job ends with its aggregator (level 0 of self-recovery); with one the same aggregator goes on
//! from its own disk when it is started again (level 1), in the next epoch. The others learn the epoch from it, and ask it
//! when they read. This module deliberately knows no election: nobody takes over.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::archive::{Archive, Opened};
use crate::blob::{Blobs, transfer_timeout};
use crate::config::{ConfigError, Site};
use crate::error::StoreError;
use crate::event::{Observer, StoreEvent};
use crate::ledger::{Admission, Ledger, Record};
use crate::storage::StorageError;
use crate::store::{
    Blob, Carrier, Checkpoint, CheckpointId, CheckpointStore, Epoch, Guarantee, Guarantees, Held,
    MAX_PARAMETER_BYTES, NodeId, Receipt, Slot,
};
use crate::transport::{Class, Frame, Handler, Refusal, Transport, TransportError};
use crate::wire;

/// The aggregator says that it aggregates to new connections at once, to all once in so many heartbeat intervals.
const ANNOUNCE_HEARTBEATS: u32 = 4;

/// The fact that says which epoch the aggregator began last.
const COUNTER: &str = "counter";

/// Parameters of the backend without replication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalConfig {
    /// Every node. The lowest aggregates.
    pub nodes: BTreeSet<NodeId>,
    /// A quarter of how often the aggregator says so, and the pause before a request is tried again, in milliseconds.
    pub heartbeat_ms: u64,
    /// How long a read or a worker's `put` waits for the aggregator, in milliseconds.
    pub put_timeout_ms: u64,
    /// Checkpoints kept per slot.
    pub retained: usize,
}

/// What a reader asks for.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Wanted {
    Newest(Slot),
    Named(CheckpointId),
}

/// What the aggregator has written.
struct Books {
    ledger: Ledger,
    /// Not yet on disk: neither acknowledged nor read.
    pending: BTreeSet<CheckpointId>,
    closed: bool,
}

struct Node {
    config: LocalConfig,
    /// The lowest node.
    lowest: NodeId,
    transport: Arc<dyn Transport>,
    observer: Arc<dyn Observer>,
    aggregator: watch::Sender<Option<Epoch>>,
    archive: Archive,
    blobs: Blobs,
    books: Mutex<Books>,
}

/// One node's store without replication.
pub struct LocalStore {
    node: Arc<Node>,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalStore").field("config", &self.node.config).finish_non_exhaustive()
    }
}

impl fmt::Display for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let medium = if self.node.archive.is_durable() { "disk" } else { "memory" };
        write!(f, "local (node {}, {medium})", self.node.lowest)
    }
}

impl LocalStore {
    /// Opens this node's store. The lowest node aggregates from here on, in an epoch beyond those that its storage knows.
    ///
    /// # Errors
    /// Contradictory parameters, a node that is not among the nodes, or a storage that cannot be used.
    pub async fn open(config: LocalConfig, site: Site) -> Result<Arc<Self>, ConfigError> {
        if config.heartbeat_ms == 0 {
            return Err(ConfigError::NoHeartbeat);
        }
        let Site { transport, observer, storage, .. } = site;
        let local = transport.local();
        let Some(lowest) = config.nodes.first().copied().filter(|_| config.nodes.contains(&local)) else {
            return Err(ConfigError::NotANode(local));
        };
        let cluster = format!("the aggregator {lowest} without replication");
        let Opened { archive, rows, blobs } = Archive::open(storage, local, &cluster).await?;
        let ledger = Ledger::of_rows(config.retained, rows);
        let epoch =
            if local == lowest { Some(begin(lowest, &archive, &ledger, &blobs).await?) } else { None };
        let node = Arc::new(Node {
            config,
            lowest,
            transport: transport.clone(),
            observer: observer.clone(),
            aggregator: watch::Sender::new(epoch),
            archive,
            blobs,
            books: Mutex::new(Books { ledger, pending: BTreeSet::new(), closed: false }),
        });
        transport.serve(Arc::new(Inbox(node.clone())));
        let mut tasks = JoinSet::new();
        if let Some(epoch) = epoch {
            observer.observe(StoreEvent::AggregatorChanged { epoch: Some(epoch) });
            tasks.spawn(announce(node.clone(), epoch));
        }
        Ok(Arc::new(Self { node, tasks: tokio::sync::Mutex::new(tasks) }))
    }
}

/// Begins the next epoch, once nobody can begin it again.
async fn begin(
    lowest: NodeId,
    archive: &Archive,
    ledger: &Ledger,
    blobs: &Blobs,
) -> Result<Epoch, StorageError> {
    if let Some(record) = ledger.records().find(|record| blobs.get(record.digest).is_none()) {
        return Err(archive.damaged(format!("the bytes of {} are gone", record.id)));
    }
    let counter = archive.fact::<u64>(COUNTER)?.unwrap_or(0).saturating_add(1);
    archive.note(COUNTER, &counter);
    archive.flush_facts().await?;
    Ok(Epoch { counter, node: lowest })
}

/// Says who aggregates, until the transport closes.
async fn announce(node: Arc<Node>, epoch: Epoch) {
    let mut connected = node.transport.connected();
    connected.mark_changed();
    let mut known = BTreeSet::new();
    let interval = Duration::from_millis(node.config.heartbeat_ms) * ANNOUNCE_HEARTBEATS;
    let mut interval = tokio::time::interval(interval);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut telling = JoinSet::new();
    loop {
        let told: Vec<NodeId> = tokio::select! {
            biased;
            changed = connected.changed() => {
                if changed.is_err() {
                    return;
                }
                let now: BTreeSet<NodeId> = connected.borrow_and_update().iter().copied().collect();
                let new = now.difference(&known).copied().collect();
                known = now;
                new
            }
            _ = interval.tick() => known.iter().copied().collect(),
        };
        while telling.try_join_next().is_some() {}
        for peer in told.into_iter().filter(|peer| node.config.nodes.contains(peer)) {
            let node = node.clone();
            telling.spawn(async move {
                let frame = Frame::new(wire::LOCAL_EPOCH, wire::encode(&epoch));
                let request = node.transport.request(peer, Class::Heartbeat, frame);
                // It is told again soon.
                let _ = tokio::time::timeout(node.timeout(), request).await;
            });
        }
    }
}

impl Node {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn local(&self) -> NodeId {
        self.transport.local()
    }

    fn leads(&self) -> bool {
        self.local() == self.lowest
    }

    fn current(&self) -> Option<Epoch> {
        *self.aggregator.borrow()
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.config.put_timeout_ms)
    }

    fn open(&self) -> Result<MutexGuard<'_, Books>, StoreError> {
        let books = self.books();
        if books.closed { Err(StoreError::Closed { reason: "it was closed".into() }) } else { Ok(books) }
    }

    /// Checks who writes in which epoch.
    fn may_write(&self, id: CheckpointId, from: NodeId) -> Result<(), StoreError> {
        let current = self.current();
        match current {
            None => Err(StoreError::NotAggregator { current }),
            Some(epoch) if epoch != id.epoch => Err(StoreError::Fenced { epoch: id.epoch, current }),
            Some(epoch)
                if from != epoch.node && !matches!(id.slot, Slot::Worker { node, .. } if node == from) =>
            {
                Err(StoreError::NotAggregator { current })
            }
            Some(_) => Ok(()),
        }
    }

    /// On the aggregator: acknowledges what `from` writes.
    async fn put(&self, checkpoint: &Checkpoint, from: NodeId) -> Result<Receipt, StoreError> {
        checkpoint.within_limits()?;
        let record = Record::from(checkpoint);
        let Record { id, digest, bytes, .. } = record;
        {
            let mut books = self.open()?;
            self.may_write(id, from)?;
            let (admission, released) = books.ledger.insert(record);
            admission.into_result(id)?;
            if admission == Admission::New {
                books.pending.insert(id);
                self.blobs.stage(digest, checkpoint.parameters().clone());
                self.blobs.refer(digest);
                self.archive.save(&books.ledger, [id.slot]);
            }
            // After the rows that referred to them.
            for digest in released {
                self.blobs.release(digest);
            }
        }
        self.archive.flush().await?;
        if self.open()?.pending.remove(&id) {
            self.observer.observe(StoreEvent::Applied { id, digest, bytes });
        }
        Ok(Receipt { id, digest, guarantee: self.guarantee(), holders: vec![self.lowest] })
    }

    fn guarantee(&self) -> Guarantee {
        if self.archive.is_durable() { Guarantee::LocalDisk } else { Guarantee::LocalMemory }
    }

    /// On the aggregator: what is acknowledged.
    fn find(&self, wanted: Wanted) -> Result<Option<Checkpoint>, StoreError> {
        let books = self.open()?;
        let acknowledged = |record: &&Record| !books.pending.contains(&record.id);
        let found = match wanted {
            Wanted::Newest(slot) => books.ledger.newest_first(slot).find(acknowledged),
            Wanted::Named(id) => books.ledger.find(id).filter(acknowledged),
        };
        let Some(Record { id, digest, metadata, .. }) = found.cloned() else { return Ok(None) };
        let parameters = self.blobs.get(digest).ok_or(StoreError::Missing { digest })?;
        Ok(Some(Checkpoint::already_verified(id, digest, parameters, metadata)))
    }

    /// Asks the aggregator, again and again while it cannot be reached.
    async fn ask(&self, frame: Frame, timeout: Duration) -> Result<Frame, StoreError> {
        let mut connected = self.transport.connected();
        let asking = async {
            loop {
                let there = connected.wait_for(|peers| peers.contains(&self.lowest)).await.is_ok();
                match self.transport.request(self.lowest, Class::Blob, frame.clone()).await {
                    Err(TransportError::Unreachable { .. } | TransportError::Interrupted { .. }) if there => {
                        tokio::time::sleep(Duration::from_millis(self.config.heartbeat_ms)).await;
                    }
                    answer => return answer,
                }
            }
        };
        let unavailable = |reason: String| StoreError::Unavailable { reason };
        let answer = tokio::time::timeout(timeout, asking).await;
        let late = || unavailable(format!("the aggregator {} did not answer in {timeout:?}", self.lowest));
        answer.map_err(|_| late())?.map_err(|error| unavailable(error.to_string()))
    }

    async fn read(&self, wanted: Wanted) -> Result<Option<Checkpoint>, StoreError> {
        if self.leads() {
            return self.find(wanted);
        }
        drop(self.open()?);
        let timeout = self.timeout().max(transfer_timeout(0));
        let answer = self.ask(Frame::new(wire::LOCAL_READ, wire::encode(&wanted)), timeout).await?;
        let record: Option<Record> =
            wire::decode(&answer.head).map_err(|refusal| StoreError::Unavailable { reason: refusal.0 })?;
        let Some(Record { id, digest, metadata, .. }) = record else { return Ok(None) };
        let checkpoint = Checkpoint::verified(id, digest, answer.into_body(), metadata, self.lowest);
        checkpoint.map(Some).inspect_err(|_| {
            self.observer.observe(StoreEvent::CorruptBlob { from: self.lowest, digest });
        })
    }

    /// On a worker: has the aggregator write.
    async fn forward(&self, checkpoint: &Checkpoint) -> Result<Receipt, StoreError> {
        drop(self.open()?);
        self.may_write(checkpoint.id(), self.local())?;
        let record = Record::from(checkpoint);
        let timeout = self.timeout().max(transfer_timeout(record.bytes));
        let frame = Frame::new(wire::LOCAL_FORWARD, wire::encode(&record))
            .with_segment(checkpoint.parameters().clone());
        let answer = self.ask(frame, timeout).await?;
        wire::decode::<Result<Receipt, StoreError>>(&answer.head)
            .map_err(|refusal| StoreError::Unavailable { reason: refusal.0 })?
    }

    /// Takes note of an epoch of the aggregator.
    fn hear(&self, epoch: Epoch) {
        let new = self.aggregator.send_if_modified(|known| {
            let new = Some(epoch) > *known;
            if new {
                *known = Some(epoch);
            }
            new
        });
        if new {
            self.observer.observe(StoreEvent::AggregatorChanged { epoch: Some(epoch) });
        }
    }
}

#[async_trait]
impl CheckpointStore for LocalStore {
    async fn put_carried(&self, checkpoint: Checkpoint, _carrier: Carrier) -> Result<Receipt, StoreError> {
        checkpoint.within_limits()?;
        if self.node.leads() {
            self.node.put(&checkpoint, self.node.lowest).await
        } else {
            self.node.forward(&checkpoint).await
        }
    }

    fn provide(&self, _blob: Blob) {}

    async fn newest(&self, slot: Slot) -> Result<Option<Checkpoint>, StoreError> {
        self.node.read(Wanted::Newest(slot)).await
    }

    async fn get(&self, id: CheckpointId) -> Result<Option<Checkpoint>, StoreError> {
        self.node.read(Wanted::Named(id)).await
    }

    fn held(&self) -> Option<Held> {
        let Books { ledger, pending, .. } = &*self.node.books();
        let mut held = ledger.newest_first(Slot::Global);
        let newest = held.find(|record| !pending.contains(&record.id))?;
        Some(Held { id: newest.id, digest: newest.digest })
    }

    fn aggregator(&self) -> watch::Receiver<Option<Epoch>> {
        self.node.aggregator.subscribe()
    }

    fn candidates(&self) -> Vec<NodeId> {
        Vec::new()
    }

    async fn step_down(&self, _to: Option<NodeId>) -> Result<Epoch, StoreError> {
        if !self.node.leads() {
            return Err(StoreError::NotAggregator { current: self.node.current() });
        }
        Err(StoreError::Unavailable { reason: "there is nobody to hand over to".into() })
    }

    async fn leave(&self) -> Result<(), StoreError> {
        Err(StoreError::FixedMembers)
    }

    fn guarantees(&self) -> Guarantees {
        Guarantees {
            acknowledged: self.node.guarantee(),
            tolerated_losses: 0,
            linear: true,
            minority_refuses: false,
            fails_over: false,
            survives_full_restart: self.node.archive.is_durable(),
            takes_provided: false,
            in_order: true,
        }
    }

    async fn close(&self) {
        self.node.books().closed = true;
        self.tasks.lock().await.shutdown().await;
        self.node.archive.close().await;
    }
}

/// Answers the replication plane's requests on one node.
struct Inbox(Arc<Node>);

impl Inbox {
    fn refuse(&self, from: NodeId, reason: String) -> Refusal {
        self.0.observer.observe(StoreEvent::Refused { from, reason: reason.clone() });
        Refusal(reason)
    }

    fn epoch(&self, from: NodeId, request: &Frame) -> Result<Frame, Refusal> {
        let epoch: Epoch = wire::decode(&request.head)?;
        if from != self.0.lowest || epoch.node != from {
            return Err(self.refuse(from, format!("node {from} may not speak as node {}", self.0.lowest)));
        }
        self.0.hear(epoch);
        Ok(Frame::default())
    }

    fn read(&self, request: &Frame) -> Result<Frame, Refusal> {
        let found = self.0.find(wire::decode(&request.head)?);
        let found = found.map_err(|error| Refusal(error.to_string()))?;
        let answer = Frame::new(0, wire::encode(&found.as_ref().map(Record::from)));
        Ok(match found {
            Some(checkpoint) => answer.with_segment(checkpoint.parameters().clone()),
            None => answer,
        })
    }

    async fn forwarded(&self, from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        let Record { id, digest, bytes, metadata } = wire::decode(&request.head)?;
        if bytes > MAX_PARAMETER_BYTES || !self.0.config.nodes.contains(&from) {
            return Err(self.refuse(from, format!("{id} is not kept here")));
        }
        let outcome = match Checkpoint::verified(id, digest, request.into_body(), metadata, from) {
            Ok(checkpoint) => self.0.put(&checkpoint, from).await,
            Err(error) => {
                self.0.observer.observe(StoreEvent::CorruptBlob { from, digest });
                Err(error)
            }
        };
        Ok(Frame::new(0, wire::encode(&outcome)))
    }
}

#[async_trait]
impl Handler for Inbox {
    async fn handle(&self, from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        if self.0.books().closed {
            return Err(Refusal("the store is closed".into()));
        }
        match request.tag {
            wire::LOCAL_EPOCH => self.epoch(from, &request),
            wire::LOCAL_READ | wire::LOCAL_FORWARD if !self.0.leads() => {
                Err(Refusal("this node does not aggregate".into()))
            }
            wire::LOCAL_READ => self.read(&request),
            wire::LOCAL_FORWARD => self.forwarded(from, request).await,
            unknown => Err(Refusal(format!("unknown message {unknown}"))),
        }
    }
}
