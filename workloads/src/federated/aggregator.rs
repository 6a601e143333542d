//! The aggregator's side: one epoch of the job, from the newest acknowledged checkpoint to the last round or to the end
//! of the epoch.
//!
//! It deliberately does not know how it came to office, nor how checkpoints are replicated. Whatever it needs to go on
//! with is in the store: nothing is kept across epochs in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use replication::transport::Transport;
use replication::{AnyStore, Digest, Epoch, Held, Metadata, NodeId, Phase, StoreError};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::checkpoint::{self, Writer};
use super::config::Config;
use super::dispatch::{Fitted, UPLOADS_AT_ONCE};
use super::event::{Event, Events};
use super::resume::{self, Position, Step};
use super::train::Evaluation;
use super::worker::Worker;

/// How long the first round of an epoch waits for nodes that have not offered themselves, once enough have: at the start
/// of the job, when nodes are still loading, and after a failure, when one more may have died.
const START_GRACE: Duration = Duration::from_secs(30);
const FAILOVER_GRACE: Duration = Duration::from_secs(1);

/// Pause before a round is tried again that too few workers finished.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(200);

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

/// One epoch of this aggregator: what it carries from round to round.
pub(super) struct Tenure<'a> {
    pub(super) aggregator: &'a Aggregator,
    pub(super) epoch: Epoch,
    /// Nodes that should offer themselves before the first round.
    expected: BTreeSet<NodeId>,
    patience: Instant,
    pub(super) uploads: Semaphore,
    /// The global parameters.
    pub(super) digest: Digest,
    pub(super) parameters: Bytes,
    /// Whether it was told that this node has workers.
    serving: AtomicBool,
    /// What each worker is known to have; a worker not listed is asked first.
    pub(super) has: std::sync::Mutex<BTreeMap<NodeId, Digest>>,
}

impl Aggregator {
    /// Leads the job in `epoch`; `predecessors` have lost their office and are not waited for.
    pub(crate) async fn lead(&self, epoch: Epoch, predecessors: &BTreeSet<NodeId>) -> Result<(), Stopped> {
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
            let mut tenure = Tenure::new(self, epoch, predecessors, from.is_some(), digest, parameters);
            match tenure.rounds(from).await {
                // An earlier write of unknown outcome happened after all: continue from what is acknowledged.
                Err(Interruption::Overtaken) => tokio::time::sleep(RETRY_PAUSE).await,
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

impl<'a> Tenure<'a> {
    fn new(
        aggregator: &'a Aggregator,
        epoch: Epoch,
        predecessors: &BTreeSet<NodeId>,
        continues: bool,
        digest: Digest,
        parameters: Bytes,
    ) -> Self {
        let starting = !continues && predecessors.is_empty();
        let present = |node: &NodeId| starting || aggregator.learning.connected().borrow().contains(node);
        let peers = aggregator.learning.peers().into_iter().filter(present);
        let expected = peers.filter(|node| !predecessors.contains(node)).collect();
        let grace = if starting { START_GRACE } else { FAILOVER_GRACE };
        Self {
            aggregator,
            epoch,
            expected,
            patience: Instant::now() + grace,
            uploads: Semaphore::new(UPLOADS_AT_ONCE),
            digest,
            parameters,
            serving: AtomicBool::new(false),
            has: std::sync::Mutex::default(),
        }
    }

    pub(super) fn config(&self) -> &Config {
        &self.aggregator.config
    }

    pub(super) fn emit(&self, event: Event) {
        (self.aggregator.events)(event);
    }

    pub(super) fn has(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Digest>> {
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
        let writer = Writer { store: self.aggregator.store.as_ref(), events: &self.aggregator.events };
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

    /// Workers that offered themselves and are connected, once there are `enough` of them.
    pub(super) async fn workers(&self, enough: u32) -> Result<Vec<NodeId>, Stopped> {
        let mut told_waiting = false;
        let own = usize::from(self.config().aggregator_trains);
        let mut offers = self.aggregator.offers.subscribe();
        let mut connected = self.aggregator.learning.connected();
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
            if let Some(worker) = joined.first().copied()
                && !self.serving.swap(true, Ordering::Relaxed)
            {
                self.emit(Event::Serving { epoch: self.epoch, worker });
            }
            let complete = self.expected.is_subset(&joined) || Instant::now() >= self.patience;
            let count = (joined.len() + own) as u32;
            if complete && count >= enough {
                return Ok(joined.into_iter().chain((own > 0).then_some(self.epoch.node)).collect());
            }
            if complete && !std::mem::replace(&mut told_waiting, true) {
                self.emit(Event::WaitingForWorkers { epoch: self.epoch, present: count, needed: enough });
            }
            tokio::select! {
                changed = offers.changed() => changed.map_err(|_| Stopped::Deposed)?,
                changed = connected.changed() => changed.map_err(|_| Stopped::Deposed)?,
                () = tokio::time::sleep_until(self.patience), if !complete => {}
            }
        }
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
            round_ns: fitted.as_ref().map_or(begun, |fitted| fitted.begun).elapsed().as_nanos() as u64,
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
