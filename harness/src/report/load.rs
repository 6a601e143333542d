//! Results folders into a [`Study`]: of runs, experiments and elections. Whatever cannot be reported is refused here, by name
//! and with a remedy. It knows files and columns, not what is made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::cell;
use super::rows::Election;
use super::study::{Elections, Experiment, Provenance, Study, Trial};
use crate::exit::Usage;
use crate::record::LAYOUT;

/// Name of what single runs are reported as.
pub const RUNS: &str = "runs";

/// What kind of results a folder holds, as its manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Run,
    Experiment,
    Election,
}

/// A folder whose manifest has been read.
#[derive(Debug)]
struct Folder {
    dir: PathBuf,
    kind: Kind,
    manifest: Value,
}

/// Reads `dirs`. Single runs become trials of one experiment; they must be of one program and machine, and cannot be mixed
/// with experiments.
///
/// # Errors
/// [`Usage`] if a folder cannot be reported, alone or beside the others; otherwise what cannot be read.
pub fn read(dirs: &[PathBuf]) -> anyhow::Result<Study> {
    let mut seen = BTreeSet::new();
    let mut folders = Vec::new();
    for dir in dirs {
        let folder = Folder::open(dir)?;
        if !seen.insert(fs::canonicalize(dir).unwrap_or_else(|_| dir.clone())) {
            return Err(refuse(dir, "is named twice", "name each folder once"));
        }
        folders.push(folder);
    }
    let of_kind = |kind| folders.iter().filter(move |folder: &&Folder| folder.kind == kind);
    if let (Some(run), Some(experiment)) = (of_kind(Kind::Run).next(), of_kind(Kind::Experiment).next()) {
        let wrong =
            format!("is a single run, but {} is an experiment: they are not mixed", experiment.dir.display());
        return Err(refuse(&run.dir, wrong, "report them apart"));
    }
    let mut study = Study::default();
    for folder in of_kind(Kind::Experiment) {
        let experiment = folder.experiment()?;
        let dictionary = experiment.trials.iter().any(Trial::is_dictionary);
        if dictionary { &mut study.dictionaries } else { &mut study.experiments }.push(experiment);
    }
    if let Some(mut federated) = runs(&of_kind(Kind::Run).collect::<Vec<_>>())? {
        let all = std::mem::take(&mut federated.trials);
        let (trials, rest) = all.into_iter().partition(Trial::is_dictionary);
        let dictionaries = Experiment { trials, ..federated.clone() };
        federated.trials = rest;
        study.dictionaries.extend((!dictionaries.trials.is_empty()).then_some(dictionaries));
        study.experiments.extend((!federated.trials.is_empty()).then_some(federated));
    }
    for folder in of_kind(Kind::Election) {
        study.elections.push(folder.elections()?);
    }
    Ok(study)
}

/// Single runs as the trials of one experiment.
fn runs(folders: &[&Folder]) -> anyhow::Result<Option<Experiment>> {
    let Some(first) = folders.first() else { return Ok(None) };
    let mut experiment = Experiment { name: RUNS.into(), ..Experiment::default() };
    for (index, folder) in folders.iter().enumerate() {
        for (what, at) in [
            ("program", "/program/git_revision"),
            ("program", "/program/debug_build"),
            ("host", "/machine/host"),
        ] {
            if folder.manifest.pointer(at) != first.manifest.pointer(at) {
                let wrong = format!("is of another {what} than {}: mixed", first.dir.display());
                return Err(refuse(&folder.dir, wrong, "report them apart, or use `harness compare`"));
            }
        }
        experiment.provenance.push(folder.provenance());
        experiment.trials.push(folder.run(index as u64 + 1)?);
    }
    Ok(Some(experiment))
}

