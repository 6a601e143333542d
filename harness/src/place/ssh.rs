//! Nodes on other hosts, each reached over a connection of OpenSSH with the user's own configuration, keys and agent.
//!
//! A host runs `harness tend`, which starts the node and heeds signals. All that goes there goes over the connection's
//! standard input; nothing is copied and nothing is left behind, however either end goes: the local ssh dies with the
//! controller (PDEATHSIG), and what runs on the host ends with its connection.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use replication::NodeId;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, timeout, timeout_at};

use super::process::{Processes, child_command, describe};
use super::{HostRecord, Pipes, Placement, PowerCut};
use crate::control::codec::MAX_LINE_BYTES;
use crate::control::{Signal, ToNode};
use crate::place::inventory::Host;
use crate::ssh;

/// Signals that wait for a connection.
const WAITING_SIGNALS: usize = 16;
/// Bytes between the controller and a connection.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long the command that cuts a host's power may take.
const HOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a host is told that its controller lives, whatever that is busy with.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// How long hosts may take to tidy up, once their nodes are killed: their last words go out within a few seconds each.
const TIDY_TIMEOUT: Duration = Duration::from_secs(16);
/// Exit code of ssh itself.
const SSH_FAILED: i32 = 255;
/// What a remote shell adds to the number of the signal that ended a program.
const SIGNAL_BASE: i32 = 128;

/// Connections to hosts, one for each node.
#[derive(Debug)]
pub struct Hosts {
    hosts: Vec<Host>,
    config: Option<PathBuf>,
    records: Vec<HostRecord>,
    remotes: BTreeMap<NodeId, Remote>,
    /// Connections of nodes that were killed and started again: they keep their stores until the run is over.
    keepers: Vec<Remote>,
}

/// A node's connection.
#[derive(Debug)]
struct Remote {
    ssh: Child,
    signals: mpsc::Sender<Signal>,
    fate: Fate,
}

impl Remote {
    /// Kills the node, if it is still there, and ends the connection after that.
    fn hang_up(self) -> Child {
        if self.fate == Fate::Runs {
            let _ = self.signals.try_send(Signal::Kill);
        }
        // The last of its signals closes the host's standard input.
        drop(self.signals);
        self.ssh
    }
}

/// What was done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Runs,
    Killed,
    PoweredOff,
}

impl Hosts {
    /// Node i on the i-th of `hosts`, whose records tell what was found there.
    #[must_use]
    pub fn new(hosts: Vec<Host>, config: Option<PathBuf>, records: Vec<HostRecord>) -> Self {
        Self { hosts, config, records, remotes: BTreeMap::new(), keepers: Vec::new() }
    }

    fn host(&self, node: NodeId) -> anyhow::Result<&Host> {
        let index = usize::try_from(node.0).ok().and_then(|id| id.checked_sub(1));
        index
            .and_then(|index| self.hosts.get(index))
            .with_context(|| format!("the inventory has no host for node {node}"))
    }

    fn signal(&mut self, node: NodeId, signal: Signal) -> anyhow::Result<()> {
        let Some(remote) = self.remotes.get(&node) else { return Ok(()) };
        match remote.signals.try_send(signal) {
            // A connection that has ended took its node along.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => {
                bail!("the connection of node {node} does not take signals")
            }
        }
    }
}

impl Placement for Hosts {
    fn start(&mut self, node: NodeId, log: &Path) -> anyhow::Result<Pipes> {
        let host = self.host(node)?;
        let arguments = ssh::session_arguments(host, self.config.as_deref(), &["tend"]);
        let child = child_command(Path::new("ssh"), &arguments, log, None)?.spawn();
        let mut ssh = child.with_context(|| format!("cannot start ssh to {}", host.name))?;
        let pipes = ssh.stdin.take().zip(ssh.stdout.take());
        let (stdin, stdout) = pipes.context("ssh has no pipes")?;
        let (signals, waiting) = mpsc::channel(WAITING_SIGNALS);
        let (orders, near_orders) = tokio::io::duplex(BUFFER_BYTES);
        let (far_news, news) = tokio::io::duplex(BUFFER_BYTES);
        tokio::spawn(pass_orders(near_orders, waiting, stdin));
        tokio::spawn(pass_news(stdout, far_news));
        if let Some(before) = self.remotes.insert(node, Remote { ssh, signals, fate: Fate::Runs }) {
            self.keepers.push(before);
        }
        Ok(Pipes { stdin: Box::new(orders), stdout: Box::new(news) })
    }

