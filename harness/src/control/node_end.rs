//! The node's end of the control protocol: a node's body sees channels, this module sees the streams.
//!
//! When the controller's stream ends, the node ends: its body is told by its command channel closing, and gets
//! [`EOF_GRACE`] to return.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use replication::{NodeId, Observer, StoreEvent};
use tokio::io::{AsyncBufRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use workloads::federated;

use super::codec::{LineReader, LineWriter};
use super::{Captured, FromNode, Impair, Lifecycle, NodeEvent, Start, Status, ToNode, VERSION};
use crate::clock;

/// Messages that wait for the controller to read them; beyond that, events are dropped and counted.
pub const OUTBOX_MESSAGES: usize = 16_384;
/// Commands that wait for the node's body.
pub const WAITING_COMMANDS: usize = 64;
/// How long the node's body may take to return after the controller went away.
pub const EOF_GRACE: Duration = Duration::from_secs(2);
/// How long the last messages may take to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// What the controller asks of a node's body. The channel closing means: end now, nobody listens any more.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Answer with [`Outbox::status`].
    Status {
        /// Comes back in the answer.
        request_id: u64,
    },
    /// Disturb what is sent like this, and no other way.
    Impair(Impair),
    /// These nodes are there, and no others.
    Peers {
        /// This one included.
        nodes: Vec<NodeId>,
        /// Whose request for one more node this answers.
        asked_by: Option<NodeId>,
    },
    /// Write a checkpoint as aggregator.
    Put {
        /// Its round.
        round: u64,
    },
    /// Leave the cluster, then as [`Command::Finish`].
    Leave,
    /// Close everything in order and return.
    Finish,
}

#[derive(Debug)]
enum Line {
    Message(FromNode),
    Close(oneshot::Sender<()>),
}

/// Where a node's body puts what it has to say. Never blocks.
#[derive(Debug, Clone)]
pub struct Outbox {
    lines: mpsc::Sender<Line>,
    lost: Arc<AtomicU64>,
}

impl Outbox {
    /// Tells of `event`, stamped with the time now.
    pub fn event(&self, event: NodeEvent) {
        self.push(FromNode::Event { at_ns: clock::monotonic_ns(), event });
    }

    /// Tells of an event of the federated job.
    pub fn federated(&self, event: federated::Event) {
        self.event(NodeEvent::Federated(event));
    }

    /// Answers [`Command::Status`].
    pub fn status(&self, status: Status) {
        self.push(FromNode::Status(Box::new(status)));
    }

    /// Tells what the capture counted.
    pub fn captured(&self, captured: Captured) {
        self.push(FromNode::Capture(Box::new(captured)));
    }