impl Folder {
    fn open(dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join("manifest.json");
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let wrong = "is no results folder (it has no manifest.json)";
                return Err(refuse(dir, wrong, remedy_for(dir)));
            }
            Err(error) => return Err(refuse(dir, format!("cannot be read ({error})"), "check it")),
        };
        let manifest: Value = serde_json::from_str(&text).map_err(|error| {
            refuse(dir, format!("has a manifest.json that cannot be read ({error})"), "restore the file")
        })?;
        let layout = manifest.get("layout").and_then(Value::as_u64);
        if layout != Some(u64::from(LAYOUT)) {
            let layout = layout.map_or("an unknown layout".into(), |layout| format!("layout {layout}"));
            let wrong = format!("is of {layout}, this program reads layout {LAYOUT}");
            return Err(refuse(dir, wrong, "use the program that made it"));
        }
        let kind = match manifest.get("kind").and_then(Value::as_str) {
            None | Some("run") => Kind::Run,
            Some("experiment") => Kind::Experiment,
            Some("election") => Kind::Election,
            Some(other) => {
                return Err(refuse(
                    dir,
                    format!("is of the unknown kind {other:?}"),
                    "name a run, an experiment or an election",
                ));
            }
        };
        Ok(Self { dir: dir.to_path_buf(), kind, manifest })
    }

    /// A text of the manifest; empty if it is not there.
    fn text(&self, pointer: &str) -> &str {
        self.manifest.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    fn provenance(&self) -> Provenance {
        let revision = self.text("/program/git_revision");
        let revision = revision.get(..12).unwrap_or(revision);
        let dirty = self.manifest.pointer("/program/git_dirty").and_then(Value::as_bool) == Some(true);
        let debug_build =
            self.manifest.pointer("/program/debug_build").and_then(Value::as_bool) == Some(true);
        let cores = self.manifest.pointer("/machine/cpu_cores").and_then(Value::as_u64).unwrap_or(0);
        let kernel: Vec<&str> = self.text("/machine/kernel").split(' ').take(2).collect();
        Provenance {
            folder: folder_name(&self.dir),
            command: self.text("/command").to_owned(),
            started_utc: self.text("/started_utc").to_owned(),
            program: format!(
                "harness {}, revision {}{}{}",
                self.text("/program/version"),
                if revision.is_empty() { "unknown" } else { revision },
                if dirty { " with uncommitted changes" } else { "" },
                if debug_build { ", debug build" } else { "" },
            ),
            machine: format!("{cores} cores of {}, {}", self.text("/machine/cpu_model"), kernel.join(" ")),
            setting: self.setting(),
            debug_build,
        }
    }

    /// Where nodes ran and their timers, as far as the manifest says so: of a run by its plan, of an experiment by the options
    /// that all of its trials have.
    fn setting(&self) -> String {
        let mut words = Vec::new();
        let fixed = |option: &str| self.text(&format!("/definition/fixed/{option}"));
        match [self.text("/plan/placement"), fixed("placement")].concat().as_str() {
            "netns" => words.push("a network namespace per node".to_owned()),
            "process" => {
                words.push("processes at loopback addresses (their traffic is no result)".to_owned());
            }
            _ => {}
        }
        let timer = |name: &str| self.manifest.pointer(&format!("/timers/{name}")).and_then(Value::as_u64);
        if let (Some(lo), Some(hi)) = (timer("detection_lo_ns"), timer("detection_hi_ns")) {
            let (lo, hi) = (crate::units::exact_ms(lo), crate::units::exact_ms(hi));
            words.push(format!("suspicion {lo} to {hi} after the last contact"));
        }
        for option in ["window", "heartbeat", "rounds", "nodes", "link", "fault"] {
            if let Some(value) = self.manifest.pointer(&format!("/definition/fixed/{option}")) {
                words.push(format!("{option} {}", plain(value)));
            }
        }
        if fixed("engine") == "none" {
            words.push("updates of the right size without training".to_owned());
        }
        words.join("; ")
    }

    fn run(&self, number: u64) -> anyhow::Result<Trial> {
        let summary: Value = match fs::read_to_string(self.dir.join("summary.json")) {
            Ok(text) => serde_json::from_str(&text)
                .with_context(|| format!("cannot read {}", self.dir.join("summary.json").display()))?,
            Err(_) => {
                let wrong = "is of a run that has not ended (it has no summary.json)";
                return Err(refuse(&self.dir, wrong, "wait for its end, or run it again"));
            }
        };
        let cell = cell::of_command(self.text("/repeat"));
        let mut figures = scalars(&summary);
        // As the columns of an experiment are named.
        for (name, value) in scalars(summary.get("latency").unwrap_or(&Value::Null)) {
            figures.insert(format!("latency_{name}"), value);
        }
        let valid = summary.pointer("/traffic/valid").or(summary.get("valid"));
        let valid = valid.and_then(Value::as_bool).unwrap_or(false);
        let trial =
            Trial { number, cell, outcome: self.text("/outcome").into(), valid, figures, ..Trial::default() };
        let mut trials = vec![trial];
        self.fill(&mut trials, |_| Some(0))?;
        trials.pop().context("a run is one trial")
    }

    fn experiment(&self) -> anyhow::Result<Experiment> {
        let table = Table::read(&self.dir, "trials.csv")?.filter(|table| !table.rows.is_empty()).ok_or_else(
            || refuse(&self.dir, "is empty (trials.csv has no trial)", "run the experiment first"),
        )?;
        let end = table.columns.iter().position(|name| name == "outcome").unwrap_or(table.columns.len());
        let mut trials = Vec::new();
        for row in &table.rows {
            let values: BTreeMap<String, String> =
                table.columns.iter().cloned().zip(row.iter().map(str::to_owned)).collect();
            let factors = table.columns.iter().take(end).zip(row);
            trials.push(Trial {
                number: values.get("trial").and_then(|number| number.parse().ok()).unwrap_or(0),
                cell: cell::of_columns(factors.map(|(name, value)| (name.as_str(), value))),
                outcome: values.get("outcome").cloned().unwrap_or_default(),
                valid: values.get("valid").is_some_and(|valid| valid == "true"),
                figures: values,
                ..Trial::default()
            });
        }
        trials.sort_by_key(|trial| trial.number);
        let places: BTreeMap<u64, usize> =
            trials.iter().enumerate().map(|(place, trial)| (trial.number, place)).collect();
        self.fill(&mut trials, |number| places.get(&number).copied())?;
        let name = self.text("/definition/name");
        let name = if name.is_empty() {
            self.dir.parent().map(folder_name).unwrap_or_default()
        } else {
            name.into()
        };
        Ok(Experiment { name, provenance: vec![self.provenance()], trials })
    }

    fn elections(&self) -> anyhow::Result<Elections> {
        let table = Table::read(&self.dir, "elections.csv")?;
        let table = table.filter(|table| !table.rows.is_empty()).ok_or_else(|| {
            refuse(&self.dir, "is empty (elections.csv has no election)", "run `harness election` first")
        })?;
        let rows: Vec<Election> = table.typed()?.into_iter().map(|(_, row)| row).collect();
        Ok(Elections { provenance: self.provenance(), rows })
    }

    /// Gives the rows of every file to the trials they belong to, by the place that `place` says; others do not count.
    fn fill(&self, trials: &mut [Trial], place: impl Fn(u64) -> Option<usize>) -> anyhow::Result<()> {
        self.rows("rounds.csv", trials, &place, |trial, row| trial.rounds.push(row))?;
        self.rows("checkpoints.csv", trials, &place, |trial, row| trial.checkpoints.push(row))?;
        self.rows("failovers.csv", trials, &place, |trial, row| trial.failovers.push(row))?;
        self.rows("traffic.csv", trials, &place, |trial, row| trial.traffic.push(row))?;
        self.rows("capture_totals.csv", trials, &place, |trial, row| trial.captures.push(row))?;
        self.rows("nodes.csv", trials, &place, |trial, row| trial.nodes.push(row))?;
        if self.dir.join("events.csv").exists() {
            trials.iter_mut().for_each(|trial| trial.events = Some(Vec::new()));
        }
        self.rows("events.csv", trials, &place, |trial, row| trial.events.get_or_insert_default().push(row))
    }

    fn rows<T: DeserializeOwned>(
        &self,
        name: &str,
        trials: &mut [Trial],
        place: impl Fn(u64) -> Option<usize>,
        push: impl Fn(&mut Trial, T),
    ) -> anyhow::Result<()> {
        let Some(table) = Table::read(&self.dir, name)? else { return Ok(()) };
        for (number, row) in table.typed()? {
            if let Some(place) = place(number) {
                push(&mut trials[place], row);
            }
        }
        Ok(())
    }
}

