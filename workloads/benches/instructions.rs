//! Instructions of this crate's hot paths, counted by Callgrind. `scripts/bench-gate` runs them and compares.
//!
//! Nothing here depends on time, threads or chance: the same program counts the same.

#![allow(missing_docs, reason = "gungraun makes public modules of the benches")]

mod inputs;
mod paths;

use std::hint::black_box;

use bytes::Bytes;
use gungraun::{Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use paths::{answer_reads, replicate_writes, snapshot};
use replication::Checkpoint;
use tempfile::TempDir;
use workloads::federated::{Examples, Source, Split, model};
use workloads::keyvalue::message::Request;
use workloads::keyvalue::replica::Replica;

#[library_benchmark]
#[bench::of_10_uploads(args = (), setup = inputs::uploads)]
fn fedavg(uploads: Vec<Vec<f32>>) -> (Vec<Vec<f32>>, Vec<f32>) {
    let mean = paths::average(black_box(&uploads));
    (uploads, black_box(mean))
}

fn initial() -> Vec<f32> {
    model::initial(1)
}

#[library_benchmark]
#[bench::of_62006(args = (), setup = initial)]
fn parameters_encode(parameters: Vec<f32>) -> Option<Bytes> {
    black_box(model::encode(black_box(parameters)).ok())
}

#[library_benchmark]
#[bench::of_62006(args = (), setup = inputs::encoded)]
fn parameters_decode(bytes: Bytes) -> (Bytes, usize) {
    let decoded = model::decode(black_box(&bytes)).map_or(0, |parameters| black_box(&parameters).len());
    (bytes, decoded)
}

#[library_benchmark]
#[bench::of_256_records(args = (), setup = inputs::cifar)]
fn cifar_decode((folder, source): (TempDir, Source)) -> (TempDir, Option<Examples>) {
    let examples = source.read(Split::Train, &inputs::indices(256));
    (folder, black_box(examples.ok()))
}

fn writing() -> (Replica, Vec<Request>) {
    (inputs::dictionary(), inputs::writes(64))
}

#[library_benchmark]
#[bench::batch_of_64(args = (), setup = writing)]
fn kv_write((mut replica, requests): (Replica, Vec<Request>)) -> (Replica, Vec<Request>, usize) {
    let answered = replicate_writes(&mut replica, black_box(&requests));
    (replica, requests, black_box(answered))
}

fn reading() -> (Replica, Vec<Request>) {
    (inputs::dictionary(), inputs::reads(64))
}

#[library_benchmark]
#[bench::times_64(args = (), setup = reading)]
fn kv_read((replica, requests): (Replica, Vec<Request>)) -> (Replica, Vec<Request>, usize) {
    let found = answer_reads(&replica, black_box(&requests));
    (replica, requests, black_box(found))
}

#[library_benchmark]
#[bench::of_10000_entries(args = (), setup = inputs::dictionary)]
fn kv_snapshot(replica: Replica) -> (Replica, Checkpoint) {
    let snapshot = snapshot(black_box(&replica));
    (replica, black_box(snapshot))
}

library_benchmark_group!(
    name = hot,
    benchmarks =
        [fedavg, parameters_encode, parameters_decode, cifar_decode, kv_write, kv_read, kv_snapshot,]
);

main!(
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = hot
);
