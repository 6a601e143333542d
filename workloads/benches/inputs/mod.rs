//! What the benches of this crate are fed with: sizes and contents that are the same in every run.

#![allow(dead_code, reason = "each bench uses a part")]

use std::fs::File;

use bytes::Bytes;
use replication::{CheckpointId, Epoch, NodeId, Phase};
use tempfile::TempDir;
use workloads::federated::{PIXELS, Source, model};
use workloads::keyvalue::journal::slot_of;
use workloads::keyvalue::message::{Change, Command, Freshness, Origin, Request, SessionId};
use workloads::keyvalue::replica::Replica;

/// Bytes of a value.
const VALUE_BYTES: usize = 128;

/// Entries of a dictionary.
const ENTRIES: u64 = 10_000;

/// Parameters of ten workers.
pub(crate) fn uploads() -> Vec<Vec<f32>> {
    (0..10).map(model::initial).collect()
}

/// The job's parameters, encoded.
pub(crate) fn encoded() -> Bytes {
    model::encode(model::initial(1)).expect("finite")
}

/// A folder with CIFAR-10's files, all zeros: what reading costs does not depend on what is in them.
pub(crate) fn cifar() -> (TempDir, Source) {
    let folder = tempfile::tempdir().expect("a folder");
    let names = (1..=5).map(|number| format!("data_batch_{number}.bin"));
    for name in names.chain(["test_batch.bin".to_owned()]) {
        let file = File::create(folder.path().join(name)).expect("a file");
        file.set_len(10_000 * (1 + PIXELS as u64)).expect("room");
    }
    let source = Source::open(folder.path()).expect("six files");
    (folder, source)
}

/// So many examples, spread over all files.
pub(crate) fn indices(count: u32) -> Vec<u32> {
    (0..count).map(|i| i * 7_919 % 50_000).collect()
}

/// Writes of one session to different keys.
pub(crate) fn writes(count: u64) -> Vec<Request> {
    let write = |serial: u64| {
        let origin = Some(Origin { session: SessionId(1), serial });
        Request::Write(Command::Change { origin, change: set(serial * 7_919 % ENTRIES) })
    };
    (1..=count).map(write).collect()
}

/// Reads of different keys.
pub(crate) fn reads(count: u64) -> Vec<Request> {
    let read = |at: u64| Request::Read { key: key(at * 7_919 % ENTRIES), freshness: Freshness::Index };
    (1..=count).map(read).collect()
}

fn key(number: u64) -> String {
    format!("key-{number:08}")
}

fn set(number: u64) -> Change {
    Change::Set { key: key(number), value: vec![number as u8; VALUE_BYTES].into() }
}

/// A node's copy of a dictionary, in which one session is open.
pub(crate) fn dictionary() -> Replica {
    let mut replica = Replica::default();
    let fill = (0..ENTRIES).map(|number| Command::Change { origin: None, change: set(number) });
    let commands = std::iter::once(Command::OpenSession).chain(fill).collect();
    let (batch, number) = replica.next(commands);
    replica.apply(batch_id(number), 0, &batch);
    replica
}

/// The epoch of all batches.
pub(crate) fn epoch() -> Epoch {
    Epoch { counter: 1, node: NodeId(1) }
}

/// The name of a batch.
fn batch_id(number: u64) -> CheckpointId {
    CheckpointId { epoch: epoch(), round: number, phase: Phase::AggregateFit, slot: slot_of(number) }
}
