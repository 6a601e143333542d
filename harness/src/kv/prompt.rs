//! Commands on a running cluster: one on the command line, or one after another at a prompt.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use replication::{Epoch, NodeId};
use tokio::time::{sleep, timeout};
use workloads::keyvalue::Client;
use workloads::keyvalue::message::{Change, Request, Response, Status, TooLarge, check_key};

/// Lines of the log that are shown unless asked for more.
pub const LOG_LINES: u32 = 20;

/// Pause between looks at the members.
const PAUSE: Duration = Duration::from_millis(50);

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The value of a key.
    Get(String),
    /// A new value.
    Set(String, String),
    /// A key is removed.
    Delete(String),
    /// Every entry.
    Show,
    /// How every node is.
    Status,
    /// The newest commands of one node (none: the one that leads).
    Log {
        /// The node.
        node: Option<NodeId>,
        /// How many.
        lines: u32,
    },
    /// One more node is started.
    AddNode,
    /// A node leaves for good.
    RemoveNode(NodeId),
    /// What can be asked.
    Help,
    /// The prompt ends.
    Quit,
}

/// What can be typed.
pub const HELP: &str = "\
get KEY             the value of a key
set KEY VALUE       a new value; everything after the key
delete KEY          remove a key
show                every entry
status              every node: role, term, index, members, requests of the last 10 seconds
log [LINES] [NODE]  the newest commands that a node has applied: index, term, command
add-node            start one more node, which joins
remove-node ID      the node leaves for good, and ends
quit                end (also Ctrl-D)";

impl Action {
    /// Reads a line; none: it is empty.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(line: &str) -> Result<Option<Self>, String> {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let key = || if rest.is_empty() { Err(format!("{word} needs a key")) } else { Ok(rest.to_owned()) };
        let node =
            |text: &str| text.parse().map(NodeId).map_err(|_| format!("'{text}' is not a node's number"));
        if matches!(word, "show" | "status" | "add-node" | "help" | "quit" | "exit") && !rest.is_empty() {
            return Err(format!("{word} takes nothing after it, not '{rest}'"));
        }
        Ok(Some(match word {
            "" => return Ok(None),
            "get" => Self::Get(key()?),
            "delete" => Self::Delete(key()?),
            "set" => match rest.split_once(char::is_whitespace) {
                Some((key, value)) => Self::Set(key.to_owned(), value.trim_start().to_owned()),
                None => return Err("set needs a key and a value".into()),
            },
            "show" => Self::Show,
            "status" => Self::Status,
            "log" => {
                let mut words = rest.split_whitespace();
                let lines = words.next().map_or(Ok(LOG_LINES), str::parse);
                let lines = lines.map_err(|_| "log takes a number of lines, and a node".to_owned())?;
                let node = words.next().map(node).transpose()?;
                if let Some(word) = words.next() {
                    return Err(format!("log takes a number of lines, and a node, not also '{word}'"));
                }
                Self::Log { lines, node }
            }
            "add-node" => Self::AddNode,
            "remove-node" => Self::RemoveNode(node(rest)?),
            "help" => Self::Help,
            "quit" | "exit" => Self::Quit,
            other => return Err(format!("unknown command '{other}'; help lists them")),
        }))
    }

    /// Checks the limits on keys and values.
    ///
    /// # Errors
    /// What is over which limit.
    pub fn check(&self) -> Result<(), TooLarge> {
        match self {
            Self::Get(key) | Self::Delete(key) => check_key(key),
            Self::Set(key, value) => {
                Change::Set { key: key.clone(), value: value.clone().into() }.within_limits()
            }
            _ => Ok(()),
        }
    }

    /// Asks `client`; returns the answer in words.
    ///
    /// # Errors
    /// What went wrong.
    pub async fn perform(&self, client: &mut Client, nodes: &[NodeId]) -> anyhow::Result<String> {
        Ok(match self {
            Self::Get(key) => match client.get(key).await? {
                Some(value) => format!("{}\n", String::from_utf8_lossy(&value)),
                None => format!("there is no {key}\n"),
            },
            Self::Set(key, value) => {
                let existed = client.set(key, value.clone().into()).await?;
                if existed { "replaced\n".into() } else { "set\n".into() }
            }
            Self::Delete(key) => {
                let existed = client.delete(key).await?;
                if existed { "deleted\n".into() } else { format!("there is no {key}\n") }
            }
            Self::Show => {
                let mut text = String::new();
                for (key, value) in client.entries().await? {
                    let _ = writeln!(text, "{key}\t{}", String::from_utf8_lossy(&value));
                }
                text
            }
            Self::Status => status(client, nodes).await,
            Self::Log { node, lines } => {
                let node = match node {
                    Some(node) => *node,
                    None => leader(client, nodes).await,
                };
                let mut text = format!("{:>10} {:>6}  command (node {node})\n", "index", "term");
                for line in client.log(node, *lines).await? {
                    let _ = writeln!(text, "{:>10} {:>6}  {}", line.index, line.term, line.command);
                }
                text
            }
            Self::AddNode => add_node(client, nodes).await?,
            Self::RemoveNode(node) => remove_node(client, nodes, *node).await?,
            Self::Help => format!("{HELP}\n"),
            Self::Quit => String::new(),
        })
    }
}

