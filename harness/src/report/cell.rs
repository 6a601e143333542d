//! Settings of trials as factors by name, and how trials are grouped by them for drawing. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::study::{Cell, Trial};
use crate::cli::shell_words;

/// What distinguishes repetitions, and never makes another setting; or says where things are.
const NO_FACTORS: [&str; 15] = [
    "trial",
    "repetition",
    "seed",
    "started_utc",
    "out",
    "json",
    "quiet",
    "capture",
    "network",
    "learning_port",
    "replication_port",
    "data",
    "store",
    "resume",
    "nodes",
];

/// Factors in the order in which they are said; others follow by name.
const ORDER: [&str; 8] =
    ["backend", "payload", "profile", "workers", "parameter_bytes", "rounds_planned", "link", "fault"];

/// Where a factor is said among others.
#[must_use]
pub fn order(name: &str) -> usize {
    ORDER.iter().position(|known| *known == name).unwrap_or(ORDER.len())
}

/// The cell that a command line of `harness run` describes.
#[must_use]
pub fn of_command(command: &str) -> Cell {
    let words = shell_words(command).unwrap_or_default();
    let mut factors: BTreeMap<String, String> = BTreeMap::new();
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        let Some(option) = word.strip_prefix("--") else { continue };
        let (name, given) =
            option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value.to_owned())));
        let value =
            given.or_else(|| words.next_if(|next| !next.starts_with("--"))).unwrap_or_else(|| "true".into());
        let name = if name == "rounds" { "rounds_planned".into() } else { name.replace('-', "_") };
        let slot = factors.entry(name).or_default();
        *slot = if slot.is_empty() { value } else { format!("{slot} {value}") };
    }
    of_columns(factors.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

/// The cell of these columns; what is no setting is left out, and `nodes` becomes `workers`.
#[must_use]
pub fn of_columns<'a>(columns: impl Iterator<Item = (&'a str, &'a str)>) -> Cell {
    let mut cell = Cell::default();
    for (name, value) in columns {
        if name == "nodes"
            && let Ok(nodes) = value.parse::<u64>()
        {
            cell.0.insert("workers".into(), nodes.saturating_sub(1).to_string());
        }
        // One setting of a link is a factor of its own, so that it can be an axis.
        if name == "link"
            && let Some((setting, number)) =
                value.split_once('=').filter(|(_, number)| number.parse::<f64>().is_ok())
        {
            cell.0.insert("link".into(), setting.into());
            cell.0.insert("link_value".into(), number.into());
            continue;
        }
        if !NO_FACTORS.contains(&name) && !value.is_empty() {
            let word = ["backend", "payload", "profile"].contains(&name);
            cell.0.insert(name.into(), if word { value.replace('_', "-") } else { value.into() });
        }
    }
    cell
}

/// Trials that differ in nothing but the factor that a figure varies, and how they are drawn.
#[derive(Debug, Clone)]
pub struct Series<'a> {
    /// The backend, which decides the colour.
    pub backend: String,
    /// Whether it is drawn hollow or dashed: bytes travel beside the log.
    pub digest: bool,
    /// Backend, payload, and what else is its own.
    pub label: String,
    /// The trials.
    pub trials: Vec<&'a Trial>,
}

/// Series that share all settings but those that make a series.
#[derive(Debug, Clone)]
pub struct Facet<'a> {
    /// Its settings in words; empty if there is only one.
    pub label: String,
    /// Its series, in order.
    pub series: Vec<Series<'a>>,
}

/// Rank of the backend, payload and own factors of a series, by which series are ordered.
type SeriesKey = (u8, String, Vec<String>);

/// Factors whose values differ among `trials`, in the order in which they are said.
#[must_use]
pub fn varying(trials: &[&Trial]) -> Vec<String> {
    let names: BTreeSet<&String> = trials.iter().flat_map(|trial| trial.cell.0.keys()).collect();
    let values = |name: &str| trials.iter().map(|trial| trial.cell.get(name)).collect::<BTreeSet<_>>().len();
    let mut varying: Vec<String> = names.into_iter().filter(|name| values(name) > 1).cloned().collect();
    varying.sort_by_key(|name| (order(name), name.clone()));
    varying
}

/// Groups `trials` for a figure over the factor `x`. Factors that vary within every backend make facets, those that vary
/// within some only make series.
#[must_use]
pub fn facets<'a>(trials: &[&'a Trial], x: &str) -> Vec<Facet<'a>> {
    let others: Vec<String> = varying(trials)
        .into_iter()
        .filter(|name| !["backend", "payload", x].contains(&name.as_str()))
        .collect();
    let mut by_backend: BTreeMap<(&str, &str), Vec<&Trial>> = BTreeMap::new();
    for trial in trials {
        by_backend.entry((trial.cell.get("backend"), trial.cell.get("payload"))).or_default().push(trial);
    }
    let within = |name: &str, of: &[&Trial]| {
        of.iter().map(|trial| trial.cell.get(name)).collect::<BTreeSet<_>>().len() > 1
    };
    let inner: Vec<&String> =
        others.iter().filter(|name| by_backend.values().any(|of| within(name, of))).collect();
    let (of_facet, of_series): (Vec<&String>, Vec<&String>) =
        inner.into_iter().partition(|name| by_backend.values().all(|of| within(name, of)));
    let key = |trial: &Trial, names: &[&String]| -> Vec<String> {
        names.iter().map(|name| sortable(trial.cell.get(name))).collect()
    };
    let mut groups: BTreeMap<Vec<String>, BTreeMap<SeriesKey, Vec<&'a Trial>>> = BTreeMap::new();
    for trial in trials {
        let series = (rank(trial.cell.get("backend")), sort_payload(trial), key(trial, &of_series));
        groups.entry(key(trial, &of_facet)).or_default().entry(series).or_default().push(trial);
    }
    let facets = groups.into_values().map(|group| {
        let first = group.values().next().and_then(|of| of.first());
        Facet {
            label: first.map(|trial| say(&trial.cell, &of_facet)).unwrap_or_default(),
            series: group.into_values().map(|trials| series(trials, &of_series)).collect(),
        }
    });
    facets.collect()
}

