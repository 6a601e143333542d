//! `harness tend`: the far end of a run over ssh. Joins its stdin and stdout to [`tend::run`]; the log goes to stderr.

use std::io;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

use super::node::DEFAULT_LOG;
use super::run::block_on;
use crate::exit::Exit;
use crate::tend;

pub(super) fn run() -> anyhow::Result<Exit> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(io::stderr).init();
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    // The node dies with the thread that starts it: this one.
    block_on(async {
        let code = tend::run(&program, tokio::io::stdin()).await?;
        // At once: threads that read and write may be in the middle of what never ends.
        std::process::exit(i32::from(code));
    })
}
