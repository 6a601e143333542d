//! The aggregator's side: one epoch of the job, from the newest acknowledged checkpoint to the last round or to the end
//! of the epoch.
//!
//! It deliberately does not know how it came to office, nor how checkpoints are replicated. Whatever it needs to go on
//! with is in the store: nothing is kept across epochs in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use replication::transport::{Class, Frame, Transport};
use replication::{AnyStore, Digest, Epoch, Held, Metadata, NodeId, Phase, StoreError};
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::average::Average;
use super::checkpoint::{self, Writer};
use super::config::Config;
use super::event::{Event, Events};
use super::model;
use super::protocol::{self, Answer, FitResult, Instruction};
use super::resume::{self, Position, Step};
use super::train::Evaluation;
use super::worker::Worker;

/// Updates fetched at once: more would overrun the aggregator's receive buffer.
const UPLOADS_AT_ONCE: usize = 2;

/// How long the first round of an epoch waits for nodes that have not offered themselves, once enough have: at the start
/// of the job, when nodes are still loading, and after a failure, when one more may have died.
const START_GRACE: Duration = Duration::from_secs(30);
const FAILOVER_GRACE: Duration = Duration::from_secs(1);

/// Pause before a round is tried again that too few workers finished.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Workers that offered themselves to this node in one epoch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Offers {
    epoch: Option<Epoch>,
    joined: BTreeSet<NodeId>,
}

impl Offers {
    /// Opens the list for an epoch of this node.
    pub(crate) fn open(&mut self, epoch: Epoch) {
        *self = Self { epoch: Some(epoch), joined: BTreeSet::new() };
    }

    /// Takes an offer; true if it is new.
    pub(crate) fn accept(&mut self, epoch: Epoch, worker: NodeId) -> bool {
        self.epoch == Some(epoch) && self.joined.insert(worker)
    }

    /// Whether the worker is on the list of that epoch.
    pub(crate) fn has(&self, epoch: Epoch, worker: NodeId) -> bool {
        self.epoch == Some(epoch) && self.joined.contains(&worker)
    }
}

/// Why an aggregator stops before the job is done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stopped {
    /// Another epoch is in force.
    #[error("another epoch is in force")]
    Deposed,
    /// The store or the model failed for good.
    #[error("{0}")]
    Failed(String),
}

impl From<StoreError> for Stopped {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotAggregator { .. } | StoreError::Fenced { .. } => Self::Deposed,
            error => Self::Failed(error.to_string()),
        }
    }
}

/// One node's aggregator.
pub(crate) struct Aggregator {
    pub(crate) config: Config,
    pub(crate) store: AnyStore,
    pub(crate) learning: Arc<dyn Transport>,
    pub(crate) worker: Arc<Worker>,
    pub(crate) offers: watch::Sender<Offers>,
    /// Digest and bytes of the model every node starts from.
    pub(crate) initial: (Digest, Bytes),
    pub(crate) events: Events,
}

/// What one epoch carries from round to round.
struct Term<'a> {
    office: &'a Aggregator,
    epoch: Epoch,
    /// Nodes that should offer themselves before the first round.
    expected: BTreeSet<NodeId>,
    patience: Instant,
    uploads: Semaphore,
    /// The global parameters.
    digest: Digest,
    parameters: Bytes,
    /// What each worker is known to have; a worker not listed is asked first.
    has: std::sync::Mutex<BTreeMap<NodeId, Digest>>,
}

/// The fit half of a round.
struct Fitted {
    parameters: Bytes,
    examples: u64,
    fit_ns: u64,
    workers: u32,
    loss: f64,
}

impl Aggregator {
    /// Leads the job in `epoch`; `predecessor` has lost its office and is not waited for.
    pub(crate) async fn lead(&self, epoch: Epoch, predecessor: Option<Epoch>) -> Result<(), Stopped> {
        self.offers.send_modify(|offers| offers.open(epoch));
        loop {
            let restored = checkpoint::restore(self.store.as_ref(), self.config.profile).await;
            let restored = match restored {
                Err(StoreError::Unavailable { .. } | StoreError::Missing { .. }) => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                    continue;
                }
                restored => restored?,
            };
            let from = restored.as_ref().map(|restored| restored.held);
            let (digest, parameters) = match restored {
                Some(restored) => (Digest::of(&restored.parameters), restored.parameters),
                None => self.initial.clone(),
            };
            (self.events)(Event::Restored { epoch, from: from.map(|held| held.id), digest });
            let mut term = Term::new(self, epoch, predecessor, from.is_some(), digest, parameters);
            match term.rounds(from).await {
                // An earlier write of unknown outcome happened after all: continue from what is acknowledged.
                Err(Interruption::Overtaken) => {}
                Err(Interruption::Stopped(stopped)) => return Err(stopped),
                Ok(()) => return Ok(()),
            }
        }
    }
}

