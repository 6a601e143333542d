//! A row of trials.csv: what a trial was, how it ended, and its summary's figures.

use std::collections::BTreeMap;

use serde_json::Value;

use super::cells::{Options, Turn};
use crate::cli::{RunArgs, shell_line};
use crate::plan::Trial;
use crate::record::{FailoverSummary, FinalCheckpoint, Outcome, STAGES, Summary};

/// Columns that say what every trial was.
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
/// Columns that say how it ended.
const END: [&str; 5] = ["started_utc", "outcome", "valid", "reason", "repeat"];
/// Options that [`FACTORS`] has under another name or in another form.
const COVERED: [&str; 8] =
    ["backend", "payload", "profile", "nodes", "parameter-bytes", "link", "fault", "rounds"];
/// Fields of a summary that other columns have.
const ELSEWHERE: [&str; 10] =
    ["backend", "exit_code", "message", "nodes", "outcome", "payload", "repeat", "results", "rounds", "seed"];

/// Names of the columns, in order, for an experiment that varies the options `varied`.
#[must_use]
pub fn columns(varied: &[&str]) -> Vec<String> {
    let further = varied.iter().filter(|option| !COVERED.contains(option)).map(|option| column_of(option));
    let end = END.map(str::to_owned);
    FACTORS.map(str::to_owned).into_iter().chain(further).chain(end).chain(figures()).collect()
}

fn column_of(option: &str) -> String {
    option.replace('-', "_")
}

/// How a trial ended: with a summary, or without one because it could not be run.
#[derive(Debug)]
pub struct Ended {
    /// When it was begun, in UTC.
    pub started_utc: String,
    /// Its summary.
    pub summary: Result<Summary, String>,
}

impl Ended {
    /// The outcome in words.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.summary.as_ref().map_or(Outcome::Failed, |summary| summary.outcome)
    }

    /// Whether nothing speaks against the trial's figures.
    fn valid(&self) -> bool {
        self.summary.as_ref().is_ok_and(|summary| {
            summary.traffic.valid && summary.unexpected_deaths == 0 && summary.throttled_nodes == 0
        })
    }

    /// Why it did not complete.
    #[must_use]
    pub fn reason(&self) -> &str {
        match &self.summary {
            Ok(summary) if summary.outcome == Outcome::Completed => "",
            Ok(summary) => &summary.message,
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
    let Trial { plan, .. } = trial;
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
    if let Ok(summary) = &ended.summary {
        row.extend(flat(summary));
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
    flat(&full).into_keys().collect()
}

fn flat(summary: &Summary) -> BTreeMap<String, String> {
    let mut figures = BTreeMap::new();
    // A summary is plain data: it can always be written.
    if let Ok(Value::Object(fields)) = serde_json::to_value(summary) {
        for (name, value) in fields.iter().filter(|(name, _)| !ELSEWHERE.contains(&name.as_str())) {
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
        let columns = columns(&["backend", "nodes", "voter-grace"]);
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
    fn a_trial_that_could_not_be_run_is_a_row_with_its_reason() {
        let ended = Ended { started_utc: "now".into(), summary: Err("no network".into()) };
        assert_eq!((ended.outcome(), ended.valid(), ended.reason()), (Outcome::Failed, false, "no network"));
        let summary =
            Summary { outcome: Outcome::Completed, message: "all done".into(), ..Summary::default() };
        assert_eq!(Ended { started_utc: "now".into(), summary: Ok(summary) }.reason(), "");
    }
}
