//! The web service on a node: TCP at the address and port where the learning plane has UDP.

use std::net::SocketAddrV4;
use std::sync::Arc;

use anyhow::Context as _;
use replication::transport::Transport;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use workloads::keyvalue::Server;
use workloads::leaderboard::{Desk, router};

use crate::http::service::accept;

/// Connections that are served at once; others wait.
const MAX_CONNECTIONS: usize = 1024;

/// Serves until the returned task is dropped. `transport` reaches the other nodes' servers.
///
/// # Errors
/// If the address cannot be had.
pub(in crate::kv) async fn serve(
    server: Server,
    transport: Arc<dyn Transport>,
    at: SocketAddrV4,
    nonce: u64,
) -> anyhow::Result<JoinSet<()>> {
    let listener = TcpListener::bind(at).await.with_context(|| format!("cannot serve HTTP at {at}"))?;
    let service = router(Arc::new(Desk::new(server, transport, nonce)));
    let mut task = JoinSet::new();
    task.spawn(accept(listener, service, MAX_CONNECTIONS));
    Ok(task)
}
