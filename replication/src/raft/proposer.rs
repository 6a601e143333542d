//! One write on the node that leads: spread the bytes (payload mode `digest`), propose, await the answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
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
use super::notice::Standing;
use super::types::{Answer, Command, LogId};
use crate::blob::{Exchange, provision_patience, transfer_timeout};
use crate::error::StoreError;
use crate::event::Observer;
use crate::ledger::Record;
use crate::store::{Carrier, Checkpoint, Digest, Epoch, Guarantee, NodeId, Payload, Receipt, Slot};
use crate::suitability::Resources;
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
    pub(super) standing: Standing,
    pub(super) resources: Resources,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) spread: Spread,
    pub(super) background: Mutex<JoinSet<()>>,
    /// Held by whoever changes the membership on this leader.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// Voters that asked this leader to be replaced.
    pub(super) let_go: Mutex<BTreeSet<NodeId>>,
    /// Whether this node leaves, or has left.
    pub(super) leaving: AtomicBool,
}

/// Who took which bytes from this node, or is being sent them: the same bytes are not sent twice.
#[derive(Clone, Default)]
pub(super) struct Spread(Arc<Mutex<VecDeque<(Digest, Takers)>>>);

/// What became of one digest's pushes, by peer.
type Takers = BTreeMap<NodeId, Taker>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taker {
    UnderWay,
    Has,
}

impl Spread {
    fn of(&self, digest: Digest) -> Takers {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|(of, _)| *of == digest).map(|(_, takers)| takers.clone()).unwrap_or_default()
    }

    /// Takes note of a peer: `None` if it was not reached.
    fn note(&self, digest: Digest, peer: NodeId, taker: Option<Taker>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.iter().any(|(of, _)| *of == digest) {
            known.push_back((digest, Takers::new()));
            if known.len() > SPREADS_REMEMBERED {
                known.pop_front();
            }
        }
        for (_, takers) in known.iter_mut().filter(|(of, _)| *of == digest) {
            match taker {
                Some(taker) => takers.insert(peer, taker),
                None => takers.remove(&peer),
            };
        }
    }
}

/// A peer that is being sent bytes: forgotten when dropped, unless it has them.
struct Taking {
    spread: Spread,
    digest: Digest,
    peer: NodeId,
    outcome: Option<Taker>,
}

impl Taking {
    fn begin(spread: Spread, digest: Digest, peer: NodeId) -> Self {
        spread.note(digest, peer, Some(Taker::UnderWay));
        Self { spread, digest, peer, outcome: None }
    }

    fn done(mut self) {
        self.outcome = Some(Taker::Has);
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        self.spread.note(self.digest, self.peer, self.outcome);
    }
}

impl Proposer {
    pub(super) fn timeout(&self, bytes: u64) -> Duration {
        Duration::from_millis(self.config.put_timeout_ms).max(transfer_timeout(bytes))
    }

