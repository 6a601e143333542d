//! What is found on disk: rows of a node's storage, and images.

use std::fs::{self, File};
use std::io::{Cursor, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use redb::backends::InMemoryBackend;
use replication::storage::Batch;
use replication::{Digest, NodeId, Storage, Survivor};
use workloads::federated::{self, PIECE_FILE, Source, Split};

use super::{block_on, scratch, selected};

/// Tables of a node's storage, by their place in this list. Those of bytes come last: their keys are put right.
const TABLES: [&str; 7] =
    ["raft_state", "raft_log", "raft_ledger", "raft_applied", "ledger", "facts", "blobs"];

/// Rows of a node's storage: which table, the lengths of key and value, and these.
pub(crate) fn storage(mut bytes: &[u8]) -> bool {
    let mut batch = Batch::default();
    let mut rows = 0;
    while let Some((&[table, key, low, high], rest)) = bytes.split_first_chunk() {
        let Some((key, rest)) = rest.split_at_checked(usize::from(key)) else { return false };
        let value = usize::from(u16::from_le_bytes([low, high]));
        let Some((value, rest)) = rest.split_at_checked(value) else { return false };
        let Some(table) = TABLES.get(usize::from(table)) else { return false };
        let value = Bytes::copy_from_slice(value);
        let key = if *table == "blobs" {
            Storage::encode(&Digest::of(&value))
        } else {
            Bytes::copy_from_slice(key)
        };
        batch.put(table, key, value);
        (bytes, rows) = (rest, rows + 1);
    }
    rows > 0 && block_on(survives(batch))
}

/// Reads the rows, begins a new cluster with them, and reads that.
async fn survives(rows: Batch) -> bool {
    let empty = || Storage::inline_on(InMemoryBackend::new()).expect("a storage in memory");
    let storage = empty();
    storage.write(rows);
    storage.flush().await.expect("memory takes everything");
    let Ok(Some(survivor)) = Survivor::read(&storage).await else { return false };
    let next = empty();
    survivor.seed(&next, NodeId(2)).await.expect("a new storage takes what was read");
    let read = Survivor::read(&next).await.expect("what was written is read");
    if let Some(newest) = survivor.newest() {
        let read = read.expect("something was written");
        assert_eq!(read.newest(), Some(newest));
        assert!(read.lacking().is_empty());
    }
    true
}

/// An archive as it is (0) or what is in it (1), the note beside the images of one node (2), or the first records of a
/// folder (3).
pub(crate) fn cifar(bytes: &[u8]) -> bool {
    let Some((selector, rest)) = selected(bytes) else { return false };
    match selector {
        0 => archive(rest),
        1 => {
            let mut packed = GzEncoder::new(Vec::new(), Compression::none());
            packed.write_all(rest).expect("memory takes everything");
            archive(&packed.finish().expect("memory takes everything"))
        }
        2 => {
            let folder = folder();
            fs::write(folder.join(PIECE_FILE), rest).expect("a file");
            let source = Source::open(&folder).expect("a complete folder");
            source.piece().is_ok_and(|piece| piece.is_some_and(|piece| source.check_piece(piece).is_ok()))
        }
        3 => {
            let folder = folder();
            let test = File::options().write(true).open(folder.join("test_batch.bin")).expect("a file");
            let records = &rest[..rest.len().min(2 * RECORD_BYTES)];
            test.write_all_at(&[0; 2 * RECORD_BYTES], 0).expect("a file");
            test.write_all_at(records, 0).expect("a file");
            let source = Source::open(&folder).expect("a complete folder");
            let examples = source.read(Split::Test, &[1, 0, 9_999]);
            let mut expected = records.to_vec();
            expected.resize(2 * RECORD_BYTES, 0);
            let labels = [expected[RECORD_BYTES], expected[0], 0];
            let Ok(examples) = examples else {
                assert!(labels.iter().any(|label| *label > 9), "{labels:?} are classes");
                return false;
            };
            assert_eq!(examples.labels(), labels);
            assert_eq!(examples.pixels()[..RECORD_BYTES - 1], expected[RECORD_BYTES + 1..]);
            true
        }
        _ => false,
    }
}

/// A label and an image.
const RECORD_BYTES: usize = 1 + 3 * 32 * 32;

/// A folder with all images of CIFAR-10, black; its files take no room.
fn folder() -> PathBuf {
    let folder = scratch("cifar");
    if !folder.join("test_batch.bin").exists() {
        for name in
            ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
        {
            let file = File::create(folder.join(name).with_extension("bin")).expect("a file");
            file.set_len(10_000 * RECORD_BYTES as u64).expect("a file");
        }
    }
    folder
}

/// What reads images out of an archive, and what unpacks one.
fn archive(bytes: &[u8]) -> bool {
    let folder = scratch("archive");
    let (file, unpacked) = (folder.join("cifar.tar.gz"), folder.join("unpacked"));
    fs::write(&file, bytes).expect("a file");
    let status = federated::status(&file);
    if let Ok(source) = Source::open(&file) {
        let _ = source.piece();
        let read = source.read(Split::Test, &[0]);
        assert!(read.is_err() || status.is_ok_and(|status| status.files[5].is_complete()));
    }
    let _ = fs::remove_dir_all(&unpacked);
    fs::create_dir(&unpacked).expect("a folder");
    let taken = harness::data::unpack(Cursor::new(bytes), &unpacked).is_ok();
    for entry in fs::read_dir(&unpacked).expect("a folder") {
        let kind = entry.expect("an entry").file_type().expect("a type");
        assert!(kind.is_file(), "only files are unpacked");
    }
    assert_eq!(fs::read_dir(&folder).expect("a folder").count(), 2, "nothing is unpacked elsewhere");
    taken
}
