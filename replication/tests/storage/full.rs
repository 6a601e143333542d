//! No room on the disk: what does not fit fails, nothing that was acknowledged is lost, and all goes on when there is room.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::FutureExt;
use replication::conformance::parameters;
use replication::storage::Batch;
use replication::transport::channel::{ChannelNetwork, LinkSpec};
use replication::{
    Backend, Checkpoint, CheckpointStoreExt, Metadata, NodeId, Payload, Silent, Site, Storage, StorageError,
    StoreError, open,
};

use super::disk::Disk;
use super::nodes::{Group, backup, fresh_disks, goes_on, gossip, local, raft};
use super::restart::id;

const ROWS: &str = "rows";
const FACTS: &str = "facts";
const STEPS: u64 = 8;

fn step(number: u64) -> Batch {
    let mut batch = Batch::default();
    batch.put(ROWS, (number % 5).to_be_bytes().to_vec(), parameters(number, 20_000));
    batch
}

/// The rows after so many steps.
fn rows(steps: u64) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let row = |number: u64| ((number % 5).to_be_bytes().to_vec(), parameters(number, 20_000).to_vec());
    (0..steps).map(row).collect()
}

fn found(storage: &Storage) -> BTreeMap<Vec<u8>, Vec<u8>> {
    storage.load(ROWS).unwrap().into_iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

#[tokio::test]
async fn what_does_not_fit_waits_in_its_order_wherever_the_disk_is_full() {
    let mut points = 0;
    for full_from in 0.. {
        let disk = Disk::default();
        disk.full_from(full_from);
        let storage = match Storage::inline_on(disk.clone()) {
            Ok(storage) => storage,
            Err(error) => {
                assert!(matches!(error, StorageError::Full { .. }), "{full_from}: {error}");
                continue;
            }
        };
        let mut flushed = 0;
        let mut failed = 0;
        for number in 0..STEPS {
            storage.write(step(number));
            match storage.flush().await {
                Ok(()) => flushed = number + 1,
                Err(StorageError::Full { .. }) => failed += 1,
                Err(error) => panic!("{full_from}: {error}"),
            }
        }
        if failed == 0 {
            break;
        }
        points += 1;
        assert!(storage.is_full(), "{full_from}");
        for seed in 0..3 {
            let left = Storage::inline_on(disk.after_power_loss(seed)).unwrap();
            // The step under way may be there as a whole.
            let kept = found(&left);
            let some = (flushed..=STEPS).any(|steps| kept == rows(steps));
            assert!(some, "{full_from}, seed {seed}: {flushed} flushed");
        }
        disk.make_room();
        storage.flush().await.unwrap_or_else(|error| panic!("{full_from}: {error}"));
        assert!(!storage.is_full() && found(&storage) == rows(STEPS), "{full_from}");
        storage.close().await;
        let again = Storage::inline_on(disk.after_power_loss(0)).unwrap();
        assert!(found(&again) == rows(STEPS), "{full_from}");
    }
    assert!(points > 20, "{points} points");
}

#[tokio::test]
async fn small_facts_pass_what_does_not_fit() {
    let disk = Disk::default();
    let storage = Storage::on(disk.clone()).unwrap();
    storage.write(step(0));
    storage.flush().await.unwrap();
    disk.fill();
    let mut large = Batch::default();
    large.put(ROWS, &b"large"[..], vec![1; 4 * 1024 * 1024]);
    storage.write(large);
    assert!(matches!(storage.flush().await, Err(StorageError::Full { .. })));
    let waiting = storage.flush_patiently();
    tokio::pin!(waiting);
    for vote in 0..20_u64 {
        let mut fact = Batch::default();
        fact.put(FACTS, &b"vote"[..], vote.to_be_bytes().to_vec());
        storage.write_first(fact);
        storage.flush_first().await.unwrap();
        let left = Storage::inline_on(disk.after_power_loss(0)).unwrap();
        assert_eq!(left.load(FACTS).unwrap()[0].1[..], vote.to_be_bytes());
        assert_eq!(found(&left), rows(1));
    }
    assert!(waiting.as_mut().now_or_never().is_none(), "there is no room yet");
    disk.make_room();
    waiting.await.unwrap();
    assert_eq!(storage.load(ROWS).unwrap().len(), 2);
}

#[tokio::test]
async fn an_error_of_a_flush_is_the_end_whatever_the_reason() {
    let disk = Disk::default();
    let storage = Storage::inline_on(disk.clone()).unwrap();
    disk.fail_flushes();
    storage.write(step(0));
    assert!(matches!(storage.flush().await, Err(StorageError::Io { .. })));
    disk.make_room();
    assert!(matches!(storage.flush().await, Err(StorageError::Io { .. })));
}

/// Fills the disk of `full` while the group works, and makes room again.
async fn fills_up(backend: Backend, full: NodeId, aggregates: bool) {
    let disks = fresh_disks();
    let disk = disks[&full].clone();
    let group = Group::start(&backend, 1, disks).await;
    assert!(matches!(group.write_next().await, Some(Ok(_))));
    disk.full_from(0);
    let mut acknowledged = 1;
    for _ in 0..3 {
        match group.write_next().await {
            Some(Ok(receipt)) => {
                assert!(!receipt.holders.contains(&full), "{receipt:?}");
                acknowledged = receipt.id.round;
            }
            Some(Err(error)) => assert!(matches!(error, StoreError::DiskFull { .. }), "{error}"),
            None => panic!("no answer"),
        }
    }
    assert_eq!(acknowledged == 1, aggregates, "{backend:?}: others go on without a full one");
    let epoch = group.epoch().await.unwrap();
    let read = group.members[&epoch.node].latest().await.unwrap().unwrap();
    assert!(read.id().round >= acknowledged, "what was acknowledged is served");
    disk.make_room();
    let written = group.write_next().await;
    assert!(matches!(written, Some(Ok(_))), "{written:?}");
    let acknowledged = written.unwrap().unwrap().id.round;
    let group = Group::start(&backend, 2, group.power_off(1).await).await;
    goes_on(&group, acknowledged, "after a full disk").await;
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_disk_is_full_stays_up_and_goes_on() {
    for backend in [local(), backup(), gossip()] {
        let group = Group::start(&backend, 1, fresh_disks()).await;
        let aggregator = group.epoch().await.unwrap().node;
        let other = group.members.keys().copied().find(|node| *node > aggregator).unwrap_or(NodeId(1));
        group.power_off(0).await;
        fills_up(backend.clone(), aggregator, true).await;
        fills_up(backend, other, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_majority_with_room_is_enough_for_raft() {
    for payload in [Payload::Inline, Payload::Digest] {
        let group = Group::start(&raft(payload), 1, fresh_disks()).await;
        let leader = group.epoch().await.unwrap().node;
        let follower = group.members.keys().copied().find(|node| *node != leader).unwrap();
        assert!(matches!(group.write_next().await, Some(Ok(_))));
        group.disks[&follower].full_from(0);
        let written = group.write_next().await;
        assert!(matches!(written, Some(Ok(_))), "{payload}: {written:?}");
        group.disks[&leader].full_from(0);
        let failed = group.write_next().await;
        assert!(matches!(failed, Some(Err(StoreError::DiskFull { .. }))), "{payload}: {failed:?}");
        let latest = group.members[&leader].latest().await.unwrap().unwrap();
        assert_eq!(latest.id().round, 2, "{payload}: what was acknowledged is served");
        group.disks.values().for_each(Disk::make_room);
        let written = group.write_next().await;
        let Some(Ok(receipt)) = written else { panic!("{payload}: {written:?}") };
        let acknowledged = receipt.id.round;
        let group = Group::start(&raft(payload), 2, group.power_off(1).await).await;
        goes_on(&group, acknowledged, "after full disks").await;
    }
}

/// Puts a file system of `bytes` bytes on `folder` that only this thread, and threads it starts, can see.
fn mount_tmpfs(folder: &std::path::Path, bytes: usize) -> std::io::Result<()> {
    let c = |text: &str| std::ffi::CString::new(text).map_err(std::io::Error::other);
    let ok = |result: libc::c_int| if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
    let (root, tmpfs, folder) = (c("/")?, c("tmpfs")?, c(&folder.display().to_string())?);
    let size = c(&format!("size={bytes}"))?;
    let none = std::ptr::null();
    // SAFETY: system calls on this thread's own view of the file system, with strings that outlive them.
    unsafe {
        ok(libc::unshare(libc::CLONE_NEWNS))?;
        ok(libc::mount(none, root.as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()))?;
        ok(libc::mount(tmpfs.as_ptr(), folder.as_ptr(), tmpfs.as_ptr(), 0, size.as_ptr().cast()))
    }
}

/// A lone aggregator on a file system that has no room left, and then has.
async fn on_a_small_file_system(folder: &std::path::Path) {
    let path = folder.join("node-1.redb");
    let ballast = folder.join("ballast");
    let start = async || {
        let network = ChannelNetwork::new(1, LinkSpec::default(), [NodeId(1)]);
        let storage = Some(Storage::open(&path).unwrap());
        let site = Site { storage, ..Site::new(network.join(NodeId(1)), Arc::new(Silent)) };
        open(local(), site).await.unwrap()
    };
    let store = start().await;
    let epoch = store.await_aggregator().await.unwrap();
    let checkpoint = |round| Checkpoint::new(id(epoch, round), parameters(round, 248_024), Metadata::new());
    store.put(checkpoint(1)).await.unwrap();
    // Whatever is left, to the last page.
    let mut file = std::fs::File::create(&ballast).unwrap();
    while std::io::Write::write(&mut file, &[1; 4096]).is_ok_and(|written| written == 4096) {}
    let mut round = 1;
    let error = loop {
        round += 1;
        match store.put(checkpoint(round)).await {
            Ok(_) => assert!(round < 50, "it never fills up"),
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, StoreError::DiskFull { reason } if reason.contains("node-1.redb")), "{error}");
    assert_eq!(store.latest().await.unwrap().unwrap().id().round, round - 1, "it is served");
    assert!(matches!(store.put(checkpoint(round)).await, Err(StoreError::DiskFull { .. })));
    // Begins an epoch, which is a small fact.
    store.close().await;
    let store = start().await;
    let later = store.await_aggregator().await.unwrap();
    assert!(later > epoch);
    let latest = store.latest().await.unwrap().unwrap();
    assert_eq!((latest.id().round, latest.parameters()), (round - 1, &parameters(round - 1, 248_024)));
    drop(file);
    std::fs::remove_file(&ballast).unwrap();
    let next = Checkpoint::new(id(later, round), parameters(round, 248_024), Metadata::new());
    store.put(next).await.unwrap();
    store.close().await;
}

/// A mount needs root; without it there is nothing to be seen here.
#[test]
fn a_real_disk_that_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let worker = std::thread::spawn({
        let folder = folder.path().to_owned();
        move || {
            if let Err(error) = mount_tmpfs(&folder, 6 * 1024 * 1024) {
                assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
                println!("not root: no file system to fill");
                return;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(on_a_small_file_system(&folder));
        }
    });
    // The file system goes with the thread.
    worker.join().unwrap();
}
