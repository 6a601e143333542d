//! `harness experiment`: from a name, a file or a folder to an experiment, and that to trials.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum as _;
use comfy_table::{Table, presets};
use tokio::sync::mpsc;

use super::print;
use super::run::{block_on, carry_out, carry_out_kv, stop_signals};
use crate::cli::{
    ExperimentCommand, ExperimentRunArgs, ExperimentShowArgs, RunArgs, WorkloadArg, run_options, shell_line,
};
use crate::clock;
use crate::exit::{Exit, Usage, print_error};
use crate::experiment::campaign::{Campaign, Runner};
use crate::experiment::definition::{Definition, Level, Scalar};
use crate::experiment::manifest::Manifest;
use crate::experiment::row::Told;
use crate::experiment::tables::Tables;
use crate::experiment::{Experiment, row, shipped};
use crate::identity;
use crate::kv::plan::Peer;
use crate::machine::Machine;
use crate::place::netns::Namespace;
use crate::plan::Trial;
use crate::preflight;
use crate::progress::Progress;
use crate::record::{make_folder, write_whole};
use crate::report::{Report, load};
use crate::run::{Setup, Stop, Timeouts};
use crate::units::show_ns;

/// The experiment in its folder, with every option that was resolved.
const DEFINITION: &str = "experiment.toml";

pub(super) fn run(command: &ExperimentCommand) -> anyhow::Result<Exit> {
    match command {
        ExperimentCommand::Run(args) => run_experiment(args),
        ExperimentCommand::List => list(),
        ExperimentCommand::Show(args) => show(args),
    }
}

/// Where an experiment comes from.
enum Source {
    /// A definition, not run yet.
    Definition(Definition),
    /// The folder of one that was begun.
    Folder(PathBuf, Definition),
}

impl ExperimentShowArgs {
    /// The experiment that is meant, with what was set for it.
    fn source(&self) -> Result<Source, Usage> {
        let path = Path::new(&self.source);
        if path.is_dir() {
            if let Some(set) = self
                .set
                .first()
                .map(|set| format!("--set {set}"))
                .or(self.repetitions.map(|n| format!("--repetitions {n}")))
            {
                return Err(Usage(format!(
                    "{set}: {} was begun without it; leave it out, or begin a new folder",
                    self.source
                )));
            }
            return Ok(Source::Folder(path.to_owned(), definition_in(path)?));
        }
        let text = match shipped::text_of(&self.source) {
            Some(text) => text.to_owned(),
            None => self.read(path)?,
        };
        self.resolved(Definition::parse(&text, &self.source, &run_options())?).map(Source::Definition)
    }

    fn read(&self, path: &Path) -> Result<String, Usage> {
        fs::read_to_string(path).map_err(|error| {
            let names = shipped::SHIPPED.map(|(name, _)| name).join(", ");
            let wrong = format!("neither a shipped experiment nor a file that can be read ({error})");
            Usage::option("experiment", &self.source, wrong, format!("name a file, or one of {names}"))
        })
    }

    /// With what was set for it, and with a placement.
    fn resolved(&self, mut definition: Definition) -> Result<Definition, Usage> {
        for set in &self.set {
            let (option, value) = set.split_once('=').ok_or_else(|| {
                Usage::option("--set", set, "not OPTION=VALUE", "write for example --set rounds=1")
            })?;
            let value = match value {
                "true" => Scalar::Flag(true),
                "false" => Scalar::Flag(false),
                text => Scalar::Text(text.into()),
            };
            definition.set(option, Level::One(value));
        }
        if let Some(repetitions) = self.repetitions {
            definition.repetitions = repetitions;
        }
        for peer in Peer::value_variants().iter().filter(|peer| !peer.is_installed()) {
            if definition.leave_out("peer", peer.name()) {
                let note =
                    format!("{} is not on the PATH: its cells are skipped; {}", peer.name(), peer.remedy());
                print_error(&anyhow::anyhow!(note));
            }
        }
        if !definition.mentions("placement") {
            let workload = definition.fixed.get("workload").map(ToString::to_string);
            let kv = workload.is_some_and(|workload| ["kv", "leaderboard"].contains(&workload.as_str()));
            let placement = if !kv && Namespace::new().is_ok() { "netns" } else { "process" };
            definition.set("placement", Level::One(Scalar::Text(placement.into())));
        }
        definition.check(&run_options())?;
        Ok(definition)
    }
}

/// The definition that the folder of an experiment holds.
fn definition_in(dir: &Path) -> Result<Definition, Usage> {
    Manifest::read(dir)?;
    let path = dir.join(DEFINITION);
    let text = fs::read_to_string(&path)
        .map_err(|error| Usage(format!("{}: {error}; name the folder of an experiment", path.display())))?;
    Definition::parse(&text, &path.display().to_string(), &run_options())
}

