//! What a node learns of while it works and could not be asked for later: how long operations took, and when the newest checkpoint
//! came.
//!
//! Kept only where metrics are shown. A histogram costs a lock that nobody else holds for longer than it takes to copy a few
//! numbers; everything else is read when somebody asks ([`collect`](super::collect)).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use replication::{CheckpointId, Observer, Slot, StoreEvent};
use std::sync::atomic::AtomicU64;
use workloads::federated::Event;
use workloads::keyvalue::meter::{Meter, Operation};

/// Upper bounds of the buckets, in seconds: a batch on loopback takes half a millisecond, a round of training minutes.
const BUCKETS_S: [f64; 19] = [
    0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0,
    16.0, 60.0, 240.0,
];

/// Which operation a figure is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    operation: &'static str,
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS_S)
}

/// What happened on a node so far.
#[derive(Debug)]
pub struct Observed {
    took: Family<Of, Histogram, fn() -> Histogram>,
    last_took: Family<Of, Gauge<f64, AtomicU64>>,
    failed: Family<Of, Counter>,
    rounds: Counter,
    suspicions: Counter,
    changes: Counter,
    last: Mutex<Last>,
}

/// The newest of what only the last one counts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Last {
    /// The newest round that this node has begun, or trained in.
    pub round: u64,
    /// When this node learned of the newest acknowledged checkpoint of the job's state.
    pub checkpoint: Option<(CheckpointId, Instant)>,
    /// Nodes known to hold the checkpoint that this node put last.
    pub holders: Option<usize>,
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            took: Family::new_with_constructor(histogram),
            last_took: Family::default(),
            failed: Family::default(),
            rounds: Counter::default(),
            suspicions: Counter::default(),
            changes: Counter::default(),
            last: Mutex::default(),
        }
    }
}

impl Observed {
    /// Shows it in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "operation_seconds",
            "Time that operations took that were done: put (a checkpoint or batch, on the node that aggregates), fit (training), \
             round, and what clients asked of this node: read, write, vote",
            self.took.clone(),
        );
        registry.register(
            "operation_last_seconds",
            "Time that the last operation took that was done",
            self.last_took.clone(),
        );
        registry.register("operations_failed", "Operations that were not done", self.failed.clone());
        registry.register("rounds", "Rounds that this node finished as aggregator", self.rounds.clone());
        registry.register(
            "suspicions",
            "Times that this node held the aggregator for dead",
            self.suspicions.clone(),
        );
        registry.register(
            "aggregator_changes",
            "Times that this node learned of another aggregator, or of none",
            self.changes.clone(),
        );
    }

    /// The newest of what only the last one counts.
    pub fn last(&self) -> Last {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn done(&self, operation: &'static str, took: Duration) {
        let (of, seconds) = (Of { operation }, took.as_secs_f64());
        self.took.get_or_create(&of).observe(seconds);
        self.last_took.get_or_create(&of).set(seconds);
    }

    fn failed(&self, operation: &'static str) {
        self.failed.get_or_create(&Of { operation }).inc();
    }

    fn acknowledged(&self, id: CheckpointId) {
        let mut last = self.lock();
        let newer = last.checkpoint.is_none_or(|(known, _)| known < id);
        if newer && !matches!(id.slot, Slot::Worker { .. }) {
            last.checkpoint = Some((id, Instant::now()));
        }
    }

    fn round(&self, round: u64) {
        let mut last = self.lock();
        last.round = last.round.max(round);
    }

    /// Takes note of an event of the federated job.
    pub fn federated(&self, event: &Event) {
        match event {
            Event::RoundStarted { round, .. } | Event::FitStarted { round, .. } => self.round(*round),
            Event::FitFinished { train_ns, .. } => self.done("fit", Duration::from_nanos(*train_ns)),
            Event::RoundFinished { round, round_ns, .. } => {
                self.round(*round);
                self.rounds.inc();
                self.done("round", Duration::from_nanos(*round_ns));
            }
            Event::CheckpointPut { id, put_ns, holders, .. } => {
                self.done("put", Duration::from_nanos(*put_ns));
                self.acknowledged(*id);
                if !matches!(id.slot, Slot::Worker { .. }) {
                    self.lock().holders = Some(holders.len());
                }
            }
            Event::CheckpointFailed { .. } => self.failed("put"),
            _ => {}
        }
    }
}

impl Observer for Observed {
    fn observe(&self, event: StoreEvent) {
        match event {
            StoreEvent::Applied { id, .. } => self.acknowledged(id),
            StoreEvent::Suspected { .. } => drop(self.suspicions.inc()),
            StoreEvent::AggregatorChanged { .. } => drop(self.changes.inc()),
            _ => {}
        }
    }
}

impl Meter for Observed {
    fn measured(&self, operation: Operation, took: Duration, done: bool) {
        let name = match operation {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Vote => "vote",
            Operation::Put { .. } => "put",
        };
        if !done {
            return self.failed(name);
        }
        self.done(name, took);
        if let Operation::Put { holders } = operation {
            self.lock().holders = Some(holders);
        }
    }
}
