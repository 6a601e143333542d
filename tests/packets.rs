//! The bounds on what a checkpoint costs, of `replication/tests/traffic.rs`, held by packets: ten nodes in network
//! namespaces, captured at IP level. Needs root.

use crate::netns::{finished, harness_of};

const NODES: usize = 10;
/// Puts, one a round: enough that what no connection counts while nodes find each other (first packets of handshakes, some
/// 180 kB) is little beside them.
const ROUNDS: &str = "20";
const FOLLOWERS: f64 = 9.0;
/// What a heartbeat costs per follower, and what a gossiping node sends, at most: the bounds of the other test.
const HEARTBEAT_BYTES: f64 = 400.0;
const GOSSIP_BYTES_PER_S: f64 = 8000.0;
const HEADER_BYTES: u64 = 28;

/// Runs a job with `options` and checks what its puts cost on the replication plane, each packet counted once where it left
/// its sender: at most `s_per_put` times the size of a checkpoint, and `idle_bytes_per_s` while the job lasts.
fn assert_cost(options: &[&str], s_per_put: f64, idle_bytes_per_s: f64) {
    let dir = tempfile::tempdir().unwrap();
    let output = harness_of(NODES, dir.path(), &[&["--rounds", ROUNDS], options].concat()).output().unwrap();
    let run = finished(dir.path(), output);
    run.assert_counts_agree(true);
    let number = |name: &str| run.summary[name].as_u64().unwrap_or_else(|| panic!("{name}: {}", run.summary));
    let captured = run.summary["traffic"]["replication_bytes"].as_u64().unwrap();
    let startup: u64 = run
        .rows("traffic.csv")
        .iter()
        .filter(|row| (row["plane"].as_str(), row["span"].as_str()) == ("replication", "startup"))
        .filter(|row| row["unit"] == "datagrams")
        .map(|row| {
            row["sent_bytes"].parse::<u64>().unwrap() + HEADER_BYTES * row["sent"].parse::<u64>().unwrap()
        })
        .sum();
    let seconds = (number("elapsed_ns") - number("start_ns")) as f64 / 1e9;
    let checkpoint = number("checkpoint_bytes") as f64;
    let puts = run.rows("checkpoints.csv").len() as f64;
    let spent = captured.checked_sub(startup).unwrap() as f64;
    let allowed = puts * s_per_put * checkpoint + seconds * idle_bytes_per_s;
    println!(
        "{options:?}: {:.3} S per put, idling included; bound {s_per_put:.3} S and {:.3} S idling",
        spent / puts / checkpoint,
        seconds * idle_bytes_per_s / puts / checkpoint
    );
    assert!(spent <= allowed, "{spent} B sent, {allowed} B allowed");
}

fn with_heartbeats(options: &[&str], s_per_put: f64) {
    let options = [&["--heartbeat", "100ms"], options].concat();
    assert_cost(&options, s_per_put, HEARTBEAT_BYTES * FOLLOWERS * 10.0);
}

fn with_gossip(options: &[&str], s_per_put: f64) {
    let options = [&["--backend", "gossip", "--gossip-interval", "500ms"], options].concat();
    assert_cost(&options, s_per_put, GOSSIP_BYTES_PER_S * NODES as f64);
}

#[test]
fn ten_nodes_with_large_parameters_agree_in_all_three_counts_and_drop_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let options = ["--engine", "none", "--parameter-bytes", "10MB", "--rounds", "2", "--payload", "inline"];
    let output =
        harness_of(NODES, dir.path(), &[&options[..], &["--window", "5s-10s"]].concat()).output().unwrap();
    let traffic = finished(dir.path(), output).summary["traffic"].clone();
    assert_eq!((&traffic["dropped_packets"], &traffic["exact"]), (&0.into(), &true.into()), "{traffic}");
    assert_eq!(traffic["interface_difference"], 0.0, "{traffic}");
    assert!(traffic["transport_difference"].as_f64().unwrap() <= 0.005, "{traffic}");
}

#[test]
fn raft_inline_costs_a_little_more_than_the_bytes_themselves() {
    with_heartbeats(&["--backend", "raft", "--payload", "inline"], 1.07 * FOLLOWERS);
}

#[test]
fn raft_digest_costs_the_same_without_reuse_and_next_to_nothing_with_it() {
    let digest = ["--backend", "raft", "--payload", "digest"];
    with_heartbeats(&[&digest[..], &["--no-reuse"]].concat(), 1.07 * FOLLOWERS);
    with_heartbeats(&digest, 0.05 * FOLLOWERS);
}

#[test]
fn a_subset_and_backups_cost_what_their_few_copies_do() {
    with_heartbeats(&["--backend", "raft-subset", "--voters", "3", "--payload", "inline"], 1.07 * 2.0);
    with_heartbeats(&["--backend", "backup", "--backups", "2", "--no-reuse"], 1.07 * 2.0);
}

#[test]
fn gossip_costs_its_copies_and_its_words() {
    with_gossip(&["--no-reuse"], 1.12 * FOLLOWERS);
    with_gossip(&[], 0.10 * FOLLOWERS);
}
