//! Experiments on the built binary: a small one from file to folder, killed and resumed, and what is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::network;

/// Two cells, two repetitions; nothing is trained.
const SMALL: &str = r#"
    name = "small"
    about = "two stores"
    seed = 3
    repetitions = 2
    [fixed]
    nodes = 3
    rounds = 2
    engine = "none"
    parameter-bytes = "64kB"
    placement = "process"
    [[cases.store]]
    backend = "raft"
    heartbeat = "90ms"
    [[cases.store]]
    backend = "gossip"
"#;
const PATIENCE: Duration = Duration::from_secs(240);

/// A folder with an experiment file in it.
struct Place(tempfile::TempDir);

impl Place {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = text.replace("placement =", &format!("network = \"{}\"\n    placement =", network()));
        fs::write(dir.path().join("small.toml"), text).unwrap();
        Self(dir)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_harness"));
        command.arg("experiment").args(words).current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn start(&self, words: &[&str]) -> Child {
        self.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// The experiment's folder; none while there is none.
    fn folder(&self) -> Option<PathBuf> {
        let folders: Vec<PathBuf> = fs::read_dir(self.0.path().join("results/small"))
            .ok()?
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(folders.len(), 1, "{folders:?}");
        folders.into_iter().next()
    }

    /// Waits until so many trials are over.
    fn await_trials(&self, controller: &mut Child, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let over = self.folder().and_then(|dir| fs::read_to_string(dir.join("trials.csv")).ok());
            if over.is_some_and(|text| text.matches('\n').count() > count) {
                return;
            }
            assert_eq!(controller.try_wait().unwrap(), None, "it ended early");
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {count} trials");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn text(output: &Output) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}\n{stderr}\n{stdout}", output.status)
}

fn rows(path: &Path) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    reader.deserialize().map(|row| row.unwrap()).collect()
}

fn manifest(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap()
}

