//! A replicated dictionary over any store: small operations where the federated job has large checkpoints.
//!
//! ```text
//!   client  -- request -->  server (any node)  -- redirect -->  server on the node that aggregates
//!                                                                  |  writes that wait become one batch
//!                                                                  v
//!                                                       store.put(batch)   acknowledged by the backend
//!                                                                  |
//!                                                                  v
//!                                                       machine.apply      the same on every node
//! ```
//!
//! # How operations become replicated state
//! The aggregator of an epoch takes the writes that wait, makes them one [`journal::Batch`], puts it as a checkpoint, applies
//! it once it is acknowledged, and answers. While a batch is under way the next one fills: a group commit without a timer.
//! There is one batch under way at a time, so batches have no gaps. Each names its predecessor. Batch n is in slot
//! `Part(n mod 64)`, so that a store that retains 8 checkpoints per slot retains 512 batches; now and then the whole state
//! goes into `Slot::Global`. A new aggregator takes the newest snapshot and the batches that lead from it to the newest one:
//! the contract says that it then has everything acknowledged before. So every backend serves, with the guarantees it gives.
//!
//! Exactly once: a client opens a session, itself a replicated command, and numbers its writes. The machine remembers the
//! effect of each session's last write and gives it again for the same number. Whoever has no session gives a write an idempotency
//! key ([`once`]).
//!
//! Linearizable reads are answered by the aggregator after [`CheckpointStore::confirm`](replication::CheckpointStore::confirm).
//! Local reads are answered by any node, from what it has taken out of its store, and may be stale.
//!
//! ```text
//!   message    what clients and servers say     machine   the dictionary, pure        journal  batches and snapshots as checkpoints
//!   replica    a node's copy, from its store    server    one node's answers           tenure   queues, batches, snapshots
//!   client     redirects, retries, sessions
//!   meter      who is told how long it took
//!   cache      what a client need not ask       load      which operations when       history  what clients saw
//!   check      is that history possible         flood     another way to agree, for comparison
//! ```
//!
//! Deliberately knows no backend, socket or process.

pub mod cache;
pub mod check;
pub mod client;
pub mod flood;
pub mod history;
pub mod journal;
pub mod load;
pub mod machine;
pub mod message;
pub mod meter;
pub mod once;
mod rates;
pub mod replica;
pub mod server;
mod tenure;

pub use client::{Client, ClientError, Delivery};
pub use message::{Freshness, MAX_KEY_BYTES, MAX_VALUE_BYTES};
pub use server::Server;
