//! The aggregator's work with its workers: instructions out, results in.
//!
//! It deliberately does not know what is written to the store, nor which round comes next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use replication::transport::{Class, Frame, TransportError};
use replication::{Blob, Digest, NodeId};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::average::Average;
use super::event::Event;
use super::model;
use super::policy::Standing;
use super::protocol::{self, Answer, FitResult, Instruction};
use super::tenure::{RETRY_PAUSE, Stopped, Tenure};
use super::train::Evaluation;
use super::worker::Worker;

/// How long one update may take to come, and how often it is asked for.
const UPLOAD_GRACE: Duration = Duration::from_secs(20);
const UPLOAD_ATTEMPTS: u32 = 3;
/// What a link carries at least, for an update that takes longer than that grace.
const SLOWEST_BYTES_PER_SECOND: u64 = 256 * 1024;

/// How often a round is tried whose workers answer that they cannot train.
const FIT_ATTEMPTS: usize = 3;

/// Why a worker's result is not there.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The worker answered that it cannot do it, or nothing usable.
    #[error("{0}")]
    Refused(String),
    /// The worker, or its connection, is gone.
    #[error("{0}")]
    Lost(String),
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::Refused { reason, .. } => Self::Refused(reason),
            error => Self::Lost(error.to_string()),
        }
    }
}

/// The workers' results of one attempt at a round.
struct Collected {
    /// Parameters of the model.
    parameters: usize,
    average: Average,
    count: u32,
    /// Over the examples; none where nothing is trained.
    loss_sum: Option<f64>,
    /// What a worker said that could not train.
    refused: Option<String>,
    standings: BTreeMap<NodeId, Standing>,
}

impl Collected {
    fn add(&mut self, result: FitResult, update: &Bytes) -> Result<(), Failure> {
        let refused = |error: &dyn std::fmt::Display| Failure::Refused(error.to_string());
        let parameters = model::decode_sized(update, self.parameters).map_err(|error| refused(&error))?;
        self.average.add(&parameters, result.examples).map_err(|error| refused(&error))?;
        self.count += 1;
        let sum = result.loss.map(|loss| loss * result.examples as f64);
        self.loss_sum = self.loss_sum.zip(sum).map(|(all, sum)| all + sum);
        Ok(())
    }
}

/// The fit half of a round.
pub(super) struct Fitted {
    pub(super) parameters: Blob,
    pub(super) examples: u64,
    /// When the first instruction was sent.
    pub(super) begun: Instant,
    pub(super) fit_ns: u64,
    pub(super) workers: u32,
    /// Mean training loss; none where nothing is trained.
    pub(super) loss: Option<f64>,
    /// What the workers said of themselves.
    pub(super) standings: BTreeMap<NodeId, Standing>,
}

