//! The end of a run: ask the survivors, end the nodes in order, put the result into words and numbers.

use replication::NodeId;
use tokio::time::Instant;
use workloads::federated::EngineKind;

use super::cluster::{NodeView, PutFacts, list};
use super::links::News;
use super::{Controller, Ending, Stop};
use crate::control::{Entry, FromNode, ToNode};
use crate::exit::Exit;
use crate::meter::Usage;
use crate::place::Placement;
use crate::plan::Expected;
use crate::record::{
    CaptureTotal, ControllerEvent, FailoverSummary, FinalCheckpoint, Last, NodeRow, Outcome, Sent, Summary,
    TrafficRow, TrafficSummary, UNCERTAIN_SHARE_PERCENT,
};
use crate::units::nanoseconds;

impl<P: Placement> Controller<P> {
    /// Ends what is left of the run and writes its results.
    pub(super) async fn conclude(mut self, ending: Ending) -> anyhow::Result<Summary> {
        // Both are tried, whatever comes of the first.
        let (cut, healed) = (self.end_power_cuts().await, self.heal());
        let broken = cut.and(healed).err();
        // The survivors are asked while they can still answer; an error of recording must not keep nodes alive.
        let surveyed = match ending {
            // A completed run's as well: a node that does not end in order has its last word here.
            Ending::Completed | Ending::NoMajority(_) | Ending::Failed(_) => self.survey().await,
            Ending::Stopped(_) => Ok(()),
        };
        let (outcome, exit, message) = with_broken_fault(self.in_words(&ending), broken);
        let mut summary = self.summary(outcome, exit, message.clone());
        let noted = self.recorder.controller_event(&ControllerEvent::Ending { outcome });
        let finished = self.finish().await;
        self.placement.end_all().await;
        self.placement.end_captures();
        let captured = self.take_captures();
        self.progress.clear();

        for planned in self.timeline.remaining() {
            self.progress.warn(&format!("{planned} did not happen: its moment did not come"));
        }
        self.count_cost(&mut summary);
        let totals = self.traffic_totals();
        self.count_traffic(&mut summary, &totals);
        summary.throttled_nodes = self.manifest.hosts.iter().filter(|host| host.throttled).count() as u64;
        if let Some(reason) = summary.traffic.doubt() {
            self.progress.warn(&format!("the byte counts of this trial are not valid: {reason}"));
        }
        self.manifest.ended(outcome, message, exit.code());
        self.recorder.capture_totals(&totals)?;
        self.write_last(&mut summary)?;
        surveyed.and(noted).and(finished).and(captured)?;
        Ok(summary)
    }

    /// Writes the files that are complete only now.
    fn write_last(&mut self, summary: &mut Summary) -> anyhow::Result<()> {
        let lives = self.cluster.lives().into_iter();
        let row = |(node, view): (NodeId, &NodeView)| {
            NodeRow::of((node, view.count), &view.state(), view.status.as_ref(), view.resources)
        };
        let nodes: Vec<NodeRow> = lives.map(row).collect();
        let lives = self.cluster.lives().into_iter();
        let traffic: Vec<TrafficRow> = lives
            .flat_map(|(node, view)| TrafficRow::of(node, view.begin.as_ref(), view.status.as_ref()))
            .collect();
        let failovers = self.failovers.rows(&self.clocks.uncertainties_ns());
        summary.failovers = FailoverSummary::of(&failovers);
        if summary.failovers.uncertain > 0 {
            let (uncertain, share) = (summary.failovers.uncertain, UNCERTAIN_SHARE_PERCENT);
            self.progress.warn(&format!(
                "{uncertain} fail-overs are uncertain by more than {share} % of the time until all agreed: see failovers.csv"
            ));
        }
        self.recorder.finish(&Last {
            manifest: &self.manifest,
            summary,
            nodes: &nodes,
            traffic: &traffic,
            failovers: &failovers,
        })
    }

