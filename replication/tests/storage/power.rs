//! Power fails at every single write, change of length and flush.

use std::collections::BTreeMap;

use bytes::Bytes;
use replication::conformance::parameters;
use replication::storage::Batch;
use replication::{Backend, CheckpointStore, CheckpointStoreExt, NodeId, Payload, Storage, StorageError};

use super::disk::Disk;
use super::nodes::{Group, backup, fresh_disks, goes_on, gossip, local};
use super::restart::{Member, put};

const ROWS: &str = "rows";
const STEPS: u64 = 12;

/// Every fate of what was not flushed: lost, written, and some mixtures.
const SEEDS: u64 = 5;

/// Overwrites, adds and removes rows.
fn step(step: u64) -> Vec<(Bytes, Option<Bytes>)> {
    let key = |row: u64| Bytes::from(vec![row as u8; 8]);
    let mut changes =
        vec![(key(step % 5), Some(parameters(step, if step.is_multiple_of(3) { 20_000 } else { 50 })))];
    if step % 4 == 3 {
        changes.push((key((step + 1) % 5), None));
    }
    changes
}

/// The rows after each number of steps.
fn states() -> Vec<BTreeMap<Bytes, Bytes>> {
    let mut states = vec![BTreeMap::new()];
    for number in 0..STEPS {
        let mut next = states[number as usize].clone();
        for (key, value) in step(number) {
            match value {
                Some(value) => drop(next.insert(key, value)),
                None => drop(next.remove(&key)),
            }
        }
        states.push(next);
    }
    states
}

/// Takes the steps until one fails; `flushed` counts those that did not.
async fn work(storage: &Storage, flushed: &mut u64) -> Result<(), StorageError> {
    for number in 0..STEPS {
        let mut batch = Batch::default();
        for (key, value) in step(number) {
            match value {
                Some(value) => batch.put(ROWS, key, value),
                None => batch.remove(ROWS, key),
            }
        }
        storage.write(batch);
        storage.flush().await?;
        *flushed += 1;
    }
    Ok(())
}

#[tokio::test]
async fn what_was_flushed_is_there_wherever_power_fails() {
    let states = states();
    let mut points = 0;
    for cut in 0.. {
        let disk = Disk::default();
        disk.cut_power_at(cut);
        let mut flushed = 0;
        let storage = Storage::inline_on(disk.clone());
        let made = storage.is_ok();
        if let Ok(storage) = storage {
            // Whether and where it fails is what the cut decides.
            let _ = work(&storage, &mut flushed).await;
            storage.close().await;
        }
        if disk.operations() <= cut {
            break;
        }
        points += 1;
        for seed in 0..SEEDS {
            match Storage::inline_on(disk.after_power_loss(seed)) {
                Ok(storage) => {
                    let found: BTreeMap<Bytes, Bytes> = storage.load(ROWS).unwrap().into_iter().collect();
                    // The step under way is there as a whole or not at all.
                    let under_way = states.get(flushed as usize + 1);
                    let expected = found == states[flushed as usize] || Some(&found) == under_way;
                    assert!(expected, "cut {cut}, seed {seed}: after {flushed} steps");
                }
                // A storage that could not be made promised nothing.
                Err(error) => assert!(!made, "cut {cut}, seed {seed}: {error}"),
            }
        }
    }
    assert!(points > 60, "{points} points");
}

