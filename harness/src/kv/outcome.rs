//! The end of a key-value run: what clients saw is checked, counted and written down, whoever served them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use replication::{NodeId, Payload};
use workloads::keyvalue::Freshness;
use workloads::keyvalue::history::{Ended, Kind, Operation, Stage};

use super::leaderboard::Tally;
use super::plan::KvPlan;
use super::record::{Checks, ClientRow, Figures, OPERATION_COLUMNS, Summary, per_second, weight_bytes};
use crate::record::{Manifest, Outcome, Recorder};
use crate::run::Stop;
use crate::stats::histogram;

/// Why a run is over before its end.
pub(super) enum Early {
    /// It cannot go on.
    Failed(String),
    /// Its user ended it.
    Stopped(Stop),
}

/// What clients saw.
#[derive(Default)]
pub(super) struct Seen {
    /// Every operation.
    pub(super) history: Vec<Operation>,
    /// Nodes that never had the same entries as the first.
    pub(super) differing: Vec<NodeId>,
    /// What a leaderboard's votes came to, if it was one.
    pub(super) tally: Option<Tally>,
}

/// How a run went.
pub(super) struct Conclusion<'a> {
    pub(super) kv: &'a KvPlan,
    /// The backend, or who served in its place.
    pub(super) backend: String,
    /// The program that served, with its version.
    pub(super) server: String,
    pub(super) payload: Option<Payload>,
    pub(super) nodes: usize,
    pub(super) seen: Seen,
    pub(super) early: Option<Early>,
    /// Nodes that ended without a disturbance, and why.
    pub(super) ended: &'a BTreeMap<NodeId, String>,
    /// The begin of the load, if there was one.
    pub(super) begin_ns: Option<u64>,
    pub(super) epochs: usize,
    pub(super) disturbances: u64,
}

impl Conclusion<'_> {
    /// Checks, counts, and writes everything.
    ///
    /// # Errors
    /// If something cannot be written.
    pub(super) fn write(mut self, recorder: &Recorder, manifest: &mut Manifest) -> anyhow::Result<Summary> {
        let checks = self.check();
        let early = self.early.take();
        let (outcome, message) = self.outcome(early, checks.as_ref());
        let exit = match outcome {
            Outcome::Completed => 0,
            Outcome::Interrupted => 130,
            Outcome::Terminated => 143,
            _ => 1,
        };
        manifest.ended(outcome, message, exit);
        let figures = Figures::of(&self.seen.history, self.begin_ns.unwrap_or(0));
        let summary = self.summary(&figures, checks, recorder, manifest);
        recorder.table("operations.csv", OPERATION_COLUMNS, &self.seen.history)?;
        recorder.table("clients.csv", ClientRow::COLUMNS, &figures.clients)?;
        self.histograms(recorder, manifest, figures.load_ns)?;
        recorder.whole("summary.json", &summary)?;
        recorder.manifest(manifest)?;
        Ok(summary)
    }

    fn check(&self) -> Option<Checks> {
        let Seen { history, differing, tally } = &self.seen;
        if let Some(Tally { failure, .. }) = tally {
            return Some(Checks { failure: failure.clone(), ..Checks::default() });
        }
        let linear = self.kv.load.freshness != Freshness::Local;
        (!history.is_empty()).then(|| {
            let mut checks = Checks::of(history, linear, self.kv.staleness_ns);
            if !differing.is_empty() && checks.failure.is_none() {
                let nodes: Vec<String> = differing.iter().map(ToString::to_string).collect();
                checks.failure =
                    Some(format!("nodes {} never had the same entries as the others", nodes.join(", ")));
            }
            checks
        })
    }

    fn outcome(&self, early: Option<Early>, checks: Option<&Checks>) -> (Outcome, String) {
        match early {
            Some(Early::Failed(reason)) => (Outcome::Failed, reason),
            Some(Early::Stopped(Stop::Interrupt)) => (Outcome::Interrupted, "ended by SIGINT".into()),
            Some(Early::Stopped(Stop::Terminate)) => (Outcome::Terminated, "ended by SIGTERM".into()),
            None => match (checks.and_then(|checks| checks.failure.clone()), self.ended.iter().next()) {
                (Some(failure), _) => (Outcome::Failed, failure),
                (None, Some((node, how))) => (Outcome::Failed, format!("node {node} ended: {how}")),
                (None, None) if self.seen.history.iter().any(|operation| operation.ended == Ended::Ok) => {
                    (Outcome::Completed, "completed".into())
                }
                (None, None) if self.kv.load.clients == 0 => (Outcome::Completed, "served".into()),
                (None, None) => (Outcome::Failed, "no operation was acknowledged".into()),
            },
        }
    }

    /// Latencies of acknowledged operations of the load, from when they were due.
    fn histograms(&self, recorder: &Recorder, manifest: &Manifest, load_ns: u64) -> anyhow::Result<()> {
        let done = |wanted: &dyn Fn(Kind) -> bool| -> Vec<u64> {
            let load = self.seen.history.iter().filter(|operation| {
                operation.stage == Stage::Load && operation.ended == Ended::Ok && wanted(operation.kind)
            });
            load.map(Operation::latency_ns).collect()
        };
        let samples = [
            ("latency", done(&|_| true)),
            ("read_latency", done(&|kind| kind == Kind::Get)),
            ("write_latency", done(&|kind| kind != Kind::Get)),
        ];
        let samples: Vec<_> = samples.into_iter().filter(|(_, samples)| !samples.is_empty()).collect();
        let Some(begin_ns) = self.begin_ns.filter(|_| !samples.is_empty()) else { return Ok(()) };
        let since = Duration::from_nanos(manifest.ended_ns.unwrap_or(begin_ns).saturating_sub(begin_ns));
        let span = (SystemTime::now() - since, Duration::from_nanos(load_ns));
        histogram::write(recorder.dir(), "latency", "the operations, as in summary.json", &samples, span)
    }

    fn summary(
        &self,
        figures: &Figures,
        checks: Option<Checks>,
        recorder: &Recorder,
        manifest: &Manifest,
    ) -> Summary {
        let load = &self.kv.load;
        let tally = self.seen.tally.clone().unwrap_or_default();
        Summary {
            outcome: manifest.outcome,
            message: manifest.message.clone(),
            exit_code: manifest.exit_code.unwrap_or(1),
            valid: manifest.outcome == Outcome::Completed,
            results: recorder.dir().to_owned(),
            workload: self.kv.workload().into(),
            backend: self.backend.clone(),
            server: self.server.clone(),
            payload: self.payload,
            seed: manifest.seed,
            nodes: self.nodes as u64,
            clients: load.clients.into(),
            entries: load.entries.into(),
            value_bytes: load.value_bytes.into(),
            weight_bytes: weight_bytes(load),
            load_ns: figures.load_ns,
            operations: figures.operations,
            failed: figures.failed,
            unknown: figures.unknown,
            attempts: figures.attempts,
            requests_per_s: per_second(figures.latency.count, figures.load_ns),
            writes_per_s: per_second(figures.write_latency.count, figures.load_ns),
            client_mean_ns: figures.client_mean_ns,
            client_sd_ns: figures.client_sd_ns,
            latency: figures.latency,
            read_latency: figures.read_latency,
            write_latency: figures.write_latency,
            longest_gap_ns: figures.longest_gap_ns,
            availability: figures.availability,
            balancer: tally.balancer,
            votes_repeated: tally.repeated,
            votes_settled: tally.settled,
            epochs: self.epochs as u64,
            disturbances: self.disturbances,
            checks,
            repeat: manifest.repeat.clone(),
        }
    }
}
