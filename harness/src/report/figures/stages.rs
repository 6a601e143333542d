//! Where the time of a recovery goes: medians of its stages, one after the other.

use maud::Markup;

use super::bars::{Bar, Part, stacked};
use super::largest::{self, Content};
use super::{count_words, range_words};
use crate::report::cell::Series;
use crate::report::draw::{Figure, Key};
use crate::report::reference::Reference;
use crate::report::rows::STAGES;
use crate::report::study::{Experiment, Trial};
use crate::stats::median;
use crate::units::show_ns;

/// Medians since the fault, in the order of [`STAGES`].
struct Row {
    label: String,
    medians: [Option<u64>; STAGES.len()],
    n: usize,
}

pub(super) fn draw(experiment: &Experiment, _: &Reference) -> Vec<Figure> {
    let trials: Vec<&Trial> =
        experiment.trials.iter().filter(|trial| trial.take_overs().next().is_some()).collect();
    largest::figures(experiment, ("stages", "Stages of recovery"), &trials, |series| {
        let rows: Vec<Row> = series.iter().map(row_of).collect();
        Content {
            says: says(&rows),
            how: format!(
                "Each boundary is the median of the time from the fault to that stage: suspected by the first survivor, known to the \
                 new aggregator, agreed by all survivors, parameters restored, first worker accepted, first checkpoint \
                 acknowledged. The new aggregator may go on before all survivors know, so agreed may come after restored; such a stage has no width. {} fail-overs per \
                 bar, all of them faults that struck the aggregator.",
                count_words(rows.iter().map(|row| row.n))
            ),
            drawn: body(&rows),
        }
    })
}

fn row_of(series: &Series<'_>) -> Row {
    let rows: Vec<_> = series.trials.iter().flat_map(|trial| trial.take_overs()).collect();
    let mut medians = [None; STAGES.len()];
    for (stage, slot) in medians.iter_mut().enumerate() {
        let values: Vec<u64> = rows.iter().filter_map(|row| row.stages_ns()[stage]).collect();
        *slot = median(&values);
    }
    Row { label: series.label.clone(), medians, n: rows.len() }
}

fn says(rows: &[Row]) -> String {
    let stage = |index: usize| {
        let values: Vec<(&str, u64)> =
            rows.iter().filter_map(|row| Some((row.label.as_str(), row.medians[index]?))).collect();
        range_words(&values, show_ns)
    };
    format!(
        "The aggregator is suspected after {}; the job is resumed after {}.",
        stage(0),
        stage(STAGES.len() - 1)
    )
}

fn body(rows: &[Row]) -> (Markup, f64) {
    let keys: Vec<(Key, String)> = STAGES
        .iter()
        .enumerate()
        .map(|(index, stage)| (Key::Box(colour(index)), format!("until {stage}")))
        .collect();
    let bars: Vec<Bar> = rows.iter().map(bar).collect();
    stacked(&bars, &keys, "seconds after the fault")
}

fn colour(stage: usize) -> String {
    format!("f-step{}", stage + 1)
}

/// A part for each stage that comes after those before it.
fn bar(row: &Row) -> Bar {
    let (mut reached_ns, mut parts) = (0, Vec::new());
    for (stage, median) in row.medians.iter().enumerate() {
        let Some(until_ns) = median.filter(|until_ns| *until_ns > reached_ns) else { continue };
        parts.push(Part {
            class: colour(stage),
            hint: format!("{}: {} after {}", row.label, STAGES[stage], show_ns(until_ns)),
            length: (until_ns - reached_ns) as f64 / 1e9,
        });
        reached_ns = until_ns;
    }
    Bar { label: row.label.clone(), parts, end: show_ns(reached_ns) }
}
