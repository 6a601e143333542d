//! Summary tables: recovery, traffic, safety and elections, each a row per series. Pure: rows in, words out.

use super::cell::{Series, rank};
use super::figures::{CONFIDENCE, Largest, largest};
use super::keyvalue;
use super::reference::{PARAMETER_BYTES, Reference};
use super::rows::Failover;
use super::safety::Safety;
use super::study::{Elections, Experiment, Study, Trial};
use super::table::Table;
use crate::stats::{estimate, median, quantile};
use crate::units::{show_bytes, show_ns};

/// Workers of the reference that tables show.
const REFERENCE_WORKERS: u64 = 10;
/// The same as a table's title says it.
const REFERENCE_AT: &str = ", 10 workers";

/// The tables of everything, in order.
#[must_use]
pub(super) fn tables(study: &Study, reference: &Reference) -> Vec<Table> {
    let mut tables = Vec::new();
    for experiment in &study.experiments {
        tables.extend(recovery(experiment, reference));
        tables.extend(traffic(experiment, reference));
        tables.extend(safety(experiment));
    }
    tables.extend(study.dictionaries.iter().map(keyvalue::table));
    tables.extend(elections(&study.elections));
    tables
}

fn head(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A median with its interval, or a dash.
fn interval(values: &[u64]) -> String {
    estimate(values, CONFIDENCE).map_or("-".into(), |found| {
        let (unit, name) = if found.median < 1_000_000_000 { (1e6, "ms") } else { (1e9, "s") };
        let show = |ns: u64| {
            if unit < 1e9 { (ns / 1_000_000).to_string() } else { format!("{:.2}", ns as f64 / unit) }
        };
        format!("{} {name} ({}–{})", show(found.median), show(found.lo), show(found.hi))
    })
}

/// Each facet of `trials` where differences are largest, and what they all have in common in words: `, 10 workers` or nothing.
fn places<'a>(trials: &[&'a Trial]) -> (String, Vec<Largest<'a>>) {
    let mut found = largest(trials);
    let shared = found.first().map(|first| first.at.clone()).unwrap_or_default();
    if shared.is_empty() || found.iter().any(|facet| facet.at != shared) {
        for facet in &mut found {
            let words = [facet.facet.as_str(), facet.at.as_str()];
            facet.facet = words.into_iter().filter(|words| !words.is_empty()).collect::<Vec<_>>().join(", ");
        }
        return (String::new(), found);
    }
    (format!(", {shared}"), found)
}

fn recovery(experiment: &Experiment, reference: &Reference) -> Option<Table> {
    let trials: Vec<&Trial> =
        experiment.trials.iter().filter(|trial| trial.take_overs().next().is_some()).collect();
    let (at, facets) = places(&trials);
    let mut rows = Vec::new();
    for (facet, series) in
        facets.iter().flat_map(|facet| facet.series.iter().map(move |series| (&facet.facet, series)))
    {
        let fail_overs = || series.trials.iter().flat_map(|trial| trial.take_overs());
        let stage =
            |pick: fn(&Failover) -> Option<u64>| interval(&fail_overs().filter_map(pick).collect::<Vec<_>>());
        rows.push(vec![
            if facet.is_empty() { series.label.clone() } else { format!("{}, {facet}", series.label) },
            fail_overs().count().to_string(),
            stage(|row| row.agreed_ns),
            stage(|row| row.serving_ns),
            stage(|row| row.resumed_ns),
        ]);
    }
    let mut note = "Time since the fault: median (95 % bootstrap interval).".to_owned();
    if let Some(runs) = reference.recoveries.get(&REFERENCE_WORKERS).filter(|_| at == REFERENCE_AT) {
        let stage = |stage: usize| interval(&runs.iter().filter_map(|run| run[stage]).collect::<Vec<_>>());
        rows.push(vec![
            "prototype, re-measured".into(),
            runs.len().to_string(),
            stage(0),
            stage(1),
            stage(2),
        ]);
        note += " The prototype's last column is the end of its next round.";
    }
    (!rows.is_empty()).then(|| Table {
        title: format!("Recovery from the aggregator's death ({}{at})", experiment.name),
        head: head(&["backend", "n", "survivors agree", "first worker accepted", "first checkpoint"]),
        rows,
        note,
    })
}

fn traffic(experiment: &Experiment, reference: &Reference) -> Option<Table> {
    let trials: Vec<&Trial> = experiment.trials.iter().filter(|trial| trial.tells_traffic()).collect();
    let (at, facets) = places(&trials);
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (column, facet) in facets.iter().enumerate() {
        for series in &facet.series {
            let place = rows.iter().position(|row| row[0] == series.label).unwrap_or_else(|| {
                rows.push(
                    [series.label.clone()].into_iter().chain(facets.iter().map(|_| "-".into())).collect(),
                );
                rows.len() - 1
            });
            rows[place][column + 1] = traffic_words(&series.trials);
        }
    }
    // The reference is of one round; its place is beside our own profile of that name, if there is one.
    let place = facets.iter().position(|facet| facet.facet.contains("profile prototype")).unwrap_or(0);
    if at == REFERENCE_AT
        && facets.get(place).is_some_and(|facet| facet.series.iter().all(is_like_the_reference))
    {
        for version in &reference.versions {
            let runs = version.bytes.get(&REFERENCE_WORKERS).map(Vec::as_slice).unwrap_or_default();
            let mut row = vec![String::new(); facets.len() + 1];
            row[0] = format!("{}, re-measured", version.label);
            row[place + 1] = bytes_words(runs, 1);
            rows.push(row);
        }
    }
    let names =
        facets.iter().map(|facet| if facet.facet.is_empty() { "added a round" } else { &facet.facet });
    let faults =
        if trials.iter().all(|trial| trial.faultless()) { "" } else { "; what the faults cost is in it" };
    (!rows.is_empty()).then(|| Table {
        title: format!("Traffic of replication per round ({}{at})", experiment.name),
        head: ["backend"].into_iter().chain(names).map(str::to_owned).collect(),
        rows,
        note: format!(
            "Bytes on the replication port, and how many times the learning traffic that is; medians{faults}. {}.",
            source_words(&trials)
        ),
    })
}

