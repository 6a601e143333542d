//! Every backend under seeded schedules of faults, with the history of its answers checked.
//!
//! A failing seed prints the command that repeats it. A run is a function of its seed: virtual time, one thread, and a
//! seeded runtime. What a backend does not promise is not checked but scored, and printed (`--nocapture`).

#![allow(clippy::unwrap_used, reason = "a failed test is what unwrap is for; helpers are not seen as tests")]

mod check;
mod cluster;
mod disk;
mod history;
mod lifelines;
mod schedule;

use std::ops::Range;

use replication::backup::BackupConfig;
use replication::gossip::{Detector, GossipConfig};
use replication::raft::{Electorate, RaftConfig};
use replication::{Backend, DEFAULT_RETAINED, Guarantees, Payload, Window, conformance};

use self::check::Score;
use self::cluster::{Subject, nodes};
use self::history::History;
use self::schedule::Kinds;

const WINDOW: Window = Window { from_ms: 400, to_ms: 800 };
const HEARTBEAT_MS: u64 = 100;
const PUT_TIMEOUT_MS: u64 = 3000;

/// A voter that is away is replaced within the schedule.
const THREE_VOTERS: Electorate = Electorate::MostSuitable { voters: 3, grace_ms: 3000 };

fn in_memory(backend: Backend) -> Subject {
    Subject { backend, on_disk: false, lifelines: false }
}

fn on_disk(backend: Backend) -> Subject {
    Subject { backend, on_disk: true, lifelines: false }
}

/// With lifelines, of which some end although the aggregator lives.
fn with_lifelines(subject: Subject) -> Subject {
    Subject { lifelines: true, ..subject }
}

fn gossip(holders: u32, seed: u64) -> Backend {
    Backend::Gossip(GossipConfig {
        nodes: nodes().into_iter().collect(),
        holders,
        interval_ms: HEARTBEAT_MS,
        fan_out: 2,
        phi_milli: 6000,
        detector: Detector::Phi,
        put_timeout_ms: PUT_TIMEOUT_MS,
        retained: DEFAULT_RETAINED,
        seed,
    })
}

fn raft(electorate: Electorate, payload: Payload, seed: u64) -> Backend {
    Backend::Raft(RaftConfig {
        nodes: nodes().into_iter().collect(),
        electorate,
        payload,
        window: WINDOW,
        heartbeat_ms: HEARTBEAT_MS,
        put_timeout_ms: PUT_TIMEOUT_MS,
        retained: DEFAULT_RETAINED,
        seed,
    })
}

fn backup(backups: u32, seed: u64) -> Backend {
    Backend::Backup(BackupConfig {
        nodes: nodes().into_iter().collect(),
        backups,
        window: WINDOW,
        heartbeat_ms: HEARTBEAT_MS,
        put_timeout_ms: PUT_TIMEOUT_MS,
        retained: DEFAULT_RETAINED,
        seed,
    })
}

/// Prints how to repeat a seed whose run panics.
struct Replay {
    test: &'static str,
    seed: u64,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { test, seed } = self;
            eprintln!(
                "repeat with: SIM_SEED={seed} cargo test -p replication --test simulation {test} -- --nocapture"
            );
        }
    }
}

/// One run, of which everything is a function of `seed`.
fn simulate(seed: u64, subject: &Subject, kinds: Kinds) -> (History, Guarantees) {
    conformance::simulate(seed, cluster::run(seed, subject, kinds))
}

/// The seeds to run: all of `seeds`, or the one that the environment names.
fn seeds(seeds: Range<u64>) -> Range<u64> {
    match std::env::var("SIM_SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().expect("SIM_SEED is a number");
            seed..seed + 1
        }
        Err(_) => seeds,
    }
}

fn check(history: &History, guarantees: Guarantees, kinds: Kinds) {
    check::reads_are_monotonic(history);
    check::nothing_is_corrupt(history);
    check::epochs_grow(history);
    check::all_agree(history);
    // Where only nodes crash, and no more than tolerated, every backend keeps what it acknowledged.
    if guarantees.linear || kinds == Kinds::Crashes {
        check::acknowledged_survives(history, DEFAULT_RETAINED as u64);
        check::no_round_is_repeated(history);
        check::one_aggregator_per_counter(history);
    }
}

