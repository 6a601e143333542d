//! Files that were cut short or changed: an error that says so, or the right rows, never wrong ones.

use bytes::Bytes;
use proptest::prelude::*;
use replication::conformance::parameters;
use replication::storage::Batch;
use replication::{CheckpointStoreExt, ConfigError, Payload, Storage, StorageError};

use super::disk::Disk;
use super::restart::{Member, bytes, put};

const ROWS: &str = "rows";

fn rows() -> Vec<(Bytes, Bytes)> {
    (0..40_u64)
        .map(|row| (row.to_be_bytes().to_vec().into(), parameters(row, if row % 7 == 0 { 9000 } else { 60 })))
        .collect()
}

/// The content of a file that was closed in order.
fn file() -> Vec<u8> {
    let disk = Disk::default();
    let storage = Storage::inline_on(disk.clone()).unwrap();
    for (key, value) in rows() {
        let mut batch = Batch::default();
        batch.put(ROWS, key, value);
        storage.write(batch);
        storage.flush_then(|result| result.unwrap());
    }
    drop(storage);
    disk.content()
}

fn opens_right_or_not_at_all(content: Vec<u8>) -> Result<(), TestCaseError> {
    match Storage::inline_on(Disk::holding(content)).and_then(|storage| storage.load(ROWS)) {
        Ok(found) => prop_assert_eq!(found, rows()),
        Err(StorageError::Damaged { .. } | StorageError::OtherFormat { .. }) => {}
        Err(other) => prop_assert!(false, "{other}"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bits_are_found(flips in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..8), 1..4)) {
        let mut content = file();
        for (at, bit) in flips {
            let at = at.index(content.len());
            content[at] ^= 1 << bit;
        }
        opens_right_or_not_at_all(content)?;
    }

    #[test]
    fn flipped_bits_of_the_header_are_found(at in 0_usize..512, bit in 0_u8..8) {
        let mut content = file();
        content[at] ^= 1 << bit;
        opens_right_or_not_at_all(content)?;
    }

    #[test]
    fn files_cut_short_are_found(length in any::<prop::sample::Index>()) {
        let mut content = file();
        // An empty file on a medium without names is a new one; Storage::open makes that difference.
        content.truncate(1 + length.index(content.len() - 1));
        opens_right_or_not_at_all(content)?;
    }
}

#[test]
fn an_empty_file_is_not_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    for content in [&b""[..], b"not a database", &[0; 5000]] {
        let path = folder.path().join("node.redb");
        std::fs::write(&path, content).unwrap();
        let error = Storage::open(&path).unwrap_err();
        assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("node.redb") && error.to_string().contains("new id"), "{error}");
    }
}

#[test]
fn another_format_is_named() {
    let disk = Disk::default();
    let storage = Storage::inline_on(disk.clone()).unwrap();
    let mut batch = Batch::default();
    batch.put("meta", &b"format"[..], vec![9, 0, 0, 0]);
    storage.write(batch);
    drop(storage);
    let error = Storage::inline_on(disk).unwrap_err();
    assert!(matches!(error, StorageError::OtherFormat { expected: 1, .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn bytes_that_changed_under_a_valid_checksum_are_not_served() {
    for payload in [Payload::Inline, Payload::Digest] {
        let disk = Disk::default();
        let member = Member::start_alone(payload, disk.clone()).await.unwrap();
        let epoch = member.store.await_aggregator().await.unwrap();
        put(&member, epoch, 1).await.unwrap();
        replication::CheckpointStore::close(&*member.store).await;
        let storage = Storage::inline_on(disk.clone()).unwrap();
        let (key, mut value) = storage
            .load("blobs")
            .unwrap()
            .into_iter()
            .map(|(key, value)| (key, value.to_vec()))
            .next()
            .unwrap();
        assert_eq!(value, bytes(1));
        value[100] ^= 1;
        let mut batch = Batch::default();
        batch.put("blobs", key, value);
        storage.write(batch);
        drop(storage);
        let error = Member::start_alone(payload, disk).await.err().expect("refused");
        assert!(
            matches!(&error, ConfigError::Storage(StorageError::Damaged { reason, .. }) if reason.contains("digest")),
            "{error}"
        );
    }
}
