//! Reading and writing the lines of the control protocol. Reading is total: garbage, an over-long line and a line of
//! another version are values, not panics, and the lines after them can still be read.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Longest line that is accepted, its newline included. A start message with a 4 kB identity and 244 nodes needs
/// 20 kB.
pub const MAX_LINE_BYTES: usize = 256 * 1024;

/// How much of an unreadable line is kept for the message.
const EXCERPT_CHARS: usize = 120;

/// Why a line was not understood.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The stream broke; nothing can be read after this.
    #[error("the control stream broke: {0}")]
    Stream(#[from] std::io::Error),
    /// The line is over the limit; it was skipped.
    #[error("a line of {bytes} bytes exceeds the limit of {MAX_LINE_BYTES}")]
    TooLong {
        /// Bytes skipped.
        bytes: u64,
    },
    /// The line is no message; it was skipped.
    #[error("not a control message ({reason}): {excerpt}")]
    Garbage {
        /// What the decoder says.
        reason: String,
        /// The start of the line, control characters escaped; empty where the line may hold a secret.
        excerpt: String,
    },
    /// A message to be written exceeds the limit; nothing was written.
    #[error("a message of {bytes} bytes exceeds the limit of {MAX_LINE_BYTES}")]
    MessageTooLong {
        /// Its size.
        bytes: usize,
    },
}

impl LineError {
    /// Whether further lines can be read.
    #[must_use]
    pub const fn is_skippable(&self) -> bool {
        !matches!(self, Self::Stream(_))
    }
}

/// Reads messages from a stream.
#[derive(Debug)]
pub struct LineReader<R> {
    stream: R,
    secret: bool,
    line: Vec<u8>,
    /// Bytes of an over-long line that were skipped so far; 0 when not skipping.
    skipped: u64,
}

impl<R: AsyncBufRead + Unpin> LineReader<R> {
    /// Reads from `stream`; errors quote what they could not read.
    pub fn new(stream: R) -> Self {
        Self { stream, secret: false, line: Vec::new(), skipped: 0 }
    }

    /// Reads from `stream`, whose lines may hold secrets: errors quote nothing.
    pub fn secret(stream: R) -> Self {
        Self { secret: true, ..Self::new(stream) }
    }

    /// The next message; `None` at the end of the stream. Cancel safe: a partly read line is kept.
    ///
    /// # Errors
    /// A line that is no message, or a broken stream.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LineError> {
        loop {
            let available = self.stream.fill_buf().await?;
            if available.is_empty() {
                return self.at_end();
            }
            let newline = available.iter().position(|byte| *byte == b'\n');
            let taken = newline.map_or(available.len(), |at| at + 1);
            if self.skipped > 0 || self.line.len() + taken > MAX_LINE_BYTES {
                self.skipped += (self.line.len() + taken) as u64;
                self.line.clear();
            } else {
                self.line.extend_from_slice(&available[..taken]);
            }
            self.stream.consume(taken);
            if newline.is_some() {
                if self.skipped > 0 {
                    return Err(LineError::TooLong { bytes: std::mem::take(&mut self.skipped) });
                }
                let line = std::mem::take(&mut self.line);
                return self.decode(&line).map(Some);
            }
        }
    }

    /// A last line without its newline was cut off: it is garbage, whatever it says.
    fn at_end<T>(&mut self) -> Result<Option<T>, LineError> {
        if self.skipped > 0 {
            return Err(LineError::TooLong { bytes: std::mem::take(&mut self.skipped) });
        }
        if self.line.is_empty() {
            return Ok(None);
        }
        let line = std::mem::take(&mut self.line);
        Err(LineError::Garbage { reason: "the stream ended within it".into(), excerpt: self.excerpt(&line) })
    }

    fn decode<T: DeserializeOwned>(&self, line: &[u8]) -> Result<T, LineError> {
        serde_json::from_slice(line).map_err(|error| {
            let reason =
                if self.secret { format!("{:?} error", error.classify()) } else { error.to_string() };
            LineError::Garbage { reason, excerpt: self.excerpt(line) }
        })
    }

    fn excerpt(&self, line: &[u8]) -> String {
        if self.secret {
            return String::new();
        }
        String::from_utf8_lossy(line)
            .trim_end()
            .chars()
            .take(EXCERPT_CHARS)
            .flat_map(char::escape_debug)
            .collect()
    }
}

