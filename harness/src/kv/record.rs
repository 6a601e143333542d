//! What a key-value run leaves behind, as rows and figures: operations.csv, clients.csv, summary.json; and the summary in words.

use std::fmt;
use std::path::PathBuf;

use replication::Payload;
use serde::{Deserialize, Serialize};
use workloads::keyvalue::check::{Staleness, Verdict, linearizable, staleness};
use workloads::keyvalue::history::{Ended, Kind, Operation, Stage, key};
use workloads::keyvalue::load::Load;

use crate::record::Outcome;
use crate::stats::availability::{Asked, Availability, LEAST_OUTAGE_NS, gaps};
use crate::units::{show_bytes, show_ns};

/// Percentiles of latencies from when operations were due.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Samples.
    pub count: u64,
    /// Mean.
    pub mean_ns: u64,
    /// Half are below.
    pub p50_ns: u64,
    /// 90 of 100 are below.
    pub p90_ns: u64,
    /// 99 of 100 are below.
    pub p99_ns: u64,
    /// 999 of 1000 are below.
    pub p999_ns: u64,
    /// The largest.
    pub max_ns: u64,
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [mean, p50, p99, p999, max] =
            [self.mean_ns, self.p50_ns, self.p99_ns, self.p999_ns, self.max_ns].map(show_ns);
        write!(f, "mean {mean}, p50 {p50}, p99 {p99}, p99.9 {p999}, max {max}")
    }
}

impl Latency {
    /// Of these samples, exact.
    #[must_use]
    pub fn of(samples: impl IntoIterator<Item = u64>) -> Self {
        let mut samples: Vec<u64> = samples.into_iter().collect();
        samples.sort_unstable();
        let Some(max_ns) = samples.last().copied() else { return Self::default() };
        let at = |milli: usize| samples[(samples.len() * milli).div_ceil(1000).saturating_sub(1)];
        let sum: u128 = samples.iter().map(|sample| u128::from(*sample)).sum();
        Self {
            count: samples.len() as u64,
            mean_ns: (sum / samples.len() as u128) as u64,
            p50_ns: at(500),
            p90_ns: at(900),
            p99_ns: at(990),
            p999_ns: at(999),
            max_ns,
        }
    }
}

/// A row of clients.csv.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClientRow {
    client: u32,
    operations: u64,
    failed: u64,
    unknown: u64,
    attempts: u64,
    mean_ns: u64,
    p50_ns: u64,
    p99_ns: u64,
    max_ns: u64,
}

impl ClientRow {
    /// The header.
    pub const COLUMNS: [&'static str; 9] =
        ["client", "operations", "failed", "unknown", "attempts", "mean_ns", "p50_ns", "p99_ns", "max_ns"];
}

/// The header of operations.csv.
pub const OPERATION_COLUMNS: [&str; 11] = [
    "stage",
    "client",
    "key",
    "kind",
    "value",
    "intended_ns",
    "start_ns",
    "end_ns",
    "ended",
    "node",
    "attempts",
];

/// What checks found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checks {
    /// Whether reads were to be linearizable; otherwise staleness is bounded.
    pub linear: bool,
    /// What was wrong; none: nothing.
    pub failure: Option<String>,
    /// Whether the search for an order was given up.
    pub undecided: bool,
    /// Reads that returned what had been replaced.
    pub stale_reads: u64,
    /// The largest age of what they returned.
    pub staleness_most_ns: u64,
}

impl Checks {
    /// Checks a history that shall be linearizable, or no staler than `bound_ns`.
    #[must_use]
    pub fn of(history: &[Operation], linear: bool, bound_ns: u64) -> Self {
        let Staleness { stale, most_ns, made_up, .. } = staleness(history);
        let mut undecided = false;
        let failure = if made_up > 0 {
            Some(format!("{made_up} reads returned a value that nobody wrote"))
        } else if linear {
            match linearizable(history) {
                Verdict::Linearizable => None,
                Verdict::Undecided { key: number } => {
                    undecided = true;
                    Some(format!("whether the history is linearizable was not decided for {}", key(number)))
                }
                Verdict::Violation { key: number, operation } => Some(format!(
                    "the history is not linearizable: no order explains the {:?} of {} by client {} at {} ns",
                    operation.kind,
                    key(number),
                    operation.client,
                    operation.start_ns
                )),
            }
        } else if most_ns > bound_ns {
            let (most, bound) = (show_ns(most_ns), show_ns(bound_ns));
            Some(format!("a read was stale by {most}; --staleness allows {bound}"))
        } else {
            None
        };
        Self { linear, failure, undecided, stale_reads: stale, staleness_most_ns: most_ns }
    }
}

