//! What a run is: one validated value, the same on every node, that can be written down and read back.
//!
//! Validation (`validate`) is pure. What has to ask the machine (ports, files) is in [`crate::preflight`].

mod backend;
pub mod metrics_at;
mod trial;
mod validate;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use replication::NodeId;
use serde::{Deserialize, Serialize};
use workloads::federated::{Config, Profile};

pub use backend::{Backend, BackendPlan, Expected, Roll, Scheme, Shortfall, majority_of};
pub use metrics_at::MetricsAt;
pub use validate::validate_nodes;

use crate::capture::CaptureMode;
use crate::fault::{Change, Fault};
use crate::kv::plan::KvPlan;
use crate::link::Link;
use crate::place::inventory::Shelf;
use crate::resources::Override;

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

/// Where nodes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlacementKind {
    /// Child processes on this host, at loopback addresses.
    Process,
    /// Child processes on this host, each in a network namespace of its own.
    Netns,
    /// Each on a host of its own, reached over ssh.
    Ssh,
}

/// One node and its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node; ids count from 1.
    pub node: NodeId,
    /// Its address on both planes.
    pub ip: Ipv4Addr,
}

/// Where the nodes' stores are on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStore {
    /// The folder.
    pub dir: PathBuf,
    /// A name that no other cluster has: no node takes the store of another cluster for its own.
    pub cluster: String,
}

impl DiskStore {
    /// The file of `node`.
    #[must_use]
    pub fn file(&self, node: NodeId) -> PathBuf {
        self.dir.join(format!("node-{node}.redb"))
    }
}

/// Whether what nodes store survives their end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// It does not.
    Memory,
    /// It does.
    Disk {
        /// The folder; none: one in the results folder.
        dir: Option<PathBuf>,
    },
}

/// A run, as every node is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The federated job; its seed is the trial's.
    pub job: Config,
    /// The key-value workload, which then runs in place of the job.
    #[serde(default)]
    pub kv: Option<KvPlan>,
    /// The store.
    pub backend: BackendPlan,
    /// What nodes are said to have to offer, in place of what they measure.
    pub suitability: Vec<Override>,
    /// Where nodes run.
    pub placement: PlacementKind,
    /// Every node that there may be, in ascending order: those that found the cluster, those that join later, and spare ones.
    pub members: Vec<Member>,
    /// How many of them found the cluster.
    pub founders: u64,
    /// How many, the last ones, are spare: each comes in the place, and with the data, of a node that lost its memory.
    pub spares: u64,
    /// UDP port of the learning plane on every node.
    pub learning_port: u16,
    /// UDP port of the replication plane on every node.
    pub replication_port: u16,
    /// The links between nodes.
    pub link: Link,
    /// Whether nodes capture their packets.
    pub capture: CaptureMode,
    /// Where stores are on disk; none: in memory.
    #[serde(default)]
    pub disk: Option<DiskStore>,
    /// Where nodes show their metrics; none: nowhere.
    #[serde(default)]
    pub metrics: Option<MetricsAt>,
}

