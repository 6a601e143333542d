//! Nothing is left behind: signals to a running controller, its nodes included. Holds whatever the nodes do.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::network;
use rustix::process::{Pid, Signal, kill_process};

const NODES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` says something.
fn await_some<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// State letter and parent of a process; none if it is gone.
fn state_and_parent(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before these fields is in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn children_of(parent: i32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| state_and_parent(*pid).is_some_and(|(_, its)| its == parent)).collect()
}

/// A dead process that nobody has reaped yet holds no socket and runs no code.
fn is_dead(pid: i32) -> bool {
    state_and_parent(pid).is_none_or(|(state, _)| matches!(state, 'Z' | 'X'))
}

fn send(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// A controller in the middle of a run, and its nodes.
fn running(dir: &Path, network: &str) -> (Child, Vec<i32>) {
    let words = ["run", "--nodes", "3", "--rounds", "100000", "--network", network, "--out", "results"];
    let small = ["--examples-per-node", "64", "--test-examples-per-node", "32", "--json"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_harness"));
    command
        .args(words)
        .args(small)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(fs::File::create(dir.join("stdout")).unwrap())
        .stderr(Stdio::null());
    let mut controller = command.spawn().unwrap();
    let pid = controller.id() as i32;
    let nodes = await_some("the nodes", || {
        assert_eq!(controller.try_wait().unwrap(), None, "the controller ended early");
        let nodes = children_of(pid);
        let executed = nodes.iter().filter(|node| {
            fs::read(format!("/proc/{node}/cmdline"))
                .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == b"node"))
        });
        (executed.count() == NODES).then_some(nodes)
    });
    (controller, nodes)
}

fn results(dir: &Path) -> serde_json::Value {
    let folder = fs::read_dir(dir.join("results")).unwrap().next().unwrap().unwrap().path();
    for name in ["rounds.csv", "checkpoints.csv", "events.jsonl", "nodes.csv", "summary.json"] {
        assert!(folder.join(name).exists(), "{name}");
    }
    serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap()
}

/// Addresses that a node's socket still holds.
fn ports_in_use(network: &str) -> Vec<String> {
    let address = |node, port| format!("{}{}:{port}", network.strip_suffix('0').unwrap(), 10 + node);
    let addresses = (1..=NODES).flat_map(|node| [8080, 5000].map(|port| address(node, port)));
    addresses.filter(|address| UdpSocket::bind(address).is_err()).collect()
}

fn assert_ports_are_free(network: &str) {
    assert_eq!(ports_in_use(network), Vec::<String>::new());
}

#[test]
fn sigint_and_sigterm_end_the_run_and_keep_its_results() {
    for (signal, code, outcome) in [(Signal::INT, 130, "interrupted"), (Signal::TERM, 143, "terminated")] {
        let (dir, network) = (tempfile::tempdir().unwrap(), network());
        let (mut controller, nodes) = running(dir.path(), &network);
        send(controller.id() as i32, signal);
        let status = await_some("the controller's end", || controller.try_wait().unwrap());
        assert_eq!(status.code(), Some(code));
        assert!(nodes.iter().all(|node| is_dead(*node)), "{nodes:?}");
        let manifest = results(dir.path());
        assert_eq!((&manifest["outcome"], &manifest["exit_code"]), (&outcome.into(), &code.into()));
        let summary: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.path().join("stdout")).unwrap()).unwrap();
        assert_eq!((&summary["outcome"], &summary["nodes_alive"]), (&outcome.into(), &NODES.into()));
        assert_ports_are_free(&network);
    }
}

#[test]
fn a_controller_that_is_killed_leaves_no_process_behind_stopped_ones_included() {
    let (dir, network) = (tempfile::tempdir().unwrap(), network());
    let (mut controller, nodes) = running(dir.path(), &network);
    send(nodes[1], Signal::STOP);
    await_some("the node to stop", || state_and_parent(nodes[1]).filter(|(state, _)| *state == 'T'));
    controller.kill().unwrap();
    controller.wait().unwrap();
    await_some("the nodes' end", || nodes.iter().all(|node| is_dead(*node)).then_some(()));
    // A process whose first thread is a zombie may have others that have not let go of its sockets yet.
    await_some("the ports", || ports_in_use(&network).is_empty().then_some(()));
}

#[test]
fn a_stopped_node_does_not_keep_the_run_from_ending() {
    let dir = tempfile::tempdir().unwrap();
    let (mut controller, nodes) = running(dir.path(), &network());
    send(nodes[0], Signal::STOP);
    send(controller.id() as i32, Signal::TERM);
    let status = await_some("the controller's end", || controller.try_wait().unwrap());
    assert_eq!(status.code(), Some(143));
    assert!(nodes.iter().all(|node| is_dead(*node)), "{nodes:?}");
}
