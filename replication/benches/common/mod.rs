//! What the benches on clusters and on sockets share.

#![allow(dead_code, reason = "each bench uses a part")]

use std::collections::BTreeSet;
use std::net::SocketAddr;

use bytes::Bytes;
use quinn::{Connection, Endpoint};
use replication::raft::{Electorate, RaftConfig};
use replication::{
    Checkpoint, CheckpointId, DEFAULT_RETAINED, Epoch, Metadata, NodeId, Payload, Phase, Slot, Window,
};
use tokio::runtime::Runtime;

pub(crate) const WINDOW: Window = Window { from_ms: 1000, to_ms: 2000 };
pub(crate) const HEARTBEAT_MS: u64 = 100;
pub(crate) const PUT_TIMEOUT_MS: u64 = 10_000;

/// As many threads as the smallest machine has cores.
pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// A port that is free.
pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Raft among `nodes`, all of them voters.
pub(crate) fn raft(nodes: BTreeSet<NodeId>, payload: Payload) -> RaftConfig {
    RaftConfig {
        nodes,
        electorate: Electorate::Everyone,
        payload,
        window: WINDOW,
        heartbeat_ms: HEARTBEAT_MS,
        put_timeout_ms: PUT_TIMEOUT_MS,
        retained: DEFAULT_RETAINED,
        seed: 1,
    }
}

/// What the aggregator of `epoch` writes after a round.
pub(crate) fn checkpoint(epoch: Epoch, round: u64, bytes: Bytes) -> Checkpoint {
    let id = CheckpointId { epoch, round, phase: Phase::AggregateFit, slot: Slot::Global };
    Checkpoint::new(id, bytes, Metadata::new())
}

/// On a bare connection to [`read_streams`].
pub(crate) async fn send(connection: &Connection, bytes: Bytes) {
    let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
    send.write_chunk(bytes).await.expect("sent");
    send.finish().expect("open");
    receive.read_to_end(1).await.expect("answered");
}

/// Reads every stream of the first connection, of at most `bytes`, to its end and answers one byte.
pub(crate) async fn read_streams(server: Endpoint, bytes: usize) {
    let connection = server.accept().await.expect("a connection").await.expect("a handshake");
    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
        tokio::spawn(async move {
            receive.read_to_end(bytes).await.expect("whole");
            send.write_all(&[1]).await.expect("answered");
        });
    }
}

pub(crate) fn median(samples: &mut [u128]) -> u128 {
    samples.sort_unstable();
    samples[samples.len() / 2]
}
