//! Experiments: many trials that a file spells out, in one folder of results that grows trial by trial.
//!
//! ```text
//!   definition --cells--> options of each cell --clap--> a trial each, validated --order--> turns
//!                                                                                             |
//!   folder (tables, manifest)  <-- a row once it is over --  campaign: one run after the other
//! ```
//!
//! A cell is a command line of `harness run`: what its options mean is known there and nowhere here. Which trials there
//! are, their seeds and their order follow from the file alone, so that an experiment that was interrupted goes on where it
//! stopped.

pub mod campaign;
pub mod cells;
pub mod definition;
mod display;
pub mod estimate;
pub mod manifest;
pub mod row;
pub mod shipped;
pub mod tables;

use std::fmt::Write as _;

use self::cells::{Options, Turn};
use self::definition::{Definition, Known, Level};
use crate::cli::{RunArgs, WorkloadArg, run_options};
use crate::exit::Usage;
use crate::plan::Trial;
use crate::units::show_ns;

/// Most trials that are run without being asked for.
pub const MAX_TRIALS_UNASKED: u64 = 500;
/// Longest estimate of a whole experiment that is run without being asked for.
pub const MAX_ESTIMATE_UNASKED_NS: u64 = 4 * 3600 * 1_000_000_000;
/// Most trials at all.
pub const MAX_TRIALS: u64 = 20_000;
/// Bad cells that are named in one message.
const MAX_NAMED: usize = 10;

/// One cell: a command line, and what it means.
#[derive(Debug)]
pub struct Cell {
    /// Its options.
    pub options: Options,
    /// What it means, with a seed that is not a trial's.
    pub trial: Trial,
    /// How long one trial of it will take.
    pub estimate_ns: u64,
}

/// An experiment with everything that follows from its definition.
#[derive(Debug)]
pub struct Experiment {
    /// The definition.
    pub definition: Definition,
    /// Its cells.
    pub cells: Vec<Cell>,
    /// Its trials, in the order in which they are run.
    pub turns: Vec<Turn>,
    known: Vec<Known>,
}

impl Experiment {
    /// Makes every cell and checks all of them.
    ///
    /// # Errors
    /// Too many trials; or every cell (of the first ten) that is no valid run, with what is wrong with it.
    pub fn resolve(definition: Definition) -> Result<Self, Usage> {
        let known = run_options();
        let trials = cells::count(&definition).and_then(|cells| cells.checked_mul(definition.repetitions));
        let trials = trials.filter(|trials| *trials <= MAX_TRIALS).ok_or_else(|| {
            let name = &definition.name;
            Usage(format!("experiment {name}: more than {MAX_TRIALS} trials; split it, or leave factors out"))
        })?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (mut cells, mut bad) = (Vec::new(), Vec::new());
        for options in cells::cells(&definition) {
            let words = cells::words(&options, &known);
            match RunArgs::of_words(&words).and_then(|args| args.to_trial(0)) {
                Ok(trial) => {
                    let estimate_ns = estimate::trial_ns(&trial, cores);
                    cells.push(Cell { options, trial, estimate_ns });
                }
                Err(error) => bad.push(format!("cell {}: {error}", words.join(" "))),
            }
        }
        if !bad.is_empty() {
            let mut message =
                format!("experiment {}: {} of its cells are no valid run", definition.name, bad.len());
            for line in bad.iter().take(MAX_NAMED) {
                let _ = write!(message, "\n  {line}");
            }
            return Err(Usage(message));
        }
        let is_kv = |cell: &Cell| cell.trial.plan.kv.is_some();
        if cells.iter().any(is_kv) && !cells.iter().all(is_kv) {
            let name = &definition.name;
            return Err(Usage(format!(
                "experiment {name}: workload: its cells have different ones, whose figures fit no table; give it in [fixed]"
            )));
        }
        debug_assert!(cells.len() as u64 * definition.repetitions <= trials);
        let options: Vec<Options> = cells.iter().map(|cell| cell.options.clone()).collect();
        let turns = cells::order(&definition, &options, &known);
        Ok(Self { definition, cells, turns, known })
    }

