//! Who aggregates, beyond what a failure decides.

use std::collections::BTreeSet;

use rustix::process::Signal;
use serde_json::Value;

use crate::federated::{run, small, start};

#[test]
fn every_node_has_its_turn_and_nothing_is_lost_or_trained_twice() {
    let endless = ["--nodes", "5", "--rounds", "100000", "--policy", "rotate:2"];
    let mut running = start(&small(&endless));
    running.await_events("a turn of each node", |events| {
        let served = events.iter().filter(|event| event["event"] == "serving");
        served.map(|event| event["epoch"]["node"].as_u64()).collect::<BTreeSet<_>>().len() == 5
    });
    running.signal(Signal::INT);
    let run = running.wait();
    assert_eq!(run.code(), 130, "{}", run.text());
    let summary = run.summary();
    assert!(summary["hand_overs"].as_u64() >= Some(4), "{summary}");
    assert_eq!((&summary["take_overs"], &summary["unexpected_deaths"]), (&0.into(), &0.into()), "{summary}");
    run.assert_nothing_trained_twice();
    run.assert_restored_the_newest();
    let in_turn: Vec<u64> =
        run.events("handing_over").iter().map(|event| event["to"].as_u64().unwrap()).collect();
    assert!(in_turn.windows(2).all(|pair| pair[1] == pair[0] % 5 + 1), "{in_turn:?}");
    let rows = run.rows("events.csv");
    assert_eq!(rows.iter().filter(|row| row["event"] == "handing_over").count(), in_turn.len());
    println!("{}", figures(&summary));
}

#[test]
fn a_crash_between_hand_overs_is_told_apart_from_them() {
    let options =
        ["--nodes", "5", "--rounds", "120", "--policy", "rotate:1", "--fault", "kill@aggregator,round:10"];
    let run = run(&small(&options));
    run.assert_completed(120);
    run.assert_nothing_trained_twice();
    run.assert_restored_the_newest();
    let summary = run.summary();
    assert_eq!(summary["take_overs"], 1, "{summary}");
    // A successor that was asked needs no timeout: its predecessor has not to be suspected first.
    let window_begins = 1_000_000_000;
    let (planned, crash) = (summary["hand_over_ns_median"].as_u64(), summary["take_over_ns_median"].as_u64());
    assert!(planned.is_some() && planned < Some(window_begins), "{summary}");
    assert!(crash > Some(window_begins), "{summary}");
    println!("{}", figures(&summary));
}

#[test]
fn with_a_subset_of_voters_only_these_have_turns() {
    let subset = ["--backend", "raft-subset", "--voters", "3", "--nodes", "5"];
    let mut running = start(&small(&[&subset[..], &["--rounds", "100000", "--policy", "rotate:1"]].concat()));
    running.await_events("a second turn", |events| {
        events.iter().filter(|event| event["event"] == "handing_over").count() >= 4
    });
    running.signal(Signal::INT);
    let run = running.wait();
    run.assert_nothing_trained_twice();
    let served: BTreeSet<u64> =
        run.events("serving").iter().map(|event| event["epoch"]["node"].as_u64().unwrap()).collect();
    let voters = run.events("voters_changed");
    let voters: BTreeSet<u64> =
        voters[0]["voters"].as_array().unwrap().iter().map(|voter| voter.as_u64().unwrap()).collect();
    assert_eq!(served, voters);
}

#[test]
fn the_most_suitable_node_is_handed_the_office_once() {
    let resources: Vec<String> = (1..=4)
        .flat_map(|node| {
            let offer = if node == 3 {
                "cpu=8000,memory=8000000000,mains=yes"
            } else {
                "cpu=10,memory=500000000,mains=no"
            };
            ["--suitability".to_owned(), format!("{node}:{offer},bandwidth=1000000000")]
        })
        .collect();
    let resources: Vec<&str> = resources.iter().map(String::as_str).collect();
    let options = ["--nodes", "4", "--rounds", "12", "--policy", "suitability"];
    let run = run(&small(&[&options[..], &resources].concat()));
    run.assert_completed(12);
    run.assert_nothing_trained_twice();
    let served: Vec<u64> =
        run.events("serving").iter().map(|event| event["epoch"]["node"].as_u64().unwrap()).collect();
    assert_eq!(served.last(), Some(&3), "{served:?}");
    assert!(run.events("handing_over").len() <= 1, "{served:?}");
}

#[test]
fn by_latency_the_aggregator_leaves_a_node_whose_link_is_made_slow_and_stays_where_it_went() {
    let timers = ["--window", "3000-6000ms", "--heartbeat", "400ms"];
    let fault = ["--fault", "delay:200ms@aggregator,round:3"];
    // Without training: distances are what matters, and rounds are short.
    let endless = ["--nodes", "5", "--rounds", "100000", "--policy", "latency", "--engine", "none"];
    let mut running = start(&small(&[&endless[..], &timers, &fault].concat()));
    let rounds_of = |events: &[Value], node: &Value| {
        let finished = events.iter().filter(|event| event["event"] == "round_finished");
        finished.filter(|event| event["node"] == *node).count()
    };
    running.await_events("many rounds of another aggregator", |events| {
        let moved = events.iter().find(|event| event["event"] == "handing_over");
        moved.is_some_and(|moved| rounds_of(events, &moved["to"]) >= 6)
    });
    running.signal(Signal::INT);
    let run = running.wait();
    let (struck, moved) = (run.events("fault_struck"), run.events("handing_over"));
    assert_eq!(moved.len(), 1, "{moved:?}");
    assert_eq!(moved[0]["epoch"]["node"], struck[0]["target"]);
    assert!(moved[0]["at_ns"].as_u64() > struck[0]["at_ns"].as_u64());
    let summary = run.summary();
    assert_eq!((&summary["epochs"], &summary["hand_overs"]), (&2.into(), &1.into()), "{summary}");
    run.assert_nothing_trained_twice();
    run.assert_restored_the_newest();
}

fn figures(summary: &Value) -> String {
    let names = ["hand_overs", "hand_over_ns_median", "take_overs", "take_over_ns_median"];
    names.map(|name| format!("{name} {}", summary[name])).join(", ")
}
