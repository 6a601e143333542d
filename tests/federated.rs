//! Federated jobs on the built binary: real processes, sockets, kills and files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::network;

/// A finished run.
pub(crate) struct Run {
    output: Output,
    pub(crate) dir: tempfile::TempDir,
}

/// Small shards: these tests are about rounds and failures, not about learning.
const SMALL: [&str; 4] = ["--examples-per-node", "64", "--test-examples-per-node", "32"];

pub(crate) fn run(options: &[&str]) -> Run {
    start(options).wait()
}

/// A run under way.
pub(crate) struct Running {
    controller: Controller,
    dir: tempfile::TempDir,
}

/// Ends with a test that failed, and so do its nodes.
struct Controller(Option<Child>);

impl Controller {
    fn process(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Some(mut process) = self.0.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

pub(crate) fn start(options: &[&str]) -> Running {
    start_in(tempfile::tempdir().unwrap(), &[&["--seed", "7", "--network", &network()], options].concat())
}

/// A run in `dir`, which may hold what earlier ones left.
pub(crate) fn start_in(dir: tempfile::TempDir, options: &[&str]) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_harness"));
    command
        .args(["run", "--json"])
        .args(options)
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(dir.path().join("stderr")).unwrap());
    Running { controller: Controller(Some(command.spawn().unwrap())), dir }
}

impl Running {
    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Run {
        let controller = self.controller.0.take().unwrap();
        let mut output = controller.wait_with_output().unwrap();
        output.stderr = std::fs::read(self.dir.path().join("stderr")).unwrap();
        Run { output, dir: self.dir }
    }

    /// Waits until `condition` holds of the events so far.
    pub(crate) fn await_events(&mut self, what: &str, condition: impl Fn(&[Value]) -> bool) {
        const PATIENCE: Duration = Duration::from_secs(90);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = newest_results(self.dir.path())
                .and_then(|folder| std::fs::read_to_string(folder.join("events.jsonl")).ok());
            // The last line may be half written.
            let text = text.unwrap_or_default();
            let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let events: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
            if condition(&events) {
                return;
            }
            assert_eq!(self.controller.process().try_wait().unwrap(), None, "ended before {what}");
            assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its results folder, once it has one.
    pub(crate) fn results(&self) -> PathBuf {
        newest_results(self.dir.path()).unwrap()
    }

    /// Sends a signal to the controller.
    pub(crate) fn signal(&mut self, signal: Signal) {
        kill_process(Pid::from_raw(self.controller.process().id() as i32).unwrap(), signal).unwrap();
    }
}

/// Events of one name in a results folder, in the order of the controller's file.
pub(crate) fn events_in(results: &Path, name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(results.join("events.jsonl")).unwrap();
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.filter(|event| event["event"] == name).collect()
}

/// The results folder made last below `dir`.
pub(crate) fn newest_results(dir: &Path) -> Option<PathBuf> {
    let folders = std::fs::read_dir(dir.join("results/run")).ok()?;
    let folders = folders.map(|folder| folder.unwrap().path());
    // Names begin with the time; of one second, the later one has a suffix.
    folders.max()
}

impl Run {
    pub(crate) fn text(&self) -> String {
        let Output { status, stdout, stderr } = &self.output;
        let (stdout, stderr) = (String::from_utf8_lossy(stdout), String::from_utf8_lossy(stderr));
        format!("{status}\n{stderr}\n{stdout}")
    }

    pub(crate) fn code(&self) -> i32 {
        self.output.status.code().unwrap_or_else(|| panic!("no exit code: {}", self.text()))
    }

