//! The controller against fake nodes in this process, which speak the real control protocol over in-memory pipes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use replication::{CheckpointId, Digest, Epoch, Guarantee, Phase, Slot, StoreEvent};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Barrier;
use tokio::task::AbortHandle;
use workloads::federated::Event;

use super::*;
use crate::control::node_end::{self, Command, Outbox};
use crate::control::{Held, Status};
use crate::place::{Pipes, PowerCut};
use crate::plan::Durability;
use crate::record::Outcome;

/// Long enough for a kill to arrive in the middle of a round.
const ROUND_STEPS: u32 = 5;

/// So many that the controller, late as it may be on a busy machine, hears of some round's start and of a worker in it
/// before its end.
const ROUNDS_WITH_A_MIDDLE: u64 = 40;

/// In a run whose plug fails.
const ROUNDS_WITH_A_PLUG: u64 = 3;

/// How a fake node misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quirk {
    None,
    /// Ends before it is ready.
    FailsToStart,
    /// Never says that it is ready.
    NeverReady,
    /// Says something else than the protocol.
    Garbage,
    /// Never shows the final checkpoint.
    Lags,
    /// Ignores the order to finish.
    Lingers,
}

/// What fake nodes share: the truth about who lives and what is acknowledged.
#[derive(Debug, Default)]
struct World {
    alive: BTreeMap<NodeId, AbortHandle>,
    epoch: Epoch,
    held: Option<Held>,
    rounds: u64,
    trained: Vec<u64>,
    stopped: BTreeSet<NodeId>,
    /// What each node was told to lose, as shares by node, in order.
    impaired: BTreeMap<NodeId, Vec<Vec<(u64, f64)>>>,
}

#[derive(Debug, Clone)]
struct Fakes {
    world: Arc<Mutex<World>>,
    size: usize,
    min_fit_clients: u32,
    stuck: bool,
    quirks: BTreeMap<NodeId, Quirk>,
    /// What commands that cut power wait for: each other.
    plugs: Arc<Barrier>,
    /// Such a command fails instead, after the last round.
    plug_fails: bool,
}

impl Fakes {
    fn new(size: usize) -> Self {
        let plugs = Arc::new(Barrier::new(2));
        let quirks = BTreeMap::new();
        Self {
            world: Arc::default(),
            size,
            min_fit_clients: 1,
            stuck: false,
            quirks,
            plugs,
            plug_fails: false,
        }
    }

    fn with(mut self, node: u64, quirk: Quirk) -> Self {
        self.quirks.insert(NodeId(node), quirk);
        self
    }
}

impl Placement for Fakes {
    fn start(&mut self, node: NodeId, _log: &Path) -> anyhow::Result<Pipes> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (stdout, stdin) = tokio::io::split(near);
        let (far_read, mut far_write) = tokio::io::split(far);
        let quirk = self.quirks.get(&node).copied().unwrap_or(Quirk::None);
        let fakes = self.clone();
        let task = tokio::spawn(async move {
            if quirk == Quirk::Garbage {
                far_write.write_all(b"Segmentation fault\n").await?;
            }
            let body = |start, outbox, commands| fakes.live(quirk, start, outbox, commands);
            node_end::serve(tokio::io::BufReader::new(far_read), far_write, body).await
        });
        self.world.lock().unwrap().alive.insert(node, task.abort_handle());
        Ok(Pipes { stdin: Box::new(stdin), stdout: Box::new(stdout) })
    }

    fn kill(&mut self, node: NodeId) -> anyhow::Result<()> {
        if let Some(task) = self.world.lock().unwrap().alive.remove(&node) {
            task.abort();
        }
        Ok(())
    }

    fn stop(&mut self, node: NodeId) -> anyhow::Result<()> {
        self.world.lock().unwrap().stopped.insert(node);
        Ok(())
    }

    fn resume(&mut self, node: NodeId) -> anyhow::Result<()> {
        self.world.lock().unwrap().stopped.remove(&node);
        Ok(())
    }

    fn power_off(&mut self, node: NodeId) -> anyhow::Result<PowerCut> {
        let mut fakes = self.clone();
        Ok(Box::pin(async move {
            if fakes.plug_fails {
                while fakes.world.lock().unwrap().rounds < ROUNDS_WITH_A_PLUG {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                // By now the controller waits for nothing else.
                tokio::time::sleep(Duration::from_secs(1)).await;
                anyhow::bail!("plug failed (exit code 1)");
            }
            fakes.plugs.wait().await;
            fakes.kill(node)
        }))
    }

    fn ended(&mut self, node: NodeId) -> Option<String> {
        let mut world = self.world.lock().unwrap();
        match world.alive.get(&node) {
            Some(task) if !task.is_finished() => None,
            _ => world.alive.remove(&node).map(|_| "returned".into()).or(Some("killed".into())),
        }
    }

    fn kill_all(&mut self) {
        for task in std::mem::take(&mut self.world.lock().unwrap().alive).into_values() {
            task.abort();
        }
    }
}

