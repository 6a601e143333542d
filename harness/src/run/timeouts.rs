//! How long the controller waits for nodes, by what they have to do. Pure.

use std::time::Duration;

use crate::plan::Plan;
use crate::record::Timers;
use crate::units::nanoseconds;

/// What a node may take to start and to end among many, when all share few cores.
const START_PER_NODE: Duration = Duration::from_secs(4);
const FINISH_PER_NODE: Duration = Duration::from_millis(250);
/// What all links together carry at least, when nodes settle.
const SLOWEST_BYTES_PER_MS: u64 = 5000;

/// How long the controller waits before it gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until every node is ready.
    pub start: Duration,
    /// Until something is heard of the job.
    pub stall: Duration,
    /// After the last round, until every living node has the final checkpoint.
    pub settle: Duration,
    /// For survivors to say what they have.
    pub survey: Duration,
    /// For nodes to end in order.
    pub finish: Duration,
}

impl Timeouts {
    /// For a plan: a round may use up its deadline twice (fit and evaluate), an election may fail a few times, many nodes
    /// take long to find each other, and large parameters long to reach all of them.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let deadline = Duration::from_millis(plan.job.round_deadline_ms);
        let window = Duration::from_nanos(plan.backend.detection_ns().1);
        let nodes = plan.members.len() as u32;
        let spread_ms = plan.job.parameter_bytes * u64::from(nodes) / SLOWEST_BYTES_PER_MS;
        Self {
            start: Duration::from_secs(120).max(START_PER_NODE * nodes),
            stall: deadline * 2 + window * 10 + Duration::from_secs(30),
            settle: window * 5 + Duration::from_secs(30) + Duration::from_millis(spread_ms),
            survey: Duration::from_secs(3),
            finish: Duration::from_secs(5).max(FINISH_PER_NODE * nodes),
        }
    }

    pub(crate) fn timers(&self, plan: &Plan) -> Timers {
        let (detection_lo_ns, detection_hi_ns) = plan.backend.detection_ns();
        Timers {
            detection_lo_ns,
            detection_hi_ns,
            heartbeat_ns: plan.backend.heartbeat_ns,
            round_deadline_ns: plan.job.round_deadline_ms.saturating_mul(1_000_000),
            start_timeout_ns: nanoseconds(self.start),
            stall_timeout_ns: nanoseconds(self.stall),
            settle_timeout_ns: nanoseconds(self.settle),
        }
    }
}
