//! The thread that writes: order, shared flushes, the file's name and lock.

use std::sync::mpsc;

use futures_util::FutureExt;
use replication::storage::Batch;
use replication::{Storage, StorageError};

use super::disk::Disk;

const ROWS: &str = "rows";

fn row(number: u64, content: u64) -> Batch {
    let mut batch = Batch::default();
    batch.put(ROWS, number.to_be_bytes().to_vec(), content.to_be_bytes().to_vec());
    batch
}

#[tokio::test]
async fn flushes_end_in_order_and_share_transactions() {
    const FLUSHES: u64 = 2000;
    let disk = Disk::default();
    let storage = Storage::on(disk.clone()).unwrap();
    let before = disk.flushes();
    let (told, order) = mpsc::channel();
    for number in 0..FLUSHES {
        // One row is overwritten every time: the last write counts.
        storage.write(row(number, number));
        storage.write(row(FLUSHES, number));
        let told = told.clone();
        storage.flush_then(move |result| told.send((number, result)).unwrap());
    }
    storage.flush().await.unwrap();
    let order: Vec<_> = order.try_iter().collect();
    let expected: Vec<_> = (0..FLUSHES).map(|number| (number, Ok(()))).collect();
    assert_eq!(order, expected);
    let flushes = disk.flushes() - before;
    assert!(flushes < FLUSHES, "{flushes} flushes of the disk");
    let rows = storage.load(ROWS).unwrap();
    assert_eq!(rows.len() as u64, FLUSHES + 1);
    assert_eq!(rows.last().unwrap().1[..], (FLUSHES - 1).to_be_bytes());
}

#[tokio::test]
async fn nothing_is_written_after_a_write_that_failed() {
    let disk = Disk::default();
    let storage = Storage::on(disk.clone()).unwrap();
    storage.write(row(1, 1));
    storage.flush().await.unwrap();
    disk.cut_power();
    for number in 2..5 {
        storage.write(row(number, number));
        assert!(matches!(storage.flush().await, Err(StorageError::Io { .. })));
    }
    storage.close().await;
    assert!(matches!(storage.flush().await, Err(StorageError::Io { .. })));
    let found = Storage::on(disk.after_power_loss(0)).unwrap().load(ROWS).unwrap();
    assert_eq!(found.len(), 1);
}

#[tokio::test]
async fn whoever_writes_much_waits_for_the_disk() {
    const BATCH_BYTES: usize = 1024 * 1024;
    let disk = Disk::default();
    let storage = Storage::on(disk.clone()).unwrap();
    let mut queued = 0;
    {
        let _stalled = disk.stall();
        while storage.room().now_or_never().is_some() {
            let mut batch = Batch::default();
            batch.put(ROWS, usize::to_be_bytes(queued).to_vec(), vec![1; BATCH_BYTES]);
            storage.write(batch);
            queued += 1;
            assert!(queued <= 64, "{queued} MiB wait");
        }
    }
    storage.room().await;
    storage.flush().await.unwrap();
    assert_eq!(storage.load(ROWS).unwrap().len(), queued);
    storage.close().await;
    assert!(matches!(storage.load(ROWS), Err(StorageError::Closed { .. })));
}

#[tokio::test]
async fn a_file_is_one_stores_at_a_time_and_keeps_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node-1.redb");
    // What an interrupted start leaves.
    std::fs::write(folder.path().join("node-1.redb.new"), b"half a fi").unwrap();
    let storage = Storage::open(&path).unwrap();
    let second = Storage::open(&path).unwrap_err();
    assert!(matches!(&second, StorageError::InUse { file } if file.contains("node-1.redb")), "{second}");
    storage.write(row(1, 1));
    storage.close().await;
    let again = Storage::open(&path).unwrap();
    assert_eq!(again.load(ROWS).unwrap().len(), 1);
    again.close().await;
    let names: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["node-1.redb"]);
    let nowhere = Storage::open(folder.path().join("no").join("folder")).unwrap_err();
    assert!(matches!(nowhere, StorageError::Io { .. }), "{nowhere}");
}
