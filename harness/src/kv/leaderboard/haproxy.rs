//! HAProxy in front of the nodes: its configuration, from the template that scripts/haproxy/start uses too, and its process.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use replication::NodeId;
use tokio::process::Child;

use crate::exit::Usage;
use crate::place::process::child_command;

/// Its program.
const PROGRAM: &str = "haproxy";
const TEMPLATE: &str = include_str!("../../../../scripts/haproxy/haproxy.cfg");
/// Names of nodes in the configuration, which it answers with.
const NODE: &str = "node-";
/// The header that says which node answered.
pub(super) const SERVED_BY: &str = "x-served-by";

/// HAProxy, until it is dropped.
#[derive(Debug)]
pub(super) struct Haproxy(Child);

impl Haproxy {
    /// Starts it in front of `nodes`; its configuration and its log go to `dir`.
    pub(super) fn start(
        dir: &Path,
        at: SocketAddr,
        nodes: &BTreeMap<NodeId, SocketAddr>,
    ) -> anyhow::Result<Self> {
        let file = dir.join("haproxy.cfg");
        fs::write(&file, configuration(at, nodes))
            .with_context(|| format!("cannot write {}", file.display()))?;
        let arguments = ["-db".into(), "-f".into(), file.display().to_string()];
        let mut command = child_command(Path::new(PROGRAM), &arguments, &dir.join("haproxy.log"), None)?;
        let child = command.spawn().with_context(|| format!("cannot start {PROGRAM}"))?;
        Ok(Self(child))
    }

    /// Waits until it has ended, which it does not by itself.
    pub(super) async fn ended(&mut self) -> String {
        match self.0.wait().await {
            Ok(status) => format!("the load balancer ended ({status}); see haproxy.log"),
            Err(error) => format!("the load balancer is gone ({error})"),
        }
    }
}

/// Its version; none: it is not installed.
#[must_use]
pub fn version() -> Option<String> {
    let told = Command::new(PROGRAM).arg("-v").output().ok()?;
    let text = String::from_utf8_lossy(&told.stdout);
    let version = text.lines().next()?.split_whitespace().nth(2)?.to_owned();
    Some(format!("{PROGRAM} {version}"))
}

/// Checks that it can be started.
///
/// # Errors
/// By option, with its remedy.
pub fn check() -> Result<(), Usage> {
    let remedy = "install it (Debian: apt-get install haproxy), or use --balancer none";
    let missing =
        || Usage::option("--balancer", PROGRAM, "there is no program of this name on the PATH", remedy);
    version().map(drop).ok_or_else(missing)
}

fn configuration(at: SocketAddr, nodes: &BTreeMap<NodeId, SocketAddr>) -> String {
    let mut text = TEMPLATE.replace("\"${BOARD_BIND}\"", &at.to_string());
    for (node, address) in nodes {
        // Writing to a string does not fail.
        let _ = writeln!(text, "    server {NODE}{node} {address}");
    }
    text
}

/// The node that a name in the configuration stands for.
pub(super) fn node_of(name: &str) -> Option<u64> {
    name.strip_prefix(NODE)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_filled_in() {
        let nodes = [(1, "127.0.0.1:8080"), (2, "127.0.0.2:8080")];
        let nodes = nodes.map(|(node, address)| (NodeId(node), address.parse().unwrap())).into();
        let text = configuration("127.0.0.254:8000".parse().unwrap(), &nodes);
        assert!(text.contains("    bind 127.0.0.254:8000\n") && !text.contains("BOARD_BIND}\""), "{text}");
        assert!(
            text.ends_with("    server node-1 127.0.0.1:8080\n    server node-2 127.0.0.2:8080\n"),
            "{text}"
        );
        assert_eq!((node_of("node-7"), node_of("other")), (Some(7), None));
    }
}
