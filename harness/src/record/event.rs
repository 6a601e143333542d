//! What the controller did and saw, for the same timeline as the nodes' events.

use replication::NodeId;
use serde::Serialize;

use super::Outcome;

/// An event of the controller, for the same timeline as the nodes'.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ControllerEvent {
    /// A node was started.
    NodeStarted {
        /// The node.
        target: NodeId,
        /// Which of its lives begins, from 1.
        life: u32,
    },
    /// Every node has its data and can be given work.
    AllReady {
        /// Since the first node was started.
        start_ns: u64,
    },
    /// A fault struck.
    FaultStruck {
        /// The fault, as written on the command line.
        fault: String,
        /// The node.
        target: NodeId,
    },
    /// What a fault did to a node is over.
    FaultHealed {
        /// The fault.
        fault: String,
        /// The node.
        target: NodeId,
    },
    /// A fault was due, but its nodes were dead or struck already.
    FaultMissed {
        /// The fault.
        fault: String,
    },
    /// A node was asked to leave.
    NodeLeaving {
        /// The node.
        target: NodeId,
    },
    /// A member was to leave, but it was dead or struck.
    MemberMissed {
        /// The change, as written on the command line.
        member: String,
    },
    /// A node is gone.
    NodeGone {
        /// The node.
        target: NodeId,
        /// Exit code or signal.
        how: String,
        /// Whether a fault or the end of the run was the reason.
        expected: bool,
    },
    /// A line of a node was not understood.
    UnreadableLine {
        /// The node.
        target: NodeId,
        /// Why.
        reason: String,
    },
    /// The run was over; nodes are told to finish.
    Ending {
        /// As in the manifest.
        outcome: Outcome,
    },
}
