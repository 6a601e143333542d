//! `harness capture`: the packets of an interface by port and direction, live, and as CSV.

use std::fs::File;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::print;
use crate::capability::capture_remedy;
use crate::capture::table::{Counts, CsvRow};
use crate::capture::{Capture, CaptureError, Interval, Settings};
use crate::cli::CaptureArgs;
use crate::exit::{Exit, Usage, print_error, print_warning};

/// Seconds that wait to be shown; beyond that the capture waits, and its socket fills.
const WAITING_INTERVALS: usize = 64;

pub(super) fn run(args: &CaptureArgs) -> anyhow::Result<Exit> {
    let settings = Settings { others: false, ..Settings::everything(&args.interface, &args.ports) };
    let (sender, intervals) = mpsc::channel(WAITING_INTERVALS);
    let capture = Capture::start(&settings, move |interval| {
        // Nobody listens any more only when the program ends.
        let _ = sender.blocking_send(interval);
    });
    let capture = capture.map_err(|error| refusal(args, error))?;
    let csv = args.csv.as_ref().map(|path| {
        let refuse = |error| {
            Usage::option(
                "--csv",
                path.display(),
                format_args!("cannot be made ({error})"),
                "name a new file",
            )
        };
        File::create_new(path).map_err(refuse)
    });
    let csv = csv.transpose()?.map(|file| csv::WriterBuilder::new().has_headers(false).from_writer(file));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(follow(args, capture, intervals, csv))
}

fn refusal(args: &CaptureArgs, error: CaptureError) -> anyhow::Error {
    let usage = |option, value: &dyn std::fmt::Display, remedy: &str| {
        Usage::option(option, value, &error, remedy).into()
    };
    match error {
        CaptureError::NoInterface { .. } => usage("--interface", &args.interface, "name one of them"),
        CaptureError::NotPermitted => usage("--interface", &args.interface, &capture_remedy()),
        CaptureError::TooManyPorts => usage("--port", &args.ports.len(), "leave some out"),
        CaptureError::System { .. } => error.into(),
    }
}

async fn follow(
    args: &CaptureArgs,
    capture: Capture,
    mut intervals: mpsc::Receiver<Interval>,
    mut csv: Option<csv::Writer<File>>,
) -> anyhow::Result<Exit> {
    if let Some(csv) = &mut csv {
        csv.serialize(CsvRow::COLUMNS)?;
    }
    let mut counts = Counts::new(&args.ports);
    let live = if args.quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    live.set_style(ProgressStyle::with_template("{msg}")?);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let end = args.duration.map_or(Duration::MAX, |span| span.0);
    let mut end = std::pin::pin!(tokio::time::sleep(end));
    let mut capture = Some(capture);
    let mut failure = None;
    // Ends when the capture has: it holds the other end of the channel.
    loop {
        let running = capture.is_some();
        tokio::select! {
            biased;
            _ = interrupt.recv(), if running => stop(&mut capture),
            _ = terminate.recv(), if running => stop(&mut capture),
            () = &mut end, if running => stop(&mut capture),
            interval = intervals.recv() => {
                let Some(interval) = interval else { break };
                let exact_before = !counts.is_inexact();
                counts.add(&interval);
                if exact_before && counts.is_inexact() {
                    live.suspend(|| warn_of_offloads(&args.interface));
                }
                if let Some(csv) = &mut csv {
                    CsvRow::of(&args.interface, &interval).try_for_each(|row| csv.serialize(row))?;
                    csv.flush().context("cannot write the CSV file")?;
                }
                live.set_message(counts.render());
                failure = interval.failure;
            }
        }
    }
    live.finish_and_clear();
    print(counts.render().as_bytes())?;
    if let Some(failure) = failure {
        anyhow::bail!("the capture on {} ended: {failure}", args.interface);
    }
    if counts.dropped_packets() > 0 {
        let dropped = counts.dropped_packets();
        print_error(&anyhow::anyhow!("the counts are too low: the kernel dropped {dropped} packets"));
        return Ok(Exit::Failed);
    }
    Ok(Exit::Success)
}

fn warn_of_offloads(interface: &str) {
    print_warning(&format!(
        "what is counted on {interface} are not the packets of a wire: it is loopback, or has segmentation offloads on \
         (ethtool -K {interface} tso off gso off gro off)"
    ));
}

/// Ends the capture on another thread, because it still has something to tell.
fn stop(capture: &mut Option<Capture>) {
    if let Some(capture) = capture.take() {
        tokio::task::spawn_blocking(move || capture.finish());
    }
}
