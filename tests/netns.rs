//! Nodes in network namespaces, and what captures count there. Needs root, as the placement does.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The transport counts established connections. Whoever starts first repeats the first packet of a handshake, 1200 B
/// and headers, until the other listens: at most three for each plane and peer were seen, so about twice that.
const UNCOUNTED_HANDSHAKE_BYTES: u64 = 5 * 1228;
const SMALL: [&str; 4] = ["--examples-per-node", "64", "--test-examples-per-node", "32"];

/// These tests cannot say anything without root, and must not pass then.
pub(crate) fn need_root() {
    assert!(rustix::process::geteuid().is_root(), "this test makes network namespaces: run it as root");
}

fn harness(dir: &Path, options: &[&str]) -> Command {
    harness_of(4, dir, options)
}

/// A run of `nodes` nodes in namespaces.
pub(crate) fn harness_of(nodes: usize, dir: &Path, options: &[&str]) -> Command {
    need_root();
    let mut command = Command::new(env!("CARGO_BIN_EXE_harness"));
    command.args(["run", "--placement", "netns", "--seed", "7", "--json", "--quiet"]);
    command
        .args(["--nodes", &nodes.to_string()])
        .args(SMALL)
        .args(options)
        .current_dir(dir)
        .stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) struct Finished {
    pub(crate) summary: Value,
    results: PathBuf,
}

pub(crate) fn finished(dir: &Path, output: Output) -> Finished {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let results = dir.join(summary["results"].as_str().unwrap());
    Finished { summary, results }
}

impl Finished {
    pub(crate) fn rows(&self, file: &str) -> Vec<BTreeMap<String, String>> {
        let mut reader = csv::Reader::from_path(self.results.join(file)).unwrap();
        reader.deserialize().map(|row| row.unwrap()).collect()
    }

    /// Capture and interface agree for every node, and with the transport if nodes were there to the end.
    pub(crate) fn assert_counts_agree(&self, all_lived: bool) {
        let traffic = &self.summary["traffic"];
        assert_eq!((&traffic["source"], &traffic["valid"]), (&"capture".into(), &true.into()), "{traffic}");
        assert_eq!(traffic["dropped_packets"], 0);
        let totals = self.rows("capture_totals.csv");
        let nodes = self.summary["nodes"].as_u64().unwrap();
        assert_eq!(totals.len() as u64, 2 * nodes, "two directions");
        for row in &totals {
            let number = |name: &str| row[name].parse::<u64>().unwrap();
            assert_eq!((row["complete"].as_str(), row["exact"].as_str()), ("true", "true"));
            let planes = number("learning_bytes") + number("replication_bytes");
            let close = |other: u64, share: f64| planes.abs_diff(other) as f64 <= share * planes as f64;
            let interface = number("interface_bytes") - number("other_bytes");
            assert!(close(interface, 0.001), "{row:?}");
            // What a killed node's transport counted last, nobody knows; and attempts to reach it belong to no connection.
            if row["direction"] == "egress" && all_lived {
                for plane in ["learning", "replication"] {
                    let captured = number(&format!("{plane}_bytes"));
                    let transport = number(&format!("transport_{plane}_bytes"));
                    let explained = captured / 200 + UNCOUNTED_HANDSHAKE_BYTES * (nodes - 1);
                    assert!(captured.abs_diff(transport) <= explained, "{plane}: {row:?}");
                }
            }
        }
        let sum: u64 = self
            .rows("capture.csv")
            .iter()
            .filter(|row| row["port"] == "8080" && row["direction"] == "egress")
            .map(|row| row["bytes"].parse::<u64>().unwrap())
            .sum();
        assert_eq!(Some(sum), traffic["learning_bytes"].as_u64(), "seconds add up to the total");
    }
}

#[test]
fn two_runs_side_by_side_complete_and_their_counts_agree() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let runs = dirs.each_ref().map(|dir| harness(dir.path(), &["--rounds", "6"]).spawn().unwrap());
    for (dir, run) in dirs.iter().zip(runs) {
        let run = finished(dir.path(), run.wait_with_output().unwrap());
        assert_eq!(run.summary["rounds_finished"], 6);
        run.assert_counts_agree(true);
    }
}

#[test]
fn the_packets_of_a_killed_node_are_counted_too() {
    let dir = tempfile::tempdir().unwrap();
    let output =
        harness(dir.path(), &["--rounds", "3", "--fault", "kill@aggregator,round:2"]).output().unwrap();
    let run = finished(dir.path(), output);
    assert_eq!(run.summary["faults_struck"], 1);
    run.assert_counts_agree(false);
    let nodes = run.rows("nodes.csv");
    let killed = nodes.iter().find(|row| row["state"] == "killed (SIGKILL)").unwrap();
    let totals = run.rows("capture_totals.csv");
    let sent =
        totals.iter().find(|row| row["node"] == killed["node"] && row["direction"] == "egress").unwrap();
    // It sent at least the first round's average to its three workers: 62,006 parameters of four bytes.
    assert!(sent["learning_bytes"].parse::<u64>().unwrap() > 3 * 248_024, "{sent:?}");
}

