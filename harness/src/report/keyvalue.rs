//! Tables of key-value trials: throughput and latency, a row per cell; and beside another system, where one was measured. Pure.

use std::collections::BTreeMap;

use super::cell::varying;
use super::figures::CONFIDENCE;
use super::study::{Cell, Experiment, Trial};
use super::table::Table;
use crate::stats::{estimate, ratio};

/// Whoever others are compared with.
const PEER: &str = "etcd";
/// Columns of latency: name and figure.
const LATENCIES: [(&str, &str); 5] = [
    ("mean", "latency_mean_ns"),
    ("p50", "latency_p50_ns"),
    ("p99", "latency_p99_ns"),
    ("p99.9", "latency_p999_ns"),
    ("max", "latency_max_ns"),
];

/// The table of an experiment.
#[must_use]
pub(super) fn table(experiment: &Experiment) -> Table {
    let all: Vec<&Trial> = experiment.trials.iter().collect();
    let factors = varying(&all);
    let mut cells: BTreeMap<&Cell, Vec<&Trial>> = BTreeMap::new();
    for trial in &all {
        cells.entry(&trial.cell).or_default().push(trial);
    }
    let peer = cells.iter().find(|(cell, _)| cell.get("backend") == PEER).map(|(_, trials)| writes(trials));
    // Where nothing else varies, everything is compared with the one cell of the other system.
    let own = ["backend", "payload", "durability", "peer"];
    let peer = peer.filter(|_| factors.iter().all(|factor| own.contains(&factor.as_str())));
    let mut head: Vec<String> = factors.iter().map(|factor| name(factor)).collect();
    head.extend(["n", "writes/s", "requests/s"].map(str::to_owned));
    head.extend(LATENCIES.map(|(name, _)| name.to_owned()));
    head.extend(["clients' mean", "clients' sd", "weight, MB"].map(str::to_owned));
    // What clients saw of faults, where there were any.
    let is_struck =
        |trial: &&Trial| !trial.faultless() || trial.figure("disturbances").is_some_and(|struck| struck > 0);
    let struck = all.iter().any(is_struck);
    if struck {
        head.extend(["longest gap", "available"].map(str::to_owned));
    }
    head.extend(peer.as_ref().map(|_| format!("writes/s by {PEER}'s")));
    let rows = cells.iter().map(|(cell, trials)| {
        let mut row: Vec<String> = factors.iter().map(|factor| value(cell, factor)).collect();
        row.push(trials.iter().filter(|trial| trial.valid).count().to_string());
        row.push(counts(&writes(trials)));
        row.push(counts(&figure(trials, "requests_per_s")));
        row.extend(LATENCIES.map(|(_, name)| times(&figure(trials, name))));
        row.extend(["client_mean_ns", "client_sd_ns"].map(|name| times(&figure(trials, name))));
        row.push(megabytes(&figure(trials, "weight_bytes")));
        if struck {
            row.push(times(&figure(trials, "longest_gap_ns")));
            row.push(shares(&figure(trials, "availability_available_ppm")));
        }
        row.extend(peer.as_ref().map(|peer| {
            let found = ratio(&writes(trials), peer, CONFIDENCE);
            found.map_or("-".into(), |found| format!("{:.2} ({:.2}–{:.2})", found.ratio, found.lo, found.hi))
        }));
        row
    });
    let left_out = all.iter().filter(|trial| !trial.valid).count();
    let mut note = "Medians over the trials (95 % bootstrap interval); latencies of all operations from when they were due, medians \
        of the trials' percentiles, in ms. Clients' mean and sd: average and standard deviation of the clients' mean latencies, in \
        ms. Weight: all keys and values. n: trials whose every check passed."
        .to_owned();
    if struck {
        note +=
            " Longest gap: the longest time, in ms, in which operations were due and none was acknowledged.";
    }
    if left_out > 0 {
        note += &format!(" {left_out} trials whose check failed, or which did not complete, are left out.");
    }
    Table { title: format!("Key-value load ({})", experiment.name), head, rows: rows.collect(), note }
}

