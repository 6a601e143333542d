//! One tenure of the node that aggregates: writes that wait become batches, one under way at a time; reads wait for a
//! confirmation; snapshots follow when they are due.
//!
//! Deliberately knows neither how requests arrive nor what happens when the tenure is over.

use std::collections::VecDeque;

use replication::{AnyStore, Checkpoint, Confirmation, Epoch, Outcome, StoreError};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::journal::Distance;
use super::message::{Change, Command, Effect, Freshness, Response};
use super::replica::Since;
use super::server::{PAUSE, Shared, lock, look_up, unavailable};

/// Most commands of a batch.
pub(super) const MAX_BATCH_COMMANDS: usize = 1024;
/// A batch ends once its commands have this many bytes.
pub(super) const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// Requests that wait in each queue; beyond that whoever asks waits.
const WAITING: usize = 4096;
/// Reads that one confirmation answers.
const MAX_READS: usize = 1024;

/// The queues of an epoch in which this node aggregates.
#[derive(Clone)]
pub(super) struct Tenure {
    pub(super) writes: mpsc::Sender<Write>,
    pub(super) reads: mpsc::Sender<Read>,
}

pub(super) struct Write {
    pub(super) command: Command,
    pub(super) reply: oneshot::Sender<Response>,
}

pub(super) struct Read {
    pub(super) asked: Asked,
    pub(super) freshness: Freshness,
    pub(super) reply: oneshot::Sender<Response>,
}

/// What is read.
pub(super) enum Asked {
    Key(String),
    After(Option<String>),
}

impl Shared {
    /// Serves as aggregator of `epoch`, until a batch is refused.
    pub(super) async fn lead(&self, epoch: Epoch) {
        let (writes, waiting_writes) = mpsc::channel(WAITING);
        let (reads, waiting_reads) = mpsc::channel(WAITING);
        *lock(&self.tenure) = Some(Tenure { writes, reads });
        let error = tokio::select! {
            error = self.write_batches(epoch, waiting_writes) => error,
            error = self.answer_reads(epoch, waiting_reads) => error,
        };
        *lock(&self.tenure) = None;
        tracing::info!(%epoch, %error, "the tenure ends");
        sleep(PAUSE).await;
    }

    async fn write_batches(&self, epoch: Epoch, mut queue: mpsc::Receiver<Write>) -> StoreError {
        let distance = Distance::of(self.store.guarantees());
        let mut waiting = VecDeque::new();
        let mut snapshots = Snapshots::default();
        loop {
            receive(&mut queue, &mut waiting).await;
            let (commands, replies) = take(&mut waiting);
            let (batch, number) = lock(&self.replica).next(commands);
            let checkpoint = batch.to_checkpoint(epoch, number);
            let (id, bytes) = (checkpoint.id(), checkpoint.parameters().len() as u64);
            if let Err(Failed { error, maybe }) = put(&self.store, checkpoint).await {
                let refused = Response::Unavailable { maybe, reason: error.to_string() };
                replies.into_iter().for_each(|reply| drop(reply.send(refused.clone())));
                return error;
            }
            let (effects, first) = {
                let mut replica = lock(&self.replica);
                let first = replica.machine().index() + 1;
                (replica.apply(id, bytes, &batch), first)
            };
            lock(&self.rates).note(Instant::now(), |bucket| bucket.appends += 1);
            for ((effect, index), reply) in effects.into_iter().zip(first..).zip(replies) {
                // Whoever asked may be gone.
                let _ = reply.send(written(effect, index));
            }
            if let Err(error) = snapshots.keep_up(self, epoch, distance).await {
                return error;
            }
        }
    }

    async fn answer_reads(&self, epoch: Epoch, mut queue: mpsc::Receiver<Read>) -> StoreError {
        let mut waiting = Vec::new();
        loop {
            if queue.recv_many(&mut waiting, MAX_READS).await == 0 {
                // The tenure holds the other end as long as this runs.
                std::future::pending::<()>().await;
            }
            let lease = waiting.iter().all(|read| read.freshness == Freshness::Lease);
            match self.confirm(epoch, lease).await {
                Ok(()) => {
                    let replica = lock(&self.replica);
                    for Read { asked, reply, .. } in waiting.drain(..) {
                        let _ = reply.send(look_up(replica.machine(), &asked));
                    }
                }
                Err(error @ (StoreError::NotAggregator { .. } | StoreError::Closed { .. })) => return error,
                Err(error) => {
                    for Read { reply, .. } in waiting.drain(..) {
                        let _ = reply.send(unavailable(&error));
                    }
                }
            }
        }
    }