#[test]
fn shared_air_with_delay_and_loss_limits_the_rate() {
    let dir = tempfile::tempdir().unwrap();
    let output = harness(dir.path(), &["--rounds", "1", "--link", "wifi-pi3"]).output().unwrap();
    let run = finished(dir.path(), output);
    run.assert_counts_agree(true);
    let bytes = run.summary["traffic"]["interface_bytes"].as_u64().unwrap();
    let seconds = run.summary["elapsed_ns"].as_u64().unwrap() as f64 / 1e9;
    // 20 Mbit/s, with a little for what the buckets hold.
    assert!(bytes as f64 <= 1.05 * seconds * 20e6 / 8.0, "{bytes} B in {seconds} s");
}

#[test]
fn without_capture_the_transport_s_counts_are_marked_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let output = harness(dir.path(), &["--rounds", "1", "--capture", "off"]).output().unwrap();
    let run = finished(dir.path(), output);
    assert_eq!(run.summary["traffic"]["source"], "transport");
    assert!(run.rows("capture_totals.csv").iter().all(|row| row["source"] == "transport"));
    assert!(!run.results.join("capture.csv").exists());
}

#[test]
fn netem_is_used_where_the_kernel_has_it_and_refused_where_not() {
    need_root();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("slow.toml"), "delay_ms = 5\nloss = 0.001\nnetem = true\n").unwrap();
    let probe = ["-n", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"];
    let kernel_has_it = Command::new("unshare").args(probe).output().unwrap().status.success();
    let output = harness(dir.path(), &["--rounds", "1", "--link", "slow.toml"]).output().unwrap();
    if kernel_has_it {
        finished(dir.path(), output).assert_counts_agree(true);
        return;
    }
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("error: --link with netem: this kernel has no netem: "), "{said}");
    assert!(said.contains("leave netem out") && said.lines().count() == 1, "{said}");
    assert!(!dir.path().join("results").exists());
}

/// Numbers of the network namespaces of all processes.
fn namespaces_in_use() -> BTreeMap<String, i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let of = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    pids.filter_map(|pid| Some((of(pid)?.to_string_lossy().into_owned(), pid))).collect()
}

pub(crate) fn await_some<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    await_some_for(what, PATIENCE, condition)
}

pub(crate) fn await_some_for<T>(
    what: &str,
    patience: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn children_of(parent: u32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).unwrap().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

/// A controller in the middle of a run, and the namespaces of its four nodes.
fn running(dir: &Path) -> (Child, Vec<i32>, Vec<String>) {
    let controller = harness(dir, &["--rounds", "100000"]).spawn().unwrap();
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    let found = await_some("four nodes in namespaces", || {
        let nodes = children_of(controller.id());
        let links = nodes.iter().filter_map(|pid| fs::read_link(format!("/proc/{pid}/ns/net")).ok());
        let others: Vec<String> =
            links.filter(|link| *link != own).map(|link| link.to_string_lossy().into_owned()).collect();
        let executed = nodes.iter().all(|pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"\0node\0"))
        });
        (others.len() == 4 && executed).then_some((nodes, others))
    });
    (controller, found.0, found.1)
}

#[test]
fn a_killed_controller_leaves_no_process_no_namespace_and_no_interface() {
    let interfaces = || fs::read_to_string("/proc/self/net/dev").unwrap().lines().count();
    let before = interfaces();
    let dir = tempfile::tempdir().unwrap();
    let (mut controller, nodes, namespaces) = running(dir.path());
    controller.kill().unwrap();
    controller.wait().unwrap();
    await_some("the nodes' end", || {
        let gone = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
        };
        nodes.iter().all(gone).then_some(())
    });
    await_some("the namespaces' end", || {
        let used = namespaces_in_use();
        namespaces.iter().all(|namespace| !used.contains_key(namespace)).then_some(())
    });
    // A namespace without a process can only be kept by a mount or a descriptor; the run makes none of the former.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(namespaces.iter().all(|namespace| !mounts.contains(namespace.as_str())), "{mounts}");
    assert_eq!(interfaces(), before, "nothing was made in this namespace");
}

#[test]
fn without_root_the_placement_is_refused_and_says_why() {
    need_root();
    let dir = tempfile::tempdir().unwrap();
    // A copy that everybody may execute, in a folder that everybody may enter.
    let everybody = |path: &Path| {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    let program = dir.path().join("harness");
    fs::copy(env!("CARGO_BIN_EXE_harness"), &program).unwrap();
    everybody(dir.path());
    everybody(&program);
    let said = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.args(words).current_dir("/").uid(65_534).gid(65_534).stdin(Stdio::null());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let out = "/tmp";
    let refused = said(&["run", "--placement", "netns", "--out", out]);
    let expected =
        "error: --placement netns: network namespaces need CAP_SYS_ADMIN and CAP_NET_ADMIN, which root has";
    assert!(refused.starts_with(expected), "{refused}");
    let refused = said(&["run", "--capture", "required", "--network", "127.99.98.0", "--out", out]);
    assert!(refused.starts_with("error: --capture required: a raw socket needs CAP_NET_RAW"), "{refused}");
    let refused = said(&["capture", "--interface", "lo", "--port", "8080"]);
    assert!(refused.starts_with("error: --interface lo: a raw socket needs CAP_NET_RAW"), "{refused}");
    assert!(refused.contains("sudo setcap cap_net_raw,cap_net_admin=ep /"), "{refused}");
}
