//! What a node finds on disk when it starts, put back where it was.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::config::RaftConfig;
use super::log::RaftLog;
use super::machine::Machine;
use crate::blob::Blobs;
use crate::event::Observer;
use crate::ledger::Record;
use crate::storage::{Shelf, Storage, StorageError};
use crate::store::{Digest, NodeId, Payload};

/// The parts of a node that a restart may find again.
pub(super) struct Recovered {
    pub(super) blobs: Blobs,
    pub(super) log: RaftLog,
    pub(super) machine: Machine,
}

/// The node's state as it is on disk, or a fresh one in memory.
pub(super) async fn recover(
    local: NodeId,
    config: &RaftConfig,
    storage: Option<Storage>,
    observer: Arc<dyn Observer>,
    missing: mpsc::UnboundedSender<Record>,
) -> Result<Recovered, StorageError> {
    let machine = |blobs: &Blobs| Machine::new(config.retained, blobs.clone(), observer, missing);
    let Some(storage) = storage else {
        let blobs = Blobs::default();
        return Ok(Recovered { machine: machine(&blobs), blobs, log: RaftLog::default() });
    };
    let nodes: Vec<String> = config.nodes.iter().map(NodeId::to_string).collect();
    storage.claim(local, &format!("the Raft group of nodes {}", nodes.join(", "))).await?;
    let (shelf, found) = Shelf::open(storage.clone())?;
    let log = RaftLog::open(shelf.clone(), &found)?;
    let blobs = Blobs::on_shelf(shelf.clone());
    let machine = machine(&blobs).resume(storage, config.retained)?;
    restore(&machine, &blobs, found, config.payload);
    shelf.sweep();
    machine.ask_for_missing();
    Ok(Recovered { blobs, log, machine })
}

/// Takes back the bytes of acknowledged checkpoints. In mode `digest` also those that nothing refers to yet: this node may
/// have told a leader that it holds them. They stay as long as bytes of a write under way do.
fn restore(machine: &Machine, blobs: &Blobs, found: BTreeMap<Digest, Bytes>, payload: Payload) {
    for (digest, bytes) in found {
        if payload == Payload::Digest || machine.read(|ledger| ledger.refers_to(digest)) {
            blobs.stage(digest, bytes);
        }
    }
}
