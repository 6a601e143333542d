//! The results folder of a run. Written as the run goes: a controller that dies loses at most the last row. Files that
//! are written at once go to a temporary name first.
//!
//! docs/RESULTS.md explains every file and column. This module decides what is written where; it does not know how a
//! run is steered.

mod capture;
mod event;
mod failover;
mod manifest;
mod rows;
mod summary;
mod traffic;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use replication::NodeId;
use serde::Serialize;
use time::OffsetDateTime;
use workloads::federated::Event;

pub use capture::{CaptureBook, CaptureRow, CaptureTotal, Source, TrafficSummary};
pub use event::ControllerEvent;
pub use failover::{FailoverRow, FailoverSummary, Failovers, STAGES, UNCERTAIN_SHARE_PERCENT};
pub use manifest::{ClockOffset, LAYOUT, Manifest, Outcome, Timers};
pub use rows::{CheckpointRow, ClockRow, NodeRow, RoundRow, StoreEventRow};
pub use summary::{FinalCheckpoint, Summary};
pub use traffic::{Sent, TrafficRow};

use crate::clock;
use crate::control::{Captured, NodeEvent};
use crate::exit::Usage;

/// Most folders of one second and host before something is wrong.
const MAX_SUFFIX: u32 = 1000;

/// One line of events.jsonl. `node` is null for the controller's own events.
#[derive(Serialize)]
struct Line<'a, E> {
    at_ns: u64,
    /// What the node's own clock showed, where it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    node_at_ns: Option<u64>,
    node: Option<NodeId>,
    #[serde(flatten)]
    event: &'a E,
}

/// The controller's own events name their source as the nodes' do.
#[derive(Serialize)]
struct Sourced<'a> {
    source: &'static str,
    #[serde(flatten)]
    event: &'a ControllerEvent,
}

/// Writes a results folder.
#[derive(Debug)]
pub struct Recorder {
    dir: PathBuf,
    rounds: csv::Writer<File>,
    checkpoints: csv::Writer<File>,
    store_events: csv::Writer<File>,
    /// Made when the first node captures.
    captures: Option<csv::Writer<File>>,
    /// Made when the first clock was compared.
    clocks: Option<csv::Writer<File>>,
    events: File,
    /// When the run began, on the controller's clock.
    started_ns: u64,
}

/// What is written when a run is over.
#[derive(Debug)]
pub struct Last<'a> {
    /// The manifest, as it stays.
    pub manifest: &'a Manifest,
    /// The run in a few numbers.
    pub summary: &'a Summary,
    /// nodes.csv.
    pub nodes: &'a [NodeRow],
    /// traffic.csv.
    pub traffic: &'a [TrafficRow],
    /// failovers.csv.
    pub failovers: &'a [FailoverRow],
}

impl Recorder {
    /// Makes the results folder below `out`, with its manifest.
    ///
    /// # Errors
    /// [`Usage`] if the folder cannot be made.
    pub fn create(out: &Path, started: OffsetDateTime, manifest: &Manifest) -> anyhow::Result<Self> {
        Self::create_in(&make_folder(out, started, &manifest.machine.host)?, manifest)
    }

    /// Fills the empty folder `dir`.
    ///
    /// # Errors
    /// If something cannot be written.
    pub fn create_in(dir: &Path, manifest: &Manifest) -> anyhow::Result<Self> {
        let dir = dir.to_owned();
        let open =
            |name: &str| File::create_new(dir.join(name)).with_context(|| format!("cannot write {name}"));
        fs::create_dir(dir.join("nodes")).context("cannot make the folder of the nodes' logs")?;
        let table = |name: &str| -> anyhow::Result<csv::Writer<File>> {
            Ok(csv::WriterBuilder::new().has_headers(false).from_writer(open(name)?))
        };
        let mut recorder = Self {
            rounds: table("rounds.csv")?,
            checkpoints: table("checkpoints.csv")?,
            store_events: table("events.csv")?,
            captures: None,
            clocks: None,
            events: open("events.jsonl")?,
            started_ns: manifest.started_ns,
            dir,
        };
        // Written by hand, so that a run without a round has a file with a header, too.
        write_row(&mut recorder.rounds, RoundRow::COLUMNS)?;
        write_row(&mut recorder.checkpoints, CheckpointRow::COLUMNS)?;
        write_row(&mut recorder.store_events, StoreEventRow::COLUMNS)?;
        recorder.manifest(manifest)?;
        Ok(recorder)
    }