/// Why a term's rounds stop.
enum Interruption {
    Overtaken,
    Stopped(Stopped),
}

impl<E: Into<Stopped>> From<E> for Interruption {
    fn from(error: E) -> Self {
        Self::Stopped(error.into())
    }
}

impl<'a> Term<'a> {
    fn new(
        office: &'a Aggregator,
        epoch: Epoch,
        predecessor: Option<Epoch>,
        continues: bool,
        digest: Digest,
        parameters: Bytes,
    ) -> Self {
        let mut expected: BTreeSet<NodeId> = office.learning.peers().into_iter().collect();
        if let Some(predecessor) = predecessor {
            expected.remove(&predecessor.node);
        }
        let grace = if !continues && predecessor.is_none() { START_GRACE } else { FAILOVER_GRACE };
        Self {
            office,
            epoch,
            expected,
            patience: Instant::now() + grace,
            uploads: Semaphore::new(UPLOADS_AT_ONCE),
            digest,
            parameters,
            has: std::sync::Mutex::default(),
        }
    }

    fn config(&self) -> &Config {
        &self.office.config
    }

    fn emit(&self, event: Event) {
        (self.office.events)(event);
    }

    fn has(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Digest>> {
        self.has.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn rounds(&mut self, mut written: Option<Held>) -> Result<(), Interruption> {
        let mut position = resume::after(written.map(|held| (held.id.round, held.id.phase)));
        while position.round <= self.config().rounds {
            let begun = Instant::now();
            let mut fitted = None;
            if position.step == Step::Fit {
                self.write(position.round, Phase::ConfigureFit, &mut written, Metadata::new()).await?;
                let outcome = self.fit(position.round).await?;
                self.parameters = outcome.parameters.clone();
                self.digest = Digest::of(&self.parameters);
                let metadata = Metadata::from([
                    ("examples".to_owned(), outcome.examples.to_string()),
                    ("train_loss".to_owned(), outcome.loss.to_string()),
                ]);
                self.write(position.round, Phase::AggregateFit, &mut written, metadata).await?;
                fitted = Some(outcome);
            }
            self.write(position.round, Phase::ConfigureEvaluate, &mut written, Metadata::new()).await?;
            let (workers, evaluation) = self.evaluate(position.round).await;
            self.finished(position.round, begun, fitted, workers, evaluation);
            position = Position { round: position.round + 1, step: Step::Fit };
        }
        if let Some(Held { id, digest }) = written {
            let (epoch, rounds) = (self.epoch, self.config().rounds);
            self.emit(Event::Completed { epoch, rounds, id, digest });
        }
        Ok(())
    }

    /// Writes the global state of a phase, if the profile has it written and it is not yet. Repeats a write whose outcome
    /// is unknown until it is acknowledged or the epoch ends.
    async fn write(
        &self,
        round: u64,
        phase: Phase,
        written: &mut Option<Held>,
        metadata: Metadata,
    ) -> Result<(), Interruption> {
        let profile = self.config().profile;
        if !resume::writes_at(profile, phase)
            || written.is_some_and(|held| (held.id.round, held.id.phase) >= (round, phase))
        {
            return Ok(());
        }
        let writer = Writer { store: self.office.store.as_ref(), events: &self.office.events };
        loop {
            let put =
                writer.put_global(profile, (self.epoch, round, phase), &self.parameters, metadata.clone());
            match put.await {
                Ok(held) => {
                    *written = Some(held);
                    return Ok(());
                }
                Err(StoreError::Unavailable { .. }) => tokio::time::sleep(RETRY_PAUSE).await,
                Err(StoreError::Superseded { .. }) => return Err(Interruption::Overtaken),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Workers that offered themselves and are connected, once there are enough of them.
    async fn workers(&self) -> Result<Vec<NodeId>, Stopped> {
        let enough = self.config().min_fit_clients as usize;
        let own = usize::from(self.config().aggregator_trains);
        let mut offers = self.office.offers.subscribe();
        let mut connected = self.office.learning.connected();
        loop {
            let joined = {
                let offers = offers.borrow_and_update();
                if offers.epoch != Some(self.epoch) {
                    return Err(Stopped::Deposed);
                }
                let connected = connected.borrow_and_update();
                let present = offers.joined.iter().filter(|node| connected.contains(node));
                present.copied().collect::<BTreeSet<NodeId>>()
            };
            if self.has().is_empty() && !joined.is_empty() {
                // Told once: whoever accepts this node first makes it serve.
                if let Some(worker) = joined.first().copied() {
                    self.has().insert(self.epoch.node, self.digest);
                    self.emit(Event::Serving { epoch: self.epoch, worker });
                }
            }
            let complete = self.expected.is_subset(&joined) || Instant::now() >= self.patience;
            if complete && joined.len() + own >= enough {
                return Ok(joined.into_iter().chain((own > 0).then_some(self.epoch.node)).collect());
            }
            tokio::select! {
                changed = offers.changed() => changed.map_err(|_| Stopped::Deposed)?,
                changed = connected.changed() => changed.map_err(|_| Stopped::Deposed)?,
                () = tokio::time::sleep_until(self.patience), if !complete => {}
            }
        }
    }

    /// Has the workers train until enough of them have, and averages.
    async fn fit(&self, round: u64) -> Result<Fitted, Stopped> {
        loop {
            let workers = self.workers().await?;
            let begun = Instant::now();
            let epoch = self.epoch;
            self.emit(Event::RoundStarted { epoch, round, workers: workers.len() as u32 });
            let (average, count, loss_sum) = self.collect(round, workers).await;
            if count >= self.config().min_fit_clients {
                let failed = |error: &dyn std::fmt::Display| Stopped::Failed(error.to_string());
                let examples = average.examples();
                let averaged = average.finish().map_err(|error| failed(&error))?;
                let parameters = model::encode(averaged).map_err(|error| failed(&error))?;
                let fit_ns = begun.elapsed().as_nanos() as u64;
                return Ok(Fitted {
                    parameters,
                    examples,
                    fit_ns,
                    workers: count,
                    loss: loss_sum / examples as f64,
                });
            }
            tracing::warn!(round, count, "too few workers finished; the round is tried again");
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Instructs `workers` and adds up their updates as they come, until all answered or the deadline passed.
    async fn collect(&self, round: u64, workers: Vec<NodeId>) -> (Average, u32, f64) {
        let deadline = Instant::now() + Duration::from_millis(self.config().round_deadline_ms);
        let mut missing: BTreeSet<NodeId> = workers.iter().copied().collect();
        let mut results: FuturesUnordered<_> = workers
            .into_iter()
            .map(|worker| async move { (worker, self.fit_one(worker, round).await) })
            .collect();
        let (mut average, mut count, mut loss_sum) = (Average::new(), 0, 0.0);
        while let Ok(Some((worker, result))) = tokio::time::timeout_at(deadline, results.next()).await {
            missing.remove(&worker);
            let added = result.and_then(|(result, update)| {
                let parameters = model::decode(&update).map_err(|error| error.to_string())?;
                average.add(&parameters, result.examples).map_err(|error| error.to_string())?;
                Ok(result)
            });
            match added {
                Ok(result) => {
                    count += 1;
                    loss_sum += result.loss * result.examples as f64;
                }
                Err(reason) => self.emit(Event::WorkerFailed { epoch: self.epoch, round, worker, reason }),
            }
        }
        for worker in missing {
            let reason = "no result before the round's deadline".to_owned();
            self.emit(Event::WorkerFailed { epoch: self.epoch, round, worker, reason });
        }
        (average, count, loss_sum)
    }

    async fn fit_one(&self, worker: NodeId, round: u64) -> Result<(FitResult, Bytes), String> {
        let result: FitResult = self.instruct(worker, protocol::FIT, round).await?;
        let update = if worker == self.epoch.node {
            self.office.worker.update(result.update).ok_or("the update is gone")?
        } else {
            let _turn = self.uploads.acquire().await.map_err(|error| error.to_string())?;
            let request = protocol::frame(protocol::FETCH_UPDATE, &result.update);
            let response = self.office.learning.request(worker, Class::LearningBulk, request).await;
            response.map_err(|error| error.to_string())?.into_body()
        };
        if Digest::of(&update) != result.update {
            return Err(format!("the update does not match digest {}", result.update));
        }
        Ok((result, update))
    }

    /// Sends an instruction and its answer's meaning: by digest first where the worker may have the parameters.
    async fn instruct<T: DeserializeOwned + LocalAnswer>(
        &self,
        worker: NodeId,
        tag: u8,
        round: u64,
    ) -> Result<T, String> {
        let instruction = Instruction { epoch: self.epoch, round, parameters: self.digest };
        if worker == self.epoch.node {
            let answer = T::local(&self.office.worker, instruction, self.parameters.clone()).await;
            return answer.and_then(|answer| Self::done(answer)?.ok_or_else(|| "parameters missing".into()));
        }
        let known = self.has().get(&worker).copied();
        let mut send = known.is_some_and(|known| known != self.digest);
        loop {
            let frame = protocol::frame(tag, &instruction);
            let (class, frame) = if send {
                (Class::LearningBulk, protocol::with_parameters(frame, Some(&self.parameters)))
            } else {
                (Class::LearningControl, frame)
            };
            let response = self.office.learning.request(worker, class, frame).await;
            let response: Frame = response.map_err(|error| error.to_string())?;
            let answer = protocol::head(&response).map_err(|refusal| refusal.0)?;
            match Self::done(answer)? {
                Some(done) => {
                    self.has().insert(worker, self.digest);
                    return Ok(done);
                }
                None if send => return Err("the worker does not keep the parameters it was sent".into()),
                None => send = true,
            }
        }
    }

    fn done<T>(answer: Answer<T>) -> Result<Option<T>, String> {
        match answer {
            Answer::Done(done) => Ok(Some(done)),
            Answer::ParametersMissing => Ok(None),
            Answer::Stale(epoch) => Err(format!("it follows epoch {epoch}")),
            Answer::Failed(reason) => Err(reason),
        }
    }

    /// Has the workers evaluate the global parameters; nobody's result is waited for beyond the deadline.
    async fn evaluate(&self, round: u64) -> (u32, Evaluation) {
        let Ok(workers) = self.workers().await else { return (0, Evaluation::default()) };
        let deadline = Instant::now() + Duration::from_millis(self.config().round_deadline_ms);
        let mut results: FuturesUnordered<_> = workers
            .into_iter()
            .map(|worker| async move {
                (worker, self.instruct::<Evaluation>(worker, protocol::EVALUATE, round).await)
            })
            .collect();
        let (mut count, mut total) = (0, Evaluation::default());
        while let Ok(Some((worker, result))) = tokio::time::timeout_at(deadline, results.next()).await {
            match result {
                Ok(result) => {
                    count += 1;
                    total.loss_sum += result.loss_sum;
                    total.correct += result.correct;
                    total.examples += result.examples;
                }
                Err(reason) => self.emit(Event::WorkerFailed { epoch: self.epoch, round, worker, reason }),
            }
        }
        (count, total)
    }

    fn finished(
        &self,
        round: u64,
        begun: Instant,
        fitted: Option<Fitted>,
        evaluate_workers: u32,
        evaluation: Evaluation,
    ) {
        let examples = evaluation.examples;
        let mean = |sum: f64| (examples > 0).then(|| sum / examples as f64);
        self.emit(Event::RoundFinished {
            epoch: self.epoch,
            round,
            round_ns: begun.elapsed().as_nanos() as u64,
            fit_ns: fitted.as_ref().map_or(0, |fitted| fitted.fit_ns),
            fit_workers: fitted.as_ref().map_or(0, |fitted| fitted.workers),
            fit_examples: fitted.as_ref().map_or(0, |fitted| fitted.examples),
            train_loss: fitted.as_ref().map(|fitted| fitted.loss),
            evaluate_workers,
            evaluate_examples: examples,
            loss: mean(evaluation.loss_sum),
            accuracy: mean(evaluation.correct as f64),
            digest: self.digest,
        });
    }
}

/// An answer the aggregator can also get from the worker on its own node.
#[async_trait::async_trait]
trait LocalAnswer: Sized {
    async fn local(
        worker: &Worker,
        instruction: Instruction,
        parameters: Bytes,
    ) -> Result<Answer<Self>, String>;
}

#[async_trait::async_trait]
impl LocalAnswer for FitResult {
    async fn local(
        worker: &Worker,
        instruction: Instruction,
        parameters: Bytes,
    ) -> Result<Answer<Self>, String> {
        worker.on_fit(instruction, parameters).await.map_err(|refusal| refusal.0)
    }
}

#[async_trait::async_trait]
impl LocalAnswer for Evaluation {
    async fn local(
        worker: &Worker,
        instruction: Instruction,
        parameters: Bytes,
    ) -> Result<Answer<Self>, String> {
        worker.on_evaluate(instruction, parameters).await.map_err(|refusal| refusal.0)
    }
}
