//! Boards reached over ssh, as [`shelf`](crate::shelf) gives them.

mod clocks;
mod dictionary;
mod doctor;
mod endings;
mod playbooks;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use serde_json::Value;

use crate::netns::await_some_for;
use crate::shelf::{LONG, Shelf};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn rows(path: &Path) -> Vec<BTreeMap<String, String>> {
    csv::Reader::from_path(path).unwrap().deserialize().map(|row| row.unwrap()).collect()
}

/// An executable file of a shelf.
fn program(shelf: &Shelf, name: &str, bytes: &[u8]) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;

    let path = shelf.path(name);
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// How a run ended: its exit code, its summary (null, if it gave none) and what it said.
fn ended(run: Child) -> (Option<i32>, Value, String) {
    let output = run.wait_with_output().unwrap();
    let summary = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), summary, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn hosts_that_are_lost_are_survived_and_one_comes_back_with_what_it_stored() {
    let mut shelf = Shelf::new(5);
    let script = "#!/bin/sh\nfor p in /proc/[0-9]*; do [ \"$(readlink $p/ns/net)\" = \"$1\" ] && kill -9 ${p#/proc/}; done\n\
                  true\n";
    let off = program(&shelf, "off", script.as_bytes());
    let hook = |host| format!("harness_power_off='{} {}'", off.display(), shelf.namespace(host));
    fs::write(shelf.path("hosts.ini"), shelf.inventory(5, hook)).unwrap();
    // Raft among five goes on with three; the one that is restarted makes them three again.
    let options = ["--rounds", "60", "--durability", "disk", "--out", "out", "--min-fit-clients", "1"];
    let faults = [
        "--fault",
        "stop@node:2,round:2,for:1s",
        "--fault",
        "restart@node:3,round:4,after:0.5s",
        "--fault",
        "power-off@node:4,round:6",
    ];
    let mut run = shelf.run(&[&options[..], &faults[..]].concat());
    let results = shelf.await_results("out", &mut run);
    await_some_for("the power to be cut", LONG, || {
        fs::read_to_string(results.join("events.jsonl")).ok()?.contains("power-off@").then_some(())
    });
    // The listener, and with it what it serves.
    let sshd = shelf.namespace(5);
    shelf.servers[4].kill().unwrap();
    shelf.servers[4].wait().unwrap();
    assert!(Command::new(&off).arg(&sshd).status().unwrap().success());
    let (code, summary, said) = ended(run);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!((&summary["faults_struck"], &summary["unexpected_deaths"]), (&3.into(), &1.into()), "{said}");
    let nodes = rows(&results.join("nodes.csv"));
    let state = |node: &str, life: &str| {
        nodes.iter().find(|row| row["node"] == node && row["life"] == life).unwrap()["state"].clone()
    };
    assert_eq!(state("3", "1"), "killed (SIGKILL)");
    assert_eq!(state("3", "2"), "exit code 0");
    assert_eq!(state("4", "1"), "the power of pi4 was cut");
    assert_eq!(state("5", "1"), "the connection to pi5 was lost");
    shelf.assert_nothing_left_now(1..=3);
    // Whose power is cut may not have the time to tidy up.
    for host in [4, 5] {
        assert_eq!(shelf.left_behind(host), shelf.files(host));
    }
}

/// The job is done by then, but nothing was shown of what was asked for.
#[test]
fn a_run_whose_hook_fails_after_the_last_round_has_failed() {
    let shelf = Shelf::new(3);
    let hook =
        |host| if host == 3 { "harness_power_off='sh -c \"sleep 6; exit 9\"'".into() } else { String::new() };
    fs::write(shelf.path("hosts.ini"), shelf.inventory(3, hook)).unwrap();
    let options =
        ["--rounds", "2", "--out", "out", "--capture", "off", "--fault", "power-off@node:3,round:2"];
    let (code, summary, said) = ended(shelf.run(&options));
    assert_eq!((code, &summary["outcome"]), (Some(1), &"failed".into()), "{said}");
    let message = summary["message"].as_str().unwrap();
    assert!(message.contains("harness_power_off of pi3: sh failed (exit code 9)"), "{message}");
    assert_eq!(summary["rounds_finished"], 2, "{message}");
    let manifest = json(&shelf.results("out").unwrap().join("manifest.json"));
    assert_eq!((&manifest["outcome"], &manifest["exit_code"]), (&"failed".into(), &1.into()));
    shelf.assert_nothing_left_now(1..=3);
}

/// `scripts/cross-build --check aarch64` makes the program and runs this. Three hosts, one of them of another architecture.
/// The program must not be in /tmp, of which each host has one of its own.
#[test]
#[ignore = "needs HARNESS_AARCH64, a program that was built for aarch64, and qemu-user registered with the kernel"]
fn an_emulated_board_and_two_others_run_a_job() {
    let program = std::env::var("HARNESS_AARCH64").expect("HARNESS_AARCH64 names the program");
    let shelf = Shelf::new(3);
    let more = |host| if host == 3 { format!("harness_program={program}") } else { String::new() };
    fs::write(shelf.path("hosts.ini"), shelf.inventory(3, more)).unwrap();
    let options =
        ["--rounds", "3", "--capture", "off", "--fault", "kill@node:1,round:2", "--min-fit-clients", "1"];
    let (code, summary, said) = ended(shelf.run(&options));
    assert_eq!(code, Some(0), "{said}");
    let results = shelf.path(summary["results"].as_str().unwrap());
    let hosts = json(&results.join("manifest.json"))["hosts"].clone();
    let architecture = |host: usize| hosts[host]["before"]["machine"]["architecture"].clone();
    println!("{} and {}: {summary}", architecture(0), architecture(2));
    assert_eq!(architecture(2), "aarch64");
    assert_ne!(architecture(0), "aarch64");
    assert_eq!(summary["unexpected_deaths"], 0, "{said}");
    let fits = crate::federated::events_in(&results, "fit_finished");
    assert!(fits.iter().any(|fit| fit["node"] == 3), "the emulated one has trained");
    shelf.assert_nothing_left_now(1..=3);
}
