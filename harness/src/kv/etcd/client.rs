//! A client of etcd with a connection of its own: HTTP/2 without TLS, and the three calls of gRPC that a dictionary needs, by
//! hand (Range, Put, DeleteRange of `etcdserverpb.KV`). etcd's members pass writes on to their leader themselves.
//!
//! It does not know where members run.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use replication::NodeId;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use workloads::keyvalue::history::Ended;
use workloads::keyvalue::load::{Dictionary, Load};

use super::message::{put_bytes, value_of};
use crate::kv::load::Target;

/// Pause after a call that failed, and between attempts to connect.
const PAUSE: Duration = Duration::from_millis(20);
/// gRPC's prefix of a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// A client of one member.
#[derive(Debug)]
pub(super) struct EtcdClient {
    member: NodeId,
    authority: SocketAddr,
    requests: h2::client::SendRequest<Bytes>,
    patience: Duration,
    asked: u64,
}

impl EtcdClient {
    async fn connect(member: NodeId, authority: SocketAddr, patience: Duration) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(authority).await?;
        stream.set_nodelay(true)?;
        let (requests, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to etcd ended");
            }
        });
        Ok(Self { member, authority, requests, patience, asked: 0 })
    }

    /// Calls `method`; returns the message of its answer.
    async fn call(&mut self, method: &str, message: &[u8]) -> anyhow::Result<Bytes> {
        self.asked += 1;
        let patience = self.patience;
        let answer = timeout(patience, self.attempt(method, message));
        let answer = answer.await.map_err(|_| anyhow::anyhow!("no answer within {patience:?}"));
        let answer = answer.and_then(|answer| answer);
        if let Err(error) = &answer {
            tracing::debug!("{method}: {error:#}");
            sleep(PAUSE).await;
        }
        answer
    }

    async fn attempt(&self, method: &str, message: &[u8]) -> anyhow::Result<Bytes> {
        let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.len());
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len())?);
        framed.put_slice(message);
        let request = http::Request::post(format!("http://{}/etcdserverpb.KV/{method}", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let mut requests = self.requests.clone().ready().await?;
        let (response, mut stream) = requests.send_request(request, false)?;
        stream.send_data(framed.freeze(), true)?;
        let response = response.await?;
        accepted(response.headers())?;
        let mut body = response.into_body();
        let mut answer = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            answer.put_slice(&chunk);
        }
        if let Some(trailers) = body.trailers().await? {
            accepted(&trailers)?;
        }
        anyhow::ensure!(answer.len() >= PREFIX_BYTES, "an answer without a message");
        answer.advance(PREFIX_BYTES);
        Ok(answer.freeze())
    }

    async fn write(&mut self, method: &str, message: BytesMut) -> Result<(), Ended> {
        // How far it came is not known.
        self.call(method, &message).await.map(drop).map_err(|_| Ended::Unknown)
    }
}

/// Refuses a gRPC status other than success.
fn accepted(headers: &http::HeaderMap) -> anyhow::Result<()> {
    let refused = headers.get("grpc-status").is_some_and(|status| status != "0");
    anyhow::ensure!(!refused, "refused: {:?}", headers.get("grpc-message"));
    Ok(())
}

impl Dictionary for EtcdClient {
    async fn get(&mut self, key: &str) -> Result<Option<Bytes>, Ended> {
        let mut message = BytesMut::new();
        put_bytes(&mut message, 1, key.as_bytes());
        let answer = self.call("Range", &message).await.map_err(|_| Ended::Failed)?;
        Ok(value_of(&answer).map(Bytes::copy_from_slice))
    }

    async fn set(&mut self, key: &str, value: Bytes) -> Result<(), Ended> {
        let mut message = BytesMut::new();
        put_bytes(&mut message, 1, key.as_bytes());
        put_bytes(&mut message, 2, &value);
        self.write("Put", message).await
    }

    async fn delete(&mut self, key: &str) -> Result<(), Ended> {
        let mut message = BytesMut::new();
        put_bytes(&mut message, 1, key.as_bytes());
        self.write("DeleteRange", message).await
    }

    fn trace(&self) -> (u64, u64) {
        (self.member.0, self.asked)
    }
}

/// The members of a cluster of etcd, where clients reach them.
#[derive(Debug)]
pub(super) struct Members(pub(super) Vec<(NodeId, SocketAddr)>);

impl Target for Members {
    type Client = EtcdClient;

    async fn connect(&mut self, load: Load) -> anyhow::Result<Vec<EtcdClient>> {
        let patience = Duration::from_nanos(load.patience_ns);
        let mut clients = Vec::new();
        for (member, address) in self.0.iter().cycle().take(load.clients as usize) {
            clients.push(loop {
                match EtcdClient::connect(*member, *address, patience).await {
                    Ok(client) => break client,
                    Err(error) => tracing::debug!("member {member} does not listen yet: {error:#}"),
                }
                sleep(PAUSE).await;
            });
        }
        // A linearizable read succeeds once there is a leader.
        let first = clients.first_mut().context("a load without clients")?;
        while first.get("any").await.is_err() {
            sleep(PAUSE).await;
        }
        first.asked = 0;
        Ok(clients)
    }

    /// Its members agree by its own means, which are not looked into.
    async fn converged(&mut self) -> anyhow::Result<Vec<NodeId>> {
        Ok(Vec::new())
    }

    async fn close(&mut self) {}
}
