//! Nodes and whole runs that end and are started again, from what is on disk.

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::federated::{Run, Running, events_in, newest_results, run, small, start, start_in};

const DISK: [&str; 4] = ["--durability", "disk", "--nodes", "5"];

fn on_disk<'a>(options: &[&'a str]) -> Vec<&'a str> {
    small(&[&DISK[..], options].concat())
}

/// Lives of each node, as nodes.csv has them.
fn lives(run: &Run) -> Vec<(u64, u64)> {
    let rows = run.rows("nodes.csv");
    rows.iter().map(|row| (row["node"].parse().unwrap(), row["life"].parse().unwrap())).collect()
}

fn assert_went_on(run: &Run, rounds: u64) -> Value {
    run.assert_completed(rounds);
    run.assert_nothing_trained_twice();
    run.assert_restored_the_newest();
    let summary = run.summary();
    assert_eq!((&summary["nodes_alive"], &summary["unexpected_deaths"]), (&5.into(), &0.into()), "{summary}");
    assert_eq!(summary["checkpoint"]["holders"].as_array().unwrap().len(), 5, "{summary}");
    summary
}

#[test]
fn an_aggregator_that_is_restarted_comes_back_as_the_same_node() {
    for payload in ["inline", "digest"] {
        let fault = "restart@aggregator,round:3";
        let run = run(&on_disk(&["--rounds", "40", "--payload", payload, "--fault", fault]));
        let summary = assert_went_on(&run, 40);
        assert_eq!((&summary["faults_struck"], &summary["take_overs"]), (&1.into(), &1.into()), "{summary}");
        let again: Vec<u64> =
            lives(&run).into_iter().filter(|(_, life)| *life == 2).map(|(node, _)| node).collect();
        let struck = run.events("fault_struck")[0]["target"].as_u64().unwrap();
        assert_eq!(again, [struck]);
    }
}

#[test]
fn all_nodes_are_restarted_in_the_middle_of_the_job_and_nothing_acknowledged_is_lost() {
    for payload in ["inline", "digest"] {
        let faults = ["--fault", "restart@all,round:4,after:500ms", "--fault", "restart@all,round:7"];
        let run = run(&on_disk(&[&["--rounds", "9", "--payload", payload], &faults[..]].concat()));
        assert_went_on(&run, 9);
        assert_eq!(lives(&run).iter().filter(|(_, life)| *life == 3).count(), 5);
    }
}

#[test]
fn without_a_disk_nobody_is_restarted_whom_nobody_can_take_in() {
    for (options, expected) in [
        (
            ["--backend", "none", "--fault", "restart@worker,round:1"],
            "must not come back under its id, and none takes",
        ),
        (["--backend", "raft", "--fault", "restart@all,round:1"], "a majority that lost its memory is gone"),
    ] {
        let refused = run(&options);
        assert_eq!(refused.code(), 2, "{}", refused.text());
        assert!(refused.text().contains(expected), "{}", refused.text());
        assert!(!refused.dir.path().join("results").exists());
    }
}