impl Fakes {
    async fn live(
        self,
        quirk: Quirk,
        start: Start,
        outbox: Outbox,
        mut commands: mpsc::Receiver<Command>,
    ) -> anyhow::Result<()> {
        anyhow::ensure!(quirk != Quirk::FailsToStart, "cannot bind 127.0.0.12:5000");
        if quirk != Quirk::NeverReady {
            let engine = "fake".into();
            outbox.federated(Event::Ready { train_examples: 1, test_examples: 1, synthetic: true, engine });
        }
        let mut seen = (Epoch::default(), 0, 0);
        let mut step = tokio::time::interval(Duration::from_millis(10));
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Status { request_id }) => {
                        let latest = self.world.lock().unwrap().held.filter(|_| quirk != Quirk::Lags);
                        outbox.status(Status { request_id, latest, ..Status::default() });
                    }
                    Some(Command::Impair(impair)) => {
                        let shares = impair.losses.iter().map(|loss| (loss.to.0, loss.share)).collect();
                        self.world.lock().unwrap().impaired.entry(start.node).or_default().push(shares);
                    }
                    Some(Command::Peers { .. } | Command::Put { .. }) => {}
                    Some(Command::Leave) => {
                        outbox.event(NodeEvent::Node(Lifecycle::Left));
                        return Ok(());
                    }
                    Some(Command::Finish) if quirk == Quirk::Lingers => {}
                    Some(Command::Finish) | None => return Ok(()),
                },
                _ = step.tick() => {
                    if !self.stuck {
                        self.step(start.node, start.plan.job.rounds, &mut seen, &outbox);
                    }
                }
            }
        }
    }

    /// The living node with the lowest id leads; a round takes it [`ROUND_STEPS`].
    fn step(&self, node: NodeId, rounds: u64, seen: &mut (Epoch, u64, u32), outbox: &Outbox) {
        let mut world = self.world.lock().unwrap();
        let well: Vec<NodeId> =
            world.alive.keys().copied().filter(|node| !world.stopped.contains(node)).collect();
        let leader = well.first().copied().unwrap_or(node);
        if well.len() * 2 <= self.size || world.rounds >= rounds || world.stopped.contains(&node) {
            return;
        }
        if leader == node && world.epoch.node != node {
            world.epoch = Epoch { counter: world.epoch.counter + 1, node };
            outbox.event(NodeEvent::Store(StoreEvent::AggregatorChanged { epoch: Some(world.epoch) }));
        }
        let (epoch, round) = (world.epoch, world.rounds + 1);
        let steps = if (seen.0, seen.1) == (epoch, round) { seen.2 + 1 } else { 0 };
        *seen = (epoch, round, steps);
        match (leader == node, steps) {
            (true, 0) => outbox.federated(Event::RoundStarted { epoch, round, workers: 1 }),
            (true, ROUND_STEPS) => {
                let digest = Digest::of(&round.to_le_bytes());
                let id = CheckpointId { epoch, round, phase: Phase::AggregateFit, slot: Slot::Global };
                world.rounds = round;
                world.trained.push(round);
                world.held = Some(Held { id, digest });
                outbox.federated(put(id, digest));
                outbox.federated(finished(epoch, round, digest));
                if round == rounds {
                    outbox.federated(Event::Completed { epoch, rounds, last: world.held, digest });
                }
            }
            (false, 0) => outbox.federated(Event::FitStarted { epoch, round }),
            _ => {}
        }
    }
}

fn put(id: CheckpointId, digest: Digest) -> Event {
    let guarantee = Guarantee::Majority { of: 4 };
    Event::CheckpointPut {
        id,
        digest,
        bytes: 248_024,
        put_ns: 1_000_000,
        guarantee,
        holders: vec![NodeId(1)],
    }
}