fn schedules(test: &'static str, kinds: Kinds, range: Range<u64>, subject: impl Fn(u64) -> Subject) {
    let (mut total, mut deaths, mut tolerated) = (Score::default(), 0, 0);
    let range = seeds(range);
    for seed in range.clone() {
        let _replay = Replay { test, seed };
        let (history, guarantees) = simulate(seed, &subject(seed), kinds);
        check(&history, guarantees, kinds);
        tolerated = guarantees.tolerated_losses;
        let score = check::score(&history, DEFAULT_RETAINED as u64);
        assert!(score.acknowledged > 0, "nothing was ever acknowledged");
        total += score;
        deaths += history.deaths.len();
    }
    let crashed = deaths > 0 || kinds != Kinds::Crashes || range.clone().count() == 1;
    assert!(crashed || tolerated == 0, "nobody crashed in seeds {range:?}");
    println!("{test}, seeds {range:?}: {total}");
}

fn repeats(test: &'static str, subject: impl Fn(u64) -> Subject) {
    for seed in seeds(0..5) {
        let _replay = Replay { test, seed };
        let (first, second) =
            (simulate(seed, &subject(seed), Kinds::Any).0, simulate(seed, &subject(seed), Kinds::Any).0);
        for (one, other) in first.writes.iter().zip(&second.writes) {
            assert_eq!(one, other, "the first writes that differ");
        }
        for (one, other) in first.learned.iter().zip(&second.learned) {
            assert_eq!(one, other, "the first changes of aggregator that differ");
        }
        assert!(first == second, "two runs of one seed differ");
    }
}

/// Members come and go under faults.
macro_rules! simulated_members {
    ($name:ident, $backend:expr) => {
        #[test]
        fn $name() {
            let test = stringify!($name);
            schedules(test, Kinds::Members, 0..15, $backend);
        }
    };
}

/// The tests of one backend, given as a function of the seed.
macro_rules! simulated {
    ($name:ident, $backend:expr) => {
        mod $name {
            use super::*;

            #[test]
            fn keeps_its_promises_under_faults() {
                let test = concat!(stringify!($name), "::keeps_its_promises_under_faults");
                schedules(test, Kinds::Any, 0..200, $backend);
            }

            #[test]
            fn keeps_what_it_acknowledged_when_nodes_crash() {
                let test = concat!(stringify!($name), "::keeps_what_it_acknowledged_when_nodes_crash");
                schedules(test, Kinds::Crashes, 0..50, $backend);
            }

            #[test]
            fn a_seed_repeats_its_history() {
                repeats(concat!(stringify!($name), "::a_seed_repeats_its_history"), $backend);
            }
        }
    };
}

simulated!(raft_inline, |seed| in_memory(raft(Electorate::Everyone, Payload::Inline, seed)));
simulated!(raft_digest, |seed| in_memory(raft(Electorate::Everyone, Payload::Digest, seed)));
simulated!(raft_inline_on_disk, |seed| on_disk(raft(Electorate::Everyone, Payload::Inline, seed)));
simulated!(raft_digest_on_disk, |seed| on_disk(raft(Electorate::Everyone, Payload::Digest, seed)));
simulated!(raft_subset, |seed| in_memory(raft(THREE_VOTERS, Payload::Inline, seed)));
simulated!(raft_subset_on_disk, |seed| on_disk(raft(THREE_VOTERS, Payload::Digest, seed)));
simulated!(gossip_3, |seed| in_memory(gossip(3, seed)));
simulated!(gossip_1, |seed| in_memory(gossip(1, seed)));
// Below half of five, and one crash is tolerated.
simulated!(gossip_2, |seed| in_memory(gossip(2, seed)));
simulated!(gossip_2_on_disk, |seed| on_disk(gossip(2, seed)));
// With two backups of five nodes two sides of a partition cannot both acknowledge; with one they can.
simulated!(backup_1, |seed| in_memory(backup(1, seed)));
simulated!(backup_2, |seed| in_memory(backup(2, seed)));
simulated!(raft_lifelines, |seed| with_lifelines(in_memory(raft(
    Electorate::Everyone,
    Payload::Inline,
    seed
))));
simulated!(raft_lifelines_on_disk, |seed| with_lifelines(on_disk(raft(
    Electorate::Everyone,
    Payload::Inline,
    seed
))));
simulated!(raft_subset_lifelines, |seed| with_lifelines(in_memory(raft(
    THREE_VOTERS,
    Payload::Inline,
    seed
))));
simulated!(gossip_3_lifelines, |seed| with_lifelines(in_memory(gossip(3, seed))));
simulated!(backup_2_lifelines, |seed| with_lifelines(in_memory(backup(2, seed))));
simulated!(gossip_3_on_disk, |seed| on_disk(gossip(3, seed)));
simulated!(backup_1_on_disk, |seed| on_disk(backup(1, seed)));
simulated!(backup_2_on_disk, |seed| on_disk(backup(2, seed)));
simulated_members!(members_of_gossip_3, |seed| in_memory(gossip(3, seed)));
simulated_members!(members_of_gossip_3_on_disk, |seed| on_disk(gossip(3, seed)));
simulated_members!(members_of_gossip_1, |seed| in_memory(gossip(1, seed)));
simulated_members!(members_of_backup_2, |seed| in_memory(backup(2, seed)));

