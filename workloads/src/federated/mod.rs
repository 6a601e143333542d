//! Federated learning on CIFAR-10, in Flower's terms: an aggregator gives fit and evaluate instructions, workers answer
//! with results, the aggregator averages (FedAvg, McMahan et al. 2017) and puts checkpoints into a store.

mod aggregator;
mod average;
mod checkpoint;
mod cifar;
mod config;
mod data;
mod dispatch;
mod engine;
mod engine_candle;
#[cfg(feature = "torch")]
mod engine_torch;
mod event;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod kernels;
mod learner;
mod local;
pub mod model;
mod node;
mod offers;
mod policy;
mod probe;
mod protocol;
mod resume;
mod seed;
pub mod shard;
mod sized;
mod synthetic;
mod tenure;
mod train;
mod trainer;
mod worker;

pub use average::{Average, AverageError};
pub use cifar::{FileStatus, Location, PIECE_FILE, Status, status};
pub use config::{Config, EngineKind, Partition, Policy, Profile, Training};
pub use data::{
    ARCHIVE_BYTES, ARCHIVE_MD5, ARCHIVE_SHA256, ARCHIVE_URL, DataError, Examples, PIXELS, Source, Split,
};
pub use engine::open_engine;
pub use engine_candle::CandleEngine;
#[cfg(feature = "torch")]
pub use engine_torch::TorchEngine;
pub use event::{Event, Events};
pub use learner::{Learner, LearnerError, Update};
pub use local::{LocalError, LocalLearner};
pub use model::ModelError;
pub use node::{JobError, Participant, run};
pub use shard::ShardError;
pub use sized::SizedLearner;
pub use synthetic::write_synthetic;
pub use train::{BatchOrder, Cancel, Engine, EngineError, Evaluation, FitOutcome};
pub use trainer::Trainer;