fn finished(epoch: Epoch, round: u64, digest: Digest) -> Event {
    Event::RoundFinished {
        epoch,
        round,
        round_ns: 20_000_000,
        fit_ns: 10_000_000,
        fit_workers: 1,
        fit_examples: 1,
        train_loss: Some(2.0),
        evaluate_workers: 1,
        evaluate_examples: 1,
        loss: Some(1.0 / round as f64),
        accuracy: Some(0.5),
        digest,
    }
}

struct Ran {
    summary: Summary,
    dir: tempfile::TempDir,
    world: Arc<Mutex<World>>,
}

impl Ran {
    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.summary.results.join(name)).unwrap()
    }

    /// No task of a node is left.
    fn assert_nothing_is_left(&self) {
        assert!(self.world.lock().unwrap().alive.is_empty());
        assert!(self.dir.path().exists());
    }
}

async fn ran(fakes: Fakes, rounds: u64, faults: &[&str], stop: Option<Stop>) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let mut plan = crate::plan::tests::plan(fakes.size as u64);
    plan.job.rounds = rounds;
    plan.job.min_fit_clients = fakes.min_fit_clients;
    let faults = faults.iter().map(|text| text.parse().unwrap()).collect();
    // A fake that misbehaves is waited for in vain; one that does not gets the time a busy machine needs.
    let patience = if fakes.stuck || !fakes.quirks.is_empty() { 700 } else { 10_000 };
    let patience = Duration::from_millis(patience);
    let setup = Setup {
        dir: None,
        resumed_from: None,
        trial: Trial {
            plan,
            durability: Durability::Memory,
            faults,
            changes: Vec::new(),
            shelf: None,
            out: dir.path().into(),
            json: false,
            quiet: true,
        },
        command: "harness run".into(),
        repeat: "harness run --seed 7".into(),
        issue: crate::identity::issue,
        timeouts: Timeouts {
            start: patience,
            stall: patience,
            settle: patience,
            survey: patience,
            finish: patience,
        },
    };
    let (sender, stops) = mpsc::channel(1);
    if let Some(stop) = stop {
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(700)).await;
            let _ = sender.send(stop).await;
        });
    }
    let world = fakes.world.clone();
    let summary = Box::pin(run(setup, fakes, Progress::silent(), stops)).await.unwrap();
    Ran { summary, dir, world }
}

#[tokio::test]
async fn a_run_completes_and_every_file_is_written() {
    let ran = ran(Fakes::new(4), 3, &[], None).await;
    let summary = &ran.summary;
    assert_eq!((summary.outcome, summary.exit_code), (Outcome::Completed, 0), "{}", summary.message);
    assert_eq!((summary.rounds_finished, summary.nodes_alive, summary.epochs), (3, 4, 1));
    assert_eq!(summary.checkpoint.as_ref().unwrap().holders, [1, 2, 3, 4]);
    assert_eq!(summary.loss, Some(1.0 / 3.0));
    assert_eq!(ran.file("rounds.csv").lines().count(), 4);
    assert_eq!(ran.file("checkpoints.csv").lines().count(), 4);
    let manifest: Manifest = serde_json::from_str(&ran.file("manifest.json")).unwrap();
    assert_eq!(
        (manifest.outcome, manifest.exit_code, manifest.clocks.len()),
        (Outcome::Completed, Some(0), 4)
    );
    assert!(manifest.ended_ns > Some(manifest.started_ns));
    assert_eq!(serde_json::from_str::<Summary>(&ran.file("summary.json")).unwrap(), *summary);
    let nodes = ran.file("nodes.csv");
    assert_eq!(nodes.lines().count(), 5, "{nodes}");
    let events = ran.file("events.jsonl");
    for event in
        ["node_started", "all_ready", "aggregator_changed", "fit_started", "completed", "ending", "finished"]
    {
        assert!(events.contains(&format!("\"event\":\"{event}\"")), "{event} in {events}");
    }
    ran.assert_nothing_is_left();
}

/// Each of the two commands ends only if the other runs at the same time.
#[tokio::test]
async fn hosts_lose_their_power_side_by_side_while_the_run_goes_on() {
    let faults = ["power-off@node:4,round:2", "power-off@node:5,round:2"];
    let ran = Box::pin(ran(Fakes::new(5), 4, &faults, None));
    let ran = tokio::time::timeout(Duration::from_secs(60), ran).await.expect("one waits for the other");
    let summary = &ran.summary;
    assert_eq!(summary.outcome, Outcome::Completed, "{}", summary.message);
    assert_eq!((summary.faults_struck, summary.nodes_alive, summary.unexpected_deaths), (2, 3, 0));
}

