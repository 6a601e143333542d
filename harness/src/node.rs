//! What a node does with its plan: opens its store and runs its part of the federated job.
//!
//! Knows no stream and no controller: commands come in over a channel, news go out through an [`Outbox`].

use tokio::sync::mpsc;

use crate::control::Start;
use crate::control::node_end::{Command, Outbox};

/// Runs a node until it is told to finish, or its command channel closes.
///
/// # Errors
/// What keeps it from running, in words for the controller's user; nothing secret.
pub async fn run(start: Start, outbox: Outbox, mut commands: mpsc::Receiver<Command>) -> anyhow::Result<()> {
    // SEAM: node. Open the transports and the store, run the federated node, answer Status.
    let _ = (start, outbox);
    while let Some(command) = commands.recv().await {
        if command == Command::Finish {
            break;
        }
    }
    Ok(())
}
