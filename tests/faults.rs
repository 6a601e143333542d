//! Faults other than kills, on the built binary: the job goes on, and once they are over every node has its result.

use rustix::process::Signal;

use crate::federated::{Run, run, small, start};

/// Eight short rounds among five nodes.
fn broken(fault: &str, options: &[&str]) -> Run {
    let job =
        ["--nodes", "5", "--rounds", "8", "--examples-per-node", "64", "--test-examples-per-node", "32"];
    let run = run(&[&job[..], &["--fault", fault], options].concat());
    run.assert_completed(8);
    let summary = run.summary();
    let counts =
        ["faults_struck", "nodes_alive", "unexpected_deaths"].map(|name| summary[name].as_u64().unwrap());
    assert_eq!(counts, [1, 5, 0], "{summary}");
    // Whoever was struck has the final checkpoint, too.
    assert_eq!(summary["checkpoint"]["holders"].as_array().unwrap().len(), 5, "{summary}");
    run.assert_nothing_trained_twice();
    run.assert_restored_the_newest();
    assert_eq!(run.events("fault_healed").len(), run.events("fault_struck").len());
    run
}

fn epochs(run: &Run) -> u64 {
    run.summary()["epochs"].as_u64().unwrap()
}

#[test]
fn a_stopped_aggregator_is_replaced_and_catches_up() {
    let run = broken("stop@aggregator,round:3", &[]);
    assert!(epochs(&run) >= 2);
    let rows = run.rows("failovers.csv");
    let taken_over = rows.iter().find(|row| !row["resumed_ns"].is_empty()).unwrap();
    assert_eq!(
        (&*taken_over["struck_aggregator"], &*taken_over["fault"]),
        ("true", "stop@aggregator,round:3")
    );
    // A stopped node does not agree, and is not waited for.
    let stage = |name: &str| taken_over[&format!("{name}_ns")].parse::<u64>().unwrap();
    let stages = ["suspected", "elected", "agreed"].map(stage);
    assert!(stages.is_sorted(), "{stages:?}");
    let stages = ["elected", "restored", "serving", "resumed"].map(stage);
    assert!(stages.is_sorted(), "{stages:?}");
    assert_eq!(run.summary()["failovers"]["count"], rows.len());
}

#[test]
fn an_aggregator_that_is_cut_off_is_replaced_and_catches_up() {
    for options in [&["--payload", "inline"], &["--payload", "digest"]] {
        let run = broken("partition@minority,round:3", options);
        assert!(epochs(&run) >= 2);
        assert_eq!(run.events("fault_struck").len(), 2);
    }
}

#[test]
fn a_cut_that_leaves_the_majority_its_aggregator_causes_no_change() {
    let run = broken("partition@majority,round:3,for:3s", &[]);
    assert_eq!(epochs(&run), 1);
    assert!(run.rows("failovers.csv").is_empty());
}

#[test]
fn the_job_goes_on_over_lossy_links() {
    broken("loss:20@aggregator,random:3,for:3s", &[]);
}

#[test]
fn the_job_goes_on_over_corrupted_frames() {
    let run = broken("corrupt:5@all,round:2", &[]);
    let logs = std::fs::read_dir(run.results().join("nodes")).unwrap();
    let refused = |log: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(log.unwrap().path()).unwrap().contains("frame refused")
    };
    assert!(logs.into_iter().any(refused), "no frame was ever corrupted");
}

#[test]
fn an_aggregator_that_omits_to_send_is_replaced() {
    let run = broken("omit-send@aggregator,round:2,for:4s", &[]);
    assert!(epochs(&run) >= 2, "{}", run.text());
}

#[test]
fn a_worker_that_was_cut_off_for_longer_than_any_timeout_rejoins_by_itself() {
    // Connections are lost after 5 s of silence.
    let fault = ["--fault", "partition@worker,round:2,for:8s"];
    let mut running = start(&small(&[&["--nodes", "5", "--rounds", "100000"], &fault[..]].concat()));
    running.await_events("work for the worker that was cut off", |events| {
        let named = |name: &str| events.iter().find(|event| event["event"] == name);
        let Some(healed) = named("fault_healed") else { return false };
        events.iter().any(|event| {
            event["event"] == "fit_finished"
                && event["node"] == healed["target"]
                && event["at_ns"].as_u64() > healed["at_ns"].as_u64()
        })
    });
    running.signal(Signal::INT);
    let run = running.wait();
    let without = run.rows("rounds.csv").iter().filter(|row| row["fit_workers"] == "3").count();
    assert!(without > 0, "the others went on meanwhile: {}", run.text());
    assert_eq!(epochs(&run), 1, "nobody was deposed by who came back");
    assert_eq!(run.summary()["unexpected_deaths"], 0);
    run.assert_nothing_trained_twice();
}
