//! A node's copy of the dictionary, taken out of its store: the newest snapshot, and the batches that lead from it to the
//! newest one.
//!
//! Deliberately knows neither clients nor when it is asked to catch up.

use std::collections::VecDeque;

use futures_util::future::try_join_all;
use replication::{Checkpoint, CheckpointId, CheckpointStore, Guarantee, StoreError};

use super::journal::{Batch, SLOTS, Snapshot, number_of, slot_of};
use super::machine::Machine;
use super::message::{Command, Effect, LogLine, MAX_LOG_LINES};

/// Why there is no copy.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReplicaError {
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store holds something else.
    #[error("the store's {what} is not of a key-value workload: {reason}")]
    Foreign {
        /// What was read.
        what: CheckpointId,
        /// What is wrong with it.
        reason: String,
    },
    /// Batches between snapshot and newest one are gone: another node is ahead, and this one looks again.
    #[error("batch {number} is not retained any more")]
    Behind {
        /// The batch.
        number: u64,
    },
}

/// A copy, and the way back to its store.
#[derive(Debug, Clone, Default)]
pub struct Replica {
    machine: Machine,
    last: Option<CheckpointId>,
    /// The highest number of a batch that was seen; above the last one's only where the way of an epoch was left.
    highest: u64,
    /// The newest commands, oldest first.
    log: VecDeque<LogLine>,
    /// Batches since the snapshot this copy began with, or the one that was noted since.
    since_snapshot: Since,
}

/// What was applied since a snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Since {
    /// Batches.
    pub batches: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The newest batch of a slot. Where a write is acknowledged by its holders, one that nobody can serve was never acknowledged, or
/// more nodes are gone than are tolerated: it died with its writer, and must stop nobody.
async fn newest_batch(store: &dyn CheckpointStore, slot: u64) -> Result<Option<Checkpoint>, StoreError> {
    let by_holders = matches!(store.guarantees().acknowledged, Guarantee::Holders { .. });
    match store.newest(slot_of(slot)).await {
        Err(StoreError::Missing { digest }) if by_holders => {
            tracing::warn!(%digest, "a batch died with its writer");
            Ok(None)
        }
        newest => newest,
    }
}

impl Replica {
    /// The state.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The last batch applied.
    #[must_use]
    pub fn last(&self) -> Option<CheckpointId> {
        self.last
    }

    /// The newest commands, oldest first.
    #[must_use]
    pub fn log(&self, lines: u32) -> Vec<LogLine> {
        let lines = lines.min(MAX_LOG_LINES) as usize;
        self.log.iter().skip(self.log.len().saturating_sub(lines)).cloned().collect()
    }

    /// The batch of `commands` that comes next, and its number.
    #[must_use]
    pub fn next(&self, commands: Vec<Command>) -> (Batch, u64) {
        (Batch { previous: self.last, commands }, self.highest + 1)
    }

    /// What was applied since the last snapshot.
    #[must_use]
    pub fn since_snapshot(&self) -> Since {
        self.since_snapshot
    }

