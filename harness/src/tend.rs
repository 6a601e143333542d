//! The far end of a run over ssh: `harness tend` on a host starts the node as its child and stands between it and the
//! controller.
//!
//! ```text
//!   controller --ssh-- tend --pipes-- node
//! ```
//!
//! It passes lines on in both directions, sends the node signals when it is told to, answers questions for the time and
//! captures, all of which also works when the node is stopped or dead. It ends the node when its controller goes away or
//! falls silent (a link that is cut says nothing), or when the host is shut down in order (SIGTERM), and leaves nothing behind:
//! nothing is written, save for stores of a run with `--durability disk`, whose folder is removed at the end. It does not know
//! what the lines between the two say.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, getpid, getppid, kill_process, set_parent_process_death_signal};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, Stdin};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::board::{Board, Watch};
use crate::capture::{Capture, CaptureMode, Settings};
use crate::clock;
use crate::control::codec::{LineReader, LineWriter, MAX_LINE_BYTES};
use crate::control::{Captured, FromNode, Lifecycle, NodeEvent, Signal, Start, ToNode};
use crate::plan::DiskStore;

/// A controller that says nothing for so long is gone: it asks for the time every other second.
pub const SILENCE: Duration = Duration::from_secs(20);
/// How long a node may take to end in order once its controller is gone.
const GRACE: Duration = Duration::from_secs(4);
/// How long the last lines may take to be written.
const FLUSH: Duration = Duration::from_secs(2);
/// How often the board is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Lines that wait for ssh; beyond that the node waits.
const WAITING_LINES: usize = 1024;
/// Orders that wait for the node to read them; beyond that, orders are dropped.
const WAITING_ORDERS: usize = 64;

/// Tends one node, from its start to its end; its exit code, or 128 and the signal that ended it. Call it on the main
/// thread: the node dies with the thread that started it. Exit when it returns: threads may be left in reads and writes that
/// never end.
///
/// # Errors
/// If the node cannot be started.
pub async fn run(program: &Path, stdin: Stdin) -> anyhow::Result<u8> {
    let told_to_end = told_to_end()?;
    let (mut child, node_in, node_out) = start(program)?;
    let (lines, waiting) = mpsc::channel(WAITING_LINES);
    let (ended, all_written) = oneshot::channel();
    let writer = tokio::spawn(write(tokio::io::stdout(), waiting, ended));
    let (orders, to_node) = mpsc::channel(WAITING_ORDERS);
    tokio::spawn(pass_orders(to_node, node_in));
    let relay = tokio::spawn(relay(node_out, lines.clone()));
    let mut tender = Tender {
        orders: Some(orders),
        lines,
        capture: None,
        store: None,
        watch: Watch::new(),
        killed_at_ns: None,
        heard: Instant::now(),
        told_to_end,
    };
    let mut reader = LineReader::secret(BufReader::new(stdin));
    let status = tender.follow(&mut child, &mut reader).await;
    // Only whole lines come from a node that was killed.
    let _ = tokio::time::timeout(FLUSH, relay).await;
    tender.last_words().await;
    if tender.killed_at_ns.is_some() && tender.store.is_some() {
        // The same node may be started again, with what it stored.
        while tender.order(&mut reader).await.is_some() {}
    }
    let Tender { store, lines, .. } = tender;
    drop(lines);
    let _ = tokio::time::timeout(FLUSH, all_written).await;
    writer.abort();
    drop(store);
    Ok(code_of(status))
}

/// SIGTERM, SIGHUP and SIGINT as messages: from now on none of them ends this process.
fn told_to_end() -> anyhow::Result<mpsc::Receiver<()>> {
    let (told, told_to_end) = mpsc::channel(1);
    for kind in [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()] {
        let (mut signals, told) = (signal(kind).context("cannot watch for signals")?, told.clone());
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let _ = told.try_send(());
            }
        });
    }
    Ok(told_to_end)
}

/// Starts the node, which dies with this thread.
fn start(program: &Path) -> anyhow::Result<(Child, ChildStdin, ChildStdout)> {
    let mut command = Command::new(program);
    command.arg("node").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let parent = getpid();
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; prctl and getppid are system calls, and
    // making an error from a number does not allocate.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            if getppid() == Some(parent) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
        });
    }
    let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let pipes = child.stdin.take().zip(child.stdout.take());
    let (stdin, stdout) = pipes.context("the node has no pipes")?;
    Ok((child, stdin, stdout))
}