    /// Asks living nodes what they have, and waits for the answers.
    async fn survey(&mut self) -> anyhow::Result<()> {
        self.ask_all();
        let request = self.requests;
        let deadline = Instant::now() + self.timeouts.survey;
        let mut waiting = self.cluster.running();
        while !waiting.is_empty() {
            tokio::select! {
                biased;
                Some(_) = self.stops.recv() => return Ok(()),
                () = tokio::time::sleep_until(deadline) => return Ok(()),
                Some((node, news)) = self.links.next() => {
                    let answered = matches!(&news, News::Message(FromNode::Status(status)) if status.request_id >= request);
                    if answered || matches!(news, News::Gone) {
                        waiting.retain(|other| *other != node);
                    }
                    self.take(node, news).await?;
                }
            }
        }
        Ok(())
    }

    /// Tells living nodes to finish and waits until they have; a second signal ends the waiting.
    async fn finish(&mut self) -> anyhow::Result<()> {
        self.ending = true;
        self.leave_away();
        for node in self.cluster.alive() {
            self.links.send(node, ToNode::Finish);
            self.links.close(node);
        }
        let deadline = Instant::now() + self.timeouts.finish;
        while !self.cluster.alive().is_empty() {
            tokio::select! {
                biased;
                Some(_) = self.stops.recv() => break,
                () = tokio::time::sleep_until(deadline) => {
                    self.progress.warn(&format!("{} did not finish in time: killed", list(&self.cluster.alive())));
                    break;
                }
                Some((node, news)) = self.links.next() => self.take(node, news).await?,
            }
        }
        Ok(())
    }

    fn in_words(&self, ending: &Ending) -> (Outcome, Exit, String) {
        let alive = self.cluster.alive();
        match ending {
            Ending::Completed => {
                let rounds = self.trial.plan.job.rounds;
                let plan = &self.trial.plan.backend;
                if self.cluster.last.is_none() {
                    let words = format!("{rounds} rounds are finished; nothing is stored");
                    return (Outcome::Completed, Exit::Success, words);
                }
                let held_by = match plan.expected(&self.cluster.roll()) {
                    Expected::Nodes(_) if !plan.backend().elects() => "the aggregator has".into(),
                    Expected::Nodes(nodes) if nodes == alive => {
                        format!("all {} living nodes have", alive.len())
                    }
                    Expected::Nodes(nodes) => format!("all {} living voters have", nodes.len()),
                    Expected::AnyOf(count) => format!("at least {count} living nodes have"),
                };
                let words = format!("{rounds} rounds are acknowledged; {held_by} the final checkpoint");
                (Outcome::Completed, Exit::Success, words)
            }
            Ending::NoMajority(shortfall) => {
                let words =
                    format!("{shortfall}; {}; {}", self.acknowledged_in_words(), self.holdings_in_words());
                let failure = self.cluster.unexpectedly_gone().into_iter().find_map(|(node, view)| {
                    view.failure
                        .as_ref()
                        .map(|reason| format!("{words}; node {node} ended by itself: {reason}"))
                });
                let words = failure.unwrap_or(words);
                (Outcome::NoMajority, Exit::NoMajority, words)
            }
            Ending::Failed(reason) => (Outcome::Failed, Exit::Failed, reason.clone()),
            Ending::Stopped(stop) => {
                let (outcome, exit, name) = match stop {
                    Stop::Interrupt => (Outcome::Interrupted, Exit::Interrupted, "SIGINT"),
                    Stop::Terminate => (Outcome::Terminated, Exit::Terminated, "SIGTERM"),
                };
                let rounds = self.cluster.finished.len();
                (
                    outcome,
                    exit,
                    format!(
                        "ended by {name} after {rounds} finished rounds; {}",
                        self.acknowledged_in_words()
                    ),
                )
            }
        }
    }

    fn acknowledged_in_words(&self) -> String {
        match self.cluster.acknowledged() {
            Some(PutFacts { held, .. }) => format!("acknowledged last: {}, digest {}", held.id, held.digest),
            None => "no checkpoint was acknowledged".into(),
        }
    }

    fn holdings_in_words(&self) -> String {
        let holdings = self.cluster.holdings();
        if holdings.is_empty() {
            return "no survivor told of a checkpoint".into();
        }
        let words = holdings
            .iter()
            .map(|(held, nodes)| format!("{} (digest {}) is on {}", held.id, held.digest, list(nodes)));
        format!("among the survivors {}", words.collect::<Vec<_>>().join(", "))
    }