    /// Acknowledges a checkpoint that `from` wrote.
    pub(crate) async fn put(
        &self,
        checkpoint: Checkpoint,
        from: NodeId,
        carrier: Carrier,
    ) -> Result<Receipt, StoreError> {
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
            receipt = self.replicate(checkpoint, carrier, &unled) => receipt,
            () = deposed => Err(StoreError::Unavailable { reason: "this node lost its office meanwhile".into() }),
            () = tokio::time::sleep(timeout) => {
                let reason = self.too_late(timeout, &unled);
                // A majority without this node would have been enough.
                let full = self.exchange.blobs().is_full();
                Err(if full { StoreError::DiskFull { reason } } else { StoreError::Unavailable { reason } })
            }
        }
    }

    /// How many nodes vote, as far as this node knows.
    pub(super) fn voters(&self) -> u32 {
        match self.standing.size() {
            0 => self.config.founding_voters(),
            voters => voters,
        }
    }

    /// A voter wants to leave.
    pub(super) fn let_go(&self, voter: NodeId) {
        self.let_go.lock().unwrap_or_else(PoisonError::into_inner).insert(voter);
    }

    fn too_late(&self, timeout: Duration, unled: &AtomicBool) -> String {
        let voters = self.voters();
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

    async fn replicate(
        &self,
        checkpoint: Checkpoint,
        carrier: Carrier,
        unled: &AtomicBool,
    ) -> Result<Receipt, StoreError> {
        let record = Record::from(&checkpoint);
        let parameters = checkpoint.parameters().clone();
        let holders = match self.config.payload {
            Payload::Inline => None,
            Payload::Digest => {
                let blobs = self.exchange.blobs();
                blobs.stage(record.digest, parameters.clone());
                let flushed = blobs.flush();
                let holders = self.spread(&record, &parameters, carrier).await;
                flushed.await?;
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
        let of = self.voters();
        Ok(Receipt { id, digest, guarantee: Guarantee::Majority { of }, holders })
    }

    /// Sees to it that every voter has the bytes; returns who holds them once a majority does. The rest goes on by itself.
    async fn spread(&self, record: &Record, parameters: &Bytes, carrier: Carrier) -> Vec<NodeId> {
        let digest = record.digest;
        let takers = self.known_takers(record);
        let mut holders: BTreeSet<NodeId> =
            takers.iter().filter(|(_, taker)| **taker == Taker::Has).map(|(peer, _)| *peer).collect();
        holders.insert(self.transport.local());
        let patience = match carrier {
            Carrier::Caller => {
                Some(provision_patience(record.bytes, self.transport.connected().borrow().len() + 1))
            }
            // Acknowledged state has the same bytes, so that others may have them too.
            Carrier::Store if self.machine.read(|ledger| ledger.refers_to(digest)) => Some(Duration::ZERO),
            Carrier::Store => None,
        };
        let mut pushes = JoinSet::new();
        for peer in self.standing.voters().difference(&holders).copied() {
            let under_way = takers.contains_key(&peer).then(|| transfer_timeout(record.bytes));
            pushes.spawn(self.bring(peer, digest, parameters.clone(), under_way.or(patience)));
        }
        while !self.standing.is_majority(&holders) {
            match pushes.join_next().await {
                Some(brought) => holders.extend(brought.ok().flatten()),
                // Fewer than a majority took the bytes: the put's timeout says so.
                None => std::future::pending().await,
            }
        }
        self.background().spawn(async move { while pushes.join_next().await.is_some() {} });
        holders.into_iter().collect()
    }

    /// Sees to it that `peer` has the bytes: within `patience` somebody else brings them, then they are sent from here.
    fn bring(
        &self,
        peer: NodeId,
        digest: Digest,
        parameters: Bytes,
        patience: Option<Duration>,
    ) -> impl Future<Output = Option<NodeId>> + Send + 'static {
        let exchange = self.exchange.clone();
        let pause = Duration::from_millis(self.config.heartbeat_ms);
        let taking = Taking::begin(self.spread.clone(), digest, peer);
        async move {
            let given = match patience {
                Some(patience) => exchange.is_given(peer, digest, patience).await,
                None => false,
            };
            if !given && !exchange.push(peer, digest, parameters, pause).await {
                return None;
            }
            taking.done();
            Some(peer)
        }
    }

    /// Voters that took these bytes from this node and still have them, or are being sent them: the newest checkpoint of
    /// the slot has them too, so that nobody has let them go.
    fn known_takers(&self, record: &Record) -> Takers {
        let current = self.machine.read(|ledger| ledger.newest(record.id.slot).map(|newest| newest.digest));
        if current != Some(record.digest) {
            return Takers::new();
        }
        let voters = self.standing.voters();
        let mut takers = self.spread.of(record.digest);
        takers.retain(|peer, _| voters.contains(peer));
        takers
    }

    pub(super) fn background(&self) -> MutexGuard<'_, JoinSet<()>> {
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
        holders.intersection(&self.standing.voters()).copied().collect()
    }

    /// The bytes of an acknowledged checkpoint: from here, from its writer while that leads, or from any other voter.
    pub(super) async fn bytes(&self, record: &Record) -> Result<Bytes, StoreError> {
        if let Some(bytes) = self.exchange.blobs().get(record.digest) {
            return Ok(bytes);
        }
        let local = self.transport.local();
        let connected = self.transport.connected().borrow().clone();
        let reachable = |holder: &NodeId| *holder != local && connected.contains(holder);
        let mut holders: Vec<NodeId> = self.standing.voters().into_iter().filter(reachable).collect();
        // Not everyone asks the same node first.
        holders.shuffle(&mut ChaCha8Rng::seed_from_u64(self.config.seed ^ local.0 ^ record.id.round));
        // The writer has them for certain, but a writer that lost its office may be dead.
        let writer = record.id.epoch;
        let leads = *self.aggregator.borrow() == Some(writer);
        holders.sort_by_key(|holder| if *holder == writer.node { if leads { 0 } else { 2 } } else { 1 });
        self.exchange.fetch(record.digest, record.bytes, &holders).await
    }

    /// Index of the last log entry that was applied here.
    pub(super) fn applied(&self) -> Option<u64> {
        let metrics = self.raft.data_metrics();
        metrics.borrow_watched().last_applied.map(|applied| applied.index)
    }

    pub(super) fn most_caught_up(&self) -> Option<NodeId> {
        let metrics = self.raft.data_metrics();
        let metrics = metrics.borrow_watched();
        let local = self.transport.local();
        let voters = self.standing.voters();
        let successor = |node: NodeId| node != local && voters.contains(&node);
        let peers = metrics.replication.iter().flatten().filter(|(node, _)| successor(NodeId(**node)));
        peers.max_by_key(|(_, matched)| matched.map(|matched| matched.index)).map(|(node, _)| NodeId(*node))
    }
}
