//! Bytes per port against workers or rounds: a panel per backend, the factor of added traffic above each bar, and the floor.

use maud::{Markup, html};

use super::{axis_name, by_number, command, count_words, id, range_words, titled};
use crate::report::cell::{Series, facets};
use crate::report::draw::{Area, Figure, Key, Scale, bar, legend, line, n, text, tick_label, y_axis};
use crate::report::reference::{PARAMETER_BYTES, Reference};
use crate::report::study::{Experiment, Trial};
use crate::stats::median;
use crate::units::show_bytes;

/// Panels beside each other.
const COLUMNS: usize = 3;
const PANEL: Area = Area { x: 32.0, y: 48.0, w: 205.0, h: 130.0 };
/// From a panel's top to that of the one below.
const ROW: f64 = 228.0;

/// A bar: medians of both planes at one number on the axis.
#[derive(Debug, Clone, Copy)]
struct Bar {
    number: f64,
    learning: u64,
    replication: u64,
    /// Workers x parameters x rounds: what has to reach the workers at least.
    floor: Option<u64>,
    n: usize,
}

struct Panel {
    label: String,
    class: String,
    bars: Vec<Bar>,
    reference: bool,
}

pub(super) fn draw(experiment: &Experiment, reference: &Reference) -> Vec<Figure> {
    let counted: Vec<&Trial> = experiment.trials.iter().filter(|trial| trial.tells_traffic()).collect();
    let factors = ["workers", "rounds_planned", "parameter_bytes"];
    let mut swept: Vec<&str> =
        factors.into_iter().filter(|factor| super::swept(&counted, &[factor]).is_some()).collect();
    let single = swept.is_empty();
    if single {
        swept.push("workers");
    }
    let mut drawn: Vec<(&str, String, Vec<Panel>, Vec<&Trial>)> = Vec::new();
    for factor in swept {
        for facet in facets(&counted, factor) {
            let panels: Vec<Panel> = facet.series.iter().map(|series| panel(series, factor)).collect();
            if single || panels.iter().any(|panel| panel.bars.len() > 1) {
                let trials = facet.series.iter().flat_map(|series| series.trials.clone()).collect();
                drawn.push((factor, facet.label, panels, trials));
            }
        }
    }
    drawn.retain(|(_, _, panels, _)| panels.iter().any(|panel| !panel.bars.is_empty()));
    let of = drawn.len();
    let figures = drawn.into_iter().enumerate().map(|(index, (factor, facet, mut panels, trials))| {
        let says = says(&panels, factor);
        let how = how(&panels, &trials);
        if factor == "workers" && comparable(&trials) {
            panels.extend(prototype(reference));
        }
        let (body, height) = body(&panels, factor);
        Figure {
            id: id(experiment, "traffic", index, of),
            title: titled("Bytes per port", &[&facet]),
            says,
            how,
            command: command(experiment),
            height,
            body,
        }
    });
    figures.collect()
}

/// Whether the reference, one round of the paper's model, belongs beside these.
fn comparable(trials: &[&Trial]) -> bool {
    trials.iter().all(|trial| {
        trial.cell.get("rounds_planned") == "1" && trial.parameter_bytes() == Some(PARAMETER_BYTES)
    })
}

fn panel(series: &Series<'_>, factor: &str) -> Panel {
    let bars = by_number(&series.trials, factor).into_iter().filter_map(|(number, trials)| {
        let bytes: Vec<(u64, u64)> = trials
            .iter()
            .filter_map(|trial| trial.plane_bytes().map(|bytes| (bytes.learning, bytes.replication)))
            .collect();
        let first = trials.first()?;
        let rounds = first.cell.number("rounds_planned").unwrap_or(1.0);
        let workers = first.cell.number("workers");
        let floor = workers.zip(first.parameter_bytes()).map(|(w, s)| (w * s as f64 * rounds) as u64);
        medians(&bytes).map(|(learning, replication)| {
            let number = if factor == "parameter_bytes" { number / 1e6 } else { number };
            Bar { number, learning, replication, floor, n: bytes.len() }
        })
    });
    Panel {
        label: series.label.clone(),
        class: series.backend.clone(),
        bars: bars.collect(),
        reference: false,
    }
}

fn medians(bytes: &[(u64, u64)]) -> Option<(u64, u64)> {
    let learning: Vec<u64> = bytes.iter().map(|bytes| bytes.0).collect();
    let replication: Vec<u64> = bytes.iter().map(|bytes| bytes.1).collect();
    Some((median(&learning)?, median(&replication)?))
}

fn prototype(reference: &Reference) -> impl Iterator<Item = Panel> {
    reference.versions.iter().map(|version| {
        let bars = version.bytes.iter().filter_map(|(workers, runs)| {
            let (learning, replication) = medians(runs)?;
            let floor = Some(workers * PARAMETER_BYTES);
            Some(Bar { number: *workers as f64, learning, replication, floor, n: runs.len() })
        });
        Panel {
            label: version.label.to_owned(),
            class: version.class.to_owned(),
            bars: bars.collect(),
            reference: true,
        }
    })
}

/// Replication by learning.
fn factor_words(bar: &Bar) -> String {
    if bar.replication == 0 || bar.learning == 0 {
        return "0".into();
    }
    let factor = bar.replication as f64 / bar.learning as f64;
    if factor < 0.1 { format!("{factor:.2}") } else { format!("{factor:.1}") }
}

