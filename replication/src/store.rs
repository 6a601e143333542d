//! The contract every backend keeps: [`CheckpointStore`], and the words it is written in.
//!
//! This module knows what a checkpoint *is* and what may be relied upon. It deliberately does not know how
//! anything is replicated, what the parameters mean, or what a round does.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::error::StoreError;
use crate::suspicion::Suspicion;
use crate::work;

/// One participant: a process, a network namespace or a board.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Fencing number of an aggregator: it grows with every change of aggregator and names the node that holds it.
///
/// Under Raft the counter is the term. There is at most one node per epoch, because the node is part of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Grows with every change of aggregator.
    pub counter: u64,
    /// The aggregator of this epoch.
    pub node: NodeId,
}

impl Epoch {
    /// The epoch as text, `none` where there is none.
    #[must_use]
    pub fn describe(epoch: Option<Self>) -> String {
        epoch.map_or_else(|| "none".into(), |epoch| epoch.to_string())
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.counter, self.node)
    }
}

/// Where in a round a checkpoint was taken (Dautov and Husom 2024, Fig. 1), in the order of the round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Global parameters before the workers train.
    ConfigureFit,
    /// Parameters averaged from the workers' results.
    AggregateFit,
    /// Global parameters before the workers evaluate.
    ConfigureEvaluate,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConfigureFit => "configure_fit",
            Self::AggregateFit => "aggregate_fit",
            Self::ConfigureEvaluate => "configure_evaluate",
        })
    }
}

/// Which of a phase's values a checkpoint is. [`latest`](CheckpointStore::latest) follows [`Slot::Global`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// The state the job resumes from.
    Global,
    /// One tensor or metadata key of the global state, where a profile writes them apart.
    Part(u16),
    /// Something a worker wrote: its own parameters, or one tensor of what it received.
    Worker {
        /// The worker.
        node: NodeId,
        /// Which of its parts.
        part: u16,
    },
}

/// Names one checkpoint. Ordered by epoch, round, phase, slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CheckpointId {
    /// The aggregator under whom it was taken.
    pub epoch: Epoch,
    /// The round, from 1.
    pub round: u64,
    /// Where in the round.
    pub phase: Phase,
    /// Which of the phase's values.
    pub slot: Slot,
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "round {} {} (epoch {})", self.round, self.phase, self.epoch)?;
        match self.slot {
            Slot::Global => Ok(()),
            Slot::Part(part) => write!(f, " part {part}"),
            Slot::Worker { node, part } => write!(f, " of worker {node} part {part}"),
        }
    }
}

/// BLAKE3 digest of a checkpoint's parameters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Hexadecimal where people read it, 32 bytes where nodes do.
impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(&self.to_hex())
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return <[u8; 32]>::deserialize(deserializer).map(Self);
        }
        let text = String::deserialize(deserializer)?;
        let hash = blake3::Hash::from_hex(text.as_bytes()).map_err(serde::de::Error::custom)?;
        Ok(Self(*hash.as_bytes()))
    }
}

impl Digest {
    /// Hashes `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        work::timed(work::Kind::Hash, || Self(*blake3::hash(bytes).as_bytes()))
    }

    /// The digest that 64 hexadecimal digits name; `None` if they are something else.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text).ok().map(|hash| Self(*hash.as_bytes()))
    }

    /// The digest as 64 hexadecimal digits.
    #[must_use]
    pub fn to_hex(&self) -> String {
        blake3::Hash::from(self.0).to_hex().to_string()
    }
}

impl fmt::Display for Digest {
    /// The first 16 hexadecimal digits: enough to tell checkpoints apart in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex()[..16])
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Bytes that match a digest: there is no other way to make one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    digest: Digest,
    bytes: Bytes,
}

impl Blob {
    /// Hashes `bytes`.
    #[must_use]
    pub fn new(bytes: Bytes) -> Self {
        Self { digest: Digest::of(&bytes), bytes }
    }

