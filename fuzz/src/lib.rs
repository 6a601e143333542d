//! One function for every decoder: takes any bytes, checks what must hold whatever they are, and says whether they were
//! accepted. A check that fails panics.
//!
//! ```text
//!   planes    frames, and what nodes say to each other       lines     what controller, nodes and hosts say to each other
//!   stores    what is found on disk and in images            texts     what people write: inventories, experiments, options
//!   packets   what a capture sees, etcd, metrics             results   folders of results
//! ```
//!
//! `fuzz_targets/` gives each of them to libFuzzer; `tests/fuzz/` of the workspace runs them over the seeds in `corpus/` and
//! over mutations of these. They know nothing of either.

use std::path::PathBuf;

use tempfile::TempDir;

mod lines;
mod packets;
mod planes;
mod results;
mod stores;
mod texts;

/// Reads bytes; whether they were accepted.
pub type Target = fn(&[u8]) -> bool;

/// Every target by its name, which is that of its folder in `corpus/`.
pub const TARGETS: [(&str, Target); 20] = [
    ("frame", planes::frame),
    ("replication_plane", planes::replication),
    ("gossip_state", planes::gossip),
    ("learning_plane", planes::learning),
    ("keyvalue", planes::keyvalue),
    ("storage", stores::storage),
    ("cifar", stores::cifar),
    ("rest", lines::rest),
    ("control", lines::control),
    ("manifest", results::manifest),
    ("results", results::report),
    ("tables", results::tables),
    ("inventory_ini", texts::inventory_ini),
    ("inventory_yaml", texts::inventory_yaml),
    ("experiment", texts::experiment),
    ("link", texts::link),
    ("words", texts::words),
    ("packet", packets::packet),
    ("etcd", packets::etcd),
    ("metrics", packets::metrics),
];

/// Runs a target by its name.
///
/// # Panics
/// If there is no such target, or a check fails.
pub fn run(name: &str, bytes: &[u8]) -> bool {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = target.unwrap_or_else(|| panic!("there is no target {name}"));
    target(bytes)
}

/// A folder of this thread's own, for files that a decoder reads from disk.
fn scratch(name: &str) -> PathBuf {
    thread_local! {
        static FOLDER: TempDir = tempfile::tempdir().expect("a folder for files");
    }
    let folder = FOLDER.with(|folder| folder.path().join(name));
    std::fs::create_dir_all(&folder).expect("a folder for files");
    folder
}

/// The outcome of `future` on a runtime of its own, in virtual time.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(future)
}

/// The first byte, and what follows.
fn selected(bytes: &[u8]) -> Option<(u8, &[u8])> {
    bytes.split_first().map(|(first, rest)| (*first, rest))
}
