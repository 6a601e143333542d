//! The same job on every other way of replicating: ten nodes, five rounds, two aggregators killed.

use serde_json::Value;

use crate::federated::{Run, run};

/// The job with `options`. Rounds last longer than it takes to replace an aggregator, and a voter after it.
fn two_kills(options: &[&str], second: &str) -> Run {
    let job = [
        "--nodes",
        "10",
        "--rounds",
        "5",
        "--examples-per-node",
        "500",
        "--local-epochs",
        "4",
        "--test-examples-per-node",
        "32",
        "--fault",
        "kill@aggregator,round:2",
        "--fault",
        second,
    ];
    run(&[&job[..], options].concat())
}

/// The job ended, with the state that was acknowledged, on at least so many nodes.
fn assert_survived(run: &Run, holders: usize) -> Value {
    run.assert_completed(5);
    let summary = run.summary();
    assert_eq!((&summary["faults_struck"], &summary["nodes_alive"]), (&2.into(), &8.into()), "{summary}");
    assert!(summary["epochs"].as_u64() >= Some(3), "{summary}");
    assert!(summary["checkpoint"]["holders"].as_array().unwrap().len() >= holders, "{summary}");
    run.assert_nothing_trained_twice();
    run.assert_restored_the_newest();
    summary
}

#[test]
fn a_subset_of_voters_survives_two_aggregators_with_a_replacement_between() {
    let options =
        ["--backend", "raft-subset", "--voters", "3", "--voter-grace", "1s", "--window", "500-1000ms"];
    let run = two_kills(&options, "kill@aggregator,voters-changed");
    let summary = assert_survived(&run, 2);
    assert!(summary["voters_replaced"].as_u64() >= Some(1), "{summary}");
    let changes = run.rows("events.csv");
    assert!(changes.iter().any(|row| row["event"] == "voters_changed" && row["detail"].contains("joined=")));
}

#[test]
fn gossip_survives_two_aggregators() {
    let run = two_kills(&["--backend", "gossip"], "kill@aggregator,round:4");
    let summary = assert_survived(&run, 6);
    assert_eq!(
        (&summary["rival_aggregators"], &summary["corrupt_blobs"]),
        (&0.into(), &0.into()),
        "{summary}"
    );
}

#[test]
fn backups_survive_two_aggregators() {
    let run = two_kills(&["--backend", "backup", "--backups", "2"], "kill@aggregator,round:4");
    assert_survived(&run, 3);
}