#[test]
fn a_store_of_another_cluster_is_refused_by_its_node_and_one_in_use_by_the_controller() {
    let first = run(&on_disk(&["--rounds", "1", "--store", "first"]));
    first.assert_completed(1);
    let second = start_in(
        first.dir,
        &on_disk(&["--rounds", "1", "--store", "second", "--network", &crate::network()]),
    );
    let second = second.wait();
    second.assert_completed(1);
    let dir = second.dir.path();
    std::fs::copy(dir.join("first/node-3.redb"), dir.join("second/node-3.redb")).unwrap();
    let network = crate::network();
    let with = ["--rounds", "2", "--store", "second", "--network", &network];
    let mixed = start_in(second.dir, &on_disk(&with)).wait();
    assert_eq!(mixed.code(), 1, "{}", mixed.text());
    let text = mixed.text();
    let message = text.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    assert!(
        message.contains("node 3 ended while starting")
            && message.contains("second/node-3.redb belongs to node 3 of"),
        "{text}"
    );
    let dir = mixed.dir.path();
    std::fs::copy(dir.join("first/node-4.redb"), dir.join("first/node-3.redb")).unwrap();
    let with = ["--rounds", "2", "--store", "first", "--network", &network];
    let swapped = start_in(mixed.dir, &on_disk(&with)).wait();
    assert_eq!(swapped.code(), 1, "{}", swapped.text());
    assert!(swapped.text().contains("first/node-3.redb belongs to node 4 of"), "{}", swapped.text());

    let path = swapped.dir.path().join("first/cluster.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("\"layout\": 1", "\"layout\": 7", 1)).unwrap();
    let versioned = start_in(swapped.dir, &on_disk(&with)).wait();
    assert_eq!(versioned.code(), 2, "{}", versioned.text());
    assert!(
        versioned.text().contains("--store first: cluster.json has layout 7, not 1"),
        "{}",
        versioned.text()
    );
    std::fs::write(&path, text).unwrap();

    let label = std::fs::File::open(path).unwrap();
    label.lock().unwrap();
    let in_use = start_in(versioned.dir, &on_disk(&with)).wait();
    assert_eq!(in_use.code(), 2, "{}", in_use.text());
    assert!(in_use.text().contains("--store first: a run that has not ended uses it"), "{}", in_use.text());
}

/// The newest acknowledged round in a results folder.
fn acknowledged(results: &Path) -> u64 {
    let puts = events_in(results, "checkpoint_put");
    puts.iter().filter_map(|put| put["id"]["round"].as_u64()).max().unwrap()
}

fn await_rounds(running: &mut Running, rounds: usize) {
    running.await_events("rounds", |events| {
        events.iter().filter(|event| event["event"] == "round_finished").count() >= rounds
    });
}

#[test]
fn a_run_that_was_stopped_or_whose_controller_was_killed_is_resumed() {
    for signal in [Signal::INT, Signal::KILL] {
        let mut running = start(&on_disk(&["--rounds", "30"]));
        await_rounds(&mut running, 3);
        running.signal(signal);
        let stopped = running.wait();
        let old = newest_results(stopped.dir.path()).unwrap();
        let before = acknowledged(&old);
        let mut resumed = None;
        // Nodes of a killed controller may need a moment to let go of their ports.
        let mut dir = Some(stopped.dir);
        for _ in 0..100 {
            let again = start_in(dir.take().unwrap(), &["--resume", old.to_str().unwrap()]).wait();
            if !again.text().contains("in use by another process") {
                resumed = Some(again);
                break;
            }
            dir = Some(again.dir);
        }
        let resumed = resumed.unwrap();
        let summary = resumed.summary();
        assert_eq!((resumed.code(), &summary["outcome"]), (0, &"completed".into()), "{}", resumed.text());
        assert_eq!(summary["checkpoint"]["round"], 30, "{summary}");
        let from = resumed.events("restored")[0]["from"]["round"].as_u64();
        assert!(from >= Some(before), "{from:?} {before}");
        let trained = resumed.events("fit_started");
        assert!(
            trained.iter().all(|fit| fit["round"].as_u64() > from),
            "an acknowledged round was trained again"
        );
        let manifest: Value =
            serde_json::from_slice(&std::fs::read(resumed.results().join("manifest.json")).unwrap()).unwrap();
        assert_eq!(manifest["resumed_from"].as_str(), old.canonicalize().unwrap().to_str());

        let results = resumed.results();
        let complete = start_in(resumed.dir, &["--resume", results.to_str().unwrap()]).wait();
        assert_eq!(complete.code(), 2, "{}", complete.text());
        assert!(complete.text().contains("the run is complete"), "{}", complete.text());
    }
}

