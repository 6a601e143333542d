//! Which backend, with which parameters; [`open`] is the only place that matches on it.

use serde::{Deserialize, Serialize};

use crate::backup::{BackupConfig, BackupStore};
use crate::config::{ConfigError, Site};
use crate::gossip::{GossipConfig, GossipStore};
use crate::local::{LocalConfig, LocalStore};
use crate::raft::{RaftConfig, RaftStore};
use crate::store::AnyStore;

/// A backend with its parameters, the same on every node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "snake_case")]
pub enum Backend {
    /// Raft, among all nodes or the most suitable.
    Raft(RaftConfig),
    /// Gossip: bytes pulled from whoever has them.
    Gossip(GossipConfig),
    /// Primary and backups, without consensus.
    Backup(BackupConfig),
    /// The lowest node keeps everything; nobody takes over.
    Local(LocalConfig),
}

impl Backend {
    /// Whether its set of nodes is fixed: nobody joins or leaves.
    #[must_use]
    pub fn has_fixed_members(&self) -> bool {
        matches!(self, Self::Local(_))
    }
}

/// Opens this node's store of `backend`.
///
/// # Errors
/// A configuration that contradicts itself, or a storage that cannot be used.
pub async fn open(backend: Backend, site: Site) -> Result<AnyStore, ConfigError> {
    if site.joins && backend.has_fixed_members() {
        return Err(ConfigError::FixedMembers);
    }
    match backend {
        Backend::Raft(config) => Ok(RaftStore::open(config, site).await?),
        Backend::Gossip(config) => Ok(GossipStore::open(config, site).await?),
        Backend::Backup(config) => Ok(BackupStore::open(config, site).await?),
        Backend::Local(config) => Ok(LocalStore::open(config, site).await?),
    }
}