    pub(crate) fn summary(&self) -> Value {
        serde_json::from_slice(&self.output.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn results(&self) -> PathBuf {
        let results = self.summary()["results"].as_str().unwrap().to_owned();
        self.dir.path().join(results)
    }

    pub(crate) fn rows(&self, file: &str) -> Vec<BTreeMap<String, String>> {
        let mut reader = csv::Reader::from_path(self.results().join(file)).unwrap();
        reader.deserialize().map(|row| row.unwrap()).collect()
    }

    /// Events of the federated job and the stores, in the order of the controller's file.
    pub(crate) fn events(&self, name: &str) -> Vec<Value> {
        events_in(&self.results(), name)
    }

    pub(crate) fn assert_completed(&self, rounds: u64) {
        assert_eq!(self.code(), 0, "{}", self.text());
        let summary = self.summary();
        assert_eq!((&summary["outcome"], &summary["rounds_finished"]), (&"completed".into(), &rounds.into()));
        let finished: BTreeSet<u64> =
            self.rows("rounds.csv").iter().map(|row| row["round"].parse().unwrap()).collect();
        assert_eq!(finished, (1..=rounds).collect());
        let last = self.results().join("nodes");
        assert!(last.join("1.log").exists());
    }

    /// No worker began to train a round after its average had been acknowledged, by the nodes' common clock.
    pub(crate) fn assert_nothing_trained_twice(&self) {
        let at = |event: &Value| event["at_ns"].as_u64().unwrap();
        let mut acknowledged = BTreeMap::new();
        for put in self.events("checkpoint_put") {
            let id = &put["id"];
            if (id["phase"].as_str(), id["slot"].as_str()) == (Some("aggregate_fit"), Some("global")) {
                acknowledged.entry(id["round"].as_u64().unwrap()).or_insert_with(|| at(&put));
            }
        }
        for fit in self.events("fit_started") {
            let round = fit["round"].as_u64().unwrap();
            let late = acknowledged.get(&round).is_some_and(|acknowledged| at(&fit) > *acknowledged);
            assert!(!late, "round {round} was trained again after it was acknowledged: {fit}");
        }
    }

    /// Whenever an aggregator took over it continued from the newest checkpoint acknowledged before.
    pub(crate) fn assert_restored_the_newest(&self) {
        let at = |event: &Value| event["at_ns"].as_u64().unwrap();
        let puts = self.events("checkpoint_put");
        for restored in self.events("restored") {
            let before = puts.iter().filter(|put| at(put) < at(&restored) && put["id"]["slot"] == "global");
            let newest = before.map(|put| put["id"]["round"].as_u64().unwrap()).max();
            let from = restored["from"]["round"].as_u64();
            assert!(from >= newest, "restored {from:?}, acknowledged {newest:?}: {restored}");
        }
    }
}

pub(crate) fn small<'a>(options: &[&'a str]) -> Vec<&'a str> {
    options.iter().copied().chain(SMALL).collect()
}

#[test]
fn ten_nodes_end_with_the_same_checkpoint() {
    for payload in ["inline", "digest"] {
        let run = run(&small(&["--nodes", "10", "--rounds", "3", "--payload", payload]));
        run.assert_completed(3);
        let summary = run.summary();
        assert_eq!(summary["checkpoint"]["holders"].as_array().unwrap().len(), 10);
        assert_eq!((&summary["epochs"], &summary["unexpected_deaths"]), (&1.into(), &0.into()));
        let digests: BTreeSet<String> =
            run.rows("nodes.csv").iter().map(|row| row["latest_digest"].clone()).collect();
        assert_eq!(digests, BTreeSet::from([summary["checkpoint"]["digest"].as_str().unwrap().to_owned()]));
        let started_in = summary["start_ns"].as_u64().unwrap();
        assert!(started_in < 5_000_000_000, "ten nodes took {started_in} ns to start");
        assert!(run.rows("rounds.csv").iter().all(|row| row["fit_workers"] == "9"), "{}", run.text());
    }
}

#[test]
fn every_profile_runs() {
    for profile in ["paper", "prototype", "workers"] {
        let run =
            run(&small(&["--nodes", "4", "--rounds", "2", "--profile", profile, "--payload", "digest"]));
        run.assert_completed(2);
        let global = run.rows("checkpoints.csv").iter().filter(|row| row["slot"] == "global").count();
        assert_eq!(global, if profile == "workers" { 2 } else { 6 }, "{profile}");
    }
}

#[test]
fn the_same_seed_gives_the_same_model() {
    let digest = || {
        let run = run(&small(&["--nodes", "3", "--rounds", "2", "--partition", "dirichlet:0.5"]));
        run.assert_completed(2);
        run.summary()["checkpoint"]["digest"].clone()
    };
    assert_eq!(digest(), digest());
}

#[test]
fn cifar_10_files_are_trained_from() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().to_str().unwrap();
    let made =
        Command::new(env!("CARGO_BIN_EXE_harness")).args(["data", "synthesize", path]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let options =
        ["--nodes", "3", "--rounds", "6", "--lr", "0.01", "--examples-per-node", "1000", "--data", path];
    let run = run(&options);
    run.assert_completed(6);
    assert_eq!(run.summary()["synthetic_data"], false);
    let losses: Vec<f64> = run.rows("rounds.csv").iter().map(|row| row["loss"].parse().unwrap()).collect();
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "the loss does not fall each round: {losses:?}");
}

#[test]
fn a_mislabelled_record_is_named_before_anything_starts() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().to_str().unwrap();
    let made =
        Command::new(env!("CARGO_BIN_EXE_harness")).args(["data", "synthesize", path]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let file = data.path().join("cifar-10-batches-bin/data_batch_3.bin");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[3073 * 1234] = 10;
    std::fs::write(&file, &bytes).unwrap();
    let refused = run(&["--nodes", "3", "--data", path]);
    assert_eq!(refused.code(), 2, "{}", refused.text());
    assert!(
        refused.text().contains("data_batch_3.bin") && refused.text().contains("1234"),
        "{}",
        refused.text()
    );
    assert!(!refused.dir.path().join("results").exists());

    std::fs::write(&file, &bytes[..3073 * 500 + 7]).unwrap();
    let refused = run(&["--nodes", "3", "--data", path]);
    assert_eq!(refused.code(), 2, "{}", refused.text());
    assert!(
        refused.text().contains("data_batch_3.bin") && refused.text().contains("500"),
        "{}",
        refused.text()
    );
}

