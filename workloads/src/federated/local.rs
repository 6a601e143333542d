//! This node's shard and engine, behind [`Learner`].

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use replication::NodeId;

use super::config::{Config, Partition, Training};
use super::data::{DataError, Examples, Source, Split};
use super::learner::{Learner, LearnerError, Update};
use super::model;
use super::shard::{self, Cut, Piece, Pool, ShardError};
use super::train::{BatchOrder, Cancel, EngineError, Evaluation};
use super::trainer::Trainer;

/// Why a node cannot train.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// The data is missing or damaged.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The data does not go round.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// There is no such engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// This node has no place among the job's nodes.
    #[error("node {0} is not one of the job's nodes")]
    Stranger(NodeId),
    /// Reading was cut short.
    #[error("the data was not read: {0}")]
    Interrupted(String),
}

/// A node's shard, its test examples, and the thread that trains on them.
#[derive(Debug)]
pub struct LocalLearner {
    node: NodeId,
    seed: u64,
    training: Training,
    train: Arc<Examples>,
    test: Arc<Examples>,
    synthetic: bool,
    trainer: Trainer,
}

impl LocalLearner {
    /// Reads the shard of `node`, whose place among `nodes` decides which examples are its own, and starts the engine. These
    /// are all nodes of the job, those included that join later: whoever joins has a shard of its own, and changes no
    /// other's.
    ///
    /// # Errors
    /// Missing or damaged data, too little of it, or an engine this build does not have.
    pub async fn open(config: &Config, node: NodeId, nodes: &[NodeId]) -> Result<Self, LocalError> {
        let place = nodes.iter().position(|other| *other == node).ok_or(LocalError::Stranger(node))?;
        let trainer = Trainer::start(config.engine).await?;
        let (job, count) = (config.clone(), nodes.len());
        let reading = tokio::task::spawn_blocking(move || read_shard(&job, place, count));
        let (train, test, synthetic) =
            reading.await.map_err(|error| LocalError::Interrupted(error.to_string()))??;
        Ok(Self {
            node,
            seed: config.seed,
            training: config.training,
            train: Arc::new(train),
            test: Arc::new(test),
            synthetic,
            trainer,
        })
    }

    /// Examples in the shard, to train on and to evaluate with.
    #[must_use]
    pub fn examples(&self) -> (u64, u64) {
        (self.train.len() as u64, self.test.len() as u64)
    }

    /// Whether the examples are the built-in synthetic ones.
    #[must_use]
    pub fn is_synthetic(&self) -> bool {
        self.synthetic
    }

    /// Name of the engine.
    #[must_use]
    pub fn engine(&self) -> &str {
        self.trainer.engine()
    }
}

fn read_shard(config: &Config, place: usize, nodes: usize) -> Result<(Examples, Examples, bool), LocalError> {
    let source = match &config.data {
        Some(path) => Source::open(path)?,
        None => Source::Synthetic { seed: config.seed },
    };
    source.check_piece(Piece { place: place as u64 + 1, cut: Cut::of(config, nodes) })?;
    let labels;
    let pool = match config.partition {
        Partition::Iid => Pool::Len(Split::Train.examples()),
        Partition::Dirichlet { .. } => {
            labels = source.labels(Split::Train)?;
            Pool::Labels(&labels)
        }
    };
    let mut train = shard::assign(config.partition, pool, nodes, config.examples_per_node, config.seed)?;
    let pool = Pool::Len(Split::Test.examples());
    let mut test = shard::assign(Partition::Iid, pool, nodes, config.test_examples_per_node, config.seed)?;
    let train = source.read(Split::Train, &train.swap_remove(place))?;
    let test = source.read(Split::Test, &test.swap_remove(place))?;
    Ok((train, test, source.is_synthetic()))
}

fn failed(error: impl std::fmt::Display) -> LearnerError {
    LearnerError(error.to_string())
}

#[async_trait]
impl Learner for LocalLearner {
    async fn fit(&self, round: u64, parameters: Bytes) -> Result<Update, LearnerError> {
        let examples = self.train.len() as u64;
        let order = BatchOrder::new(self.seed, self.node.0, round, examples as u32, &self.training);
        let fitted =
            self.trainer.fit(parameters, self.train.clone(), order, self.training, &Cancel::new()).await;
        let fitted = fitted.map_err(failed)?;
        let parameters = model::encode(fitted.parameters).map_err(failed)?;
        Ok(Update { parameters, examples, loss: Some(fitted.loss) })
    }

    async fn evaluate(&self, parameters: Bytes) -> Result<Evaluation, LearnerError> {
        self.trainer.evaluate(parameters, self.test.clone(), &Cancel::new()).await.map_err(failed)
    }
}
