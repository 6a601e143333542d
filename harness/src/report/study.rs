//! What a report is about: recorded trials and elections, in memory. It knows no file and no drawing.

use std::collections::BTreeMap;

use super::rows::{CaptureTotal, Checkpoint, Election, Event, Failover, Node, Round, Traffic};

/// The settings of a trial, as factors by name: `backend`, `payload`, `workers`, ... Names are those of options, with `_`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell(pub BTreeMap<String, String>);

impl Cell {
    /// A factor's value; empty if it has none.
    #[must_use]
    pub fn get(&self, factor: &str) -> &str {
        self.0.get(factor).map_or("", String::as_str)
    }

    /// The store in words: backend, and how bytes travel where any do.
    #[must_use]
    pub fn store(&self) -> String {
        let (backend, payload) = (self.get("backend"), self.get("payload"));
        let replicates = !["none", "local"].contains(&backend);
        if replicates { [backend, payload].join(" ").trim().to_owned() } else { backend.to_owned() }
    }

    /// A factor's value as a number.
    #[must_use]
    pub fn number(&self, factor: &str) -> Option<f64> {
        self.get(factor).parse().ok()
    }
}

/// One trial: its settings and what was recorded of it.
#[derive(Debug, Clone, Default)]
pub struct Trial {
    /// Its number in the experiment, from 1.
    pub number: u64,
    /// Its settings.
    pub cell: Cell,
    /// How it ended; `completed` if every round is acknowledged.
    pub outcome: String,
    /// Whether its traffic counts can be trusted (nothing dropped, counts agree).
    pub valid: bool,
    /// Single figures by name, raw.
    pub figures: BTreeMap<String, String>,
    /// rounds.csv.
    pub rounds: Vec<Round>,
    /// checkpoints.csv.
    pub checkpoints: Vec<Checkpoint>,
    /// failovers.csv.
    pub failovers: Vec<Failover>,
    /// traffic.csv.
    pub traffic: Vec<Traffic>,
    /// capture_totals.csv.
    pub captures: Vec<CaptureTotal>,
    /// nodes.csv.
    pub nodes: Vec<Node>,
    /// events.csv; none if there is no such file, which is not the same as nothing having happened.
    pub events: Option<Vec<Event>>,
}

/// Bytes of both planes that left their senders, at IP level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaneBytes {
    /// On the learning port.
    pub learning: u64,
    /// On the replication port.
    pub replication: u64,
    /// Who counted: `capture`, `loopback`, `transport`.
    pub source: String,
}

impl Trial {
    /// A single figure.
    #[must_use]
    pub fn figure(&self, name: &str) -> Option<u64> {
        self.figures.get(name)?.parse().ok()
    }

    /// Whether it is of the key-value workload.
    #[must_use]
    pub fn is_dictionary(&self) -> bool {
        self.figures.contains_key("writes_per_s")
    }

    /// Whether it did all that it was asked to.
    #[must_use]
    pub fn completed(&self) -> bool {
        self.outcome == "completed"
    }

    /// Whether nothing was broken on purpose.
    #[must_use]
    pub fn faultless(&self) -> bool {
        self.cell.get("fault").is_empty()
    }

    /// Rounds that were finished, each counted once.
    #[must_use]
    pub fn rounds_finished(&self) -> u64 {
        let rounds: std::collections::BTreeSet<u64> = self.rounds.iter().map(|row| row.round).collect();
        rounds.len() as u64
    }

    /// Size of one global checkpoint's parameters.
    #[must_use]
    pub fn parameter_bytes(&self) -> Option<u64> {
        let of_rows = || {
            let global = self.checkpoints.iter().filter(|row| row.slot == "global");
            global.filter_map(|row| row.bytes).max()
        };
        self.figure("checkpoint_bytes").or_else(of_rows)
    }

    /// What left the nodes on both planes, whole trial; none if nobody counted.
    #[must_use]
    pub fn plane_bytes(&self) -> Option<PlaneBytes> {
        let egress: Vec<&CaptureTotal> =
            self.captures.iter().filter(|row| row.direction == "egress").collect();
        Some(PlaneBytes {
            source: egress.first()?.source.clone(),
            learning: egress.iter().map(|row| row.learning_bytes).sum(),
            replication: egress.iter().map(|row| row.replication_bytes).sum(),
        })
    }

    /// Whether its traffic is that of a whole job, and was counted well. What is no capture is kept: it is marked as such.
    #[must_use]
    pub fn tells_traffic(&self) -> bool {
        let captured = self.captures.iter().any(|row| row.source == "capture");
        self.completed() && !self.captures.is_empty() && (self.valid || !captured)
    }

    /// Fail-overs whose fault struck the aggregator.
    pub fn take_overs(&self) -> impl Iterator<Item = &Failover> {
        self.failovers.iter().filter(|row| row.struck_aggregator)
    }
}

/// Where figures come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The folder, as it was named.
    pub folder: String,
    /// The command that made it.
    pub command: String,
    /// When it began, UTC.
    pub started_utc: String,
    /// Version, revision and build of the program.
    pub program: String,
    /// Host, kernel, processor.
    pub machine: String,
    /// Where nodes ran and what they were told of their timers, in words.
    pub setting: String,
    /// Whether times mean little: a debug build.
    pub debug_build: bool,
}

/// Trials that were recorded together, and are drawn together.
#[derive(Debug, Clone, Default)]
pub struct Experiment {
    /// Its name, a part of file names.
    pub name: String,
    /// Where it comes from: one, or one for each single run.
    pub provenance: Vec<Provenance>,
    /// Its trials, ascending.
    pub trials: Vec<Trial>,
}

/// Elections that were recorded together.
#[derive(Debug, Clone, Default)]
pub struct Elections {
    /// Where they come from.
    pub provenance: Provenance,
    /// The rows.
    pub rows: Vec<Election>,
}

/// Everything that a report is about.
#[derive(Debug, Clone, Default)]
pub struct Study {
    /// In the order in which their folders were given.
    pub experiments: Vec<Experiment>,
    /// The same of the key-value workload.
    pub dictionaries: Vec<Experiment>,
    /// The same of folders of elections.
    pub elections: Vec<Elections>,
}