    /// Bytes that came with a promised digest; `None` if they hash to something else.
    #[must_use]
    pub fn verified(expected: Digest, bytes: Bytes) -> Option<Self> {
        (Digest::of(&bytes) == expected).then_some(Self { digest: expected, bytes })
    }

    /// What the bytes hash to.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// Small facts stored beside the parameters (loss, examples, ...). At most [`MAX_METADATA_BYTES`] in total.
pub type Metadata = BTreeMap<String, String>;

/// Limit on the keys and values of one checkpoint's metadata, in bytes.
pub const MAX_METADATA_BYTES: u64 = 64 * 1024;

/// Limit on the parameters of one checkpoint, in bytes.
pub const MAX_PARAMETER_BYTES: u64 = 256 * 1024 * 1024;

/// Checkpoints of one slot that a store keeps unless told otherwise. Older ones are discarded.
pub const DEFAULT_RETAINED: usize = 8;

/// Federated-learning state at one point of one round. Its bytes always match its digest: there is no other way
/// to make one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    id: CheckpointId,
    digest: Digest,
    parameters: Bytes,
    metadata: Metadata,
}

impl Checkpoint {
    /// A checkpoint of these bytes; hashes them.
    #[must_use]
    pub fn new(id: CheckpointId, parameters: Bytes, metadata: Metadata) -> Self {
        let digest = Digest::of(&parameters);
        Self { id, digest, parameters, metadata }
    }

    /// A checkpoint of bytes that were hashed before.
    #[must_use]
    pub fn of_blob(id: CheckpointId, blob: Blob, metadata: Metadata) -> Self {
        Self { id, digest: blob.digest, parameters: blob.bytes, metadata }
    }

    /// A checkpoint of bytes that came from `from` with a promised digest.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if the bytes hash to something else.
    pub fn verified(
        id: CheckpointId,
        expected: Digest,
        parameters: Bytes,
        metadata: Metadata,
        from: NodeId,
    ) -> Result<Self, StoreError> {
        if Digest::of(&parameters) == expected {
            Ok(Self { id, digest: expected, parameters, metadata })
        } else {
            Err(StoreError::Corrupt { expected, from })
        }
    }

    /// A checkpoint of bytes this process has hashed before: content-addressed storage looks them up by digest.
    pub(crate) fn already_verified(
        id: CheckpointId,
        digest: Digest,
        parameters: Bytes,
        metadata: Metadata,
    ) -> Self {
        debug_assert_eq!(Digest::of(&parameters), digest, "bytes were stored under another digest");
        Self { id, digest, parameters, metadata }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> CheckpointId {
        self.id
    }

    /// Digest of its parameters.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The model parameters, opaque to the store.
    #[must_use]
    pub fn parameters(&self) -> &Bytes {
        &self.parameters
    }

    /// Its parameters with their digest.
    #[must_use]
    pub fn into_blob(self) -> Blob {
        Blob { digest: self.digest, bytes: self.parameters }
    }

    /// Small facts beside the parameters.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Checks the limits that every store shares.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`].
    pub fn within_limits(&self) -> Result<(), StoreError> {
        let metadata: usize = self.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        for (bytes, limit) in [(self.parameters.len(), MAX_PARAMETER_BYTES), (metadata, MAX_METADATA_BYTES)] {
            if bytes as u64 > limit {
                return Err(StoreError::TooLarge { id: self.id, bytes: bytes as u64, limit });
            }
        }
        Ok(())
    }
}

/// How checkpoint bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// In the Raft log, as the paper did.
    Inline,
    /// Apart from the log, which carries id, digest and size.
    Digest,
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inline => "inline",
            Self::Digest => "digest",
        })
    }
}

/// How an aggregator makes sure that it still is one, before it answers from what it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confirmation {
    /// By asking a majority (Raft's read index).
    Index,
    /// By the time since a majority last answered, which takes clocks that run alike (Raft's leader lease).
    Lease,
}

