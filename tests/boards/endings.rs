//! However a run ends, its hosts are as they were: no process and no file.

use std::fs;
use std::process::{Child, Command};
use std::time::Duration;

use super::ended;
use crate::shelf::Shelf;

const HOSTS: u64 = 10;

/// One of the nodes is stopped, and sees nothing of it.
#[test]
fn nothing_is_left_behind_when_a_run_is_interrupted_killed_or_cut_off() {
    let mut shelf = Shelf::new(HOSTS);
    shelf.inventory = "hosts.yml";
    fs::write(shelf.path(shelf.inventory), shelf.yaml_inventory(HOSTS)).unwrap();
    type End = fn(&Shelf, &mut Child);
    let endings: [(&str, End, u64); 4] = [
        ("int", |_, run| signal(run, rustix::process::Signal::INT), 20),
        ("kill", |_, run| run.kill().unwrap(), 20),
        ("shutdown", |shelf, _| (1..=HOSTS).for_each(|host| shelf.shut_down(host)), 20),
        ("cut", |shelf, _| cut(shelf), 60),
    ];
    for (name, end, patience_s) in endings {
        let options = ["--rounds", "500", "--fault", "stop@node:3,round:2", "--durability", "disk"];
        let mut run = shelf.run(&[&options[..], &["--min-fit-clients", "1", "--out", name]].concat());
        let results = shelf.await_results(name, &mut run);
        shelf.await_rounds(&results, 2);
        for host in 1..=HOSTS {
            assert_eq!(shelf.files(host).len(), 1, "{name}: the store of host {host}");
        }
        end(&shelf, &mut run);
        let expected = match name {
            "int" => Some(130),
            "kill" => None,
            // Too many nodes are gone, or out of reach.
            _ => Some(3),
        };
        if name == "int" {
            // It has waited for its hosts.
            let (code, _, said) = ended(run);
            assert_eq!(code, expected, "{said}");
            shelf.assert_nothing_left_now(1..=HOSTS);
            continue;
        }
        // Who is killed cannot wait for hosts, and who is cut off cannot see them.
        shelf.assert_nothing_left(1..=HOSTS, Duration::from_secs(patience_s));
        let (code, _, said) = ended(run);
        assert_eq!(code, expected, "{name}: {said}");
    }
}

fn signal(run: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(run.id() as i32).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Cuts the controller off: nobody is told.
fn cut(shelf: &Shelf) {
    let mut command = Command::new("ip");
    command.args(["link", "set", "eth0", "down"]);
    assert!(shelf.inside(0, || command.status()).success());
}