    /// The results folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the standard error of `node` goes.
    #[must_use]
    pub fn node_log(&self, node: NodeId) -> PathBuf {
        self.dir.join("nodes").join(format!("{node}.log"))
    }

    /// Replaces the manifest.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn manifest(&self, manifest: &Manifest) -> anyhow::Result<()> {
        self.write_whole("manifest.json", &pretty(manifest)?)
    }

    /// Adds an event of `node` to the timeline, and the rows that follow from it. It happened at `at_ns`, when the node's
    /// clock showed `shown_ns`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn node_event(
        &mut self,
        node: NodeId,
        (at_ns, shown_ns): (u64, u64),
        event: &NodeEvent,
    ) -> anyhow::Result<()> {
        let node_at_ns = Some(shown_ns).filter(|shown_ns| *shown_ns != at_ns);
        self.line(&Line { at_ns, node_at_ns, node: Some(node), event })?;
        if let Some(row) = StoreEventRow::of(node, at_ns, self.started_ns, event) {
            write_row(&mut self.store_events, row)?;
        }
        let NodeEvent::Federated(event) = event else { return Ok(()) };
        if let Some(row) = RoundRow::of(node, at_ns, event) {
            write_row(&mut self.rounds, row)?;
        }
        if let Some(row) = CheckpointRow::of(node, at_ns, event) {
            write_row(&mut self.checkpoints, row)?;
        }
        Ok(())
    }

    /// Adds what `node` captured in a second.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn captured(&mut self, node: NodeId, captured: &Captured) -> anyhow::Result<()> {
        let table = opened(&mut self.captures, &self.dir, "capture.csv", CaptureRow::COLUMNS)?;
        for row in CaptureRow::of(node, captured) {
            table.serialize(row).context("cannot write a row")?;
        }
        table.flush().context("cannot write a row")
    }

    /// Adds a comparison of a node's clock with the controller's.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn clock(&mut self, row: ClockRow) -> anyhow::Result<()> {
        write_row(opened(&mut self.clocks, &self.dir, "clocks.csv", ClockRow::COLUMNS)?, row)
    }

    /// Writes capture_totals.csv.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn capture_totals(&self, rows: &[CaptureTotal]) -> anyhow::Result<()> {
        let mut table = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
        table.serialize(CaptureTotal::COLUMNS)?;
        for row in rows {
            table.serialize(row)?;
        }
        let bytes = table.into_inner().context("cannot write capture_totals.csv")?;
        self.write_whole("capture_totals.csv", &bytes)
    }

    /// Adds an event of the controller to the timeline, stamped with the time now.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn controller_event(&mut self, event: &ControllerEvent) -> anyhow::Result<()> {
        self.controller_event_at(clock::monotonic_ns(), event)
    }

    /// Adds an event of the controller that happened at `at_ns`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn controller_event_at(&mut self, at_ns: u64, event: &ControllerEvent) -> anyhow::Result<()> {
        self.line(&Line {
            at_ns,
            node_at_ns: None,
            node: None,
            event: &Sourced { source: "controller", event },
        })
    }

    /// Writes what is known at the end: nodes.csv, traffic.csv, failovers.csv, summary.json and the final manifest.
    ///
    /// # Errors
    /// If something cannot be written.
    pub fn finish(&mut self, last: &Last<'_>) -> anyhow::Result<()> {
        self.write_table("nodes.csv", NodeRow::COLUMNS, last.nodes)?;
        self.write_table("traffic.csv", TrafficRow::COLUMNS, last.traffic)?;
        self.write_table("failovers.csv", FailoverRow::COLUMNS, last.failovers)?;
        self.write_whole("summary.json", &pretty(last.summary)?)?;
        self.manifest(last.manifest)
    }

    /// Writes a table of another workload.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn table(
        &self,
        name: &str,
        columns: impl Serialize,
        rows: &[impl Serialize],
    ) -> anyhow::Result<()> {
        self.write_table(name, columns, rows)
    }

    /// Writes a value of another workload as JSON.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn whole(&self, name: &str, value: &impl Serialize) -> anyhow::Result<()> {
        self.write_whole(name, &pretty(value)?)
    }

    fn write_table(
        &self,
        name: &str,
        columns: impl Serialize,
        rows: &[impl Serialize],
    ) -> anyhow::Result<()> {
        let mut table = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
        table.serialize(columns)?;
        for row in rows {
            table.serialize(row)?;
        }
        self.write_whole(name, &table.into_inner().with_context(|| format!("cannot write {name}"))?)
    }

    fn line(&mut self, line: &impl Serialize) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.events.write_all(&text).context("cannot write events.jsonl")
    }

    fn write_whole(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        write_whole(&self.dir, name, bytes)
    }
}

