//! The command line as a user meets it: help, bad input, exit codes, data commands. Nothing here trains.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::network;

/// What a command said, and how it ended.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) fn harness(dir: &Path, words: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_harness"))
        .args(words)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output();
    let Output { status, stdout, stderr } = output.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: status.code().unwrap_or(-1), out: text(stdout), err: text(stderr) }
}

/// Runs in an empty folder and checks that it stays empty.
fn refused(words: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let said = harness(dir.path(), words);
    assert_eq!(said.code, 2, "{words:?}: {}{}", said.out, said.err);
    assert!(said.out.is_empty() && !said.err.contains("panicked"), "{}{}", said.out, said.err);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{words:?} left something behind");
    said.err
}

/// As [`refused`], for errors of our own: one line.
fn refused_in_a_line(words: &[&str]) -> String {
    let error = refused(words);
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

#[test]
fn contradictions_name_option_value_and_remedy() {
    for (options, expected) in [
        ("--nodes 0", "error: --nodes 0: an aggregator needs at least one worker; use 2 or more"),
        ("--nodes 1", "error: --nodes 1: an aggregator needs at least one worker; use 2 or more"),
        ("--nodes 52", "error: --nodes 52: 52 nodes with 1000 examples (--examples-per-node) need 52000"),
        ("--nodes 500", "error: --nodes 500: more than a /24 of addresses has; use at most 244"),
        ("--rounds 0", "error: --rounds 0:"),
        ("--local-epochs 0", "error: --local-epochs 0:"),
        ("--batch-size 0", "error: --batch-size 0:"),
        (
            "--batch-size 1001",
            "error: --batch-size 1001: more than the 1000 examples of a worker; use a smaller batch",
        ),
        ("--examples-per-node 0", "error: --examples-per-node 0:"),
        ("--test-examples-per-node 2000", "(--test-examples-per-node) need 20000, the data has 10000"),
        ("--lr 0", "error: --lr 0: not a positive number"),
        ("--lr -0.1", "error: --lr -0.1: not a positive number"),
        ("--momentum 1", "error: --momentum 1: outside of [0, 1)"),
        (
            "--partition dirichlet:0",
            "error: --partition dirichlet:0: alpha must be a number greater than 0; use for",
        ),
        ("--partition dirichlet:-1", "error: --partition dirichlet:-1: alpha must"),
        ("--partition dirichlet:NaN", "error: --partition dirichlet:NaN: alpha must"),
        ("--min-fit-clients 10", "error: --min-fit-clients 10: there are only 9 workers; use at most 9"),
        ("--min-fit-clients 0", "error: --min-fit-clients 0:"),
        ("--round-deadline 0", "error: --round-deadline 0s:"),
        (
            "--window 2000-1000ms",
            "error: --window 2000ms-1000ms: the low end must be greater than 0 and below",
        ),
        ("--window 0-1000ms", "error: --window 0ms-1000ms: the low end"),
        ("--heartbeat 500ms", "error: --heartbeat 500ms: not below half of the low end of --window"),
        ("--heartbeat 0", "error: --heartbeat 0ms: below 1ms"),
        ("--network 127.0.0.5", "error: --network 127.0.0.5: not the first address of a /24"),
        ("--network 10.0.0.0", "error: --network 10.0.0.11: not a loopback network"),
        (
            "--placement netns --network 127.0.0.0",
            "error: --network 127.0.0.11: not a private network, which --placement netns needs",
        ),
        (
            "--link wlan",
            "error: --link wlan: no link profile has this name; use lan, wifi-pi3, a .toml file or KEY=VALUE,...",
        ),
        ("--link /nowhere/x.toml", "error: --link /nowhere/x.toml: cannot be read"),
        ("--link lan", "error: --link with a rate: its rate of 1000 Mbit/s needs an interface for each node"),
        ("--learning-port 5000", "error: --learning-port 5000: also the --replication-port"),
        ("--learning-port 0", "error: --learning-port 0:"),
        ("--engine torch", "error: --engine torch: not in this binary; build with --features torch"),
        ("--data nowhere", "nowhere"),
        (
            "--fault kill@node:11,round:1",
            "error: --fault kill@node:11,round:1: there is no node 11; nodes are 1 to 10",
        ),
        ("--fault kill@worker,round:6", "error: --fault kill@worker,round:6: the run has 5 rounds"),
        (
            "--fault kill@worker,voters-changed",
            "voters-changed: raft replaces no voters; use --backend raft-subset",
        ),
        (
            "--voters 3",
            "error: --voters 3: not for --backend raft: it does not choose who votes; leave it out, or use",
        ),
        ("--backend raft-subset --voters 0", "error: --voters 0: nobody would vote; use 1 to 10"),
        ("--backend raft-subset --voters 11", "error: --voters 11: there are only 10 nodes; use 1 to 10"),
        (
            "--backend raft-subset --voter-grace 0",
            "error: --voter-grace 0ms: a voter would be replaced for one late",
        ),
        (
            "--backend raft-subset --suitability 11:cpu=1",
            "error: --suitability 11:cpu=1: there is no node 11",
        ),
        (
            "--backend gossip --payload inline",
            "error: --payload inline: gossip does not carry checkpoints in its own",
        ),
        ("--backend gossip --holders 11", "error: --holders 11: there are only 10 nodes; use 1 to 10"),
        (
            "--policy rotate:0",
            "error: --policy rotate:0: nobody would stay in office for a round; use for example",
        ),
        (
            "--backend none --policy rotate:2",
            "--policy rotate:2000ms: not for --backend none: nobody takes over",
        ),
        (
            "--backend none --durability disk",
            "error: --durability disk: none keeps its state in memory only;",
        ),
        (
            "--backend local --durability memory",
            "error: --durability memory: at level 1 the aggregator goes on from",
        ),
        ("--backend local --stateless", "error: --stateless: not for --backend local: it elects nobody;"),
        (
            "--stateless --profile workers",
            "error: --stateless with --profile workers: nothing is written at level 2",
        ),
        ("--backend none --member join@round:1", "error: --member join@round:1: nobody joins or leaves with"),
        (
            "--member leave@node:11,round:1",
            "error: --member leave@node:11,round:1: there is no node 11; nodes are",
        ),
        ("--member leave@worker,round:6", "error: --member leave@worker,round:6: the run has 5 rounds"),
        (
            "--nodes 3 --min-fit-clients 2 --member leave@worker,round:1",
            "error: --member leave@worker,round:1: it leaves 2 nodes, 1 of them workers; have fewer leave",
        ),
        (
            "--nodes 244 --examples-per-node 9 --test-examples-per-node 9 --member join@round:1",
            "use at most 243",
        ),
        ("--backend backup --backups 10", "error: --backups 10: there are only 10 nodes; use 1 to 9"),
    ] {
        if cfg!(feature = "torch") && options == "--engine torch" {
            continue;
        }
        let words: Vec<&str> = ["run"].into_iter().chain(options.split(' ')).collect();
        let error = refused_in_a_line(&words);
        assert!(error.contains(expected), "{options}\nexpected {expected}\n     got {error}");
    }
}

#[test]
fn values_that_cannot_be_read_name_the_option_and_the_right_form() {
    for (options, expected) in [
        ("--nodes ten", "invalid value 'ten' for '--nodes <N>'"),
        ("--batch-size 99999999999", "for '--batch-size <N>'"),
        (
            "--window 1000",
            "for '--window <LO-HI>': not a window; write LO-HI with a unit, for example 1000-2000ms",
        ),
        ("--round-deadline soon", "not a duration; write for example 90s"),
        ("--partition zipf:1", "use iid or dirichlet:ALPHA"),
        ("--partition dirichlet:x", "'x' is not a number"),
        ("--backend paxos", "[possible values: none, local, raft, raft-subset, gossip, backup]"),
        ("--policy best", "use first, latency, suitability or rotate:SECONDS, for example rotate:10"),
        ("--policy rotate:soon", "not a duration"),
        ("--member join@worker,round:1", "write join@WHEN or leave@WHO,WHEN"),
        ("--member leave@all,round:1", "nodes leave one by one: use aggregator, worker, random or node:ID"),
        ("--phi soon", "for '--phi <INTERVALS>': not a number of intervals; use for example 6"),
        ("--suitability 3:disk=1", "unknown resource 'disk'; write NODE:cpu=MB/s,memory=BYTES,"),
        ("--payload wrapped", "[possible values: inline, digest]"),
        ("--profile all", "[possible values: once, paper, prototype, workers]"),
        ("--network localhost", "for '--network <A.B.C.0>'"),
        (
            "--fault explode@worker,round:1",
            "unknown kind 'explode'; use kill, restart, power-off, stop, partition, omit-send, omit-receive, loss:P",
        ),
        ("--fault kill@boss,round:1", "use aggregator, worker, random, majority, minority, node:ID or all"),
        (
            "--fault kill@worker,round:0",
            "use round:N, N from 1, random:N, N from 2, voters-changed, or time:T for a leaderboard",
        ),
        ("--frobnicate", "unexpected argument '--frobnicate'"),
    ] {
        let words: Vec<&str> = ["run"].into_iter().chain(options.split(' ')).collect();
        let error = refused(&words);
        assert!(error.contains(expected), "{options}\nexpected {expected}\n     got {error}");
    }
    assert!(refused(&[]).contains("Usage: harness"), "no subcommand");
    assert!(refused(&["data"]).contains("fetch"), "no subcommand of data");
}

#[test]
fn an_occupied_port_is_found_before_anything_starts() {
    let network = network();
    let second = format!("{}12", network.strip_suffix('0').unwrap());
    let taken = UdpSocket::bind(format!("{second}:0")).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let error = refused_in_a_line(&["run", "--nodes", "3", "--network", &network, "--learning-port", &port]);
    let expected = format!(
        "error: --learning-port {port}: UDP address {second}:{port} is in use by another process; use"
    );
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn a_results_folder_that_cannot_be_made_is_bad_input() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    for out in ["file", "file/below"] {
        let said = harness(dir.path(), &["run", "--nodes", "2", "--network", &network(), "--out", out]);
        assert_eq!(said.code, 2, "{}", said.err);
        assert!(said.err.starts_with(&format!("error: --out {out}: ")), "{}", said.err);
        assert!(said.err.contains("name a folder that can be written"), "{}", said.err);
    }
}

#[test]
fn incomplete_data_is_found_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let batches = dir.path().join("cifar-10-batches-bin");
    fs::create_dir(&batches).unwrap();
    fs::write(batches.join("data_batch_1.bin"), "short").unwrap();
    let network = network();
    let words = ["run", "--nodes", "2", "--network", &network, "--data", "."];
    let said = harness(dir.path(), &words);
    assert_eq!(said.code, 2, "{}", said.err);
    assert!(said.err.starts_with("error: --data ") && said.err.contains("data_batch_1.bin"), "{}", said.err);
    assert!(!dir.path().join("results").exists());
}