    /// The workload of all trials.
    #[must_use]
    pub fn workload(&self) -> WorkloadArg {
        let kv = self.cells.iter().any(|cell| cell.trial.plan.kv.is_some());
        if kv { WorkloadArg::Kv } else { WorkloadArg::Federated }
    }

    /// Refuses what is so much that it may be a mistake.
    ///
    /// # Errors
    /// More trials, or a longer estimate, than is run without being asked for.
    pub fn check_size(&self) -> Result<(), Usage> {
        let (trials, estimate) = (self.turns.len() as u64, self.estimate_ns());
        if trials <= MAX_TRIALS_UNASKED && estimate <= MAX_ESTIMATE_UNASKED_NS {
            return Ok(());
        }
        Err(Usage(format!(
            "experiment {}: {trials} trials, about {}; more than {MAX_TRIALS_UNASKED} trials or {} are run only with --yes",
            self.definition.name,
            show_ns(estimate),
            show_ns(MAX_ESTIMATE_UNASKED_NS),
        )))
    }

    /// How long all trials will take.
    #[must_use]
    pub fn estimate_ns(&self) -> u64 {
        self.turns.iter().map(|turn| self.cells[turn.cell].estimate_ns).sum()
    }

    /// The command line of a trial, without the program's name.
    #[must_use]
    pub fn words(&self, turn: &Turn) -> Vec<String> {
        let mut words = cells::words(&self.cells[turn.cell].options, &self.known);
        words.push(format!("--seed={}", turn.seed));
        words
    }

    /// What tells a trial from the others, for people.
    #[must_use]
    pub fn label(&self, turn: &Turn) -> String {
        let options = &self.cells[turn.cell].options;
        let varied = self.definition.varied();
        let named = varied.iter().filter_map(|option| match options.get(*option)? {
            Level::All(values) if values.is_empty() => Some(format!("no {option}")),
            level => Some(format!("{option} {level}")),
        });
        named.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str) -> Result<Experiment, Usage> {
        Experiment::resolve(definition::tests::parse(text).unwrap())
    }

    #[test]
    fn every_bad_cell_is_named_before_anything_starts() {
        let message = resolve("name = \"x\"\n[factors]\nnodes = [1, 3, 999]\nrounds = [1, \"a\"]")
            .unwrap_err()
            .to_string();
        assert!(message.starts_with("experiment x: 5 of its cells are no valid run"), "{message}");
        assert!(message.contains("cell --nodes=1 --rounds=1: --nodes 1: "), "{message}");
        assert!(
            message.contains("cell --nodes=3 --rounds=a: invalid value 'a' for '--rounds <N>'"),
            "{message}"
        );
        assert_eq!(message.lines().count(), 6);
    }

    #[test]
    fn workloads_are_not_mixed() {
        let message =
            resolve("name = \"x\"\n[factors]\nworkload = [\"kv\", \"federated\"]").unwrap_err().to_string();
        assert!(message.starts_with("experiment x: workload: its cells have different ones"), "{message}");
    }

    #[test]
    fn size_is_limited() {
        let text = |repetitions: u64| {
            format!("name = \"x\"\nrepetitions = {repetitions}\n[factors]\nnodes = [3, 4]")
        };
        assert!(resolve(&text(3)).unwrap().check_size().is_ok());
        let message = resolve(&text(300)).unwrap().check_size().unwrap_err().to_string();
        assert!(message.contains("600 trials") && message.contains("--yes"), "{message}");
        assert!(resolve(&text(1_000_000)).unwrap_err().to_string().contains("more than 20000 trials"));
    }

    #[test]
    fn shipped_experiments_are_valid_and_small_enough() {
        for (name, text) in shipped::SHIPPED {
            let definition = Definition::parse(text, name, &run_options()).unwrap();
            assert_eq!(definition.name, name);
            assert!(!definition.about.is_empty());
            Experiment::resolve(definition).unwrap().check_size().unwrap();
        }
    }
}
