//! What a run is: one validated value, the same on every node, that can be written down and read back.
//!
//! Validation here is pure. What has to ask the machine (ports, files) is in [`crate::preflight`].

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use replication::raft::{Electorate, RaftConfig};
use replication::{DEFAULT_RETAINED, NodeId, Payload, Window};
use serde::{Deserialize, Serialize};
use workloads::federated::{Config, Partition};

use crate::capture::CaptureMode;
use crate::exit::Usage;
use crate::fault::{Fault, Who};
use crate::link::Link;
use crate::units::exact_ms;

/// Training examples of CIFAR-10, and of the synthetic set.
pub const TRAIN_EXAMPLES: u64 = 50_000;
/// Test examples of CIFAR-10, and of the synthetic set.
pub const TEST_EXAMPLES: u64 = 10_000;
/// The last byte of node 0's address, if there were one: node i gets 10 + i.
pub const HOST_BYTE_BASE: u8 = 10;
/// Most nodes that fit into one /24 (node i at .(10+i), .255 left out).
pub const MAX_NODES: u64 = 254 - HOST_BYTE_BASE as u64;
/// Most rounds of a run.
pub const MAX_ROUNDS: u64 = 1_000_000;

/// Which replication backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// Every node votes and stores.
    Raft,
}

/// The store's parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendPlan {
    /// Which one.
    pub backend: Backend,
    /// How bytes travel.
    pub payload: Payload,
    /// Earliest start of an election after the last contact with the aggregator.
    pub window_lo_ns: u64,
    /// Latest start of an election after the last contact.
    pub window_hi_ns: u64,
    /// Interval of the aggregator's heartbeats.
    pub heartbeat_ns: u64,
}

/// How long a `put` waits for its guarantee before its outcome counts as unknown, in milliseconds.
const PUT_TIMEOUT_MS: u64 = 10_000;

impl BackendPlan {
    /// The backend among `nodes`, with the trial's seed.
    #[must_use]
    pub fn for_nodes(&self, nodes: &[NodeId], seed: u64) -> replication::Backend {
        match self.backend {
            Backend::Raft => replication::Backend::Raft(RaftConfig {
                nodes: nodes.iter().copied().collect(),
                electorate: Electorate::Everyone,
                payload: self.payload,
                window: Window {
                    from_ms: self.window_lo_ns / 1_000_000,
                    to_ms: self.window_hi_ns / 1_000_000,
                },
                heartbeat_ms: self.heartbeat_ns / 1_000_000,
                put_timeout_ms: PUT_TIMEOUT_MS,
                retained: DEFAULT_RETAINED,
                seed,
            }),
        }
    }
}

/// Where nodes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlacementKind {
    /// Child processes on this host, at loopback addresses.
    Process,
    /// Child processes on this host, each in a network namespace of its own.
    Netns,
}

/// One node and its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node; ids count from 1.
    pub node: NodeId,
    /// Its address on both planes.
    pub ip: Ipv4Addr,
}

/// A run, as every node is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The federated job; its seed is the trial's.
    pub job: Config,
    /// The store.
    pub backend: BackendPlan,
    /// Where nodes run.
    pub placement: PlacementKind,
    /// Every node, in ascending order.
    pub members: Vec<Member>,
    /// UDP port of the learning plane on every node.
    pub learning_port: u16,
    /// UDP port of the replication plane on every node.
    pub replication_port: u16,
    /// The links between nodes.
    pub link: Link,
    /// Whether nodes capture their packets.
    pub capture: CaptureMode,
}

/// A run, as the controller is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// What every node is told.
    pub plan: Plan,
    /// Faults, in order.
    pub faults: Vec<Fault>,
    /// Folder that receives the results folder.
    pub out: PathBuf,
    /// Whether the summary goes to standard output as JSON.
    pub json: bool,
    /// Whether progress is left out.
    pub quiet: bool,
}

impl Plan {
    /// The nodes of a run in the /24 of `network`: node i (from 1) at `.(10+i)`.
    #[must_use]
    pub fn members_in(network: Ipv4Addr, nodes: u64) -> Vec<Member> {
        let [a, b, c, _] = network.octets();
        let host = |node: u64| u8::try_from(u64::from(HOST_BYTE_BASE) + node).unwrap_or(u8::MAX);
        (1..=nodes.min(MAX_NODES))
            .map(|node| Member { node: NodeId(node), ip: Ipv4Addr::new(a, b, c, host(node)) })
            .collect()
    }

    /// How many nodes train at a time.
    #[must_use]
    pub fn workers(&self) -> u64 {
        workers_of(self.members.len() as u64, self.job.aggregator_trains)
    }

