//! What a node pays: processor time per round, memory, and the time spent encoding and hashing, where it was measured.

use maud::{Markup, html};

use super::largest::{self, Content};
use super::{CONFIDENCE, count_words, range_words};
use crate::report::cell::Series;
use crate::report::draw::{Area, Figure, Scale, WIDTH, bar, line, text, tick_label};
use crate::report::reference::Reference;
use crate::report::rows::Node;
use crate::report::study::{Experiment, Trial};
use crate::stats::{Estimate, estimate};
use crate::units::{show_bytes, show_ns};

const ROW: f64 = 26.0;
const NAMES: f64 = 170.0;

/// A quantity: its name with the unit, its unit in raw integers, whether it is per round, and where it is found.
struct Quantity {
    name: &'static str,
    unit: f64,
    per_round: bool,
    pick: fn(&Node) -> Option<u64>,
}

const QUANTITIES: [Quantity; 4] = [
    Quantity {
        name: "CPU, s a round",
        unit: 1e9,
        per_round: true,
        pick: |node| Some(node.cpu_ns).filter(|ns| *ns > 0),
    },
    Quantity {
        name: "peak memory, MB",
        unit: 1e6,
        per_round: false,
        pick: |node| Some(node.rss_peak_bytes).filter(|bytes| *bytes > 0),
    },
    Quantity {
        name: "(de)coding, ms a round",
        unit: 1e6,
        per_round: true,
        pick: |node| node.encode_ns.zip(node.decode_ns).map(|(encode, decode)| encode + decode),
    },
    Quantity { name: "hashing, ms a round", unit: 1e6, per_round: true, pick: |node| node.hash_ns },
];

struct Row {
    label: String,
    class: String,
    estimates: Vec<Option<Estimate>>,
    n: usize,
}

pub(super) fn draw(experiment: &Experiment, _: &Reference) -> Vec<Figure> {
    let trials: Vec<&Trial> = experiment
        .trials
        .iter()
        .filter(|trial| {
            trial.completed() && trial.rounds_finished() > 0 && trial.nodes.iter().any(|node| node.cpu_ns > 0)
        })
        .collect();
    largest::figures(experiment, ("cost", "Cost of a node"), &trials, |series| {
        let rows: Vec<Row> = series.iter().map(row_of).collect();
        Content {
            says: says(&rows),
            how: format!(
                "As the kernel counts for each node's process, training included, from its start to its last status; nodes that were \
                 killed are left out. Medians over nodes and trials with 95 % bootstrap intervals; {} nodes per bar.",
                count_words(rows.iter().map(|row| row.n))
            ),
            drawn: body(&rows),
        }
    })
}

fn row_of(series: &Series<'_>) -> Row {
    let ended = |node: &&Node| node.state == "exit code 0";
    let estimates = QUANTITIES.iter().map(|quantity| {
        let values = series.trials.iter().flat_map(|trial| {
            let by = if quantity.per_round { trial.rounds_finished().max(1) } else { 1 };
            trial.nodes.iter().filter(ended).filter_map(move |node| Some((quantity.pick)(node)? / by))
        });
        estimate(&values.collect::<Vec<_>>(), CONFIDENCE)
    });
    Row {
        label: series.label.clone(),
        class: format!("f-{}", series.backend),
        estimates: estimates.collect(),
        n: series.trials.iter().map(|trial| trial.nodes.iter().filter(ended).count()).sum(),
    }
}

fn says(rows: &[Row]) -> String {
    let range = |quantity: usize, show: fn(u64) -> String| {
        let medians: Vec<(&str, u64)> = rows
            .iter()
            .filter_map(|row| Some((row.label.as_str(), row.estimates[quantity]?.median)))
            .collect();
        range_words(&medians, show)
    };
    format!(
        "The median node takes {} of processor time in a round, and {} of memory at most.",
        range(0, show_ns),
        range(1, show_bytes)
    )
}

fn body(rows: &[Row]) -> (Markup, f64) {
    let used: Vec<usize> = (0..QUANTITIES.len())
        .filter(|index| rows.iter().any(|row| row.estimates[*index].is_some()))
        .collect();
    let width = (WIDTH - NAMES - 10.0) / used.len().max(1) as f64;
    let height = 36.0 + ROW * rows.len() as f64;
    let drawn = html! {
        @for (index, row) in rows.iter().enumerate() {
            (text(NAMES - 10.0, 36.0 + ROW * index as f64 + 17.0, "end", "label", &row.label))
        }
        @for (place, quantity) in used.iter().enumerate() {
            @let area = Area { x: NAMES + width * place as f64, y: 36.0, w: width - 62.0, h: height - 36.0 };
            (panel(rows, *quantity, area))
        }
    };
    (drawn, height + 8.0)
}

fn panel(rows: &[Row], quantity: usize, area: Area) -> Markup {
    let unit = QUANTITIES[quantity].unit;
    let highest =
        rows.iter().filter_map(|row| row.estimates[quantity]).map(|found| found.hi).max().unwrap_or(1);
    let x = Scale::from_zero(highest as f64 / unit, area.x, area.right());
    html! {
        (text(area.x, 22.0, "start", "strong", QUANTITIES[quantity].name))
        (line((area.x, area.y), (area.x, area.bottom()), "base"))
        @for (index, row) in rows.iter().enumerate() {
            @if let Some(found) = row.estimates[quantity] {
                @let value = |raw: u64| raw as f64 / unit;
                @let y = area.y + ROW * index as f64 + 6.0;
                @let words = if value(found.median) < 10.0 { format!("{:.2}", value(found.median)) } else { tick_label(value(found.median).round()) };
                (bar(Area { x: area.x, y, w: x.at(value(found.median)) - area.x, h: ROW - 12.0 }, &row.class, &format!("{}: {words}", row.label)))
                (line((x.at(value(found.lo)), y + 7.0), (x.at(value(found.hi)), y + 7.0), "whisker s-prototype"))
                (text(x.at(value(found.hi)) + 6.0, y + 11.0, "start", "small", &words))
            }
        }
    }
}
