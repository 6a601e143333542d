//! manifest.json of an experiment's folder.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::definition::Definition;
use crate::clock;
use crate::exit::Usage;
use crate::machine::{Machine, Program};
use crate::record::{LAYOUT, Outcome};

/// What tells an experiment's manifest from a run's, which has no such field.
pub const KIND: &str = "experiment";

/// A time at which an experiment was continued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// When, in UTC.
    pub utc: String,
    /// The command line.
    pub command: String,
    /// The program.
    pub program: Program,
}

/// Contents of manifest.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`KIND`].
    pub kind: String,
    /// [`LAYOUT`].
    pub layout: u32,
    /// How it ended: completed if every trial did.
    pub outcome: Outcome,
    /// The same in a sentence.
    pub message: String,
    /// Exit code of the controller; none while it runs.
    pub exit_code: Option<u8>,
    /// The command line, as it was given.
    pub command: String,
    /// The seed every trial's seed is derived from.
    pub seed: u64,
    /// Start in UTC, RFC 3339.
    pub started_utc: String,
    /// End in UTC, RFC 3339; none while it runs.
    pub ended_utc: Option<String>,
    /// When it was continued.
    pub resumed: Vec<Resumed>,
    /// Trials of the whole experiment.
    pub trials: u64,
    /// Trials that are finished.
    pub trials_finished: u64,
    /// Trials among these that did not complete.
    pub trials_failed: u64,
    /// This program.
    pub program: Program,
    /// This machine.
    pub machine: Machine,
    /// The experiment, as resolved.
    pub definition: Definition,
}

/// What every version of a manifest says.
#[derive(Deserialize)]
struct Versions {
    kind: Option<String>,
    layout: u32,
    program: ProgramVersion,
}

#[derive(Deserialize)]
struct ProgramVersion {
    version: String,
}

impl Manifest {
    /// The manifest of an experiment that starts now.
    #[must_use]
    pub fn starting(definition: &Definition, trials: u64, command: String) -> Self {
        Self {
            kind: KIND.into(),
            layout: LAYOUT,
            outcome: Outcome::Running,
            message: "the experiment has not ended, or its controller was killed".into(),
            exit_code: None,
            command,
            seed: definition.seed,
            started_utc: clock::utc_rfc3339(clock::utc_now()),
            ended_utc: None,
            resumed: Vec::new(),
            trials,
            trials_finished: 0,
            trials_failed: 0,
            program: Program::this(),
            machine: Machine::this(),
            definition: definition.clone(),
        }
    }

    /// Reads the manifest in `dir`, whose experiment is to be continued.
    ///
    /// # Errors
    /// If there is none, or one that this program does not understand.
    pub fn read(dir: &Path) -> Result<Self, Usage> {
        let refuse = |wrong: String, remedy: &str| Usage::option("--resume", dir.display(), wrong, remedy);
        let another = "name the folder of an experiment, with its manifest.json";
        let text = fs::read(dir.join("manifest.json")).map_err(|error| {
            refuse(format!("not an experiment's folder (manifest.json: {error})"), another)
        })?;
        let damaged =
            |error: serde_json::Error| refuse(format!("its manifest makes no sense ({error})"), another);
        let versions: Versions = serde_json::from_slice(&text).map_err(damaged)?;
        if versions.kind.as_deref() != Some(KIND) {
            let kind = versions.kind.as_deref().unwrap_or("run");
            return Err(refuse(format!("the results of a single {kind}, not of an experiment"), another));
        }
        let this = Program::this().version;
        if versions.layout != LAYOUT || versions.program.version != this {
            let (layout, version) = (versions.layout, versions.program.version);
            let wrong = format!(
                "version {version} wrote it, in layout {layout}; this is version {this} with layout {LAYOUT}"
            );
            return Err(refuse(wrong, "use the program that wrote it"));
        }
        serde_json::from_slice(&text).map_err(damaged)
    }

    /// Notes that the experiment goes on now.
    pub fn resumes(&mut self, command: String) {
        let utc = clock::utc_rfc3339(clock::utc_now());
        self.resumed.push(Resumed { utc, command, program: Program::this() });
        self.outcome = Outcome::Running;
        (self.exit_code, self.ended_utc) = (None, None);
    }

    /// Notes that the experiment has ended now.
    pub fn ended(&mut self, outcome: Outcome, message: String, exit_code: u8) {
        self.outcome = outcome;
        self.message = message;
        self.exit_code = Some(exit_code);
        self.ended_utc = Some(clock::utc_rfc3339(clock::utc_now()));
    }
}
