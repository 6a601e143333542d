//! Instructions of this crate's hot paths, counted by Callgrind. `scripts/bench-gate` runs them and compares.
//!
//! Nothing here depends on time, threads or chance: the same program counts the same.

#![allow(missing_docs, reason = "gungraun makes public modules of the benches")]

mod inputs;

use std::hint::black_box;

use gungraun::{Callgrind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use harness::capture::Tally;
use harness::stats::histogram;

fn capture() -> (Tally, Vec<Vec<u8>>) {
    (inputs::tally(), inputs::packets(10_000))
}

#[library_benchmark]
#[bench::of_10000_packets(args = (), setup = capture)]
fn capture_tally((mut tally, packets): (Tally, Vec<Vec<u8>>)) -> (Tally, Vec<Vec<u8>>) {
    for packet in black_box(&packets) {
        tally.packet(packet, inputs::PACKET_BYTES);
    }
    (tally, packets)
}

#[library_benchmark]
#[bench::of_10000_samples(args = (10_000), setup = inputs::samples_ns)]
fn histogram_record(samples_ns: Vec<u64>) -> (Vec<u64>, u64) {
    let recorded = histogram::of(black_box(&samples_ns)).map_or(0, |histogram| black_box(histogram).len());
    (samples_ns, recorded)
}

library_benchmark_group!(name = hot, benchmarks = [capture_tally, histogram_record]);

main!(
    config = LibraryBenchmarkConfig::default().tool(Callgrind::with_args(["--cache-sim=no"])),
    library_benchmark_groups = hot
);
