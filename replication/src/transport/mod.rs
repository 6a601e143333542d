//! Requests between nodes, with the bytes counted by class.
//!
//! A [`Transport`] is one node's end of one plane (learning or replication). It knows who its peers are and keeps
//! warm connections to them; it does not know what a frame means. Two implementations: [`quic`] between processes
//! and hosts, [`channel`] inside one process, seeded, on which the same backends run.

pub mod channel;
mod count;
pub mod frame;
pub mod head;
pub mod identity;
pub mod quic;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::store::NodeId;

/// What a message is for. Decides its connection ([`Lane`]) and the column its bytes are counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Votes, pre-votes, leadership transfer.
    Election,
    /// Proof of life without payload.
    Heartbeat,
    /// Log entries and snapshots, with what they carry inline.
    Log,
    /// Ids, digests and acknowledgements of checkpoints whose bytes travel apart.
    Digest,
    /// Checkpoint bytes by digest.
    Blob,
    /// Small messages of the learning plane: instructions, outcomes.
    LearningControl,
    /// Model parameters on the learning plane.
    LearningBulk,
}

impl Class {
    /// Every class, in the order of the result columns.
    pub const ALL: [Self; 7] = [
        Self::Election,
        Self::Heartbeat,
        Self::Log,
        Self::Digest,
        Self::Blob,
        Self::LearningControl,
        Self::LearningBulk,
    ];

    /// As written in result files and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Election => "election",
            Self::Heartbeat => "heartbeat",
            Self::Log => "log",
            Self::Digest => "digest",
            Self::Blob => "blob",
            Self::LearningControl => "learning_control",
            Self::LearningBulk => "learning_bulk",
        }
    }

    /// The connection such messages travel on.
    #[must_use]
    pub const fn lane(self) -> Lane {
        match self {
            Self::Election | Self::Heartbeat | Self::Digest | Self::LearningControl => Lane::Control,
            Self::Log | Self::Blob | Self::LearningBulk => Lane::Bulk,
        }
    }
}

/// Each pair of nodes has one connection per lane, so that bulk data never delays a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Small messages.
    Control,
    /// Large messages.
    Bulk,
}

/// One request or response: a tag, a small structured head and a raw body.
///
/// The body is a list of segments, so that large values go from memory to the socket without being joined.
/// A received body has at most one segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    /// What the frame is; meaning given by the protocol above.
    pub tag: u8,
    /// Encoded structure, at most [`frame::MAX_HEAD_BYTES`].
    pub head: Bytes,
    /// Raw bytes, at most the limit the transport was opened with.
    pub body: Vec<Bytes>,
}

impl Frame {
    /// A frame without a body.
    #[must_use]
    pub fn new(tag: u8, head: impl Into<Bytes>) -> Self {
        Self { tag, head: head.into(), body: Vec::new() }
    }

    /// The same frame with `segment` appended to its body.
    #[must_use]
    pub fn with_segment(mut self, segment: Bytes) -> Self {
        self.body.push(segment);
        self
    }

    /// Bytes in the body.
    #[must_use]
    pub fn body_len(&self) -> usize {
        self.body.iter().map(Bytes::len).sum()
    }

    /// The body as one piece: free for a received frame, a copy if there are several segments.
    #[must_use]
    pub fn into_body(mut self) -> Bytes {
        match self.body.len() {
            0 => Bytes::new(),
            1 => self.body.swap_remove(0),
            _ => self.body.concat().into(),
        }
    }
}

/// Why a request failed, by what the peer may have seen of it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TransportError {
    /// There is no connection to the peer: it certainly did not get the request.
    #[error("node {peer} is not connected")]
    Unreachable {
        /// The peer.
        peer: NodeId,
    },
    /// The connection broke, or the peer stopped answering: it may have acted on the request.
    #[error("the request to node {peer} was interrupted: {reason}")]
    Interrupted {
        /// The peer.
        peer: NodeId,
        /// What happened.
        reason: String,
    },
    /// The peer got the request and refused it.
    #[error("node {peer} refused the request: {reason}")]
    Refused {
        /// The peer.
        peer: NodeId,
        /// The peer's words.
        reason: String,
    },
    /// The frame to send exceeds a limit; nothing was sent.
    #[error("a frame of {bytes} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Size in bytes.
        bytes: u64,
        /// Limit in bytes.
        limit: u64,
    },
    /// The transport was closed.
    #[error("the transport is closed")]
    Closed,
}

/// A handler's refusal; its text travels to the peer, so it says nothing secret.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// Answers requests from peers.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. `from` is proven by the peer's certificate. The future is dropped if the peer gives up.
    ///
    /// # Errors
    /// A refusal, which the peer sees as [`TransportError::Refused`].
    async fn handle(&self, from: NodeId, request: Frame) -> Result<Frame, Refusal>;
}

/// Payload bytes (frames as encoded, without QUIC, TLS and IP overhead) that this node sent and received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameCount {
    /// Frames sent, requests and responses.
    pub sent_frames: u64,
    /// Bytes of those frames.
    pub sent_bytes: u64,
    /// Frames received.
    pub received_frames: u64,
    /// Bytes of those frames.
    pub received_bytes: u64,
}

/// UDP datagrams of all connections of a lane, as the transport counts them (payload of UDP; add 28 bytes of IPv4 and
/// UDP header for each to compare with a capture).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatagramCount {
    /// Datagrams sent.
    pub sent_datagrams: u64,
    /// UDP payload bytes sent.
    pub sent_bytes: u64,
    /// Datagrams received.
    pub received_datagrams: u64,
    /// UDP payload bytes received.
    pub received_bytes: u64,
    /// Packets declared lost.
    pub lost_packets: u64,
}

/// What a transport counted since it was opened, closed connections included.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// By class, in the order of [`Class::ALL`]; a response counts in its request's class.
    pub frames: Vec<(Class, FrameCount)>,
    /// Over the control connections.
    pub control: DatagramCount,
    /// Over the bulk connections.
    pub bulk: DatagramCount,
}

/// One node's end of one plane.
#[async_trait]
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// This node.
    fn local(&self) -> NodeId;

    /// The nodes this transport knows an address of, without this one, in ascending order.
    fn peers(&self) -> Vec<NodeId>;

    /// Sends a request and waits for its response. Has no timeout of its own beyond the connection's idle timeout:
    /// wrap it in `tokio::time::timeout`; dropping the future cancels the request at the peer.
    ///
    /// # Errors
    /// By what the peer may have seen of the request.
    async fn request(&self, to: NodeId, class: Class, request: Frame) -> Result<Frame, TransportError>;

    /// Sets who answers requests; until then they wait. Called once.
    fn serve(&self, handler: Arc<dyn Handler>);

    /// Follows which peers have live connections on both lanes, in ascending order.
    fn connected(&self) -> watch::Receiver<Vec<NodeId>>;

    /// Smoothed round-trip time to every peer with a live control connection, in ascending order of peers.
    fn round_trips(&self) -> Vec<(NodeId, Duration)>;

    /// What was counted so far.
    fn traffic(&self) -> Traffic;

    /// Closes every connection and the socket; peers notice at once. Idempotent.
    async fn close(&self);
}
