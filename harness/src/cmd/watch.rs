//! `harness watch`: how the nodes of a running cluster are, on the terminal.

use std::io::{IsTerminal as _, stdout};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::termios::tcgetwinsize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use super::print;
use crate::cli::WatchArgs;
use crate::exit::{Exit, Usage, print_warning};
use crate::watch::ask;
use crate::watch::table::{Row, answering, render};
use crate::watch::targets::Targets;

/// Where runs are, unless said otherwise.
const RUNS: &str = "results/run";
/// Nodes have something else to do.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

pub(super) fn run(args: &WatchArgs) -> anyhow::Result<Exit> {
    let interval = args.interval.0;
    if interval < SHORTEST_INTERVAL {
        let wrong = "nodes would be asked all the time";
        return Err(Usage::option("--interval", args.interval, wrong, "use 100ms or more").into());
    }
    let targets = if args.metrics.is_empty() {
        Targets::of_run(args.of.as_deref().unwrap_or(Path::new(RUNS)))?
    } else {
        Targets::at(&args.metrics)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let live = !args.once && stdout().is_terminal();
    runtime.context("cannot start the runtime")?.block_on(async {
        if live { follow(targets, interval).await } else { look_once(targets, interval).await }
    })
}

async fn look(rows: &mut [Row], targets: &Targets) {
    for (row, answer) in rows.iter_mut().zip(ask::all(&targets.all).await) {
        row.take(answer);
    }
}

/// Asks twice, since rates need two answers, and prints what there is.
async fn look_once(targets: Targets, apart: Duration) -> anyhow::Result<Exit> {
    let mut rows: Vec<Row> = targets.all.iter().cloned().map(Row::of).collect();
    look(&mut rows, &targets).await;
    if answering(&rows) > 0 {
        sleep(apart).await;
        look(&mut rows, &targets).await;
    }
    print(render(&rows, None).as_bytes())?;
    if answering(&rows) > 0 {
        return Ok(Exit::Success);
    }
    print_warning("no node answers");
    if let Some(hint) = &targets.hint {
        print_warning(hint);
    }
    Ok(Exit::Failed)
}

/// Asks again and again, until somebody has seen enough.
async fn follow(targets: Targets, every: Duration) -> anyhow::Result<Exit> {
    let live = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
    live.set_style(ProgressStyle::with_template("{msg}")?);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut rows: Vec<Row> = targets.all.iter().cloned().map(Row::of).collect();
    loop {
        let round = async {
            look(&mut rows, &targets).await;
            let width = tcgetwinsize(stdout()).map(|size| size.ws_col).ok().filter(|width| *width > 0);
            let mut text = render(&rows, width);
            if let (0, Some(hint)) = (answering(&rows), &targets.hint) {
                text += hint;
            }
            live.set_message(text.trim_end().to_owned());
            live.tick();
            sleep(every).await;
        };
        tokio::select! {
            biased;
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = round => {}
        }
    }
    // The last view stays.
    live.abandon();
    Ok(Exit::Success)
}
