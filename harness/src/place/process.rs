//! Nodes as child processes of the controller, from its own executable.
//!
//! Nothing is left behind, however the controller ends: each child asks the kernel for SIGKILL on the death of its
//! parent (PDEATHSIG), which also ends a child that is stopped and cannot see its stdin close. PDEATHSIG follows the
//! *thread* that forked, so nodes are started from the main thread only.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use replication::NodeId;
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};
use tokio::process::{Child, Command};

use super::netns::namespace::{Namespace, enter};
use super::{Pipes, Placement};

/// How long killed children may take to disappear before the placement gives up waiting.
const REAP_TIMEOUT: Duration = Duration::from_secs(5);
const REAP_INTERVAL: Duration = Duration::from_millis(2);

/// Child processes on this host.
#[derive(Debug)]
pub struct Processes {
    program: PathBuf,
    arguments: Vec<String>,
    /// Further arguments of each.
    own_arguments: BTreeMap<NodeId, Vec<String>>,
    children: BTreeMap<NodeId, Child>,
}

impl Processes {
    /// Nodes from the executable of this process.
    ///
    /// # Errors
    /// If that cannot be found.
    pub fn of_this_program() -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let (arguments, own_arguments) = (vec!["node".into()], BTreeMap::new());
        Ok(Self { program, arguments, own_arguments, children: BTreeMap::new() })
    }

    /// Nodes that are another program, each with arguments of its own.
    #[must_use]
    pub fn new(program: PathBuf, own_arguments: BTreeMap<NodeId, Vec<String>>) -> Self {
        Self { program, arguments: Vec::new(), own_arguments, children: BTreeMap::new() }
    }

    /// Signals `node`, unless it is gone.
    fn signal(&self, node: NodeId, signal: Signal) -> anyhow::Result<()> {
        // As in `kill`: a child that has ended but was not reaped keeps its pid, and a signal to it does nothing.
        let pid = self.children.get(&node).and_then(Child::id).and_then(|id| i32::try_from(id).ok());
        match pid.and_then(Pid::from_raw) {
            Some(pid) => Ok(kill_process(pid, signal)?),
            None => Ok(()),
        }
    }

    /// Kills `children`, and waits until they are gone.
    pub(super) fn end<'a>(children: impl Iterator<Item = &'a mut Child>) {
        let mut children: Vec<&mut Child> = children.collect();
        for child in &mut children {
            let _ = child.start_kill();
        }
        let deadline = Instant::now() + REAP_TIMEOUT;
        while children.iter_mut().any(|child| matches!(child.try_wait(), Ok(None))) {
            if Instant::now() > deadline {
                tracing::warn!("a killed node has not disappeared within {REAP_TIMEOUT:?}");
                return;
            }
            std::thread::sleep(REAP_INTERVAL);
        }
    }

    /// Starts `node` in `namespace`, or in that of this process.
    pub(super) fn start_in(
        &mut self,
        node: NodeId,
        log: &Path,
        namespace: Option<&Namespace>,
    ) -> anyhow::Result<Pipes> {
        let own_arguments = self.own_arguments.get(&node).into_iter().flatten();
        let arguments: Vec<String> = self.arguments.iter().chain(own_arguments).cloned().collect();
        let child = child_command(&self.program, &arguments, log, namespace)?.spawn();
        let mut child =
            child.with_context(|| format!("cannot start {} as node {node}", self.program.display()))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        self.children.insert(node, child);
        let (stdin, stdout) = pipes.context("the node has no pipes")?;
        Ok(Pipes { stdin: Box::new(stdin), stdout: Box::new(stdout) })
    }
}

impl Placement for Processes {
    fn start(&mut self, node: NodeId, log: &Path) -> anyhow::Result<Pipes> {
        self.start_in(node, log, None)
    }

    fn kill(&mut self, node: NodeId) -> anyhow::Result<()> {
        match self.children.get_mut(&node) {
            // Child knows whether it was reaped, so the pid is never one that was given to somebody else.
            Some(child) if child.id().is_some() => {
                child.start_kill().with_context(|| format!("cannot kill node {node}"))
            }
            _ => Ok(()),
        }
    }

    fn stop(&mut self, node: NodeId) -> anyhow::Result<()> {
        self.signal(node, Signal::STOP).with_context(|| format!("cannot stop node {node}"))
    }

    fn resume(&mut self, node: NodeId) -> anyhow::Result<()> {
        self.signal(node, Signal::CONT).with_context(|| format!("cannot let node {node} go on"))
    }

    fn ended(&mut self, node: NodeId) -> Option<String> {
        match self.children.get_mut(&node)?.try_wait() {
            Ok(status) => status.map(describe),
            Err(error) => Some(format!("its end is unknown: {error}")),
        }
    }