/// A key-value run in a few numbers, all raw.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How it ended.
    pub outcome: Outcome,
    /// The same in a sentence.
    pub message: String,
    /// Exit code of the controller.
    pub exit_code: u8,
    /// Whether its figures may be used: every check passed.
    pub valid: bool,
    /// The results folder.
    pub results: PathBuf,
    /// `kv` or `leaderboard`.
    pub workload: String,
    /// The backend, or who served in its place.
    pub backend: String,
    /// The program that served, with its version.
    pub server: String,
    /// How bytes travelled; none where another system served.
    pub payload: Option<Payload>,
    /// The seed.
    pub seed: u64,
    /// Nodes that served.
    pub nodes: u64,
    /// Clients.
    pub clients: u64,
    /// Entries of the dictionary.
    pub entries: u64,
    /// Bytes of a value.
    pub value_bytes: u64,
    /// Bytes of all keys and values of a full dictionary.
    pub weight_bytes: u64,
    /// From the begin of the load to the end of its last operation.
    pub load_ns: u64,
    /// Operations of the load.
    pub operations: u64,
    /// Those that certainly did not happen.
    pub failed: u64,
    /// Those whose outcome is unknown.
    pub unknown: u64,
    /// Requests sent for them.
    pub attempts: u64,
    /// Acknowledged operations per second, all clients together, rounded down.
    pub requests_per_s: u64,
    /// Acknowledged writes per second, rounded down.
    pub writes_per_s: u64,
    /// Mean over clients of their mean latencies.
    pub client_mean_ns: u64,
    /// Standard deviation of clients' mean latencies.
    pub client_sd_ns: u64,
    /// Latency of acknowledged operations.
    pub latency: Latency,
    /// Of reads.
    pub read_latency: Latency,
    /// Of writes.
    pub write_latency: Latency,
    /// The longest time in which operations were due and none was acknowledged.
    pub longest_gap_ns: u64,
    /// How available the service was to its clients.
    pub availability: Availability,
    /// What stood in front of a leaderboard's nodes; empty: nothing.
    pub balancer: String,
    /// Votes that were sent again after they were acknowledged.
    pub votes_repeated: u64,
    /// Votes of unknown outcome that were acknowledged when they were sent again after the load.
    pub votes_settled: u64,
    /// Aggregators that were seen.
    pub epochs: u64,
    /// Disturbances that struck.
    pub disturbances: u64,
    /// What checks found.
    pub checks: Option<Checks>,
    /// The command that repeats the trial.
    pub repeat: String,
}

/// What the load of a history came to; fields as in [`Summary`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// From its begin to the end of its last operation.
    pub load_ns: u64,
    /// Operations.
    pub operations: u64,
    /// Those that certainly did not happen.
    pub failed: u64,
    /// Those whose outcome is unknown.
    pub unknown: u64,
    /// Requests sent.
    pub attempts: u64,
    /// Mean over clients of their mean latencies.
    pub client_mean_ns: u64,
    /// Their standard deviation.
    pub client_sd_ns: u64,
    /// Latency of acknowledged operations.
    pub latency: Latency,
    /// Of reads.
    pub read_latency: Latency,
    /// Of writes.
    pub write_latency: Latency,
    /// The longest gap without an acknowledgement.
    pub longest_gap_ns: u64,
    /// From the gaps that are outages.
    pub availability: Availability,
    /// A row per client.
    pub clients: Vec<ClientRow>,
}

