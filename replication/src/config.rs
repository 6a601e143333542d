//! Which backend, with which parameters; [`open`] is the only place that matches on it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::raft::{ConfigError, RaftConfig, RaftStore};
use crate::store::{AnyStore, Observer};
use crate::transport::Transport;

/// A backend with its parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "snake_case")]
pub enum Backend {
    /// Full Raft.
    Raft(RaftConfig),
}

/// Opens this node's store of `backend`.
///
/// # Errors
/// A configuration that contradicts itself.
pub async fn open(
    backend: Backend,
    transport: Arc<dyn Transport>,
    observer: Arc<dyn Observer>,
) -> Result<AnyStore, ConfigError> {
    match backend {
        Backend::Raft(config) => Ok(RaftStore::open(config, transport, observer).await?),
    }
}
