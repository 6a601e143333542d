//! What runs over the stores. Stores are seen through [`replication::CheckpointStore`] only: this crate knows no
//! backend, no process, no result file.

pub mod federated;
pub mod keyvalue;
pub mod leaderboard;
