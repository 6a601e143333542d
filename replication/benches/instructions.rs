//! Instructions of this crate's hot paths, counted by Callgrind. `scripts/bench-gate` runs them and compares.
//!
//! Nothing here depends on time, threads or chance: the same program counts the same.

#![allow(missing_docs, reason = "gungraun makes public modules of the benches")]

mod inputs;

use std::hint::black_box;

use bytes::Bytes;
use gungraun::{Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use inputs::{CHECKPOINT_BYTES, MAX_BODY_BYTES, id};
use replication::bench::{Neighbourhood, Proposal};
use replication::transport::frame::{self, Decoder, Status};
use replication::transport::{Class, Frame};
use replication::{Checkpoint, Digest, Metadata};

#[library_benchmark]
#[bench::of_248024_b(args = (), setup = inputs::model)]
fn checkpoint_digest(bytes: Bytes) -> Checkpoint {
    black_box(Checkpoint::new(id(1), black_box(bytes), Metadata::new()))
}

#[library_benchmark]
#[bench::of_248024_b(args = (), setup = inputs::holding)]
fn checkpoint_chunks((node, digest): (Neighbourhood, Digest)) -> (Neighbourhood, usize) {
    let served = node.serve(black_box(digest), CHECKPOINT_BYTES as u64);
    (node, black_box(served))
}

#[library_benchmark]
#[bench::head(args = (0), setup = inputs::framed)]
#[bench::body_of_248024_b(args = (CHECKPOINT_BYTES), setup = inputs::framed)]
fn frame_encode(frame: Frame) -> (Frame, Vec<Bytes>) {
    let encoded = frame::encode(Status::Request, Class::Log, black_box(&frame), MAX_BODY_BYTES);
    (frame, black_box(encoded.unwrap_or_default()))
}

#[library_benchmark]
#[bench::head(args = (0), setup = inputs::pieces)]
#[bench::body_of_248024_b(args = (CHECKPOINT_BYTES), setup = inputs::pieces)]
fn frame_decode(pieces: Vec<Bytes>) -> (Vec<Bytes>, Option<Frame>) {
    let mut decoder = Decoder::new(MAX_BODY_BYTES);
    let taken = black_box(&pieces).iter().try_for_each(|piece| decoder.push(piece));
    let frame = taken.and_then(|()| decoder.finish());
    (pieces, black_box(frame.ok().map(|(_, frame)| frame)))
}

#[library_benchmark]
#[bench::inline_248024_b(args = (), setup = inputs::inline)]
#[bench::digests_of_64(args = (), setup = inputs::digests)]
fn raft_proposal_encode(proposal: Proposal) -> (Proposal, Frame) {
    let frame = black_box(&proposal).encode();
    (proposal, black_box(frame))
}

fn sent(proposal: Proposal) -> Frame {
    proposal.encode()
}

#[library_benchmark]
#[bench::inline_248024_b(args = (inputs::inline()), setup = sent)]
#[bench::digests_of_64(args = (inputs::digests()), setup = sent)]
fn raft_proposal_decode(frame: Frame) -> Option<Proposal> {
    black_box(Proposal::decode(black_box(frame)).ok())
}

#[library_benchmark]
#[bench::digests_of_64(args = (), setup = inputs::digests)]
fn raft_log_rows(proposal: Proposal) -> (Proposal, usize) {
    let bytes = black_box(&proposal).row_bytes();
    (proposal, black_box(bytes))
}

#[library_benchmark]
#[bench::nodes_10(args = (10), setup = inputs::neighbourhood)]
#[bench::nodes_100(args = (100), setup = inputs::neighbourhood)]
#[bench::nodes_1000(args = (1_000), setup = inputs::neighbourhood)]
fn gossip_anti_entropy(node: Neighbourhood) -> (Neighbourhood, usize) {
    let missing = black_box(&node).take_note();
    (node, black_box(missing))
}

#[library_benchmark]
#[bench::nodes_10(args = (10), setup = inputs::noted)]
#[bench::nodes_100(args = (100), setup = inputs::noted)]
#[bench::nodes_1000(args = (1_000), setup = inputs::noted)]
fn gossip_fetch_plan(node: Neighbourhood) -> (Neighbourhood, usize) {
    let chunks = black_box(&node).plan();
    (node, black_box(chunks))
}

library_benchmark_group!(
    name = hot,
    benchmarks = [
        checkpoint_digest,
        checkpoint_chunks,
        frame_encode,
        frame_decode,
        raft_proposal_encode,
        raft_proposal_decode,
        raft_log_rows,
        gossip_anti_entropy,
        gossip_fetch_plan,
    ]
);

main!(
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = hot
);
