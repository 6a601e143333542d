//! Updates of any size without training, to study what carries them: bytes flow and are averaged as always, and mean
//! nothing. There is no loss and no accuracy.

use async_trait::async_trait;
use bytes::Bytes;
use rand::RngExt as _;
use replication::NodeId;

use super::config::Config;
use super::learner::{Learner, LearnerError, Update};
use super::model::{self, ModelError};
use super::seed::generator;
use super::train::Evaluation;

/// Half of the width of what is drawn: the size of a model's parameters.
const SPREAD: f32 = 0.05;

/// Stands for a shard and an engine.
#[derive(Debug, Clone)]
pub struct SizedLearner {
    node: NodeId,
    seed: u64,
    parameters: usize,
}

impl SizedLearner {
    /// For `node`, with updates of the job's size.
    #[must_use]
    pub fn new(config: &Config, node: NodeId) -> Self {
        Self { node, seed: config.seed, parameters: config.parameters() }
    }

    /// What every node starts from, encoded: a function of the job's seed and size.
    ///
    /// # Errors
    /// None in practice: what is drawn is finite.
    pub fn initial(config: &Config) -> Result<Bytes, ModelError> {
        let mut rng = generator(config.seed, "initial sized parameters", &[]);
        let drawn = (0..config.parameters()).map(|_| (rng.random::<f32>() * 2.0 - 1.0) * SPREAD);
        model::encode_sized(drawn.collect(), config.parameters())
    }

    /// Halfway from `start` to what is drawn for the node and the round: every update has another digest.
    fn update(&self, round: u64, start: &[u8]) -> Result<Bytes, ModelError> {
        let start = model::decode_sized(start, self.parameters)?;
        let mut rng = generator(self.seed, "sized update", &[self.node.0, round]);
        let drawn = start.iter().map(|start| (start + (rng.random::<f32>() * 2.0 - 1.0) * SPREAD) / 2.0);
        model::encode_sized(drawn.collect(), self.parameters)
    }
}

#[async_trait]
impl Learner for SizedLearner {
    async fn fit(&self, round: u64, parameters: Bytes) -> Result<Update, LearnerError> {
        let learner = self.clone();
        let drawing = tokio::task::spawn_blocking(move || learner.update(round, &parameters));
        let drawn = drawing.await.map_err(|error| LearnerError(error.to_string()))?;
        let parameters = drawn.map_err(|error| LearnerError(error.to_string()))?;
        Ok(Update { parameters, examples: 1, loss: None })
    }

    async fn evaluate(&self, parameters: Bytes) -> Result<Evaluation, LearnerError> {
        model::decode_sized(&parameters, self.parameters).map_err(|error| LearnerError(error.to_string()))?;
        Ok(Evaluation::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn updates_have_the_size_and_follow_from_seed_node_round_and_start() {
        let learner = |node| SizedLearner { node: NodeId(node), seed: 7, parameters: 300 };
        let start = model::encode_sized(vec![0.01; 300], 300).unwrap();
        let update =
            async |node, round, start: &Bytes| learner(node).fit(round, start.clone()).await.unwrap();
        let first = update(1, 1, &start).await;
        assert_eq!((first.parameters.len(), first.examples, first.loss), (1200, 1, None));
        assert_eq!(update(1, 1, &start).await, first);
        for other in
            [update(2, 1, &start).await, update(1, 2, &start).await, update(1, 1, &first.parameters).await]
        {
            assert_ne!(other.parameters, first.parameters);
        }
        assert!(
            model::decode_sized(&first.parameters, 300).unwrap().iter().all(|value| value.abs() <= SPREAD)
        );
    }

    #[tokio::test]
    async fn parameters_of_another_size_are_refused_and_nothing_is_evaluated() {
        let learner = SizedLearner { node: NodeId(1), seed: 7, parameters: 2 };
        assert!(learner.fit(1, vec![0; 4].into()).await.is_err());
        assert!(learner.evaluate(vec![0; 4].into()).await.is_err());
        assert_eq!(learner.evaluate(vec![0; 8].into()).await.unwrap(), Evaluation::default());
    }
}