/// Who brings a checkpoint's bytes to the nodes that shall hold them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// The store sends them.
    Store,
    /// The caller is sending them to other nodes on its own way right now, where they are given to the store by
    /// [`CheckpointStore::provide`]. The store sends them only where they do not arrive in time. A store that carries
    /// bytes inline sends them all the same.
    Caller,
}

/// What was true when a `put` returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// In the memory of this node.
    LocalMemory,
    /// On this node's disk, flushed.
    LocalDisk,
    /// On a majority of `of` nodes.
    Majority {
        /// Size of the group.
        of: u32,
    },
    /// Accepted by `holders` nodes, without consensus.
    Holders {
        /// How many nodes hold the bytes.
        holders: u32,
    },
}

/// The answer to a successful [`put`](CheckpointStore::put).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// What was written.
    pub id: CheckpointId,
    /// Digest of its parameters.
    pub digest: Digest,
    /// What was true when `put` returned.
    pub guarantee: Guarantee,
    /// Nodes known to hold the bytes when `put` returned, in ascending order. Others may hold them too.
    pub holders: Vec<NodeId>,
}

/// A checkpoint by name and content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its name.
    pub id: CheckpointId,
    /// Digest of its parameters.
    pub digest: Digest,
}

/// What callers and checks may rely on. Code asks this, never the backend's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guarantees {
    /// What a receipt says at least.
    pub acknowledged: Guarantee,
    /// An acknowledged checkpoint survives the loss of any this many nodes.
    pub tolerated_losses: u32,
    /// An acknowledged checkpoint is never superseded by one that does not follow from it, partitions included.
    pub linear: bool,
    /// A node on the minority side of a partition acknowledges nothing.
    pub minority_refuses: bool,
    /// Another node takes over when the aggregator dies.
    pub fails_over: bool,
    /// A restart of all nodes loses nothing that was acknowledged.
    pub survives_full_restart: bool,
    /// Bytes given by [`CheckpointStore::provide`] need not be sent again.
    pub takes_provided: bool,
    /// A node that serves a checkpoint knows every retained one that was acknowledged before it.
    pub in_order: bool,
}

