//! What a node does in a key-value run: opens its store and serves clients on the port of the learning plane.

use std::collections::{BTreeSet, VecDeque};
use std::pin::pin;
use std::sync::Arc;

use anyhow::Context as _;
use replication::NodeId;
use replication::transport::Transport as _;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use workloads::keyvalue::Server;
use workloads::keyvalue::message::Response;
use workloads::keyvalue::meter::Meter;
use workloads::keyvalue::server::{Admission, Extras};

use crate::control::node_end::{Command, Outbox};
use crate::control::{Lifecycle, NodeEvent, Start};
use crate::kv::leaderboard;
use crate::kv::plan::KvPlan;
use crate::node::Node;
use crate::plan::Plan;

/// Requests for further nodes that wait; beyond that they are refused.
const WAITING_ADMISSIONS: usize = 4;

/// Runs a node until it is told to finish, its command channel closes, or it has left its cluster.
///
/// On one thread of its own, apart from the storage's: a small operation passes through a dozen tasks, each with microseconds of
/// work, and waking another thread for the next one costs more than that.
///
/// # Errors
/// What keeps it from running, in words for the controller's user; nothing secret.
pub async fn run(start: Start, outbox: Outbox, commands: mpsc::Receiver<Command>) -> anyhow::Result<()> {
    let (ended, outcome) = oneshot::channel();
    // Metrics are shown by other threads than the server's.
    let others = Handle::current();
    let serving = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let outcome = runtime.context("cannot start the server's runtime").and_then(|runtime| {
            let outcome = runtime.block_on(serve(start, outbox, commands, &others));
            // What still runs in the background may be in the middle of a read of the disk.
            runtime.shutdown_background();
            outcome
        });
        let _ = ended.send(outcome);
    };
    std::thread::Builder::new().name("server".into()).spawn(serving).context("cannot start the server")?;
    outcome.await.context("the server failed")?
}

async fn serve(
    start: Start,
    outbox: Outbox,
    mut commands: mpsc::Receiver<Command>,
    others: &Handle,
) -> anyhow::Result<()> {
    let plan = &start.plan;
    let load = plan.kv.as_ref().context("the plan is of another workload")?.load;
    let node = Node::open(&start, &outbox).await?;
    let (admissions, mut asked) = mpsc::channel(WAITING_ADMISSIONS);
    let configuration = serde_json::to_string(&load)?;
    let meter = node.observed.clone().map(|observed| observed as Arc<dyn Meter>);
    let extras = Extras { admissions: Some(admissions), meter };
    let server = Server::with(start.node, node.store.clone(), configuration, extras);
    let counted = server.clone();
    let _metrics = node.show_metrics(&start, others, move || counted.status().batches)?;
    node.learning.serve(Arc::new(server.clone()));
    let mut peers: BTreeSet<NodeId> = start.peers.iter().copied().collect();
    let mut waiting: VecDeque<Admission> = VecDeque::new();
    // Ends with this function.
    let _service = match (&plan.kv, plan.learning_address(start.node)) {
        (Some(KvPlan { board: Some(_), .. }), Some(at)) => {
            // A life of its own for the keys it gives: a restarted node must not give them again.
            let nonce = random_nonce();
            Some(leaderboard::serve(server.clone(), node.learning.clone(), at, nonce).await?)
        }
        _ => None,
    };
    let outcome = {
        let mut serving = pin!(server.run());
        loop {
            tokio::select! {
                () = &mut serving => {
                    if server.has_left() {
                        outbox.event(NodeEvent::Node(Lifecycle::Left));
                    }
                    break node.because_of_its_disk(Ok(())).await;
                }
                Some(admission) = asked.recv() => {
                    waiting.push_back(admission);
                    outbox.event(NodeEvent::Node(Lifecycle::NodeWanted));
                }
                command = commands.recv() => match command {
                    Some(Command::Status { request_id }) => outbox.status(node.status(request_id)),
                    Some(Command::Impair(impair)) => node.impair(plan, &impair),
                    Some(Command::Peers { nodes, asked_by }) => {
                        node.meet(plan, &nodes)?;
                        let added = nodes.iter().copied().find(|node| !peers.contains(node));
                        peers = nodes.into_iter().collect();
                        // Each request has an answer of its own, in the order in which they were made.
                        let answered = asked_by.filter(|asked_by| *asked_by == start.node);
                        if let Some(admission) = answered.and_then(|_| waiting.pop_front()) {
                            // Whoever asked may be gone.
                            let _ = admission.send(admitted(plan, added));
                        }
                    }
                    // What is written comes from clients.
                    Some(Command::Put { .. }) => {}
                    Some(Command::Leave | Command::Finish) | None => break Ok(()),
                },
            }
        }
    };
    outbox.status(node.close().await);
    outcome
}

/// From the operating system's randomness.
fn random_nonce() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one("nonce")
}

/// The answer to a request for one more node, of which `added` came.
fn admitted(plan: &Plan, added: Option<NodeId>) -> Response {
    match added.and_then(|node| Some((node, plan.learning_address(node)?))) {
        Some((node, address)) => Response::Added { node, address: address.to_string() },
        None => Response::Unavailable {
            maybe: false,
            reason: "the run has no further node: nodes are added with raft only, and 4 at most".into(),
        },
    }
}
