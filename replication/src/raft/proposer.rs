//! One write on the node that leads: spread the bytes (payload mode `digest`), propose, await the answer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardReason, RaftError};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::{mpsc, watch};

use super::config::RaftConfig;
use super::machine::Machine;
use super::types::{Answer, Command, LogId, RaftCore};
use crate::blob::{Exchange, transfer_timeout};
use crate::config::Payload;
use crate::error::StoreError;
use crate::ledger::Record;
use crate::store::{Checkpoint, Digest, Epoch, Guarantee, NodeId, Receipt, Slot};
use crate::transport::Transport;

/// Writes checkpoints on the node that leads, for itself and for others.
pub(crate) struct Proposer {
    pub(super) raft: RaftCore,
    pub(super) machine: Machine,
    pub(super) exchange: Exchange,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) aggregator: watch::Receiver<Option<Epoch>>,
    pub(super) config: RaftConfig,
}

impl Proposer {
    pub(super) fn timeout(&self, bytes: u64) -> Duration {
        Duration::from_millis(self.config.put_timeout_ms).max(transfer_timeout(bytes))
    }

    /// Acknowledges a checkpoint that `from` wrote.
    pub(crate) async fn put(&self, checkpoint: Checkpoint, from: NodeId) -> Result<Receipt, StoreError> {
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
        tokio::select! {
            receipt = self.replicate(checkpoint) => receipt,
            () = deposed => Err(StoreError::Unavailable { reason: "this node lost its office meanwhile".into() }),
            () = tokio::time::sleep(timeout) => Err(StoreError::Unavailable {
                reason: format!("no majority of {} voters within {timeout:?}", self.config.voters.len()),
            }),
        }
    }

    async fn replicate(&self, checkpoint: Checkpoint) -> Result<Receipt, StoreError> {
        let record = Record::from(&checkpoint);
        let parameters = checkpoint.parameters().clone();
        let holders = match self.config.payload {
            Payload::Inline => None,
            Payload::Digest => {
                self.exchange.stage(record.digest, parameters.clone());
                Some(self.spread(record.digest, &parameters).await)
            }
        };
        let inline = holders.is_none();
        let (id, digest) = (record.id, record.digest);
        let command = Command { record, inline, parameters: inline.then_some(parameters) };
        let (answer, log_id) = self.propose(command).await?;
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
        let of = self.config.voters.len() as u32;
        Ok(Receipt { id, digest, guarantee: Guarantee::Majority { of }, holders })
    }

    /// Sends the bytes to every voter; returns who holds them once a majority does. The rest goes on by itself.
    async fn spread(&self, digest: Digest, parameters: &bytes::Bytes) -> Vec<NodeId> {
        let local = self.transport.local();
        let (acknowledged, mut holding) = mpsc::channel(self.config.voters.len());
        for peer in self.config.voters.iter().copied().filter(|peer| *peer != local) {
            let (exchange, parameters, acknowledged) =
                (self.exchange.clone(), parameters.clone(), acknowledged.clone());
            tokio::spawn(async move {
                if exchange.push(peer, digest, parameters).await {
                    // Fails when the put has its majority already.
                    let _ = acknowledged.send(peer).await;
                }
            });
        }
        drop(acknowledged);
        let mut holders = BTreeSet::from([local]);
        while holders.len() <= self.config.voters.len() / 2 {
            match holding.recv().await {
                Some(peer) => _ = holders.insert(peer),
                // Fewer than a majority took the bytes: the put's timeout says so.
                None => std::future::pending().await,
            }
        }
        holders.into_iter().collect()
    }

    /// Proposes until openraft accepts: it refuses, without having written, while no majority has acknowledged this
    /// leader lately or a hand-over is under way. The caller bounds how long that may take.
    async fn propose(&self, command: Command) -> Result<(Answer, LogId), StoreError> {
        loop {
            match self.raft.client_write(command.clone()).await {
                Ok(response) => return Ok((response.data, response.log_id)),
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(refused)))
                    if refused.reason != ForwardReason::NotLeader =>
                {
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

    /// The bytes of an acknowledged checkpoint: from here, from its writer, or from any other voter.
    pub(super) async fn bytes(&self, record: &Record) -> Result<bytes::Bytes, StoreError> {
        if let Some(bytes) = self.exchange.blobs().get(record.digest) {
            return Ok(bytes);
        }
        let local = self.transport.local();
        let writer = record.id.epoch.node;
        let others = self.config.voters.iter().copied().filter(|voter| *voter != writer);
        let mut holders: Vec<NodeId> = std::iter::once(writer).chain(others).collect();
        // Not everyone asks the same node first.
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed ^ local.0 ^ record.id.round);
        for at in (2..holders.len()).rev() {
            holders.swap(at, rng.random_range(1..=at));
        }
        let connected = self.transport.connected().borrow().clone();
        holders.retain(|holder| *holder != local && connected.contains(holder));
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
