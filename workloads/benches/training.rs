//! What a worker and an aggregator spend their time on: an SGD step, averaging, encoding parameters, reading a shard.
//!
//! At the end averaging is measured in turn with a plain pass over the same memory, and the ratio of their medians printed:
//! compare that, since only they saw the same machine.

mod inputs;
mod paths;

use std::hint::black_box;
use std::time::Instant;

use criterion::{BatchSize, Criterion, Throughput, criterion_group};
use workloads::federated::model::{self, ENCODED_BYTES};
use workloads::federated::{
    BatchOrder, Cancel, EngineKind, Examples, PIXELS, Source, Split, Training, open_engine,
};

const INTERLEAVED_SAMPLES: usize = 200;

/// One step per call of `fit`: a shard of exactly one batch.
fn sgd_step(c: &mut Criterion) {
    let training = Training { local_epochs: 1, batch_size: 32, lr: 0.001, momentum: 0.9 };
    let examples = synthetic(32);
    let order = BatchOrder::new(1, 1, 1, 32, &training);
    let parameters = model::initial(1);
    for (name, kind) in [("candle", EngineKind::Candle), ("torch", EngineKind::Torch)] {
        let Ok(mut engine) = open_engine(kind) else { continue };
        c.bench_function(&format!("sgd step of batch 32, {name}"), |b| {
            b.iter(|| engine.fit(&parameters, &examples, &order, training, &Cancel::new()));
        });
    }
}

fn averaging(c: &mut Criterion) {
    let uploads = inputs::uploads();
    let mut group = c.benchmark_group("averaging");
    group.throughput(Throughput::Bytes((uploads.len() * ENCODED_BYTES) as u64));
    group.bench_function("10 uploads", |b| b.iter(|| paths::average(&uploads)));
    group.bench_function("memory floor", |b| b.iter(|| floor(&uploads)));
    group.finish();
}

/// A pass over the memory that averaging needs, with the least arithmetic: every upload is read, every 64-bit sum is read and
/// written with each, and the mean is written.
fn floor(uploads: &[Vec<f32>]) -> Vec<f32> {
    let mut sums = vec![0_i64; model::PARAMETERS];
    for upload in uploads {
        for (sum, parameter) in sums.iter_mut().zip(black_box(upload)) {
            *sum += i64::from(parameter.to_bits());
        }
    }
    sums.into_iter().map(|sum| sum as i32 as f32).collect()
}

fn parameters(c: &mut Criterion) {
    let mut group = c.benchmark_group("parameters");
    group.throughput(Throughput::Bytes(ENCODED_BYTES as u64));
    let encoded = inputs::encoded();
    group.bench_function("encode", |b| {
        b.iter_batched(|| model::initial(1), model::encode, BatchSize::LargeInput);
    });
    group.bench_function("decode", |b| b.iter(|| model::decode(black_box(&encoded)).map(|x| x.len())));
    group.finish();
}

/// A shard of 1,000 records spread over a folder's files.
fn reading(c: &mut Criterion) {
    let (_folder, source) = inputs::cifar();
    let indices = inputs::indices(1_000);
    let mut group = c.benchmark_group("CIFAR-10");
    group.throughput(Throughput::Bytes((indices.len() * PIXELS) as u64));
    group.bench_function("reading 1000 records", |b| b.iter(|| source.read(Split::Train, &indices)));
    group.finish();
}

fn synthetic(examples: u32) -> Examples {
    let indices: Vec<u32> = (0..examples).collect();
    Source::Synthetic { seed: 1 }.read(Split::Train, &indices).unwrap_or_default()
}

fn interleaved() {
    let uploads = inputs::uploads();
    let time = |work: &dyn Fn() -> Vec<f32>| {
        let begun = Instant::now();
        black_box(work());
        begun.elapsed().as_nanos()
    };
    let mut samples = [Vec::new(), Vec::new()];
    for _ in 0..INTERLEAVED_SAMPLES {
        samples[0].push(time(&|| floor(&uploads)));
        samples[1].push(time(&|| paths::average(&uploads)));
    }
    let [floor, average] = samples.map(|mut samples| {
        samples.sort_unstable();
        samples[samples.len() / 2] as f64 / 1_000.0
    });
    println!("interleaved medians of {INTERLEAVED_SAMPLES}: FedAvg of 10 uploads {average:.1} us");
    println!("  a pass over the same memory {floor:.1} us: {:.2} times", average / floor);
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30);
    targets = sgd_step, averaging, parameters, reading
}

fn main() {
    benches();
    Criterion::default().configure_from_args().final_summary();
    interleaved();
}
