//! Two studies side by side: per matching cell, medians, the ratio with its interval, and which differences are real. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::figures::settings_of;
use super::study::{Cell, Study, Trial};
use crate::stats::{Estimate, Ratio, estimate, ratio};

/// The chance, over all comparisons together, that a difference is called real although there is none.
const ERROR_RATE: f64 = 0.05;
/// Fewer samples than this on a side never make a difference real: their bootstrap interval is too narrow.
const MIN_SAMPLES: usize = 5;

/// One quantity of one cell, in both studies.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The cell's settings, or those of elections.
    pub cell: String,
    /// What is compared, with its unit.
    pub quantity: &'static str,
    /// Samples, lower median and 95 % interval of the first study.
    pub a: Side,
    /// The same of the second.
    pub b: Side,
    /// Median of the second by that of the first; none if that is 0.
    pub ratio: Option<f64>,
    /// Lower end of the ratio's interval, at [`Comparison::confidence`].
    pub ratio_lo: Option<f64>,
    /// Upper end of it.
    pub ratio_hi: Option<f64>,
    /// Median of the second less that of the first.
    pub difference: i64,
    /// Whether the interval of the ratio leaves 1 out, with enough samples on both sides.
    pub real: bool,
}

/// One side of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Side {
    /// Samples.
    pub n: usize,
    /// Lower median, raw.
    pub median: u64,
    /// Lower end of its 95 % interval.
    pub lo: u64,
    /// Upper end of it.
    pub hi: u64,
}

/// Two studies compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Confidence of each ratio's interval: 1 less 0.05 divided by the number of comparisons (Bonferroni).
    pub confidence: f64,
    /// Samples that a side needs for a difference to be called real.
    pub min_samples: usize,
    /// Every quantity of every cell that both have.
    pub differences: Vec<Difference>,
    /// Cells that only the first study has.
    pub only_a: Vec<String>,
    /// Cells that only the second study has.
    pub only_b: Vec<String>,
}

/// Samples by quantity.
type Samples = BTreeMap<&'static str, Vec<u64>>;

/// Compares `a` with `b`. Cells match if they agree in every factor but those in `across`. Across backends, options that only
/// some of them have do not count either.
#[must_use]
pub fn compare(a: &Study, b: &Study, across: &[String]) -> Comparison {
    let mut across = across.to_vec();
    if across.iter().any(|factor| factor == "backend") {
        let trials = || {
            [a, b].into_iter().flat_map(|study| &study.experiments).flat_map(|experiment| &experiment.trials)
        };
        let names: BTreeSet<&String> = trials().flat_map(|trial| trial.cell.0.keys()).collect();
        let shared = |name: &str| trials().all(|trial| trial.cell.0.contains_key(name));
        across.extend(names.into_iter().filter(|name| !shared(name)).cloned());
    }
    let (a, b) = (cells(a, &across), cells(b, &across));
    let quantities = |samples: &Samples| samples.keys().copied().collect::<BTreeSet<_>>();
    let mut pairs = Vec::new();
    for (cell, of_a) in &a {
        let Some(of_b) = b.get(cell) else { continue };
        let shared: Vec<&str> = quantities(of_a).intersection(&quantities(of_b)).copied().collect();
        pairs.extend(
            QUANTITIES
                .iter()
                .filter(|quantity| shared.contains(quantity))
                .map(|quantity| (cell, *quantity, &of_a[quantity], &of_b[quantity])),
        );
    }
    let confidence = 1.0 - ERROR_RATE / pairs.len().max(1) as f64;
    let differences =
        pairs.into_iter().filter_map(|(cell, quantity, a, b)| difference(cell, quantity, a, b, confidence));
    let only = |of: &BTreeMap<String, Samples>, other: &BTreeMap<String, Samples>| {
        of.keys().filter(|cell| !other.contains_key(*cell)).cloned().collect()
    };
    Comparison {
        confidence,
        min_samples: MIN_SAMPLES,
        differences: differences.collect(),
        only_a: only(&a, &b),
        only_b: only(&b, &a),
    }
}

fn difference(
    cell: &str,
    quantity: &'static str,
    a: &[u64],
    b: &[u64],
    confidence: f64,
) -> Option<Difference> {
    let side = |values: &[u64]| {
        estimate(values, 0.95).map(|Estimate { n, median, lo, hi }| Side { n, median, lo, hi })
    };
    let (of_a, of_b) = (side(a)?, side(b)?);
    let found: Option<Ratio> = ratio(b, a, confidence);
    let enough = a.len().min(b.len()) >= MIN_SAMPLES;
    Some(Difference {
        cell: cell.to_owned(),
        quantity,
        difference: of_b.median as i64 - of_a.median as i64,
        a: of_a,
        b: of_b,
        ratio: found.map(|found| found.ratio),
        ratio_lo: found.map(|found| found.lo),
        ratio_hi: found.map(|found| found.hi),
        real: enough && found.is_some_and(|found| found.lo > 1.0 || found.hi < 1.0),
    })
}

/// Quantities in the order in which they are shown.
const QUANTITIES: [&str; 9] = [
    "agreed_ns",
    "serving_ns",
    "resumed_ns",
    "round_ns",
    "put_ns",
    "learning_bytes_per_round",
    "replication_bytes_per_round",
    "cpu_ns_per_round",
    "rss_peak_bytes",
];