#[test]
fn what_cannot_be_resumed_is_refused() {
    let mut running = start(&on_disk(&["--rounds", "100000"]));
    await_rounds(&mut running, 1);
    let dir = tempfile::tempdir().unwrap();
    let old = running.results();
    let old = old.to_str().unwrap();
    let in_use = start_in(dir, &["--resume", old]).wait();
    assert_eq!(in_use.code(), 2, "{}", in_use.text());
    assert!(in_use.text().contains("a run that has not ended uses it"), "{}", in_use.text());
    running.signal(Signal::INT);
    let stopped = running.wait();
    let refused = |dir, options: &[&str], expected: &str| {
        let refused = start_in(dir, options).wait();
        assert_eq!(refused.code(), 2, "{}", refused.text());
        assert!(refused.text().contains(expected), "{}", refused.text());
        refused.dir
    };
    let dir = refused(
        in_use.dir,
        &["--resume", old, "--rounds", "7"],
        "--rounds 7: the run that is continued has 100000",
    );
    let dir = refused(dir, &["--resume", "nowhere"], "--resume nowhere: not a results folder");
    let manifest = std::path::Path::new(old).join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replacen("\"version\": \"", "\"version\": \"9", 1)).unwrap();
    let dir = refused(dir, &["--resume", old], "use the program that wrote it");
    std::fs::write(&manifest, &text).unwrap();
    std::fs::remove_file(std::path::Path::new(old).join("store/node-2.redb")).unwrap();
    refused(dir, &["--resume", old], "the store of node 2 is missing");
    drop(stopped);

    let in_memory = run(&small(&[
        "--nodes",
        "3",
        "--rounds",
        "2",
        "--fault",
        "kill@worker,round:1",
        "--fault",
        "kill@aggregator,round:1",
    ]));
    let results = in_memory.results();
    refused(in_memory.dir, &["--resume", results.to_str().unwrap()], "in memory only");
}

/// The output of `harness recover`, run in `dir`.
fn recover(dir: &Path, options: &[&str]) -> (i32, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_harness"));
    let output = command.arg("recover").args(options).current_dir(dir).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[test]
fn a_new_cluster_goes_on_from_one_survivor() {
    let mut running = start(&on_disk(&["--rounds", "30"]));
    await_rounds(&mut running, 3);
    let (code, text) = recover(Path::new("."), &["--from", running.results().to_str().unwrap()]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("of its cluster run, and a majority is there (5 of 5)"), "{text}");
    running.signal(Signal::INT);
    let stopped = running.wait();
    let old = newest_results(stopped.dir.path()).unwrap();
    let before = acknowledged(&old);

    // The disks of a majority are gone; two nodes are left.
    for node in [1, 2, 4] {
        std::fs::remove_file(old.join(format!("store/node-{node}.redb"))).unwrap();
    }
    let dir = stopped.dir.path();
    let from = ["--from", old.to_str().unwrap()];
    let (code, text) = recover(dir, &from);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("node 1: missing") && text.contains("lost is what was acknowledged after that"),
        "{text}"
    );
    assert!(!dir.join("new").exists());
    let told = text;
    // From the folder it was the store that has seen most; a survivor can be named, too.
    let survivor = old.join("store/node-5.redb");
    let (code, text) = recover(dir, &["--from", survivor.to_str().unwrap()]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("node 5 has checkpoint"), "{text}");
    let (code, text) = recover(dir, &["--from", old.join("store/node-1.redb").to_str().unwrap()]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("neither a store (node-N.redb) nor a folder"), "{text}");
    let (code, text) = recover(dir, &[&from[..], &["--to", "new"]].concat());
    assert_eq!(code, 2, "without --accept-loss: {text}");
    let (code, text) = recover(dir, &[&from[..], &["--accept-loss", "--to", "new"]].concat());
    assert_eq!(code, 0, "{text}");

    let resumed = start_in(stopped.dir, &["--resume", old.to_str().unwrap(), "--store", "new"]).wait();
    assert_eq!(resumed.code(), 0, "{}", resumed.text());
    let restored = &resumed.events("restored")[0];
    let digest = restored["digest"].as_str().unwrap();
    assert!(
        told.contains(&format!("digest {}", &digest[..16])),
        "{told}
{restored}"
    );
    assert!(restored["from"]["round"].as_u64() <= Some(before), "{restored} {before}");
    assert_eq!(resumed.summary()["checkpoint"]["round"], 30);
    assert_eq!(resumed.summary()["checkpoint"]["holders"].as_array().unwrap().len(), 5);
}
