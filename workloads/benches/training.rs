//! What a worker and an aggregator spend their time on: an SGD step, averaging, reading a shard.

use std::hint::black_box;
use std::io::Write;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use workloads::federated::model::{self, PARAMETERS};
use workloads::federated::{
    Average, BatchOrder, Cancel, EngineKind, Examples, PIXELS, Source, Split, Training, open_engine,
};

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
    let uploads: Vec<_> = (0..10).map(model::initial).collect();
    let mut group = c.benchmark_group("averaging");
    group.throughput(Throughput::Bytes((uploads.len() * PARAMETERS * size_of::<f32>()) as u64));
    group.bench_function("10 uploads", |b| {
        b.iter(|| {
            let mut average = Average::new(PARAMETERS);
            for upload in &uploads {
                let _ = black_box(average.add(upload, 1_000));
            }
            average.finish()
        });
    });
    group.finish();
}

/// A shard of 1,000 records spread over a folder's files.
fn reading(c: &mut Criterion) {
    let folder = match folder() {
        Ok(folder) => folder,
        Err(error) => return eprintln!("reading is left out: {error}"),
    };
    let source = match Source::open(folder.path()) {
        Ok(source) => source,
        Err(error) => return eprintln!("reading is left out: {error}"),
    };
    let indices: Vec<u32> = (0..1_000).map(|i| i * 7_919 % 50_000).collect();
    c.bench_function("reading 1000 records", |b| b.iter(|| source.read(Split::Train, &indices)));
}

/// Files of the right size, all zeros: the time does not depend on what is in them.
fn folder() -> std::io::Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    let names = (1..=5).map(|number| format!("data_batch_{number}.bin"));
    for name in names.chain(["test_batch.bin".to_owned()]) {
        std::fs::File::create(folder.path().join(name))?.write_all(&vec![0; 10_000 * (1 + PIXELS)])?;
    }
    Ok(folder)
}

fn synthetic(examples: u32) -> Examples {
    let indices: Vec<u32> = (0..examples).collect();
    Source::Synthetic { seed: 1 }.read(Split::Train, &indices).unwrap_or_default()
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30);
    targets = sgd_step, averaging, reading
}
criterion_main!(benches);