    fn kill(&mut self, node: NodeId) -> anyhow::Result<()> {
        self.signal(node, Signal::Kill)?;
        if let Some(remote) = self.remotes.get_mut(&node) {
            remote.fate = Fate::Killed;
        }
        Ok(())
    }

    fn stop(&mut self, node: NodeId) -> anyhow::Result<()> {
        self.signal(node, Signal::Stop)
    }

    fn resume(&mut self, node: NodeId) -> anyhow::Result<()> {
        self.signal(node, Signal::Continue)
    }

    fn power_off(&mut self, node: NodeId) -> anyhow::Result<PowerCut> {
        let host = self.host(node)?;
        let (words, name) = (host.power_off.clone().unwrap_or_default(), host.name.clone());
        if let Some(remote) = self.remotes.get_mut(&node) {
            // Its connection may be lost before the command ends.
            remote.fate = Fate::PoweredOff;
        }
        Ok(Box::pin(
            async move { run_hook(&words).await.with_context(|| format!("harness_power_off of {name}")) },
        ))
    }

    fn without_power(&mut self, node: NodeId) {
        if let Some(remote) = self.remotes.get_mut(&node) {
            // Nobody is there any more who could close it.
            let _ = remote.ssh.start_kill();
        }
    }

    fn ended(&mut self, node: NodeId) -> Option<String> {
        let name = self.host(node).map(|host| host.name.clone()).unwrap_or_default();
        let remote = self.remotes.get_mut(&node)?;
        let status = match remote.ssh.try_wait() {
            Ok(status) => status,
            Err(error) => return Some(format!("its end is unknown: {error}")),
        };
        let code = status.map(|status| status.code());
        match (remote.fate, code) {
            // Its connection may stay for the sake of its store.
            (Fate::Killed, None) => Some("killed (SIGKILL)".into()),
            (Fate::PoweredOff, _) => Some(format!("the power of {name} was cut")),
            (_, Some(Some(SSH_FAILED))) => Some(format!("the connection to {name} was lost")),
            (_, Some(Some(code))) if code == SIGNAL_BASE + 9 => Some("killed (SIGKILL)".into()),
            (_, Some(Some(code))) if code > SIGNAL_BASE => {
                Some(format!("ended by signal {}", code - SIGNAL_BASE))
            }
            _ => status.map(describe),
        }
    }

    fn kill_all(&mut self) {
        // What runs on the hosts ends with its connection.
        let remotes = std::mem::take(&mut self.remotes).into_values().chain(self.keepers.drain(..));
        let mut connections: Vec<Child> = remotes.map(|remote| remote.ssh).collect();
        Processes::end(connections.iter_mut());
    }

    async fn end_all(&mut self) {
        let remotes = std::mem::take(&mut self.remotes).into_values().chain(self.keepers.drain(..));
        let mut connections: Vec<Child> = remotes.map(Remote::hang_up).collect();
        let deadline = Instant::now() + TIDY_TIMEOUT;
        for ssh in &mut connections {
            // ssh ends when what it runs has: ports are free then, and stores gone.
            let _ = timeout_at(deadline, ssh.wait()).await;
        }
        Processes::end(connections.iter_mut());
    }

    fn shares_clock(&self) -> bool {
        false
    }

