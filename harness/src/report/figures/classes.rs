//! Bytes by class: what the messages of a round were for, as the transports counted them.

use maud::Markup;

use super::bars::{Bar, Part, stacked};
use super::largest::{self, Content};
use super::{count_words, range_words};
use crate::report::cell::Series;
use crate::report::draw::{Figure, Key};
use crate::report::reference::Reference;
use crate::report::study::{Experiment, Trial};
use crate::stats::median;
use crate::units::show_bytes;

/// Classes as traffic.csv names them, in words, with their colours; replication first.
const CLASSES: [(&str, &str, &str); 8] = [
    ("election", "election", "f-step1"),
    ("lifeline", "lifeline", "f-step6"),
    ("heartbeat", "heartbeat", "f-step2"),
    ("log", "log", "f-step3"),
    ("digest", "digest", "f-step4"),
    ("blob", "blob", "f-step5"),
    ("learning_control", "learning, control", "f-quiet2"),
    ("learning_bulk", "learning, parameters", "f-quiet1"),
];

/// How many of them are the replication plane's.
const REPLICATION: usize = 6;

/// Median bytes per round by class, in the order of [`CLASSES`].
struct Row {
    label: String,
    bytes: Vec<u64>,
    n: usize,
}

pub(super) fn draw(experiment: &Experiment, _: &Reference) -> Vec<Figure> {
    let trials: Vec<&Trial> = experiment
        .trials
        .iter()
        .filter(|trial| {
            trial.completed()
                && trial.rounds_finished() > 0
                && trial.traffic.iter().any(|row| row.sent_bytes > 0)
        })
        .collect();
    largest::figures(experiment, ("classes", "Bytes per round by class"), &trials, |series| {
        let rows: Vec<Row> = series.iter().map(row_of).collect();
        Content {
            says: says(&rows),
            how: format!(
                "Frames as encoded, sent by all nodes in the job (the start-up left out), divided by the rounds; without QUIC, TLS, \
                 UDP and IP. A response counts in the class of its request. Medians over {} trials per bar.",
                count_words(rows.iter().map(|row| row.n))
            ),
            drawn: body(&rows),
        }
    })
}

fn row_of(series: &Series<'_>) -> Row {
    let bytes = CLASSES.map(|(class, _, _)| {
        let per_round = series.trials.iter().map(|trial| {
            let of_class = trial
                .traffic
                .iter()
                .filter(|row| row.unit == "frames" && row.span == "job" && row.class == class);
            of_class.map(|row| row.sent_bytes).sum::<u64>() / trial.rounds_finished().max(1)
        });
        median(&per_round.collect::<Vec<_>>()).unwrap_or(0)
    });
    Row { label: series.label.clone(), bytes: bytes.into(), n: series.trials.len() }
}

fn says(rows: &[Row]) -> String {
    let replication: Vec<(&str, u64)> =
        rows.iter().map(|row| (row.label.as_str(), row.bytes[..REPLICATION].iter().sum())).collect();
    format!("Replication sends {} in a round.", range_words(&replication, show_bytes))
}

fn body(rows: &[Row]) -> (Markup, f64) {
    let used = |index: usize| rows.iter().any(|row| row.bytes[index] > 0);
    let keys: Vec<(Key, String)> = CLASSES
        .iter()
        .enumerate()
        .filter(|(index, _)| used(*index))
        .map(|(_, (_, words, colour))| (Key::Box((*colour).to_owned()), (*words).to_owned()))
        .collect();
    let bars: Vec<Bar> = rows.iter().map(bar).collect();
    stacked(&bars, &keys, "MB per round")
}

fn bar(row: &Row) -> Bar {
    let parts =
        row.bytes.iter().zip(CLASSES).filter(|(bytes, _)| **bytes > 0).map(|(bytes, (_, words, colour))| {
            Part {
                class: colour.to_owned(),
                hint: format!("{}: {} {words}", row.label, show_bytes(*bytes)),
                length: *bytes as f64 / 1e6,
            }
        });
    Bar { label: row.label.clone(), parts: parts.collect(), end: show_bytes(row.bytes.iter().sum()) }
}
