//! How to reach a cluster from outside: addresses of its nodes and the credentials of a guest, in a file that only its owner
//! can read, for as long as the run lasts.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use replication::NodeId;
use replication::transport::identity::Plane;
use replication::transport::quic::{QuicConfig, QuicTransport};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use workloads::keyvalue::message::MAX_MESSAGE_BYTES;

use crate::exit::Usage;
use crate::identity::Identity;
use crate::plan::Plan;

/// Version of the file.
const LAYOUT: u32 = 1;
/// How long the first node may take to answer.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A cluster, as its clients see it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterAddress {
    layout: u32,
    /// Where its servers listen.
    pub nodes: BTreeMap<NodeId, SocketAddr>,
    /// Credentials of a guest, private key included.
    identity: Identity,
}

impl ClusterAddress {
    /// Those of `plan` that found the cluster, for guests with this identity.
    #[must_use]
    pub fn new(plan: &Plan, identity: Identity) -> Self {
        let mut cluster = Self { layout: LAYOUT, nodes: BTreeMap::new(), identity };
        cluster.set_nodes(plan, &plan.founders());
        cluster
    }

    /// From now on these nodes of `plan` are there.
    pub fn set_nodes(&mut self, plan: &Plan, nodes: &[NodeId]) {
        let address = |node: &NodeId| plan.learning_address(*node).map(|address| (*node, address.into()));
        self.nodes = nodes.iter().filter_map(address).collect();
    }

    /// Ids of the nodes, in ascending order.
    #[must_use]
    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// Reads a file that [`ClusterFile::write`] wrote.
    ///
    /// # Errors
    /// By option, with its remedy.
    pub fn read(file: &Path) -> Result<Self, Usage> {
        let refuse = |wrong: String| {
            let remedy = "name the file that `harness run --workload kv --cluster FILE` writes while it runs";
            Usage::option("--cluster", file.display(), wrong, remedy)
        };
        let text = fs::read(file).map_err(|error| refuse(format!("cannot be read ({error})")))?;
        // It holds a private key: an error must not show it.
        let cluster: Self =
            serde_json::from_slice(&text).map_err(|_| refuse("is no description of a cluster".into()))?;
        if cluster.layout != LAYOUT || cluster.nodes.is_empty() {
            return Err(refuse("was written by another version of this program".into()));
        }
        Ok(cluster)
    }

    /// A connection of its own, not yet established.
    ///
    /// # Errors
    /// If no socket can be opened, or the credentials are none.
    pub fn connect(&self) -> anyhow::Result<Arc<QuicTransport>> {
        Ok(QuicTransport::bind(self.config()?)?)
    }

    /// So many connections of their own, not yet established, over one socket.
    ///
    /// # Errors
    /// As [`ClusterAddress::connect`].
    pub fn connect_many(&self, count: usize) -> anyhow::Result<Vec<Arc<QuicTransport>>> {
        Ok(QuicTransport::bind_guests(&self.config()?, count)?)
    }

    fn config(&self) -> anyhow::Result<QuicConfig> {
        let local = self.nodes.values().all(|address| address.ip().is_loopback());
        let bind = if local { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
        let mut config =
            QuicConfig::new(self.identity.decode()?, Plane::Learning, (IpAddr::from(bind), 0).into());
        config.peers = self.nodes.clone();
        config.max_body_bytes = MAX_MESSAGE_BYTES;
        Ok(config)
    }

    /// A connection of its own, once a node has answered.
    ///
    /// # Errors
    /// If none did in time; says why, as far as it is known.
    pub async fn reach(&self) -> anyhow::Result<Arc<QuicTransport>> {
        let transport = self.connect()?;
        if timeout(CONNECT_TIMEOUT, transport.any_ready()).await.is_ok() {
            return Ok(transport);
        }
        let last = transport.refusals().borrow().last.clone();
        match last {
            Some(reason) => anyhow::bail!(
                "the nodes at these addresses refuse the credentials ({reason}): the cluster file is of another run"
            ),
            None => anyhow::bail!(
                "no node answered within {CONNECT_TIMEOUT:?}: the run is over, or cannot be reached"
            ),
        }
    }
}

/// A file with a cluster's address; removed when dropped.
#[derive(Debug)]
pub struct ClusterFile(PathBuf);

impl ClusterFile {
    /// Writes `cluster` to `file`, readable for its owner only.
    ///
    /// # Errors
    /// [`Usage`] if it cannot be written.
    pub fn write(file: &Path, cluster: &ClusterAddress) -> anyhow::Result<Self> {
        write_private(file, cluster)?;
        Ok(Self(file.to_owned()))
    }

    /// Writes `cluster` in place of what it holds.
    ///
    /// # Errors
    /// As [`ClusterFile::write`].
    pub fn replace(&self, cluster: &ClusterAddress) -> anyhow::Result<()> {
        write_private(&self.0, cluster)
    }
}

/// Writes `cluster` to `file`, whole or not at all.
fn write_private(file: &Path, cluster: &ClusterAddress) -> anyhow::Result<()> {
    let refuse = |error: std::io::Error| {
        let wrong = format!("cannot be written ({error})");
        Usage::option("--cluster", file.display(), wrong, "name a file in a folder that can be written")
    };
    let folder = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut temporary = tempfile::NamedTempFile::new_in(folder).map_err(refuse)?;
    temporary.as_file().set_permissions(fs::Permissions::from_mode(0o600)).map_err(refuse)?;
    let text = serde_json::to_vec_pretty(cluster).context("cannot encode the cluster's address")?;
    temporary.write_all(&text).map_err(refuse)?;
    temporary.persist(file).map_err(|error| refuse(error.error))?;
    Ok(())
}

impl Drop for ClusterFile {
    fn drop(&mut self) {
        // The credentials are of no use any more: their run is over.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_back_by_its_owner_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cluster.json");
        let plan = crate::plan::tests::plan(3);
        let cluster = ClusterAddress::new(&plan, Identity(serde_json::json!({"key": "secret"})));
        let written = ClusterFile::write(&file, &cluster).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(ClusterAddress::read(&file).unwrap().nodes, cluster.nodes);
        drop(written);
        assert!(ClusterAddress::read(&file).unwrap_err().to_string().contains("cannot be read"));
        fs::write(&file, "{\"key\": \"secret\"}").unwrap();
        let error = ClusterAddress::read(&file).unwrap_err().to_string();
        assert!(error.contains("is no description") && !error.contains("secret"), "{error}");
    }
}
