//! Where nodes show their metrics: what `--metrics` says, and what follows for each node. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use replication::NodeId;
use serde::{Deserialize, Serialize};

use super::{PlacementKind, Plan};
use crate::exit::Usage;

/// Where the page is.
pub const PATH: &str = "/metrics";
/// The option, for errors.
pub const OPTION: &str = "--metrics";

/// Where nodes show their metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsAt {
    /// One address for all nodes, whose ports then count on from `port`; none: each at its own address, all at `port`.
    pub ip: Option<IpAddr>,
    /// The port, of the first node if there is one address for all.
    pub port: u16,
}

impl FromStr for MetricsAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = match text.parse::<SocketAddr>() {
            Ok(address) => Self { ip: Some(address.ip()), port: address.port() },
            Err(_) => {
                let port =
                    text.parse().map_err(|_| "use a port or IP:PORT, for example 9464 or 0.0.0.0:9464")?;
                Self { ip: None, port }
            }
        };
        if at.port == 0 {
            return Err("0 is not a port that can be asked; use for example 9464".into());
        }
        Ok(at)
    }
}

impl fmt::Display for MetricsAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(ip) => SocketAddr::new(ip, self.port).fmt(f),
            None => self.port.fmt(f),
        }
    }
}

impl MetricsAt {
    /// Where `node` of `plan` shows its metrics; none: there is no such node, or no such port.
    #[must_use]
    pub fn of(&self, plan: &Plan, node: NodeId) -> Option<SocketAddr> {
        let place = plan.members.iter().position(|member| member.node == node)?;
        match self.ip {
            None => Some(SocketAddr::new(plan.members[place].ip.into(), self.port)),
            Some(ip) => Some(SocketAddr::new(ip, self.port.checked_add(u16::try_from(place).ok()?)?)),
        }
    }

    /// Where all nodes of `plan` show theirs, those that may join later included.
    #[must_use]
    pub fn all(&self, plan: &Plan) -> BTreeMap<NodeId, SocketAddr> {
        plan.nodes().into_iter().filter_map(|node| Some((node, self.of(plan, node)?))).collect()
    }

    /// Where to look, in a line for whoever started the run.
    #[must_use]
    pub fn announcement(&self, plan: &Plan) -> String {
        let founders = plan.founders();
        let first = founders.first().and_then(|node| self.of(plan, *node));
        let at = first.map_or_else(|| self.to_string(), |at| format!("http://{at}{}", PATH));
        format!(
            "metrics: {at} and on {} more nodes; a view of all: harness watch",
            founders.len().saturating_sub(1)
        )
    }

    /// Checks that every node of `plan` can have an address.
    ///
    /// # Errors
    /// By option, with its remedy.
    pub fn validate(&self, plan: &Plan) -> Result<(), Usage> {
        let refuse = |wrong: &str, remedy: &str| Err(Usage::option(OPTION, self, wrong, remedy));
        if let Some(peer) = plan.kv.as_ref().and_then(|kv| kv.peer) {
            let wrong = format!("{} serves in place of the nodes, with metrics of its own", peer.name());
            return refuse(&wrong, "leave it out");
        }
        if self.ip.is_some() && plan.placement != PlacementKind::Process {
            let remedy = "name the port only: each node shows them at its own address";
            return refuse("nodes have hosts or namespaces of their own, and share no address", remedy);
        }
        if self.all(plan).len() < plan.members.len() {
            let wrong = format!("there are no {} ports from there on", plan.members.len());
            return refuse(&wrong, "use a lower port");
        }
        let board = plan.kv.as_ref().is_some_and(|kv| kv.board.is_some());
        let taken = [
            (board, plan.learning_port, "the leaderboard's port, by --learning-port"),
            (plan.backend.fast_failover, plan.replication_port, "the lifelines' port, by --replication-port"),
        ];
        match taken.into_iter().find(|(used, port, _)| *used && self.ip.is_none() && *port == self.port) {
            Some((_, _, whose)) => refuse(&format!("it is {whose}"), "use another port"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::plan;

    fn at(text: &str) -> MetricsAt {
        text.parse().unwrap()
    }

    #[test]
    fn a_port_is_at_every_node_s_own_address_and_an_address_is_shared() {
        let plan = plan(3);
        let told =
            |text: &str| -> Vec<String> { at(text).all(&plan).values().map(SocketAddr::to_string).collect() };
        assert_eq!(told("9464"), ["127.9.9.11:9464", "127.9.9.12:9464", "127.9.9.13:9464"]);
        assert_eq!(told("0.0.0.0:9464"), ["0.0.0.0:9464", "0.0.0.0:9465", "0.0.0.0:9466"]);
        assert_eq!(at("9464").of(&plan, NodeId(4)), None);
        let expected =
            "metrics: http://127.9.9.11:9464/metrics and on 2 more nodes; a view of all: harness watch";
        assert_eq!(at("9464").announcement(&plan), expected);
        for text in ["9464", "127.0.0.1:9464", "[::1]:9464"] {
            assert_eq!(at(text).to_string(), text);
            assert_eq!(at(text).validate(&plan), Ok(()));
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_option() {
        for text in ["", "0", "65536", "-1", "host:9464", "127.0.0.1", "127.0.0.1:0", ":9464"] {
            assert!(text.parse::<MetricsAt>().is_err(), "{text}");
        }
        let mut plan = plan(3);
        let refused = |text: &str, plan: &Plan| at(text).validate(plan).unwrap_err().to_string();
        let message = refused("127.0.0.1:65534", &plan);
        assert!(
            message.starts_with("--metrics 127.0.0.1:65534: there are no 3 ports from there on"),
            "{message}"
        );
        plan.backend.fast_failover = true;
        assert!(refused("5000", &plan).contains("it is the lifelines' port, by --replication-port"));
        assert_eq!(at("8080").validate(&plan), Ok(()), "UDP is another");
        plan.placement = PlacementKind::Netns;
        assert!(refused("10.0.0.1:9464", &plan).contains("share no address; name the port only"));
    }
}