    /// How many nodes are a majority.
    #[must_use]
    pub fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }

    /// Ids of the nodes, in ascending order.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        self.members.iter().map(|member| member.node).collect()
    }

    /// Where `node` listens on the learning plane.
    #[must_use]
    pub fn learning_address(&self, node: NodeId) -> Option<SocketAddrV4> {
        self.address(node, self.learning_port)
    }

    /// Where `node` listens on the replication plane.
    #[must_use]
    pub fn replication_address(&self, node: NodeId) -> Option<SocketAddrV4> {
        self.address(node, self.replication_port)
    }

    fn address(&self, node: NodeId, port: u16) -> Option<SocketAddrV4> {
        let member = self.members.iter().find(|member| member.node == node)?;
        Some(SocketAddrV4::new(member.ip, port))
    }

    /// Checks everything that can be checked without asking the machine.
    ///
    /// # Errors
    /// The first contradiction, by option, with its remedy.
    pub fn validate(&self) -> Result<(), Usage> {
        self.validate_data()?;
        self.validate_training()?;
        self.validate_rounds()?;
        self.validate_timers()?;
        self.validate_addresses()
    }

    fn validate_training(&self) -> Result<(), Usage> {
        let training = &self.job.training;
        let examples = self.job.examples_per_node;
        if training.local_epochs == 0 {
            return Err(Usage::option("--local-epochs", 0, "a worker would not train", "use 1 or more"));
        }
        if training.batch_size == 0 {
            return Err(Usage::option("--batch-size", 0, "a batch needs an example", "use 1 or more"));
        }
        if training.batch_size > examples {
            return Err(Usage::option(
                "--batch-size",
                training.batch_size,
                format_args!("more than the {examples} examples of a worker"),
                "use a smaller batch or more --examples-per-node",
            ));
        }
        if !(training.lr.is_finite() && training.lr > 0.0) {
            return Err(Usage::option("--lr", training.lr, "not a positive number", "use for example 0.001"));
        }
        if !(0.0..1.0).contains(&training.momentum) {
            return Err(Usage::option(
                "--momentum",
                training.momentum,
                "outside of [0, 1)",
                "use for example 0.9",
            ));
        }
        if let Partition::Dirichlet { alpha } = self.job.partition
            && !(alpha.is_finite() && alpha > 0.0)
        {
            let wrong = "alpha must be a number greater than 0";
            return Err(Usage::option(
                "--partition",
                format_args!("dirichlet:{alpha}"),
                wrong,
                "use for example 0.5, or iid",
            ));
        }
        Ok(())
    }

    fn validate_data(&self) -> Result<(), Usage> {
        for (option, per_node, available) in [
            ("--examples-per-node", self.job.examples_per_node, TRAIN_EXAMPLES),
            ("--test-examples-per-node", self.job.test_examples_per_node, TEST_EXAMPLES),
        ] {
            if per_node == 0 {
                return Err(Usage::option(option, 0, "a worker needs data", "use 1 or more"));
            }
            // Any node can become the aggregator, so every node has a shard of its own.
            let nodes = self.members.len() as u64;
            let needed = u64::from(per_node) * nodes;
            if needed > available {
                let most = available / u64::from(per_node);
                return Err(Usage::option(
                    "--nodes",
                    nodes,
                    format_args!(
                        "{nodes} nodes with {per_node} examples ({option}) need {needed}, the data has {available}"
                    ),
                    format_args!("use at most {} {option} or {most} --nodes", available / nodes),
                ));
            }
        }
        Ok(())
    }

    fn validate_rounds(&self) -> Result<(), Usage> {
        let job = &self.job;
        if job.rounds == 0 || job.rounds > MAX_ROUNDS {
            let remedy = format!("use 1 to {MAX_ROUNDS}");
            return Err(Usage::option("--rounds", job.rounds, "outside of what a run can do", remedy));
        }
        let (clients, workers) = (job.min_fit_clients, self.workers());
        if clients == 0 {
            return Err(Usage::option("--min-fit-clients", 0, "a round needs a result", "use 1 or more"));
        }
        if u64::from(clients) > workers {
            return Err(Usage::option(
                "--min-fit-clients",
                clients,
                format_args!("there are only {workers} workers"),
                format_args!("use at most {workers}"),
            ));
        }
        if job.round_deadline_ms == 0 {
            return Err(Usage::option(
                "--round-deadline",
                "0s",
                "no worker could answer",
                "use for example 120s",
            ));
        }
        Ok(())
    }

    fn validate_timers(&self) -> Result<(), Usage> {
        let BackendPlan { window_lo_ns: low, window_hi_ns: high, heartbeat_ns: heartbeat, .. } = self.backend;
        let window = format!("{}-{}", exact_ms(low), exact_ms(high));
        if low == 0 || low >= high {
            let wrong = "the low end must be greater than 0 and below the high end";
            return Err(Usage::option("--window", window, wrong, "use for example 1000-2000ms"));
        }
        if heartbeat < 1_000_000 {
            return Err(Usage::option(
                "--heartbeat",
                exact_ms(heartbeat),
                "below 1ms",
                "use for example 100ms",
            ));
        }
        if heartbeat >= low / 2 {
            return Err(Usage::option(
                "--heartbeat",
                exact_ms(heartbeat),
                format_args!(
                    "not below half of the low end of --window {window}: one late heartbeat would start an election"
                ),
                format_args!("use less than {} or a later --window", exact_ms(low / 2)),
            ));
        }
        Ok(())
    }

    fn validate_addresses(&self) -> Result<(), Usage> {
        for (option, port) in
            [("--learning-port", self.learning_port), ("--replication-port", self.replication_port)]
        {
            if port == 0 {
                return Err(Usage::option(option, 0, "not a port that peers can know", "use 1 to 65535"));
            }
        }
        if self.learning_port == self.replication_port {
            let remedy = "give the two planes different ports";
            return Err(Usage::option(
                "--learning-port",
                self.learning_port,
                "also the --replication-port",
                remedy,
            ));
        }
        let (fits, wrong, remedy): (fn(&Ipv4Addr) -> bool, _, _) = match self.placement {
            PlacementKind::Process => (
                Ipv4Addr::is_loopback,
                "not a loopback network, which --placement process needs",
                "use 127.X.Y.0",
            ),
            PlacementKind::Netns => (
                Ipv4Addr::is_private,
                "not a private network, which --placement netns needs",
                "use for example 10.X.Y.0",
            ),
        };
        match self.members.iter().find(|member| !fits(&member.ip)) {
            None => self.validate_link(),
            Some(member) => Err(Usage::option("--network", member.ip, wrong, remedy)),
        }
    }

    fn validate_link(&self) -> Result<(), Usage> {
        if let (PlacementKind::Process, Some(rate)) = (self.placement, self.link.rate_mbit_per_s) {
            let wrong = format!("its rate of {rate} Mbit/s needs an interface for each node");
            return Err(Usage::option("--link", "with a rate", wrong, "use --placement netns"));
        }
        Ok(())
    }
}