/// What is not in the 200 schedules: frames with a flipped bit, and nodes that omit to send or to receive.
macro_rules! simulated_failures {
    ($name:ident, $backend:expr) => {
        mod $name {
            use super::*;

            #[test]
            fn stores_and_serves_nothing_corrupt() {
                let test = concat!(stringify!($name), "::stores_and_serves_nothing_corrupt");
                schedules(test, Kinds::Corruption, 0..15, $backend);
            }

            #[test]
            fn keeps_its_promises_under_omissions() {
                let test = concat!(stringify!($name), "::keeps_its_promises_under_omissions");
                schedules(test, Kinds::Omissions, 0..15, $backend);
            }

            #[test]
            fn is_not_safe_from_a_node_that_lies() {
                let test = concat!(stringify!($name), "::is_not_safe_from_a_node_that_lies");
                breaks(test, Kinds::Lies, 0..40, $backend);
            }
        }
    };
}

/// Names the seed to the process that runs one schedule by itself.
const ALONE: &str = "SIM_ALONE";

/// What is not promised does not hold: in one schedule at least something goes wrong that would fail the tests above. Each is a
/// process of its own: a lie may end a node in a way that no test outlives.
fn breaks(test: &'static str, kinds: Kinds, range: Range<u64>, subject: impl Fn(u64) -> Subject) {
    if let Ok(seed) = std::env::var(ALONE) {
        let seed = seed.parse().expect("a seed is a number");
        let (history, guarantees) = simulate(seed, &subject(seed), kinds);
        return check(&history, guarantees, kinds);
    }
    for seed in seeds(range.clone()) {
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        let ended = alone.args(["--exact", test]).env(ALONE, seed.to_string()).output().unwrap();
        if !ended.status.success() {
            println!("{test}: seed {seed} shows it");
            return;
        }
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(said.contains("1 passed"), "{test} was not run: {said}");
    }
    panic!("{test}: nothing went wrong in seeds {range:?}, so more could be promised");
}

simulated_failures!(failures_of_raft_inline, |seed| in_memory(raft(
    Electorate::Everyone,
    Payload::Inline,
    seed
)));
simulated_failures!(failures_of_raft_digest, |seed| in_memory(raft(
    Electorate::Everyone,
    Payload::Digest,
    seed
)));
simulated_failures!(failures_of_raft_subset, |seed| in_memory(raft(THREE_VOTERS, Payload::Inline, seed)));
simulated_failures!(failures_of_gossip_3, |seed| in_memory(gossip(3, seed)));
simulated_failures!(failures_of_backup_2, |seed| in_memory(backup(2, seed)));

/// Below a majority a partition loses what was acknowledged.
#[test]
fn one_holder_is_too_few_for_a_partition() {
    let test = "one_holder_is_too_few_for_a_partition";
    loses(test, Kinds::Any, |seed| in_memory(gossip(1, seed)));
}

/// As in a partition.
#[test]
fn one_holder_is_too_few_for_a_node_that_omits() {
    let test = "one_holder_is_too_few_for_a_node_that_omits";
    loses(test, Kinds::Omissions, |seed| in_memory(gossip(1, seed)));
}

/// As with one holder.
#[test]
fn one_backup_is_too_few_for_a_partition() {
    let test = "one_backup_is_too_few_for_a_partition";
    loses(test, Kinds::Any, |seed| in_memory(backup(1, seed)));
}

/// Something that was acknowledged is lost or done again in one schedule at least.
fn loses(test: &'static str, kinds: Kinds, subject: impl Fn(u64) -> Subject) {
    let worst = seeds(0..30).map(|seed| {
        let (history, _) = simulate(seed, &subject(seed), kinds);
        check::score(&history, DEFAULT_RETAINED as u64)
    });
    let found = worst.into_iter().find(|score| score.lost + score.repeated > 0);
    println!("{test}: {}", found.expect("nothing was lost or repeated, so more could be promised"));
}
