//! Repeated elections on the built binary: real processes, struck and brought back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::network;

/// Timers that a busy machine keeps: nobody is suspected who is well.
const CALM: [&str; 4] = ["--window", "1500-3000ms", "--heartbeat", "150ms"];
const CALM_LOW_NS: u64 = 1_500_000_000;
const CALM_HIGH_NS: u64 = 3_000_000_000;
const CALM_HEARTBEAT_NS: u64 = 150_000_000;
/// A window that no test waits for.
const LONG: [&str; 4] = ["--window", "60-120s", "--heartbeat", "150ms"];
const LONG_LOW_NS: u64 = 60_000_000_000;

struct Elections {
    dir: tempfile::TempDir,
    code: i32,
    summary: Value,
    stderr: String,
}

fn start(dir: &Path, options: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_harness"));
    command
        .args(["election", "--json", "--seed", "7", "--network", &network()])
        .args(if options.contains(&"--nodes") { &[][..] } else { &["--nodes", "3"] })
        .args(options)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(dir.join("stderr")).unwrap());
    command.spawn().unwrap()
}

fn wait(dir: tempfile::TempDir, controller: Child) -> Elections {
    let output = controller.wait_with_output().unwrap();
    let stderr = std::fs::read_to_string(dir.path().join("stderr")).unwrap();
    let summary = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"));
    Elections { dir, code: output.status.code().unwrap(), summary, stderr }
}

fn elections(options: &[&str]) -> Elections {
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path(), options);
    wait(dir, controller)
}

impl Elections {
    fn folder(&self) -> PathBuf {
        std::fs::read_dir(self.dir.path().join("results/election")).unwrap().next().unwrap().unwrap().path()
    }

    fn rows(&self) -> Vec<BTreeMap<String, String>> {
        let rows = csv::Reader::from_path(self.folder().join("elections.csv")).unwrap().into_deserialize();
        rows.map(Result::unwrap).collect()
    }

    /// Every trial ended with another aggregator that all follow, in the order of its stages.
    fn assert_done(&self, trials: usize) -> Vec<BTreeMap<String, String>> {
        assert_eq!((self.code, &self.summary["outcome"]), (0, &"completed".into()), "{}", self.stderr);
        let rows = self.rows();
        assert_eq!(rows.len(), trials);
        for (index, row) in rows.iter().enumerate() {
            assert_eq!(number(row, "trial"), index as u64 + 1);
            assert_ne!(row["killed_node"], row["new_node"], "{row:?}");
            assert!(number(row, "terms") >= 1, "{row:?}");
            let stages = ["suspected_ns", "elected_ns", "agreed_ns"].map(|stage| number(row, stage));
            assert!(stages.is_sorted(), "{row:?}");
        }
        rows
    }
}

fn number(row: &BTreeMap<String, String>, column: &str) -> u64 {
    row[column].parse().unwrap_or_else(|_| panic!("{column} of {row:?}"))
}

#[test]
fn raft_elects_again_and_again_and_every_sample_is_kept() {
    let elections = elections(&[&CALM[..], &["--backend", "raft", "--trials", "3"]].concat());
    let rows = elections.assert_done(3);
    for row in &rows {
        let silent = number(row, "suspected_ns") + number(row, "heartbeat_age_ns");
        assert!(silent >= CALM_LOW_NS, "{row:?}");
        assert!(number(row, "floor_ns") <= CALM_HIGH_NS, "{row:?}");
        assert!(number(row, "floor_ns") + number(row, "heartbeat_age_ns") >= CALM_LOW_NS, "{row:?}");
        assert_eq!((number(row, "eligible"), row["equal_logs"].as_str()), (2, "true"));
    }
    let folder = elections.folder();
    for stage in ["suspected", "elected", "agreed", "floor"] {
        let text = std::fs::read_to_string(folder.join(format!("{stage}.hgrm"))).unwrap();
        assert!(text.contains("Total count    =            3]"), "{text}");
    }
    let log = std::fs::read_to_string(folder.join("elections.hlog")).unwrap();
    assert!(log.contains("Tag=agreed,"), "{log}");
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    assert_eq!((&manifest["kind"], &manifest["trials_finished"]), (&"election".into(), &3.into()));
    assert!(elections.summary["agreed_by_floor"].as_f64().unwrap() > 0.5, "{}", elections.summary);
}

#[test]
fn only_survivors_with_the_longer_log_are_elected() {
    let options = ["--backend", "raft", "--trials", "3", "--logs", "unequal"];
    let elections = elections(&[&CALM[..], &options].concat());
    for row in elections.assert_done(3) {
        assert_eq!((number(&row, "eligible"), row["equal_logs"].as_str()), (1, "false"));
    }
}

#[test]
fn a_subset_elects() {
    let options = ["--backend", "raft-subset", "--nodes", "4", "--trials", "2"];
    elections(&[&CALM[..], &options].concat()).assert_done(2);
}

#[test]
fn gossip_elects() {
    for fault in ["kill", "stop"] {
        elections(&[&CALM[..], &["--backend", "gossip", "--trials", "2", "--fault", fault]].concat())
            .assert_done(2);
    }
}

#[test]
fn backups_succeed() {
    elections(&[&CALM[..], &["--backend", "backup", "--nodes", "4", "--trials", "2"]].concat())
        .assert_done(2);
}

#[test]
fn the_end_of_a_lifeline_replaces_the_window() {
    for (backend, nodes) in [("raft", "3"), ("backup", "4")] {
        let options = ["--backend", backend, "--nodes", nodes, "--trials", "2", "--fast-failover"];
        let elections = elections(&[&LONG[..], &options].concat());
        for row in elections.assert_done(2) {
            assert!(number(&row, "agreed_ns") < LONG_LOW_NS, "{row:?}");
            assert_eq!((number(&row, "floor_ns"), row["fast_failover"].as_str()), (0, "true"));
        }
    }
}

#[test]
fn a_stopped_aggregator_takes_the_window_whatever_lifelines_there_are() {
    let options = ["--backend", "raft", "--trials", "2", "--fast-failover", "--fault", "stop"];
    let elections = elections(&[&CALM[..], &options].concat());
    for row in elections.assert_done(2) {
        let silent = number(&row, "suspected_ns") + number(&row, "heartbeat_age_ns");
        assert!(silent + CALM_HEARTBEAT_NS >= CALM_LOW_NS, "{row:?}");
        assert!(number(&row, "floor_ns") > 0, "{row:?}");
    }
}

#[test]
fn an_interrupted_election_keeps_what_it_has_and_leaves_nothing_behind() {
    const PATIENCE: Duration = Duration::from_secs(90);
    let dir = tempfile::tempdir().unwrap();
    let options = [&CALM[..], &["--backend", "raft", "--trials", "100000"]].concat();
    let controller = start(dir.path(), &options);
    let deadline = Instant::now() + PATIENCE;
    while !std::fs::read_to_string(dir.path().join("stderr")).unwrap().contains("trial 1/") {
        assert!(Instant::now() < deadline, "no trial ended");
        std::thread::sleep(Duration::from_millis(20));
    }
    kill_process(Pid::from_raw(controller.id() as i32).unwrap(), Signal::INT).unwrap();
    let elections = wait(dir, controller);
    assert_eq!((elections.code, &elections.summary["outcome"]), (130, &"interrupted".into()));
    let rows = elections.rows();
    assert!(!rows.is_empty());
    assert_eq!(elections.summary["trials_finished"], rows.len() as u64);
    assert!(elections.folder().join("agreed.hgrm").exists());
}
