//! manifest.json: what was run, where, with what, and how it ended.

use std::path::PathBuf;

use replication::NodeId;
use serde::{Deserialize, Serialize};

use crate::board::Board;
use crate::clock;
use crate::machine::{Machine, Program};
use crate::place::HostRecord;
use crate::plan::{Plan, Trial};

/// Version of the layout of a results folder.
pub const LAYOUT: u32 = 1;

/// How a run ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It has not ended; or its controller was killed.
    #[default]
    Running,
    /// Every round is acknowledged, and every living node has the final checkpoint.
    Completed,
    /// It could not go on, or one of its faults could not be carried out.
    Failed,
    /// Too few nodes are alive for anything to be acknowledged.
    NoMajority,
    /// SIGINT.
    Interrupted,
    /// SIGTERM.
    Terminated,
}

/// Timers in force, all as nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timers {
    /// Earliest suspicion after the last contact with the aggregator, as the backend really sets it.
    pub detection_lo_ns: u64,
    /// Latest suspicion after the last contact.
    pub detection_hi_ns: u64,
    /// Interval of signs of life: heartbeats, or gossip.
    pub heartbeat_ns: u64,
    /// A round goes on without missing results after this.
    pub round_deadline_ns: u64,
    /// Every node is ready within this, or the run fails.
    pub start_timeout_ns: u64,
    /// Something is heard of the job within this, or the run fails.
    pub stall_timeout_ns: u64,
    /// After the last round every living node has the final checkpoint within this, or the run fails.
    pub settle_timeout_ns: u64,
}

/// The clock of a node against the controller's, by one probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockOffset {
    /// The node.
    pub node: replication::NodeId,
    /// Its CLOCK_MONOTONIC minus the controller's.
    pub offset_ns: i64,
    /// Half of the time the probe took: the true offset is within this of the one above.
    pub uncertainty_ns: u64,
}

/// Contents of manifest.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`LAYOUT`].
    pub layout: u32,
    /// How the run ended.
    pub outcome: Outcome,
    /// The same in a sentence.
    pub message: String,
    /// Exit code of the controller; none while it runs.
    pub exit_code: Option<u8>,
    /// The command line, as it was given.
    pub command: String,
    /// The command that repeats the trial, every option and the seed spelled out.
    pub repeat: String,
    /// The results folder of the run that this one continues.
    #[serde(default)]
    pub resumed_from: Option<PathBuf>,
    /// The seed every choice is derived from.
    pub seed: u64,
    /// Start in UTC, RFC 3339.
    pub started_utc: String,
    /// The same moment on the controller's CLOCK_MONOTONIC.
    pub started_ns: u64,
    /// End in UTC, RFC 3339; none while it runs.
    pub ended_utc: Option<String>,
    /// The same moment on the controller's CLOCK_MONOTONIC.
    pub ended_ns: Option<u64>,
    /// Timers in force.
    pub timers: Timers,
    /// Faults, as on the command line.
    pub faults: Vec<String>,
    /// Members that come and go, as on the command line.
    #[serde(default)]
    pub members: Vec<String>,
    /// Clocks of the nodes.
    pub clocks: Vec<ClockOffset>,
    /// This program.
    pub program: Program,
    /// The hosts that nodes ran on, if they are others than this machine.
    #[serde(default)]
    pub hosts: Vec<HostRecord>,
    /// This machine.
    pub machine: Machine,
    /// What every node was told.
    pub plan: Plan,
}

impl Manifest {
    /// Takes note of how the board of `node` is; says so, if it throttles and has not before.
    pub fn board(&mut self, node: NodeId, board: Board, throttled: bool) -> Option<String> {
        let host = self.hosts.iter_mut().find(|host| host.node == node)?;
        let news = (throttled && !host.throttled)
            .then(|| format!("{} (node {node}) throttles: its times mean little", host.name));
        host.throttled |= throttled;
        host.after = Some(board);
        news
    }

    /// The manifest of a trial that starts now.
    #[must_use]
    pub fn starting(trial: &Trial, timers: Timers, command: String, repeat: String) -> Self {
        Self {
            layout: LAYOUT,
            outcome: Outcome::Running,
            message: "the run has not ended, or its controller was killed".into(),
            exit_code: None,
            command,
            repeat,
            resumed_from: None,
            seed: trial.plan.job.seed,
            started_utc: clock::utc_rfc3339(clock::utc_now()),
            started_ns: clock::monotonic_ns(),
            ended_utc: None,
            ended_ns: None,
            timers,
            faults: trial.faults.iter().map(ToString::to_string).collect(),
            members: trial.changes.iter().map(ToString::to_string).collect(),
            clocks: Vec::new(),
            program: Program::this(),
            hosts: Vec::new(),
            machine: Machine::this(),
            plan: trial.plan.clone(),
        }
    }

    /// Notes that the run has ended now.
    pub fn ended(&mut self, outcome: Outcome, message: String, exit_code: u8) {
        self.outcome = outcome;
        self.message = message;
        self.exit_code = Some(exit_code);
        self.ended_utc = Some(clock::utc_rfc3339(clock::utc_now()));
        self.ended_ns = Some(clock::monotonic_ns());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::record) fn manifest() -> Manifest {
        let plan = crate::plan::tests::plan(3);
        let faults = vec!["kill@aggregator,round:2".parse().unwrap()];
        let durability = crate::plan::Durability::Memory;
        let (changes, out) = (Vec::new(), "out".into());
        let trial = Trial { plan, durability, faults, changes, shelf: None, out, json: false, quiet: false };
        Manifest::starting(&trial, Timers::default(), "harness run".into(), "harness run --seed 7".into())
    }

    #[test]
    fn a_manifest_is_read_back_as_written() {
        let mut manifest = manifest();
        assert_eq!((manifest.seed, manifest.faults[0].as_str()), (7, "kill@aggregator,round:2"));
        manifest.ended(Outcome::NoMajority, "5 of 10".into(), 3);
        let text = serde_json::to_string_pretty(&manifest).unwrap();
        assert!(text.contains("\"no_majority\""));
        assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest);
    }
}