/// Writes a file of the folder `dir` under a temporary name, and renames it: it is whole or not there.
///
/// # Errors
/// If it cannot be written.
pub fn write_whole(dir: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let failed = || format!("cannot write {name}");
    let mut file = tempfile::NamedTempFile::new_in(dir).with_context(failed)?;
    file.write_all(bytes).with_context(failed)?;
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(readable).with_context(failed)?;
    file.persist(dir.join(name)).with_context(failed)?;
    Ok(())
}

/// The table `name` in `dir`, made with its header when there is a first row for it.
fn opened<'a>(
    table: &'a mut Option<csv::Writer<File>>,
    dir: &Path,
    name: &str,
    columns: impl Serialize,
) -> anyhow::Result<&'a mut csv::Writer<File>> {
    if table.is_none() {
        let file = File::create_new(dir.join(name)).with_context(|| format!("cannot write {name}"))?;
        write_row(table.insert(csv::WriterBuilder::new().has_headers(false).from_writer(file)), columns)?;
    }
    table.as_mut().with_context(|| format!("cannot write {name}"))
}

/// Every row reaches the file at once.
pub(crate) fn write_row(table: &mut csv::Writer<File>, row: impl Serialize) -> anyhow::Result<()> {
    table.serialize(row).context("cannot write a row")?;
    table.flush().context("cannot write a row")
}

pub(crate) fn pretty(value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(text)
}

