//! What a node does in a key-value run: opens its store and serves clients on the port of the learning plane.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use replication::transport::Transport as _;
use tokio::sync::mpsc;
use workloads::keyvalue::Server;

use crate::control::node_end::{Command, Outbox};
use crate::control::{Impair, Start};
use crate::node::{Node, shares};

/// Runs a node until it is told to finish, its command channel closes, or it has left its cluster.
///
/// # Errors
/// What keeps it from running, in words for the controller's user; nothing secret.
pub async fn run(start: Start, outbox: Outbox, mut commands: mpsc::Receiver<Command>) -> anyhow::Result<()> {
    let plan = &start.plan;
    let load = plan.kv.as_ref().context("the plan is of another workload")?.load;
    let node = Node::open(&start, &outbox).await?;
    let server = Server::new(start.node, node.store.clone(), serde_json::to_string(&load)?);
    node.learning.serve(Arc::new(server.clone()));
    let outcome = {
        let mut serving = pin!(server.run());
        loop {
            tokio::select! {
                () = &mut serving => break node.because_of_its_disk(Ok(())).await,
                command = commands.recv() => match command {
                    Some(Command::Status { request_id }) => outbox.status(node.status(request_id)),
                    Some(Command::Impair(Impair { losses, delay_ns })) => {
                        node.disturbance.set(shares(plan, &losses), Duration::from_nanos(delay_ns));
                    }
                    // Nobody joins or leaves, and what is written comes from clients.
                    Some(Command::Peers { .. } | Command::Put { .. }) => {}
                    Some(Command::Leave | Command::Finish) | None => break Ok(()),
                },
            }
        }
    };
    outbox.status(node.close().await);
    outcome
}
