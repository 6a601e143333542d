//! How election times are distributed, with the floor that no election could have beaten.

use maud::{Markup, html};

use super::{CONFIDENCE, count_words, line_classes};
use crate::report::draw::{Area, Figure, Key, Scale, WIDTH, legend, line, n, path, text, x_axis};
use crate::report::rows::Election;
use crate::report::study::Elections;
use crate::stats::{estimate, quantile};
use crate::units::{exact_ms, show_ns};

/// Times that are marked, in ms: shares below them are stated.
const MARKS_MS: [u64; 4] = [80, 100, 150, 300];
/// Points of a curve: more would not be seen.
const POINTS: usize = 400;

struct Curve {
    label: String,
    classes: (String, String),
    agreed: Vec<u64>,
    floor: Vec<u64>,
    command: String,
}

pub(super) fn draw(folders: &[Elections]) -> Option<Figure> {
    let curves: Vec<Curve> =
        folders.iter().flat_map(curves).filter(|curve| !curve.agreed.is_empty()).collect();
    let (first, last) = (
        curves.first()?,
        quantile(&curves.iter().flat_map(|curve| curve.agreed.clone()).collect::<Vec<_>>(), 0.995)?,
    );
    let (body, height) = body(&curves, last as f64 / 1e6);
    Some(Figure {
        id: "elections".into(),
        title: "How long an election takes".into(),
        says: says(&curves),
        how: format!(
            "Share of elections in which all survivors agreed within a time after the aggregator was struck; {} elections per curve. \
             Thin: the floor of each election, the earliest moment at which its timers and eligible survivors let anybody \
             suspect. The axis ends at the 99.5th percentile.",
            count_words(curves.iter().map(|curve| curve.agreed.len()))
        ),
        command: first.command.clone(),
        height,
        body,
    })
}

/// Elections of a folder by setting, in the order in which settings occur.
pub fn settings_of(elections: &Elections) -> Vec<(String, Vec<&Election>)> {
    let mut settings: Vec<(String, Vec<&Election>)> = Vec::new();
    for row in &elections.rows {
        let label = setting(row);
        match settings.iter_mut().find(|(known, _)| *known == label) {
            Some((_, rows)) => rows.push(row),
            None => settings.push((label, vec![row])),
        }
    }
    settings
}

/// One curve per setting of a folder.
fn curves(elections: &Elections) -> Vec<Curve> {
    let curves = settings_of(elections).into_iter().map(|(label, rows)| {
        let (fast, backend) = (rows[0].fast_failover == Some(true), rows[0].backend.replace('_', "-"));
        let sorted = |pick: fn(&Election) -> Option<u64>| {
            let mut values: Vec<u64> = rows.iter().filter_map(|row| pick(row)).collect();
            values.sort_unstable();
            values
        };
        Curve {
            label,
            classes: line_classes(&backend, fast),
            agreed: sorted(|row| row.agreed_ns),
            floor: sorted(|row| row.floor_ns),
            command: elections.provenance.command.clone(),
        }
    });
    curves.collect()
}

fn setting(row: &Election) -> String {
    let fast = if row.fast_failover == Some(true) { ", fast failover" } else { "" };
    let fault =
        if ["", "kill"].contains(&row.fault.as_str()) { String::new() } else { format!(", {}", row.fault) };
    let logs = if row.equal_logs == Some(false) { ", unequal logs" } else { "" };
    let (lo, hi) = (exact_ms(row.window_lo_ns), exact_ms(row.window_hi_ns));
    format!(
        "{}, {} nodes, {}–{} ms{fast}{logs}{fault}",
        row.backend,
        row.nodes,
        lo.trim_end_matches("ms"),
        hi.trim_end_matches("ms")
    )
}

fn says(curves: &[Curve]) -> String {
    let words = curves.iter().filter_map(|curve| {
        let agreed = estimate(&curve.agreed, CONFIDENCE)?;
        let shares = MARKS_MS.map(|ms| {
            let below = curve.agreed.partition_point(|ns| *ns < ms * 1_000_000);
            format!("{:.1} % below {ms} ms", 100.0 * below as f64 / curve.agreed.len() as f64)
        });
        // With lifelines the floor is 0.
        let floor = estimate(&curve.floor, CONFIDENCE).filter(|floor| floor.median > 0);
        let floor = floor
            .map(|floor| format!(", {:.2} times the floor's", agreed.median as f64 / floor.median as f64));
        Some(format!(
            "{}: median {} ({} to {}){}, 99th percentile {}; {}",
            curve.label,
            show_ns(agreed.median),
            show_ns(agreed.lo),
            show_ns(agreed.hi),
            floor.unwrap_or_default(),
            show_ns(quantile(&curve.agreed, 0.99)?),
            shares.join(", ")
        ))
    });
    format!("{}.", words.collect::<Vec<_>>().join(". "))
}

fn body(curves: &[Curve], last_ms: f64) -> (Markup, f64) {
    let mut keys: Vec<(Key, String)> = curves
        .iter()
        .map(|curve| (Key::Line(curve.classes.0.clone(), curve.classes.1.clone()), curve.label.clone()))
        .collect();
    if curves.iter().any(|curve| !curve.floor.is_empty()) {
        keys.push((Key::Line("thin s-prototype".into(), "none".into()), "thin: floor".into()));
    }
    let (legend, top) = legend(&keys, 0.0);
    let area = Area { x: 36.0, y: top + 28.0, w: WIDTH - 50.0, h: 260.0 };
    let x = Scale::from_zero(last_ms, area.x, area.right());
    let y = Scale::between(0.0, 100.0, area.bottom(), area.y);
    let drawn = html! {
        (legend)
        (x_axis(area, &x, "milliseconds after the fault"))
        @for share in [0.0, 25.0, 50.0, 75.0, 100.0] {
            (line((area.x, y.at(share)), (area.right(), y.at(share)), if share == 0.0 { "base" } else { "grid" }))
            (text(area.x - 7.0, y.at(share) + 4.0, "end", "tick", &n(share)))
        }
        (text(area.x - 28.0, area.y - 9.0, "start", "name", "% of elections"))
        @for ms in MARKS_MS.into_iter().map(|ms| ms as f64).filter(|ms| x.at(*ms) < area.right() && last_ms < 2_000.0) {
            (line((x.at(ms), area.y), (x.at(ms), area.bottom()), "mark"))
            (text(x.at(ms) + 3.0, area.bottom() - 6.0, "start", "small halo", &format!("{ms} ms")))
        }
        @for curve in curves {
            (path(&steps(&curve.floor, &x, &y, area), &curve.classes.0.replace("line", "line thin")))
            (path(&steps(&curve.agreed, &x, &y, area), &curve.classes.0))
        }
    };
    (drawn, area.bottom() + 40.0)
}

/// The curve of sorted values, thinned to what can be seen, cut at the axis's end.
fn steps(sorted: &[u64], x: &Scale, y: &Scale, area: Area) -> Vec<(f64, f64)> {
    let every = sorted.len().div_ceil(POINTS).max(1);
    let last = sorted.len().saturating_sub(1);
    let kept = sorted.iter().enumerate().filter(|(index, _)| index % every == 0 || *index == last);
    let points = kept.map(|(index, ns)| {
        let share = 100.0 * (index + 1) as f64 / sorted.len() as f64;
        (x.at(*ns as f64 / 1e6), y.at(share))
    });
    points.filter(|(at, _)| *at <= area.right() + 0.5).collect()
}
