//! The `harness` command.

use std::process::ExitCode;

use clap::Parser as _;
use harness::{cli::Cli, cmd, exit};

/// A small operation is some dozens of allocations on its way through a node: with glibc's allocator a fifth of a key-value run's
/// processor time.
#[cfg(target_pointer_width = "64")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let outcome = cmd::run(Cli::parse());
    if let Err(error) = &outcome {
        exit::print_error(error);
    }
    exit::code_of(&outcome).into()
}
