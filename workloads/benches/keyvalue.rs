//! What an operation of the dictionary costs in processor time, from a client and back, without network and store; the same paths as
//! in `instructions.rs`.

mod inputs;
mod paths;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

fn operations(c: &mut Criterion) {
    let mut group = c.benchmark_group("kv");
    let dictionary = inputs::dictionary();
    for count in [1, 64, 1_024] {
        group.throughput(Throughput::Elements(count));
        let writes = inputs::writes(count);
        group.bench_function(format!("write, batch of {count}"), |b| {
            b.iter_batched_ref(
                || dictionary.clone(),
                |replica| paths::replicate_writes(replica, &writes),
                BatchSize::PerIteration,
            );
        });
    }
    let reads = inputs::reads(64);
    group.throughput(Throughput::Elements(64));
    group.bench_function("read", |b| b.iter(|| paths::answer_reads(&dictionary, &reads)));
    group.bench_function("snapshot of 10000 entries", |b| b.iter(|| paths::snapshot(&dictionary)));
    group.finish();
}

criterion_group!(benches, operations);
criterion_main!(benches);
