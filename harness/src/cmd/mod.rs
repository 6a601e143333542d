//! One file per subcommand.

mod capture;
mod compare;
mod data;
mod doctor;
mod election;
mod experiment;
mod kv;
mod leaderboard;
mod node;
mod recover;
mod report;
mod run;
mod tend;
mod watch;

use clap::CommandFactory as _;

use crate::cli::{Cli, Command, LeaderboardCommand};
use crate::exit::Exit;
use crate::probe;

/// Does what the command line asks for.
///
/// # Errors
/// What went wrong; [`crate::exit::code_of`] tells bad input from failure.
pub fn run(cli: Cli) -> anyhow::Result<Exit> {
    match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Experiment { command } => experiment::run(&command),
        Command::Election(args) => election::run(&args),
        Command::Recover(args) => recover::run(&args),
        Command::Node => node::run(),
        Command::Tend => tend::run(),
        Command::Doctor(args) => doctor::run(&args),
        Command::Probe => {
            probe::serve(std::io::stdin().lock(), std::io::stdout().lock())?;
            Ok(Exit::Success)
        }
        Command::Capture(args) => capture::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Kv(args) => kv::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Leaderboard { command: LeaderboardCommand::Serve(args) } => leaderboard::serve(*args),
        Command::Data { command } => data::run(&command),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "harness", &mut script);
            print(&script)?;
            Ok(Exit::Success)
        }
    }
}

/// Writes to standard output. A reader that has seen enough is no error.
fn print(bytes: &[u8]) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
