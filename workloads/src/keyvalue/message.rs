//! What clients and servers say to each other: postcard in the body of one frame each way. docs/KEYVALUE.md describes it.
//!
//! Decoding is total, and limits are checked on both sides: before a client sends, and before a server does anything.

use bytes::Bytes;
use replication::transport::{Frame, Refusal, head};
use replication::{Epoch, NodeId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest key, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 1024;
/// Longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;
/// Longest message: a page of entries and what surrounds it.
pub const MAX_MESSAGE_BYTES: u64 = 256 * 1024;
/// A page of a dictionary ends once its entries have this many bytes.
pub const PAGE_BYTES: usize = 128 * 1024;
/// Most lines of the log in one answer.
pub const MAX_LOG_LINES: u32 = 256;
/// Tag of the frames; the version of this protocol is in it.
pub const TAG: u8 = 0x61;

/// A client's session: the number of the command that opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub u64);

/// Tells a repeated write from a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The session.
    pub session: SessionId,
    /// Grows by one with every write of the session.
    pub serial: u64,
}

/// A change of one entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The entry has this value.
    Set {
        /// Its key.
        key: String,
        /// Its value.
        value: Bytes,
    },
    /// The entry is gone.
    Delete {
        /// Its key.
        key: String,
    },
    /// The entry, a decimal number (none: 0), grows. Not idempotent, so it shows a write that was applied twice.
    Add {
        /// Its key.
        key: String,
        /// By how much.
        by: i64,
    },
}

impl Change {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Set { key, .. } | Self::Delete { key } | Self::Add { key, .. } => key,
        }
    }

    /// Bytes of key and value.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.key().len() + if let Self::Set { value, .. } = self { value.len() } else { 0 }
    }

    /// Checks the limits.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn within_limits(&self) -> Result<(), TooLarge> {
        let value = if let Self::Set { value, .. } = self { value.len() } else { 0 };
        check_key(self.key())?;
        within("value", value, MAX_VALUE_BYTES)
    }
}

/// Checks a key's length.
///
/// # Errors
/// [`TooLarge`].
pub fn check_key(key: &str) -> Result<(), TooLarge> {
    within("key", key.len(), MAX_KEY_BYTES)
}

fn within(what: &'static str, bytes: usize, limit: usize) -> Result<(), TooLarge> {
    if bytes > limit { Err(TooLarge { what, bytes, limit }) } else { Ok(()) }
}

/// A key or value over its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the {what} has {bytes} bytes, the limit is {limit}")]
pub struct TooLarge {
    /// Key or value.
    pub what: &'static str,
    /// Its length.
    pub bytes: usize,
    /// The limit.
    pub limit: usize,
}

/// What is replicated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A client begins to number its writes.
    OpenSession,
    /// A change; without an origin it is applied as often as it arrives.
    Change {
        /// Who numbered it.
        origin: Option<Origin>,
        /// What it changes.
        change: Change,
    },
    /// A change that is applied once under its key, whoever sends it.
    Once {
        /// The key, at most [`MAX_KEY_BYTES`].
        key: String,
        /// What it changes.
        change: Change,
    },
}

impl Command {
    /// What it changes, if it changes an entry.
    #[must_use]
    pub fn change(&self) -> Option<&Change> {
        match self {
            Self::OpenSession => None,
            Self::Change { change, .. } | Self::Once { change, .. } => Some(change),
        }
    }

    /// Checks the limits.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn within_limits(&self) -> Result<(), TooLarge> {
        if let Self::Once { key, .. } = self {
            check_key(key)?;
        }
        self.change().map_or(Ok(()), Change::within_limits)
    }
}

/// What a command did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// The session is open.
    Opened(SessionId),
    /// The entry was set or deleted; whether there was one before.
    Done {
        /// Whether there was an entry of this key.
        existed: bool,
    },
    /// The number that the entry has now.
    Sum(i64),
    /// Nothing.
    Refused(Refused),
}

/// Why a command did nothing. The same on every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refused {
    /// The session was closed, because too many others were used since, or never opened.
    #[error("the session is unknown: it was closed, because it was unused for long")]
    UnknownSession,
    /// A later write of the session was applied.
    #[error("a later write of the same session was applied before")]
    Stale,
    /// The entry cannot be added to.
    #[error("the value is no number")]
    NotANumber,
    /// The sum does not fit.
    #[error("the sum does not fit into 64 bits")]
    Overflow,
    /// Another change was made under the same idempotency key.
    #[error("the idempotency key was used for another change")]
    KeyReused,
}

/// How new an answer has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freshness {
    /// Everything acknowledged before: the aggregator asks a majority first.
    Index,
    /// The same, by the aggregator's lease.
    Lease,
    /// What this node has; may be stale.
    Local,
}

/// A client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Replicate this.
    Write(Command),
    /// The value of a key.
    Read {
        /// The key.
        key: String,
        /// How new the answer has to be.
        freshness: Freshness,
    },
    /// Entries in the order of their keys.
    Page {
        /// Those after this key; none: from the first.
        after: Option<String>,
        /// How new the answer has to be.
        freshness: Freshness,
    },
    /// How the node is.
    Status,
    /// The newest commands this node has applied, at most so many.
    Log {
        /// How many.
        lines: u32,
    },
    /// The configuration of the test, as it was given to the node.
    Configuration,
    /// Leave the cluster for good, and end.
    Leave,
    /// Have one more node started, which joins the cluster.
    AddNode,
}

