//! Interchangeable backends that keep the state of a federated-learning job alive when its aggregator dies.
//!
//! ```text
//!   workloads, harness            callers: see [`CheckpointStore`] and [`Guarantees`], never a backend's name
//!   ------------------------------------------------------------------------------------------------
//!   config     open() -> Arc<dyn CheckpointStore>, the only place that matches on the backend
//!   store      the contract: Checkpoint, Epoch, Receipt, Guarantees, StoreEvent
//!   raft       full Raft on openraft        memory     in-process reference the others are held to
//!   blob       checkpoint bytes by digest, pushed once, pulled from any holder
//!   ------------------------------------------------------------------------------------------------
//!   transport  requests between nodes, bytes counted by class; quic (quinn) and channel (seeded, in-process)
//! ```
//!
//! This crate deliberately knows no workload, no result file and no run: it keeps checkpoints and says who
//! aggregates.

mod blob;
pub mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod error;
mod ledger;
pub mod memory;
pub mod raft;
pub mod store;
pub mod transport;
mod wire;

pub use config::{Backend, open};
pub use error::{Outcome, StoreError};
pub use store::{
    AnyStore, Checkpoint, CheckpointId, CheckpointStore, CheckpointStoreExt, DEFAULT_RETAINED, Digest, Epoch,
    Guarantee, Guarantees, Held, Metadata, NodeId, Observer, Payload, Phase, Receipt, Silent, Slot,
    StoreEvent,
};