/// A CSV file as text.
struct Table {
    file: PathBuf,
    columns: Vec<String>,
    rows: Vec<csv::StringRecord>,
}

impl Table {
    /// Reads a file of `dir`; none if it is not there.
    fn read(dir: &Path, name: &str) -> anyhow::Result<Option<Self>> {
        let file = dir.join(name);
        if !file.exists() {
            return Ok(None);
        }
        let damaged = |error: csv::Error| {
            refuse(dir, format!("has a damaged {name} ({error})"), "restore the file, or measure again")
        };
        let mut reader = csv::Reader::from_path(&file).map_err(damaged)?;
        let columns = reader.headers().map_err(damaged)?.iter().map(str::to_owned).collect();
        let rows = reader.records().collect::<Result<_, _>>().map_err(damaged)?;
        Ok(Some(Self { file, columns, rows }))
    }

    /// The rows as `T`, each with its trial (1 if the file has no such column).
    fn typed<T: DeserializeOwned>(&self) -> anyhow::Result<Vec<(u64, T)>> {
        let headers = csv::StringRecord::from(self.columns.clone());
        let trial = self.columns.iter().position(|name| name == "trial");
        let rows = self.rows.iter().enumerate().map(|(index, row)| {
            let number = trial.and_then(|column| row.get(column)?.parse().ok()).unwrap_or(1);
            let row = row.deserialize(Some(&headers)).map_err(|error| {
                Usage(format!(
                    "{}: row {} cannot be read ({error}); restore the file, or measure again",
                    self.file.display(),
                    index + 1
                ))
            })?;
            Ok((number, row))
        });
        rows.collect()
    }
}

fn refuse(dir: &Path, wrong: impl std::fmt::Display, remedy: impl std::fmt::Display) -> anyhow::Error {
    Usage(format!("{} {wrong}; {remedy}", dir.display())).into()
}

/// The newest results folder inside `dir`, if the user has named the folder above.
fn remedy_for(dir: &Path) -> String {
    let inside = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let newest = inside.filter(|path| path.join("manifest.json").exists()).max();
    newest.map_or(
        "name a folder made by `harness run`, `harness experiment` or `harness election`".into(),
        |newest| format!("did you mean {}?", newest.display()),
    )
}

/// The last two parts of a path, which name an experiment and a run of it wherever the folder is.
fn folder_name(dir: impl AsRef<Path>) -> String {
    let parts: Vec<String> =
        dir.as_ref().components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    parts[parts.len().saturating_sub(2)..].join("/")
}

/// A JSON value without the marks of JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// Top-level numbers, texts and truth values of a JSON object, as text.
fn scalars(object: &Value) -> BTreeMap<String, String> {
    let members = object.as_object().into_iter().flatten();
    let scalars = members.filter_map(|(name, value)| {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            _ => return None,
        };
        Some((name.clone(), text))
    });
    scalars.collect()
}