impl Figures {
    /// Of a history whose load began at `begin_ns`.
    #[must_use]
    pub fn of(history: &[Operation], begin_ns: u64) -> Self {
        let load: Vec<&Operation> =
            history.iter().filter(|operation| operation.stage == Stage::Load).collect();
        let count = |ended| load.iter().filter(|operation| operation.ended == ended).count() as u64;
        let latencies = |wanted: &dyn Fn(Kind) -> bool| {
            let done = load.iter().filter(|operation| operation.ended == Ended::Ok && wanted(operation.kind));
            Latency::of(done.map(|operation| operation.latency_ns()))
        };
        let clients = client_rows(&load);
        let means: Vec<f64> = clients.iter().map(|row| row.mean_ns as f64).collect();
        let mean = means.iter().sum::<f64>() / means.len().max(1) as f64;
        let squares: f64 = means.iter().map(|of| (of - mean).powi(2)).sum();
        let deviation = (squares / means.len().saturating_sub(1).max(1) as f64).sqrt();
        let end_ns = load.iter().map(|operation| operation.end_ns).max().unwrap_or(begin_ns);
        let asked: Vec<Asked> = load
            .iter()
            .map(|of| Asked {
                due_ns: of.intended_ns,
                answered_ns: (of.ended == Ended::Ok).then_some(of.end_ns),
            })
            .collect();
        let gaps = gaps(&asked, begin_ns, end_ns);
        let outages: Vec<u64> = gaps.iter().copied().filter(|gap| *gap >= LEAST_OUTAGE_NS).collect();
        Self {
            longest_gap_ns: gaps.iter().copied().max().unwrap_or(0),
            availability: Availability::of(end_ns.saturating_sub(begin_ns), &outages),
            load_ns: end_ns.saturating_sub(begin_ns),
            operations: load.len() as u64,
            failed: count(Ended::Failed),
            unknown: count(Ended::Unknown),
            attempts: load.iter().map(|operation| operation.attempts).sum(),
            client_mean_ns: mean as u64,
            client_sd_ns: deviation as u64,
            latency: latencies(&|_| true),
            read_latency: latencies(&|kind| kind == Kind::Get),
            write_latency: latencies(&|kind| kind != Kind::Get),
            clients,
        }
    }
}

fn client_rows(load: &[&Operation]) -> Vec<ClientRow> {
    let mut clients: std::collections::BTreeMap<u32, Vec<&Operation>> = Default::default();
    for operation in load {
        clients.entry(operation.client).or_default().push(operation);
    }
    let row = |(client, operations): (u32, Vec<&Operation>)| {
        let ended = |ended| operations.iter().filter(|operation| operation.ended == ended).count() as u64;
        let done = operations.iter().filter(|operation| operation.ended == Ended::Ok);
        let latency = Latency::of(done.map(|operation| operation.latency_ns()));
        ClientRow {
            client,
            operations: operations.len() as u64,
            failed: ended(Ended::Failed),
            unknown: ended(Ended::Unknown),
            attempts: operations.iter().map(|operation| operation.attempts).sum(),
            mean_ns: latency.mean_ns,
            p50_ns: latency.p50_ns,
            p99_ns: latency.p99_ns,
            max_ns: latency.max_ns,
        }
    };
    clients.into_iter().map(row).collect()
}

/// So many in a span, per second, rounded down.
#[must_use]
pub fn per_second(count: u64, ns: u64) -> u64 {
    u64::try_from(u128::from(count) * 1_000_000_000 / u128::from(ns.max(1))).unwrap_or(u64::MAX)
}

/// Bytes of all keys and values of a full dictionary.
#[must_use]
pub fn weight_bytes(load: &Load) -> u64 {
    u64::from(load.entries) * (key(0).len() as u64 + u64::from(load.value_bytes))
}