/// Has a node started, and waits until whoever leads counts it among the members.
async fn add_node(client: &Client, nodes: &[NodeId]) -> anyhow::Result<String> {
    let asked = leader(client, nodes).await;
    let (node, address) = match client.ask(asked, &Request::AddNode).await? {
        Response::Added { node, address } => (node, address),
        Response::Unavailable { reason, .. } => anyhow::bail!("no node was added: {reason}"),
        other => anyhow::bail!("an unexpected answer: {other:?}"),
    };
    let joined = async {
        loop {
            let leader = leader(client, nodes).await;
            if client.status(leader).await.is_ok_and(|status| status.members.contains(&node)) {
                return;
            }
            sleep(PAUSE).await;
        }
    };
    let patience = client.patience();
    timeout(patience, joined)
        .await
        .with_context(|| format!("node {node} is started, but was no member within {patience:?}"))?;
    Ok(format!("node {node} has joined, at {address}\n"))
}

/// Has `node` leave. Its answer may be lost, because it ends: then whoever leads says whether it is a member.
async fn remove_node(client: &Client, nodes: &[NodeId], node: NodeId) -> anyhow::Result<String> {
    anyhow::ensure!(nodes.contains(&node), "the cluster has no node {node}");
    match client.ask(node, &Request::Leave).await {
        Ok(Response::Left) => {}
        Ok(Response::Unavailable { reason, .. }) => anyhow::bail!("node {node} did not leave: {reason}"),
        Ok(other) => anyhow::bail!("an unexpected answer: {other:?}"),
        Err(error) => {
            let others: Vec<NodeId> = nodes.iter().copied().filter(|other| *other != node).collect();
            let leader = leader(client, &others).await;
            if client.status(leader).await?.members.contains(&node) {
                return Err(error.into());
            }
        }
    }
    Ok(format!("node {node} has left\n"))
}

/// Whoever leads, as the first node that answers says; otherwise the first.
async fn leader(client: &Client, nodes: &[NodeId]) -> NodeId {
    for node in nodes {
        if let Ok(Status { epoch: Some(epoch), .. }) = client.status(*node).await {
            return epoch.node;
        }
    }
    nodes.first().copied().unwrap_or_default()
}

async fn status(client: &Client, nodes: &[NodeId]) -> String {
    let mut text = format!(
        "{:>4} {:<9} {:>6} {:>6} {:>9} {:>8} {:>8}  {:<14} reads, writes, appends in 10 s\n",
        "node", "role", "term", "leader", "index", "batches", "entries", "members"
    );
    for node in nodes {
        match client.status(*node).await {
            Ok(status) => {
                let role = if status.leads { "leader" } else { "follower" };
                let (term, leader) = status.epoch.map_or_else(
                    || ("none".into(), "none".into()),
                    |Epoch { counter, node }| (counter.to_string(), node.to_string()),
                );
                let members: Vec<String> = status.members.iter().map(ToString::to_string).collect();
                let Status { index, batches, entries, reads, writes, appends, .. } = status;
                let _ = writeln!(
                    text,
                    "{node:>4} {role:<9} {term:>6} {leader:>6} {index:>9} {batches:>8} {entries:>8}  {:<14} {reads}, \
                     {writes}, {appends}",
                    members.join(",")
                );
            }
            Err(error) => {
                let _ = writeln!(text, "{node:>4} {error}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let read = |line| Action::parse(line).unwrap();
        assert_eq!(read("  "), None);
        assert_eq!(read("set a  b c "), Some(Action::Set("a".into(), "b c".into())));
        assert_eq!(read("get a b"), Some(Action::Get("a b".into())));
        assert_eq!(read("log"), Some(Action::Log { node: None, lines: LOG_LINES }));
        assert_eq!(read("log 5 2"), Some(Action::Log { node: Some(NodeId(2)), lines: 5 }));
        assert_eq!(read("add-node"), Some(Action::AddNode));
        assert_eq!(read("exit"), Some(Action::Quit));
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_words() {
        for (line, expected) in [
            ("explode", "unknown command 'explode'; help lists them"),
            ("get", "get needs a key"),
            ("set a", "set needs a key and a value"),
            ("log x", "log takes a number of lines, and a node"),
            ("log 1 2 3", "log takes a number of lines, and a node, not also '3'"),
            ("add-node now", "add-node takes nothing after it, not 'now'"),
            ("remove-node x", "'x' is not a node's number"),
        ] {
            assert_eq!(Action::parse(line).unwrap_err(), expected);
        }
    }
}