fn series<'a>(trials: Vec<&'a Trial>, own: &[&String]) -> Series<'a> {
    let cell = trials.first().map(|trial| trial.cell.clone()).unwrap_or_default();
    let mut words = vec![cell.store(), say(&cell, own)];
    words.retain(|word| !word.is_empty());
    Series {
        backend: cell.get("backend").to_owned(),
        digest: cell.get("payload") == "digest",
        label: words.join(" "),
        trials,
    }
}

/// These factors of a cell in words.
#[must_use]
pub fn say(cell: &Cell, names: &[&String]) -> String {
    let words = names.iter().map(|name| match (name.as_str(), cell.get(name)) {
        (_, "") => String::new(),
        ("profile", value) => format!("profile {value}"),
        ("rounds_planned", "1") => "1 round".into(),
        ("rounds_planned", value) => format!("{value} rounds"),
        ("workers", value) => format!("{value} workers"),
        ("parameter_bytes", value) => {
            value.parse().map_or_else(|_| value.to_owned(), crate::units::show_bytes)
        }
        ("link" | "fault", value) => value.to_owned(),
        (name, "true") => name.replace('_', " "),
        (name, value) => format!("{} {value}", name.replace('_', " ")),
    });
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(", ")
}

/// Backends in the order in which they are shown.
#[must_use]
pub fn rank(backend: &str) -> u8 {
    let order = ["none", "local", "raft", "raft-subset", "gossip", "backup"];
    order.iter().position(|known| *known == backend).unwrap_or(order.len()) as u8
}

fn sort_payload(trial: &Trial) -> String {
    // "inline" first.
    if trial.cell.get("payload") == "inline" { String::new() } else { trial.cell.get("payload").to_owned() }
}

/// Numbers in their order.
fn sortable(value: &str) -> String {
    value.parse::<f64>().map_or_else(|_| value.to_owned(), |number| format!("{number:020.6}"))
}

/// The factor that a figure varies: the first of `candidates` with more than one numeric value.
#[must_use]
pub fn swept(trials: &[&Trial], candidates: &[&str]) -> Option<String> {
    let values = |name: &str| -> BTreeSet<String> {
        trials
            .iter()
            .filter(|trial| trial.cell.number(name).is_some())
            .map(|trial| sortable(trial.cell.get(name)))
            .collect()
    };
    candidates.iter().find(|name| values(name).len() > 1).map(|name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(settings: &[(&str, &str)]) -> Trial {
        Trial { cell: of_columns(settings.iter().copied()), ..Trial::default() }
    }

    #[test]
    fn a_command_line_is_a_cell() {
        let line = "harness run --backend raft-subset --nodes 5 --rounds 3 --no-reuse --fault kill@aggregator,round:2 \
                    --fault=stop@worker,round:3 --seed 7 --out 'a b'";
        let cell = of_command(line);
        let expected = [
            ("backend", "raft-subset"),
            ("fault", "kill@aggregator,round:2 stop@worker,round:3"),
            ("no_reuse", "true"),
            ("rounds_planned", "3"),
            ("workers", "4"),
        ];
        let found: Vec<(&str, &str)> =
            cell.0.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn options_of_all_backends_make_facets_and_those_of_one_make_series() {
        let mut trials = Vec::new();
        for profile in ["once", "paper"] {
            for workers in ["2", "10"] {
                let shared = [
                    ("profile", profile),
                    ("workers", workers),
                    ("payload", "digest"),
                    ("link", "loss=0.01"),
                ];
                for own in
                    [[("backend", "raft"), ("voters", "")], [("backend", "raft_subset"), ("voters", "3")]]
                {
                    trials.push(trial(&[shared.as_slice(), &own].concat()));
                }
                trials.push(trial(
                    &[shared.as_slice(), &[("backend", "raft_subset"), ("voters", "5")]].concat(),
                ));
            }
        }
        let trials: Vec<&Trial> = trials.iter().collect();
        let facets = facets(&trials, "workers");
        let labels: Vec<&str> = facets.iter().map(|facet| facet.label.as_str()).collect();
        assert_eq!(labels, ["profile once", "profile paper"]);
        let series: Vec<&str> = facets[0].series.iter().map(|series| series.label.as_str()).collect();
        assert_eq!(series, ["raft digest", "raft-subset digest voters 3", "raft-subset digest voters 5"]);
        assert_eq!(facets[0].series[0].trials.len(), 2);
        assert_eq!((trials[0].cell.get("link"), trials[0].cell.get("link_value")), ("loss", "0.01"));
        assert_eq!(swept(&trials, &["parameter_bytes", "workers"]).as_deref(), Some("workers"));
    }
}