#[test]
fn help_names_every_option_with_its_default() {
    let dir = tempfile::tempdir().unwrap();
    let help = harness(dir.path(), &["run", "--help"]);
    assert_eq!(help.code, 0);
    for expected in [
        "--backend <BACKEND>",
        "[default: 10; with --placement",
        "[default: 120s, or",
        "[default: 1000-2000ms]",
        "[default: 100ms, 250ms with gossip]",
        "[default: 127.0.0.0,",
        "[default: results/run]",
        "half of the workers, rounded up",
        "--partition <iid|dirichlet:ALPHA>",
        "--aggregator-trains",
        "inline for raft and raft-subset",
        "majority]",
        "Backend raft-subset:",
        "Backend gossip:",
        "Backend backup:",
        "Replication:",
        "Training:",
        "Output:",
    ] {
        assert!(help.out.contains(expected), "{expected} in {}", help.out);
    }
    let top = harness(dir.path(), &["--help"]);
    assert!(
        top.out.contains("Exit codes: 0 done, 1 failed, 2 bad input, 3 too few nodes left"),
        "{}",
        top.out
    );
    assert!(!top.out.contains("  node "), "the node command is internal: {}", top.out);
    for words in [
        &["capture", "--help"][..],
        &["data", "--help"],
        &["data", "fetch", "--help"],
        &["data", "status", "--help"],
        &["completions", "--help"],
    ] {
        let said = harness(dir.path(), words);
        assert_eq!(said.code, 0);
        assert!(said.out.contains("Usage: harness"), "{}", said.out);
    }
    assert!(harness(dir.path(), &["--version"]).out.starts_with("harness "));
}

