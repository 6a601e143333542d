//! Federated learning on CIFAR-10, in Flower's terms: an aggregator gives fit and evaluate instructions, workers answer
//! with results, the aggregator averages (FedAvg, McMahan et al. 2017) and puts checkpoints into a store.

mod average;
mod config;
mod event;
pub mod model;
mod seed;
pub mod shard;

pub use average::{Average, AverageError};
pub use config::{Config, EngineKind, Partition, Profile, Training};
pub use event::Event;
pub use model::ModelError;
pub use shard::ShardError;
