//! What a person sees of a run: a live line on a terminal, plain lines elsewhere, and a table at the end.
//!
//! Everything here goes to standard error except the summary. A reader that went away is no error.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use replication::{CheckpointId, Epoch, NodeId, StoreEvent};
use workloads::federated::Event;

use crate::control::NodeEvent;
use crate::record::{Outcome, STAGES, Summary};
use crate::run::cluster::{Cluster, list};
use crate::units::{show_bytes, show_ns};

/// Shows a run as it goes.
#[derive(Debug)]
pub struct Progress {
    quiet: bool,
    bar: Option<ProgressBar>,
    rounds: u64,
    /// The checkpoint that was told of last as not acknowledged, and why: what is tried again and again is told once.
    refused: Mutex<Option<(CheckpointId, String)>>,
}

impl Progress {
    /// For a run of so many rounds; a live line if standard error is a terminal and `quiet` is not set.
    #[must_use]
    pub fn new(rounds: u64, quiet: bool) -> Self {
        let live = !quiet && std::io::stderr().is_terminal();
        Self { quiet, bar: live.then(|| live_line(rounds)), rounds, refused: Mutex::default() }
    }

    /// Says nothing.
    #[must_use]
    pub fn silent() -> Self {
        Self { quiet: true, bar: None, rounds: 0, refused: Mutex::default() }
    }

    /// A line, unless quiet.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }

    /// A warning, always.
    pub fn warn(&self, text: &str) {
        self.line(&format!("warning: {text}"));
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| write_line(text)),
            None => write_line(text),
        }
    }

    /// Lines that follow from an event of `node`; `cluster` has taken note of it, `before` is the aggregator it knew.
    pub fn event(&self, node: NodeId, event: &NodeEvent, cluster: &Cluster, before: Option<Epoch>) {
        if cluster.aggregator != before
            && let Some(epoch) = cluster.aggregator
        {
            self.note(&format!("aggregator: node {} (epoch {epoch})", epoch.node));
        }
        match event {
            // Taken over after its averaging: the workers only evaluated it, once more or at last.
            NodeEvent::Federated(Event::RoundFinished { round, loss, accuracy, fit_workers: 0, .. }) => {
                let (loss, accuracy) = (show_loss(*loss), show_share(*accuracy));
                self.note(&format!(
                    "round {round}/{} taken over: loss {loss}, accuracy {accuracy}",
                    self.rounds
                ));
            }
            NodeEvent::Federated(Event::RoundFinished { round, loss, accuracy, round_ns, .. }) => {
                let put = cluster.puts.iter().rfind(|put| put.held.id.round == *round);
                let checkpoint = put.map_or_else(String::new, |put| {
                    format!(", checkpoint {} in {}", show_bytes(put.bytes), show_ns(put.put_ns))
                });
                let (loss, accuracy) = (show_loss(*loss), show_share(*accuracy));
                let time = show_ns(*round_ns);
                self.note(&format!(
                    "round {round}/{}: loss {loss}, accuracy {accuracy}, {time}{checkpoint}",
                    self.rounds
                ));
            }
            NodeEvent::Federated(Event::WorkerFailed { round, worker, reason, .. }) => {
                self.note(&format!("round {round}: no result of worker {worker}: {reason}"));
            }
            NodeEvent::Federated(Event::CheckpointFailed { id, reason, .. }) => {
                let news = Some((*id, reason.clone()));
                let mut told = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
                if *told != news {
                    self.note(&format!("node {node}: checkpoint {id} was not acknowledged: {reason}"));
                    *told = news;
                }
            }
            NodeEvent::Federated(Event::Restored { from: Some(id), .. }) => {
                self.note(&format!("node {node} continues from {id}"));
            }
            NodeEvent::Federated(Event::HandingOver { epoch, to }) => {
                self.note(&format!("node {node} (epoch {epoch}) hands over to node {to}"));
            }
            NodeEvent::Federated(Event::HandOverFailed { to, reason, .. }) => {
                self.note(&format!("node {node} stays, because node {to} did not take over: {reason}"));
            }
            NodeEvent::Store(event) => {
                if let Some(line) = store_line(node, event) {
                    self.note(&line);
                }
            }
            _ => {}
        }
    }

    /// Brings the live line up to date.
    pub fn update(&self, cluster: &Cluster) {
        let Some(bar) = &self.bar else { return };
        let last = cluster.finished.values().next_back();
        let put = cluster.puts.last();
        let checkpoint = put.map_or_else(
            || "-".into(),
            |put| format!("{} in {}", show_bytes(put.bytes), show_ns(put.put_ns)),
        );
        bar.set_position(cluster.finished.len() as u64);
        // Two lines, so that nothing is cut off at 80 columns.
        bar.set_message(format!(
            "loss {}, accuracy {}, checkpoint {checkpoint}",
            show_loss(last.and_then(|round| round.loss)),
            show_share(last.and_then(|round| round.accuracy)),
        ));
        bar.set_prefix(format!(
            "round {}/{}, aggregator {}, alive {}/{}",
            cluster.round,
            self.rounds,
            cluster.aggregator.map_or_else(|| "-".into(), |epoch| epoch.node.to_string()),
            cluster.alive().len(),
            cluster.roll().members.len(),
        ));
    }

    /// Removes the live line.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A line for what a store told of besides its work.
