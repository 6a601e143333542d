//! What a node does in a key-value run: opens its store and serves clients on the port of the learning plane.

use std::pin::pin;
use std::sync::Arc;

use anyhow::Context as _;
use replication::transport::Transport as _;
use tokio::sync::mpsc;
use workloads::keyvalue::Server;

use crate::control::Start;
use crate::control::node_end::{Command, Outbox};
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
                    Some(Command::Impair { losses }) => node.losses.set(shares(plan, &losses)),
                    Some(Command::Finish) | None => break Ok(()),
                },
            }
        }
    };
    outbox.status(node.close().await);
    outcome
}
