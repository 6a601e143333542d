//! Local training: what an engine must do, the order of the batches, and the loop that every engine shares.
//!
//! Engines differ only in who computes a gradient. The batches, their normalisation, the sums over them, cancellation
//! and the checks of the result are here, so that two engines given the same work do the same work.
//! Nothing here knows of rounds being lost, other workers or threads: see `trainer` for the thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::config::Training;
use super::data::{Examples, PIXELS};
use super::model::{self, CLASSES, ModelError};
use super::seed::generator;

/// Examples evaluated at a time: bounds memory, and does not change the result beyond rounding.
const EVALUATION_BATCH: usize = 100;

/// Why an engine gave no result. The parameters it was given are unchanged in every case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The work was cancelled before its end.
    #[error("training was cancelled")]
    Cancelled,
    /// This build has no such engine.
    #[error("this program was built without the engine '{engine}': {remedy}")]
    Unavailable {
        /// The engine asked for.
        engine: &'static str,
        /// How to get it.
        remedy: &'static str,
    },
    /// The parameters given are not the model's.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The training settings make no sense.
    #[error("training cannot run with {setting} = {value}: {rule}")]
    Setting {
        /// Field of [`Training`].
        setting: &'static str,
        /// Its value.
        value: f64,
        /// What it must be.
        rule: &'static str,
    },
    /// There are no examples to train on or to evaluate with.
    #[error("there are no examples to work on")]
    NoExamples,
    /// The batch order was made for another number of examples.
    #[error("the batch order covers {order} examples, the shard has {examples}")]
    Order {
        /// Examples the order covers.
        order: usize,
        /// Examples in the shard.
        examples: usize,
    },
    /// The loss is no longer a finite number, in training or in an evaluation.
    #[error("training diverged, as batch {step} shows (loss {loss}): a smaller learning rate may help")]
    Diverged {
        /// Batch, from 1.
        step: u64,
        /// Its mean loss, or the sum of the losses so far in an evaluation.
        loss: f64,
    },
    /// The numeric library failed.
    #[error("{engine}: {reason}")]
    Library {
        /// The engine.
        engine: &'static str,
        /// What the library said.
        reason: String,
    },
    /// The training thread could not be started or given its priority.
    #[error("the training thread cannot be started at low priority")]
    Thread(#[source] std::io::Error),
    /// The training thread has ended.
    #[error("the training thread has ended")]
    Stopped,
}

/// A request to stop, seen by an engine before every batch. Clones are the same request.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    requested: Arc<AtomicBool>,
    parent: Option<Arc<AtomicBool>>,
}

impl Cancel {
    /// A request not made yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks to stop; there is no way back.
    pub fn cancel(&self) {
        self.requested.store(true, Ordering::Relaxed);
    }

    /// Whether stopping was asked for.
    pub fn is_cancelled(&self) -> bool {
        let set = |flag: &Arc<AtomicBool>| flag.load(Ordering::Relaxed);
        set(&self.requested) || self.parent.as_ref().is_some_and(set)
    }

    /// A request that follows this one but can also be made alone.
    pub(super) fn child(&self) -> Self {
        Self { requested: Arc::default(), parent: Some(Arc::clone(&self.requested)) }
    }
}

/// Which examples form which batch, decided outside of the engines so that they agree: every epoch is a fresh shuffle of
/// the shard, cut into batches; the last batch of an epoch may be smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOrder {
    seed: u64,
    node: u64,
    round: u64,
    examples: u32,
    batch_size: u32,
    epochs: u32,
}

impl BatchOrder {
    /// The order for `node` in `round`, over a shard of `examples` examples. A function of its arguments alone.
    pub fn new(seed: u64, node: u64, round: u64, examples: u32, training: &Training) -> Self {
        Self { seed, node, round, examples, batch_size: training.batch_size, epochs: training.local_epochs }
    }

    /// Examples the order covers, in each epoch.
    pub fn examples(&self) -> usize {
        self.examples as usize
    }

    /// Passes over the shard.
    pub fn epochs(&self) -> u32 {
        self.epochs
    }

    /// Indices into the shard for one epoch (from 0), each once, in the order of training.
    pub fn epoch(&self, epoch: u32) -> Vec<u32> {
        let mut indices: Vec<u32> = (0..self.examples).collect();
        let place = [self.node, self.round, u64::from(epoch)];
        indices.shuffle(&mut generator(self.seed, "batch order", &place));
        indices
    }
}

/// Result of local training.
#[derive(Debug, Clone, PartialEq)]
pub struct FitOutcome {
    /// Trained parameters, finite, [`model::PARAMETERS`] of them.
    pub parameters: Vec<f32>,
    /// Examples trained on, all epochs together.
    pub examples: u64,
    /// Mean cross-entropy over those examples, each taken before the step it belongs to, in nats.
    pub loss: f64,
}