    /// The state as a snapshot.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { last: self.last, machine: self.machine.clone() }
    }

    /// A snapshot was acknowledged, after which `since` was applied.
    pub fn note_snapshot(&mut self, since: Since) {
        self.since_snapshot = since;
    }

    /// Applies the batch that follows the last one; returns what its commands did.
    pub fn apply(&mut self, id: CheckpointId, bytes: u64, batch: &Batch) -> Vec<Effect> {
        debug_assert_eq!(batch.previous, self.last, "batches are applied in order");
        let effects = batch.commands.iter().map(|command| {
            let effect = self.machine.apply(command);
            let line =
                LogLine { index: self.machine.index(), term: id.epoch.counter, command: command.to_string() };
            if self.log.len() >= MAX_LOG_LINES as usize {
                self.log.pop_front();
            }
            self.log.push_back(line);
            effect
        });
        let effects = effects.collect();
        self.last = Some(id);
        self.highest = self.highest.max(id.round);
        self.since_snapshot.batches += 1;
        self.since_snapshot.bytes += bytes;
        effects
    }

    fn apply_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), ReplicaError> {
        let batch = batch_of(checkpoint)?;
        self.apply(checkpoint.id(), checkpoint.parameters().len() as u64, &batch);
        Ok(())
    }

    /// Takes the state out of the store. On the aggregator of the epoch in force it has everything acknowledged before.
    ///
    /// # Errors
    /// [`ReplicaError`]; worth another attempt unless the store is closed.
    pub async fn load(store: &dyn CheckpointStore) -> Result<Self, ReplicaError> {
        let slots = try_join_all((0..SLOTS).map(|slot| newest_batch(store, slot))).await?;
        let heads: Vec<Checkpoint> = slots.into_iter().flatten().collect();
        let mut replica = Self::of_snapshot(store.latest().await?.as_ref())?;
        replica.highest = heads.iter().map(|head| head.id().round).max().unwrap_or(0).max(replica.highest);
        let Some(head) = heads.into_iter().max_by_key(Checkpoint::id) else { return Ok(replica) };
        if Some(head.id()) <= replica.last {
            return Ok(replica);
        }
        match replica.way_to(store, head).await {
            Ok(way) => way.iter().try_for_each(|checkpoint| replica.apply_checkpoint(checkpoint))?,
            // A partition let two aggregators write, or those that held a batch are gone: the snapshot is what there is.
            Err(ReplicaError::Behind { number }) if !store.guarantees().linear => {
                tracing::warn!(
                    number,
                    "no way from the snapshot to the newest batch; going on from the snapshot"
                );
            }
            Err(error) => return Err(error),
        }
        Ok(replica)
    }

    fn of_snapshot(checkpoint: Option<&Checkpoint>) -> Result<Self, ReplicaError> {
        let Some(checkpoint) = checkpoint else { return Ok(Self::default()) };
        let Snapshot { last, machine } =
            Snapshot::of(checkpoint).map_err(|refusal| foreign(checkpoint, refusal.0))?;
        Ok(Self { machine, last, highest: number_of(last), ..Self::default() })
    }

    /// The batches after this copy's last one up to `head`, in order.
    async fn way_to(
        &self,
        store: &dyn CheckpointStore,
        head: Checkpoint,
    ) -> Result<Vec<Checkpoint>, ReplicaError> {
        let mut way = vec![head];
        loop {
            let previous = batch_of(&way[way.len() - 1])?.previous;
            if previous == self.last {
                way.reverse();
                return Ok(way);
            }
            let number = number_of(previous);
            let Some(id) = previous.filter(|_| number > number_of(self.last)) else {
                return Err(ReplicaError::Behind { number });
            };
            way.push(store.get(id).await?.ok_or(ReplicaError::Behind { number })?);
        }
    }

    /// Where this copy is.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { last: self.last, highest: self.highest }
    }

    /// Takes the step that was found from its position.
    pub fn take(&mut self, step: Step) {
        match step {
            Step::Batch { id, bytes, batch } => drop(self.apply(id, bytes, &batch)),
            Step::Anew(replica) => *self = *replica,
        }
    }
}

/// Where a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    last: Option<CheckpointId>,
    highest: u64,
}

/// What brings a copy on.
#[derive(Debug)]
pub enum Step {
    /// The next batch.
    Batch {
        /// Its name.
        id: CheckpointId,
        /// Its size in bytes.
        bytes: u64,
        /// Its commands.
        batch: Batch,
    },
    /// Another copy: this one is far behind, or its way was left by a later epoch.
    Anew(Box<Replica>),
}

impl Position {
    /// The next step that the store has; none: the copy is as new as the store.
    ///
    /// # Errors
    /// As [`Replica::load`].
    pub async fn next_step(self, store: &dyn CheckpointStore) -> Result<Option<Step>, ReplicaError> {
        let next = self.highest + 1;
        let newest = store.newest(slot_of(next)).await?;
        let Some(newest) = newest.filter(|newest| newest.id().round >= next) else { return Ok(None) };
        let batch = batch_of(&newest)?;
        if newest.id().round == next && batch.previous == self.last {
            let (id, bytes) = (newest.id(), newest.parameters().len() as u64);
            return Ok(Some(Step::Batch { id, bytes, batch }));
        }
        Ok(Some(Step::Anew(Box::new(Replica::load(store).await?))))
    }
}

fn batch_of(checkpoint: &Checkpoint) -> Result<Batch, ReplicaError> {
    Batch::of(checkpoint).map_err(|refusal| foreign(checkpoint, refusal.0))
}

fn foreign(checkpoint: &Checkpoint, reason: String) -> ReplicaError {
    ReplicaError::Foreign { what: checkpoint.id(), reason }
}