    /// Three counts of each node's traffic, side by side.
    fn traffic_totals(&self) -> Vec<CaptureTotal> {
        let plan = &self.trial.plan;
        let ports = (plan.learning_port, plan.replication_port);
        let rows = self
            .cluster
            .nodes()
            .flat_map(|(node, view)| self.captures.rows(node, ports, view.status.as_ref()));
        rows.collect()
    }

    /// Adds what was sent: by the nodes' last words, which come after their transports have closed.
    fn count_traffic(&self, summary: &mut Summary, totals: &[CaptureTotal]) {
        let cluster = &self.cluster;
        let sent: Sent = cluster
            .lives()
            .into_iter()
            .map(|(_, view)| Sent::during_job(view.begin.as_ref(), view.status.as_ref()))
            .sum();
        let size = summary.checkpoint_bytes.unwrap_or(0);
        let rounds = cluster.finished.len() as u64;
        summary.learning_sent_bytes = sent.learning_bytes;
        summary.replication_sent_bytes = sent.replication_bytes;
        summary.learning_ws_per_round = per(sent.learning_bytes, rounds * self.trial.plan.workers() * size);
        summary.replication_s_per_checkpoint = per(sent.replication_bytes, cluster.puts.len() as u64 * size);
        summary.traffic = TrafficSummary::of(totals);
    }

    /// Adds what nodes used of the machine, by their last words.
    fn count_cost(&self, summary: &mut Summary) {
        let lives = self.cluster.lives().into_iter();
        let usages: Vec<Usage> =
            lives.filter_map(|(_, view)| view.status.as_ref()).map(|status| status.usage).collect();
        let checkpoints = self.cluster.puts.len() as u64;
        let per_checkpoint =
            |of: fn(&Usage) -> u64| usages.iter().map(of).sum::<u64>().checked_div(checkpoints);
        summary.rss_peak_bytes =
            usages.iter().map(|usage| usage.rss_peak_bytes.max(usage.rss_bytes)).max().unwrap_or(0);
        summary.cpu_ns = usages.iter().map(|usage| usage.cpu_ns).sum();
        summary.hash_ns_per_checkpoint = per_checkpoint(|usage| usage.work.hash_ns);
        summary.encode_ns_per_checkpoint = per_checkpoint(|usage| usage.work.encode_ns);
        summary.decode_ns_per_checkpoint = per_checkpoint(|usage| usage.work.decode_ns);
    }

    fn summary(&self, outcome: Outcome, exit: Exit, message: String) -> Summary {
        let (plan, cluster) = (&self.trial.plan, &self.cluster);
        let last = cluster.finished.values().next_back();
        let (hand_overs, take_overs) = (self.vacancies.hand_overs_ns(), self.vacancies.take_overs_ns());
        Summary {
            outcome,
            message,
            exit_code: exit.code(),
            results: self.recorder.dir().to_path_buf(),
            backend: Some(plan.backend.backend()),
            payload: Some(plan.backend.payload).filter(|_| plan.backend.backend().elects()),
            level: plan.level(),
            seed: plan.job.seed,
            nodes: cluster.size() as u64,
            nodes_alive: cluster.roll().alive.len() as u64,
            rounds: plan.job.rounds,
            rounds_finished: cluster.finished.len() as u64,
            checkpoint: self.final_checkpoint(),
            loss: last.and_then(|round| round.loss),
            accuracy: last.and_then(|round| round.accuracy),
            checkpoint_bytes: cluster.puts.last().map(|put| put.bytes),
            put_ns_median: median(cluster.puts.iter().map(|put| put.put_ns).collect()),
            round_ns_median: median(cluster.finished.values().map(|round| round.round_ns).collect()),
            epochs: cluster.epochs.len() as u64,
            failovers: FailoverSummary::default(),
            hand_overs: hand_overs.len() as u64,
            hand_over_ns_median: median(hand_overs),
            take_overs: take_overs.len() as u64,
            take_over_ns_median: median(take_overs),
            nodes_joined: self.count_entries(|entry| entry == Entry::Joins),
            nodes_left: self.leavers,
            nodes_replaced: self.count_entries(|entry| matches!(entry, Entry::Replaces { .. })),
            faults_struck: self.faults_struck,
            unexpected_deaths: cluster.unexpectedly_gone().len() as u64,
            voters_replaced: cluster.incidents.voters_replaced,
            false_suspicions: self.failovers.false_suspicions(),
            rival_aggregators: cluster.incidents.rivals.len() as u64,
            corrupt_blobs: cluster.incidents.corrupt_blobs,
            false_claims: cluster.incidents.false_claims,
            learning_sent_bytes: 0,
            replication_sent_bytes: 0,
            learning_ws_per_round: None,
            replication_s_per_checkpoint: None,
            rss_peak_bytes: 0,
            cpu_ns: 0,
            hash_ns_per_checkpoint: None,
            encode_ns_per_checkpoint: None,
            decode_ns_per_checkpoint: None,
            start_ns: self.start_ns,
            traffic: TrafficSummary::default(),
            throttled_nodes: 0,
            elapsed_ns: nanoseconds(self.started.elapsed()),
            synthetic_data: plan.job.data.is_none() && plan.job.engine != EngineKind::None,
            repeat: self.manifest.repeat.clone(),
        }
    }