#[tokio::test]
async fn a_run_whose_power_cut_fails_after_the_last_round_is_not_completed() {
    let fakes = Fakes { plug_fails: true, ..Fakes::new(3) };
    let ran = ran(fakes, ROUNDS_WITH_A_PLUG, &["power-off@node:3,round:2"], None).await;
    let summary = &ran.summary;
    assert_eq!((summary.outcome, summary.exit_code), (Outcome::Failed, 1), "{}", summary.message);
    assert!(summary.message.ends_with("plug failed (exit code 1)"), "{}", summary.message);
    assert_eq!((summary.rounds_finished, summary.nodes_alive), (ROUNDS_WITH_A_PLUG, 3));
    assert_eq!(serde_json::from_str::<Summary>(&ran.file("summary.json")).unwrap(), *summary);
    let manifest: Manifest = serde_json::from_str(&ran.file("manifest.json")).unwrap();
    assert_eq!((manifest.outcome, manifest.exit_code), (Outcome::Failed, Some(1)));
    assert!(ran.file("events.jsonl").contains("\"event\":\"ending\",\"outcome\":\"failed\""));
    ran.assert_nothing_is_left();
}

#[tokio::test]
async fn two_aggregators_are_killed_in_a_row_and_the_job_ends_all_the_same() {
    let faults = ["kill@aggregator,round:2", "kill@aggregator,round:2"];
    let ran = ran(Fakes::new(5), 4, &faults, None).await;
    let summary = &ran.summary;
    assert_eq!(summary.outcome, Outcome::Completed, "{}", summary.message);
    assert_eq!((summary.faults_struck, summary.nodes_alive, summary.unexpected_deaths), (2, 3, 0));
    assert_eq!(summary.epochs, 3);
    assert_eq!(ran.world.lock().unwrap().trained, [1, 2, 3, 4]);
    let failovers = ran.file("failovers.csv");
    assert_eq!((summary.failovers.count, failovers.lines().count()), (2, 3), "{failovers}");
    assert!(summary.failovers.median_ns["elected"] <= summary.failovers.median_ns["resumed"], "{failovers}");
    let events = ran.file("events.jsonl");
    assert_eq!(events.matches("fault_struck").count(), 2, "{events}");
    assert!(events.contains("\"target\":1,\"how\":\"killed\",\"expected\":true"), "{events}");
}

#[tokio::test]
async fn without_a_majority_the_run_ends_and_says_what_the_survivors_have() {
    let ran = ran(Fakes::new(4), 9, &["kill@worker,round:2", "kill@aggregator,round:3"], None).await;
    let summary = &ran.summary;
    assert_eq!((summary.outcome, summary.exit_code), (Outcome::NoMajority, 3), "{}", summary.message);
    assert_eq!(summary.nodes_alive, 2);
    // On a busy machine the second kill may come a round late.
    let held = ran.world.lock().unwrap().held.unwrap();
    let (id, digest) = (held.id, held.digest);
    let expected = format!(
        "no majority is left: 2 of 4 nodes alive, 3 needed; acknowledged last: {id}, digest {digest}; \
         among the survivors {id} (digest {digest}) is on nodes "
    );
    assert!(summary.message.starts_with(&expected), "{}\n{expected}", summary.message);
    let checkpoint = summary.checkpoint.as_ref().unwrap();
    assert_eq!((checkpoint.round, checkpoint.holders.len()), (id.round, 2));
    ran.assert_nothing_is_left();
}

#[tokio::test]
async fn with_too_few_workers_for_a_round_the_run_ends() {
    let fakes = Fakes { min_fit_clients: 3, ..Fakes::new(5) };
    let ran = ran(fakes, 9, &["kill@worker,round:2", "kill@worker,round:3"], None).await;
    let summary = &ran.summary;
    assert_eq!((summary.outcome, summary.exit_code), (Outcome::NoMajority, 3), "{}", summary.message);
    let expected =
        "too few workers are left to train a round: 2 of 4 workers alive, 3 needed (--min-fit-clients)";
    assert!(summary.message.starts_with(expected), "{}", summary.message);
    ran.assert_nothing_is_left();
}

#[tokio::test]
async fn a_node_that_cannot_start_fails_the_run_with_its_own_words() {
    let ran = ran(Fakes::new(3).with(2, Quirk::FailsToStart), 2, &[], None).await;
    let message = &ran.summary.message;
    assert_eq!((ran.summary.outcome, ran.summary.exit_code), (Outcome::Failed, 1));
    assert!(message.contains("node 2 ended while starting: cannot bind 127.0.0.12:5000; see "), "{message}");
    ran.assert_nothing_is_left();
}

