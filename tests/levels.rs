//! Levels 0 to 2 of self-recovery, as options of a run; levels 3 and 4 are what the other tests run.

use rustix::process::Signal;

use crate::federated::{Run, run, small, start};

fn small_run(options: &[&str]) -> Run {
    run(&small(&[&["--nodes", "4"], options].concat()))
}

fn started_rounds(run: &Run) -> Vec<u64> {
    run.events("round_started").iter().map(|event| event["round"].as_u64().unwrap()).collect()
}

#[test]
fn at_level_0_the_job_outlives_a_worker_but_not_its_aggregator() {
    let faults = ["--fault", "kill@worker,round:2", "--fault", "kill@aggregator,round:4"];
    let run = small_run(&[&["--backend", "none", "--rounds", "40"], &faults[..]].concat());
    assert_eq!(run.code(), 3, "{}", run.text());
    assert!(run.text().contains("the aggregator is gone, and nobody takes over"), "{}", run.text());
    let summary = run.summary();
    assert_eq!((&summary["level"], &summary["backend"]), (&0.into(), &"none".into()), "{summary}");
    assert!(summary["checkpoint"]["round"].as_u64() >= Some(3), "{summary}");
    // What the aggregator had is gone with it.
    assert_eq!(summary["checkpoint"]["holders"].as_array().unwrap().len(), 0, "{summary}");
    assert_eq!(run.rows("checkpoints.csv")[0]["guarantee"], "local_memory");
}

#[test]
fn at_level_1_the_same_aggregator_goes_on_from_its_disk() {
    let faults =
        ["--fault", "restart@aggregator,round:3,after:300ms", "--fault", "restart@all,round:5,after:300ms"];
    let run = small_run(&[&["--backend", "local", "--rounds", "20"], &faults[..]].concat());
    run.assert_completed(20);
    run.assert_nothing_trained_twice();
    run.assert_restored_the_newest();
    let summary = run.summary();
    assert_eq!((&summary["level"], &summary["epochs"]), (&1.into(), &3.into()), "{summary}");
    assert_eq!(summary["checkpoint"]["holders"], serde_json::json!([1]), "{summary}");
    assert!(run.events("serving").iter().all(|event| event["epoch"]["node"] == 1));
    assert_eq!(run.rows("checkpoints.csv")[0]["guarantee"], "local_disk");
}

#[test]
fn a_stopped_run_of_level_1_is_resumed() {
    let mut running = start(&small(&["--nodes", "3", "--backend", "local", "--rounds", "60"]));
    running.await_events("rounds", |events| {
        events.iter().filter(|event| event["event"] == "round_finished").count() >= 2
    });
    running.signal(Signal::INT);
    let old = running.results();
    let stopped = running.wait();
    let resumed = crate::federated::start_in(stopped.dir, &["--resume", old.to_str().unwrap()]).wait();
    assert_eq!(resumed.code(), 0, "{}", resumed.text());
    assert!(started_rounds(&resumed).iter().all(|round| *round > 2), "{:?}", started_rounds(&resumed));
}

#[test]
fn at_level_2_a_new_aggregator_starts_the_job_again() {
    for backend in ["raft", "gossip"] {
        let fault = ["--fault", "kill@aggregator,round:3"];
        let run = small_run(&[&["--backend", backend, "--stateless", "--rounds", "20"], &fault[..]].concat());
        run.assert_completed(20);
        let summary = run.summary();
        assert_eq!((&summary["level"], &summary["take_overs"]), (&2.into(), &1.into()), "{summary}");
        assert!(summary["checkpoint"].is_null() && run.rows("checkpoints.csv").is_empty(), "{summary}");
        let mut before = started_rounds(&run);
        let again = before.split_off(before.iter().rposition(|round| *round == 1).unwrap());
        assert!(before.starts_with(&[1, 2, 3]), "{backend}: {before:?}");
        assert_eq!(again, (1..=20).collect::<Vec<_>>(), "{backend}");
    }
}
