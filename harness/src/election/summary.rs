//! Many elections in a few numbers: medians, tails, shares below limits, and how far from the floor. Pure.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;

use super::record::ElectionRow;
use crate::record::Outcome;
use crate::stats::{median, quantile, ratio};
use crate::units::show_ns;

/// Limits of which the share of elections below is told, in ms.
pub const LIMITS_MS: [u64; 9] = [50, 80, 100, 150, 200, 300, 500, 1000, 2000];
/// Confidence of intervals.
const CONFIDENCE: f64 = 0.95;

/// summary.json; what `--json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "docs/RESULTS.md explains the fields")]
pub struct Summary {
    pub outcome: Outcome,
    pub message: String,
    pub exit_code: u8,
    pub results: PathBuf,
    pub backend: String,
    pub nodes: u64,
    pub seed: u64,
    pub trials: u64,
    pub trials_finished: u64,
    /// From the start to the last row, the first start of the nodes included.
    pub elapsed_ns: u64,
    pub median_ns: Stages,
    pub p99_ns: Stages,
    /// Median agreed by median floor; none without a floor.
    pub agreed_by_floor: Option<f64>,
    /// The ends of its 95 % interval, by bootstrap.
    pub agreed_by_floor_lo: Option<f64>,
    pub agreed_by_floor_hi: Option<f64>,
    pub shares: Vec<Share>,
    /// Elections that took more than one term.
    pub more_than_one_term: u64,
    pub false_suspicions: u64,
    pub repeat: String,
}

/// A figure of each stage, in ns since the stroke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the stages have docs in docs/RESULTS.md")]
pub struct Stages {
    pub floor: Option<u64>,
    pub suspected: Option<u64>,
    pub elected: Option<u64>,
    pub agreed: Option<u64>,
}

/// How many elections were agreed below a limit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Share {
    /// The limit.
    pub below_ms: u64,
    /// How many.
    pub elections: u64,
    /// Their share of all.
    pub share: f64,
}

/// Samples of each stage.
struct Samples {
    floor: Vec<u64>,
    suspected: Vec<u64>,
    elected: Vec<u64>,
    agreed: Vec<u64>,
}

impl Samples {
    fn of(rows: &[ElectionRow]) -> Self {
        Self {
            floor: rows.iter().map(|row| row.floor_ns).collect(),
            suspected: rows.iter().filter_map(|row| row.suspected_ns).collect(),
            elected: rows.iter().map(|row| row.elected_ns).collect(),
            agreed: rows.iter().map(|row| row.agreed_ns).collect(),
        }
    }

    fn figure(&self, figure: impl Fn(&[u64]) -> Option<u64>) -> Stages {
        Stages {
            floor: figure(&self.floor),
            suspected: figure(&self.suspected),
            elected: figure(&self.elected),
            agreed: figure(&self.agreed),
        }
    }
}

/// What a summary says beside what follows from the rows.
pub(super) struct Frame<'a> {
    pub(super) manifest: &'a super::ElectionManifest,
    pub(super) results: PathBuf,
    pub(super) elapsed_ns: u64,
}

impl Summary {
    pub(super) fn of(frame: &Frame<'_>, rows: &[ElectionRow]) -> Self {
        let samples = Samples::of(rows);
        let by_floor = ratio(&samples.agreed, &samples.floor, CONFIDENCE);
        let manifest = frame.manifest;
        let shares = LIMITS_MS.map(|below_ms| {
            let elections = samples.agreed.iter().filter(|ns| **ns < below_ms * 1_000_000).count();
            let share = if rows.is_empty() { 0.0 } else { elections as f64 / rows.len() as f64 };
            Share { below_ms, elections: elections as u64, share }
        });
        Self {
            outcome: manifest.outcome,
            message: manifest.message.clone(),
            exit_code: manifest.exit_code.unwrap_or(0),
            results: frame.results.clone(),
            backend: manifest.plan.backend.backend().to_string(),
            nodes: manifest.plan.members.len() as u64,
            seed: manifest.seed,
            trials: manifest.trials,
            trials_finished: rows.len() as u64,
            elapsed_ns: frame.elapsed_ns,
            median_ns: samples.figure(median),
            p99_ns: samples.figure(|values| quantile(values, 0.99)),
            agreed_by_floor: by_floor.map(|ratio| ratio.ratio),
            agreed_by_floor_lo: by_floor.map(|ratio| ratio.lo),
            agreed_by_floor_hi: by_floor.map(|ratio| ratio.hi),
            shares: shares.to_vec(),
            more_than_one_term: rows.iter().filter(|row| row.terms > 1).count() as u64,
            false_suspicions: rows.iter().map(|row| row.false_suspicions).sum(),
            repeat: manifest.repeat.clone(),
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let show = |ns: Option<u64>| ns.map_or_else(|| "-".into(), show_ns);
        let mut text = String::new();
        let (done, of) = (self.trials_finished, self.trials);
        let _ = writeln!(
            text,
            "{}: {} of {} elections, {} nodes, {}; {}",
            self.backend,
            done,
            of,
            self.nodes,
            show_ns(self.elapsed_ns),
            self.results.display()
        );
        let _ = writeln!(text, "{:<12}{:>12}{:>12}", "", "median", "p99");
        let (median, p99) = (self.median_ns, self.p99_ns);
        for (stage, median, p99) in [
            ("floor", median.floor, p99.floor),
            ("suspected", median.suspected, p99.suspected),
            ("elected", median.elected, p99.elected),
            ("agreed", median.agreed, p99.agreed),
        ] {
            let _ = writeln!(text, "{stage:<12}{:>12}{:>12}", show(median), show(p99));
        }
        if let (Some(ratio), Some(lo), Some(hi)) =
            (self.agreed_by_floor, self.agreed_by_floor_lo, self.agreed_by_floor_hi)
        {
            let _ = writeln!(text, "median agreed by median floor: {ratio:.3} (95 %: {lo:.3} to {hi:.3})");
        }
        let below =
            self.shares.iter().map(|share| format!("{} ms {:.1} %", share.below_ms, share.share * 100.0));
        let _ = writeln!(text, "agreed below: {}", below.collect::<Vec<_>>().join(", "));
        let _ = writeln!(
            text,
            "more than one term: {}; false suspicions: {}",
            self.more_than_one_term, self.false_suspicions
        );
        text
    }
}