/// A run, as the controller is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// What every node is told.
    pub plan: Plan,
    /// Whether stores are on disk, and where; the plan says so once the folder is there.
    pub durability: Durability,
    /// Faults, in order.
    pub faults: Vec<Fault>,
    /// Members that come and go, in order.
    pub changes: Vec<Change>,
    /// The hosts that nodes run on with [`PlacementKind::Ssh`].
    #[serde(default)]
    pub shelf: Option<Shelf>,
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

    /// How many nodes train at a time, as long as nobody has joined or left.
    #[must_use]
    pub fn workers(&self) -> u64 {
        workers_of(self.founders, self.job.aggregator_trains)
    }

    /// What keeps a round from counting, if too few of those who are there can train.
    #[must_use]
    pub fn shortfall_of_workers(&self, roll: &Roll) -> Option<Shortfall> {
        let workers = |nodes: &[NodeId]| workers_of(nodes.len() as u64, self.job.aggregator_trains) as usize;
        let (alive, of) = (workers(&roll.alive), workers(&roll.members));
        Shortfall::of_workers(alive, of, self.job.min_fit_clients as usize)
    }

    /// The level of self-recovery (Dautov and Husom 2024, Table 1), 0 to 4.
    #[must_use]
    pub fn level(&self) -> u8 {
        match self.backend.scheme {
            Scheme::None => 0,
            Scheme::Local => 1,
            _ if self.job.stateless => 2,
            _ if self.job.profile == Profile::Workers => 4,
            _ => 3,
        }
    }

    /// What `node` is said to have to offer, in place of what it measures.
    #[must_use]
    pub fn override_of(&self, node: NodeId) -> Option<Override> {
        self.suitability.iter().find(|given| given.node == node).copied()
    }

    /// Ids of all nodes that there may be, in ascending order.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        self.members.iter().map(|member| member.node).collect()
    }

    /// Those that found the cluster.
    #[must_use]
    pub fn founders(&self) -> Vec<NodeId> {
        let mut nodes = self.nodes();
        nodes.truncate(self.founders as usize);
        nodes
    }

    /// Those that have data of their own: all but the spare ones.
    #[must_use]
    pub fn devices(&self) -> Vec<NodeId> {
        let mut nodes = self.nodes();
        nodes.truncate(nodes.len().saturating_sub(self.spares as usize));
        nodes
    }

    /// Those that join later, in order.
    #[must_use]
    pub fn newcomers(&self) -> Vec<NodeId> {
        self.devices().split_off(self.founders as usize)
    }

    /// Those that come in another one's place.
    #[must_use]
    pub fn spare_nodes(&self) -> Vec<NodeId> {
        self.nodes().split_off(self.members.len().saturating_sub(self.spares as usize))
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
}

/// How many of `nodes` train at a time.
#[must_use]
pub fn workers_of(nodes: u64, aggregator_trains: bool) -> u64 {
    if aggregator_trains { nodes } else { nodes.saturating_sub(1) }
}

#[cfg(test)]
pub(crate) mod tests {
    use replication::Payload;
    use workloads::federated::{EngineKind, Partition, Policy, Training};

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
            reuse: true,
            stateless: false,
            policy: Policy::First,
            engine: EngineKind::Candle,
            parameter_bytes: workloads::federated::model::ENCODED_BYTES as u64,
        };
        let backend = BackendPlan {
            scheme: Scheme::Raft,
            payload: Payload::Inline,
            window_lo_ns: 1_000_000_000,
            window_hi_ns: 2_000_000_000,
            heartbeat_ns: 100_000_000,
            fast_failover: false,
        };
        let members = Plan::members_in(Ipv4Addr::new(127, 9, 9, 0), nodes);
        Plan {
            job,
            kv: None,
            backend,
            suitability: Vec::new(),
            placement: PlacementKind::Process,
            founders: members.len() as u64,
            members,
            spares: 0,
            learning_port: 8080,
            replication_port: 5000,
            link: Link::default(),
            capture: CaptureMode::Auto,
            disk: None,
            metrics: None,
        }
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
    fn members_are_founders_then_newcomers_then_spares() {
        let plan = Plan { founders: 3, spares: 1, ..plan(6) };
        let ids = |nodes: Vec<NodeId>| nodes.into_iter().map(|node| node.0).collect::<Vec<_>>();
        assert_eq!((ids(plan.founders()), ids(plan.newcomers())), (vec![1, 2, 3], vec![4, 5]));
        assert_eq!((ids(plan.devices()), ids(plan.spare_nodes())), (vec![1, 2, 3, 4, 5], vec![6]));
        assert_eq!(plan.workers(), 2);
    }

    #[test]
    fn every_level_is_what_its_settings_make_it() {
        let level = |scheme, stateless, profile| {
            let mut plan = plan(3);
            plan.backend.scheme = scheme;
            (plan.job.stateless, plan.job.profile) = (stateless, profile);
            plan.level()
        };
        let workers = Profile::Workers;
        assert_eq!([Scheme::None, Scheme::Local].map(|scheme| level(scheme, false, workers)), [0, 1]);
        assert_eq!(level(Scheme::Raft, true, Profile::Once), 2);
        assert_eq!([Profile::Paper, workers].map(|profile| level(Scheme::Raft, false, profile)), [3, 4]);
    }

    #[test]
    fn a_plan_is_read_back_as_written() {
        let plan = plan(10);
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
        assert_eq!((plan.workers(), majority_of(plan.members.len())), (9, 6));
    }
}
