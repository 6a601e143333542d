//! What a worker asks of its training engine, without knowing which it is.

use async_trait::async_trait;
use bytes::Bytes;

use super::train::Evaluation;

/// A finished local training.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// The trained parameters, encoded as the global ones.
    pub parameters: Bytes,
    /// Examples in the shard: the weight of this update in the average.
    pub examples: u64,
    /// Mean training loss; none where nothing is trained.
    pub loss: Option<f64>,
}

/// Local training failed; the text says why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct LearnerError(pub String);

/// Trains and evaluates on this node's shard, apart from the async runtime. Dropping a future cancels its work within a
/// batch.
#[async_trait]
pub trait Learner: Send + Sync + 'static {
    /// Trains from `parameters`. The result depends only on `parameters`, `round` and the node.
    ///
    /// # Errors
    /// Parameters of another model, or an engine that failed.
    async fn fit(&self, round: u64, parameters: Bytes) -> Result<Update, LearnerError>;

    /// Evaluates `parameters` on this node's test examples.
    ///
    /// # Errors
    /// Parameters of another model, or an engine that failed.
    async fn evaluate(&self, parameters: Bytes) -> Result<Evaluation, LearnerError>;
}