/// Keeps checkpoints, and says who aggregates.
///
/// # Contract
/// - **Fencing.** Every checkpoint carries the epoch under which it was taken. A store whose aggregator changed
///   refuses the old epoch's writes.
/// - **Order.** Within a slot, acknowledged `(round, phase)` pairs only grow; in slots other than [`Slot::Global`] a later
///   epoch may write the newest pair again, since it repeats what the epoch before it left unfinished. Writing an acknowledged checkpoint again
///   (same id, same digest) succeeds and changes nothing, so that a write whose outcome is unknown can be repeated
///   within its epoch.
/// - **Monotonic reads.** `newest` never returns an older checkpoint than it returned before of the same slot on the same
///   node.
/// - **Integrity.** Bytes leave a store only after they matched their BLAKE3 digest on this node.
/// - **Cancellation.** Dropping the future of a `put` leaves its outcome unknown.
#[async_trait]
pub trait CheckpointStore: fmt::Display + Send + Sync + 'static {
    /// Writes `checkpoint`; returns once the guarantee of [`guarantees`](Self::guarantees) holds. `carrier` says whose task
    /// it is to bring the bytes to the nodes that shall hold them.
    ///
    /// # Errors
    /// By meaning; [`StoreError::outcome`] says whether the write may have happened.
    async fn put_carried(&self, checkpoint: Checkpoint, carrier: Carrier) -> Result<Receipt, StoreError>;

    /// Writes `checkpoint`, whose bytes the store sends.
    ///
    /// # Errors
    /// As [`put_carried`](Self::put_carried).
    async fn put(&self, checkpoint: Checkpoint) -> Result<Receipt, StoreError> {
        self.put_carried(checkpoint, Carrier::Store).await
    }

    /// Gives the store bytes that came to this node on another way, so that they need not be sent again for a write
    /// under way. A store that has no use for them ignores them.
    fn provide(&self, blob: Blob);

    /// The newest acknowledged checkpoint of `slot` this node knows; fetches its bytes if need be.
    ///
    /// On the aggregator of the current epoch this includes every checkpoint acknowledged in earlier epochs.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if no reachable node serves the bytes.
    async fn newest(&self, slot: Slot) -> Result<Option<Checkpoint>, StoreError>;

    /// The newest acknowledged checkpoint of [`Slot::Global`]: where the job continues.
    ///
    /// # Errors
    /// As [`newest`](Self::newest).
    async fn latest(&self) -> Result<Option<Checkpoint>, StoreError> {
        self.newest(Slot::Global).await
    }

    /// An acknowledged checkpoint by name, `None` if it is unknown here or was discarded as too old.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if no reachable node serves the bytes.
    async fn get(&self, id: CheckpointId) -> Result<Option<Checkpoint>, StoreError>;

    /// The newest acknowledged checkpoint of [`Slot::Global`] whose bytes are on this node. Asks nobody, so it answers
    /// without a majority too.
    fn held(&self) -> Option<Held>;

    /// Follows who aggregates, as far as this node knows.
    fn aggregator(&self) -> watch::Receiver<Option<Epoch>>;

    /// Nodes that could take over from this one, in ascending order.
    fn candidates(&self) -> Vec<NodeId>;

    /// What this node makes of the silence of those whose death it would have to notice, in ascending order: of everybody where
    /// all watch all, of the aggregator where only that one is watched, of nobody on a node that watches nobody. To be looked at
    /// now and then; nothing depends on it.
    fn suspicions(&self) -> Vec<Suspicion> {
        Vec::new()
    }

    /// Makes sure that this node still aggregates in `epoch`: if the store is [`linear`](Guarantees::linear) and elects by
    /// majority, nothing of a later epoch was acknowledged before this was called. Otherwise as far as this node knows.
    ///
    /// # Errors
    /// [`StoreError::NotAggregator`] if another epoch is in force; [`StoreError::Unavailable`] if it cannot be found out.
    async fn confirm(&self, epoch: Epoch, _by: Confirmation) -> Result<(), StoreError> {
        let current = *self.aggregator().borrow();
        if current == Some(epoch) { Ok(()) } else { Err(StoreError::NotAggregator { current }) }
    }

    /// Hands over on purpose, to `to` or to whoever is fit. Returns once another epoch is in force.
    ///
    /// # Errors
    /// [`StoreError::NotAggregator`] if this node does not aggregate; [`StoreError::Unavailable`] if nobody took over.
    async fn step_down(&self, to: Option<NodeId>) -> Result<Epoch, StoreError>;

    /// Leaves the cluster on purpose: hands over if this node aggregates, and is removed from whoever votes or holds. Returns
    /// once that is in force: afterwards the store may be closed without being missed.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if there is nobody to hand over to or no majority to agree;
    /// [`StoreError::TooFewWouldBeLeft`] if the others could not keep what is promised; [`StoreError::FixedMembers`] if the
    /// backend's set of nodes is fixed.
    async fn leave(&self) -> Result<(), StoreError>;

    /// What may be relied upon.
    fn guarantees(&self) -> Guarantees;

    /// Stops the store's tasks. Nothing is acknowledged afterwards. Idempotent.
    async fn close(&self);
}

/// Conveniences over any [`CheckpointStore`]; nobody implements this by hand.
#[async_trait]
pub trait CheckpointStoreExt: CheckpointStore {
    /// Waits until some node aggregates and returns its epoch.
    async fn await_aggregator(&self) -> Result<Epoch, StoreError> {
        let mut aggregator = self.aggregator();
        let epoch = aggregator.wait_for(Option::is_some).await;
        match epoch {
            Ok(epoch) => epoch.ok_or_else(|| StoreError::Closed { reason: "no aggregator".into() }),
            Err(_) => Err(StoreError::Closed { reason: "while waiting for an aggregator".into() }),
        }
    }
}

impl<S: CheckpointStore + ?Sized> CheckpointStoreExt for S {}

/// A store whose backend is chosen at run time.
pub type AnyStore = Arc<dyn CheckpointStore>;