fn writes(trials: &[&Trial]) -> Vec<u64> {
    figure(trials, "writes_per_s")
}

fn figure(trials: &[&Trial], name: &str) -> Vec<u64> {
    trials.iter().filter(|trial| trial.valid).filter_map(|trial| trial.figure(name)).collect()
}

/// Servers are what is asked for; a cell has workers, which are one fewer.
fn name(factor: &str) -> String {
    if factor == "workers" { "servers".into() } else { factor.replace('_', " ") }
}

fn value(cell: &Cell, factor: &str) -> String {
    match cell.get(factor) {
        "" => "-".into(),
        workers if factor == "workers" => {
            workers.parse::<u64>().map_or_else(|_| workers.into(), |workers| (workers + 1).to_string())
        }
        value => value.into(),
    }
}

fn counts(values: &[u64]) -> String {
    let show = |found: crate::stats::Estimate| format!("{} ({}–{})", found.median, found.lo, found.hi);
    estimate(values, CONFIDENCE).map_or("-".into(), show)
}

fn times(values: &[u64]) -> String {
    estimate(values, CONFIDENCE).map_or("-".into(), |found| format!("{:.2}", found.median as f64 / 1e6))
}

/// Millionths as percent.
fn shares(values: &[u64]) -> String {
    estimate(values, CONFIDENCE).map_or("-".into(), |found| format!("{:.2} %", found.median as f64 / 1e4))
}

fn megabytes(values: &[u64]) -> String {
    estimate(values, CONFIDENCE).map_or("-".into(), |found| format!("{:.3}", found.median as f64 / 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(backend: &str, writes: u64, valid: bool) -> Trial {
        let figures = [
            ("writes_per_s", writes),
            ("requests_per_s", writes),
            ("latency_p50_ns", 1_500_000),
            ("client_sd_ns", 250_000),
            ("weight_bytes", 112_000),
        ];
        Trial {
            cell: Cell(BTreeMap::from([("backend".into(), backend.into()), ("workers".into(), "2".into())])),
            valid,
            figures: figures.map(|(name, value)| (name.into(), value.to_string())).into(),
            ..Trial::default()
        }
    }

    #[test]
    fn what_clients_saw_of_a_fault_is_shown_where_there_was_one() {
        let mut struck = trial("raft", 200, true);
        struck.cell.0.insert("fault".into(), "kill@aggregator,time:4000ms".into());
        struck.figures.insert("longest_gap_ns".into(), "1234000000".into());
        struck.figures.insert("availability_available_ppm".into(), "876500".into());
        let mut disturbed = struck.clone();
        // An experiment whose cells all have the same faults has no column of them.
        disturbed.cell.0.remove("fault");
        disturbed.figures.insert("disturbances".into(), "1".into());
        for trial in [struck, disturbed] {
            let experiment =
                Experiment { name: "leaderboard".into(), trials: vec![trial], ..Experiment::default() };
            let table = table(&experiment);
            let last = table.head.len() - 2;
            assert_eq!(table.head[last..], ["longest gap", "available"]);
            assert_eq!(table.rows[0][last..], ["1234.00", "87.65 %"]);
        }
    }

    #[test]
    fn backends_are_beside_etcd_and_failed_trials_do_not_count() {
        let trials = vec![
            trial("raft", 3000, true),
            trial("etcd", 1000, true),
            trial("raft", 9999, false),
            trial("raft", 3000, true),
        ];
        let table = table(&Experiment { name: "kv-peers".into(), trials, ..Experiment::default() });
        assert_eq!(table.head[..3], ["backend", "n", "writes/s"]);
        assert_eq!(table.rows[1][..3], ["raft", "2", "3000 (3000–3000)"]);
        assert_eq!((&*table.rows[1][5], &*table.rows[1][12]), ("1.50", "3.00 (3.00–3.00)"));
        assert_eq!(table.rows[1][10..12], ["0.25", "0.112"]);
        assert!(table.note.contains("1 trials"), "{}", table.note);
    }
}