/// The samples of every cell, by its settings in words.
fn cells(study: &Study, across: &[String]) -> BTreeMap<String, Samples> {
    let mut cells: BTreeMap<String, Samples> = BTreeMap::new();
    for trial in study.experiments.iter().flat_map(|experiment| &experiment.trials) {
        let samples = cells.entry(words(&trial.cell, across)).or_default();
        for (quantity, values) in samples_of(trial) {
            samples.entry(quantity).or_default().extend(values);
        }
    }
    for (setting, rows) in study.elections.iter().flat_map(settings_of) {
        let samples = cells.entry(setting).or_default();
        samples.entry("agreed_ns").or_default().extend(rows.iter().filter_map(|row| row.agreed_ns));
    }
    for samples in cells.values_mut() {
        samples.retain(|_, values| !values.is_empty());
    }
    cells
}

fn words(cell: &Cell, across: &[String]) -> String {
    let mut factors: Vec<(&String, &String)> =
        cell.0.iter().filter(|(name, _)| !across.contains(name)).collect();
    factors.sort_by_key(|(name, _)| (super::cell::order(name), (*name).clone()));
    factors.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

/// One value of a trial for what is a median or a sum of it; a value per fail-over for stages.
fn samples_of(trial: &Trial) -> Vec<(&'static str, Vec<u64>)> {
    let rounds = trial.rounds_finished();
    let per_round = |total: u64| total.checked_div(rounds);
    let one = |value: Option<u64>| value.into_iter().collect::<Vec<u64>>();
    let of_rounds: Vec<u64> =
        trial.rounds.iter().filter(|row| row.fit_workers > 0).map(|row| row.round_ns).collect();
    let puts =
        trial.checkpoints.iter().filter(|row| row.is_acknowledged_state()).filter_map(|row| row.put_ns);
    let planes = trial.plane_bytes().filter(|_| trial.tells_traffic());
    let stage = |pick: fn(&super::rows::Failover) -> Option<u64>| {
        trial.take_overs().filter_map(pick).collect::<Vec<u64>>()
    };
    vec![
        ("agreed_ns", stage(|row| row.agreed_ns)),
        ("serving_ns", stage(|row| row.serving_ns)),
        ("resumed_ns", stage(|row| row.resumed_ns)),
        ("round_ns", one(crate::stats::median(&of_rounds))),
        ("put_ns", one(crate::stats::median(&puts.collect::<Vec<_>>()))),
        ("learning_bytes_per_round", one(planes.as_ref().and_then(|planes| per_round(planes.learning)))),
        (
            "replication_bytes_per_round",
            one(planes.as_ref().and_then(|planes| per_round(planes.replication))),
        ),
        ("cpu_ns_per_round", one(per_round(trial.nodes.iter().map(|node| node.cpu_ns).sum()))),
        ("rss_peak_bytes", one(trial.nodes.iter().map(|node| node.rss_peak_bytes).max())),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::rows::Round;
    use super::super::study::Experiment;
    use super::*;

    fn study(backend: &str, round_ns: impl Iterator<Item = u64>) -> Study {
        let own = if backend == "raft" { "voters" } else { "phi" };
        let settings = [("backend", backend), ("workers", "9"), (own, "3")];
        let trials = round_ns.map(|round_ns| Trial {
            cell: Cell(settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
            rounds: vec![Round { round: 1, fit_workers: 9, round_ns, ..Round::default() }],
            ..Trial::default()
        });
        let experiment = Experiment { trials: trials.collect(), ..Experiment::default() };
        Study { experiments: vec![experiment], ..Study::default() }
    }

    fn of<'a>(comparison: &'a Comparison, quantity: &str) -> &'a Difference {
        comparison.differences.iter().find(|difference| difference.quantity == quantity).unwrap()
    }

    #[test]
    fn a_study_does_not_differ_from_itself() {
        let one = study("raft", (0..9).map(|i| 1000 + i));
        let comparison = compare(&one, &one, &[]);
        assert!(
            comparison.differences.iter().all(|difference| !difference.real && difference.difference == 0)
        );
        assert!(comparison.only_a.is_empty() && comparison.only_b.is_empty());
    }

    #[test]
    fn a_difference_is_real_with_enough_samples_only() {
        let slow = |count: u64| study("raft", (0..count).map(|i| 2000 + i));
        let fast = |count: u64| study("raft", (0..count).map(|i| 1000 + i));
        let found = compare(&slow(9), &fast(9), &[]);
        let round = of(&found, "round_ns");
        assert!(round.real && round.difference == -1000 && round.ratio_hi.unwrap() < 0.6, "{round:?}");
        assert!(!of(&compare(&slow(3), &fast(9), &[]), "round_ns").real);
        let compared = found.differences.len() as f64;
        assert!((found.confidence - (1.0 - 0.05 / compared)).abs() < 1e-12);
    }

    #[test]
    fn cells_match_across_the_factors_that_are_named() {
        let (raft, gossip) = (study("raft", [1, 2].into_iter()), study("gossip", [3].into_iter()));
        let apart = compare(&raft, &gossip, &[]);
        assert!(apart.differences.is_empty());
        assert_eq!(
            (apart.only_a, apart.only_b),
            (vec!["backend=raft workers=9 voters=3".into()], vec!["backend=gossip workers=9 phi=3".into()])
        );
        let across = compare(&raft, &gossip, &["backend".into()]);
        assert_eq!(of(&across, "round_ns").cell, "workers=9");
    }
}
