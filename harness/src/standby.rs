//! A node that keeps its store and takes no part in a job: elections happen to it. Writes a few bytes where it is told to, so
//! that there is a log, and tells when it is connected.

use std::sync::Arc;

use bytes::Bytes;
use replication::transport::Transport;
use replication::{AnyStore, Checkpoint, CheckpointId, Metadata, Phase, Slot};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::control::node_end::Outbox;
use crate::control::{Lifecycle, NodeEvent};

/// Bytes of a checkpoint: so few that they are nothing beside an election's messages.
const CHECKPOINT_BYTES: usize = 64;

/// Runs until `rounds`, which says what is to be written, closes.
///
/// # Errors
/// None today; a store that fails says so in [`Lifecycle::Written`].
pub(crate) async fn run(
    store: AnyStore,
    transport: Arc<dyn Transport>,
    outbox: Outbox,
    mut rounds: mpsc::Receiver<u64>,
) -> anyhow::Result<()> {
    let mut connected = transport.connected();
    connected.mark_changed();
    let mut writes = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Ok(()) = connected.changed() => {
                let peers = connected.borrow_and_update().len() as u64;
                outbox.event(NodeEvent::Node(Lifecycle::Connected { peers }));
            }
            Some(_) = writes.join_next() => {}
            round = rounds.recv() => {
                let Some(round) = round else { return Ok(()) };
                writes.spawn(write(store.clone(), round, outbox.clone()));
            }
        }
    }
}

async fn write(store: AnyStore, round: u64, outbox: Outbox) {
    let epoch = *store.aggregator().borrow();
    let failure = match epoch {
        None => Some("no aggregator is known".into()),
        Some(epoch) => {
            let id = CheckpointId { epoch, round, phase: Phase::AggregateFit, slot: Slot::Global };
            let bytes: Vec<u8> = round.to_le_bytes().into_iter().cycle().take(CHECKPOINT_BYTES).collect();
            let checkpoint = Checkpoint::new(id, Bytes::from(bytes), Metadata::new());
            store.put(checkpoint).await.err().map(|error| error.to_string())
        }
    };
    outbox.event(NodeEvent::Node(Lifecycle::Written { round, failure }));
}