/// A server answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// The write is acknowledged.
    Written {
        /// What it did.
        effect: Effect,
        /// The number of the command.
        index: u64,
    },
    /// The value, if there is one.
    Value {
        /// The value.
        value: Option<Bytes>,
        /// Commands applied when it was read.
        index: u64,
    },
    /// Entries. A page is as of one moment; pages of one iteration need not be of the same.
    Page {
        /// In the order of their keys.
        entries: Vec<(String, Bytes)>,
        /// Whether there are more.
        more: bool,
        /// Commands applied when it was read.
        index: u64,
    },
    /// How the node is.
    Status(Box<Status>),
    /// The newest commands, oldest first.
    Log(Vec<LogLine>),
    /// The configuration of the test.
    Configuration(String),
    /// The node has left.
    Left,
    /// Ask that node, if one is known. Nothing was done.
    Elsewhere {
        /// Who aggregates, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// It was tried and not acknowledged.
    Unavailable {
        /// Whether it may have been done all the same.
        maybe: bool,
        /// Why.
        reason: String,
    },
    /// The request makes no sense. Nothing was done.
    Invalid {
        /// Why.
        reason: String,
    },
    /// One more node is being started.
    Added {
        /// The node.
        node: NodeId,
        /// Where clients will reach it.
        address: String,
    },
}

/// How a node is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The node.
    pub node: NodeId,
    /// Whether it aggregates.
    pub leads: bool,
    /// Who aggregates, as far as it knows.
    pub epoch: Option<Epoch>,
    /// Commands applied here.
    pub index: u64,
    /// Batches applied here.
    pub batches: u64,
    /// Entries of the dictionary, as this node has it.
    pub entries: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Every node.
    pub members: Vec<NodeId>,
    /// Reads answered in the last 10 seconds.
    pub reads: u64,
    /// Writes answered in the last 10 seconds.
    pub writes: u64,
    /// Batches put or taken from the store in the last 10 seconds.
    pub appends: u64,
}

/// A line of a node's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// The number of the command, from 1.
    pub index: u64,
    /// Counter of the epoch that wrote it: Raft's term.
    pub term: u64,
    /// The command in words; values by their size.
    pub command: String,
}

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OpenSession => f.write_str("open session"),
            Self::Change { change, .. } => change.fmt(f),
            Self::Once { change, .. } => write!(f, "{change} (once)"),
        }
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Set { key, value } => write!(f, "set {key} ({} B)", value.len()),
            Self::Delete { key } => write!(f, "delete {key}"),
            Self::Add { key, by } => write!(f, "add {by} to {key}"),
        }
    }
}

/// A message as a frame.
#[must_use]
pub fn encode<T: Serialize>(message: &T) -> Frame {
    Frame::new(TAG, Bytes::new()).with_segment(head::encode(message))
}

/// A message of a frame; total.
///
/// # Errors
/// What is wrong with it.
pub fn decode<T: DeserializeOwned>(frame: Frame) -> Result<T, Refusal> {
    if frame.tag != TAG || !frame.head.is_empty() {
        return Err(Refusal("no message of the key-value protocol, or of another version".into()));
    }
    head::decode(&frame.into_body())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (".{0,40}", proptest::collection::vec(any::<u8>(), 0..200))
                .prop_map(|(key, value)| Change::Set { key, value: value.into() }),
            ".{0,40}".prop_map(|key| Change::Delete { key }),
            (".{0,40}", any::<i64>()).prop_map(|(key, by)| Change::Add { key, by }),
        ]
    }

    fn request() -> impl Strategy<Value = Request> {
        let origin = proptest::option::of((any::<u64>(), any::<u64>()));
        prop_oneof![
            Just(Request::Write(Command::OpenSession)),
            (origin, change()).prop_map(|(origin, change)| {
                let origin = origin.map(|(session, serial)| Origin { session: SessionId(session), serial });
                Request::Write(Command::Change { origin, change })
            }),
            (".{0,40}", change()).prop_map(|(key, change)| Request::Write(Command::Once { key, change })),
            ".{0,40}".prop_map(|key| Request::Read { key, freshness: Freshness::Lease }),
            Just(Request::Page { after: None, freshness: Freshness::Local }),
            any::<u32>().prop_map(|lines| Request::Log { lines }),
        ]
    }

    proptest! {
        #[test]
        fn a_request_is_read_back_as_written(request in request()) {
            let frame = encode(&request);
            prop_assert_eq!(decode::<Request>(frame.clone()).unwrap(), request);
            let body = frame.into_body();
            for end in 0..body.len() {
                let cut = Frame::new(TAG, Bytes::new()).with_segment(body.slice(..end));
                prop_assert!(decode::<Request>(cut).is_err(), "{} of {} bytes", end, body.len());
            }
        }

        #[test]
        fn garbage_is_refused_or_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let frame = Frame::new(TAG, Bytes::new()).with_segment(bytes.into());
            let _ = decode::<Request>(frame.clone());
            let _ = decode::<Response>(frame);
        }
    }

    #[test]
    fn limits_are_named() {
        let long = Change::Set { key: "k".into(), value: vec![0; MAX_VALUE_BYTES + 1].into() };
        assert_eq!(
            long.within_limits().unwrap_err().to_string(),
            "the value has 65537 bytes, the limit is 65536"
        );
        let key = Change::Delete { key: "k".repeat(MAX_KEY_BYTES + 1) };
        assert_eq!(key.within_limits().unwrap_err().what, "key");
        assert!(Change::Add { key: "k".repeat(MAX_KEY_BYTES), by: 1 }.within_limits().is_ok());
    }
}
