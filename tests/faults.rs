//! Faults other than kills, on the built binary: the job goes on, and once they are over every node has its result.

use crate::federated::{Run, run};

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