    fn push(&self, message: FromNode) {
        if self.lines.try_send(Line::Message(message)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything said so far is written.
    async fn flush(&self) {
        let (written, done) = oneshot::channel();
        let flush = async {
            if self.lines.send(Line::Close(written)).await.is_ok() {
                let _ = done.await;
            }
        };
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, flush).await;
    }
}

impl Observer for Outbox {
    fn observe(&self, event: StoreEvent) {
        self.event(NodeEvent::Store(event));
    }
}

/// Speaks the protocol over `stdin` and `stdout` while `body` runs; returns when `body` has, or the controller is gone.
///
/// # Errors
/// What `body` failed with (the controller is told), or a controller that does not speak this protocol.
pub async fn serve<R, W, F, B>(stdin: R, stdout: W, body: F) -> anyhow::Result<()>
where
    R: AsyncBufRead + Unpin,
    W: AsyncWrite + Unpin + Send + 'static,
    F: FnOnce(Start, Outbox, mpsc::Receiver<Command>) -> B,
    B: Future<Output = anyhow::Result<()>>,
{
    let mut writer = LineWriter::new(stdout);
    writer.send(&FromNode::Hello { version: VERSION, pid: std::process::id() }).await?;
    let (lines, waiting) = mpsc::channel(OUTBOX_MESSAGES);
    let outbox = Outbox { lines, lost: Arc::default() };
    tokio::spawn(write(writer, waiting, outbox.lost.clone()));

    let mut reader = LineReader::secret(stdin);
    let Some(start) = await_start(&mut reader, &outbox).await? else { return Ok(()) };
    let (commands, orders) = mpsc::channel(WAITING_COMMANDS);
    let mut body = std::pin::pin!(body(start, outbox.clone(), orders));
    let outcome = tokio::select! {
        outcome = &mut body => outcome,
        () = obey(&mut reader, &outbox, commands) => {
            tracing::info!("the controller is gone");
            tokio::time::timeout(EOF_GRACE, body).await.unwrap_or_else(|_| bail!("did not end within {EOF_GRACE:?}"))
        }
    };
    outbox.event(NodeEvent::Node(match &outcome {
        Ok(()) => Lifecycle::Finished,
        Err(error) => Lifecycle::Failed { reason: format!("{error:#}") },
    }));
    outbox.flush().await;
    outcome
}

/// Waits for the order to start; `None` if the controller went away before, or does not want this node any more.
async fn await_start<R: AsyncBufRead + Unpin>(
    reader: &mut LineReader<R>,
    outbox: &Outbox,
) -> anyhow::Result<Option<Start>> {
    loop {
        match reader.next().await.context("before the order to start")? {
            None | Some(ToNode::Finish) => return Ok(None),
            Some(ToNode::Start(start)) if start.version == VERSION => return Ok(Some(*start)),
            Some(ToNode::Start(start)) => {
                bail!(
                    "the controller speaks version {} of the control protocol, this node {VERSION}",
                    start.version
                )
            }
            Some(ToNode::ClockProbe { request_id }) => answer_clock(outbox, request_id),
            Some(ToNode::Status { request_id }) => outbox.status(Status { request_id, ..Status::default() }),
            Some(ToNode::Impair(_) | ToNode::Put { .. } | ToNode::Signal { .. }) => {
                tracing::warn!("ignored an order before that to start");
            }
            // The order to start says it, too.
            Some(ToNode::Peers { .. }) => {}
            // It was not there yet.
            Some(ToNode::Leave) => {
                outbox.event(NodeEvent::Node(Lifecycle::Left));
                outbox.flush().await;
                return Ok(None);
            }
        }
    }
}

fn answer_clock(outbox: &Outbox, request_id: u64) {
    outbox.push(FromNode::Clock { request_id, at_ns: clock::monotonic_ns() });
}

/// Passes orders on until the controller's stream ends; then `commands` is dropped, which tells the body.
async fn obey<R: AsyncBufRead + Unpin>(
    reader: &mut LineReader<R>,
    outbox: &Outbox,
    commands: mpsc::Sender<Command>,
) {
    loop {
        let command = match reader.next().await {
            Ok(None) => return,
            Ok(Some(ToNode::ClockProbe { request_id })) => {
                answer_clock(outbox, request_id);
                continue;
            }
            Ok(Some(ToNode::Status { request_id })) => Command::Status { request_id },
            Ok(Some(ToNode::Impair(impair))) => Command::Impair(impair),
            Ok(Some(ToNode::Peers { nodes, asked_by })) => Command::Peers { nodes, asked_by },
            Ok(Some(ToNode::Put { round })) => Command::Put { round },
            Ok(Some(ToNode::Leave)) => Command::Leave,
            Ok(Some(ToNode::Finish)) => Command::Finish,
            Ok(Some(ToNode::Start(_))) => {
                tracing::warn!("ignored a second order to start");
                continue;
            }
            // Meant for whoever started this process.
            Ok(Some(ToNode::Signal { .. })) => continue,
            Err(error) if error.is_skippable() => {
                tracing::warn!("ignored an order: {error}");
                continue;
            }
            Err(_) => return,
        };
        if commands.send(command).await.is_err() {
            // The body is about to return; the stream's end still has to be noticed.
            std::future::pending::<()>().await;
        }
    }
}

async fn write<W: AsyncWrite + Unpin>(
    mut writer: LineWriter<W>,
    mut waiting: mpsc::Receiver<Line>,
    lost: Arc<AtomicU64>,
) {
    while let Some(line) = waiting.recv().await {
        let count = lost.swap(0, Ordering::Relaxed);
        if count > 0 {
            let event = NodeEvent::Node(Lifecycle::EventsLost { count });
            let _ = writer.send(&FromNode::Event { at_ns: clock::monotonic_ns(), event }).await;
        }
        let outcome = match line {
            Line::Message(message) => writer.send(&message).await,
            Line::Close(written) => {
                let _ = written.send(());
                Ok(())
            }
        };
        match outcome {
            Ok(()) => {}
            Err(error) if error.is_skippable() => tracing::warn!("a message was not sent: {error}"),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{BufReader, DuplexStream, ReadHalf, WriteHalf};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::control::Entry;
    use crate::identity::Identity;

    type Near = (LineReader<BufReader<ReadHalf<DuplexStream>>>, LineWriter<WriteHalf<DuplexStream>>);

    fn start_order(version: u32) -> ToNode {
        let plan = crate::plan::tests::plan(2);
        ToNode::Start(Box::new(Start {
            version,
            node: NodeId(1),
            plan,
            identity: Identity(serde_json::Value::Null),
            store_only: false,
            peers: vec![NodeId(1), NodeId(2)],
            entry: Entry::Founds,
        }))
    }

    fn node<F, B>(body: F) -> (Near, JoinHandle<anyhow::Result<()>>)
    where
        F: FnOnce(Start, Outbox, mpsc::Receiver<Command>) -> B + Send + 'static,
        B: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (stdin, stdout) = tokio::io::split(far);
        let task = tokio::spawn(serve(BufReader::new(stdin), stdout, body));
        let (read, write) = tokio::io::split(near);
        ((LineReader::new(BufReader::new(read)), LineWriter::new(write)), task)
    }

    async fn echo(_: Start, outbox: Outbox, mut commands: mpsc::Receiver<Command>) -> anyhow::Result<()> {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Status { request_id } => outbox.status(Status { request_id, ..Status::default() }),
                Command::Impair(_) | Command::Peers { .. } | Command::Put { .. } => {}
                Command::Leave | Command::Finish => break,
            }
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_node_says_hello_obeys_and_ends_in_order() {
        let ((mut from, mut to), task) = node(echo);
        assert!(matches!(from.next().await.unwrap(), Some(FromNode::Hello { version: VERSION, .. })));
        to.send(&ToNode::ClockProbe { request_id: 1 }).await.unwrap();
        assert!(matches!(from.next().await.unwrap(), Some(FromNode::Clock { request_id: 1, .. })));
        to.send(&start_order(VERSION)).await.unwrap();
        to.send(&ToNode::Status { request_id: 5 }).await.unwrap();
        assert!(
            matches!(from.next().await.unwrap(), Some(FromNode::Status(status)) if status.request_id == 5)
        );
        to.send(&ToNode::Finish).await.unwrap();
        let last = from.next().await.unwrap();
        assert!(
            matches!(last, Some(FromNode::Event { event: NodeEvent::Node(Lifecycle::Finished), .. })),
            "{last:?}"
        );
        task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_node_ends_when_its_controller_goes() {
        let ((mut from, mut to), task) = node(echo);
        from.next::<FromNode>().await.unwrap();
        to.send(&start_order(VERSION)).await.unwrap();
        drop((from, to));
        task.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_return_is_left_behind() {
        let ((mut from, mut to), task) = node(|_, _, _| std::future::pending());
        from.next::<FromNode>().await.unwrap();
        to.send(&start_order(VERSION)).await.unwrap();
        drop((from, to));
        assert!(task.await.unwrap().unwrap_err().to_string().contains("did not end"));
    }

    #[tokio::test]
    async fn another_version_is_refused_and_a_failure_reported() {
        let ((mut from, mut to), task) = node(echo);
        from.next::<FromNode>().await.unwrap();
        to.send(&start_order(VERSION + 1)).await.unwrap();
        assert!(task.await.unwrap().unwrap_err().to_string().contains("speaks version 3"));

        let ((mut from, mut to), task) = node(|_, _, _| async { bail!("no disk") });
        from.next::<FromNode>().await.unwrap();
        to.send(&start_order(VERSION)).await.unwrap();
        let failed = from.next().await.unwrap();
        let expected = NodeEvent::Node(Lifecycle::Failed { reason: "no disk".into() });
        assert!(matches!(failed, Some(FromNode::Event { event, .. }) if event == expected));
        assert!(task.await.unwrap().is_err());
    }
}