fn store_line(node: NodeId, event: &StoreEvent) -> Option<String> {
    match event {
        StoreEvent::VotersChanged { lost, joined, voters } => {
            let voters = list(voters);
            Some(match (lost, joined) {
                (Some(lost), Some(joined)) => {
                    format!("voter {lost} was replaced by node {joined}; now {voters} vote")
                }
                _ => format!("{voters} vote"),
            })
        }
        StoreEvent::RivalAggregators { stays, yields } => Some(format!(
            "two aggregators at the same time: node {} (epoch {stays}) stays, node {} (epoch {yields}) yields",
            stays.node, yields.node
        )),
        StoreEvent::CorruptBlob { from, .. } => {
            Some(format!("node {from} served node {node} bytes that do not match their digest"))
        }
        StoreEvent::FalseClaim { from, .. } => {
            Some(format!("node {from} did not serve node {node} the bytes that it claims to hold"))
        }
        _ => None,
    }
}

fn live_line(rounds: u64) -> ProgressBar {
    let bar = ProgressBar::new(rounds);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:20} {prefix}\n  {wide_msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn write_line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn show_loss(loss: Option<f64>) -> String {
    loss.map_or_else(|| "-".into(), |loss| format!("{loss:.4}"))
}

fn show_share(share: Option<f64>) -> String {
    share.map_or_else(|| "-".into(), |share| format!("{:.1} %", share * 100.0))
}

/// The summary as a table and the path of the results.
#[must_use]
pub fn summary_text(summary: &Summary) -> String {
    let outcome = match summary.outcome {
        Outcome::Running => "running",
        Outcome::Completed => "completed",
        Outcome::Failed => "failed",
        Outcome::NoMajority => "too few nodes left",
        Outcome::Interrupted => "interrupted (SIGINT)",
        Outcome::Terminated => "terminated (SIGTERM)",
    };
    let time = |ns: Option<u64>| ns.map_or_else(|| "-".into(), show_ns);
    let size = |bytes: Option<u64>| bytes.filter(|bytes| *bytes > 0).map_or_else(|| "-".into(), show_bytes);
    let checkpoint = summary.checkpoint.as_ref().map_or_else(
        || "-".into(),
        |held| {
            format!(
                "round {} {}, {}..., on {} nodes",
                held.round,
                held.phase,
                &held.digest[..16],
                held.holders.len()
            )
        },
    );
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let backend = summary.backend.zip(summary.payload);
    let backend = backend.map_or_else(|| "-".into(), |(backend, payload)| format!("{backend}, {payload}"));
    let units = |units: Option<f64>| units.map_or_else(|| "-".into(), |units| format!("{units:.2}"));
    for (name, value) in [
        ("outcome", outcome.to_owned()),
        ("backend", backend),
        ("rounds", format!("{} of {}", summary.rounds_finished, summary.rounds)),
        ("loss, accuracy", format!("{}, {}", show_loss(summary.loss), show_share(summary.accuracy))),
        ("nodes alive", format!("{} of {}", summary.nodes_alive, summary.nodes)),
        ("checkpoint", checkpoint),
        ("put (median)", format!("{} of {}", time(summary.put_ns_median), size(summary.checkpoint_bytes))),
        ("round (median)", time(summary.round_ns_median)),
        ("sent per checkpoint", format!("{} S (replication)", units(summary.replication_s_per_checkpoint))),
        ("sent per round", format!("{} W S (learning)", units(summary.learning_ws_per_round))),
        ("aggregators", summary.epochs.to_string()),
        ("memory (largest node)", size(Some(summary.rss_peak_bytes))),
        ("start, total", format!("{}, {}", time(summary.start_ns), show_ns(summary.elapsed_ns))),
        ("seed", summary.seed.to_string()),
    ] {
        table.add_row([name, &value]);
    }
    for (name, changes, median) in [
        ("hand-overs", summary.hand_overs, summary.hand_over_ns_median),
        ("take-overs after a crash", summary.take_overs, summary.take_over_ns_median),
    ] {
        if changes > 0 {
            let text = format!("{changes}, median {} without an aggregator", time(median));
            table.add_row([name, &text]);
        }
    }
    let failovers = &summary.failovers;
    if failovers.count > 0 {
        let reached = STAGES.iter().filter_map(|stage| Some((stage, failovers.median_ns.get(*stage)?)));
        let stages: Vec<String> = reached.map(|(stage, ns)| format!("{stage} {}", show_ns(*ns))).collect();
        let name = format!("fail-over ({}, median)", failovers.count);
        table.add_row([name, stages.join(", ")]);
    }
    for (name, count) in [
        ("voters replaced", summary.voters_replaced),
        ("false suspicions", summary.false_suspicions),
        ("rival aggregators", summary.rival_aggregators),
        ("corrupt answers", summary.corrupt_blobs),
        ("false holders", summary.false_claims),
    ] {
        if count > 0 {
            table.add_row([name, &count.to_string()]);
        }
    }
    format!("{table}\nresults: {}\n", summary.results.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{FailoverSummary, FinalCheckpoint};

    #[test]
    fn the_summary_reads_well_with_and_without_facts() {
        let empty = summary_text(&Summary::default());
        assert!(empty.contains("rounds") && empty.contains("0 of 0"), "{empty}");
        assert!(!empty.contains("voters replaced") && !empty.contains("rival"), "{empty}");
        let checkpoint = FinalCheckpoint {
            round: 5,
            phase: "aggregate_fit".into(),
            digest: "a".repeat(64),
            ..empty_checkpoint()
        };
        let summary = Summary {
            outcome: Outcome::Completed,
            checkpoint: Some(checkpoint),
            accuracy: Some(0.314),
            put_ns_median: Some(31_000_000),
            checkpoint_bytes: Some(248_024),
            replication_s_per_checkpoint: Some(9.25),
            voters_replaced: 1,
            failovers: FailoverSummary {
                uncertain: 0,
                count: 2,
                median_ns: [("agreed".into(), 1_400_000_000), ("suspected".into(), 1_200_000_000)].into(),
            },
            hand_overs: 4,
            hand_over_ns_median: Some(52_000_000),
            results: "results/run/x".into(),
            ..Summary::default()
        };
        let text = summary_text(&summary);
        for part in [
            "completed",
            "round 5 aggregate_fit",
            "31.4 %",
            "31 ms of 248.0 kB",
            "9.25 S (replication)",
            "voters replaced",
            "fail-over (2, median)",
            "suspected 1.20 s, agreed 1.40 s",
            "4, median 52 ms without an aggregator",
            "results: results/run/x\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    fn empty_checkpoint() -> FinalCheckpoint {
        FinalCheckpoint {
            round: 0,
            phase: String::new(),
            epoch_counter: 0,
            epoch_node: 0,
            digest: String::new(),
            holders: vec![1],
        }
    }
}
