//! The options of `harness experiment`, and `harness run`'s options as an experiment file may use them.

use std::path::PathBuf;

use clap::{ArgAction, Args, CommandFactory as _, Parser as _, Subcommand};

use super::{Cli, Command, RunArgs};
use crate::exit::Usage;
use crate::experiment::definition::{Arity, Known};

/// `harness experiment`.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum ExperimentCommand {
    /// Run an experiment, or what is left of one.
    ///
    /// Trials run one after the other, each repetition of all cells before the next one. Every trial that is over is
    /// written down; after Ctrl-C, or whatever else ends it, the same command with the results folder goes on with the rest.
    Run(ExperimentRunArgs),
    /// List the experiments that are part of this program, with their trials and how long they will take.
    List,
    /// Show an experiment, its cells, and the command of each trial.
    Show(ExperimentShowArgs),
}

/// `harness experiment run`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ExperimentRunArgs {
    /// Which experiment.
    #[command(flatten)]
    pub which: ExperimentShowArgs,
    /// The results folder of this experiment, to go on with the trials that are missing in it.
    #[arg(long, value_name = "DIR", conflicts_with = "out")]
    pub resume: Option<PathBuf>,
    /// Folder that receives a folder for the experiment, with a results folder named after time and host.
    #[arg(long, value_name = "DIR", default_value = "results")]
    pub out: PathBuf,
    /// Run it although it has very many trials or will take very long.
    #[arg(long)]
    pub yes: bool,
    /// Leave progress out; warnings stay.
    #[arg(long)]
    pub quiet: bool,
}

/// Which experiment.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ExperimentShowArgs {
    /// Name of an experiment (see `harness experiment list`), a TOML file, or the results folder of one.
    #[arg(value_name = "NAME|FILE.toml|DIR")]
    pub source: String,
    /// An option of `harness run` for all trials, in place of what the experiment says of it. Repeatable.
    #[arg(long, value_name = "OPTION=VALUE")]
    pub set: Vec<String>,
    /// How often each cell is run, in place of what the experiment says.
    #[arg(long, value_name = "N")]
    pub repetitions: Option<u64>,
}

/// The options of `harness run`.
#[must_use]
pub fn run_options() -> Vec<Known> {
    let command = Cli::command();
    let run = command.find_subcommand("run");
    let arguments = run.into_iter().flat_map(clap::Command::get_arguments);
    let known = arguments.filter_map(|argument| {
        let arity = match argument.get_action() {
            ArgAction::SetTrue => Arity::Flag,
            ArgAction::Append => Arity::Repeatable,
            ArgAction::Set => Arity::Once,
            _ => return None,
        };
        let heading = argument.get_help_heading().unwrap_or_default();
        let of_store_or_network =
            ["Replication", "Placement"].contains(&heading) || heading.starts_with("Backend ");
        Some(Known { name: argument.get_long()?.to_owned(), arity, of_store_or_network })
    });
    known.collect()
}

impl RunArgs {
    /// Reads the options of `harness run` from the words behind it.
    ///
    /// # Errors
    /// What is wrong with them, on one line.
    pub fn of_words(words: &[String]) -> Result<Self, Usage> {
        let all = ["harness", "run"].map(str::to_owned).into_iter().chain(words.iter().cloned());
        let in_a_line = |error: clap::Error| {
            let text = error.to_string();
            let first = text.split("\n\n").next().unwrap_or_default();
            Usage(first.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" "))
        };
        match Cli::try_parse_from(all).map_err(in_a_line)?.command {
            Command::Run(args) => args.with_hosts(),
            _ => Err(Usage("not a command line of `harness run`".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_known_by_how_often_they_are_given_and_what_they_are_about() {
        let options = run_options();
        let of = |name: &str| options.iter().find(|known| known.name == name).cloned().unwrap();
        assert_eq!((of("backend").arity, of("backend").of_store_or_network), (Arity::Once, true));
        assert_eq!((of("holders").arity, of("holders").of_store_or_network), (Arity::Once, true));
        assert_eq!((of("fault").arity, of("fault").of_store_or_network), (Arity::Repeatable, false));
        assert_eq!((of("resend").arity, of("resend").of_store_or_network), (Arity::Flag, false));
        assert!(options.iter().all(|known| known.name != "help"));
    }

    #[test]
    fn what_is_wrong_with_words_fits_on_a_line() {
        let error = |words: &[&str]| {
            RunArgs::of_words(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
                .unwrap_err()
                .to_string()
        };
        assert!(error(&["--nodes=x"]).starts_with("invalid value 'x' for '--nodes <N>'"));
        assert!(!error(&["--backend=paxos"]).contains('\n'));
    }
}
