//! Times of this crate's hot paths, for people; `instructions.rs` counts the same ones.

mod inputs;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use inputs::{CHECKPOINT_BYTES, MAX_BODY_BYTES, id};
use replication::bench::Proposal;
use replication::transport::Class;
use replication::transport::frame::{self, Decoder, Status};
use replication::{Checkpoint, Metadata};

/// Nodes of the clusters that gossip.
const NODES: [u64; 3] = [10, 100, 1_000];

fn checkpoint(c: &mut Criterion) {
    let mut group = c.benchmark_group("checkpoint");
    group.throughput(Throughput::Bytes(CHECKPOINT_BYTES as u64));
    let model = inputs::model();
    group.bench_function("digest", |b| b.iter(|| Checkpoint::new(id(1), model.clone(), Metadata::new())));
    let (node, digest) = inputs::holding();
    group.bench_function("chunks", |b| b.iter(|| node.serve(digest, CHECKPOINT_BYTES as u64)));
    group.finish();
}

fn frames(c: &mut Criterion) {
    for (name, body_bytes) in [("head", 0), ("body_of_248024_b", CHECKPOINT_BYTES)] {
        let mut group = c.benchmark_group("frame");
        let (framed, pieces) = (inputs::framed(body_bytes), inputs::pieces(body_bytes));
        group.throughput(Throughput::Bytes(frame::encoded_len(&framed)));
        group.bench_function(format!("encode/{name}"), |b| {
            b.iter(|| frame::encode(Status::Request, Class::Log, &framed, MAX_BODY_BYTES));
        });
        group.bench_function(format!("decode/{name}"), |b| {
            b.iter(|| {
                let mut decoder = Decoder::new(MAX_BODY_BYTES);
                pieces.iter().try_for_each(|piece| decoder.push(piece))?;
                decoder.finish()
            });
        });
        group.finish();
    }
}

fn proposals(c: &mut Criterion) {
    let mut group = c.benchmark_group("raft_proposal");
    for (name, proposal) in [("inline_248024_b", inputs::inline()), ("digests_of_64", inputs::digests())] {
        let frame = proposal.encode();
        group.bench_function(format!("encode/{name}"), |b| b.iter(|| proposal.encode()));
        group.bench_function(format!("decode/{name}"), |b| b.iter(|| Proposal::decode(frame.clone())));
        group.bench_function(format!("rows/{name}"), |b| b.iter(|| proposal.row_bytes()));
    }
    group.finish();
}

fn gossip(c: &mut Criterion) {
    let mut group = c.benchmark_group("gossip");
    group.sample_size(20);
    for nodes in NODES {
        group.bench_function(BenchmarkId::new("anti_entropy", nodes), |b| {
            b.iter_batched_ref(
                || inputs::neighbourhood(nodes),
                |node| node.take_note(),
                BatchSize::PerIteration,
            );
        });
        let node = inputs::noted(nodes);
        group.bench_function(BenchmarkId::new("fetch_plan", nodes), |b| b.iter(|| node.plan()));
    }
    group.finish();
}

criterion_group!(benches, checkpoint, frames, proposals, gossip);
criterion_main!(benches);
