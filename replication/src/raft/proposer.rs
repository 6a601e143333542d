//! One write on the node that leads: spread the bytes (payload mode `digest`), propose, await the answer.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardReason, RaftError};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::config::RaftConfig;
use super::machine::{Machine, RaftCore};
use super::types::{Answer, Command, LogId};
use crate::blob::{Exchange, transfer_timeout};
use crate::error::StoreError;
use crate::ledger::Record;
use crate::store::{Checkpoint, Digest, Epoch, Guarantee, NodeId, Payload, Receipt, Slot};
use crate::transport::Transport;

/// Digests of which the holders are remembered: a round's tensors and metadata, and then some.
const SPREADS_REMEMBERED: usize = 64;

/// Writes checkpoints on the node that leads, for itself and for others.
pub(crate) struct Proposer {
    pub(super) raft: RaftCore,
    pub(super) machine: Machine,
    pub(super) exchange: Exchange,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) aggregator: watch::Receiver<Option<Epoch>>,
    pub(super) config: RaftConfig,
    pub(super) spread: Spread,
    pub(super) background: Mutex<JoinSet<()>>,
}

/// Who took which bytes from this node: the same bytes are not sent twice.
#[derive(Clone, Default)]
pub(super) struct Spread(Arc<Mutex<Holders>>);

/// Who has which digest, oldest first.
type Holders = VecDeque<(Digest, BTreeSet<NodeId>)>;

impl Spread {
    fn lock(&self) -> MutexGuard<'_, Holders> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, digest: Digest) -> BTreeSet<NodeId> {
        self.lock()
            .iter()
            .find(|(of, _)| *of == digest)
            .map(|(_, holders)| holders.clone())
            .unwrap_or_default()
    }

    fn note(&self, digest: Digest, holders: &BTreeSet<NodeId>) {
        let mut known = self.lock();
        match known.iter_mut().find(|(of, _)| *of == digest) {
            Some((_, known)) => known.extend(holders),
            None => {
                known.push_back((digest, holders.clone()));
                if known.len() > SPREADS_REMEMBERED {
                    known.pop_front();
                }
            }
        }
    }
}

impl Proposer {
    pub(super) fn timeout(&self, bytes: u64) -> Duration {
        Duration::from_millis(self.config.put_timeout_ms).max(transfer_timeout(bytes))
    }

    /// Acknowledges a checkpoint that `from` wrote.
    pub(crate) async fn put(&self, checkpoint: Checkpoint, from: NodeId) -> Result<Receipt, StoreError> {
        checkpoint.within_limits()?;
        let id = checkpoint.id();
        let current = *self.aggregator.borrow();
        if current != Some(id.epoch) {
            return Err(match current {
                Some(_) => StoreError::Fenced { epoch: id.epoch, current },
                None => StoreError::NotAggregator { current },
            });
        }
        let own_slot = matches!(id.slot, Slot::Worker { node, .. } if node == from);
        if id.epoch.node != self.transport.local() || (from != id.epoch.node && !own_slot) {
            return Err(StoreError::NotAggregator { current });
        }
        self.machine.read(|ledger| ledger.admit(&Record::from(&checkpoint))).into_result(id)?;
        let mut aggregator = self.aggregator.clone();
        let deposed = async move {
            // An error means the store is closing.
            let _ = aggregator.wait_for(|now| *now != current).await;
        };
        let timeout = self.timeout(checkpoint.parameters().len() as u64);
        let unled = AtomicBool::new(false);
        tokio::select! {
            biased;
            receipt = self.replicate(checkpoint, &unled) => receipt,
            () = deposed => Err(StoreError::Unavailable { reason: "this node lost its office meanwhile".into() }),
            () = tokio::time::sleep(timeout) => Err(StoreError::Unavailable { reason: self.too_late(timeout, &unled) }),
        }
    }

    fn too_late(&self, timeout: Duration, unled: &AtomicBool) -> String {
        let voters = self.config.nodes.len();
        if unled.load(Ordering::Relaxed) {
            let heartbeat_ms = self.config.heartbeat_ms;
            format!(
                "no majority of {voters} voters answered a heartbeat within its interval of {heartbeat_ms} ms, for {timeout:?}: \
                 they are gone, or the link needs a longer interval"
            )
        } else {
            format!("no majority of {voters} voters within {timeout:?}")
        }
    }

    async fn replicate(&self, checkpoint: Checkpoint, unled: &AtomicBool) -> Result<Receipt, StoreError> {
        let record = Record::from(&checkpoint);
        let parameters = checkpoint.parameters().clone();
        let holders = match self.config.payload {
            Payload::Inline => None,
            Payload::Digest => {
                let blobs = self.exchange.blobs();
                blobs.stage(record.digest, parameters.clone());
                let flushed = blobs.flush();
                let holders = self.spread(&record, &parameters).await;
                flushed.await.map_err(|error| StoreError::Closed { reason: error.to_string() })?;
                Some(holders)
            }
        };
        let inline = holders.is_none();
        let (id, digest) = (record.id, record.digest);
        let command = Command { record, inline, parameters: inline.then_some(parameters) };
        let (answer, log_id) = self.propose(command, unled).await?;
        match answer {
            Answer::Admitted(admission) => admission.into_result(id)?,
            Answer::Fenced => {
                return Err(StoreError::Fenced { epoch: id.epoch, current: *self.aggregator.borrow() });
            }
            Answer::Nothing => {
                return Err(StoreError::Closed { reason: "a write was answered as if it were none".into() });
            }
        }
        let holders = holders.unwrap_or_else(|| self.have_entry(log_id));
        let of = self.config.nodes.len() as u32;
        Ok(Receipt { id, digest, guarantee: Guarantee::Majority { of }, holders })
    }

