//! The engine on libtorch, for those who have it: the reference that the pure Rust engine is compared with. Feature
//! `torch`. It starts no threads: the calls run on the caller's thread, with parallelism inside of operations off.

use tch::{Kind, Reduction, Tensor};

use super::config::Training;
use super::data::Examples;
use super::model::{CLASSES, PARAMETERS, TENSORS};
use super::train::{
    Batch, BatchOrder, Cancel, Engine, EngineError, Evaluation, FitOutcome, check_fit, outcome, run_evaluate,
    run_fit,
};

const NAME: &str = "libtorch 1.13";

/// The engine on libtorch.
#[derive(Debug, Default)]
pub struct TorchEngine {
    _private: (),
}

impl TorchEngine {
    /// An engine; holds no memory between calls.
    pub fn new() -> Self {
        Self::default()
    }
}

impl From<tch::TchError> for EngineError {
    fn from(error: tch::TchError) -> Self {
        Self::Library { engine: NAME, reason: error.to_string() }
    }
}

/// Logits `[n, 10]` of a batch under the model's ten tensors.
fn forward(tensors: &[Tensor], batch: &Batch) -> Result<Tensor, tch::TchError> {
    let n = batch.len() as i64;
    let mut x = Tensor::f_of_slice(&batch.pixels)?.f_reshape(&[n, 3, 32, 32])?;
    for layer in tensors[..4].chunks_exact(2) {
        x = x.f_conv2d(&layer[0], Some(&layer[1]), &[1, 1], &[0, 0], &[1, 1], 1)?;
        x = x.f_relu()?.f_max_pool2d(&[2, 2], &[2, 2], &[0, 0], &[1, 1], false)?;
    }
    x = x.f_reshape(&[n, 400])?;
    for layer in tensors[4..8].chunks_exact(2) {
        x = x.f_linear(&layer[0], Some(&layer[1]))?.f_relu()?;
    }
    x.f_linear(&tensors[8], Some(&tensors[9]))
}

/// The model's tensors, copied out of the flat parameters.
fn tensors(parameters: &[f32], trained: bool) -> Result<Vec<Tensor>, tch::TchError> {
    let tensor = |spec: &super::model::TensorSpec| {
        let shape: Vec<i64> = spec.shape.iter().map(|side| *side as i64).collect();
        Tensor::f_of_slice(&parameters[spec.range()])?.f_reshape(&shape)?.f_set_requires_grad(trained)
    };
    TENSORS.iter().map(tensor).collect()
}

/// Copies a tensor's elements.
fn copy(tensor: &Tensor, into: &mut [f32]) -> Result<(), tch::TchError> {
    tensor.f_contiguous()?.f_copy_data(into, into.len())
}

/// One SGD step on the tensors; returns the mean loss of the batch before it.
fn step(
    tensors: &mut [Tensor],
    velocity: &mut [Tensor],
    batch: &Batch,
    training: Training,
) -> Result<f64, tch::TchError> {
    let labels = Tensor::f_of_slice(&batch.labels)?.f_to_kind(Kind::Int64)?;
    let loss =
        forward(tensors, batch)?.f_cross_entropy_loss::<Tensor>(&labels, None, Reduction::Mean, -100, 0.0)?;
    loss.f_backward()?;
    tch::no_grad(|| {
        for (tensor, velocity) in tensors.iter_mut().zip(velocity) {
            let mut gradient = tensor.f_grad()?;
            let _ = velocity.f_mul_scalar_(training.momentum)?.f_add_(&gradient)?;
            let _ = tensor.f_sub_(&velocity.f_mul_scalar(training.lr)?)?;
            let _ = gradient.f_zero_()?;
        }
        loss.f_double_value(&[])
    })
}

/// Keeps libtorch on the calling thread. The setting belongs to the thread, hence with every piece of work.
fn on_this_thread() {
    tch::set_num_threads(1);
}

impl Engine for TorchEngine {
    fn name(&self) -> &str {
        NAME
    }

    fn fit(
        &mut self,
        parameters: &[f32],
        examples: &Examples,
        order: &BatchOrder,
        training: Training,
        cancel: &Cancel,
    ) -> Result<FitOutcome, EngineError> {
        check_fit(parameters, examples, order, &training)?;
        on_this_thread();
        let mut model = tensors(parameters, true)?;
        let mut velocity = tensors(&[0.0; PARAMETERS], false)?;
        let trained =
            run_fit(examples, order, cancel, |batch| Ok(step(&mut model, &mut velocity, batch, training)?))?;
        let mut parameters = vec![0.0; PARAMETERS];
        for (spec, tensor) in TENSORS.iter().zip(&model) {
            copy(&tensor.f_detach()?, &mut parameters[spec.range()])?;
        }
        outcome(parameters, trained)
    }

    fn evaluate(
        &mut self,
        parameters: &[f32],
        examples: &Examples,
        cancel: &Cancel,
    ) -> Result<Evaluation, EngineError> {
        super::model::check(parameters)?;
        on_this_thread();
        let model = tensors(parameters, false)?;
        run_evaluate(parameters, examples, cancel, |batch| {
            let mut logits = vec![0.0; batch.len() * CLASSES];
            copy(&forward(&model, batch)?, &mut logits)?;
            Ok(logits)
        })
    }
}
