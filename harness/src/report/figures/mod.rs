//! Figures: one file per kind, each a pure function from recorded trials to a drawing, or nothing if there is no data for it.

mod bars;
mod classes;
mod cost;
mod elections;
mod largest;
mod learning;
mod reelection;
mod stages;
mod traffic;

use std::collections::BTreeMap;

use super::cell::{Series, swept};
use super::draw::{Figure, Key};
use super::reference::Reference;
use super::study::{Experiment, Study, Trial};

/// How sure intervals are.
pub const CONFIDENCE: f64 = 0.95;
/// Factors that may be the horizontal axis of a figure, in order of preference.
const SWEEPS: [&str; 5] = ["workers", "parameter_bytes", "rounds_planned", "link_value", "voters"];

/// What a report has to show, and what it has no data for.
#[derive(Debug, Default)]
pub struct Drawn {
    /// Figures by section: the experiment's name, or `elections`.
    pub sections: Vec<(String, Vec<Figure>)>,
    /// Kinds of figures that were left out, and why.
    pub missing: Vec<(String, String)>,
}

/// A kind of figure: its name, what it needs, and how it is drawn.
type Kind = (&'static str, &'static str, fn(&Experiment, &Reference) -> Vec<Figure>);

const KINDS: [Kind; 6] = [
    (
        "re-election time",
        "trials with two or more numbers of workers (or another swept factor) and a fault that strikes the aggregator",
        reelection::draw,
    ),
    ("traffic per port", "completed trials with capture_totals.csv", traffic::draw),
    ("stages of recovery", "trials with a fault that strikes the aggregator", stages::draw),
    ("loss and accuracy by round", "trials of two or more rounds in which workers evaluated", learning::draw),
    ("bytes by class", "completed trials with traffic.csv", classes::draw),
    ("cost per node", "completed trials with nodes.csv", cost::draw),
];

/// Draws all there is to draw.
#[must_use]
pub fn draw(study: &Study, reference: &Reference) -> Drawn {
    let mut drawn = Drawn::default();
    for experiment in &study.experiments {
        let mut figures = Vec::new();
        for (name, needs, draw) in KINDS {
            let of_kind = draw(experiment, reference);
            if of_kind.is_empty() {
                drawn.missing.push((format!("{}: {name}", experiment.name), format!("needs {needs}")));
            }
            figures.extend(of_kind);
        }
        drawn.sections.push((experiment.name.clone(), figures));
    }
    match elections::draw(&study.elections) {
        Some(figure) => drawn.sections.push(("elections".into(), vec![figure])),
        None => drawn.missing.push((
            "distribution of election times".into(),
            "needs a folder made by `harness election`".into(),
        )),
    }
    drawn
}

/// Where a figure's data come from, in one line.
fn command(experiment: &Experiment) -> String {
    match experiment.provenance.as_slice() {
        [only] => only.command.clone(),
        several => several
            .first()
            .map(|first| format!("{} (and {} more)", first.command, several.len() - 1))
            .unwrap_or_default(),
    }
}

/// A name for files: the experiment, the kind, and which of several.
fn id(experiment: &Experiment, kind: &str, index: usize, of: usize) -> String {
    let name: String = experiment
        .name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect();
    if of > 1 { format!("{name}-{kind}-{}", index + 1) } else { format!("{name}-{kind}") }
}

/// A title with what its figure is of, as far as that has to be said.
fn titled(title: &str, settings: &[&str]) -> String {
    let settings: Vec<&str> = settings.iter().copied().filter(|words| !words.is_empty()).collect();
    if settings.is_empty() { title.to_owned() } else { format!("{title}: {}", settings.join(", ")) }
}

/// The least and the greatest of some series' values, in words: `984 ms (gossip) to 1.36 s (raft)`.
fn range_words(values: &[(&str, u64)], show: impl Fn(u64) -> String) -> String {
    let least = values.iter().min_by_key(|(_, value)| *value);
    let greatest = values.iter().max_by_key(|(_, value)| *value);
    match least.zip(greatest) {
        None => "unknown".into(),
        Some((least, greatest)) if least.1 == greatest.1 => format!("{} ({})", show(least.1), least.0),
        Some((least, greatest)) => {
            format!("{} ({}) to {} ({})", show(least.1), least.0, show(greatest.1), greatest.0)
        }
    }
}

/// The factor that trials vary numerically.
fn sweep(trials: &[&Trial]) -> Option<String> {
    swept(trials, &SWEEPS)
}

/// Trials by the number that a factor has.
fn by_number<'a>(trials: &[&'a Trial], factor: &str) -> Vec<(f64, Vec<&'a Trial>)> {
    let mut groups: BTreeMap<u64, Vec<&Trial>> = BTreeMap::new();
    for trial in trials {
        // Factors are not negative, so that the order of their bits is theirs.
        groups.entry(trial.cell.number(factor).unwrap_or(0.0).to_bits()).or_default().push(trial);
    }
    groups.into_iter().map(|(bits, trials)| (f64::from_bits(bits), trials)).collect()
}

/// Elections of a folder by setting.
pub use elections::settings_of;
pub use largest::{Largest, largest};

/// What a swept factor is called on an axis.
fn axis_name(factor: &str) -> &str {
    match factor {
        "workers" => "workers",
        "parameter_bytes" => "S, MB",
        "rounds_planned" => "rounds",
        "link_value" => "value of the link's setting",
        other => other,
    }
}

/// How a series' entry in a legend looks.
fn line_key(series: &Series<'_>) -> (Key, String) {
    let (stroke, dot) = line_classes(&series.backend, series.digest);
    (Key::Line(stroke, dot), series.label.clone())
}

/// Classes of the line and the dot of a series.
fn line_classes(backend: &str, digest: bool) -> (String, String) {
    if digest {
        (format!("line dashed s-{backend}"), format!("hollow s-{backend}"))
    } else {
        (format!("line s-{backend}"), format!("f-{backend}"))
    }
}

/// How many trials each of these has, in words: `n = 5`, `n = 3 to 5`.
fn count_words(counts: impl Iterator<Item = usize> + Clone) -> String {
    let (fewest, most) = (counts.clone().min().unwrap_or(0), counts.max().unwrap_or(0));
    if fewest == most { format!("n = {most}") } else { format!("n = {fewest} to {most}") }
}