#[tokio::test]
async fn a_node_that_is_never_ready_is_named() {
    let mut fakes = Fakes::new(3).with(3, Quirk::NeverReady);
    fakes.stuck = true;
    let ran = ran(fakes, 2, &[], None).await;
    assert!(ran.summary.message.starts_with("node 3 not ready after 700 ms"), "{}", ran.summary.message);
}

#[tokio::test]
async fn a_run_that_stalls_tells_every_node_s_last_state() {
    let mut fakes = Fakes::new(3);
    fakes.stuck = true;
    let ran = ran(fakes, 2, &[], None).await;
    let message = &ran.summary.message;
    assert!(message.starts_with("nothing was heard of the job for 700 ms"), "{message}");
    assert!(message.contains("\n  node 3: alive, last heard: Ready"), "{message}");
}

#[tokio::test]
async fn a_node_that_does_not_show_the_final_checkpoint_is_named() {
    let ran = ran(Fakes::new(3).with(2, Quirk::Lags), 2, &[], None).await;
    let message = &ran.summary.message;
    assert_eq!(ran.summary.outcome, Outcome::Failed);
    assert!(
        message.starts_with("700 ms after the last round node 2 did not show its checkpoint"),
        "{message}"
    );
}

#[tokio::test]
async fn garbage_and_a_node_that_does_not_finish_are_survived() {
    let ran = ran(Fakes::new(3).with(1, Quirk::Garbage).with(2, Quirk::Lingers), 2, &[], None).await;
    assert_eq!(ran.summary.outcome, Outcome::Completed, "{}", ran.summary.message);
    assert!(ran.file("events.jsonl").contains("Segmentation fault"));
    ran.assert_nothing_is_left();
}

#[tokio::test]
async fn a_signal_ends_the_run_and_keeps_the_results_so_far() {
    for (stop, code) in [(Stop::Interrupt, 130), (Stop::Terminate, 143)] {
        let ran = ran(Fakes::new(3), 100_000, &[], Some(stop)).await;
        assert_eq!(ran.summary.exit_code, code);
        assert!(ran.file("rounds.csv").lines().count() >= 2);
        assert!(ran.file("manifest.json").contains(&format!("\"exit_code\": {code}")));
        ran.assert_nothing_is_left();
    }
}

#[tokio::test]
async fn a_node_that_dies_without_a_fault_is_counted_and_the_run_goes_on() {
    let fakes = Fakes::new(3);
    let mut killer = fakes.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(150)).await;
        killer.kill(NodeId(3)).unwrap();
    });
    let ran = ran(fakes, 30, &[], None).await;
    assert_eq!(ran.summary.outcome, Outcome::Completed, "{}", ran.summary.message);
    assert_eq!((ran.summary.unexpected_deaths, ran.summary.rounds_finished), (1, 30));
}

#[tokio::test]
async fn a_stopped_aggregator_is_replaced_and_goes_on_in_time_or_at_the_end() {
    for fault in ["stop@aggregator,round:2,for:100ms", "stop@aggregator,round:2"] {
        let ran = ran(Fakes::new(4), ROUNDS_WITH_A_MIDDLE, &[fault], None).await;
        let summary = &ran.summary;
        assert_eq!(summary.outcome, Outcome::Completed, "{}", summary.message);
        assert_eq!((summary.faults_struck, summary.nodes_alive, summary.unexpected_deaths), (1, 4, 0));
        assert!(summary.epochs > 1, "{summary:?}");
        assert!(ran.world.lock().unwrap().stopped.is_empty());
        let events = ran.file("events.jsonl");
        let count = |event: &str| events.matches(event).count();
        assert_eq!((count("fault_struck"), count("fault_healed")), (1, 1), "{events}");
    }
}

#[tokio::test]
async fn every_node_is_told_of_a_partition_and_of_its_end() {
    let ran = ran(Fakes::new(3), ROUNDS_WITH_A_MIDDLE, &["partition@aggregator,round:2"], None).await;
    assert_eq!(ran.summary.outcome, Outcome::Completed, "{}", ran.summary.message);
    let told = |node| ran.world.lock().unwrap().impaired[&NodeId(node)].clone();
    assert_eq!(told(1), [vec![(2, 1.0), (3, 1.0)], vec![]]);
    assert_eq!(told(2), [vec![(1, 1.0)], vec![]]);
    assert_eq!(told(3), [vec![(1, 1.0)], vec![]]);
}
