//! Runs the trials of an experiment that are not over yet, one after the other, and writes each down when it is.
//!
//! It does not know how a single run is carried out: [`Runner`] does that.

use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use super::Experiment;
use super::cells::Turn;
use super::display::Display;
use super::estimate::remaining_ns;
use super::manifest::Manifest;
use super::row::{self, Ended, Told};
use super::tables::Tables;
use crate::cli::RunArgs;
use crate::clock;
use crate::exit::Exit;
use crate::plan::Trial;
use crate::record::{Outcome, write_whole};
use crate::run::Stop;
use crate::units::show_ns;

/// Carries out a single run.
pub trait Runner {
    /// Runs `trial`, which `args` describe, to its end; its results go to the folder `dir`.
    fn run(
        &self,
        args: &RunArgs,
        trial: Trial,
        dir: PathBuf,
        stops: mpsc::Receiver<Stop>,
    ) -> impl Future<Output = anyhow::Result<Told>>;
}

/// An experiment under way in its folder.
#[derive(Debug)]
pub struct Campaign {
    experiment: Experiment,
    dir: PathBuf,
    tables: Tables,
    manifest: Manifest,
    display: Display,
    /// Estimate and measurement of each trial that this process ran.
    over: Vec<(u64, u64)>,
}

/// How one turn went.
enum Turned {
    Over(Box<Ended>),
    Stopped(Stop),
}

impl Campaign {
    /// An experiment in the folder `dir`, whose tables and manifest are there.
    #[must_use]
    pub fn new(
        experiment: Experiment,
        dir: PathBuf,
        tables: Tables,
        manifest: Manifest,
        quiet: bool,
    ) -> Self {
        let (trials, over) = (experiment.turns.len() as u64, tables.done().len() as u64);
        let display = Display::new(trials, over, quiet);
        Self { experiment, dir, tables, manifest, display, over: Vec::new() }
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A warning to the user.
    pub fn warn(&self, text: &str) {
        self.display.warn(text);
    }

    /// Runs what is left until it is done or a signal comes, and writes how it ended.
    ///
    /// # Errors
    /// If results cannot be written. Trials that fail are no error.
    pub async fn run(
        mut self,
        runner: &impl Runner,
        mut signals: mpsc::Receiver<Stop>,
    ) -> anyhow::Result<(Exit, String)> {
        self.write_manifest()?;
        let count = self.experiment.turns.len();
        self.display.note(&format!(
            "experiment {}: {count} trials, {} of them over, about {} left; results go to {}",
            self.experiment.definition.name,
            self.tables.done().len(),
            show_ns(self.remaining_ns()),
            self.dir.display(),
        ));
        let turns = self.experiment.turns.clone();
        let mut stopped = None;
        for turn in turns.iter().filter(|turn| !self.tables.done().contains(&turn.trial)).collect::<Vec<_>>()
        {
            let begun = clock::monotonic_ns();
            match self.turn(turn, runner, &mut signals).await? {
                Turned::Stopped(stop) => {
                    stopped = Some(stop);
                    break;
                }
                Turned::Over(ended) => self.over(turn, &ended, clock::monotonic_ns() - begun)?,
            }
        }
        self.conclude(stopped)
    }

    /// Runs one trial and commits its row.
    async fn turn(
        &mut self,
        turn: &Turn,
        runner: &impl Runner,
        signals: &mut mpsc::Receiver<Stop>,
    ) -> anyhow::Result<Turned> {
        if let Ok(stop) = signals.try_recv() {
            return Ok(Turned::Stopped(stop));
        }
        self.display.running(&self.experiment.label(turn), self.remaining_ns());
        let args = RunArgs::of_words(&self.experiment.words(turn))?;
        let trial = args.to_trial(turn.seed)?;
        let started_utc = clock::utc_rfc3339(clock::utc_now());
        let (sender, stops) = mpsc::channel(1);
        let mut running =
            std::pin::pin!(runner.run(&args, trial.clone(), self.tables.raw(turn.trial), stops));
        let mut stopped = None;
        let summary = loop {
            tokio::select! {
                summary = &mut running => break summary,
                Some(stop) = signals.recv() => {
                    stopped = Some(stop);
                    let _ = sender.try_send(stop);
                }
            }
        };
        let summary = summary.map_err(|error| format!("{error:#}"));
        let ended = Ended { started_utc, summary };
        if let (Outcome::Interrupted | Outcome::Terminated, Some(stop)) = (ended.outcome(), stopped) {
            return Ok(Turned::Stopped(stop));
        }
        let options = &self.experiment.cells[turn.cell].options;
        let values = row::values(self.tables.columns(), turn, options, &args, &trial, &ended);
        self.tables.commit(turn.trial, &values, ended.outcome() == Outcome::Completed)?;
        // It ended by itself at the moment the signal came.
        if let Some(stop) = stopped {
            return Ok(Turned::Stopped(stop));
        }
        Ok(Turned::Over(Box::new(ended)))
    }

    fn over(&mut self, turn: &Turn, ended: &Ended, took_ns: u64) -> anyhow::Result<()> {
        self.over.push((self.experiment.cells[turn.cell].estimate_ns, took_ns));
        let how = match ended.outcome() {
            Outcome::Completed => "completed".to_owned(),
            _ => format!("FAILED: {}", ended.reason()),
        };
        let mut line = format!(
            "trial {}/{} ({}): {how} in {}",
            turn.trial,
            self.experiment.turns.len(),
            self.experiment.label(turn),
            show_ns(took_ns),
        );
        let remaining_ns = self.remaining_ns();
        if remaining_ns > 0 {
            line.push_str(&format!("; about {} left", show_ns(remaining_ns)));
        }
        self.display.over(&line);
        self.write_manifest()
    }

    fn remaining_ns(&self) -> u64 {
        let left = self.experiment.turns.iter().filter(|turn| !self.tables.done().contains(&turn.trial));
        remaining_ns(&self.over, left.map(|turn| self.experiment.cells[turn.cell].estimate_ns).sum())
    }

    fn conclude(mut self, stopped: Option<Stop>) -> anyhow::Result<(Exit, String)> {
        self.display.clear();
        let (done, failed) = (self.tables.done().len(), self.tables.failed().len());
        let all = self.experiment.turns.len();
        let (outcome, exit) = match stopped {
            Some(Stop::Interrupt) => (Outcome::Interrupted, Exit::Interrupted),
            Some(Stop::Terminate) => (Outcome::Terminated, Exit::Terminated),
            None if failed > 0 => (Outcome::Failed, Exit::Failed),
            None => (Outcome::Completed, Exit::Success),
        };
        let mut message = format!("{done} of {all} trials are over, {failed} of them did not complete");
        if done < all {
            message.push_str(&format!("; continue with `harness experiment run {}`", self.dir.display()));
        }
        self.manifest.ended(outcome, message.clone(), exit.code());
        self.write_manifest()?;
        Ok((exit, message))
    }

    fn write_manifest(&mut self) -> anyhow::Result<()> {
        self.manifest.trials_finished = self.tables.done().len() as u64;
        self.manifest.trials_failed = self.tables.failed().len() as u64;
        let mut text = serde_json::to_vec_pretty(&self.manifest)?;
        text.push(b'\n');
        write_whole(&self.dir, "manifest.json", &text)
    }
}
