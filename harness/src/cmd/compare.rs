//! `harness compare`: two results folders, cell by cell.

use std::path::Path;

use comfy_table::{Table, presets};

use super::print;
use crate::cli::CompareArgs;
use crate::exit::{Exit, Usage};
use crate::report::compare::{Comparison, Difference, Side, compare};
use crate::report::load;
use crate::units::{show_bytes, show_ns};

pub(super) fn run(args: &CompareArgs) -> anyhow::Result<Exit> {
    let read = |dir: &Path| load::read(&[dir.to_path_buf()]);
    let (a, b) = (read(&args.a)?, read(&args.b)?);
    if a.elections.is_empty() != b.elections.is_empty() {
        let kind = |elections: bool| if elections { "elections" } else { "trials" };
        return Err(Usage(format!(
            "{} holds {}, {} holds {}; compare folders of the same kind",
            args.a.display(),
            kind(!a.elections.is_empty()),
            args.b.display(),
            kind(!b.elections.is_empty())
        ))
        .into());
    }
    let comparison = compare(&a, &b, &args.across);
    if comparison.differences.is_empty() {
        return Err(nothing_in_common(args, &comparison));
    }
    if args.json {
        let mut text = serde_json::to_vec_pretty(&comparison)?;
        text.push(b'\n');
        print(&text)?;
    } else {
        print(in_words(&comparison).as_bytes())?;
    }
    Ok(Exit::Success)
}

/// Names what the first cells of both differ in.
fn nothing_in_common(args: &CompareArgs, comparison: &Comparison) -> anyhow::Error {
    let settings = |cells: &[String]| -> Vec<String> {
        cells.first().into_iter().flat_map(|cell| cell.split(' ')).map(str::to_owned).collect()
    };
    let (a, b) = (settings(&comparison.only_a), settings(&comparison.only_b));
    let own = |of: &[String], other: &[String]| {
        let own: Vec<&str> =
            of.iter().filter(|setting| !other.contains(setting)).map(String::as_str).collect();
        if own.is_empty() { "nothing else".to_owned() } else { own.join(" ") }
    };
    Usage(format!(
        "{} and {} have no cell in common: {} against {}; name factors in which cells may differ with --across",
        args.a.display(),
        args.b.display(),
        own(&a, &b),
        own(&b, &a)
    ))
    .into()
}

fn in_words(comparison: &Comparison) -> String {
    let mut text = String::new();
    for of_cell in comparison.differences.chunk_by(|one, next| one.cell == next.cell) {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_header(["quantity", "A (95 %)", "B (95 %)", "B - A", "B / A", "real"]);
        table.add_rows(of_cell.iter().map(row));
        text += &format!("{}\n{table}\n\n", of_cell[0].cell);
    }
    for (which, cells) in [("A", &comparison.only_a), ("B", &comparison.only_b)] {
        for cell in cells {
            text += &format!("only in {which}: {cell}\n");
        }
    }
    let real = comparison.differences.iter().filter(|difference| difference.real).count();
    text += &format!(
        "{real} of {} differences are real: the interval of the ratio at {:.2} % (95 % over all comparisons, Bonferroni) leaves 1 out, \
         with at least {} samples on each side\n",
        comparison.differences.len(),
        comparison.confidence * 100.0,
        comparison.min_samples
    );
    text
}

fn row(difference: &Difference) -> [String; 6] {
    let show: fn(u64) -> String = if difference.quantity.contains("_ns") { show_ns } else { show_bytes };
    let side = |side: Side| {
        format!("{} ({} to {}, n = {})", show(side.median), show(side.lo), show(side.hi), side.n)
    };
    let sign = if difference.difference < 0 { "-" } else { "+" };
    let ratio = match (difference.ratio, difference.ratio_lo, difference.ratio_hi) {
        (Some(ratio), Some(lo), Some(hi)) => format!("{ratio:.3} ({lo:.3} to {hi:.3})"),
        _ => "-".into(),
    };
    [
        difference.quantity.to_owned(),
        side(difference.a),
        side(difference.b),
        format!("{sign}{}", show(difference.difference.unsigned_abs())),
        ratio,
        if difference.real { "yes".into() } else { "no".into() },
    ]
}
