//! `harness run`: options to plan, plan to checks, checks to a run, run to a summary.

use std::hash::{BuildHasher as _, RandomState};
use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use workloads::federated::EngineKind;
use workloads::federated::shard::Cut;

use super::print;
use crate::capability::CAPTURE_SETCAP;
use crate::capture::CaptureMode;
use crate::cli::{RunArgs, shell_line};
use crate::examine::{self, Examined, Finding, Wanted};
use crate::exit::{Exit, Usage, print_error};
use crate::identity;
use crate::kv;
use crate::kv::plan::Peer;
use crate::place::HostRecord;
use crate::place::netns::Namespaces;
use crate::place::process::Processes;
use crate::place::ssh::Hosts;
use crate::plan::{PlacementKind, Trial};
use crate::preflight;
use crate::progress::{Progress, summary_text};
use crate::record::{Outcome, Summary};
use crate::resume::Earlier;
use crate::run::{self, Setup, Stop, Timeouts};
use crate::ssh::Trouble;

pub(super) fn run(args: &RunArgs) -> anyhow::Result<Exit> {
    let words: Vec<String> = std::env::args().collect();
    let (args, earlier) = match &args.resume {
        None => (args.clone().with_hosts()?, None),
        Some(dir) => {
            let earlier = Earlier::read(dir, args.store_dir.as_deref())?;
            let mut args = args.continuing(&earlier.repeat, &words)?;
            args.store_dir = Some(earlier.store.clone());
            (args, Some(earlier))
        }
    };
    let trial = args.to_trial(random_seed())?;
    if let (Some(dir), PlacementKind::Ssh) = (&args.resume, trial.plan.placement) {
        let wrong = "hosts keep no files after a run";
        return Err(Usage::option("--resume", dir.display(), wrong, "begin a new run").into());
    }
    if let Some(earlier) = &earlier {
        earlier.check(&trial)?;
    }
    preflight::check(&trial)?;
    let progress = Progress::new(trial.plan.job.rounds, trial.quiet);
    announce(&trial, &progress);
    let setup = Setup {
        command: shell_line(&words),
        dir: None,
        resumed_from: earlier.map(|earlier| earlier.dir),
        repeat: shell_line(&args.repeat_command(trial.plan.job.seed)),
        issue: identity::issue,
        timeouts: Timeouts::of(&trial.plan),
        trial,
    };
    if setup.trial.plan.kv.is_some() {
        let file = args.kv.cluster_file.clone();
        let summary = block_on(async {
            let stops = stop_signals()?;
            carry_out_kv(setup, file, progress, stops).await
        })?;
        return report(&summary, &summary.to_text(), (summary.outcome, &summary.message), args.json);
    }
    let summary = block_on(async {
        let stops = stop_signals()?;
        carry_out(setup, progress, stops).await
    })?;
    report(&summary, &summary_text(&summary), (summary.outcome, &summary.message), args.json)
}

/// Runs `future` on this thread. Nodes die with the thread that started them: this one, which lives as long as the
/// controller.
pub(super) fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(future)
}

/// Runs a trial of the federated workload where its plan has it.
pub(super) async fn carry_out(
    setup: Setup,
    progress: Progress,
    stops: mpsc::Receiver<Stop>,
) -> anyhow::Result<Summary> {
    match setup.trial.plan.placement {
        PlacementKind::Process => {
            Box::pin(run::run(setup, Processes::of_this_program()?, progress, stops)).await
        }
        PlacementKind::Netns => {
            let placement = Namespaces::build(&setup.trial.plan)?;
            Box::pin(run::run(setup, placement, progress, stops)).await
        }
        PlacementKind::Ssh => {
            let placement = hosts(&setup.trial, &progress).await?;
            Box::pin(run::run(setup, placement, progress, stops)).await
        }
    }
}

