//! The results folder of a run that is to be continued: what it says, and whether it can be.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::cli::shell_words;
use crate::disk;
use crate::exit::Usage;
use crate::machine::Program;
use crate::plan::{Plan, Trial};
use crate::record::{LAYOUT, Manifest, Outcome};

/// A run that can be continued.
#[derive(Debug)]
pub struct Earlier {
    /// Its results folder.
    pub dir: PathBuf,
    /// The folder of its stores.
    pub store: PathBuf,
    /// Words of the command that repeats it.
    pub repeat: Vec<String>,
    plan: Plan,
}

/// What every version of a manifest says.
#[derive(Deserialize)]
struct Versions {
    layout: u32,
    program: ProgramVersion,
}

#[derive(Deserialize)]
struct ProgramVersion {
    version: String,
}

impl Earlier {
    /// Reads the results folder `dir`; `store` is where its stores are now, if that was said.
    ///
    /// # Errors
    /// What keeps it from being continued.
    pub fn read(dir: &Path, store: Option<&Path>) -> Result<Self, Usage> {
        let refuse = |wrong: String, remedy: &str| Usage::option("--resume", dir.display(), wrong, remedy);
        let another = "name the folder of a run, with its manifest.json";
        let text = fs::read(dir.join("manifest.json"))
            .map_err(|error| refuse(format!("not a results folder (manifest.json: {error})"), another))?;
        let damaged =
            |error: serde_json::Error| refuse(format!("its manifest makes no sense ({error})"), another);
        let versions: Versions = serde_json::from_slice(&text).map_err(damaged)?;
        let this = Program::this().version;
        if versions.layout != LAYOUT || versions.program.version != this {
            let (layout, version) = (versions.layout, versions.program.version);
            let wrong = format!(
                "version {version} wrote it, in layout {layout}; this is version {this} with layout {LAYOUT}"
            );
            return Err(refuse(wrong, "use the program that wrote it"));
        }
        let manifest: Manifest = serde_json::from_slice(&text).map_err(damaged)?;
        if manifest.outcome == Outcome::Completed {
            return Err(refuse("the run is complete".into(), "begin a new run"));
        }
        let Some(disk) = &manifest.plan.disk else {
            let wrong = "the run kept its checkpoints in memory only".into();
            return Err(refuse(wrong, "begin a new run, with --durability disk"));
        };
        // A results folder may have been moved, its stores with it.
        let candidates =
            store.map_or_else(|| vec![disk.dir.clone(), dir.join("store")], |dir| vec![dir.into()]);
        let store = candidates.into_iter().find(|store| store.join(disk::CLUSTER_FILE).exists());
        let store = store.ok_or_else(|| {
            refuse(format!("its stores are not in {}", disk.dir.display()), "name their folder with --store")
        })?;
        disk::lock(&store).map_err(|Usage(reason)| {
            refuse(format!("its stores cannot be used ({reason})"), "end that run first")
        })?;
        let repeat = shell_words(&manifest.repeat).unwrap_or_default();
        let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.into());
        Ok(Self { dir, store, repeat, plan: manifest.plan })
    }

    /// Checks that `trial`, made of its command, is what it was.
    ///
    /// # Errors
    /// If this program makes something else of the same options.
    pub fn check(&self, trial: &Trial) -> Result<(), Usage> {
        if !trial.changes.is_empty() {
            let wrong = "nodes joined or left in it: which are there now cannot be told";
            return Err(Usage::option("--resume", self.dir.display(), wrong, "begin a new run"));
        }
        if (Plan { disk: self.plan.disk.clone(), ..trial.plan.clone() }) == self.plan {
            return Ok(());
        }
        let wrong = "its options mean something else to this program than they did to the one that wrote it";
        Err(Usage::option("--resume", self.dir.display(), wrong, "use the program that wrote it"))
    }
}