impl Summary {
    /// The run in words, for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let payload = self.payload.map(|payload| format!(", {payload}")).unwrap_or_default();
        let mut text = line("outcome", &self.message);
        text += &line("backend, payload", format!("{}{payload}", self.backend));
        text += &self.load_text();
        text += &line("longest gap", show_ns(self.longest_gap_ns));
        text += &line("availability", self.availability);
        if self.workload == "leaderboard" {
            text += &line("balancer", &self.balancer);
            let (again, settled) = (self.votes_repeated, self.votes_settled);
            text +=
                &line("votes", format!("{again} sent again on purpose, {settled} settled after the load"));
        }
        text += &line("aggregators", self.epochs);
        text += &line("disturbances", self.disturbances);
        if let Some(checks) = &self.checks {
            text += &self.checks_text(checks);
        }
        text += &line("seed", self.seed);
        text + &format!("results: {}\n", self.results.display())
    }

    /// What was asked, and how fast it was answered.
    fn load_text(&self) -> String {
        let counted = format!(
            "{} ({} failed, {} unknown) by {} clients in {}",
            self.operations,
            self.failed,
            self.unknown,
            self.clients,
            show_ns(self.load_ns)
        );
        let (mean, spread) = (show_ns(self.client_mean_ns), show_ns(self.client_sd_ns));
        let mut text =
            line("entries, weight", format!("{}, {}", self.entries, show_bytes(self.weight_bytes)));
        text += &line("operations", counted);
        text += &line("requests per second", self.requests_per_s);
        text += &line("writes per second", self.writes_per_s);
        text += &line("requests", self.latency);
        text += &line("reads", self.read_latency);
        text += &line("writes", self.write_latency);
        text + &line("mean across clients", format!("{mean}, standard deviation {spread}"))
    }

    /// What was promised, and whether it was kept.
    fn checks_text(&self, checks: &Checks) -> String {
        let promised = match (checks.linear, self.workload.as_str()) {
            (_, "leaderboard") => "no acknowledged vote lost, none counted twice",
            (true, _) => "linearizable",
            (false, _) => "bounded staleness",
        };
        let verdict = checks.failure.clone().unwrap_or_else(|| format!("{promised}: passed"));
        let stale = format!("{} (by at most {})", checks.stale_reads, show_ns(checks.staleness_most_ns));
        line("check", verdict) + &line("stale reads", stale)
    }
}

/// A line of a summary.
fn line(name: &str, value: impl fmt::Display) -> String {
    format!(" {name:<22} {value}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(client: u32, start_ns: u64, end_ns: u64) -> Operation {
        Operation {
            stage: Stage::Load,
            client,
            key: 0,
            kind: Kind::Set,
            value: Some(start_ns),
            intended_ns: start_ns,
            start_ns,
            end_ns,
            ended: Ended::Ok,
            node: 1,
            attempts: 2,
        }
    }

    #[test]
    fn percentiles_are_exact() {
        let latency = Latency::of((1..=1000).rev());
        assert_eq!((latency.p50_ns, latency.p99_ns, latency.p999_ns, latency.max_ns), (500, 990, 999, 1000));
        assert_eq!((Latency::of([7]).p50_ns, Latency::of([]).count), (7, 0));
    }

    #[test]
    fn clients_are_averaged_and_fill_does_not_count() {
        let fill = Operation { stage: Stage::Fill, ..operation(0, 0, 1000) };
        let history = [fill, operation(0, 100, 110), operation(0, 110, 130), operation(1, 100, 125)];
        let figures = Figures::of(&history, 90);
        assert_eq!((figures.operations, figures.attempts, figures.load_ns), (3, 6, 40));
        assert_eq!((figures.client_mean_ns, figures.client_sd_ns), (20, 7), "of 15 and 25");
        assert_eq!(per_second(3, 1_500_000_000), 2);
    }

    #[test]
    fn a_doctored_history_is_rejected() {
        let write = operation(0, 0, 1);
        let replaced = Operation { value: Some(9), ..operation(0, 2, 3) };
        let read = |value, at| Operation { kind: Kind::Get, value, ..operation(1, at, at + 1) };
        let honest = [write, replaced, read(Some(9), 4)];
        assert_eq!(Checks::of(&honest, true, 0).failure, None);
        let stale = [write, replaced, read(Some(0), 4)];
        assert!(Checks::of(&stale, true, 0).failure.unwrap().contains("not linearizable"));
        let lost = [write, replaced, read(None, 4)];
        assert!(Checks::of(&lost, true, 0).failure.unwrap().contains("not linearizable"));
        assert_eq!(Checks::of(&stale, false, 1).failure, None, "stale by 1 ns");
        assert!(Checks::of(&stale, false, 0).failure.unwrap().contains("stale by"));
        assert!(Checks::of(&[read(Some(77), 4)], false, 9).failure.unwrap().contains("nobody wrote"));
    }
}
