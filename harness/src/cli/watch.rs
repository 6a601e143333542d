//! Options of `harness watch`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::values::{Span, seconds};

/// `harness watch`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct WatchArgs {
    /// The results folder of a run under way, or a folder of such folders, of which the newest is taken [default: results/run].
    #[arg(value_name = "DIR", conflicts_with = "metrics")]
    pub of: Option<PathBuf>,
    /// Where nodes show their metrics, instead of a results folder: IP:PORT, several with commas between them.
    #[arg(long, value_name = "IP:PORT,...", value_delimiter = ',')]
    pub metrics: Vec<SocketAddr>,
    /// From one look to the next (seconds unless a unit is given).
    #[arg(long, value_name = "DURATION", value_parser = seconds, default_value = "1s")]
    pub interval: Span,
    /// Print the view once, also on a terminal. Asks twice, an interval apart, since bytes per second need two answers.
    #[arg(long)]
    pub once: bool,
}
