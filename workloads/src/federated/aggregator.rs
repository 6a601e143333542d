//! The aggregator's side: one epoch of the job, from the newest acknowledged checkpoint to the last round or to the end
//! of the epoch.
//!
//! It deliberately does not know how it came to office, nor how checkpoints are replicated. Whatever it needs to go on
//! with is in the store: nothing is kept across epochs in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::try_join;
use replication::transport::Class;
use replication::{Carrier, Epoch, Held, Metadata, NodeId, Phase, StoreError};
use tokio::time::Instant;

use super::checkpoint::{self, Writer};
use super::dispatch::Fitted;
use super::event::Event;
use super::offers::Inheritance;
use super::policy::Standing;
use super::protocol;
use super::resume::{self, Position, Step};
use super::tenure::{Aggregator, RETRY_PAUSE, Stopped, Tenure};
use super::train::Evaluation;

/// How long a successor may take to answer that it is there.
const HAND_OVER_NOTICE: Duration = Duration::from_secs(1);

impl Aggregator {
    /// Leads the job in `epoch`; `inheritance` is what it knows of those before it.
    pub(crate) async fn lead(&self, epoch: Epoch, inheritance: &Inheritance) -> Result<(), Stopped> {
        self.offers.send_modify(|offers| offers.open(epoch));
        loop {
            let restored = if self.config.stateless {
                Ok(None)
            } else {
                checkpoint::restore(self.store.as_ref(), self.config.profile).await
            };
            let restored = match restored {
                Err(StoreError::Unavailable { .. } | StoreError::Missing { .. }) => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                    continue;
                }
                restored => restored?,
            };
            let from = restored.as_ref().map(|restored| restored.held);
            let global = restored.map_or_else(|| self.initial.clone(), |restored| restored.parameters);
            (self.events)(Event::Restored { epoch, from: from.map(|held| held.id), digest: global.digest() });
            let mut tenure = Tenure::new(self, epoch, &inheritance.perhaps_dead, from.is_some(), global);
            match tenure.rounds(from, inheritance.finished_round).await {
                // An earlier write of unknown outcome happened after all: continue from what is acknowledged.
                Err(Interruption::Overtaken) => tokio::time::sleep(RETRY_PAUSE).await,
                Err(Interruption::Stopped(stopped)) => return Err(stopped),
                Ok(()) => return Ok(()),
            }
        }
    }
}

/// Why a tenure's rounds stop.
enum Interruption {
    Overtaken,
    Stopped(Stopped),
}

impl<E: Into<Stopped>> From<E> for Interruption {
    fn from(error: E) -> Self {
        Self::Stopped(error.into())
    }
}

impl Tenure<'_> {
    async fn rounds(&mut self, mut written: Option<Held>, finished: u64) -> Result<(), Interruption> {
        let mut position = resume::after(written.map(|held| (held.id.round, held.id.phase)), finished);
        while position.round <= self.config().rounds {
            let begun = Instant::now();
            let mut fitted = None;
            if position.step == Step::Fit {
                self.write(position.round, Phase::ConfigureFit, &mut written, Metadata::new()).await?;
                let outcome = self.fit(position.round).await?;
                self.global = outcome.parameters.clone();
                fitted = Some(outcome);
            }
            let storing = self.store_averaged(position.round, fitted.as_ref(), &mut written);
            let (workers, evaluation) = if self.aggregator.reuses() {
                // What is sent for the evaluation is what the write waits for.
                try_join(storing, async { Ok(self.evaluate(position.round).await) }).await?.1
            } else {
                storing.await?;
                self.evaluate(position.round).await
            };
            let standings = fitted.as_ref().map(|fitted| fitted.standings.clone()).unwrap_or_default();
            self.finished(position.round, begun, fitted, workers, evaluation);
            if position.round < self.config().rounds {
                self.hand_over_if_due(position.round, standings).await?;
            }
            position = Position { round: position.round + 1, step: Step::Fit };
        }
        let (epoch, rounds) = (self.epoch, self.config().rounds);
        self.emit(Event::Completed { epoch, rounds, last: written, digest: self.global.digest() });
        Ok(())
    }

    /// Hands over to another node, if the policy has it so after this round.
    async fn hand_over_if_due(
        &mut self,
        finished: u64,
        mut standings: BTreeMap<NodeId, Standing>,
    ) -> Result<(), Stopped> {
        let candidates = self.aggregator.store.candidates();
        standings.retain(|node, _| candidates.contains(node));
        let own = self.aggregator.worker.standing();
        let Some(to) = self.chooser.successor(self.begun.elapsed(), own, &standings) else { return Ok(()) };
        let epoch = self.epoch;
        self.emit(Event::HandingOver { epoch, to });
        let learning = &self.aggregator.learning;
        let notice =
            learning.request(to, Class::LearningControl, protocol::frame(protocol::HAND_OVER, &finished));
        let handed_over = match tokio::time::timeout(HAND_OVER_NOTICE, notice).await {
            Ok(Ok(_)) => self.aggregator.store.step_down(Some(to)).await.map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("it did not answer within {HAND_OVER_NOTICE:?}")),
        };
        match handed_over {
            Ok(_) => Err(Stopped::Deposed),
            Err(reason) => {
                self.emit(Event::HandOverFailed { epoch, to, reason });
                Ok(())
            }
        }
    }

    /// Writes what follows the averaging of a round.
    async fn store_averaged(
        &self,
        round: u64,
        fitted: Option<&Fitted>,
        written: &mut Option<Held>,
    ) -> Result<(), Interruption> {
        if let Some(fitted) = fitted {
            let mut metadata = Metadata::from([("examples".to_owned(), fitted.examples.to_string())]);
            metadata.extend(fitted.loss.map(|loss| ("train_loss".to_owned(), loss.to_string())));
            self.write(round, Phase::AggregateFit, written, metadata).await?;
        }
        self.write(round, Phase::ConfigureEvaluate, written, Metadata::new()).await
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
        if self.config().stateless
            || !resume::writes_at(profile, phase)
            || written.is_some_and(|held| (held.id.round, held.id.phase) >= (round, phase))
        {
            return Ok(());
        }
        let writer = Writer { store: self.aggregator.store.as_ref(), events: &self.aggregator.events };
        let carrier = if self.aggregator.reuses() { Carrier::Caller } else { Carrier::Store };
        loop {
            let at = (self.epoch, round, phase);
            let put = writer.put_global(profile, at, &self.global, metadata.clone(), carrier);
            match put.await {
                Ok(held) => {
                    *written = Some(held);
                    return Ok(());
                }
                // Nothing is lost, and somebody may make room.
                Err(StoreError::Unavailable { .. } | StoreError::DiskFull { .. }) => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(StoreError::Superseded { .. }) => return Err(Interruption::Overtaken),
                Err(error) => return Err(error.into()),
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
            train_loss: fitted.as_ref().and_then(|fitted| fitted.loss),
            evaluate_workers,
            evaluate_examples: examples,
            loss: mean(evaluation.loss_sum),
            accuracy: mean(evaluation.correct as f64),
            digest: self.global.digest(),
        });
    }
}
