//! `harness node`: a node as a process. Joins its stdin and stdout to [`node::run`]; the log goes to stderr.

use std::io;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Signal, set_parent_process_death_signal};
use tracing_subscriber::EnvFilter;

use crate::control::node_end;
use crate::exit::Exit;
use crate::node;

/// Threads for IO. Training has its own: they must never take the turn of a heartbeat.
const IO_THREADS: usize = 2;
/// How long background work may take to stop at the end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);
/// What is logged where `RUST_LOG` does not say otherwise.
pub(super) const DEFAULT_LOG: &str = "info,openraft=warn,quinn=warn";

pub(super) fn run() -> anyhow::Result<Exit> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(io::stderr).init();
    // Whoever starts a node asks for this before exec, where the kernel forgets it if the program's file has capabilities. Where
    // the parent is gone already, so is the other end of standard input.
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot end with the parent")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(IO_THREADS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let stdin = tokio::io::BufReader::new(tokio::io::stdin());
    let outcome = runtime.block_on(node_end::serve(stdin, tokio::io::stdout(), node::run));
    // The thread that reads stdin may be in the middle of a read that never ends.
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    outcome.map(|()| Exit::Success)
}
