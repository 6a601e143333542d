//! The default engine: pure Rust, so that building needs nothing from the system and one static binary runs on a board.
//! candle keeps the graph and differentiates it; the layers that cost time are in `kernels`.
//! It knows nothing of rounds or threads, and starts none.

use candle_core::{Device, Tensor, Var};

use super::config::Training;
use super::data::{Examples, PIXELS};
use super::kernels::{ConvPoolRelu, Linear};
use super::model::TENSORS;
use super::train::{
    Batch, BatchOrder, Cancel, Engine, EngineError, Evaluation, FitOutcome, Sgd, check_fit, outcome,
    run_evaluate, run_fit,
};

const NAME: &str = "candle 0.11";

const CONV1: ConvPoolRelu =
    ConvPoolRelu { in_channels: 3, in_side: 32, out_channels: 6, input_gradient: false };
const CONV2: ConvPoolRelu =
    ConvPoolRelu { in_channels: 6, in_side: 14, out_channels: 16, input_gradient: true };

/// The pure Rust engine. Its results depend on its arguments alone, but on another kind of processor, whose
/// instructions add in another order, they may differ in the last bits.
#[derive(Debug, Default)]
pub struct CandleEngine {
    _private: (),
}

impl CandleEngine {
    /// An engine; holds no memory between calls.
    pub fn new() -> Self {
        Self::default()
    }
}

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        Self::Library { engine: NAME, reason: error.to_string() }
    }
}

/// Examples differentiated at a time; larger batches are summed up. candle adds gradients of 65,536 elements or more on a
/// pool of spinning threads; with this many examples, no tensor in the graph is that large.
const PART: usize = 32;

/// Logits `[n, 10]` of a batch under the model's ten tensors.
fn forward(tensors: &[Tensor; TENSORS.len()], pixels: &[f32]) -> Result<Tensor, candle_core::Error> {
    let [w1, b1, w2, b2, w3, b3, w4, b4, w5, b5] = tensors;
    let n = pixels.len() / PIXELS;
    let x = Tensor::from_slice(pixels, (n, 3, 32, 32), &Device::Cpu)?;
    let x = x.apply_op3(w1, b1, CONV1)?;
    let x = x.apply_op3(w2, b2, CONV2)?;
    let x = x.reshape((n, 400))?.apply_op3(w3, b3, Linear)?.relu()?;
    let x = x.apply_op3(w4, b4, Linear)?.relu()?;
    x.apply_op3(w5, b5, Linear)
}

/// Mean cross-entropy of a batch, a scalar.
fn mean_loss(logits: &Tensor, labels: &[u8]) -> Result<Tensor, candle_core::Error> {
    let labels = Tensor::from_slice(labels, (labels.len(), 1), &Device::Cpu)?;
    let own = logits.gather(&labels, 1)?.squeeze(1)?;
    (logits.log_sum_exp(1)? - own)?.mean_all()
}

/// The model's tensors, as nodes of a graph if they are to be `trained`.
fn tensors(parameters: &[f32], trained: bool) -> Result<[Tensor; TENSORS.len()], candle_core::Error> {
    let mut made = Vec::with_capacity(TENSORS.len());
    for spec in &TENSORS {
        let tensor = Tensor::from_slice(&parameters[spec.range()], spec.shape, &Device::Cpu)?;
        made.push(if trained { Var::from_tensor(&tensor)?.into_inner() } else { tensor });
    }
    made.try_into().map_err(|_| candle_core::Error::Msg("the model has ten tensors".to_owned()))
}

/// Mean loss of a batch and its gradient, flat.
fn gradient(parameters: &[f32], batch: &Batch) -> Result<(f64, Vec<f32>), EngineError> {
    let tensors = tensors(parameters, true)?;
    let (mut loss, mut flat) = (0.0, vec![0.0; parameters.len()]);
    for (pixels, labels) in batch.pixels.chunks(PART * PIXELS).zip(batch.labels.chunks(PART)) {
        let weight = labels.len() as f32 / batch.len() as f32;
        let part = mean_loss(&forward(&tensors, pixels)?, labels)?;
        let gradients = part.backward()?;
        loss += f64::from(part.to_scalar::<f32>()? * weight);
        for (spec, tensor) in TENSORS.iter().zip(&tensors) {
            let gradient = gradients.get(tensor).ok_or_else(|| EngineError::Library {
                engine: NAME,
                reason: format!("no gradient for {}", spec.name),
            })?;
            for (sum, value) in flat[spec.range()].iter_mut().zip(gradient.flatten_all()?.to_vec1::<f32>()?) {
                *sum += weight * value;
            }
        }
    }
    Ok((loss, flat))
}

impl Engine for CandleEngine {
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
        let mut sgd = Sgd::new(parameters, training);
        let trained = run_fit(examples, order, cancel, |batch| {
            let (loss, gradient) = gradient(&sgd.parameters, batch)?;
            sgd.step(&gradient);
            Ok(loss)
        })?;
        outcome(sgd.parameters, trained)
    }

    fn evaluate(
        &mut self,
        parameters: &[f32],
        examples: &Examples,
        cancel: &Cancel,
    ) -> Result<Evaluation, EngineError> {
        super::model::check(parameters)?;
        let tensors = tensors(parameters, false)?;
        run_evaluate(parameters, examples, cancel, |batch| {
            Ok(forward(&tensors, &batch.pixels)?.flatten_all()?.to_vec1::<f32>()?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::data::{Source, Split};
    use super::super::model;
    use super::*;

    #[test]
    fn gradients_agree_with_finite_differences() {
        let examples = Source::Synthetic { seed: 1 }.read(Split::Train, &[0, 1, 2, 3, 14, 25]).unwrap();
        let mut batch = Batch::default();
        batch.fill(&examples, &[0, 1, 2, 3, 4, 5]);
        let mut parameters = model::initial(2);
        // Larger outputs: the initial ones are so close to each other that differences drown in rounding.
        parameters[TENSORS[8].offset..].iter_mut().for_each(|x| *x *= 8.0);
        let (_, analytic) = gradient(&parameters, &batch).unwrap();
        for spec in &TENSORS {
            // The largest components, where rounding matters least.
            let mut indices: Vec<usize> = spec.range().collect();
            indices.sort_by(|a, b| analytic[*b].abs().total_cmp(&analytic[*a].abs()));
            for index in indices.into_iter().take(4) {
                let loss_at = |delta: f32| {
                    let mut moved = parameters.clone();
                    moved[index] += delta;
                    let evaluated = CandleEngine::new().evaluate(&moved, &examples, &Cancel::new()).unwrap();
                    evaluated.loss_sum / evaluated.examples as f64
                };
                let step = 3e-4;
                let numeric = (loss_at(step) - loss_at(-step)) / (2.0 * f64::from(step));
                let analytic = f64::from(analytic[index]);
                let close = (numeric - analytic).abs() <= 2e-3 + 0.05 * analytic.abs();
                assert!(
                    close,
                    "{}[{}]: {analytic}, by differences {numeric}",
                    spec.name,
                    index - spec.offset
                );
            }
        }
    }
}
