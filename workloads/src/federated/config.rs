//! What a federated job is: one validated value, the same on every node.

use std::path::PathBuf;

use replication::CheckpointStore;
use serde::{Deserialize, Serialize};

/// What is written to the store in each round, so that comparisons are honest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// The averaged parameters, once a round.
    Once,
    /// Global parameters at `configure_fit`, `aggregate_fit` and `configure_evaluate` (Dautov and Husom 2024, Fig. 1, 2).
    Paper,
    /// What the published prototype does: the same three with one write per tensor plus metadata keys, and every worker
    /// also writes the parameters it received.
    Prototype,
    /// As `once`, plus every worker's own parameters (level 4 of the paper's Table 1).
    Workers,
}

/// Who aggregates, beyond what a failure decides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// Whoever the store names stays.
    #[default]
    First,
    /// The node with the lowest mean round-trip time to its peers.
    Latency,
    /// The most suitable node ([`replication::suitability`]).
    Suitability,
    /// Every node in turn (Behera et al. 2021).
    Rotate {
        /// Time in office after which the next one takes over, in milliseconds.
        every_ms: u64,
    },
}

/// How training examples are spread over the workers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Partition {
    /// Every worker draws from the same distribution.
    Iid,
    /// Class shares per worker drawn from a symmetric Dirichlet distribution (Hsu et al. 2019); a smaller `alpha` is
    /// more skewed.
    Dirichlet {
        /// Concentration, greater than 0.
        alpha: f64,
    },
}

/// Who computes the gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// Pure Rust.
    Candle,
    /// libtorch, with the feature `torch`.
    Torch,
    /// Nobody: updates have the right size and are averaged, but nothing is learned.
    None,
}

/// Local training on a worker.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Passes over the shard per round.
    pub local_epochs: u32,
    /// Examples per SGD step.
    pub batch_size: u32,
    /// Learning rate of SGD.
    pub lr: f64,
    /// Momentum of SGD.
    pub momentum: f64,
}

/// A federated job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Rounds of the job.
    pub rounds: u64,
    /// Local training.
    pub training: Training,
    /// Training examples of each worker.
    pub examples_per_node: u32,
    /// Test examples of each worker.
    pub test_examples_per_node: u32,
    /// How examples are spread.
    pub partition: Partition,
    /// CIFAR-10's folder or archive; none: the built-in synthetic set.
    pub data: Option<PathBuf>,
    /// Seed of the initial model, the data split, the batch order.
    pub seed: u64,
    /// What is written to the store.
    pub profile: Profile,
    /// A round counts with at least this many workers' results.
    pub min_fit_clients: u32,
    /// After this many milliseconds a round goes on without the results that are missing.
    pub round_deadline_ms: u64,
    /// Whether the aggregator trains too.
    pub aggregator_trains: bool,
    /// Whether parameters go to a worker with every instruction, as in Flower, instead of only when it lacks them.
    pub resend: bool,
    /// Whether bytes that the learning plane carries anyway are not sent again by the store. Without effect where the
    /// store carries bytes inline, and in profile `prototype`.
    pub reuse: bool,
    /// Whether the store is used to say who aggregates and for nothing else (level 2 of self-recovery): nothing is written
    /// or restored, and a new aggregator starts the job again.
    pub stateless: bool,
    /// Who aggregates, beyond what a failure decides.
    pub policy: Policy,
    /// Who computes the gradients.
    pub engine: EngineKind,
    /// Size of the encoded parameters, a multiple of 4: the model's, but with [`EngineKind::None`].
    pub parameter_bytes: u64,
}

impl Config {
    /// Number of parameters.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.parameter_bytes as usize / size_of::<f32>()
    }

    /// Whether `store` is given what the learning plane carries: [`Config::reuse`], if it has a use for it, but for profile
    /// `prototype`, which is the control arm.
    pub(crate) fn reuses(&self, store: &dyn CheckpointStore) -> bool {
        self.reuse
            && !self.stateless
            && self.profile != Profile::Prototype
            && store.guarantees().takes_provided
    }
}
