//! Credentials of a run's nodes. The harness only carries them: it does not know what is in them.

use std::collections::BTreeMap;
use std::fmt;

use replication::NodeId;
use replication::transport::identity as transport;
use serde::{Deserialize, Serialize};

/// Names the run in its certificates. Every run has an authority of its own, so it need not be unique.
const RUN_NAME: &str = "run";

/// One node's credentials, private key included, as an opaque value. Never logged: its `Debug` says nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity(pub serde_json::Value);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(redacted)")
    }
}

impl Identity {
    /// The credentials, for the transport.
    ///
    /// # Errors
    /// If they are not what [`issue`] made.
    pub fn decode(&self) -> anyhow::Result<transport::Identity> {
        // The value holds the private key: an error must not show it.
        serde_json::from_value(self.0.clone())
            .map_err(|_| anyhow::anyhow!("the node was given no usable credentials"))
    }
}

/// Makes the credentials of one run: a certificate authority that is forgotten at once, and one identity per node.
pub type Issue = fn(&[NodeId]) -> anyhow::Result<BTreeMap<NodeId, Identity>>;

/// Issues the identities of a run.
///
/// # Errors
/// If a certificate cannot be made.
pub fn issue(nodes: &[NodeId]) -> anyhow::Result<BTreeMap<NodeId, Identity>> {
    let authority = transport::Authority::new(RUN_NAME)?;
    let encode = |node: &NodeId| Ok((*node, Identity(serde_json::to_value(authority.issue(*node)?)?)));
    nodes.iter().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_holds_no_secret() {
        let identity = Identity(serde_json::json!({"key": "-----BEGIN PRIVATE KEY-----"}));
        assert_eq!(format!("{identity:?}"), "Identity(redacted)");
    }

    #[test]
    fn every_node_gets_one() {
        let nodes = [NodeId(1), NodeId(2)];
        assert_eq!(issue(&nodes).unwrap().keys().copied().collect::<Vec<_>>(), nodes);
    }
}
