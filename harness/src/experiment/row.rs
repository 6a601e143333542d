//! A row of trials.csv: what a trial was, how it ended, and its summary's figures.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::cells::{Options, Turn};
use crate::cli::{RunArgs, WorkloadArg, shell_line};
use crate::kv;
use crate::kv::plan::KvPlan;
use crate::kv::record::Checks;
use crate::plan::{Durability, Trial};
use crate::record::{FailoverSummary, FinalCheckpoint, Outcome, STAGES, Summary};

/// Columns that say what every trial of the federated workload was.
const FACTORS: [&str; 12] = [
    "trial",
    "backend",
    "payload",
    "profile",
    "nodes",
    "workers",
    "parameter_bytes",
    "link",
    "fault",
    "rounds_planned",
    "repetition",
    "seed",
];
/// Columns that say what every trial of the key-value workload was.
const KV_FACTORS: [&str; 12] = [
    "trial",
    "backend",
    "payload",
    "durability",
    "nodes",
    "clients",
    "entries",
    "value_bytes",
    "read_ratio",
    "rate",
    "repetition",
    "seed",
];
/// Columns that say how it ended.
const END: [&str; 5] = ["started_utc", "outcome", "valid", "reason", "repeat"];
/// Options that [`KV_FACTORS`] has, possibly under another name or in another form.
const KV_COVERED: [&str; 9] =
    ["backend", "peer", "payload", "durability", "nodes", "clients", "entries", "value-size", "read-ratio"];
/// Options that [`FACTORS`] has under another name or in another form.
const COVERED: [&str; 8] =
    ["backend", "payload", "profile", "nodes", "parameter-bytes", "link", "fault", "rounds"];
/// Fields of a summary that other columns have.
const ELSEWHERE: [&str; 10] =
    ["backend", "exit_code", "message", "nodes", "outcome", "payload", "repeat", "results", "rounds", "seed"];

/// Fields of a key-value run's summary that other columns have.
const KV_ELSEWHERE: [&str; 14] = [
    "backend",
    "clients",
    "entries",
    "exit_code",
    "message",
    "nodes",
    "outcome",
    "payload",
    "repeat",
    "results",
    "seed",
    "valid",
    "value_bytes",
    "workload",
];

/// Names of the columns, in order, for an experiment with this workload that varies the options `varied`.
#[must_use]
pub fn columns(workload: WorkloadArg, varied: &[&str]) -> Vec<String> {
    let (factors, covered, figures) = match workload {
        WorkloadArg::Federated => (FACTORS, &COVERED[..], figures()),
        WorkloadArg::Kv | WorkloadArg::Leaderboard => (KV_FACTORS, &KV_COVERED[..], kv_figures()),
    };
    let column_of = |option: &&str| column_of(option);
    let further: Vec<String> =
        varied.iter().filter(|option| !covered.contains(option)).map(column_of).collect();
    let further = further.into_iter().filter(|column| !factors.contains(&&**column));
    let end = END.map(str::to_owned);
    factors.map(str::to_owned).into_iter().chain(further).chain(end).chain(figures).collect()
}

fn column_of(option: &str) -> String {
    option.replace('-', "_")
}

/// The summary of a trial.
#[derive(Debug)]
pub enum Told {
    /// Of the federated workload.
    Federated(Box<Summary>),
    /// Of the key-value workload.
    Kv(Box<kv::record::Summary>),
}

impl Told {
    /// How the trial ended, and that in a sentence.
    fn outcome(&self) -> (Outcome, &str) {
        match self {
            Self::Federated(summary) => (summary.outcome, &summary.message),
            Self::Kv(summary) => (summary.outcome, &summary.message),
        }
    }

    /// Whether nothing speaks against its figures.
    fn valid(&self) -> bool {
        match self {
            Self::Federated(summary) => {
                summary.traffic.valid && summary.unexpected_deaths == 0 && summary.throttled_nodes == 0
            }
            Self::Kv(summary) => summary.valid,
        }
    }

    fn figures(&self) -> BTreeMap<String, String> {
        match self {
            Self::Federated(summary) => flat(summary, &ELSEWHERE),
            Self::Kv(summary) => flat(summary, &KV_ELSEWHERE),
        }
    }
}

/// How a trial ended: with a summary, or without one because it could not be run.
#[derive(Debug)]
pub struct Ended {
    /// When it was begun, in UTC.
    pub started_utc: String,
    /// Its summary.
    pub summary: Result<Told, String>,
}

impl Ended {
    /// The outcome in words.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.summary.as_ref().map_or(Outcome::Failed, |summary| summary.outcome().0)
    }

    /// Whether nothing speaks against the trial's figures.
    fn valid(&self) -> bool {
        self.summary.as_ref().is_ok_and(Told::valid)
    }

    /// Why it did not complete.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self.summary.as_ref().map(Told::outcome) {
            Ok((Outcome::Completed, _)) => "",
            Ok((_, message)) => message,
            Err(reason) => reason,
        }
    }
}