fn code_of(status: Option<ExitStatus>) -> u8 {
    let code = status.and_then(|status| status.code().or(status.signal().map(|signal| 128 + signal)));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// What is known of the node that is tended.
struct Tender {
    /// To the node; none once its controller is gone.
    orders: Option<mpsc::Sender<ToNode>>,
    /// To the controller.
    lines: mpsc::Sender<Vec<u8>>,
    capture: Option<Capture>,
    store: Option<StoreFolder>,
    watch: Watch,
    /// When the node was killed on order.
    killed_at_ns: Option<u64>,
    /// When something was last heard of the controller.
    heard: Instant,
    /// Says that this process shall end: the host is shut down.
    told_to_end: mpsc::Receiver<()>,
}

impl Tender {
    /// Does what the controller says until the node has ended.
    async fn follow(
        &mut self,
        child: &mut Child,
        reader: &mut LineReader<BufReader<Stdin>>,
    ) -> Option<ExitStatus> {
        let mut look = tokio::time::interval(LOOK);
        // What the board is asked with may hang.
        let mut looking: Option<JoinHandle<Board>> = None;
        let mut patience = None;
        loop {
            tokio::select! {
                biased;
                status = child.wait() => return status.ok(),
                () = until(patience) => {
                    tracing::warn!("the node did not end by itself: killed");
                    let _ = child.start_kill();
                    patience = None;
                }
                order = self.order(reader), if self.orders.is_some() => match order {
                    Some(order) => self.obey(order, child).await,
                    None => {
                        // The end of its stream tells the node.
                        self.orders = None;
                        patience = Some(Instant::now() + GRACE);
                    }
                },
                board = looked(&mut looking), if looking.is_some() => {
                    looking = None;
                    if let Some(board) = board {
                        self.tell(board);
                    }
                }
                _ = look.tick(), if looking.is_none() => looking = Some(tokio::task::spawn_blocking(Board::this)),
            }
        }
    }

    /// The next order; none when the controller is gone, or the host is shut down. Cancel safe.
    async fn order(&mut self, reader: &mut LineReader<BufReader<Stdin>>) -> Option<ToNode> {
        loop {
            let heard = tokio::select! {
                biased;
                Some(()) = self.told_to_end.recv() => {
                    tracing::warn!("told to end, before the run was over");
                    return None;
                }
                heard = tokio::time::timeout_at(self.heard + SILENCE, reader.next()) => heard,
            };
            self.heard = if heard.is_ok() { Instant::now() } else { self.heard };
            match heard {
                Ok(Ok(order)) => return order,
                Ok(Err(error)) if error.is_skippable() => tracing::warn!("ignored an order: {error}"),
                Ok(Err(_)) => return None,
                Err(_) => {
                    tracing::warn!("nothing was heard of the controller for {SILENCE:?}");
                    return None;
                }
            }
        }
    }

    async fn obey(&mut self, mut order: ToNode, child: &mut Child) {
        match order {
            ToNode::ClockProbe { request_id } => {
                self.say(&FromNode::Clock { request_id, at_ns: clock::monotonic_ns() });
                return;
            }
            ToNode::Signal { signal } => return self.signal(signal, child),
            ToNode::Start(ref mut start) => {
                if let Err(error) = self.prepare(start) {
                    let reason = format!("{error:#}");
                    tracing::error!("{reason}");
                    let event = NodeEvent::Node(Lifecycle::Failed { reason });
                    self.say(&FromNode::Event { at_ns: clock::monotonic_ns(), event });
                    let _ = child.start_kill();
                    return;
                }
            }
            _ => {}
        }
        if self.orders.as_ref().is_some_and(|orders| orders.try_send(order).is_err()) {
            tracing::warn!("the node does not read: an order was dropped");
        }
    }

    fn signal(&mut self, signal: Signal, child: &mut Child) {
        // A child that was not reaped keeps its pid, and its status is only asked for in `follow`.
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let Some(pid) = pid else { return };
        let number = match signal {
            Signal::Kill => rustix::process::Signal::KILL,
            Signal::Stop => rustix::process::Signal::STOP,
            Signal::Continue => rustix::process::Signal::CONT,
        };
        // Before it is done: what follows from it must not be earlier.
        let at_ns = clock::monotonic_ns();
        if kill_process(pid, number).is_err() {
            return;
        }
        match signal {
            // Told when everything else was.
            Signal::Kill => self.killed_at_ns = Some(at_ns),
            Signal::Stop | Signal::Continue => self.say(&FromNode::Signalled { signal, at_ns }),
        }
    }

    /// What the node needs before it starts.
    fn prepare(&mut self, start: &mut Start) -> anyhow::Result<()> {
        if let Some(disk) = &mut start.plan.disk {
            // Of its own, should hosts share a file system.
            disk.dir.as_mut_os_string().push(format!("-{}", start.node));
            self.store = Some(StoreFolder::make(disk)?);
        }
        let plan = &start.plan;
        if plan.capture == CaptureMode::Off {
            return Ok(());
        }
        let member = plan.members.iter().find(|member| member.node == start.node);
        let own = member.with_context(|| format!("the plan has no node {}", start.node))?.ip;
        let ports = [plan.learning_port, plan.replication_port];
        match capture(own, &ports, self.lines.clone()) {
            Ok(capture) => self.capture = Some(capture),
            Err(error) if plan.capture == CaptureMode::Auto => tracing::warn!("no capture: {error:#}"),
            Err(error) => return Err(error.context("no capture, which --capture required asks for")),
        }
        Ok(())
    }

    fn tell(&mut self, board: Board) {
        let throttled = self.watch.note(&board);
        self.say(&FromNode::Board { board: Box::new(board), throttled });
    }

    /// What is left to be said once the node has ended.
    async fn last_words(&mut self) {
        if let Some(capture) = self.capture.take() {
            let finish = tokio::task::spawn_blocking(move || capture.finish());
            let _ = tokio::time::timeout(FLUSH, finish).await;
        }
        let board = tokio::task::spawn_blocking(Board::this);
        if let Ok(Ok(board)) = tokio::time::timeout(FLUSH, board).await {
            self.tell(board);
        }
        if let Some(at_ns) = self.killed_at_ns {
            // Whoever reads takes it for the end of the node, so it is not dropped as `say` would.
            let line = line_of(&FromNode::Signalled { signal: Signal::Kill, at_ns });
            let _ = tokio::time::timeout(FLUSH, self.lines.send(line)).await;
        }
    }

    /// Says something to the controller, unless too much waits already.
    fn say(&self, message: &FromNode) {
        if self.lines.try_send(line_of(message)).is_err() {
            tracing::warn!("the controller does not read: something was not said");
        }
    }
}

fn line_of(message: &FromNode) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

/// The board that is looked at; not to be asked if none is.
async fn looked(looking: &mut Option<JoinHandle<Board>>) -> Option<Board> {
    looking.as_mut()?.await.ok()
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Captures on the interface that has the address `own`.
fn capture(own: Ipv4Addr, ports: &[u16], lines: mpsc::Sender<Vec<u8>>) -> anyhow::Result<Capture> {
    let interfaces = pnet_datalink::interfaces();
    let has = |interface: &&pnet_datalink::NetworkInterface| {
        interface.ips.iter().any(|network| network.ip() == IpAddr::from(own))
    };
    let interface = interfaces.iter().find(has);
    let interface = interface.with_context(|| format!("no interface has the address {own}"))?;
    let (name, loopback) = (interface.name.clone(), interface.is_loopback());
    let mut settings = Settings::everything(&name, ports);
    if loopback {
        settings = Settings { others: false, only_from: Some(own), ..settings };
    }
    let capture = Capture::start(&settings, move |interval| {
        let captured = Captured { interface: name.clone(), loopback, interval };
        // Nobody listens any more only when everything is over.
        let _ = lines.blocking_send(line_of(&FromNode::Capture(Box::new(captured))));
    })?;
    Ok(capture)
}

/// Orders to the node; a stopped one does not read, which delays nobody else.
async fn pass_orders(mut orders: mpsc::Receiver<ToNode>, node: ChildStdin) {
    let mut writer = LineWriter::new(node);
    while let Some(order) = orders.recv().await {
        if writer.send(&order).await.is_err_and(|error| !error.is_skippable()) {
            return;
        }
    }
}

/// Whole lines of the node. Once nobody takes them they are read all the same, so that the node can end.
async fn relay(node: ChildStdout, lines: mpsc::Sender<Vec<u8>>) {
    let mut node = BufReader::new(node);
    loop {
        let mut line = Vec::new();
        let read = (&mut node).take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(1..)) {
            return;
        }
        if line.ends_with(b"\n") || line.len() == MAX_LINE_BYTES {
            let _ = lines.send(line).await;
        }
    }
}

async fn write(
    mut out: impl AsyncWrite + Unpin,
    mut lines: mpsc::Receiver<Vec<u8>>,
    done: oneshot::Sender<()>,
) {
    let mut broken = false;
    while let Some(line) = lines.recv().await {
        if !broken {
            // A link that is cut takes nothing more and says nothing.
            let written = async {
                out.write_all(&line).await?;
                out.flush().await
            };
            broken = !matches!(tokio::time::timeout(SILENCE, written).await, Ok(Ok(())));
        }
    }
    let _ = done.send(());
}

/// The folder of a node's store, for the time of a run.
struct StoreFolder(PathBuf);

impl StoreFolder {
    fn make(disk: &DiskStore) -> anyhow::Result<Self> {
        match fs::DirBuilder::new().mode(0o700).create(&disk.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(error).with_context(|| format!("cannot make {}", disk.dir.display()))
            }
            _ => Ok(Self(disk.dir.clone())),
        }
    }
}

impl Drop for StoreFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("{} cannot be removed: {error}", self.0.display());
        }
    }
}
