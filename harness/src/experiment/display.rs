//! What a person sees of an experiment as it goes: a live line on a terminal, plain lines elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::units::show_ns;

/// Shows an experiment as it goes, on standard error.
#[derive(Debug)]
pub(super) struct Display {
    bar: Option<ProgressBar>,
    quiet: bool,
}

impl Display {
    /// For so many trials, of which some are over.
    pub(super) fn new(trials: u64, over: u64, quiet: bool) -> Self {
        let live = !quiet && std::io::stderr().is_terminal();
        Self { bar: live.then(|| live_line(trials, over)), quiet }
    }

    /// A line, unless quiet.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }

    /// A warning, always.
    pub(super) fn warn(&self, text: &str) {
        self.line(&format!("warning: {text}"));
    }

    fn line(&self, text: &str) {
        let write = || {
            let _ = writeln!(std::io::stderr(), "{text}");
        };
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Names the trial that runs, and what is left.
    pub(super) fn running(&self, label: &str, remaining_ns: u64) {
        if let Some(bar) = &self.bar {
            bar.set_prefix(format!("about {} left", show_ns(remaining_ns)));
            bar.set_message(label.to_owned());
        }
    }

    /// A trial is over.
    pub(super) fn over(&self, line: &str) {
        self.note(line);
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    /// Removes the live line.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn live_line(trials: u64, over: u64) -> ProgressBar {
    let bar = ProgressBar::new(trials).with_position(over);
    if let Ok(style) =
        ProgressStyle::with_template("{spinner} {bar:20} {pos}/{len} trials, {prefix}\n  {wide_msg}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
