//! One tenure of the node that aggregates: writes that wait become batches, one under way at a time; reads wait for a
//! confirmation; snapshots follow when they are due.
//!
//! Deliberately knows neither how requests arrive nor what happens when the tenure is over.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use replication::{AnyStore, Checkpoint, Confirmation, Epoch, Outcome, Receipt, StoreError};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::journal::Distance;
use super::message::{Change, Command, Effect, Freshness, Response};
use super::meter::Operation;
use super::replica::Since;
use super::server::{PAUSE, Shared, lock, look_up, unavailable};

/// Most commands of a batch.
pub(super) const MAX_BATCH_COMMANDS: usize = 1024;
/// A batch ends once its commands have this many bytes.
pub(super) const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// Requests that wait in each queue; beyond that whoever asks waits.
const WAITING: usize = 4096;
/// With fewer commands than this a batch is not waited for.
const FEW_COMMANDS: usize = 8;
/// Longest wait for the commands of a batch; otherwise half of what the last batch took.
const MAX_PATIENCE: Duration = Duration::from_millis(10);
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
        let mut gathering = Gathering::default();
        loop {
            gathering.receive(&mut queue, &mut waiting).await;
            let (begun, (commands, replies)) = (Instant::now(), take(&mut waiting));
            let answered = commands.len();
            let (batch, number) = lock(&self.replica).next(commands);
            let checkpoint = batch.to_checkpoint(epoch, number);
            let (id, bytes) = (checkpoint.id(), checkpoint.parameters().len() as u64);
            match put(&self.store, checkpoint).await {
                Ok(receipt) => {
                    self.measured(Operation::Put { holders: receipt.holders.len() }, begun, true);
                }
                Err(Failed { error, maybe }) => {
                    self.measured(Operation::Put { holders: 0 }, begun, false);
                    let refused = Response::Unavailable { maybe, reason: error.to_string() };
                    replies.into_iter().for_each(|reply| drop(reply.send(refused.clone())));
                    return error;
                }
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
            gathering = Gathering::after(answered, waiting.len() + queue.len(), begun.elapsed());
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

/// What is known of those who write: a batch costs every node about as much with one command as with fifty, so it is worth to
/// wait for those that are about to come.
#[derive(Default)]
struct Gathering {
    /// So many commands are expected: those who were answered last write again, and others wait.
    expected: usize,
    /// For so long they are waited for.
    patience: Duration,
}

impl Gathering {
    /// A batch of `answered` commands took so long, and meanwhile `waiting` came.
    fn after(answered: usize, waiting: usize, took: Duration) -> Self {
        let expected = (answered + waiting).min(MAX_BATCH_COMMANDS);
        let patience = if expected < FEW_COMMANDS { Duration::ZERO } else { (took / 2).min(MAX_PATIENCE) };
        Self { expected, patience }
    }

    /// Waits for writes until there are as many as expected, or its patience ends.
    async fn receive(&self, queue: &mut mpsc::Receiver<Write>, waiting: &mut VecDeque<Write>) {
        if waiting.is_empty() {
            waiting.push_back(next(queue).await);
        }
        let mut ended = pin!(sleep(self.patience));
        loop {
            while waiting.len() < MAX_BATCH_COMMANDS
                && let Ok(write) = queue.try_recv()
            {
                waiting.push_back(write);
            }
            if waiting.len() >= self.expected || self.patience.is_zero() || bytes(waiting) >= MAX_BATCH_BYTES
            {
                return;
            }
            tokio::select! {
                biased;
                write = next(queue) => waiting.push_back(write),
                () = &mut ended => return,
            }
        }
    }
}

fn bytes(waiting: &VecDeque<Write>) -> usize {
    waiting.iter().map(|write| write.command.change().map_or(0, Change::bytes)).sum()
}

async fn next(queue: &mut mpsc::Receiver<Write>) -> Write {
    match queue.recv().await {
        Some(write) => write,
        // The tenure holds the other end as long as this runs.
        None => std::future::pending().await,
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
async fn put(store: &AnyStore, checkpoint: Checkpoint) -> Result<Receipt, Failed> {
    let mut maybe = false;
    loop {
        match store.put(checkpoint.clone()).await {
            Ok(receipt) => return Ok(receipt),
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
                put(&store, checkpoint).await.map(drop).map_err(|failed| failed.error)
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

    fn delete() -> Write {
        let command = Command::Change { origin: None, change: Change::Delete { key: "k".into() } };
        Write { command, reply: oneshot::channel().0 }
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_waits_for_those_who_were_answered_last_and_not_for_long() {
        let (writes, mut queue) = mpsc::channel(WAITING);
        let gathering = Gathering::after(16, 4, Duration::from_millis(8));
        let begun = Instant::now();
        let coming = tokio::spawn(async move {
            for _ in 0..20 {
                tokio::task::yield_now().await;
                let _ = writes.send(delete()).await;
            }
            writes
        });
        let mut waiting = VecDeque::new();
        gathering.receive(&mut queue, &mut waiting).await;
        assert_eq!(waiting.len(), 20, "all who are expected");
        let writes = coming.await.unwrap();
        let all_came = begun.elapsed();
        waiting.clear();
        writes.send(delete()).await.unwrap();
        gathering.receive(&mut queue, &mut waiting).await;
        assert_eq!(waiting.len(), 1);
        let waited = begun.elapsed() - all_came;
        assert!((4..=6).contains(&waited.as_millis()), "half of what the last batch took: {waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_writes_alone_does_not_wait() {
        let (writes, mut queue) = mpsc::channel(WAITING);
        writes.send(delete()).await.unwrap();
        let begun = Instant::now();
        let gathering = Gathering::after(1, 1, Duration::from_millis(8));
        gathering.receive(&mut queue, &mut VecDeque::new()).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
