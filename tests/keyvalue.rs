//! The key-value workload on the built binary: loads that are checked, nodes that are disturbed, administration from outside.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::federated::{Run, Running, start};
use crate::network;

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
        for name in ["latency.hgrm", "read_latency.hgrm", "write_latency.hgrm", "latency.hlog"] {
            let text = std::fs::read_to_string(run.results().join(name)).unwrap();
            let count = format!("Total count    = {:12}]", summary["latency"]["count"].as_u64().unwrap());
            assert!(name != "latency.hgrm" || text.contains(&count), "{text}");
        }
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

/// Presses keys at the prompt on a terminal.
fn at_the_prompt(file: &Path, keys: &[(&str, &str)]) {
    let prompt = format!("'{}' kv --cluster '{}'", env!("CARGO_BIN_EXE_harness"), file.display());
    at_a_terminal(&prompt, keys);
}

/// Presses keys while `command` runs on a terminal, each time once it shows what is awaited before; it has to succeed.
///
/// A shell shows how it ended, beside what it said.
pub(crate) fn at_a_terminal(command: &str, keys: &[(&str, &str)]) {
    let command = format!("trap : INT; {command}; echo \"exit code $?\"");
    let mut child = Command::new("script")
        .args(["--quiet", "--command", &command, "/dev/null"])
        .env("TERM", "xterm")
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut typing, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (tell, shown) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        let mut some = [0; 4096];
        while let Ok(count @ 1..) = screen.read(&mut some) {
            let _ = tell.send(String::from_utf8_lossy(&some[..count]).into_owned());
        }
    });
    let (mut text, mut seen) = (String::new(), 0);
    for (awaited, pressed) in keys {
        while !text[seen..].contains(awaited) {
            let more = shown.recv_timeout(Duration::from_secs(60));
            text += &more.unwrap_or_else(|_| panic!("{awaited:?} is not shown: {text:?}"));
        }
        seen += text[seen..].find(awaited).unwrap_or(0) + awaited.len();
        typing.write_all(pressed.as_bytes()).unwrap();
    }
    let until = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() >= until {
            // So that nothing is left behind.
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{command} does not end: {text:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    reading.join().unwrap();
    text.extend(shown.try_iter());
    // What it said at last, without all the views before.
    let last: String = text.chars().skip(text.chars().count().saturating_sub(600)).collect();
    assert!(last.trim_end().ends_with("exit code 0"), "{command}: {last:?}");
}

/// A cluster that serves until it is told to end.
fn serving(file: &Path) -> Running {
    let file = file.to_str().unwrap();
    let running = start(&["--workload", "kv", "--nodes", "3", "--clients", "0", "--cluster", file]);
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
    // The arrow brings the last line back, and the one before it.
    let keys = [
        ("kv> ", "set b 1\r"),
        ("set\r\n", ""),
        ("kv> ", "explode\r"),
        ("unknown command 'explode'; help lists them", ""),
        ("kv> ", "\x1b[A"),
        ("kv> explode", "\x1b[A"),
        ("kv> set b 1", "\r"),
        ("replaced\r\n", ""),
        ("kv> ", "\x04"),
    ];
    at_the_prompt(&file, &keys);
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

#[test]
fn nodes_are_added_and_removed_while_a_cluster_serves() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cluster.json");
    let mut running = serving(&file);
    let said = |words: &[&str]| {
        let (code, text) = kv(&file, words, "");
        assert_eq!(code, 0, "{words:?}: {text}");
        text
    };
    assert!(said(&["add-node"]).starts_with("node 4 has joined, at "));
    let nodes = |file: &Path| {
        let cluster: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        cluster["nodes"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(nodes(&file), ["1", "2", "3", "4"], "those who read the file reach it");
    let both = std::thread::scope(|scope| {
        let asking = [0, 1].map(|_| scope.spawn(|| said(&["add-node"])));
        asking.map(|asking| asking.join().unwrap())
    });
    let joined =
        |node: u64| both.iter().filter(|said| said.starts_with(&format!("node {node} has joined"))).count();
    assert_eq!((joined(5), joined(6)), (1, 1), "each is told of its own: {both:?}");
    assert!(said(&["status"]).contains("1,2,3,4,5,6"));
    assert_eq!(said(&["remove-node", "1"]), "node 1 has left\n");
    assert_eq!(said(&["set", "after", "2"]), "set\n");
    let until = Instant::now() + Duration::from_secs(60);
    while nodes(&file) != ["2", "3", "4", "5", "6"] {
        assert!(Instant::now() < until, "{:?}", nodes(&file));
        std::thread::sleep(Duration::from_millis(20));
    }
    let (code, text) = kv(&file, &[], "get first\nshow\nstatus\n");
    assert!(
        code == 0 && text.starts_with("1\nafter\t2\nfirst\t1\n") && text.contains("2,3,4,5,6"),
        "{code} {text}"
    );
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.wait().code(), 143);
}

/// Two stores, and etcd where it is installed.
const PEERS: &str = r#"
    name = "peers"
    repetitions = 2
    [fixed]
    workload = "kv"
    clients = 4
    entries = 20
    duration = "1s"
    nodes = 3
    network = "NETWORK"
    [[cases.store]]
    backend = "raft"
    durability = "disk"
    [[cases.store]]
    backend = "gossip"
    [[cases.store]]
    peer = "etcd"
"#;

/// `harness experiment` on that experiment in `dir`, with programs from `path`; returns what it printed.
fn experiment(dir: &Path, command: &str, path: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_harness"))
        .args(["experiment", command, "peers.toml"])
        .current_dir(dir)
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stderr, output.stdout].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert!(output.status.success(), "{text}");
    text
}

#[test]
fn an_experiment_compares_stores_with_etcd_where_it_is_installed() {
    let dir = tempfile::tempdir().unwrap();
    let path = std::env::var("PATH").unwrap();
    let installed = std::env::split_paths(&path).any(|folder| folder.join("etcd").exists());
    std::fs::write(dir.path().join("peers.toml"), PEERS.replace("NETWORK", &network())).unwrap();
    let text = experiment(dir.path(), "run", &path);
    let folder = std::fs::read_dir(dir.path().join("results/peers")).unwrap().next().unwrap().unwrap().path();
    let mut reader = csv::Reader::from_path(folder.join("trials.csv")).unwrap();
    let rows: Vec<BTreeMap<String, String>> = reader.deserialize().map(Result::unwrap).collect();
    let of = |backend: &str| rows.iter().filter(|row| row["backend"] == backend).collect::<Vec<_>>();
    assert_eq!((of("raft").len(), of("gossip").len()), (2, 2), "{rows:?}");
    assert_eq!(of("etcd").len(), if installed { 2 } else { 0 }, "{text}");
    for row in &rows {
        let figures = ["outcome", "valid", "nodes", "clients", "entries", "value_bytes", "checks_failure"];
        assert_eq!(
            figures.map(|name| &*row[name]),
            ["completed", "true", "3", "4", "20", "100", ""],
            "{row:?}"
        );
        assert!(row["writes_per_s"].parse::<u64>().unwrap() > 0 && !row["write_latency_p99_ns"].is_empty());
    }
    let server = |row: &&BTreeMap<String, String>| row["server"].starts_with("etcd 3.");
    assert!(of("etcd").iter().all(server), "{rows:?}");

    let text = experiment(dir.path(), "show", "/nowhere");
    assert!(text.contains("etcd is not on the PATH: its cells are skipped; install it"), "{text}");
    assert!(text.contains("# 2 cells, 4 trials"), "{text}");
}