    fn hosts(&self) -> Vec<HostRecord> {
        self.records.clone()
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// Runs the command that cuts a host's power until its end.
async fn run_hook(words: &[String]) -> anyhow::Result<()> {
    let (program, arguments) = words.split_first().context("there is none")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    // Ctrl-C is for the controller: a board must not be left with half a hook.
    command.process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot run {program}"))?;
    match timeout(HOOK_TIMEOUT, child.wait()).await {
        Ok(status) => match status? {
            status if status.success() => Ok(()),
            status => bail!("{program} failed ({})", describe(status)),
        },
        Err(_) => bail!("{program} has not ended within {HOOK_TIMEOUT:?}"),
    }
}

/// Orders of the controller, whole lines only, and signals between them. The connection stays until the placement lets go of
/// it: a node that was told to finish takes its time.
async fn pass_orders(orders: DuplexStream, mut signals: mpsc::Receiver<Signal>, mut host: ChildStdin) {
    let mut orders = BufReader::new(orders);
    let (mut line, mut open) = (Vec::new(), true);
    let mut alive = interval_at(Instant::now() + SIGN_OF_LIFE, SIGN_OF_LIFE);
    loop {
        let written = tokio::select! {
            biased;
            signal = signals.recv() => {
                let Some(signal) = signal else { return };
                let mut line = serde_json::to_vec(&ToNode::Signal { signal }).unwrap_or_default();
                line.push(b'\n');
                host.write_all(&line).await
            }
            // The host counts on hearing of its controller.
            _ = alive.tick() => {
                let mut line = serde_json::to_vec(&ToNode::ClockProbe { request_id: 0 }).unwrap_or_default();
                line.push(b'\n');
                host.write_all(&line).await
            }
            // What was read of a line stays in `line` if a signal comes first.
            read = orders.read_until(b'\n', &mut line), if open => {
                open = matches!(read, Ok(1..));
                let written = if line.ends_with(b"\n") { host.write_all(&line).await } else { Ok(()) };
                line.clear();
                written
            }
        };
        if written.is_err() || host.flush().await.is_err() {
            return;
        }
    }
}

/// Lines of the host, until it says that it has killed the node: nothing comes after that.
async fn pass_news(host: ChildStdout, mut news: DuplexStream) {
    let mut host = BufReader::new(host);
    let last = br#"{"type":"signalled","signal":"kill""#;
    loop {
        let mut line = Vec::new();
        let read = (&mut host).take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(1..)) || news.write_all(&line).await.is_err() || line.starts_with(last) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::FromNode;

    const SIGN: &str = r#"{"type":"clock_probe","request_id":0}"#;

    #[test]
    fn the_last_line_of_a_killed_node_is_recognised() {
        let line = serde_json::to_string(&FromNode::Signalled { signal: Signal::Kill, at_ns: 5 }).unwrap();
        assert!(line.starts_with(r#"{"type":"signalled","signal":"kill""#), "{line}");
    }

    #[tokio::test]
    async fn a_hook_that_fails_says_so() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(run_hook(&words("true")).await.is_ok());
        let error = run_hook(&words("false")).await.unwrap_err();
        assert!(error.to_string().contains("false failed (exit code 1)"));
        let error = run_hook(&words("/nonexistent/plug off")).await.unwrap_err();
        assert!(error.to_string().contains("cannot run /nonexistent/plug"), "{error}");
    }

    #[tokio::test]
    async fn signals_go_between_whole_lines_and_a_kill_keeps_the_stream_open() {
        let mut cat = tokio::process::Command::new("cat");
        let mut cat = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut orders, near) = tokio::io::duplex(1024);
        let (signals, waiting) = mpsc::channel(4);
        let passing = tokio::spawn(pass_orders(near, waiting, cat.stdin.take().unwrap()));
        let mut said = BufReader::new(cat.stdout.take().unwrap()).lines();
        // Signs of life come in between, on a machine that is slow enough.
        let mut next = async || loop {
            let line = said.next_line().await.unwrap();
            if line.as_deref() != Some(SIGN) {
                return line;
            }
        };
        orders.write_all(b"{\"type\":").await.unwrap();
        signals.send(Signal::Stop).await.unwrap();
        assert_eq!(next().await.unwrap(), r#"{"type":"signal","signal":"stop"}"#);
        orders.write_all(b"\"finish\"}\n").await.unwrap();
        assert_eq!(next().await.unwrap(), r#"{"type":"finish"}"#);
        drop(orders);
        signals.send(Signal::Kill).await.unwrap();
        assert_eq!(next().await.unwrap(), r#"{"type":"signal","signal":"kill"}"#);
        assert_eq!(said.next_line().await.unwrap().unwrap(), SIGN, "the controller lives");
        drop(signals);
        passing.await.unwrap();
        while said.next_line().await.unwrap().is_some_and(|line| line == SIGN) {}
        assert_eq!(said.next_line().await.unwrap(), None);
    }
}