#[test]
fn completions_are_printed_for_every_shell() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let said = harness(dir.path(), &["completions", shell]);
        assert_eq!(said.code, 0);
        assert!(said.out.contains("dirichlet") || said.out.contains("partition"), "{shell}");
    }
    assert!(refused(&["completions", "csh"]).contains("possible values"));
}

#[test]
fn synthetic_data_is_written_once_and_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let said = harness(dir.path(), &["data", "status", "data"]);
    assert_eq!(said.code, 2, "{}", said.err);
    assert!(said.err.contains("no CIFAR-10 at data"), "{}", said.err);

    fs::create_dir(dir.path().join("data")).unwrap();
    let said = harness(dir.path(), &["data", "status", "data"]);
    assert_eq!(said.code, 1);
    assert_eq!(said.out.matches("missing").count(), 7, "{}", said.out);
    assert_eq!(said.out.matches("missing (optional)").count(), 1, "{}", said.out);
    assert!(said.out.contains("harness data fetch"), "{}", said.out);

    let said = harness(dir.path(), &["data", "synthesize", "data"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.out.contains("harness run --data data"), "{}", said.out);
    let said = harness(dir.path(), &["data", "status", "data"]);
    assert_eq!((said.code, said.out.matches("complete").count()), (0, 6), "{}", said.out);

    let said = harness(dir.path(), &["data", "synthesize", "data"]);
    assert_eq!(said.code, 2);
    assert!(said.err.contains("data_batch_1.bin exists and would be overwritten"), "{}", said.err);
}