/// All four trials are there once, in every table, and belong together.
fn assert_whole(dir: &Path) {
    let trials = rows(&dir.join("trials.csv"));
    let numbers: Vec<&str> = trials.iter().map(|row| &*row["trial"]).collect();
    assert_eq!(numbers, ["1", "2", "3", "4"]);
    for row in &trials {
        let figures = [
            "outcome",
            "valid",
            "nodes",
            "workers",
            "parameter_bytes",
            "rounds_planned",
            "rounds_finished",
            "loss",
        ];
        assert_eq!(
            figures.map(|name| &*row[name]),
            ["completed", "true", "3", "2", "64000", "2", "2", ""],
            "{row:?}"
        );
        assert_eq!(row["heartbeat"], if row["backend"] == "raft" { "90ms" } else { "" });
        assert!(row["repeat"].contains(&format!("--seed {}", row["seed"])), "{row:?}");
        assert!(row["traffic_learning_bytes"].parse::<u64>().unwrap() > 2 * 2 * 2 * 64_000);
    }
    for block in trials.chunks(2) {
        let [first, second] = block else { panic!("{block:?}") };
        assert_eq!(first["repetition"], second["repetition"]);
        assert_eq!(first["seed"], second["seed"], "stores that are compared share it");
        assert_ne!(first["backend"], second["backend"]);
    }
    assert_ne!(trials[0]["seed"], trials[2]["seed"]);
    for (name, count) in [("rounds.csv", 2), ("nodes.csv", 3)] {
        let rows = rows(&dir.join(name));
        for trial in 1..=4 {
            let own = rows.iter().filter(|row| row["trial"] == trial.to_string()).count();
            assert_eq!(own, count, "{name} of trial {trial}: {rows:?}");
        }
        assert_eq!(rows.len(), 4 * count);
    }
    let mut raw: Vec<String> = fs::read_dir(dir.join("trials"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    raw.sort();
    assert_eq!(raw, ["1", "2", "3", "4"]);
    let manifest = manifest(dir);
    assert_eq!((&manifest["kind"], &manifest["outcome"]), (&"experiment".into(), &"completed".into()));
    assert_eq!((&manifest["trials"], &manifest["trials_finished"]), (&4.into(), &4.into()));
}

#[test]
fn an_experiment_is_run_from_a_file_to_a_folder() {
    let place = Place::new(SMALL);
    let output = place.output(&["run", "small.toml"]);
    assert!(output.status.success(), "{}", text(&output));
    let dir = place.folder().unwrap();
    assert_whole(&dir);
    // There is nothing left to do.
    let before = fs::read(dir.join("trials.csv")).unwrap();
    let again = place.output(&["run", dir.to_str().unwrap()]);
    assert!(again.status.success(), "{}", text(&again));
    assert_eq!(fs::read(dir.join("trials.csv")).unwrap(), before);
}

#[test]
fn an_experiment_whose_controller_is_killed_resumes_without_repeating_or_losing_a_trial() {
    let place = Place::new(SMALL);
    let mut controller = place.start(&["run", "small.toml"]);
    place.await_trials(&mut controller, 1);
    controller.kill().unwrap();
    controller.wait().unwrap();
    let dir = place.folder().unwrap();
    let first = fs::read_to_string(dir.join("trials.csv")).unwrap();
    assert_eq!(manifest(&dir)["outcome"], "running");

    let mut controller = place.start(&["run", "small.toml", "--resume", dir.to_str().unwrap()]);
    place.await_trials(&mut controller, 2);
    kill_process(Pid::from_raw(controller.id() as i32).unwrap(), Signal::INT).unwrap();
    assert_eq!(controller.wait().unwrap().code(), Some(130));
    assert_eq!(manifest(&dir)["outcome"], "interrupted");

    let output = place.output(&["run", dir.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output));
    assert_whole(&dir);
    assert!(fs::read_to_string(dir.join("trials.csv")).unwrap().starts_with(&first));
    assert_eq!(manifest(&dir)["resumed"].as_array().unwrap().len(), 2);
}

#[test]
fn a_trial_that_fails_is_a_row_and_makes_the_exit_code() {
    // Two of three nodes die in the first round: there is no majority.
    let faults = "fault = [[\"kill@node:1,round:1\", \"kill@node:2,round:1\"]]";
    let file =
        SMALL.replace("[[cases.store]]\n    backend = \"gossip\"", &format!("[factors]\n    {faults}"));
    let place = Place::new(&file.replace("repetitions = 2", "repetitions = 1"));
    let output = place.output(&["run", "small.toml"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let dir = place.folder().unwrap();
    let trials = rows(&dir.join("trials.csv"));
    let [row] = &trials[..] else { panic!("{trials:?}") };
    assert_eq!(row["outcome"], "no_majority");
    assert!(!row["reason"].is_empty());
    let manifest = manifest(&dir);
    assert_eq!((&manifest["outcome"], &manifest["trials_failed"]), (&"failed".into(), &1.into()));
}

#[test]
fn bad_experiments_are_refused_before_anything_starts() {
    let refused = |file: &str, words: &[&str], expected: &[&str]| {
        let place = Place::new(file);
        let output = place.output(words);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(expected.iter().all(|part| text.contains(part)), "{expected:?} in {text}");
        assert!(!place.0.path().join("results").exists(), "{text}");
    };
    let run = ["run", "small.toml"];
    refused(
        &SMALL.replace("rounds", "round"),
        &run,
        &["small.toml: round: no option", "did you mean rounds?"],
    );
    refused(&SMALL.replace("repetitions", "repetition"), &run, &["did you mean repetitions?"]);
    refused(&SMALL.replace("nodes = 3", "nodes = 300"), &run, &["2 of its cells", "--nodes 300"]);
    refused(&SMALL.replace("90ms", "900ms"), &run, &["1 of its cells", "--heartbeat"]);
    refused(SMALL, &["run", "small.toml", "--repetitions", "400"], &["800 trials", "--yes"]);
    refused(SMALL, &["run", "small.toml", "--set", "node=4"], &["did you mean nodes?"]);
    refused(SMALL, &["run", "nothing"], &["experiment nothing:", "smoke"]);
    refused(SMALL, &["run", "small.toml", "--resume", "."], &["--resume .:", "manifest.json"]);
    refused(SMALL, &["run", "."], &["manifest.json"]);
}

#[test]
fn shipped_experiments_are_listed_and_shown_with_their_commands() {
    let place = Place::new(SMALL);
    let list = text(&place.output(&["list"]));
    for name in [
        "fig3",
        "fig4",
        "size",
        "network",
        "matched",
        "churn",
        "consecutive",
        "subset-k",
        "scale",
        "kv-grid",
        "kv-peers",
        "leaderboard",
        "smoke",
        "capture-overhead",
    ] {
        assert!(list.contains(name), "{name} in {list}");
    }
    let output = place.output(&["show", "small.toml"]);
    let shown = text(&output);
    assert!(shown.contains("2 cells, 4 trials"), "{shown}");
    assert_eq!(shown.matches(": harness run ").count(), 4, "{shown}");
    // What is shown is a file, too.
    fs::write(place.0.path().join("small.toml"), &output.stdout).unwrap();
    assert_eq!(place.output(&["show", "small.toml"]).stdout, output.stdout);
}