/// The hosts of a trial, after everything that is wrong with one of them was named.
async fn hosts(trial: &Trial, progress: &Progress) -> anyhow::Result<Hosts> {
    let shelf = trial.shelf.as_ref().context("the trial has no hosts")?;
    let plan = &trial.plan;
    let hosts = &shelf.hosts[..plan.members.len().min(shelf.hosts.len())];
    let reads = plan.job.data.is_some() && plan.job.engine != EngineKind::None;
    let wanted = Wanted {
        ports: vec![plan.learning_port, plan.replication_port],
        data: plan.job.data.clone(),
        cut: reads.then(|| Cut::of(&plan.job, plan.devices().len())),
        torch: plan.job.engine == EngineKind::Torch,
    };
    let examined = examine::examine_all(hosts, shelf.ssh_config.as_deref(), &wanted).await;
    let mut refusals = Vec::new();
    for (host, findings) in hosts.iter().zip(examine::findings(hosts, &examined, &wanted)) {
        for Finding { fatal, trouble: Trouble { wrong, remedy } } in findings {
            let line = format!("host {}: {wrong}; {remedy}", host.name);
            if fatal { refusals.push(line) } else { progress.warn(&line) }
        }
    }
    let (mut records, members) = (Vec::new(), plan.members.iter());
    for ((member, host), examined) in members.zip(hosts).zip(examined) {
        let Ok(Examined { facts, .. }) = examined else { continue };
        if let (Some(missing), CaptureMode::Required) = (&facts.missing_capabilities, plan.capture) {
            let remedy = format!("{CAPTURE_SETCAP} {}", host.program);
            refusals.push(format!("host {}: it cannot capture, {missing} is missing; {remedy}", host.name));
        }
        let (name, address) = (host.name.clone(), Some(host.address));
        let record = HostRecord { node: member.node, name, address, before: facts, ..HostRecord::default() };
        records.push(record);
    }
    if !refusals.is_empty() {
        return Err(Usage(format!("nothing was started:\n  {}", refusals.join("\n  "))).into());
    }
    Ok(Hosts::new(hosts.to_vec(), shelf.ssh_config.clone(), records))
}

/// Runs a trial of the key-value workload; `file` receives the cluster's address.
pub(super) async fn carry_out_kv(
    setup: Setup,
    file: Option<PathBuf>,
    progress: Progress,
    stops: mpsc::Receiver<Stop>,
) -> anyhow::Result<kv::record::Summary> {
    if let Some(Peer::Etcd) = setup.trial.plan.kv.as_ref().and_then(|kv| kv.peer) {
        return Box::pin(kv::etcd::run(setup, progress, stops)).await;
    }
    if setup.trial.plan.placement == PlacementKind::Ssh {
        let placement = hosts(&setup.trial, &progress).await?;
        return Box::pin(kv::run::run(setup, file, placement, progress, stops)).await;
    }
    Box::pin(kv::run::run(setup, file, Processes::of_this_program()?, progress, stops)).await
}

/// A seed from the operating system's randomness, below 2^53 so that every JSON reader keeps all of its digits.
pub(super) fn random_seed() -> u64 {
    RandomState::new().hash_one("seed") >> 11
}

/// What a user should know before the numbers.
fn announce(trial: &Trial, progress: &Progress) {
    if cfg!(debug_assertions) {
        progress.warn("this is a debug build: its times mean little; use cargo run --release");
    }
    for warning in trial.plan.backend.warnings() {
        progress.warn(&warning);
    }
    let shown = trial.plan.kv.is_none() && trial.plan.job.engine != EngineKind::None;
    if trial.plan.job.data.is_none() && shown {
        progress.note(
            "using the built-in synthetic examples; for CIFAR-10: `harness data fetch DIR`, then run with --data DIR",
        );
    }
}

/// SIGINT and SIGTERM as messages.
pub(super) fn stop_signals() -> anyhow::Result<mpsc::Receiver<Stop>> {
    let (sender, stops) = mpsc::channel(4);
    for (kind, stop) in
        [(SignalKind::interrupt(), Stop::Interrupt), (SignalKind::terminate(), Stop::Terminate)]
    {
        let mut signals = signal(kind).context("cannot watch for signals")?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let _ = sender.try_send(stop);
            }
        });
    }
    Ok(stops)
}

/// Prints a summary, and says how the run ended.
fn report(
    summary: &impl Serialize,
    text: &str,
    (outcome, message): (Outcome, &str),
    json: bool,
) -> anyhow::Result<Exit> {
    if json {
        let mut text = serde_json::to_vec_pretty(summary)?;
        text.push(b'\n');
        print(&text)?;
    } else {
        print(text.as_bytes())?;
    }
    let exit = match outcome {
        Outcome::Completed => return Ok(Exit::Success),
        Outcome::NoMajority => Exit::NoMajority,
        Outcome::Interrupted => Exit::Interrupted,
        Outcome::Terminated => Exit::Terminated,
        Outcome::Failed | Outcome::Running => Exit::Failed,
    };
    print_error(&anyhow::anyhow!("{message}"));
    Ok(exit)
}
