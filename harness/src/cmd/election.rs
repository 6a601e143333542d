//! `harness election`: options to plan, plan to checks, checks to elections, elections to a summary.

use std::path::Path;

use anyhow::Context as _;

use super::print;
use super::run::{random_seed, stop_signals};
use crate::cli::{ElectionArgs, shell_line};
use crate::disk;
use crate::election::{self, Setup};
use crate::exit::{Exit, print_error};
use crate::identity;
use crate::place::netns::Namespaces;
use crate::place::process::Processes;
use crate::plan::{Durability, PlacementKind};
use crate::preflight;
use crate::progress::Progress;
use crate::record::Outcome;

/// Files here are in memory.
const MEMORY_FOLDER: &str = "/dev/shm";

pub(super) fn run(args: &ElectionArgs) -> anyhow::Result<Exit> {
    let words: Vec<String> = std::env::args().collect();
    let mut trial = args.to_trial(random_seed())?;
    preflight::check(&trial)?;
    let progress = Progress::new(args.trials, args.quiet);
    if cfg!(debug_assertions) {
        progress.warn("this is a debug build: its times mean little; use cargo run --release");
    }
    // Both are gone when this returns; the lock before the folder.
    let memory = memory_folder()?;
    let dir = args.store_dir.as_deref().unwrap_or(memory.path());
    trial.durability = Durability::Disk { dir: Some(dir.to_owned()) };
    let _folder = disk::open_stores(&mut trial, dir)?;
    let setup = Setup {
        trials: args.trials,
        fault: args.fault(),
        logs: args.logs(),
        command: shell_line(&words),
        repeat: shell_line(&args.repeat_command(&trial)),
        out: trial.out.clone(),
        issue: identity::issue,
        plan: trial.plan,
    };
    // Nodes die with the thread that started them: this one, which lives as long as the controller.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let summary = runtime.block_on(async {
        let stops = stop_signals()?;
        match setup.plan.placement {
            PlacementKind::Process => {
                Box::pin(election::run(setup, Processes::of_this_program()?, progress, stops)).await
            }
            PlacementKind::Netns => {
                let placement = Namespaces::build(&setup.plan)?;
                Box::pin(election::run(setup, placement, progress, stops)).await
            }
            PlacementKind::Ssh => anyhow::bail!("elections are not measured over ssh"),
        }
    })?;
    report(&summary, args.json)
}

/// A folder for the time of this command, in memory where there is such a place.
fn memory_folder() -> anyhow::Result<tempfile::TempDir> {
    let mut folder = tempfile::Builder::new();
    let folder = folder.prefix("harness-election-");
    match folder.tempdir_in(Path::new(MEMORY_FOLDER)) {
        Ok(folder) => Ok(folder),
        Err(_) => folder.tempdir().context("cannot make a folder for the stores; name one with --store"),
    }
}

fn report(summary: &election::Summary, json: bool) -> anyhow::Result<Exit> {
    if json {
        let mut text = serde_json::to_vec_pretty(summary)?;
        text.push(b'\n');
        print(&text)?;
    } else {
        print(summary.text().as_bytes())?;
    }
    let exit = match summary.outcome {
        Outcome::Completed => return Ok(Exit::Success),
        Outcome::Interrupted => Exit::Interrupted,
        Outcome::Terminated => Exit::Terminated,
        Outcome::NoMajority | Outcome::Failed | Outcome::Running => Exit::Failed,
    };
    print_error(&anyhow::anyhow!("{}", summary.message));
    Ok(exit)
}