/// Result of an evaluation: sums, so that those of several workers can be added.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Evaluation {
    /// Sum of the cross-entropy over the examples, in nats.
    pub loss_sum: f64,
    /// Examples whose class has the largest logit.
    pub correct: u64,
    /// Examples evaluated.
    pub examples: u64,
}

/// Computes gradients and losses of the model on one thread, and starts no other.
pub trait Engine: Send {
    /// Name and version of the library behind it, for the record.
    fn name(&self) -> &str;

    /// Trains from `parameters` on the batches that `order` cuts from `examples`: SGD on the mean cross-entropy of a
    /// batch, with momentum as in PyTorch (`v = momentum * v + g; p -= lr * v`), where `v` starts at 0 with every call.
    /// Of `training` the learning rate and the momentum count; epochs and batch size are those of `order`.
    ///
    /// # Errors
    /// [`EngineError`]; `Cancelled` at the latest one batch after `cancel` was requested.
    fn fit(
        &mut self,
        parameters: &[f32],
        examples: &Examples,
        order: &BatchOrder,
        training: Training,
        cancel: &Cancel,
    ) -> Result<FitOutcome, EngineError>;

    /// Loss and correct answers of `parameters` on `examples`.
    ///
    /// # Errors
    /// As [`Engine::fit`].
    fn evaluate(
        &mut self,
        parameters: &[f32],
        examples: &Examples,
        cancel: &Cancel,
    ) -> Result<Evaluation, EngineError>;
}

/// Some examples, ready for an engine.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Normalised pixels, `[len, 3, 32, 32]`.
    pub(super) pixels: Vec<f32>,
    /// Classes, 0 to 9.
    pub(super) labels: Vec<u8>,
}

impl Batch {
    pub(super) fn len(&self) -> usize {
        self.labels.len()
    }

    /// Replaces the contents by the examples at `indices`, which are in range.
    pub(super) fn fill(&mut self, examples: &Examples, indices: &[u32]) {
        self.pixels.clear();
        self.labels.clear();
        for index in indices {
            let index = *index as usize;
            let pixels = &examples.pixels()[index * PIXELS..][..PIXELS];
            self.pixels.extend(pixels.iter().map(|pixel| normalised(*pixel)));
            self.labels.push(examples.labels()[index]);
        }
    }
}

/// A pixel as the model sees it: 0 to 255 becomes -1 to 1 (mean and deviation 0.5, as in PyTorch's CIFAR-10 tutorial).
fn normalised(pixel: u8) -> f32 {
    (f32::from(pixel) / 255.0 - 0.5) / 0.5
}

/// Parameters in training, and the momentum that goes with them.
#[derive(Debug)]
pub(super) struct Sgd {
    /// The parameters after the steps so far.
    pub(super) parameters: Vec<f32>,
    velocity: Vec<f32>,
    lr: f32,
    momentum: f32,
}

impl Sgd {
    pub(super) fn new(parameters: &[f32], training: Training) -> Self {
        Self {
            parameters: parameters.to_vec(),
            velocity: vec![0.0; parameters.len()],
            lr: training.lr as f32,
            momentum: training.momentum as f32,
        }
    }

    /// One step along the gradient of a batch's mean loss.
    pub(super) fn step(&mut self, gradient: &[f32]) {
        let state = self.parameters.iter_mut().zip(&mut self.velocity);
        for ((parameter, velocity), gradient) in state.zip(gradient) {
            *velocity = self.momentum * *velocity + gradient;
            *parameter -= self.lr * *velocity;
        }
    }
}

/// Checks the arguments of [`Engine::fit`] before any work is done.
pub(super) fn check_fit(
    parameters: &[f32],
    examples: &Examples,
    order: &BatchOrder,
    training: &Training,
) -> Result<(), EngineError> {
    model::check(parameters)?;
    if examples.is_empty() {
        return Err(EngineError::NoExamples);
    }
    if order.examples() != examples.len() {
        return Err(EngineError::Order { order: order.examples(), examples: examples.len() });
    }
    let refuse = |setting, value, rule| Err(EngineError::Setting { setting, value, rule });
    if order.epochs == 0 {
        return refuse("local_epochs", 0.0, "it must be at least 1");
    }
    if order.batch_size == 0 {
        return refuse("batch_size", 0.0, "it must be at least 1");
    }
    if !(training.lr.is_finite() && training.lr > 0.0) {
        return refuse("lr", training.lr, "it must be greater than 0 and finite");
    }
    if !(0.0..1.0).contains(&training.momentum) {
        return refuse("momentum", training.momentum, "it must be at least 0 and less than 1");
    }
    Ok(())
}