#[test]
fn the_job_survives_its_aggregator() {
    for payload in ["inline", "digest"] {
        let faults =
            ["--nodes", "5", "--rounds", "4", "--payload", payload, "--fault", "kill@aggregator,round:2"];
        let run = run(&small(&faults));
        run.assert_completed(4);
        let summary = run.summary();
        assert_eq!((&summary["faults_struck"], &summary["nodes_alive"]), (&1.into(), &4.into()), "{summary}");
        run.assert_nothing_trained_twice();
        run.assert_restored_the_newest();
        assert_eq!(run.events("completed").len(), 1);
    }
}

#[test]
fn the_job_survives_two_aggregators_in_a_row() {
    let faults = ["--fault", "kill@aggregator,round:2", "--fault", "kill@aggregator,round:2"];
    let run = run(&small(&[&["--nodes", "7", "--rounds", "4"], &faults[..]].concat()));
    run.assert_completed(4);
    let summary = run.summary();
    assert_eq!((&summary["faults_struck"], &summary["nodes_alive"]), (&2.into(), &5.into()), "{summary}");
    assert!(summary["epochs"].as_u64() >= Some(3), "{summary}");
    run.assert_nothing_trained_twice();
    run.assert_restored_the_newest();
}

#[test]
fn a_dead_worker_does_not_stop_the_job() {
    let run = run(&small(&["--nodes", "4", "--rounds", "3", "--fault", "kill@worker,round:2"]));
    run.assert_completed(3);
    assert_eq!((&run.summary()["epochs"], &run.summary()["nodes_alive"]), (&1.into(), &3.into()));
    run.assert_nothing_trained_twice();
}

#[test]
fn without_a_majority_the_run_ends_and_the_survivors_have_what_was_acknowledged() {
    let kill = |round: &'static str| ["--fault", round];
    let faults =
        ["kill@aggregator,round:2", "kill@aggregator,round:3", "kill@aggregator,round:4"].map(kill).concat();
    let run = run(&small(&[&["--nodes", "5", "--rounds", "9"], &faults[..]].concat()));
    assert_eq!(run.code(), 3, "{}", run.text());
    let summary = run.summary();
    assert_eq!(
        (&summary["outcome"], &summary["nodes_alive"]),
        (&"no_majority".into(), &2.into()),
        "{summary}"
    );
    assert!(run.text().contains("no majority is left: 2 of 5 nodes alive, 3 needed"), "{}", run.text());
    let acknowledged = &summary["checkpoint"];
    assert_eq!(acknowledged["round"], 3, "{summary}");
    let alive: Vec<_> =
        run.rows("nodes.csv").into_iter().filter(|row| row["state"] == "exit code 0").collect();
    assert_eq!(alive.len(), 2);
    for node in alive {
        assert_eq!(node["latest_digest"], acknowledged["digest"].as_str().unwrap(), "{node:?}");
    }
}

#[test]
fn training_flat_out_causes_no_election() {
    let run = run(&["--nodes", "10", "--rounds", "20", "--examples-per-node", "500"]);
    run.assert_completed(20);
    assert_eq!(run.summary()["epochs"], 1, "{}", run.text());
    assert_eq!(run.events("suspected").len(), 0);
}

#[cfg(feature = "torch")]
#[test]
fn with_libtorch_the_job_learns_and_outlives_its_aggregator() {
    // At the paper's learning rate of 0.001 the few examples of a test leave the loss at 2.30, on either side of it.
    let learning = ["--engine", "torch", "--lr", "0.02", "--local-epochs", "4"];
    let job = ["--nodes", "4", "--rounds", "6", "--fault", "kill@aggregator,round:3"];
    let run = run(&small(&[&learning[..], &job[..]].concat()));
    run.assert_completed(6);
    run.assert_nothing_trained_twice();
    run.assert_restored_the_newest();
    let summary = run.summary();
    // Guessing among ten classes has a loss of ln 10, which is 2.30.
    assert!(summary["loss"].as_f64().unwrap() < 2.0, "hardly better than guessing: {summary}");
}

/// libtorch alone takes more than the bound, so this is asked of the default build.
#[cfg(not(feature = "torch"))]
#[test]
fn memory_stays_bounded_over_200_rounds() {
    let run = run(&[
        "--nodes",
        "10",
        "--rounds",
        "200",
        "--examples-per-node",
        "32",
        "--test-examples-per-node",
        "8",
    ]);
    run.assert_completed(200);
    let peak = run.summary()["rss_peak_bytes"].as_u64().unwrap();
    assert!(peak < 150_000_000, "a node took {peak} bytes");
}

#[test]
fn no_secret_reaches_results_or_logs() {
    let run = run(&small(&["--nodes", "2", "--rounds", "1"]));
    run.assert_completed(1);
    fn look(dir: &Path) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                look(&path);
            } else {
                let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
                assert!(!text.contains("PRIVATE KEY"), "{}", path.display());
            }
        }
    }
    look(run.dir.path());
}
