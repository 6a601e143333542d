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
        // RangeResponse.kvs, KeyValue.value; protobuf leaves out what is empty.
        let entry = find_bytes(&answer, 2);
        Ok(entry.map(|entry| Bytes::copy_from_slice(find_bytes(entry, 5).unwrap_or_default())))
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

/// Adds a field of bytes to a message of protobuf.
fn put_bytes(message: &mut BytesMut, number: u8, value: &[u8]) {
    message.put_u8(number << 3 | 2);
    put_varint(message, value.len() as u64);
    message.put_slice(value);
}

fn put_varint(message: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        message.put_u8((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    message.put_u8(value as u8);
}

fn take_varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The first field `number` of a message of protobuf, if it is of bytes.
fn find_bytes(mut message: &[u8], number: u64) -> Option<&[u8]> {
    while !message.is_empty() {
        let tag = take_varint(&mut message)?;
        match tag & 7 {
            0 => drop(take_varint(&mut message)?),
            2 => {
                let length = usize::try_from(take_varint(&mut message)?).ok()?;
                let (value, rest) = message.split_at_checked(length)?;
                if tag >> 3 == number {
                    return Some(value);
                }
                message = rest;
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_others_and_damage_is_none() {
        let mut entry = BytesMut::new();
        put_bytes(&mut entry, 1, b"key");
        entry.put_slice(&[2 << 3, 0x96, 0x01]);
        put_bytes(&mut entry, 5, &[7; 300]);
        let mut message = BytesMut::new();
        put_bytes(&mut message, 1, b"header");
        put_bytes(&mut message, 2, &entry);
        let found = find_bytes(&message, 2).and_then(|entry| find_bytes(entry, 5));
        assert_eq!(found, Some(&[7; 300][..]));
        assert_eq!(find_bytes(&message, 3), None);
        for cut in 0..message.len() {
            assert_eq!(find_bytes(&message[..cut], 2), None, "cut at {cut}");
        }
    }
}