/// Runs `step` over every batch of every epoch; it returns the batch's mean loss. Returns examples seen and mean loss.
pub(super) fn run_fit(
    examples: &Examples,
    order: &BatchOrder,
    cancel: &Cancel,
    mut step: impl FnMut(&Batch) -> Result<f64, EngineError>,
) -> Result<(u64, f64), EngineError> {
    let (mut seen, mut loss_sum, mut steps) = (0u64, 0.0, 0u64);
    let mut batch = Batch::default();
    for epoch in 0..order.epochs {
        for indices in order.epoch(epoch).chunks(order.batch_size as usize) {
            if cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            batch.fill(examples, indices);
            let loss = step(&batch)?;
            steps += 1;
            if !loss.is_finite() {
                return Err(EngineError::Diverged { step: steps, loss });
            }
            seen += batch.len() as u64;
            loss_sum += loss * batch.len() as f64;
        }
    }
    Ok((seen, loss_sum / seen as f64))
}

/// Makes the outcome of a finished training, unless the last step left the finite numbers.
pub(super) fn outcome(parameters: Vec<f32>, (examples, loss): (u64, f64)) -> Result<FitOutcome, EngineError> {
    model::check(&parameters)?;
    Ok(FitOutcome { parameters, examples, loss })
}

/// Runs `logits` over the examples in their order; it returns `[len, 10]` row-major logits of a batch.
pub(super) fn run_evaluate(
    parameters: &[f32],
    examples: &Examples,
    cancel: &Cancel,
    mut logits: impl FnMut(&Batch) -> Result<Vec<f32>, EngineError>,
) -> Result<Evaluation, EngineError> {
    model::check(parameters)?;
    if examples.is_empty() {
        return Err(EngineError::NoExamples);
    }
    let indices: Vec<u32> = (0..examples.len() as u32).collect();
    let mut evaluation = Evaluation::default();
    let mut batch = Batch::default();
    for (step, indices) in (1..).zip(indices.chunks(EVALUATION_BATCH)) {
        if cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        batch.fill(examples, indices);
        for (row, label) in logits(&batch)?.chunks_exact(CLASSES).zip(&batch.labels) {
            evaluation.add(row, usize::from(*label));
        }
        if !evaluation.loss_sum.is_finite() {
            return Err(EngineError::Diverged { step, loss: evaluation.loss_sum });
        }
    }
    Ok(evaluation)
}

impl Evaluation {
    /// Adds one example, given its logits and its class (below their number). Of equal logits the first counts as the
    /// answer, as in PyTorch.
    fn add(&mut self, logits: &[f32], label: usize) {
        let mut answer = 0;
        for (class, logit) in logits.iter().enumerate() {
            if *logit > logits[answer] {
                answer = class;
            }
        }
        let largest = f64::from(logits[answer]);
        let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
        self.loss_sum += largest + sum.ln() - f64::from(logits[label]);
        self.correct += u64::from(answer == label);
        self.examples += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAINING: Training = Training { local_epochs: 2, batch_size: 4, lr: 0.01, momentum: 0.9 };

    #[test]
    fn every_epoch_covers_the_shard_in_its_own_order() {
        let order = BatchOrder::new(1, 2, 3, 50, &TRAINING);
        let (mut first, mut second) = (order.epoch(0), order.epoch(1));
        assert_ne!(first, second);
        assert_eq!(first, BatchOrder::new(1, 2, 3, 50, &TRAINING).epoch(0));
        assert_ne!(first, BatchOrder::new(1, 2, 4, 50, &TRAINING).epoch(0));
        assert_ne!(first, BatchOrder::new(1, 3, 3, 50, &TRAINING).epoch(0));
        first.sort_unstable();
        second.sort_unstable();
        assert_eq!(first, (0..50).collect::<Vec<_>>());
        assert_eq!(first, second);
    }

    #[test]
    fn evaluation_is_cross_entropy_and_accuracy() {
        let mut evaluation = Evaluation::default();
        evaluation.add(&[0.0; 10], 0);
        evaluation.add(&[0.0, 100.0, 0.0], 2);
        assert!((evaluation.loss_sum - (10f64.ln() + 100.0)).abs() < 1e-9);
        assert_eq!((evaluation.correct, evaluation.examples), (1, 2));
    }

    #[test]
    fn a_child_request_follows_its_parent_only() {
        let parent = Cancel::new();
        let (one, two) = (parent.child(), parent.child());
        one.cancel();
        assert!(one.is_cancelled() && !two.is_cancelled() && !parent.is_cancelled());
        parent.cancel();
        assert!(two.is_cancelled());
    }

    #[test]
    fn momentum_is_pytorchs() {
        let mut sgd = Sgd::new(&[1.0, 1.0], TRAINING);
        sgd.step(&[0.0, 1.0]);
        sgd.step(&[0.0, 1.0]);
        assert_eq!(sgd.parameters[0], 1.0);
        assert!((sgd.parameters[1] - (1.0 - 0.01 - 0.019)).abs() < 1e-6);
    }
}
