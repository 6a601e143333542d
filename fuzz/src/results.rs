//! Folders of results: what their manifests say, what a report makes of them, and an experiment that is continued.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use harness::disk::{CLUSTER_FILE, Label};
use harness::experiment::manifest::Manifest;
use harness::experiment::tables::{TRIALS, Tables};
use harness::kv::cluster::ClusterAddress;
use harness::report::{Report, load};
use harness::resume::Earlier;
use harness::watch::targets::Targets;

use super::{scratch, selected};

/// Files that a folder may have.
const FILES: [&str; 11] = [
    "manifest.json",
    "summary.json",
    TRIALS,
    "rounds.csv",
    "checkpoints.csv",
    "failovers.csv",
    "traffic.csv",
    "capture_totals.csv",
    "nodes.csv",
    "events.csv",
    "elections.csv",
];
/// What a line before a file begins with.
const MARK: &str = "=== ";

/// The files that `bytes` are made of: before each is a line with its name. None if something is before the first.
fn files(bytes: &[u8]) -> Option<BTreeMap<&'static str, Vec<u8>>> {
    let mut files: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    let mut current = None;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let named = line.strip_prefix(MARK.as_bytes()).map(<[u8]>::trim_ascii_end);
        match named.and_then(|name| FILES.into_iter().find(|known| known.as_bytes() == name)) {
            Some(name) => current = Some(name),
            None => files.entry(current?).or_default().extend_from_slice(line),
        }
    }
    Some(files)
}

/// A folder with these files and no others.
fn folder(name: &str, files: &BTreeMap<&str, Vec<u8>>) -> PathBuf {
    let dir = scratch(name);
    for name in FILES {
        match files.get(name) {
            Some(content) => fs::write(dir.join(name), content).expect("a file"),
            None => drop(fs::remove_file(dir.join(name))),
        }
    }
    dir
}

/// A folder that is reported.
pub(crate) fn report(bytes: &[u8]) -> bool {
    let Some(files) = files(bytes) else { return false };
    let dir = folder("results", &files);
    let study = match load::read(std::slice::from_ref(&dir)) {
        Ok(study) => study,
        Err(error) => {
            let text = format!("{error:#}");
            assert!(text.contains(&dir.display().to_string()), "{text}");
            return false;
        }
    };
    let report = Report::of(&study).expect("the program's own reference");
    assert!(!report.section().is_empty());
    true
}

/// The folder of an experiment that is continued: the first line of trials.csv are its columns.
pub(crate) fn tables(bytes: &[u8]) -> bool {
    let Some(files) = files(bytes) else { return false };
    let Some(columns) = files.get(TRIALS).and_then(|text| columns(text)) else { return false };
    let dir = folder("tables", &files);
    fs::create_dir_all(dir.join("trials/1")).expect("a folder");
    let Ok(tables) = opened(&dir, &columns) else { return false };
    let done = tables.done().clone();
    assert!(tables.failed().is_subset(&done));
    assert_eq!(dir.join("trials/1").exists(), done.contains(&1));
    drop(tables);
    let content = |dir: &Path| FILES.map(|name| fs::read(dir.join(name)).ok());
    let kept = content(&dir);
    let again = opened(&dir, &columns).expect("what was opened is opened again");
    assert_eq!(again.done(), &done);
    assert_eq!(content(&dir), kept, "there is nothing left to remove");
    true
}

/// Opens tables. A child that somebody in this process has just forked may still hold the lock of those that were let go of.
fn opened(dir: &Path, columns: &[String]) -> anyhow::Result<Tables> {
    loop {
        match Tables::open(dir, columns.to_vec()) {
            Err(error) if error.to_string().contains("another process") => std::thread::yield_now(),
            outcome => return outcome,
        }
    }
}

/// The fields of the first line.
fn columns(text: &[u8]) -> Option<Vec<String>> {
    let mut reader = csv::Reader::from_reader(text);
    Some(reader.headers().ok()?.iter().map(str::to_owned).collect())
}

/// Which file in JSON, and the file.
pub(crate) fn manifest(bytes: &[u8]) -> bool {
    let Some((selector, rest)) = selected(bytes) else { return false };
    let dir = scratch("manifest");
    let file = if selector == b'l' { CLUSTER_FILE } else { "manifest.json" };
    let _ = fs::remove_file(dir.join(CLUSTER_FILE));
    // The stores of a run that can be continued.
    fs::create_dir_all(dir.join("store")).expect("a folder");
    fs::write(dir.join("store").join(CLUSTER_FILE), []).expect("a file");
    fs::write(dir.join(file), rest).expect("a file");
    let outcome = match selector {
        b'r' => Earlier::read(&dir, None).map(drop),
        b'e' => Manifest::read(&dir).map(|manifest| {
            let written = serde_json::to_vec(&manifest).expect("it is JSON");
            fs::write(dir.join(file), written).expect("a file");
            let read = Manifest::read(&dir).expect("what was written is read");
            assert_eq!(format!("{read:?}"), format!("{manifest:?}"));
        }),
        b'l' => Label::read(&dir).map(|label| {
            let label = label.expect("there is one");
            label.write(&dir).expect("a file");
            assert_eq!(Label::read(&dir), Ok(Some(label)));
        }),
        b'c' => ClusterAddress::read(&dir.join(file)).map(|cluster| {
            assert!(!cluster.ids().is_empty());
        }),
        b'w' => Targets::of_run(&dir).map(drop),
        _ => return false,
    };
    match outcome {
        Ok(()) => true,
        Err(error) => {
            assert!(error.to_string().contains(&dir.display().to_string()), "{error}");
            false
        }
    }
}
