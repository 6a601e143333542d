//! The key-value workload on the built binary: loads that are checked, nodes that are disturbed, administration from outside.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::federated::{Run, Running, start};

/// A small load on `backend`.
fn load(options: &[&str]) -> Run {
    let small = ["--workload", "kv", "--nodes", "3", "--clients", "4", "--entries", "50", "--duration", "1"];
    start(&[&small[..], options].concat()).wait()
}

fn completed(run: &Run) -> Value {
    assert_eq!(run.code(), 0, "{}", run.text());
    let summary = run.summary();
    assert_eq!((&summary["valid"], &summary["checks"]["failure"]), (&true.into(), &Value::Null), "{summary}");
    summary
}

#[test]
fn every_backend_serves_a_load_and_passes_its_check() {
    for backend in ["raft", "raft-subset", "gossip", "backup"] {
        let run = load(&["--backend", backend, "--delete-ratio", "0.1"]);
        let summary = completed(&run);
        let operations = run.rows("operations.csv");
        let of_stage = |stage: &str| operations.iter().filter(|row| row["stage"] == stage).count() as u64;
        assert_eq!((of_stage("fill"), of_stage("verify")), (50, 50), "{backend}");
        assert_eq!(Some(of_stage("load")), summary["operations"].as_u64());
        assert_eq!(summary["weight_bytes"], 50 * (12 + 100));
        assert_eq!(run.rows("clients.csv").len(), 4);
    }
}

#[test]
fn an_open_loop_offers_what_it_is_told() {
    let run =
        load(&["--rate", "100", "--keys", "zipf:0.99", "--reads", "lease", "--delivery", "at-least-once"]);
    let summary = completed(&run);
    assert_eq!(summary["operations"], 100, "{summary}");
}

#[test]
fn a_disturbed_group_stays_linearizable() {
    let options = "--workload kv --nodes 5 --clients 4 --entries 20 --rate 200 --duration 9 --durability disk \
        --disturb kill --disturb stop --disturb partition --disturb-every 3s --disturb-for 2s";
    let run = start(&options.split_whitespace().collect::<Vec<_>>()).wait();
    let summary = completed(&run);
    assert_eq!(summary["disturbances"], 3, "{summary}");
    assert_eq!(run.events("fault_struck").len(), 3);
}

/// `harness kv` on the cluster of a file.
fn kv(file: &Path, words: &[&str], typed: &str) -> (i32, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_harness"))
        .arg("kv")
        .arg("--cluster")
        .arg(file)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), format!("{}{}", text(stdout), text(stderr)))
}

/// A cluster that serves until it is told to end.
fn serving(file: &Path) -> Running {
    let file = file.to_str().unwrap();
    let running = start(&[
        "--workload",
        "kv",
        "--nodes",
        "3",
        "--clients",
        "0",
        "--duration",
        "600",
        "--cluster",
        file,
    ]);
    let until = Instant::now() + Duration::from_secs(60);
    while kv(Path::new(file), &["set", "first", "1"], "").0 != 0 {
        assert!(Instant::now() < until, "the cluster does not serve");
    }
    running
}

#[test]
fn a_cluster_is_used_and_administered_from_outside() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cluster.json");
    let running = serving(&file);
    let said = |words: &[&str]| {
        let (code, text) = kv(&file, words, "");
        assert_eq!(code, 0, "{words:?}: {text}");
        text
    };
    assert_eq!(said(&["set", "colour", "dark blue"]), "set\n");
    assert_eq!(said(&["get", "colour"]), "dark blue\n");
    assert_eq!(said(&["get", "none"]), "there is no none\n");
    assert_eq!(said(&["show"]), "colour\tdark blue\nfirst\t1\n");
    assert_eq!(said(&["delete", "colour"]), "deleted\n");
    assert!(said(&["log"]).contains("delete colour"));
    let status = said(&["status"]);
    assert!(status.contains("leader") && status.contains("follower") && status.contains("1,2,3"), "{status}");
    let (code, text) = kv(&file, &[], "set a 1\nexplode\nget a\nquit\nget a\n");
    assert_eq!((code, text.as_str()), (1, "set\n1\nerror: unknown command 'explode'; help lists them\n"));
    let (code, text) = kv(&file, &["set", "k", &"x".repeat(65_537)], "");
    assert!(code == 2 && text.contains("the value has 65537 bytes, the limit is 65536"), "{code} {text}");

    let other_file = dir.path().join("other.json");
    let other = serving(&other_file);
    let mut mixed: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let theirs: Value = serde_json::from_slice(&std::fs::read(&other_file).unwrap()).unwrap();
    mixed["nodes"] = theirs["nodes"].clone();
    let mixed_file = dir.path().join("mixed.json");
    std::fs::write(&mixed_file, mixed.to_string()).unwrap();
    let (code, text) = kv(&mixed_file, &["get", "a"], "");
    assert!(code == 1 && text.contains("the cluster file is of another run"), "{code} {text}");

    for mut running in [running, other] {
        running.signal(rustix::process::Signal::TERM);
        assert_eq!(running.wait().code(), 143);
    }
    assert!(!file.exists(), "its credentials are of no use any more");
    let (code, text) = kv(&file, &["get", "a"], "");
    assert!(code == 2 && text.contains("cannot be read"), "{code} {text}");
}