    fn count_entries(&self, wanted: impl Fn(Entry) -> bool) -> u64 {
        self.entries.values().filter(|entry| wanted(**entry)).count() as u64
    }

    /// The final checkpoint; else the newest that was acknowledged or that a survivor holds.
    fn final_checkpoint(&self) -> Option<FinalCheckpoint> {
        let holdings = self.cluster.holdings();
        let acknowledged = self.cluster.acknowledged().map(|put| put.held);
        let survivors = holdings.first().map(|(held, _)| *held);
        let newest =
            acknowledged.into_iter().chain(survivors).max_by_key(|held| (held.id.round, held.id.phase));
        let held = self.cluster.last.or(newest)?;
        let holders = holdings.into_iter().find(|(other, _)| *other == held).map(|(_, nodes)| nodes);
        Some(FinalCheckpoint {
            round: held.id.round,
            phase: held.id.phase.to_string(),
            epoch_counter: held.id.epoch.counter,
            epoch_node: held.id.epoch.node.0,
            digest: held.digest.to_hex(),
            holders: holders.unwrap_or_default().iter().map(|node| node.0).collect(),
        })
    }
}

/// A run whose fault could not be carried out has not shown what was asked of it: it is not completed, though its job may be.
/// How else it ended stays, and the fault is named beside it.
fn with_broken_fault(
    (outcome, exit, message): (Outcome, Exit, String),
    broken: Option<anyhow::Error>,
) -> (Outcome, Exit, String) {
    let Some(error) = broken else { return (outcome, exit, message) };
    let message = format!("{message}; but a fault was not carried out: {error:#}");
    match outcome {
        Outcome::Completed => (Outcome::Failed, Exit::Failed, message),
        _ => (outcome, exit, message),
    }
}

/// How often `unit` is in `bytes`; none where there is no unit.
fn per(bytes: u64, unit: u64) -> Option<f64> {
    (unit > 0).then(|| bytes as f64 / unit as f64)
}

/// The lower median.
fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::{Exit, Outcome, median, with_broken_fault};

    #[test]
    fn a_fault_that_failed_leaves_no_run_completed_and_is_named_in_every_other() {
        let broken = || Some(anyhow::anyhow!("false failed").context("harness_power_off of pi4"));
        let completed = (Outcome::Completed, Exit::Success, "5 rounds".to_owned());
        assert_eq!(with_broken_fault(completed.clone(), None), completed);
        let words = "5 rounds; but a fault was not carried out: harness_power_off of pi4: false failed";
        assert_eq!(with_broken_fault(completed, broken()), (Outcome::Failed, Exit::Failed, words.to_owned()));
        let interrupted = (Outcome::Interrupted, Exit::Interrupted, "5 rounds".to_owned());
        let words = words.to_owned();
        assert_eq!(
            with_broken_fault(interrupted, broken()),
            (Outcome::Interrupted, Exit::Interrupted, words)
        );
    }

    #[test]
    fn the_median_is_a_value_that_was_seen() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![5]), Some(5));
        assert_eq!(median(vec![9, 1, 5, 7]), Some(5));
    }
}
