//! Re-election time against workers (or another swept factor): until all survivors agree, until the new aggregator serves, and
//! until its first checkpoint is acknowledged; the paper's line and the re-measured prototype beside them.

use maud::{Markup, html};

use super::{
    CONFIDENCE, axis_name, by_number, command, count_words, id, line_classes, line_key, range_words, sweep,
    titled,
};
use crate::report::cell::{Series, facets};
use crate::report::draw::{Area, Figure, Key, Scale, legend, line, n, path, text, y_axis};
use crate::report::reference::Reference;
use crate::report::rows::Failover;
use crate::report::study::{Experiment, Trial};
use crate::stats::{Estimate, estimate, median};
use crate::units::show_ns;

/// What the paper says of its re-election.
const PAPER_S: f64 = 4.0;

/// A panel: its title, the stage of our fail-overs.
type Stage = (&'static str, fn(&Failover) -> Option<u64>);

const PANELS: [Stage; 3] = [
    ("all survivors agree", |row| row.agreed_ns),
    ("first worker accepted", |row| row.serving_ns),
    ("next checkpoint / round done", |row| row.resumed_ns),
];

/// What a line of the figure is made of: per number on the axis, the samples of each panel's stage in ns.
struct Line {
    label: (Key, String),
    classes: (String, String),
    points: Vec<(f64, [Vec<u64>; 3])>,
}

pub(super) fn draw(experiment: &Experiment, reference: &Reference) -> Vec<Figure> {
    let trials: Vec<&Trial> =
        experiment.trials.iter().filter(|trial| trial.take_overs().next().is_some()).collect();
    let Some(factor) = sweep(&trials) else { return Vec::new() };
    let facets = facets(&trials, &factor);
    let figures = facets.iter().enumerate().map(|(index, facet)| {
        let mut lines: Vec<Line> = facet.series.iter().map(|series| measured(series, &factor)).collect();
        let says = says(&lines, &factor);
        if factor == "workers" {
            lines.push(prototype(reference));
        }
        let (body, height) = body(&lines, &factor);
        Figure {
            id: id(experiment, "reelection", index, facets.len()),
            title: titled("Time to recover from the aggregator's death", &[&facet.label]),
            says,
            how: how(&lines[..facet.series.len()], &factor),
            command: command(experiment),
            height,
            body,
        }
    });
    figures.collect()
}

fn measured(series: &Series<'_>, factor: &str) -> Line {
    let points = by_number(&series.trials, factor).into_iter().map(|(number, trials)| {
        let samples = PANELS.map(|(_, stage)| {
            trials.iter().flat_map(|trial| trial.take_overs()).filter_map(stage).collect::<Vec<u64>>()
        });
        (if factor == "parameter_bytes" { number / 1e6 } else { number }, samples)
    });
    Line {
        label: line_key(series),
        classes: line_classes(&series.backend, series.digest),
        points: points.collect(),
    }
}

fn prototype(reference: &Reference) -> Line {
    let points = reference.recoveries.iter().map(|(workers, runs)| {
        let samples = [0, 1, 2].map(|stage| runs.iter().filter_map(|run| run[stage]).collect());
        (*workers as f64, samples)
    });
    let classes = line_classes("prototype", false);
    let label = (Key::Line(classes.0.clone(), classes.1.clone()), "prototype, re-measured".into());
    Line { label, classes, points: points.collect() }
}

fn says(lines: &[Line], factor: &str) -> String {
    let largest =
        lines.iter().filter_map(|line| line.points.last()).map(|(number, _)| *number).fold(0.0, f64::max);
    let stage = |stage: usize| {
        let medians: Vec<(&str, u64)> = lines
            .iter()
            .filter_map(|line| {
                let (number, samples) = line.points.last()?;
                let at_largest = (number - largest).abs() < f64::EPSILON;
                Some((line.label.1.as_str(), median(&samples[stage]).filter(|_| at_largest)?))
            })
            .collect();
        range_words(&medians, show_ns)
    };
    let at = format!("{} {}", n(largest), axis_name(factor));
    format!(
        "At {at} survivors agree after {}, and the first worker is accepted after {}.",
        stage(0),
        stage(1)
    )
}

fn how(lines: &[Line], factor: &str) -> String {
    let counts = lines.iter().flat_map(|line| line.points.iter().map(|(_, samples)| samples[0].len()));
    let reference = if factor == "workers" {
        " The paper states re-election within 4 s. The prototype's published code was measured again on one host (7 kills per size, \
         results/reference/); its third panel is the end of the next round, ours the first acknowledged checkpoint."
    } else {
        ""
    };
    format!(
        "Time from the fault to each stage, by the nodes' own clocks; only faults that struck the aggregator. Dots are samples, \
         lines join medians, whiskers are 95 % bootstrap intervals; {} fail-overs per point.{reference}",
        count_words(counts)
    )
}

fn body(lines: &[Line], factor: &str) -> (Markup, f64) {
    let keys: Vec<(Key, String)> = lines.iter().map(|line| line.label.clone()).collect();
    let (legend, top) = legend(&keys, 0.0);
    let (lo, hi) = extent(lines);
    let panels = PANELS.iter().enumerate().map(|(index, (title, _))| {
        let area = Area { x: 30.0 + 255.0 * index as f64, y: top + 42.0, w: 205.0, h: 230.0 };
        let (from, to) = (area.x + 12.0, area.right() - 12.0);
        // Sizes and the like go over decades.
        let wide = lo > 0.0 && hi / lo > 30.0;
        let x = if wide { Scale::logarithmic(lo, hi, from, to) } else { Scale::between(lo, hi, from, to) };
        panel(lines, index, title, area, x, factor)
    });
    let drawn = html! { (legend) @for panel in panels { (panel) } };
    (drawn, top + 42.0 + 230.0 + 40.0)
}

fn extent(lines: &[Line]) -> (f64, f64) {
    let numbers = lines.iter().flat_map(|line| line.points.iter().map(|(number, _)| *number));
    numbers.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), number| (lo.min(number), hi.max(number)))
}