#[test]
fn a_download_that_fails_leaves_nothing() {
    let nobody = "http://127.0.0.1:1/archive.tar.gz";
    let dir = tempfile::tempdir().unwrap();
    let said = harness(dir.path(), &["data", "fetch", "data", "--url", nobody]);
    assert_eq!(said.code, 1, "{}", said.err);
    assert!(said.err.contains(&format!("cannot download {nobody}")), "{}", said.err);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    assert!(refused_in_a_line(&["data", "fetch", "data", "--url", "ftp://x/y"]).contains("--url ftp://x/y"));
    assert!(
        refused_in_a_line(&["data", "fetch", "data", "--url", nobody, "--sha256", "12"])
            .contains("--sha256 12")
    );
}

#[test]
fn a_node_without_a_controller_says_hello_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let said = harness(dir.path(), &["node"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.out.starts_with("{\"type\":\"hello\",\"version\":2,"), "{}", said.out);
}

#[test]
fn a_capture_that_cannot_be_is_refused() {
    let capture = |options: &[&'static str]| refused(&[&["capture"], options].concat());
    let error = capture(&["--interface", "nothere0", "--port", "8080"]);
    assert!(
        error.starts_with("error: --interface nothere0: there is no interface nothere0; there are: "),
        "{error}"
    );
    assert!(error.contains("lo") && error.lines().count() == 1, "{error}");
    for port in ["0", "65536", "http"] {
        let error = capture(&["--interface", "lo", "--port", port]);
        assert!(error.contains(&format!("'{port}' for '--port <PORT>'")), "{error}");
    }
    assert!(capture(&["--interface", "lo"]).contains("--port <PORT>"));
}

#[test]
fn an_unknown_key_of_a_link_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.toml");
    fs::write(&file, "delay_ms = 1\ndelai_ms = 2\n").unwrap();
    let error = refused_in_a_line(&["run", "--link", file.to_str().unwrap()]);
    assert!(error.contains("mine.toml: line 2: unknown field `delai_ms`, expected one of"), "{error}");
}