/// Writes messages to a stream.
#[derive(Debug)]
pub struct LineWriter<W> {
    stream: W,
}

impl<W: AsyncWrite + Unpin> LineWriter<W> {
    /// Writes to `stream`.
    pub fn new(stream: W) -> Self {
        Self { stream }
    }

    /// Writes one message and flushes. Not cancel safe: finish it, or write no more.
    ///
    /// # Errors
    /// [`LineError::MessageTooLong`], or a broken stream.
    pub async fn send<T: Serialize + Sync>(&mut self, message: &T) -> Result<(), LineError> {
        let mut line = serde_json::to_vec(message).map_err(std::io::Error::other)?;
        line.push(b'\n');
        if line.len() > MAX_LINE_BYTES {
            return Err(LineError::MessageTooLong { bytes: line.len() });
        }
        self.stream.write_all(&line).await?;
        self.stream.flush().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use replication::{Epoch, NodeId, StoreEvent};
    use workloads::federated::Event;

    use super::super::{Entry, FromNode, Lifecycle, NodeEvent, Start, Status, ToNode, VERSION};
    use super::*;
    use crate::identity::Identity;

    fn reader(bytes: &[u8]) -> LineReader<&[u8]> {
        LineReader::new(bytes)
    }

    async fn there_and_back<T: Serialize + DeserializeOwned + Sync>(messages: &[T]) -> Vec<T> {
        let mut bytes = Vec::new();
        let mut writer = LineWriter::new(&mut bytes);
        for message in messages {
            writer.send(message).await.unwrap();
        }
        let mut reader = LineReader::new(&bytes[..]);
        let mut back = Vec::new();
        while let Some(message) = reader.next().await.unwrap() {
            back.push(message);
        }
        back
    }

    #[tokio::test]
    async fn messages_come_back_as_sent() {
        let start = Start {
            version: VERSION,
            node: NodeId(3),
            plan: crate::plan::tests::plan(10),
            identity: Identity(serde_json::json!({"key": "line\nbreak"})),
            store_only: false,
            peers: vec![NodeId(3)],
            entry: Entry::Replaces { node: NodeId(2), device: NodeId(1) },
        };
        let orders = vec![
            ToNode::Start(Box::new(start)),
            ToNode::Status { request_id: 7 },
            ToNode::ClockProbe { request_id: 8 },
            ToNode::Peers { nodes: vec![NodeId(1), NodeId(3)], asked_by: Some(NodeId(1)) },
            ToNode::Leave,
            ToNode::Finish,
        ];
        assert_eq!(there_and_back(&orders).await, orders);
        let epoch = Epoch { counter: 2, node: NodeId(3) };
        let event = |event| FromNode::Event { at_ns: u64::MAX, event };
        let news = vec![
            FromNode::Hello { version: VERSION, pid: 12 },
            event(NodeEvent::Federated(Event::RoundStarted { epoch, round: 1, workers: 9 })),
            event(NodeEvent::Store(StoreEvent::AggregatorChanged { epoch: Some(epoch) })),
            event(NodeEvent::Node(Lifecycle::Failed { reason: "no \"port\"".into() })),
            FromNode::Status(Box::new(Status { request_id: 7, epoch: Some(epoch), ..Status::default() })),
            FromNode::Clock { request_id: 8, at_ns: 1 },
        ];
        assert_eq!(there_and_back(&news).await, news);
    }

    #[tokio::test]
    async fn garbage_is_skipped_and_the_next_line_read() {
        let mut reader = reader(b"\xff\x00{\n\n[1,2]\n{\"type\":\"launch\"}\n{\"type\":\"finish\"}\n");
        for _ in 0..4 {
            let error = reader.next::<ToNode>().await.unwrap_err();
            assert!(matches!(error, LineError::Garbage { .. }) && error.is_skippable(), "{error}");
        }
        assert_eq!(reader.next().await.unwrap(), Some(ToNode::Finish));
        assert_eq!(reader.next::<ToNode>().await.unwrap(), None);
    }

    #[tokio::test]
    async fn an_over_long_line_is_skipped_without_being_held() {
        let mut bytes = vec![b'x'; 5 * MAX_LINE_BYTES];
        bytes.extend_from_slice(b"\n{\"type\":\"finish\"}\n");
        let mut reader = reader(&bytes);
        let error = reader.next::<ToNode>().await.unwrap_err();
        assert!(
            matches!(error, LineError::TooLong { bytes } if bytes == 5 * MAX_LINE_BYTES as u64 + 1),
            "{error}"
        );
        assert_eq!(reader.next().await.unwrap(), Some(ToNode::Finish));
        assert!(reader.line.capacity() <= MAX_LINE_BYTES);
    }

    #[tokio::test]
    async fn a_line_that_was_cut_off_is_no_message() {
        let mut reader = reader(b"{\"type\":\"finish\"}");
        assert!(matches!(reader.next::<ToNode>().await, Err(LineError::Garbage { .. })));
        assert_eq!(reader.next::<ToNode>().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_secret_stream_is_not_quoted() {
        let mut reader = LineReader::secret(&b"{\"type\":\"PRIVATE KEY\"}\n"[..]);
        let error = reader.next::<ToNode>().await.unwrap_err().to_string();
        assert!(!error.contains("PRIVATE"), "{error}");
    }

    #[tokio::test]
    async fn a_message_over_the_limit_is_not_sent() {
        let mut bytes = Vec::new();
        let reason = "x".repeat(MAX_LINE_BYTES);
        let event = FromNode::Event { at_ns: 0, event: NodeEvent::Node(Lifecycle::Failed { reason }) };
        let error = LineWriter::new(&mut bytes).send(&event).await.unwrap_err();
        assert!(matches!(error, LineError::MessageTooLong { .. }) && bytes.is_empty());
    }

    #[tokio::test]
    async fn the_largest_run_s_start_fits() {
        let mut plan = crate::plan::tests::plan(crate::plan::MAX_NODES);
        plan.job.data = Some("d".repeat(4096).into());
        let identity = Identity(serde_json::json!({"pem": "\n".repeat(16_384)}));
        let peers = plan.nodes();
        let start = ToNode::Start(Box::new(Start {
            version: VERSION,
            node: NodeId(1),
            plan,
            identity,
            store_only: false,
            peers,
            entry: Entry::Founds,
        }));
        LineWriter::new(Vec::new()).send(&start).await.unwrap();
    }

    #[tokio::test]
    async fn lines_may_arrive_in_pieces() {
        use tokio::io::AsyncWriteExt as _;
        let (mut far, near) = tokio::io::duplex(4);
        let write = tokio::spawn(async move { far.write_all(b"{\"type\":\"finish\"}\n").await });
        let mut reader = LineReader::new(tokio::io::BufReader::new(near));
        assert_eq!(reader.next().await.unwrap(), Some(ToNode::Finish));
        write.await.unwrap().unwrap();
    }
    proptest::proptest! {
        #[test]
        fn any_bytes_are_messages_or_skipped(bytes in "([{}a-z\":,0-9\n]|type|finish){0,60}", secret: bool) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let bytes = bytes.as_bytes();
            let mut reader = if secret { LineReader::secret(bytes) } else { LineReader::new(bytes) };
            let lines = runtime.block_on(async {
                let mut lines = 0;
                loop {
                    match reader.next::<ToNode>().await {
                        Ok(None) => break lines,
                        Ok(Some(_)) => {}
                        Err(error) => assert!(error.is_skippable()),
                    }
                    lines += 1;
                }
            });
            let newlines = bytes.iter().filter(|byte| **byte == b'\n').count();
            let last = usize::from(bytes.last().is_some_and(|byte| *byte != b'\n'));
            proptest::prop_assert_eq!(lines, newlines + last);
        }
    }
}
