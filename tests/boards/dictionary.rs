//! The key-value workload on boards, with clients elsewhere.

use std::fs;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::{ended, json};
use crate::netns::await_some_for;
use crate::shelf::{LONG, PROGRAM, Shelf};

#[test]
fn clients_on_a_host_of_their_own_load_a_dictionary_on_others() {
    let shelf = Shelf::new(4);
    fs::write(shelf.path("hosts.ini"), shelf.inventory(3, |_| String::new())).unwrap();
    let test = ["--workload", "kv", "--entries", "20", "--duration", "2"];
    // The controller is on a host of its own, and so are its clients.
    let (code, summary, said) = ended(shelf.run(&[&test[..], &["--clients", "4"]].concat()));
    assert_eq!(code, Some(0), "{said}");
    assert!(summary["valid"] == true && summary["operations"].as_u64() > Some(0), "{summary}");
    let results = shelf.path(summary["results"].as_str().unwrap());
    let hosts = json(&results.join("manifest.json"))["hosts"].clone();
    assert_eq!(hosts.as_array().unwrap().len(), 3);
    assert!(hosts[2]["after"]["memory_available_bytes"].as_u64() > Some(0), "{hosts}");
    shelf.assert_nothing_left_now(1..=3);

    // Clients of the fourth host fetch the settings of the test from the cluster.
    let served = ["--clients", "0", "--cluster", "cluster.json", "--metrics", "9464", "--out", "served"];
    let mut run = shelf.run(&[&test[..], &served[..]].concat());
    await_some_for("the cluster", LONG, || shelf.path("cluster.json").exists().then_some(()));
    let said = await_some_for("a load", LONG, || {
        let load = shelf.inside(4, || {
            let mut command = Command::new(PROGRAM);
            command.args(["kv", "load", "--clients", "3", "--cluster", "cluster.json"]);
            command.current_dir(shelf.dir.path()).stdin(Stdio::null()).output()
        });
        // Until the nodes are there it cannot reach them.
        eprint!("{}", String::from_utf8_lossy(&load.stderr));
        load.status.success().then(|| String::from_utf8_lossy(&load.stdout).into_owned())
    });
    let watched = shelf.harness(&["watch", "--once", "served"]);
    let seen = String::from_utf8(watched.stdout).unwrap();
    assert!(seen.starts_with("kv over raft: 3 of 3 nodes answer; node "), "{seen}");
    let controller = Pid::from_raw(run.id().try_into().unwrap()).unwrap();
    kill_process(controller, Signal::INT).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130));
    shelf.assert_nothing_left_now(1..=3);
    assert!(said.contains(" operations by 3 clients in 2.0"), "{said}");
}
