//! What is wrong with hosts is named, with what helps, before anything starts.

use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{ended, program};
use crate::netns::{PATIENCE, await_some};
use crate::shelf::{PROGRAM, Shelf};

#[test]
fn the_doctor_finds_hosts_in_order_and_leaves_nothing_behind() {
    let shelf = Shelf::new(3);
    let lines: String =
        (1..=3).map(|host| format!("pi{host} ansible_host={}\n", shelf.address(host))).collect();
    let inventory =
        format!("[boards]\n{lines}[boards:vars]\nharness_program={PROGRAM}\nharness_interface=eth0\n");
    let (code, said) = shelf.doctor(&inventory);
    assert_eq!(code, Some(0), "{said}");
    for host in 1..=3 {
        let line = said.lines().find(|line| line.contains(&format!("pi{host} "))).unwrap();
        assert!(!line.contains("FAILED"), "{said}");
        await_some("the end of a probe", || shelf.left_behind(host).is_empty().then_some(()));
    }
}

/// The same size, another build.
fn another_build(shelf: &Shelf) -> PathBuf {
    let mut build = fs::read(PROGRAM).unwrap();
    *build.last_mut().unwrap() ^= 1;
    program(shelf, "build", &build)
}

/// The head of a program for a machine that nobody has.
fn foreign_program(shelf: &Shelf) -> PathBuf {
    let mut foreign = vec![0; 256];
    foreign[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    foreign[16..22].copy_from_slice(&[2, 0, 0xff, 0x7f, 1, 0]);
    program(shelf, "foreign", &foreign)
}

/// A program that says that it is of another version.
fn older_program(shelf: &Shelf) -> PathBuf {
    let version = format!(r#""version":"{}""#, env!("CARGO_PKG_VERSION"));
    let script = format!("#!/bin/sh\n'{PROGRAM}' \"$@\" | sed -u 's/{version}/\"version\":\"0.0.9\"/'\n");
    program(shelf, "older", script.as_bytes())
}

fn forget_key(shelf: &Shelf, host: u64) {
    let known = fs::read_to_string(shelf.path("known_hosts")).unwrap();
    let stranger = format!("{} ", shelf.address(host));
    let others: Vec<&str> = known.lines().filter(|line| !line.starts_with(&stranger)).collect();
    fs::write(shelf.path("known_hosts"), others.join("\n") + "\n").unwrap();
}

/// The shard of another board, cut for another run.
fn foreign_shard(shelf: &Shelf) -> PathBuf {
    let shard = r#"{"place":2,"cut":{"nodes":9,"partition":"iid","examples_per_node":64,"test_examples_per_node":32,"seed":8}}"#;
    fs::write(shelf.path("shard.json"), shard).unwrap();
    let mut tar = Command::new("tar");
    let tar = tar.args(["-czf", "shard.tar.gz", "shard.json"]).current_dir(shelf.dir.path()).status();
    assert!(tar.unwrap().success());
    shelf.path("shard.tar.gz")
}

/// A host of the inventory with what is wrong with it.
struct Sick {
    name: &'static str,
    /// What the inventory says of it.
    line: String,
    wrong: &'static str,
    remedy: &'static str,
}

/// A shelf of four hosts and what ten lines of an inventory say of them, of which none is right.
fn sick_hosts(shelf: &Shelf) -> Vec<Sick> {
    let [one, two, three, four] = [1, 2, 3, 4].map(|host| shelf.address(host));
    let own = |address, more: &str| format!("ansible_host={address} {more} harness_program={PROGRAM}");
    let other = |address, program: PathBuf| {
        // An address of its own: two hosts with the same one are refused at once.
        format!("ansible_host={two} harness_address={address} harness_program={}", program.display())
    };
    let hosts = [
        ("taken", own(one, ""), "UDP port 5000 cannot be used", "ss -ulpn"),
        (
            "elsewhere",
            own(two, "harness_address=10.8.8.99"),
            "none of its interfaces (lo, eth0) has the address 10.8.8.99",
            "harness_address",
        ),
        (
            "otherwise",
            own(two, "harness_interface=wlan0"),
            "is the address of eth0, not of wlan0; it has lo, eth0",
            "harness_interface",
        ),
        (
            "bare",
            other("10.8.8.98", "/nowhere/harness".into()),
            "there is no /nowhere/harness",
            "harness_program",
        ),
        (
            "foreign",
            other("10.8.8.97", foreign_program(shelf)),
            "is for another architecture",
            "scripts/cross-build",
        ),
        ("unknown", own(three, ""), "its host key is not known", "accept it: ssh"),
        ("full", own(four, ""), "of space in /var/tmp are free", "free at least"),
        (
            "differs",
            other("10.8.8.96", another_build(shelf)),
            "its program is another build than that of taken",
            "copy the same binary",
        ),
        ("older", other("10.8.8.95", older_program(shelf)), "its program is version 0.0.9", "copy version"),
        ("off", own("10.8.8.11".parse().unwrap(), ""), "it cannot be reached", "see whether it is up"),
    ];
    hosts.map(|(name, line, wrong, remedy)| Sick { name, line, wrong, remedy }).into()
}

#[test]
fn every_trouble_is_named_with_its_host_and_remedy_before_anything_starts() {
    let shelf = Shelf::new(4);
    shelf.mount(4, &["-t", "tmpfs", "-o", "size=1m", "tmpfs", "/var/tmp"]);
    forget_key(&shelf, 3);
    let address = shelf.address(1);
    let taken = shelf.inside(1, || UdpSocket::bind((address, 5000)));
    let hosts = sick_hosts(&shelf);
    let inventory: String = hosts.iter().map(|host| format!("{} {}\n", host.name, host.line)).collect();
    let (code, said) = shelf.doctor(&inventory);
    assert_eq!(code, Some(1), "{said}");
    let data = foreign_shard(&shelf);
    let (code, _, refused) = ended(shelf.run(&["--data", data.to_str().unwrap()]));
    drop(taken);
    assert_eq!(code, Some(2), "{refused}");
    assert!(!shelf.path("results").exists(), "nothing was written");
    let other = "has the images of node 2 of 9 (seed 8, iid, 64 examples and 32 for tests each) only, \
                 not those of node 3 of 10 (seed 7,";
    let refused_shard = |line: &str| line.contains("host otherwise: --data ") && line.contains(other);
    assert!(refused.lines().any(refused_shard), "{refused}");
    for Sick { name, wrong, remedy, .. } in hosts {
        let named = |line: &str| line.contains(wrong) && line.contains(remedy);
        let row = format!(" {name} ");
        let found = |line: &str| line.contains(&row) && line.contains("FAILED") && named(line);
        assert!(said.lines().any(found), "{name}: {wrong}:\n{said}");
        let host = format!("host {name}: ");
        assert!(refused.lines().any(|line| line.contains(&host) && named(line)), "{name}: {refused}");
    }
    shelf.assert_nothing_left(1..=4, PATIENCE);
}

#[test]
fn an_inventory_that_cannot_be_used_is_refused_before_anything_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |words: &[&str], text: &str| {
        fs::write(dir.path().join("hosts.ini"), text).unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(words).args(["--inventory", "hosts.ini"]).current_dir(dir.path()).stdin(Stdio::null());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(!dir.path().join("results").exists(), "nothing was written");
        String::from_utf8(output.stderr).unwrap()
    };
    for words in [&["doctor"][..], &["run", "--placement", "ssh"]] {
        let said = refused(words, "a ansible_host=10.0.0.1\nb ansible_host=10.0.0.1\n");
        let named = "error: --inventory hosts.ini: hosts a and b have the same address 10.0.0.1; correct";
        assert!(said.starts_with(named), "{said}");
        assert!(refused(words, "").contains("it lists no host"));
    }
}
