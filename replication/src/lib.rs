//! Interchangeable backends that keep the state of a federated-learning job alive when its aggregator dies.
//!
//! ```text
//!   workloads, harness            callers: see [`CheckpointStore`] and [`Guarantees`], never a backend's name
//!   ------------------------------------------------------------------------------------------------
//!   backend    open() -> Arc<dyn CheckpointStore>, the only place that matches on the backend
//!   store      the contract: Checkpoint, Epoch, Receipt, Guarantees, StoreEvent
//!   raft       Raft on openraft             gossip     chitchat, bytes pulled from any holder
//!   backup     primary and backups          local      one aggregator, no replication
//!   memory     in-process reference the others are held to
//!   suitability  which nodes are fit to aggregate and to hold
//!   suspicion  how close a failure detector is to suspecting a node
//!   blob       checkpoint bytes by digest, pushed once, pulled from any holder
//!   storage    what a node keeps across restarts: tables on disk
//!   work       what hashing, encoding and decoding cost this process
//!   lifeline   tells at once that the aggregator crashed (TCP)
//!   recover    a new cluster from what one node kept
//!   ------------------------------------------------------------------------------------------------
//!   transport  requests between nodes, bytes counted by class; quic (quinn) and channel (seeded, in-process)
//! ```
//!
//! This crate deliberately knows no workload, no result file and no run: it keeps checkpoints and says who
//! aggregates.

mod archive;
pub mod backend;
pub mod backup;
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod blob;
pub mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod error;
pub mod event;
mod forward;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod gossip;
mod ledger;
pub mod lifeline;
pub mod local;
mod members;
pub mod memory;
pub mod raft;
pub mod recover;
pub mod storage;
pub mod store;
pub mod suitability;
pub mod suspicion;
pub mod transport;
mod wire;
pub mod work;

pub use backend::{Backend, open};
pub use config::{ConfigError, Site, Window};
pub use error::{Outcome, StoreError};
pub use event::{Observer, Silent, StoreEvent};
pub use recover::Survivor;
pub use storage::{Storage, StorageError};
pub use store::{
    AnyStore, Blob, Carrier, Checkpoint, CheckpointId, CheckpointStore, CheckpointStoreExt, Confirmation,
    DEFAULT_RETAINED, Digest, Epoch, Guarantee, Guarantees, Held, Metadata, NodeId, Payload, Phase, Receipt,
    Slot,
};
pub use suspicion::Suspicion;