fn says(panels: &[Panel], factor: &str) -> String {
    let largest =
        panels.iter().filter_map(|panel| panel.bars.last()).map(|bar| bar.number).fold(0.0, f64::max);
    let added: Vec<(&str, u64)> = panels
        .iter()
        .filter_map(|panel| {
            let bar = panel.bars.last()?;
            Some((panel.label.as_str(), bar.replication))
                .filter(|_| (bar.number - largest).abs() < f64::EPSILON)
        })
        .collect();
    let learning =
        panels.iter().filter_map(|panel| panel.bars.last()).map(|bar| bar.learning).max().unwrap_or(0);
    format!(
        "At {} {} replication adds {} to at most {} of learning.",
        n(largest),
        axis_name(factor),
        range_words(&added, show_bytes),
        show_bytes(learning)
    )
}

fn how(panels: &[Panel], trials: &[&Trial]) -> String {
    let counts = panels.iter().flat_map(|panel| panel.bars.iter().map(|bar| bar.n));
    let sources: std::collections::BTreeSet<String> =
        trials.iter().filter_map(|trial| trial.plane_bytes()).map(|bytes| bytes.source).collect();
    let source = match sources.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["capture"] => "Captured packets at IP level, each once, where it leaves its sender",
        ["transport"] => {
            "By the transports' own counts with 28 bytes of headers for each datagram: no packets were captured"
        }
        ["loopback"] => "Captured on loopback, where packets are up to 64 KB: no figures of a network",
        _ => "Counted in different ways by different trials (see capture_totals.csv)",
    };
    let faults = if trials.iter().all(|trial| trial.faultless()) {
        ""
    } else {
        " What the trials' faults cost is in it."
    };
    format!(
        "{source}, all nodes added up, from the start of the trial to its end. Grey: learning port; colour: replication port. The black tick is W S a round: one copy of \
         the parameters for each worker. All panels have the same scale, but the re-measured prototype has one of its own. Medians; {} trials per bar; trials whose counts are not valid are left out.{faults}",
        count_words(counts)
    )
}

fn body(panels: &[Panel], factor: &str) -> (Markup, f64) {
    let keys = [
        (Key::Box("f-learning".into()), "learning port".to_owned()),
        (Key::Line("floor".into(), "none".into()), "W S a round".to_owned()),
        (Key::Box("none".into()), "above each bar: replication by learning".to_owned()),
    ];
    let (legend, top) = legend(&keys, 0.0);
    // The reference has a scale of its own, or its 50 MB would flatten everything else.
    let highest = |reference: bool| {
        let panels = panels.iter().filter(|panel| panel.reference == reference);
        let bytes = panels.flat_map(|panel| &panel.bars).map(|bar| bar.learning + bar.replication).max();
        bytes.unwrap_or(1) as f64 / 1e6
    };
    let numbers: std::collections::BTreeSet<u64> =
        panels.iter().flat_map(|panel| &panel.bars).map(|bar| bar.number.to_bits()).collect();
    let numbers: Vec<f64> = numbers.into_iter().map(f64::from_bits).collect();
    let drawn = html! {
        (legend)
        @for (index, panel) in panels.iter().enumerate() {
            @let area = Area {
                x: PANEL.x + 255.0 * (index % COLUMNS) as f64,
                y: top + PANEL.y + ROW * (index / COLUMNS) as f64,
                ..PANEL
            };
            (bars(panel, area, highest(panel.reference), &numbers, factor))
        }
    };
    (drawn, top + ROW * panels.len().div_ceil(COLUMNS) as f64)
}

fn bars(panel: &Panel, area: Area, highest: f64, numbers: &[f64], factor: &str) -> Markup {
    let y = Scale::from_zero(highest * 1.08, area.bottom(), area.y);
    let slot = area.w / numbers.len() as f64;
    let width = (slot * 0.72).min(34.0);
    let mb = |bytes: u64| bytes as f64 / 1e6;
    html! {
        (text(area.x - 28.0, area.y - 26.0, "start", "strong", &panel.label))
        (y_axis(area, &y, "MB"))
        @for (index, number) in numbers.iter().enumerate() {
            (text(area.x + slot * (index as f64 + 0.5), area.bottom() + 16.0, "middle", "tick", &tick_label(*number)))
        }
        (text(area.right(), area.bottom() + 31.0, "end", "name", axis_name(factor)))
        @for drawn in &panel.bars {
            @let place = numbers.iter().position(|number| (number - drawn.number).abs() < f64::EPSILON).unwrap_or(0);
            @let x = area.x + slot * (place as f64 + 0.5) - width / 2.0;
            @let (low, high) = (y.at(mb(drawn.learning)), y.at(mb(drawn.learning + drawn.replication)));
            @let hint = format!("{}, {}: learning {}, replication {}", panel.label, n(drawn.number), show_bytes(drawn.learning), show_bytes(drawn.replication));
            (bar(Area { x, y: low, w: width, h: area.bottom() - low }, "f-learning", &hint))
            (bar(Area { x, y: high, w: width, h: low - high }, &format!("f-{}", panel.class), &hint))
            @if let Some(floor) = drawn.floor {
                (line((x - 1.5, y.at(mb(floor))), (x + width + 1.5, y.at(mb(floor))), "floor"))
            }
            (text(x + width / 2.0, high - 4.0, "middle", "factor", &factor_words(drawn)))
        }
    }
}