/// The values of [`columns`] for one trial.
#[must_use]
pub fn values(
    columns: &[String],
    turn: &Turn,
    cell: &Options,
    args: &RunArgs,
    trial: &Trial,
    ended: &Ended,
) -> Vec<String> {
    let Trial { plan, durability, .. } = trial;
    let mut row: BTreeMap<String, String> =
        cell.iter().map(|(option, level)| (column_of(option), level.to_string())).collect();
    let faults: Vec<String> = trial.faults.iter().map(ToString::to_string).collect();
    let mut set = |column: &str, value: String| row.insert(column.to_owned(), value);
    set("trial", turn.trial.to_string());
    set("backend", plan.backend.backend().to_string());
    set("payload", plan.backend.payload.to_string());
    set("profile", plain(&serde_json::json!(plan.job.profile)));
    set("nodes", plan.founders.to_string());
    set("workers", plan.workers().to_string());
    set("parameter_bytes", plan.job.parameter_bytes.to_string());
    set("link", args.link.clone().unwrap_or_default());
    set("fault", faults.join("; "));
    set("rounds_planned", plan.job.rounds.to_string());
    set("repetition", turn.repetition.to_string());
    set("seed", turn.seed.to_string());
    set("started_utc", ended.started_utc.clone());
    set("outcome", plain(&serde_json::json!(ended.outcome())));
    set("valid", ended.valid().to_string());
    set("reason", ended.reason().to_owned());
    set("repeat", shell_line(&args.repeat_command(turn.seed)));
    if let Some(KvPlan { load, peer, .. }) = &plan.kv {
        if let Some(peer) = peer {
            set("backend", peer.name().into());
            set("payload", String::new());
        }
        set("durability", if *durability == Durability::Memory { "memory" } else { "disk" }.into());
        set("clients", load.clients.to_string());
        set("entries", load.entries.to_string());
        set("value_bytes", load.value_bytes.to_string());
        set("read_ratio", load.read_ratio.to_string());
        set("rate", load.rate.map(|rate| rate.to_string()).unwrap_or_default());
    }
    if let Ok(summary) = &ended.summary {
        row.extend(summary.figures());
    }
    columns.iter().map(|column| row.remove(column).unwrap_or_default()).collect()
}

/// Names of the figures that every summary has, filled in or not: its fields, those of nested ones joined by `_`.
fn figures() -> Vec<String> {
    let checkpoint = FinalCheckpoint {
        round: 0,
        phase: String::new(),
        epoch_counter: 0,
        epoch_node: 0,
        digest: String::new(),
        holders: Vec::new(),
    };
    let median_ns = STAGES.iter().map(|stage| ((*stage).to_owned(), 0)).collect();
    let failovers = FailoverSummary { median_ns, ..FailoverSummary::default() };
    let full = Summary { checkpoint: Some(checkpoint), failovers, ..Summary::default() };
    flat(&full, &ELSEWHERE).into_keys().collect()
}

fn kv_figures() -> Vec<String> {
    let full = kv::record::Summary { checks: Some(Checks::default()), ..Default::default() };
    flat(&full, &KV_ELSEWHERE).into_keys().collect()
}

fn flat(summary: &impl Serialize, elsewhere: &[&str]) -> BTreeMap<String, String> {
    let mut figures = BTreeMap::new();
    // A summary is plain data: it can always be written.
    if let Ok(Value::Object(fields)) = serde_json::to_value(summary) {
        for (name, value) in fields.iter().filter(|(name, _)| !elsewhere.contains(&name.as_str())) {
            flatten(name, value, &mut figures);
        }
    }
    figures
}

fn flatten(name: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                flatten(&format!("{name}_{field}"), value, into);
            }
        }
        value => {
            into.insert(name.to_owned(), plain(value));
        }
    }
}

/// A value as CSV has it: nothing for null, a list's values separated by spaces.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(" "),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_fixed_whatever_a_summary_has() {
        let columns = columns(WorkloadArg::Federated, &["backend", "nodes", "voter-grace"]);
        assert_eq!(columns[..13].join(","), format!("{},voter_grace", FACTORS.join(",")));
        for name in [
            "put_ns_median",
            "failovers_count",
            "failovers_median_ns_agreed",
            "traffic_valid",
            "checkpoint_holders",
        ] {
            assert!(columns.iter().any(|column| column == name), "{name} in {columns:?}");
        }
        let mut names = columns.clone();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), columns.len(), "{columns:?}");
    }

    #[test]
    fn a_key_value_experiment_has_columns_of_its_own() {
        let columns = columns(WorkloadArg::Kv, &["keys", "peer", "rate", "value-size"]);
        assert_eq!(columns[..13].join(","), format!("{},keys", KV_FACTORS.join(",")));
        for name in ["writes_per_s", "write_latency_p99_ns", "checks_linear", "server"] {
            assert_eq!(columns.iter().filter(|column| *column == name).count(), 1, "{name} in {columns:?}");
        }
    }

    #[test]
    fn a_trial_that_could_not_be_run_is_a_row_with_its_reason() {
        let ended = Ended { started_utc: "now".into(), summary: Err("no network".into()) };
        assert_eq!((ended.outcome(), ended.valid(), ended.reason()), (Outcome::Failed, false, "no network"));
        let summary =
            Summary { outcome: Outcome::Completed, message: "all done".into(), ..Summary::default() };
        let summary = Ok(Told::Federated(Box::new(summary)));
        assert_eq!(Ended { started_utc: "now".into(), summary }.reason(), "");
    }
}