fn run_experiment(args: &ExperimentRunArgs) -> anyhow::Result<Exit> {
    let (folder, definition) = match (args.which.source()?, &args.resume) {
        (Source::Folder(dir, definition), None) => (Some(dir), definition),
        (Source::Definition(definition), None) => (None, definition),
        (Source::Definition(definition) | Source::Folder(_, definition), Some(dir)) => {
            let begun = definition_in(dir)?;
            if begun != definition {
                let wrong =
                    format!("it was begun with another definition than {} has now", args.which.source);
                let remedy = format!("use `harness experiment run {}` to go on with it", dir.display());
                return Err(Usage::option("--resume", dir.display(), wrong, remedy).into());
            }
            (Some(dir.clone()), begun)
        }
    };
    let experiment = Experiment::resolve(definition)?;
    if !args.yes && folder.is_none() {
        experiment.check_size()?;
    }
    for cell in &experiment.cells {
        preflight::check(&cell.trial)?;
    }
    let command = shell_line(&std::env::args().collect::<Vec<_>>());
    let workload = experiment.workload();
    let campaign = match folder {
        Some(dir) => resume(experiment, dir, command, args.quiet)?,
        None => begin(experiment, &args.out, command, args.quiet)?,
    };
    if cfg!(debug_assertions) {
        campaign.warn("this is a debug build: its times mean little; use cargo run --release");
    }
    let dir = campaign.dir().to_owned();
    let (exit, message) = block_on(async {
        let signals = stop_signals()?;
        campaign.run(&Here, signals).await
    })?;
    if workload == WorkloadArg::Kv && (exit == Exit::Success || exit == Exit::Failed) {
        print(Report::of(&load::read(&[dir])?)?.section().as_bytes())?;
    }
    match exit {
        Exit::Success => print(format!("{message}\n").as_bytes())?,
        _ => print_error(&anyhow::anyhow!("{message}")),
    }
    Ok(exit)
}

fn columns(experiment: &Experiment) -> Vec<String> {
    row::columns(experiment.workload(), &experiment.definition.varied())
}

fn begin(experiment: Experiment, out: &Path, command: String, quiet: bool) -> anyhow::Result<Campaign> {
    let definition = &experiment.definition;
    let manifest = Manifest::starting(definition, experiment.turns.len() as u64, command);
    let dir = make_folder(&out.join(&definition.name), clock::utc_now(), &Machine::this().host)?;
    write_whole(&dir, DEFINITION, toml::to_string(definition)?.as_bytes())?;
    let tables = Tables::create(&dir, columns(&experiment))?;
    Ok(Campaign::new(experiment, dir, tables, manifest, quiet))
}

fn resume(experiment: Experiment, dir: PathBuf, command: String, quiet: bool) -> anyhow::Result<Campaign> {
    let mut manifest = Manifest::read(&dir)?;
    let tables = Tables::open(&dir, columns(&experiment))?;
    let before = manifest.program.clone();
    manifest.resumes(command);
    let changed = manifest.resumed.last().is_some_and(|now| now.program != before);
    let campaign = Campaign::new(experiment, dir, tables, manifest, quiet);
    if changed {
        campaign.warn("the program was built from another revision than the one that began this experiment");
    }
    Ok(campaign)
}

/// Single runs, carried out by this process.
struct Here;

impl Runner for Here {
    async fn run(
        &self,
        args: &RunArgs,
        trial: Trial,
        dir: PathBuf,
        stops: mpsc::Receiver<Stop>,
    ) -> anyhow::Result<Told> {
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let repeat = shell_line(&args.repeat_command(trial.plan.job.seed));
        let setup = Setup {
            command: repeat.clone(),
            dir: Some(dir),
            resumed_from: None,
            repeat,
            issue: identity::issue,
            timeouts: Timeouts::of(&trial.plan),
            trial,
        };
        if setup.trial.plan.kv.is_none() {
            return Ok(Told::Federated(Box::new(carry_out(setup, Progress::silent(), stops).await?)));
        }
        let summary = carry_out_kv(setup, None, Progress::silent(), stops).await?;
        // Nobody can go on with it, and a load leaves much of it.
        let _ = fs::remove_dir_all(summary.results.join("store"));
        Ok(Told::Kv(Box::new(summary)))
    }
}

fn list() -> anyhow::Result<Exit> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["name", "trials", "about", "for"]);
    for (name, _) in shipped::SHIPPED {
        let which = ExperimentShowArgs { source: name.into(), set: Vec::new(), repetitions: None };
        let (Source::Definition(definition) | Source::Folder(_, definition)) = which.source()?;
        let experiment = Experiment::resolve(definition)?;
        let trials = experiment.turns.len().to_string();
        table.add_row([
            name,
            &trials,
            &show_ns(experiment.estimate_ns()),
            experiment.definition.about.trim(),
        ]);
    }
    print(format!("{table}\n").as_bytes())?;
    Ok(Exit::Success)
}

fn show(args: &ExperimentShowArgs) -> anyhow::Result<Exit> {
    let (Source::Definition(definition) | Source::Folder(_, definition)) = args.source()?;
    let experiment = Experiment::resolve(definition)?;
    let mut text = toml::to_string(&experiment.definition)?;
    let (cells, trials) = (experiment.cells.len(), experiment.turns.len());
    writeln!(text, "\n# {cells} cells, {trials} trials, about {}:", show_ns(experiment.estimate_ns()))?;
    for turn in &experiment.turns {
        let words = shell_line(&experiment.words(turn));
        writeln!(text, "# {}: harness run {words}", turn.trial)?;
    }
    print(text.as_bytes())?;
    Ok(Exit::Success)
}
