//! What controller and node say to each other over the node's stdin and stdout: JSON lines, versioned.
//!
//! The controller greets nobody: a node starts by saying [`FromNode::Hello`] with its version; only if that is
//! [`VERSION`] does the controller answer with [`ToNode::Start`]. [`codec`] reads and writes the lines. Neither knows
//! processes, placements or results.

pub mod codec;
pub mod node_end;

pub use replication::Held;
use replication::lifeline::LifelineCount;
use replication::suitability::Resources;
use replication::transport::Traffic;
use replication::{Epoch, NodeId, StoreEvent};
use serde::{Deserialize, Serialize};
use workloads::federated;

use crate::board::Board;
use crate::capture::Interval;
use crate::identity::Identity;
use crate::meter;
use crate::plan::Plan;

/// Version of this protocol. Both ends come from the same binary, except on boards that hold an older copy.
pub const VERSION: u32 = 2;

/// Controller to node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToNode {
    /// Begin.
    Start(Box<Start>),
    /// Say how you are.
    Status {
        /// Comes back in the answer.
        request_id: u64,
    },
    /// Say what time it is.
    ClockProbe {
        /// Comes back in the answer.
        request_id: u64,
    },
    /// From now on disturb what is sent like this; replaces what was said before.
    Impair(Impair),
    /// These nodes are there, this one included; replaces what was said before.
    Peers {
        /// In ascending order.
        nodes: Vec<NodeId>,
        /// Whose request for one more node this answers.
        asked_by: Option<NodeId>,
    },
    /// Write a checkpoint of a few bytes, as aggregator.
    Put {
        /// Its round, beyond those that were written before.
        round: u64,
    },
    /// For what starts nodes on another host: send the node a signal.
    Signal {
        /// Which.
        signal: Signal,
    },
    /// Leave the cluster, and end.
    Leave,
    /// End in order.
    Finish,
}

/// What is done to a node's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Stop,
    /// SIGCONT.
    Continue,
}

/// What faults do to what a node sends, on both planes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Impair {
    /// Shares that are lost; nodes that are not named lose nothing.
    pub losses: Vec<LinkLoss>,
    /// Everything leaves so much later.
    pub delay_ns: u64,
    /// Share of frames in which a bit flips, from 0 to 1.
    #[serde(default)]
    pub corrupt: f64,
}

/// Datagrams to a node that are lost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LinkLoss {
    /// The node.
    pub to: NodeId,
    /// Their share, from 0 to 1.
    pub share: f64,
}

/// What a node is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// [`VERSION`] of the controller.
    pub version: u32,
    /// Which node it is.
    pub node: NodeId,
    /// The run.
    pub plan: Plan,
    /// Its credentials.
    pub identity: Identity,
    /// Whether it keeps its store only and takes no part in the job.
    #[serde(default)]
    pub store_only: bool,
    /// Nodes that are there, this one included.
    pub peers: Vec<NodeId>,
    /// How it comes into the cluster.
    pub entry: Entry,
}

/// How a node comes into the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// It founds the cluster with others.
    Founds,
    /// It joins the cluster that runs.
    Joins,
    /// It joins in the place of a node that lost its memory.
    Replaces {
        /// That node.
        node: NodeId,
        /// The node whose data it has.
        device: NodeId,
    },
}

impl Entry {
    /// The node whose data `node` has.
    #[must_use]
    pub fn device(self, node: NodeId) -> NodeId {
        match self {
            Self::Founds | Self::Joins => node,
            Self::Replaces { device, .. } => device,
        }
    }
}

/// Node to controller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromNode {
    /// The first line.
    Hello {
        /// [`VERSION`] of the node.
        version: u32,
        /// Its process id, as it sees it.
        pid: u32,
    },
    /// Something happened.
    Event {
        /// When, on the node's CLOCK_MONOTONIC.
        at_ns: u64,
        /// What.
        event: NodeEvent,
    },
    /// The answer to [`ToNode::Status`]; an aggregator also says so by itself, as request 0, before a round's end.
    Status(Box<Status>),
    /// The answer to [`ToNode::ClockProbe`].
    Clock {
        /// That of the probe.
        request_id: u64,
        /// The node's CLOCK_MONOTONIC.
        at_ns: u64,
    },
    /// What its capture counted in a second.
    Capture(Box<Captured>),
    /// What started the node on another host has sent it a signal; after a kill this is the last line.
    Signalled {
        /// Which.
        signal: Signal,
        /// When, on that host's CLOCK_MONOTONIC.
        at_ns: u64,
    },
    /// The board of a node on another host, when the node starts, now and then, and when it has ended.
    Board {
        /// As it is now.
        board: Box<Board>,
        /// Whether it has throttled since the node was started.
        throttled: bool,
    },
}

/// Packets of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// The interface they were counted on.
    pub interface: String,
    /// Whether that is one interface for all nodes, with packets of up to 64 KB.
    pub loopback: bool,
    /// The counts.
    pub interval: Interval,
}

/// How a node is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// That of the request, from 1; 0: nobody asked.
    pub request_id: u64,
    /// The newest acknowledged global checkpoint whose bytes this node can serve.
    pub latest: Option<Held>,
    /// The aggregator, as far as this node knows.
    pub epoch: Option<Epoch>,
    /// Memory and processor time.
    pub usage: meter::Usage,
    /// Counted on the learning plane.
    pub learning: Traffic,
    /// Counted on the replication plane.
    pub replication: Traffic,
    /// Counted on lifelines.
    #[serde(default)]
    pub lifeline: LifelineCount,
}

/// What a node's transports counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// On the learning plane.
    pub learning: Traffic,
    /// On the replication plane.
    pub replication: Traffic,
    /// On lifelines.
    #[serde(default)]
    pub lifeline: LifelineCount,
}

/// Something that happened, by who says so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum NodeEvent {
    /// The federated job.
    Federated(federated::Event),
    /// The store.
    Store(StoreEvent),
    /// The node itself.
    Node(Lifecycle),
}

/// What happens to a node itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Lifecycle {
    /// Both planes are bound and served.
    Listening {
        /// Address of the learning plane.
        learning: String,
        /// Address of the replication plane.
        replication: String,
    },
    /// What the node has to offer, as its store was told.
    Resources {
        /// Measured, except for what the plan says.
        resources: Resources,
        /// What the store makes of it, 0 to 1000.
        score: u32,
    },
    /// The node's part of the job began: as aggregator it is about to send its first instruction, as worker it has been
    /// given its first one.
    JobBegun {
        /// What was counted until then.
        counted: Box<Counted>,
    },
    /// Peers to which a node that keeps its store only has connections on the replication plane.
    Connected {
        /// How many.
        peers: u64,
    },
    /// An order to write was carried out.
    Written {
        /// The round it named.
        round: u64,
        /// Why not, if it failed.
        failure: Option<String>,
    },
    /// A client asks for one more node; the answer is [`ToNode::Peers`].
    NodeWanted,
    /// The node has left the cluster, and ends.
    Left,
    /// The node was not let go, and stays.
    LeaveFailed {
        /// Why.
        reason: String,
    },
    /// The node cannot go on, and ends.
    Failed {
        /// Why; says nothing secret.
        reason: String,
    },
    /// Events were dropped, because the controller did not read fast enough.
    EventsLost {
        /// How many.
        count: u64,
    },
    /// The node ends in order.
    Finished,
}
