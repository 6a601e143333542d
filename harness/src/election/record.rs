//! The results folder of repeated elections: a row for each trial as it ends; histograms, summary and manifest at the end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::summary::Summary;
use super::{Fault, Logs};
use crate::clock;
use crate::machine::{Machine, Program};
use crate::plan::Plan;
use crate::record::{LAYOUT, Outcome, make_folder, pretty, write_row, write_whole};
use crate::stats::histogram;

/// A row of elections.csv. docs/RESULTS.md explains the columns; times are in ns since the stroke unless their name says
/// otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "docs/RESULTS.md explains the columns")]
pub struct ElectionRow {
    pub backend: String,
    pub nodes: u64,
    pub trial: u64,
    pub seed: u64,
    pub window_lo_ns: u64,
    pub window_hi_ns: u64,
    pub heartbeat_ns: u64,
    pub fast_failover: bool,
    pub equal_logs: bool,
    pub fault: String,
    pub killed_node: u64,
    pub new_node: u64,
    pub struck_at_ns: u64,
    pub heartbeat_age_ns: Option<u64>,
    pub floor_ns: u64,
    pub eligible: u64,
    pub suspected_ns: Option<u64>,
    pub elected_ns: u64,
    pub agreed_ns: u64,
    pub terms: u64,
    pub suspicions: u64,
    pub false_suspicions: u64,
    pub whole_ns: u64,
}

impl ElectionRow {
    /// Names of the columns, in order.
    pub const COLUMNS: [&str; 23] = [
        "backend",
        "nodes",
        "trial",
        "seed",
        "window_lo_ns",
        "window_hi_ns",
        "heartbeat_ns",
        "fast_failover",
        "equal_logs",
        "fault",
        "killed_node",
        "new_node",
        "struck_at_ns",
        "heartbeat_age_ns",
        "floor_ns",
        "eligible",
        "suspected_ns",
        "elected_ns",
        "agreed_ns",
        "terms",
        "suspicions",
        "false_suspicions",
        "whole_ns",
    ];
}

/// Contents of manifest.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "docs/RESULTS.md explains the fields")]
pub struct ElectionManifest {
    pub kind: String,
    pub layout: u32,
    pub outcome: Outcome,
    pub message: String,
    pub exit_code: Option<u8>,
    pub command: String,
    pub repeat: String,
    pub seed: u64,
    pub started_utc: String,
    pub started_ns: u64,
    pub ended_utc: Option<String>,
    pub ended_ns: Option<u64>,
    pub trials: u64,
    pub trials_finished: u64,
    pub fault: Fault,
    pub logs: Logs,
    pub detection_lo_ns: u64,
    pub detection_hi_ns: u64,
    pub program: Program,
    pub machine: Machine,
    pub plan: Plan,
}

impl ElectionManifest {
    /// The manifest of elections that begin now.
    pub(super) fn starting(setup: &super::Setup) -> Self {
        let plan = &setup.plan;
        let (detection_lo_ns, detection_hi_ns) = plan.backend.detection_ns();
        Self {
            kind: "election".into(),
            layout: LAYOUT,
            outcome: Outcome::Running,
            message: "the elections have not ended, or their controller was killed".into(),
            exit_code: None,
            command: setup.command.clone(),
            repeat: setup.repeat.clone(),
            seed: plan.job.seed,
            started_utc: clock::utc_rfc3339(clock::utc_now()),
            started_ns: clock::monotonic_ns(),
            ended_utc: None,
            ended_ns: None,
            trials: setup.trials,
            trials_finished: 0,
            fault: setup.fault,
            logs: setup.logs,
            detection_lo_ns,
            detection_hi_ns,
            program: Program::this(),
            machine: Machine::this(),
            plan: plan.clone(),
        }
    }
}

/// Writes the folder.
#[derive(Debug)]
pub(super) struct Recorder {
    dir: PathBuf,
    rows: csv::Writer<File>,
    started: SystemTime,
}

impl Recorder {
    /// Makes the folder below `out`, with its manifest.
    pub(super) fn create(
        out: &Path,
        started: OffsetDateTime,
        manifest: &ElectionManifest,
    ) -> anyhow::Result<Self> {
        let dir = make_folder(out, started, &manifest.machine.host)?;
        std::fs::create_dir(dir.join("nodes")).context("cannot make the folder of the nodes' logs")?;
        let file = File::create_new(dir.join("elections.csv")).context("cannot write elections.csv")?;
        let mut rows = csv::WriterBuilder::new().has_headers(false).from_writer(file);
        write_row(&mut rows, ElectionRow::COLUMNS)?;
        let recorder = Self { dir, rows, started: started.into() };
        recorder.manifest(manifest)?;
        Ok(recorder)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn node_log(&self, node: replication::NodeId) -> PathBuf {
        self.dir.join("nodes").join(format!("{node}.log"))
    }

    /// Adds the row of a trial; it is on disk then.
    pub(super) fn row(&mut self, row: &ElectionRow) -> anyhow::Result<()> {
        write_row(&mut self.rows, row)
    }

    fn manifest(&self, manifest: &ElectionManifest) -> anyhow::Result<()> {
        write_whole(&self.dir, "manifest.json", &pretty(manifest)?)
    }

    /// Writes what follows from all rows.
    pub(super) fn finish(
        &self,
        manifest: &ElectionManifest,
        summary: &Summary,
        rows: &[ElectionRow],
    ) -> anyhow::Result<()> {
        let stages: [(&str, Vec<u64>); 4] = [
            ("suspected", rows.iter().filter_map(|row| row.suspected_ns).collect()),
            ("elected", rows.iter().map(|row| row.elected_ns).collect()),
            ("agreed", rows.iter().map(|row| row.agreed_ns).collect()),
            ("floor", rows.iter().map(|row| row.floor_ns).collect()),
        ];
        let lasted =
            Duration::from_nanos(manifest.ended_ns.unwrap_or(manifest.started_ns) - manifest.started_ns);
        let tags = "the stage, as a column of elections.csv";
        histogram::write(&self.dir, "elections", tags, &stages, (self.started, lasted))?;
        write_whole(&self.dir, "summary.json", &pretty(summary)?)?;
        self.manifest(manifest)
    }
}