/// Writes rounds until one fails; returns how many did not.
async fn rounds(member: &Member, from: u64) -> u64 {
    let Ok(Ok(epoch)) = tokio::time::timeout(PATIENCE, member.store.await_aggregator()).await else {
        return 0;
    };
    let mut acknowledged = 0;
    for round in from..from + 6 {
        match tokio::time::timeout(PATIENCE, put(member, epoch, round)).await {
            Ok(Ok(_)) => acknowledged = round,
            _ => break,
        }
    }
    acknowledged
}

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn a_node_keeps_what_it_acknowledged_wherever_power_fails() {
    for payload in [Payload::Inline, Payload::Digest] {
        let mut points = 0;
        for cut in 0.. {
            let disk = Disk::default();
            disk.cut_power_at(cut);
            let acknowledged = match Member::start_alone(payload, disk.clone()).await {
                Ok(member) => {
                    let acknowledged = rounds(&member, 1).await;
                    member.store.close().await;
                    acknowledged
                }
                Err(_) => 0,
            };
            if disk.operations() <= cut {
                break;
            }
            points += 1;
            for seed in 0..SEEDS {
                let case = format!("{payload}, cut {cut}, seed {seed}");
                let member = match Member::start_alone(payload, disk.after_power_loss(seed)).await {
                    Ok(member) => member,
                    Err(error) => {
                        assert_eq!(acknowledged, 0, "{case}: {error}");
                        continue;
                    }
                };
                let epoch = member.store.await_aggregator().await.unwrap();
                let latest = member.store.latest().await.unwrap();
                let round = latest.as_ref().map_or(0, |latest| latest.id().round);
                // The write under way may have happened.
                assert!(
                    (acknowledged..=acknowledged + 1).contains(&round),
                    "{case}: {round}, {acknowledged}"
                );
                if let Some(latest) = latest {
                    assert!(latest.id().epoch < epoch, "{case}");
                    assert_eq!(*latest.parameters(), super::restart::bytes(round), "{case}");
                }
                assert_eq!(put(&member, epoch, round + 1).await.unwrap().id.round, round + 1, "{case}");
                member.store.close().await;
            }
        }
        assert!(points > 60, "{points} points");
    }
}

const ROUNDS: u64 = 3;

/// Cuts the power of `victim` at every operation of its disk while rounds are written, lets the others go on, cuts everybody's
/// power, and starts all again. Returns how many operations there were.
async fn cut_everywhere(backend: Backend, victim: NodeId) -> u64 {
    for cut in 0.. {
        let seed = cut % SEEDS;
        let case = format!("power of node {victim} cut at {cut}, seed {seed}");
        let disks = fresh_disks();
        let victims = disks[&victim].clone();
        victims.cut_power_at(cut);
        let mut group = Group::start(&backend, cut, disks).await;
        let made = group.members.contains_key(&victim);
        let mut acknowledged = 0;
        for _ in 0..2 * ROUNDS {
            if acknowledged == ROUNDS || group.members.is_empty() {
                break;
            }
            match group.write_next().await {
                Some(Ok(receipt)) => acknowledged = receipt.id.round,
                _ if victims.is_dark() => group.crash(victim).await,
                failed => panic!("{case}: {failed:?}"),
            }
        }
        if !victims.is_dark() {
            assert_eq!(acknowledged, ROUNDS, "{case}");
            return cut;
        }
        let mut disks = group.power_off(seed).await;
        if !made {
            // It never had a file: `Storage::open` gives one its name when it is complete.
            disks.insert(victim, Disk::default());
        }
        let group = Group::start(&backend, cut + 1, disks).await;
        assert_eq!(group.members.len(), 3, "{case}: not everybody starts again");
        goes_on(&group, acknowledged, &case).await;
        group.power_off(seed).await;
    }
    unreachable!("the operations end")
}

#[tokio::test(start_paused = true)]
async fn a_lone_aggregator_keeps_what_it_acknowledged_wherever_power_fails() {
    let points = cut_everywhere(local(), NodeId(1)).await;
    assert!(points > 30, "{points} points");
}

#[tokio::test(start_paused = true)]
async fn a_primary_and_its_backup_keep_what_was_acknowledged_wherever_power_fails() {
    for victim in [1, 2].map(NodeId) {
        let points = cut_everywhere(backup(), victim).await;
        assert!(points > 30, "{points} points");
    }
}

#[tokio::test(start_paused = true)]
async fn gossip_keeps_what_was_acknowledged_wherever_power_fails() {
    for victim in [1, 2].map(NodeId) {
        let points = cut_everywhere(gossip(), victim).await;
        assert!(points > 30, "{points} points");
    }
}
