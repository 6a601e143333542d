//! Test loss and accuracy by round, with the rounds in which an aggregator was struck.

use std::collections::{BTreeMap, BTreeSet};

use maud::{Markup, html};

use super::largest::{self, Content};
use super::{count_words, line_classes, line_key};
use crate::report::cell::Series;
use crate::report::draw::{Area, Figure, Key, Scale, legend, line, n, path, text, y_axis};
use crate::report::reference::Reference;
use crate::report::rows::Round;
use crate::report::study::{Experiment, Trial};

/// Lower medians by round.
struct Line {
    label: (Key, String),
    classes: (String, String),
    loss: Vec<(u64, f64)>,
    accuracy: Vec<(u64, f64)>,
    struck: BTreeSet<u64>,
    n: usize,
}

pub(super) fn draw(experiment: &Experiment, _: &Reference) -> Vec<Figure> {
    let trials: Vec<&Trial> = experiment
        .trials
        .iter()
        .filter(|trial| trial.rounds_finished() > 1 && trial.rounds.iter().any(|row| row.loss.is_some()))
        .collect();
    largest::figures(experiment, ("learning", "Loss and accuracy by round"), &trials, |series| {
        let lines: Vec<Line> = series.iter().map(line_of).collect();
        Content {
            says: says(&lines),
            how: format!(
                "Means over the workers' test examples, weighted by example; medians over {} trials per line. A round that was \
                 evaluated again after a take-over counts by its last row. Dashed lines: rounds in which an aggregator was \
                 struck.",
                count_words(lines.iter().map(|line| line.n))
            ),
            drawn: body(&lines),
        }
    })
}

fn line_of(series: &Series<'_>) -> Line {
    Line {
        label: line_key(series),
        classes: line_classes(&series.backend, series.digest),
        loss: medians(series, |row| row.loss),
        accuracy: medians(series, |row| row.accuracy.map(|share| share * 100.0)),
        struck: series.trials.iter().flat_map(|trial| struck(trial)).collect(),
        n: series.trials.len(),
    }
}

/// The rounds that were under way when an aggregator was struck.
fn struck(trial: &Trial) -> impl Iterator<Item = u64> {
    trial.take_overs().map(|fault| {
        let before = trial.rounds.iter().filter(|row| row.at_ns < fault.struck_at_ns);
        before.map(|row| row.round).max().unwrap_or(0) + 1
    })
}

fn medians(series: &Series<'_>, pick: fn(&Round) -> Option<f64>) -> Vec<(u64, f64)> {
    let mut by_round: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
    for trial in &series.trials {
        let last: BTreeMap<u64, &Round> = trial.rounds.iter().map(|row| (row.round, row)).collect();
        for (round, row) in last {
            by_round.entry(round).or_default().extend(pick(row).filter(|value| value.is_finite()));
        }
    }
    let medians = by_round.into_iter().filter_map(|(round, mut values)| {
        values.sort_by(f64::total_cmp);
        Some((round, *values.get(values.len().checked_sub(1)? / 2)?))
    });
    medians.collect()
}

fn says(lines: &[Line]) -> String {
    let last: Vec<(u64, f64, f64)> = lines
        .iter()
        .filter_map(|line| {
            let (round, loss) = *line.loss.last()?;
            Some((round, loss, line.accuracy.last().map_or(f64::NAN, |(_, accuracy)| *accuracy)))
        })
        .collect();
    let least = last.iter().min_by(|a, b| a.1.total_cmp(&b.1));
    let greatest = last.iter().max_by(|a, b| a.1.total_cmp(&b.1));
    least.zip(greatest).map_or(String::new(), |(least, greatest)| {
        format!(
            "After round {} the median loss is {:.4} to {:.4}, the accuracy {:.1} % to {:.1} %.",
            least.0.max(greatest.0),
            least.1,
            greatest.1,
            greatest.2,
            least.2
        )
    })
}

fn body(lines: &[Line]) -> (Markup, f64) {
    let keys: Vec<(Key, String)> = lines.iter().map(|line| line.label.clone()).collect();
    let (legend, top) = legend(&keys, 0.0);
    let last = lines.iter().flat_map(|line| line.loss.last()).map(|(round, _)| *round).max().unwrap_or(1);
    let struck: BTreeSet<u64> = lines.iter().flat_map(|line| line.struck.iter().copied()).collect();
    let left = Area { x: 36.0, y: top + 28.0, w: 320.0, h: 210.0 };
    let right = Area { x: 430.0, ..left };
    let drawn = html! {
        (legend)
        (panel(lines, |line| &line.loss, "test loss", left, last, &struck))
        (panel(lines, |line| &line.accuracy, "accuracy, %", right, last, &struck))
    };
    (drawn, left.bottom() + 40.0)
}

fn panel(
    lines: &[Line],
    pick: fn(&Line) -> &Vec<(u64, f64)>,
    name: &str,
    area: Area,
    last: u64,
    struck: &BTreeSet<u64>,
) -> Markup {
    let values = || lines.iter().flat_map(pick).map(|(_, value)| *value);
    let (lo, hi) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    let margin = ((hi - lo) * 0.1).max(hi.abs() * 1e-3);
    let y = Scale::between((lo - margin).max(0.0), hi + margin, area.bottom(), area.y);
    let x = Scale::between(1.0, last as f64, area.x + 10.0, area.right() - 10.0);
    let rounds = x.ticks().into_iter().filter(|tick| tick.fract() == 0.0);
    html! {
        (y_axis(area, &y, name))
        @for tick in rounds { (text(x.at(tick), area.bottom() + 16.0, "middle", "tick", &n(tick))) }
        (text(area.right(), area.bottom() + 32.0, "end", "name", "round"))
        @for round in struck {
            @let at = x.at(*round as f64 - 0.5).max(area.x);
            (line((at, area.y), (at, area.bottom()), "mark"))
            (text(at + 3.0, area.y + 10.0, "start", "small", "struck"))
        }
        @for drawn in lines {
            @let points: Vec<(f64, f64)> = pick(drawn).iter().map(|(round, value)| (x.at(*round as f64), y.at(*value))).collect();
            (path(&points, &drawn.classes.0))
            @for (at, height) in points { circle class=(drawn.classes.1) cx=(n(at)) cy=(n(height)) r="2.6" {} }
        }
    }
}