/// Makes a folder below `out` that is named after time and host.
///
/// # Errors
/// [`Usage`] if it cannot be made.
pub fn make_folder(out: &Path, started: OffsetDateTime, host: &str) -> anyhow::Result<PathBuf> {
    let name = format!("{}-{host}", clock::utc_compact(started));
    let refuse = |error: std::io::Error| {
        let remedy = "name a folder that can be written";
        Usage::option(
            "--out",
            out.display(),
            format_args!("cannot make the results folder ({error})"),
            remedy,
        )
    };
    fs::create_dir_all(out).map_err(refuse)?;
    for suffix in 1..MAX_SUFFIX {
        let name = if suffix == 1 { name.clone() } else { format!("{name}-{suffix}") };
        match fs::create_dir(out.join(&name)) {
            Ok(()) => return Ok(out.join(name)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(refuse(error).into()),
        }
    }
    anyhow::bail!("{} has {MAX_SUFFIX} folders named {name}", out.display())
}

/// Whether the job gets on. What repeats while it does not (attempts, failures) does not count, or a run that goes nowhere
/// would never be ended.
pub(crate) fn is_progress(event: &NodeEvent) -> bool {
    matches!(
        event,
        NodeEvent::Federated(
            Event::Ready { .. }
                | Event::Serving { .. }
                | Event::FitFinished { .. }
                | Event::CheckpointPut { .. }
                | Event::RoundFinished { .. }
                | Event::Completed { .. }
        )
    )
}

#[cfg(test)]
mod tests {
    use replication::{CheckpointId, Digest, Epoch, Guarantee, Phase, Slot, StoreEvent};

    use super::*;

    fn finished(round: u64) -> NodeEvent {
        NodeEvent::Federated(Event::RoundFinished {
            epoch: Epoch { counter: 4, node: NodeId(2) },
            round,
            round_ns: 5_000_000_000,
            fit_ns: 4_000_000_000,
            fit_workers: 9,
            fit_examples: 9000,
            train_loss: Some(2.25),
            evaluate_workers: 9,
            evaluate_examples: 1800,
            loss: Some(f64::NAN),
            accuracy: None,
            digest: Digest::of(b"x"),
        })
    }

    fn put() -> NodeEvent {
        NodeEvent::Federated(Event::CheckpointPut {
            id: CheckpointId {
                epoch: Epoch { counter: 4, node: NodeId(2) },
                round: 1,
                phase: Phase::AggregateFit,
                slot: Slot::Worker { node: NodeId(7), part: 3 },
            },
            digest: Digest::of(b"x"),
            bytes: 248_024,
            put_ns: 31_000_000,
            guarantee: Guarantee::Majority { of: 10 },
            holders: vec![NodeId(1), NodeId(2)],
        })
    }

    #[test]
    fn rows_are_on_disk_as_soon_as_they_happen() {
        let out = tempfile::tempdir().unwrap();
        let manifest = manifest::tests::manifest();
        let mut recorder = Recorder::create(&out.path().join("a/b"), clock::utc_now(), &manifest).unwrap();
        let read = |recorder: &Recorder, name: &str| fs::read_to_string(recorder.dir().join(name)).unwrap();
        assert!(
            read(&recorder, "rounds.csv").starts_with("round,epoch_counter,epoch_node,"),
            "a header without rows"
        );
        recorder.node_event(NodeId(2), (77, 77), &finished(1)).unwrap();
        recorder.node_event(NodeId(2), (78, 78), &put()).unwrap();
        recorder.controller_event(&ControllerEvent::AllReady { start_ns: 5 }).unwrap();
        recorder.controller_event(&ControllerEvent::NodeStarted { target: NodeId(9), life: 1 }).unwrap();
        let rounds = read(&recorder, "rounds.csv");
        let row = rounds.lines().nth(1).unwrap();
        assert!(row.starts_with("1,4,2,2,77,5000000000,4000000000,9,9000,2.25,9,1800,NaN,,"), "{row}");
        let checkpoints = read(&recorder, "checkpoints.csv");
        let row = checkpoints.lines().nth(1).unwrap();
        assert!(row.starts_with("1,4,2,aggregate_fit,worker,7,3,2,78,acknowledged,"), "{row}");
        assert!(row.contains(",248024,31000000,majority_of_10,2,1 2,"), "{row}");
        for line in [rounds.lines().collect::<Vec<_>>(), checkpoints.lines().collect()] {
            assert_eq!(line[0].split(',').count(), line[1].split(',').count(), "{line:?}");
        }
        let events: Vec<serde_json::Value> =
            read(&recorder, "events.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(events[0]["node"], 2);
        assert_eq!(
            (&events[0]["source"], &events[0]["event"]),
            (&"federated".into(), &"round_finished".into())
        );
        assert_eq!((&events[2]["source"], &events[2]["event"]), (&"controller".into(), &"all_ready".into()));
        assert!(events[2]["node"].is_null());
        assert!(events[3]["node"].is_null() && events[3]["target"] == 9);
        assert!(
            read(&recorder, "events.jsonl")
                .lines()
                .skip(2)
                .all(|line| line.matches("\"node\":").count() == 1)
        );
    }

    #[test]
    fn what_stores_tell_besides_their_work_has_a_table() {
        let out = tempfile::tempdir().unwrap();
        let manifest = manifest::tests::manifest();
        let mut recorder = Recorder::create(out.path(), clock::utc_now(), &manifest).unwrap();
        let at_ns = manifest.started_ns + 9;
        let digest = Digest::of(b"x");
        let epoch = |counter, node| Epoch { counter, node: NodeId(node) };
        let replaced = StoreEvent::VotersChanged {
            lost: Some(NodeId(1)),
            joined: Some(NodeId(4)),
            voters: vec![NodeId(2), NodeId(3), NodeId(4)],
        };
        for event in [
            replaced,
            StoreEvent::RivalAggregators { stays: epoch(3, 2), yields: epoch(3, 1) },
            StoreEvent::CorruptBlob { from: NodeId(5), digest },
            StoreEvent::FalseClaim { from: NodeId(6), digest },
            StoreEvent::Suspected { epoch: None, silence_ns: None, lifeline: false },
        ] {
            recorder.node_event(NodeId(2), (at_ns, at_ns), &NodeEvent::Store(event)).unwrap();
        }
        let handing_over = Event::HandingOver { epoch: epoch(3, 2), to: NodeId(4) };
        recorder.node_event(NodeId(2), (at_ns, at_ns), &NodeEvent::Federated(handing_over)).unwrap();
        let text = fs::read_to_string(recorder.dir().join("events.csv")).unwrap();
        let hex = digest.to_hex();
        let expected = format!(
            "at_ns,since_start_ns,node,event,detail\n\
             {at_ns},9,2,voters_changed,lost=1 joined=4 voters=2+3+4\n\
             {at_ns},9,2,rival_aggregators,stays=3@2 yields=3@1\n\
             {at_ns},9,2,corrupt_blob,from=5 digest={hex}\n\
             {at_ns},9,2,false_claim,from=6 digest={hex}\n\
             {at_ns},9,2,handing_over,epoch=3@2 to=4\n"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_folder_that_exists_gets_a_suffix() {
        let out = tempfile::tempdir().unwrap();
        let manifest = manifest::tests::manifest();
        let now = clock::utc_now();
        let first = Recorder::create(out.path(), now, &manifest).unwrap();
        let second = Recorder::create(out.path(), now, &manifest).unwrap();
        assert_eq!(second.dir().to_string_lossy(), format!("{}-2", first.dir().display()));
        assert!(first.node_log(NodeId(3)).ends_with("nodes/3.log"));
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_bad_input() {
        let out = tempfile::tempdir().unwrap();
        let file = out.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Recorder::create(&file, clock::utc_now(), &manifest::tests::manifest()).unwrap_err();
        assert!(error.is::<Usage>() && error.to_string().starts_with("--out "), "{error}");
    }

    #[test]
    fn the_end_writes_whole_files() {
        let out = tempfile::tempdir().unwrap();
        let mut manifest = manifest::tests::manifest();
        let mut recorder = Recorder::create(out.path(), clock::utc_now(), &manifest).unwrap();
        manifest.outcome = Outcome::Completed;
        let traffic = TrafficRow::of(NodeId(1), None, None);
        let (summary, nodes) = (Summary::default(), [NodeRow::default()]);
        let last =
            Last { manifest: &manifest, summary: &summary, nodes: &nodes, traffic: &traffic, failovers: &[] };
        recorder.finish(&last).unwrap();
        let read = |name: &str| fs::read_to_string(recorder.dir().join(name)).unwrap();
        assert!(read("manifest.json").contains("\"outcome\": \"completed\""));
        assert!(read("summary.json").ends_with("}\n"));
        let nodes = read("nodes.csv");
        let counts: Vec<usize> = nodes.lines().map(|line| line.split(',').count()).collect();
        assert_eq!((counts.len(), counts[0]), (2, counts[1]), "{nodes}");
        assert_eq!(read("failovers.csv").trim_end(), FailoverRow::COLUMNS.join(","));
        let traffic = read("traffic.csv");
        let counts: Vec<usize> = traffic.lines().map(|line| line.split(',').count()).collect();
        assert!(counts.len() > 1 && counts.iter().all(|count| *count == counts[0]), "{traffic}");
        let names = fs::read_dir(recorder.dir()).unwrap().count();
        assert_eq!(names, 10, "no temporary file is left");
    }
}