    /// Sends the bytes to every voter that may not have them; returns who holds them once a majority does. The rest goes
    /// on by itself.
    async fn spread(&self, record: &Record, parameters: &Bytes) -> Vec<NodeId> {
        let digest = record.digest;
        let mut holders = self.known_holders(record);
        holders.insert(self.transport.local());
        let mut pushes = JoinSet::new();
        let pause = Duration::from_millis(self.config.heartbeat_ms);
        for peer in self.config.nodes.difference(&holders).copied() {
            let (exchange, parameters) = (self.exchange.clone(), parameters.clone());
            pushes.spawn(async move { exchange.push(peer, digest, parameters, pause).await.then_some(peer) });
        }
        while holders.len() <= self.config.nodes.len() / 2 {
            match pushes.join_next().await {
                Some(pushed) => holders.extend(pushed.ok().flatten()),
                // Fewer than a majority took the bytes: the put's timeout says so.
                None => std::future::pending().await,
            }
        }
        let spread = self.spread.clone();
        spread.note(digest, &holders);
        self.background().spawn(async move {
            while let Some(pushed) = pushes.join_next().await {
                spread.note(digest, &pushed.ok().flatten().into_iter().collect());
            }
        });
        holders.into_iter().collect()
    }

    /// Voters that took these bytes from this node and still have them: the newest checkpoint of the slot has them too, so
    /// that nobody has let them go.
    fn known_holders(&self, record: &Record) -> BTreeSet<NodeId> {
        let current = self.machine.read(|ledger| ledger.newest(record.id.slot).map(|newest| newest.digest));
        if current == Some(record.digest) { self.spread.of(record.digest) } else { BTreeSet::new() }
    }

    fn background(&self) -> MutexGuard<'_, JoinSet<()>> {
        let mut background = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        while background.try_join_next().is_some() {}
        background
    }

    /// Ends what outlives a put.
    pub(super) fn close(&self) {
        self.background().abort_all();
    }

    /// Proposes until openraft accepts: it refuses, without having written, while no majority has acknowledged this
    /// leader lately or a hand-over is under way. The caller bounds how long that may take.
    async fn propose(&self, command: Command, unled: &AtomicBool) -> Result<(Answer, LogId), StoreError> {
        loop {
            match self.raft.client_write(command.clone()).await {
                Ok(response) => return Ok((response.data, response.log_id)),
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(refused)))
                    if refused.reason != ForwardReason::NotLeader =>
                {
                    unled.fetch_or(refused.reason == ForwardReason::LeaseExpired, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(self.config.heartbeat_ms.div_ceil(4))).await;
                }
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                    return Err(StoreError::NotAggregator { current: *self.aggregator.borrow() });
                }
                Err(RaftError::APIError(error)) => {
                    return Err(StoreError::Unavailable { reason: format!("raft: {error}") });
                }
                Err(error) => return Err(StoreError::Closed { reason: error.to_string() }),
            }
        }
    }

    fn have_entry(&self, log_id: LogId) -> Vec<NodeId> {
        let metrics = self.raft.data_metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.iter().flatten();
        let mut holders: BTreeSet<NodeId> = matched
            .filter(|(_, matched)| matched.is_some_and(|matched| matched.index >= log_id.index))
            .map(|(node, _)| NodeId(*node))
            .collect();
        holders.insert(self.transport.local());
        holders.into_iter().collect()
    }

    /// The bytes of an acknowledged checkpoint: from here, from its writer while that leads, or from any other voter.
    pub(super) async fn bytes(&self, record: &Record) -> Result<Bytes, StoreError> {
        if let Some(bytes) = self.exchange.blobs().get(record.digest) {
            return Ok(bytes);
        }
        let local = self.transport.local();
        let connected = self.transport.connected().borrow().clone();
        let reachable = |holder: &NodeId| *holder != local && connected.contains(holder);
        let mut holders: Vec<NodeId> = self.config.nodes.iter().copied().filter(reachable).collect();
        // Not everyone asks the same node first.
        holders.shuffle(&mut ChaCha8Rng::seed_from_u64(self.config.seed ^ local.0 ^ record.id.round));
        // The writer has them for certain, but a writer that lost its office may be dead.
        let writer = record.id.epoch;
        let leads = *self.aggregator.borrow() == Some(writer);
        holders.sort_by_key(|holder| if *holder == writer.node { if leads { 0 } else { 2 } } else { 1 });
        self.exchange.fetch(record.digest, record.bytes, &holders).await
    }

    pub(super) fn most_caught_up(&self) -> Option<NodeId> {
        let metrics = self.raft.data_metrics();
        let metrics = metrics.borrow_watched();
        let local = self.transport.local();
        let peers = metrics.replication.iter().flatten().filter(|(node, _)| **node != local.0);
        peers.max_by_key(|(_, matched)| matched.map(|matched| matched.index)).map(|(node, _)| NodeId(*node))
    }
}
