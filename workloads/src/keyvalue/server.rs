//! One node's server: answers clients, leads where the store says that this node aggregates, follows where it does not.
//!
//! ```text
//!   handle   any number of requests at once   -> queues of the tenure, or an answer from this node's copy
//!   lead     one tenure: load, then two loops    writes: batch, put, apply, answer    reads: confirm, answer
//!   follow   takes batches out of the store, for local reads and a quick take-over
//! ```
//!
//! What is queued when a tenure ends is answered as unknown; clients repeat it elsewhere under the same serial.
//! Deliberately knows neither how requests arrive nor which backend answers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use replication::transport::{Frame, Handler, Refusal};
use replication::{AnyStore, Checkpoint, Confirmation, Epoch, NodeId, Outcome, StoreError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::journal::Distance;
use super::message::{
    Command, Effect, Freshness, PAGE_BYTES, Request, Response, Status, check_key, decode, encode,
};
use super::replica::{Replica, ReplicaError, Since};

/// Most commands of a batch.
pub const MAX_BATCH_COMMANDS: usize = 1024;
/// A batch ends once its commands have this many bytes.
pub const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// Requests that wait in each queue; beyond that whoever asks waits.
const WAITING: usize = 4096;
/// Reads that one confirmation answers.
const MAX_READS: usize = 1024;
/// How often a node that does not aggregate looks into its store.
pub const REFRESH: Duration = Duration::from_millis(20);
/// Pause before something that failed is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// One node's server.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

struct Shared {
    node: NodeId,
    store: AnyStore,
    /// What [`Request::Configuration`] is answered with.
    configuration: String,
    replica: Mutex<Replica>,
    tenure: Mutex<Option<Tenure>>,
    rates: Mutex<Rates>,
    left: watch::Sender<bool>,
}

/// The queues of an epoch in which this node aggregates.
#[derive(Clone)]
struct Tenure {
    writes: mpsc::Sender<Write>,
    reads: mpsc::Sender<Read>,
}

struct Write {
    command: Command,
    reply: oneshot::Sender<Response>,
}

struct Read {
    asked: Asked,
    freshness: Freshness,
    reply: oneshot::Sender<Response>,
}

/// What is read.
enum Asked {
    Key(String),
    After(Option<String>),
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("node", &self.0.node).finish_non_exhaustive()
    }
}

impl Server {
    /// The server of `node` over its store; `configuration` is given to clients that ask for the test's.
    #[must_use]
    pub fn new(node: NodeId, store: AnyStore, configuration: String) -> Self {
        Self(Arc::new(Shared {
            node,
            store,
            configuration,
            replica: Mutex::default(),
            tenure: Mutex::default(),
            rates: Mutex::new(Rates::new(Instant::now())),
            left: watch::Sender::new(false),
        }))
    }

    /// Serves until the store is closed or this node has left its cluster.
    pub async fn run(&self) {
        let shared = &self.0;
        let mut aggregator = shared.store.aggregator();
        let mut left = shared.left.subscribe();
        loop {
            let epoch = *aggregator.borrow_and_update();
            let ended = tokio::select! {
                biased;
                _ = left.wait_for(|left| *left) => true,
                changed = aggregator.wait_for(|now| *now != epoch) => changed.is_err(),
                () = shared.serve(epoch) => false,
            };
            *lock(&shared.tenure) = None;
            if ended {
                return;
            }
        }
    }

    /// How the node is.
    #[must_use]
    pub fn status(&self) -> Status {
        self.0.status()
    }

    /// Every entry of this node's copy.
    #[must_use]
    pub fn copy(&self) -> Replica {
        lock(&self.0.replica).clone()
    }
}

