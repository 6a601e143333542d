//! The `harness` command.

use std::process::ExitCode;

use clap::Parser as _;
use harness::{cli::Cli, cmd, exit};

fn main() -> ExitCode {
    let outcome = cmd::run(Cli::parse());
    if let Err(error) = &outcome {
        exit::print_error(error);
    }
    exit::code_of(&outcome).into()
}
