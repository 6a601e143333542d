//! Nodes that join, leave, or lose their memory while the job runs, on the built binary.

use std::collections::{BTreeMap, BTreeSet};

use crate::federated::{Run, run};

/// Rounds that last longer than it takes to start a node.
const ROUNDS: [&str; 6] =
    ["--examples-per-node", "500", "--local-epochs", "2", "--test-examples-per-node", "32"];

/// Every round was acknowledged once, and trained by nobody afterwards.
fn assert_once(run: &Run, rounds: u64) {
    run.assert_completed(rounds);
    run.assert_nothing_trained_twice();
    run.assert_restored_the_newest();
    let puts = run.rows("checkpoints.csv");
    let acknowledged = puts.iter().filter(|row| row["outcome"] == "acknowledged");
    let acknowledged: Vec<u64> = acknowledged.map(|row| row["round"].parse().unwrap()).collect();
    assert_eq!(acknowledged, (1..=rounds).collect::<Vec<_>>(), "{}", run.text());
}

/// How nodes ended, by node.
fn states(run: &Run) -> BTreeMap<u64, String> {
    let rows = run.rows("nodes.csv");
    rows.iter().map(|row| (row["node"].parse().unwrap(), row["state"].clone())).collect()
}

fn targets(run: &Run, event: &str) -> BTreeSet<u64> {
    run.events(event).iter().map(|event| event["target"].as_u64().unwrap()).collect()
}

#[test]
fn five_nodes_become_seven_and_then_four_within_ten_rounds() {
    let changes = [
        "join@round:2",
        "join@round:2",
        "leave@worker,round:6",
        "leave@aggregator,round:7",
        "leave@random,round:7",
    ];
    let changes: Vec<&str> = changes.iter().flat_map(|change| ["--member", change]).collect();
    for backend in [
        &["--backend", "raft"][..],
        &["--backend", "raft", "--payload", "digest"],
        &["--backend", "raft-subset"],
        &["--backend", "gossip"],
        &["--backend", "backup"],
    ] {
        let job = ["--nodes", "5", "--rounds", "10"];
        let run = run(&[&job[..], backend, &ROUNDS, &changes].concat());
        assert_once(&run, 10);
        let summary = run.summary();
        let counts = ["nodes", "nodes_alive", "nodes_joined", "nodes_left", "unexpected_deaths"];
        assert_eq!(counts.map(|name| summary[name].as_u64().unwrap()), [7, 4, 2, 3, 0], "{summary}");
        let states = states(&run);
        assert_eq!(states.keys().copied().collect::<Vec<_>>(), (1..=7).collect::<Vec<_>>());
        let left = targets(&run, "node_leaving");
        assert!(left.iter().all(|node| states[node] == "exit code 0"), "{left:?} of {states:?}");
        // All six workers of seven nodes had work, and in the end three.
        let rounds = run.rows("rounds.csv");
        let workers: Vec<u64> = rounds.iter().map(|row| row["fit_workers"].parse().unwrap()).collect();
        assert_eq!(workers.iter().max(), Some(&6), "{workers:?}");
        assert_eq!(workers.last(), Some(&3), "{workers:?}");
        let holders = summary["checkpoint"]["holders"].as_array().unwrap();
        assert!(holders.iter().all(|node| !left.contains(&node.as_u64().unwrap())), "{summary}");
        assert_eq!(summary["faults_struck"], 0, "{summary}");
    }
}

#[test]
fn a_node_that_lost_its_memory_comes_back_as_another_one() {
    let faults = ["--fault", "restart@worker,round:2", "--fault", "restart@aggregator,round:4"];
    for (backend, payload) in
        [("raft", "inline"), ("raft", "digest"), ("gossip", "digest"), ("backup", "digest")]
    {
        let job = ["--nodes", "5", "--rounds", "10", "--backend", backend, "--payload", payload];
        let run = run(&[&job[..], &ROUNDS, &faults].concat());
        assert_once(&run, 10);
        let summary = run.summary();
        let counts = ["nodes", "nodes_alive", "nodes_replaced", "unexpected_deaths", "take_overs"];
        assert_eq!(counts.map(|name| summary[name].as_u64().unwrap()), [7, 5, 2, 0, 1], "{summary}");
        let mut worked: BTreeSet<u64> =
            run.events("fit_finished").iter().map(|event| event["node"].as_u64().unwrap()).collect();
        // The first of them may be elected when the aggregator dies.
        worked.extend(run.events("serving").iter().map(|event| event["epoch"]["node"].as_u64().unwrap()));
        assert!(worked.contains(&6) && worked.contains(&7), "{worked:?}");
        if backend != "raft" {
            continue;
        }
        let dead = targets(&run, "fault_struck");
        let holders: BTreeSet<u64> = summary["checkpoint"]["holders"]
            .as_array()
            .unwrap()
            .iter()
            .map(|node| node.as_u64().unwrap())
            .collect();
        assert_eq!(holders, (1..=7).filter(|node| !dead.contains(node)).collect(), "{summary}");
        // The group is as large as before.
        let voters = run.events("voters_changed").last().unwrap()["voters"].clone();
        assert_eq!(voters.as_array().unwrap().len(), 5, "{voters}");
    }
}