/// Whether the trials are of one round of the paper's model.
fn is_like_the_reference(series: &Series<'_>) -> bool {
    series.trials.iter().all(|trial| {
        trial.cell.get("rounds_planned") == "1" && trial.parameter_bytes() == Some(PARAMETER_BYTES)
    })
}

/// How bytes were counted.
fn source_words(trials: &[&Trial]) -> &'static str {
    let sources: std::collections::BTreeSet<String> =
        trials.iter().filter_map(|trial| trial.plane_bytes()).map(|bytes| bytes.source).collect();
    match sources.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["capture"] => "Captured packets at IP level",
        ["transport"] => "By the transports' own counts: no packets were captured",
        ["loopback"] => "Captured on loopback: no figures of a network",
        _ => "Counted in different ways by different trials",
    }
}

fn traffic_words(trials: &[&Trial]) -> String {
    let rounds = trials.first().map_or(1, |trial| trial.rounds_finished().max(1));
    let bytes: Vec<(u64, u64)> = trials
        .iter()
        .filter_map(|trial| trial.plane_bytes().map(|bytes| (bytes.learning, bytes.replication)))
        .collect();
    bytes_words(&bytes, rounds)
}

fn bytes_words(bytes: &[(u64, u64)], rounds: u64) -> String {
    let learning = median(&bytes.iter().map(|bytes| bytes.0).collect::<Vec<_>>());
    let replication = median(&bytes.iter().map(|bytes| bytes.1).collect::<Vec<_>>());
    match learning.zip(replication) {
        None => "-".into(),
        Some((learning, replication)) => {
            let factor = replication as f64 / learning.max(1) as f64;
            format!("{} ({factor:.2}×)", show_bytes(replication / rounds))
        }
    }
}

fn safety(experiment: &Experiment) -> Option<Table> {
    let trials: Vec<&Trial> = experiment.trials.iter().collect();
    let mut backends: Vec<(String, String)> = trials
        .iter()
        .map(|trial| (trial.cell.get("backend").to_owned(), trial.cell.get("payload").to_owned()))
        .collect();
    backends.sort_by_key(|(backend, payload)| (rank(backend), payload != "inline", payload.clone()));
    backends.dedup();
    let rows = backends.iter().map(|(backend, payload)| {
        let own =
            |trial: &&&Trial| trial.cell.get("backend") == backend && trial.cell.get("payload") == payload;
        let own: Vec<&Trial> = trials.iter().filter(own).copied().collect();
        let safety = Safety::of(&own);
        let completed = own.iter().filter(|trial| trial.completed()).count();
        let count = |score: super::safety::Score| score.words(|sum| sum.to_string());
        let label = own.first().map(|trial| trial.cell.store());
        vec![
            label.unwrap_or_default(),
            format!("{completed} of {}", safety.trials),
            safety.acknowledged.to_string(),
            count(safety.lost),
            count(safety.superseded),
            count(safety.trained_twice),
            safety.two_aggregators_ns.words(|ns| format!("{:.2} s", ns as f64 / 1e9)),
        ]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    (!rows.is_empty()).then(|| Table {
        title: format!("Safety ({})", experiment.name),
        head: head(&["backend", "trials completed", "acknowledged", "lost", "superseded", "trained twice", "two aggregators"]),
        rows,
        note: "Acknowledged: global checkpoints (checkpoints.csv). Lost: newer than what any node that ended in order had (nodes.csv). \
               Superseded: a later epoch had another value acknowledged in its place. Trained twice: rounds whose training two \
               epochs finished (rounds.csv). Two aggregators: from the later one's first sign to the older one's yielding (events.csv) \
               or last acknowledged write. Unknown: the rows do not tell."
            .into(),
    })
}

fn elections(folders: &[Elections]) -> Option<Table> {
    let mut rows = Vec::new();
    for (label, elections) in folders.iter().flat_map(super::figures::settings_of) {
        let values = |pick: fn(&super::rows::Election) -> Option<u64>| {
            elections.iter().filter_map(|row| pick(row)).collect::<Vec<u64>>()
        };
        let (agreed, floor) = (values(|row| row.agreed_ns), values(|row| row.floor_ns));
        let ratio = crate::stats::ratio(&agreed, &floor, CONFIDENCE);
        let false_suspicions: Vec<u64> = values(|row| row.false_suspicions);
        rows.push(vec![
            label,
            agreed.len().to_string(),
            interval(&agreed),
            quantile(&agreed, 0.99).map_or("-".into(), show_ns),
            interval(&floor),
            ratio.map_or("-".into(), |found| format!("{:.2} ({:.2}–{:.2})", found.ratio, found.lo, found.hi)),
            if false_suspicions.is_empty() {
                "unknown".into()
            } else {
                false_suspicions.iter().sum::<u64>().to_string()
            },
        ]);
    }
    (!rows.is_empty()).then(|| Table {
        title: "Elections".into(),
        head: head(&["setting", "n", "survivors agree", "99th percentile", "floor", "median by floor's", "false suspicions"]),
        rows,
        note: "Time since the aggregator was struck: median (95 % bootstrap interval). The floor is what the timers and the eligible \
               survivors of each election allow at best."
            .into(),
    })
}