fn panel(lines: &[Line], stage: usize, title: &str, area: Area, x: Scale, factor: &str) -> Markup {
    let seconds = |ns: u64| ns as f64 / 1e9;
    let samples = lines.iter().flat_map(|line| line.points.iter().flat_map(|(_, samples)| &samples[stage]));
    let highest = samples.map(|ns| seconds(*ns)).fold(0.0, f64::max);
    let paper = factor == "workers" && stage < 2;
    let y = Scale::from_zero(if paper { highest.max(PAPER_S) } else { highest }, area.bottom(), area.y);
    html! {
        (text(area.x - 28.0, area.y - 25.0, "start", "strong", title))
        (y_axis(area, &y, "seconds after the fault"))
        @for tick in x.ticks() { (text(x.at(tick), area.bottom() + 16.0, "middle", "tick", &n(tick))) }
        (text(area.right(), area.bottom() + 32.0, "end", "name", axis_name(factor)))
        @if paper {
            (line((area.x, y.at(PAPER_S)), (area.right(), y.at(PAPER_S)), "mark"))
        }
        @for (index, drawn) in lines.iter().enumerate() {
            // Side by side, so that equal values do not hide each other.
            @let aside = (index as f64 - (lines.len() as f64 - 1.0) / 2.0) * 2.2;
            (marks(drawn, stage, aside, &x, &y))
        }
        @if paper {
            (text(area.right(), y.at(PAPER_S) + 13.0, "end", "small halo", "paper: within 4 s"))
        }
    }
}

fn marks(drawn: &Line, stage: usize, aside: f64, x: &Scale, y: &Scale) -> Markup {
    let seconds = |ns: u64| ns as f64 / 1e9;
    let medians: Vec<(f64, Estimate)> = drawn
        .points
        .iter()
        .filter_map(|(number, samples)| Some((x.at(*number) + aside, estimate(&samples[stage], CONFIDENCE)?)))
        .collect();
    let line_points: Vec<(f64, f64)> =
        medians.iter().map(|(at, median)| (*at, y.at(seconds(median.median)))).collect();
    let stroke = drawn.classes.0.replace("line ", "whisker ").replace("dashed ", "");
    html! {
        @for (number, samples) in &drawn.points {
            @for sample in &samples[stage] {
                circle class={ "sample " (drawn.classes.1) } cx=(n(x.at(*number) + aside)) cy=(n(y.at(seconds(*sample)))) r="1.6" {}
            }
        }
        (path(&line_points, &drawn.classes.0))
        @for (at, median) in &medians {
            (line((*at, y.at(seconds(median.lo))), (*at, y.at(seconds(median.hi))), &stroke))
            circle class=(drawn.classes.1) cx=(n(*at)) cy=(n(y.at(seconds(median.median)))) r="3.2" {
                title { (drawn.label.1) ": " (show_ns(median.median)) " (" (show_ns(median.lo)) " to " (show_ns(median.hi)) ", n = " (median.n) ")" }
            }
        }
    }
}