#[async_trait]
impl Handler for Server {
    async fn handle(&self, _from: NodeId, request: Frame) -> Result<Frame, Refusal> {
        let response = self.0.answer(decode(request)?).await;
        Ok(encode(&response))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    async fn answer(&self, request: Request) -> Response {
        match request {
            Request::Write(command) => self.write(command).await,
            Request::Read { key, freshness } => match check_key(&key) {
                Ok(()) => self.read(Asked::Key(key), freshness).await,
                Err(error) => Response::Invalid { reason: error.to_string() },
            },
            Request::Page { after, freshness } => self.read(Asked::After(after), freshness).await,
            Request::Status => Response::Status(Box::new(self.status())),
            Request::Log { lines } => Response::Log(lock(&self.replica).log(lines)),
            Request::Configuration => Response::Configuration(self.configuration.clone()),
            Request::Leave => match self.store.leave().await {
                Ok(()) => {
                    self.left.send_replace(true);
                    Response::Left
                }
                Err(error) => unavailable(&error),
            },
        }
    }

    async fn write(&self, command: Command) -> Response {
        if let Command::Change { change, .. } = &command
            && let Err(error) = change.within_limits()
        {
            return Response::Invalid { reason: error.to_string() };
        }
        let (reply, answer) = oneshot::channel();
        let queue = lock(&self.tenure).as_ref().map(|tenure| tenure.writes.clone());
        let response = self.ask(queue, Write { command, reply }, answer).await;
        lock(&self.rates).note(Instant::now(), |bucket| bucket.writes += 1);
        response
    }

    async fn read(&self, asked: Asked, freshness: Freshness) -> Response {
        let response = if freshness == Freshness::Local {
            look_up(&lock(&self.replica), &asked)
        } else {
            let (reply, answer) = oneshot::channel();
            let queue = lock(&self.tenure).as_ref().map(|tenure| tenure.reads.clone());
            self.ask(queue, Read { asked, freshness, reply }, answer).await
        };
        lock(&self.rates).note(Instant::now(), |bucket| bucket.reads += 1);
        response
    }

    /// Queues `item`, and waits for its answer.
    async fn ask<T>(
        &self,
        queue: Option<mpsc::Sender<T>>,
        item: T,
        answer: oneshot::Receiver<Response>,
    ) -> Response {
        let Some(queue) = queue else { return self.elsewhere() };
        if queue.send(item).await.is_err() {
            return self.elsewhere();
        }
        let lost = || Response::Unavailable { maybe: true, reason: "this node lost its office".into() };
        answer.await.unwrap_or_else(|_| lost())
    }

    /// Says who aggregates. This node, while it prepares to, is nobody to be sent to.
    fn elsewhere(&self) -> Response {
        let leader = self.store.aggregator().borrow().map(|epoch| epoch.node);
        Response::Elsewhere { leader: leader.filter(|leader| *leader != self.node) }
    }

    fn status(&self) -> Status {
        let epoch = *self.store.aggregator().borrow();
        let mut members = self.store.candidates();
        members.push(self.node);
        members.sort_unstable();
        members.dedup();
        let Bucket { reads, writes, appends } = lock(&self.rates).last_10_s(Instant::now());
        let replica = lock(&self.replica);
        let machine = replica.machine();
        Status {
            node: self.node,
            leads: lock(&self.tenure).is_some(),
            epoch,
            index: machine.index(),
            batches: replica.last().map_or(0, |last| last.round),
            entries: machine.len() as u64,
            bytes: machine.bytes(),
            members,
            reads,
            writes,
            appends,
        }
    }

    async fn serve(&self, epoch: Option<Epoch>) {
        let replica = loop {
            match Replica::load(self.store.as_ref()).await {
                Ok(replica) => break replica,
                Err(error @ ReplicaError::Foreign { .. }) => tracing::error!(%error, "cannot serve"),
                Err(error) => tracing::debug!(%error, "not loaded yet"),
            }
            sleep(PAUSE).await;
        };
        *lock(&self.replica) = replica;
        match epoch {
            Some(epoch) if epoch.node == self.node => self.lead(epoch).await,
            _ => self.follow().await,
        }
    }

    /// Takes batches out of the store, until one cannot be taken.
    async fn follow(&self) {
        loop {
            let position = lock(&self.replica).position();
            match position.next_step(self.store.as_ref()).await {
                Ok(Some(step)) => {
                    lock(&self.replica).take(step);
                    lock(&self.rates).note(Instant::now(), |bucket| bucket.appends += 1);
                }
                Ok(None) => sleep(REFRESH).await,
                Err(error) => {
                    tracing::debug!(%error, "not followed");
                    return sleep(PAUSE).await;
                }
            }
        }
    }

    /// Serves as aggregator of `epoch`, until a batch is refused.
    async fn lead(&self, epoch: Epoch) {
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
                        let _ = reply.send(look_up(&replica, &asked));
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

fn written(effect: Effect, index: u64) -> Response {
    Response::Written { effect, index }
}

fn unavailable(error: &StoreError) -> Response {
    Response::Unavailable { maybe: error.outcome() == Outcome::Unknown, reason: error.to_string() }
}

fn look_up(replica: &Replica, asked: &Asked) -> Response {
    let machine = replica.machine();
    let index = machine.index();
    match asked {
        Asked::Key(key) => Response::Value { value: machine.get(key).cloned(), index },
        Asked::After(after) => {
            let mut rest = machine.entries_after(after.as_deref());
            let (mut entries, mut bytes) = (Vec::new(), 0);
            for (key, value) in rest.by_ref() {
                bytes += key.len() + value.len();
                entries.push((key.clone(), value.clone()));
                if bytes >= PAGE_BYTES {
                    break;
                }
            }
            Response::Page { entries, more: rest.next().is_some(), index }
        }
    }
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
        bytes += if let Command::Change { change, .. } = &command { change.bytes() } else { 0 };
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

/// What was done in a second.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    reads: u64,
    writes: u64,
    appends: u64,
}

/// What was done in each of the last seconds.
#[derive(Debug)]
struct Rates {
    begun: Instant,
    /// The second that the last bucket counts.
    second: u64,
    buckets: VecDeque<Bucket>,
}

/// Seconds that rates are added up over.
const RATE_SECONDS: u64 = 10;

impl Rates {
    fn new(begun: Instant) -> Self {
        Self { begun, second: 0, buckets: VecDeque::from([Bucket::default()]) }
    }

    fn advance(&mut self, now: Instant) {
        let second = now.duration_since(self.begun).as_secs();
        for _ in self.second..second.min(self.second + RATE_SECONDS) {
            self.buckets.push_back(Bucket::default());
        }
        self.second = self.second.max(second);
        while self.buckets.len() as u64 > RATE_SECONDS {
            self.buckets.pop_front();
        }
    }

    fn note(&mut self, now: Instant, count: impl FnOnce(&mut Bucket)) {
        self.advance(now);
        if let Some(bucket) = self.buckets.back_mut() {
            count(bucket);
        }
    }

    fn last_10_s(&mut self, now: Instant) -> Bucket {
        self.advance(now);
        self.buckets.iter().fold(Bucket::default(), |sum, bucket| Bucket {
            reads: sum.reads + bucket.reads,
            writes: sum.writes + bucket.writes,
            appends: sum.appends + bucket.appends,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Change;
    use super::*;

    #[test]
    fn rates_count_ten_seconds() {
        let begun = Instant::now();
        let mut rates = Rates::new(begun);
        let at = |seconds| begun + Duration::from_secs(seconds);
        rates.note(at(0), |bucket| bucket.reads += 5);
        rates.note(at(9), |bucket| bucket.reads += 1);
        assert_eq!(rates.last_10_s(at(9)).reads, 6);
        assert_eq!(rates.last_10_s(at(10)).reads, 1);
        assert_eq!(rates.last_10_s(at(100)).reads, 0);
        rates.note(at(100), |bucket| bucket.writes += 2);
        assert_eq!(rates.last_10_s(at(100)).writes, 2);
    }

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