impl Trial {
    /// Checks the plan and the faults.
    ///
    /// # Errors
    /// The first contradiction, by option, with its remedy.
    pub fn validate(&self) -> Result<(), Usage> {
        self.plan.validate()?;
        for fault in &self.faults {
            let crate::fault::When::Round(round) = fault.when;
            if round > self.plan.job.rounds {
                let wrong = format!("the run has {} rounds", self.plan.job.rounds);
                return Err(Usage::option(
                    "--fault",
                    fault,
                    wrong,
                    "name an earlier round or use more --rounds",
                ));
            }
            if let Who::Node(node) = fault.who
                && !self.plan.nodes().contains(&node)
            {
                let wrong = format!("there is no node {node}");
                let remedy = format!("nodes are 1 to {}", self.plan.members.len());
                return Err(Usage::option("--fault", fault, wrong, remedy));
            }
        }
        Ok(())
    }
}

/// How many of `nodes` train at a time.
#[must_use]
pub fn workers_of(nodes: u64, aggregator_trains: bool) -> u64 {
    if aggregator_trains { nodes } else { nodes.saturating_sub(1) }
}

/// Checks the number of nodes, before anything is derived from it.
///
/// # Errors
/// Too few or too many.
pub fn validate_nodes(nodes: u64) -> Result<(), Usage> {
    match nodes {
        0 | 1 => {
            Err(Usage::option("--nodes", nodes, "an aggregator needs at least one worker", "use 2 or more"))
        }
        2..=MAX_NODES => Ok(()),
        _ => Err(Usage::option(
            "--nodes",
            nodes,
            "more than a /24 of addresses has",
            format!("use at most {MAX_NODES}"),
        )),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use workloads::federated::{EngineKind, Profile, Training};

    use super::*;

    /// A small valid plan.
    pub(crate) fn plan(nodes: u64) -> Plan {
        let job = Config {
            rounds: 3,
            training: Training { local_epochs: 1, batch_size: 32, lr: 0.001, momentum: 0.9 },
            examples_per_node: 100,
            test_examples_per_node: 20,
            partition: Partition::Iid,
            data: None,
            seed: 7,
            profile: Profile::Once,
            min_fit_clients: 1,
            round_deadline_ms: 120_000,
            aggregator_trains: false,
            resend: false,
            engine: EngineKind::Candle,
        };
        let backend = BackendPlan {
            backend: Backend::Raft,
            payload: Payload::Inline,
            window_lo_ns: 1_000_000_000,
            window_hi_ns: 2_000_000_000,
            heartbeat_ns: 100_000_000,
        };
        let members = Plan::members_in(Ipv4Addr::new(127, 9, 9, 0), nodes);
        Plan {
            job,
            backend,
            placement: PlacementKind::Process,
            members,
            learning_port: 8080,
            replication_port: 5000,
            link: Link::default(),
            capture: CaptureMode::Auto,
        }
    }

    fn refused(change: impl FnOnce(&mut Plan)) -> String {
        let mut plan = plan(4);
        assert_eq!(plan.validate(), Ok(()));
        change(&mut plan);
        plan.validate().unwrap_err().to_string()
    }

    #[test]
    fn addresses_count_from_eleven() {
        let plan = plan(3);
        assert_eq!(plan.learning_address(NodeId(1)).unwrap().to_string(), "127.9.9.11:8080");
        assert_eq!(plan.replication_address(NodeId(3)).unwrap().to_string(), "127.9.9.13:5000");
        assert_eq!(plan.replication_address(NodeId(4)), None);
        assert_eq!(Plan::members_in(Ipv4Addr::LOCALHOST, MAX_NODES).last().unwrap().ip.octets()[3], 254);
    }

    #[test]
    fn a_plan_is_read_back_as_written() {
        let plan = plan(10);
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
        assert_eq!((plan.workers(), plan.majority()), (9, 6));
    }

    #[test]
    fn contradictions_are_named_by_option_value_and_remedy() {
        let message = refused(|plan| plan.backend.heartbeat_ns = 500_000_000);
        assert!(
            message.starts_with("--heartbeat 500ms: not below half of the low end of --window 1000ms-2000ms"),
            "{message}"
        );
        assert!(
            refused(|plan| plan.backend.window_hi_ns = 1_000_000_000).starts_with("--window 1000ms-1000ms:")
        );
        assert!(refused(|plan| plan.backend.heartbeat_ns = 0).starts_with("--heartbeat 0ms:"));
        assert!(refused(|plan| plan.job.training.batch_size = 0).starts_with("--batch-size 0:"));
        assert!(refused(|plan| plan.job.training.batch_size = 101).contains("more than the 100 examples"));
        assert!(
            refused(|plan| plan.job.partition = Partition::Dirichlet { alpha: 0.0 })
                .starts_with("--partition dirichlet:0:")
        );
        assert!(
            refused(|plan| plan.job.partition = Partition::Dirichlet { alpha: f64::NAN })
                .starts_with("--partition")
        );
        assert!(refused(|plan| plan.job.min_fit_clients = 4).contains("only 3 workers"));
        assert!(refused(|plan| plan.job.min_fit_clients = 0).starts_with("--min-fit-clients 0:"));
        assert!(refused(|plan| plan.job.training.lr = f64::INFINITY).starts_with("--lr inf:"));
        assert!(refused(|plan| plan.job.training.momentum = 1.0).starts_with("--momentum 1:"));
        assert!(refused(|plan| plan.job.rounds = 0).starts_with("--rounds 0:"));
        assert!(refused(|plan| plan.job.round_deadline_ms = 0).starts_with("--round-deadline 0s:"));
        assert!(refused(|plan| plan.learning_port = 5000).contains("--replication-port"));
        assert!(
            refused(|plan| plan.members[0].ip = Ipv4Addr::new(10, 0, 0, 1))
                .starts_with("--network 10.0.0.1:")
        );
    }

    #[test]
    fn the_data_bounds_the_nodes() {
        let message = refused(|plan| plan.job.examples_per_node = 20_000);
        assert!(
            message.starts_with("--nodes 4: 4 nodes with 20000 examples (--examples-per-node) need 80000"),
            "{message}"
        );
        assert!(message.contains("at most 12500 --examples-per-node or 2 --nodes"), "{message}");
        for nodes in [0, 1, MAX_NODES + 1, u64::MAX] {
            assert!(validate_nodes(nodes).is_err());
        }
    }

    #[test]
    fn faults_must_be_able_to_strike() {
        let trial = |fault: &str| Trial {
            plan: plan(4),
            faults: vec![fault.parse().unwrap()],
            out: "out".into(),
            json: false,
            quiet: false,
        };
        assert_eq!(trial("kill@node:4,round:3").validate(), Ok(()));
        assert!(trial("kill@node:5,round:3").validate().unwrap_err().to_string().contains("no node 5"));
        assert!(
            trial("kill@aggregator,round:4").validate().unwrap_err().to_string().contains("has 3 rounds")
        );
    }
}
