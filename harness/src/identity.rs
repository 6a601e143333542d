//! Credentials of a run's nodes. The harness only carries them: it does not know what is in them.

use std::collections::BTreeMap;
use std::fmt;

use replication::NodeId;
use serde::{Deserialize, Serialize};

/// One node's credentials, private key included, as an opaque value. Never logged: its `Debug` says nothing.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity(pub serde_json::Value);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(redacted)")
    }
}

/// Makes the credentials of one run: a certificate authority that is forgotten at once, and one identity per node.
pub type Issue = fn(&[NodeId]) -> anyhow::Result<BTreeMap<NodeId, Identity>>;

/// Issues the identities of a run.
///
/// # Errors
/// If a certificate cannot be made.
pub fn issue(nodes: &[NodeId]) -> anyhow::Result<BTreeMap<NodeId, Identity>> {
    // SEAM: identities. Fill in with replication::transport::identity.
    Ok(nodes.iter().map(|node| (*node, Identity(serde_json::Value::Null))).collect())
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
