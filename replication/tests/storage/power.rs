//! Power fails at every single write, change of length and flush.

use std::collections::BTreeMap;

use bytes::Bytes;
use replication::conformance::parameters;
use replication::storage::Batch;
use replication::{CheckpointStore, CheckpointStoreExt, Payload, Storage, StorageError};

use super::disk::Disk;
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