    async fn confirm(&self, epoch: Epoch, lease: bool) -> Result<(), StoreError> {
        if lease && self.store.confirm(epoch, Confirmation::Lease).await.is_ok() {
            return Ok(());
        }
        self.store.confirm(epoch, Confirmation::Index).await
    }
}

pub(super) fn written(effect: Effect, index: u64) -> Response {
    Response::Written { effect, index }
}

/// Waits for writes, and takes those that wait.
async fn receive(queue: &mut mpsc::Receiver<Write>, waiting: &mut VecDeque<Write>) {
    if waiting.is_empty() {
        match queue.recv().await {
            Some(write) => waiting.push_back(write),
            // The tenure holds the other end as long as this runs.
            None => std::future::pending().await,
        }
    }
    while waiting.len() < MAX_BATCH_COMMANDS {
        let Ok(write) = queue.try_recv() else { return };
        waiting.push_back(write);
    }
}

/// The commands of the next batch, and who waits for them.
fn take(waiting: &mut VecDeque<Write>) -> (Vec<Command>, Vec<oneshot::Sender<Response>>) {
    let (mut commands, mut replies, mut bytes) = (Vec::new(), Vec::new(), 0);
    while bytes < MAX_BATCH_BYTES
        && let Some(Write { command, reply }) = waiting.pop_front()
    {
        bytes += command.change().map_or(0, Change::bytes);
        commands.push(command);
        replies.push(reply);
    }
    (commands, replies)
}

/// A checkpoint that was not acknowledged.
struct Failed {
    error: StoreError,
    /// Whether it may have been written all the same.
    maybe: bool,
}

/// Puts a checkpoint until its outcome is known: repeating it changes nothing.
async fn put(store: &AnyStore, checkpoint: Checkpoint) -> Result<(), Failed> {
    let mut maybe = false;
    loop {
        match store.put(checkpoint.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) if error.outcome() == Outcome::DidNotHappen => return Err(Failed { error, maybe }),
            Err(error) => tracing::debug!(%error, id = %checkpoint.id(), "not acknowledged; repeating"),
        }
        maybe = true;
        sleep(PAUSE).await;
    }
}

/// The snapshot that is under way, if one is.
#[derive(Default)]
struct Snapshots {
    running: JoinSet<Result<(), StoreError>>,
    /// What had been applied since the last snapshot when this one was taken.
    taken: Since,
}

impl Snapshots {
    /// Begins a snapshot when one is due, and waits for it when batches would outrun what the store retains.
    async fn keep_up(&mut self, shared: &Shared, epoch: Epoch, distance: Distance) -> Result<(), StoreError> {
        while let Some(ended) = self.running.try_join_next() {
            self.ended(shared, ended)?;
        }
        let (since, state_bytes) = {
            let replica = lock(&shared.replica);
            (replica.since_snapshot(), replica.machine().bytes())
        };
        if self.running.is_empty() && distance.is_due(since.batches, since.bytes, state_bytes) {
            let snapshot = lock(&shared.replica).snapshot();
            self.taken = since;
            let store = shared.store.clone();
            self.running.spawn(async move {
                let checkpoint = snapshot.to_checkpoint(epoch);
                put(&store, checkpoint).await.map_err(|failed| failed.error)
            });
        }
        if since.batches >= distance.most
            && let Some(ended) = self.running.join_next().await
        {
            self.ended(shared, ended)?;
        }
        Ok(())
    }

    fn ended(
        &self,
        shared: &Shared,
        ended: Result<Result<(), StoreError>, tokio::task::JoinError>,
    ) -> Result<(), StoreError> {
        ended.map_err(|error| StoreError::Closed { reason: error.to_string() })??;
        let mut replica = lock(&shared.replica);
        let now = replica.since_snapshot();
        let since = Since { batches: now.batches - self.taken.batches, bytes: now.bytes - self.taken.bytes };
        replica.note_snapshot(since);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_ends_when_it_is_large_enough() {
        let write = || {
            let change = Change::Set { key: "k".into(), value: vec![0; 60_000].into() };
            Write { command: Command::Change { origin: None, change }, reply: oneshot::channel().0 }
        };
        let mut waiting: VecDeque<Write> = (0..40).map(|_| write()).collect();
        let (commands, replies) = take(&mut waiting);
        assert_eq!((commands.len(), replies.len(), waiting.len()), (18, 18, 22));
    }
}