    fn kill_all(&mut self) {
        Self::end(self.children.values_mut());
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// A command whose process dies with this thread, with pipes, and standard error appended to `log`.
pub(crate) fn child_command(
    program: &Path,
    arguments: &[String],
    log: &Path,
    namespace: Option<&Namespace>,
) -> anyhow::Result<Command> {
    let log = OpenOptions::new().create(true).append(true).open(log);
    let log = log.context("cannot open the log of a node")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
    // Its own group: Ctrl-C in a terminal reaches the controller alone, which then ends the nodes in order.
    command.process_group(0);
    let controller = getpid();
    let namespace = namespace.map(Namespace::handle).transpose().context("cannot enter a namespace")?;
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; prctl, setns and getppid are system
    // calls, and making an error from a number does not allocate.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            namespace.as_ref().map_or(Ok(()), enter)?;
            // The parent may have died before the line above; then no signal will come.
            if getppid() == Some(controller) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
        });
    }
    Ok(command)
}

pub(super) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(9)) => "killed (SIGKILL)".into(),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A shell script in the role of a node.
    fn script(text: &str) -> Processes {
        Processes {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), text.into()],
            own_arguments: BTreeMap::new(),
            children: BTreeMap::new(),
        }
    }

    async fn ended(placement: &mut Processes, node: NodeId) -> String {
        for _ in 0..1000 {
            if let Some(how) = placement.ended(node) {
                return how;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("node {node} did not end");
    }

    #[tokio::test]
    async fn streams_are_connected_and_the_log_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("1.log");
        std::fs::write(&log, "before\n").unwrap();
        let mut placement = script("echo warning >&2; exec cat");
        let mut pipes = placement.start(NodeId(1), &log).unwrap();
        pipes.stdin.write_all(b"hello").await.unwrap();
        drop(pipes.stdin);
        let mut text = String::new();
        pipes.stdout.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
        assert_eq!(ended(&mut placement, NodeId(1)).await, "exit code 0");
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "before\nwarning\n");
    }

    #[tokio::test]
    async fn dropping_the_placement_ends_stopped_children_too() {
        let dir = tempfile::tempdir().unwrap();
        let mut placement = script("echo started; exec sleep 1000");
        let mut pids = Vec::new();
        for node in [NodeId(1), NodeId(2), NodeId(3)] {
            let mut pipes = placement.start(node, &dir.path().join("log")).unwrap();
            pipes.stdout.read_u8().await.unwrap();
            pids.push(
                rustix::process::Pid::from_raw(placement.children[&node].id().unwrap() as i32).unwrap(),
            );
        }
        rustix::process::kill_process(pids[1], Signal::STOP).unwrap();
        placement.kill(NodeId(3)).unwrap();
        assert_eq!(ended(&mut placement, NodeId(3)).await, "killed (SIGKILL)");
        placement.kill(NodeId(3)).unwrap();
        drop(placement);
        for pid in pids {
            assert_eq!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH));
        }
    }

    #[tokio::test]
    async fn a_stopped_child_goes_on_when_it_is_told_to() {
        let dir = tempfile::tempdir().unwrap();
        let mut placement = script("exec cat");
        let mut pipes = placement.start(NodeId(1), &dir.path().join("log")).unwrap();
        let pid = placement.children[&NodeId(1)].id().unwrap();
        let state = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
        };
        placement.stop(NodeId(1)).unwrap();
        while state() != 'T' {
            tokio::task::yield_now().await;
        }
        pipes.stdin.write_all(b"x").await.unwrap();
        placement.resume(NodeId(1)).unwrap();
        assert_eq!(pipes.stdout.read_u8().await.unwrap(), b'x');
        drop(pipes);
        ended(&mut placement, NodeId(1)).await;
        placement.stop(NodeId(1)).unwrap();
        placement.resume(NodeId(1)).unwrap();
    }

    /// A killed controller cannot be had inside one process, but the kernel counts the death of the thread that
    /// forked, which can. The child heeds neither its stdin nor a hang-up, so that only PDEATHSIG ends it.
    #[test]
    fn the_kernel_kills_a_child_whose_parent_dies() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut placement = script("trap '' HUP; exec sleep 1000");
        let pipes = std::thread::scope(|scope| {
            let parent = scope.spawn(|| {
                let _guard = runtime.enter();
                placement.start(NodeId(1), &dir.path().join("log")).unwrap()
            });
            parent.join().unwrap()
        });
        assert_eq!(runtime.block_on(ended(&mut placement, NodeId(1))), "killed (SIGKILL)");
        drop(pipes);
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        let dir = tempfile::tempdir().unwrap();
        let mut placement = script("");
        placement.program = dir.path().join("nothing");
        let error = placement.start(NodeId(1), &dir.path().join("log")).unwrap_err();
        assert!(error.to_string().contains("as node 1"), "{error}");
    }
}