impl Tenure<'_> {
    /// Has the workers train until enough of them have, and averages. Gives up when they fail again and again while
    /// they are there.
    pub(super) async fn fit(&self, round: u64) -> Result<Fitted, Stopped> {
        let enough = self.config().min_fit_clients;
        let mut failures = Vec::new();
        while failures.len() < FIT_ATTEMPTS {
            let workers = self.workers(enough).await?;
            let begun = Instant::now();
            let epoch = self.epoch;
            self.emit(Event::RoundStarted { epoch, round, workers: workers.len() as u32 });
            let collected = self.collect(round, workers).await;
            if collected.count >= enough {
                let failed = |error: &dyn std::fmt::Display| Stopped::Failed(error.to_string());
                let examples = collected.average.examples();
                let averaged = collected.average.finish().map_err(|error| failed(&error))?;
                let parameters = Blob::new(
                    model::encode_sized(averaged, self.config().parameters())
                        .map_err(|error| failed(&error))?,
                );
                let fit_ns = begun.elapsed().as_nanos() as u64;
                let loss = collected.loss_sum.map(|sum| sum / examples as f64);
                let (workers, standings) = (collected.count, collected.standings);
                return Ok(Fitted { parameters, examples, begun, fit_ns, workers, loss, standings });
            }
            failures.extend(collected.refused);
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        let reason = failures.pop().unwrap_or_default();
        Err(Stopped::Failed(format!(
            "round {round} failed on the workers {FIT_ATTEMPTS} times; the last one said: {reason}"
        )))
    }

    /// Instructs `workers` and adds up their updates as they come, until all answered or the deadline passed.
    async fn collect(&self, round: u64, workers: Vec<NodeId>) -> Collected {
        let deadline = Instant::now() + Duration::from_millis(self.config().round_deadline_ms);
        let mut missing: BTreeSet<NodeId> = workers.iter().copied().collect();
        let mut results: FuturesUnordered<_> = workers
            .into_iter()
            .map(|worker| async move { (worker, self.fit_one(worker, round).await) })
            .collect();
        let mut collected = Collected {
            parameters: self.config().parameters(),
            average: Average::new(self.config().parameters()),
            standings: BTreeMap::new(),
            count: 0,
            loss_sum: Some(0.0),
            refused: None,
        };
        while let Ok(Some((worker, result))) = tokio::time::timeout_at(deadline, results.next()).await {
            missing.remove(&worker);
            if let Ok((result, _)) = &result {
                collected.standings.insert(worker, result.standing);
            }
            if let Err(failure) = result.and_then(|(result, update)| collected.add(result, &update)) {
                let reason = failure.to_string();
                if let Failure::Refused(reason) = failure {
                    collected.refused = Some(format!("worker {worker}: {reason}"));
                }
                self.emit(Event::WorkerFailed { epoch: self.epoch, round, worker, reason });
            }
        }
        for worker in missing {
            let reason = "no result before the round's deadline".to_owned();
            self.emit(Event::WorkerFailed { epoch: self.epoch, round, worker, reason });
        }
        collected
    }

    async fn fit_one(&self, worker: NodeId, round: u64) -> Result<(FitResult, Bytes), Failure> {
        let result: FitResult = self.instruct(worker, protocol::FIT, round).await?;
        if worker == self.epoch.node {
            let update = self.aggregator.worker.update(result.update);
            let update = update.ok_or_else(|| Failure::Lost("the update is gone".into()))?;
            return Ok((result, update.bytes().clone()));
        }
        let update = {
            let _turn = self.uploads.acquire().await.map_err(|error| Failure::Lost(error.to_string()))?;
            self.fetch_update(worker, result.update).await?
        };
        if Digest::of(&update) != result.update {
            return Err(Failure::Refused(format!("the update does not match digest {}", result.update)));
        }
        Ok((result, update))
    }

    /// Fetches a finished training; again if the connection is lost meanwhile, since fetching changes nothing.
    async fn fetch_update(&self, worker: NodeId, update: Digest) -> Result<Bytes, Failure> {
        let request = protocol::frame(protocol::FETCH_UPDATE, &update);
        let patience =
            UPLOAD_GRACE + Duration::from_secs(self.config().parameter_bytes / SLOWEST_BYTES_PER_SECOND);
        let mut failure = String::new();
        for _ in 0..UPLOAD_ATTEMPTS {
            let response = self.aggregator.learning.request(worker, Class::LearningBulk, request.clone());
            match tokio::time::timeout(patience, response).await {
                Ok(Ok(response)) => return Ok(response.into_body()),
                Ok(Err(TransportError::Refused { reason, .. })) => return Err(Failure::Refused(reason)),
                Ok(Err(error)) => failure = error.to_string(),
                Err(_) => failure = format!("the update did not come within {patience:?}"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        Err(Failure::Lost(failure))
    }

    /// Sends an instruction and its answer's meaning: by digest first where the worker may have the parameters.
    async fn instruct<T: DeserializeOwned + LocalAnswer>(
        &self,
        worker: NodeId,
        tag: u8,
        round: u64,
    ) -> Result<T, Failure> {
        let instruction = Instruction { epoch: self.epoch, round, parameters: self.global.digest() };
        if worker == self.epoch.node {
            let answer = T::local(&self.aggregator.worker, instruction, self.global.bytes().clone()).await;
            let done = Self::done(answer.map_err(Failure::Refused)?)?;
            return done.ok_or_else(|| Failure::Refused("parameters missing".into()));
        }
        let known = self.has().get(&worker).copied();
        let mut send = self.config().resend || known.is_some_and(|known| known != self.global.digest());
        loop {
            let frame = protocol::frame(tag, &instruction);
            let (class, frame) = if send {
                (Class::LearningBulk, frame.with_segment(self.global.bytes().clone()))
            } else {
                (Class::LearningControl, frame)
            };
            let response = self.aggregator.learning.request(worker, class, frame).await;
            let response: Frame = response.map_err(Failure::from)?;
            let answer = protocol::head(&response).map_err(|refusal| Failure::Refused(refusal.0))?;
            match Self::done(answer)? {
                Some(done) => {
                    self.has().insert(worker, self.global.digest());
                    return Ok(done);
                }
                None if send => {
                    return Err(Failure::Refused("it does not keep the parameters it was sent".into()));
                }
                None => send = true,
            }
        }
    }

    fn done<T>(answer: Answer<T>) -> Result<Option<T>, Failure> {
        match answer {
            Answer::Done(done) => Ok(Some(done)),
            Answer::ParametersMissing => Ok(None),
            Answer::Stale(epoch) => Err(Failure::Lost(format!("it follows epoch {epoch}"))),
            Answer::Failed(reason) => Err(Failure::Refused(reason)),
        }
    }

    /// Has the workers evaluate the global parameters; nobody's result is waited for beyond the deadline.
    pub(super) async fn evaluate(&self, round: u64) -> (u32, Evaluation) {
        let Ok(workers) = self.workers(0).await else { return (0, Evaluation::default()) };
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
                    total.correct = total.correct.saturating_add(result.correct);
                    total.examples = total.examples.saturating_add(result.examples);
                }
                Err(failure) => {
                    let reason = failure.to_string();
                    self.emit(Event::WorkerFailed { epoch: self.epoch, round, worker, reason });
                }
            }
        }
        (count, total)
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
