//! How a command ends: exit codes, and the one place that prints an error.

use std::io::Write as _;
use std::process::ExitCode;

/// How the program ends, as its caller sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Success,
    /// 1: it was tried and failed.
    Failed,
    /// 2: bad input; nothing was started or written.
    BadInput,
    /// 3: the run ended, because too few nodes are alive for anything to be acknowledged.
    NoMajority,
    /// 130: ended by SIGINT.
    Interrupted,
    /// 143: ended by SIGTERM.
    Terminated,
}

impl Exit {
    /// The process's exit code.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failed => 1,
            Self::BadInput => 2,
            Self::NoMajority => 3,
            Self::Interrupted => 130,
            Self::Terminated => 143,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Bad input: one line that names the option or file, the value, and what would help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

impl Usage {
    /// An error about `option` with `value` (empty for a flag): what is `wrong`, and the `remedy`.
    #[must_use]
    pub fn option(
        option: &str,
        value: impl std::fmt::Display,
        wrong: impl std::fmt::Display,
        remedy: impl std::fmt::Display,
    ) -> Self {
        let given = format!("{option} {value}");
        Self(format!("{}: {wrong}; {remedy}", given.trim_end()))
    }
}

/// How the program ends with this outcome.
#[must_use]
pub fn code_of(outcome: &anyhow::Result<Exit>) -> Exit {
    match outcome {
        Ok(exit) => *exit,
        Err(error) if error.chain().any(|cause| cause.is::<Usage>()) => Exit::BadInput,
        Err(_) => Exit::Failed,
    }
}

/// Prints `error` with its causes on one line of standard error. A closed standard error is no reason to panic.
pub fn print_error(error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
}

/// Prints a warning as a line of standard error.
pub fn print_warning(text: &str) {
    let _ = writeln!(std::io::stderr(), "warning: {text}");
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn bad_input_is_told_apart_from_failure_under_any_context() {
        let usage: anyhow::Result<Exit> = Err(Usage("--nodes 0".into())).context("while checking");
        assert_eq!(code_of(&usage), Exit::BadInput);
        assert_eq!(code_of(&Err(anyhow::anyhow!("no"))), Exit::Failed);
        assert_eq!(code_of(&Ok(Exit::NoMajority)).code(), 3);
        assert_eq!(code_of(&Ok(Exit::Terminated)).code(), 143);
    }
}
