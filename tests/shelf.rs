//! Boards without boards: hosts that are reached over ssh, each with a network, a clock, a home and temporary folders of its own,
//! and an sshd that the test starts. Needs root and OpenSSH's server; the machine's own is left alone.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use harness::link::Link;
use harness::place::netns::network::Network;
use harness::plan::{Member, Plan};
use replication::NodeId;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::netns::{await_some, await_some_for, need_root};

/// How far the clock of each host is ahead of the one before it, the first one's of the controller's.
pub(crate) const AHEAD_S: u64 = 5000;
/// How long a run may take to get somewhere on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// The program on every host.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_harness");

/// The controller is in the first namespace, a host in each of the others.
pub(crate) struct Shelf {
    network: Network,
    members: Vec<Member>,
    pub(crate) dir: TempDir,
    pub(crate) servers: Vec<Child>,
    /// Name of the inventory.
    pub(crate) inventory: &'static str,
}

impl Drop for Shelf {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn key(path: &Path) -> String {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).stdin(Stdio::null());
    assert!(command.status().unwrap().success());
    fs::read_to_string(path.with_extension("pub")).unwrap()
}

impl Shelf {
    pub(crate) fn new(hosts: u64) -> Self {
        need_root();
        fs::create_dir_all("/run/sshd").unwrap();
        let members = Plan::members_in("10.8.8.0".parse().unwrap(), hosts + 1);
        let network = Network::build(&members, &Link::default()).unwrap();
        // Not in /tmp, of which each host has one of its own.
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::write(dir.path().join("authorized_keys"), key(&dir.path().join("id"))).unwrap();
        let mut shelf = Self { network, members, dir, servers: Vec::new(), inventory: "hosts.ini" };
        let mut known = String::new();
        for host in 1..=hosts {
            let host_key = key(&shelf.path(&format!("host{host}")));
            writeln!(known, "{} {}", shelf.address(host), host_key.trim()).unwrap();
            shelf.start_server(host);
        }
        fs::write(shelf.path("known_hosts"), known).unwrap();
        let config = format!(
            "Host *\n User root\n IdentityFile {}\n IdentitiesOnly yes\n IdentityAgent none\n UserKnownHostsFile {}\n \
             GlobalKnownHostsFile /dev/null\n StrictHostKeyChecking yes\n",
            shelf.path("id").display(),
            shelf.path("known_hosts").display()
        );
        fs::write(shelf.path("ssh_config"), config).unwrap();
        shelf
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn address(&self, host: u64) -> Ipv4Addr {
        self.members[usize::try_from(host).unwrap()].ip
    }

    pub(crate) fn inside<T: Send>(&self, host: u64, work: impl FnOnce() -> io::Result<T> + Send) -> T {
        self.network.namespace(NodeId(host + 1)).unwrap().run(work).unwrap()
    }

    /// A folder that is a host's own, and where it sees it.
    fn own_folders(&self, host: u64) -> Vec<(PathBuf, PathBuf)> {
        let own = |name: &str| self.path(&format!("own{host}")).join(name);
        let mut folders = vec![(own("home"), own("home")), (own("var-tmp"), "/var/tmp".into())];
        // A program that lies there is to be seen by all.
        if !Path::new(PROGRAM).starts_with("/tmp") {
            folders.push((own("tmp"), "/tmp".into()));
        }
        folders
    }

    fn start_server(&mut self, host: u64) {
        let config = self.path(&format!("sshd{host}"));
        let text = format!(
            "ListenAddress {}\nHostKey {}\nPidFile none\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n",
            self.address(host),
            self.path(&format!("host{host}")).display(),
            self.path("authorized_keys").display(),
        );
        fs::write(&config, text).unwrap();
        let mut script = String::from("set -e\n");
        for (folder, place) in self.own_folders(host) {
            fs::create_dir_all(&folder).unwrap();
            writeln!(script, "mount --bind '{}' '{}'", folder.display(), place.display()).unwrap();
        }
        let (users, home) = (self.path(&format!("passwd{host}")), self.path(&format!("own{host}/home")));
        let known = fs::read_to_string("/etc/passwd").unwrap();
        fs::write(&users, known.replace(":/root:", &format!(":{}:", home.display()))).unwrap();
        write!(
            script,
            "mount --bind '{}' /etc/passwd\nexec /usr/sbin/sshd -D -e -f '{}'\n",
            users.display(),
            config.display()
        )
        .unwrap();
        // The clocks of boards begin when they are switched on.
        let mut command = Command::new("unshare");
        command.args(["--mount", "--time", "--monotonic", &(host * AHEAD_S).to_string(), "/bin/sh", "-c"]);
        command.arg(script).stdin(Stdio::null()).stderr(Stdio::null());
        let server = self.inside(host, || command.spawn());
        let address = (self.address(host), 22);
        await_some("an sshd", || self.inside(0, || Ok(std::net::TcpStream::connect(address).ok())));
        self.servers.push(server);
    }

    /// Mounts something on a host.
    pub(crate) fn mount(&self, host: u64, words: &[&str]) {
        let server = &self.servers[usize::try_from(host).unwrap() - 1];
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", server.id())).arg("mount").args(words);
        assert!(command.status().unwrap().success());
    }

    /// A path as a host sees it.
    pub(crate) fn seen_from(&self, host: u64, path: &str) -> PathBuf {
        let server = &self.servers[usize::try_from(host).unwrap() - 1];
        PathBuf::from(format!("/proc/{}/root{path}", server.id()))
    }

    /// `harness` in the controller's namespace.
    pub(crate) fn harness(&self, words: &[&str]) -> Output {
        let mut command = Command::new(PROGRAM);
        command.args(words).current_dir(self.dir.path()).stdin(Stdio::null());
        self.inside(0, || command.output())
    }

    /// An inventory of the first `hosts`.
    pub(crate) fn inventory(&self, hosts: u64, more: impl Fn(u64) -> String) -> String {
        let line = |host| format!("pi{host} ansible_host={} {}\n", self.address(host), more(host));
        let lines: String = (1..=hosts).map(line).collect();
        format!("[boards]\n{lines}[boards:vars]\nharness_program={PROGRAM}\nharness_interface=eth0\n")
    }

    /// The same in YAML.
    pub(crate) fn yaml_inventory(&self, hosts: u64) -> String {
        let line = |host| format!("        pi{host}: {{ansible_host: {}}}\n", self.address(host));
        let lines: String = (1..=hosts).map(line).collect();
        format!(
            "all:\n  children:\n    boards:\n      hosts:\n{lines}      vars:\n        harness_program: {PROGRAM}\n        \
             harness_interface: eth0\n"
        )
    }

    /// `harness run` on the hosts of the inventory.
    pub(crate) fn run(&self, options: &[&str]) -> Child {
        let mut command = Command::new(PROGRAM);
        command.args(["run", "--placement", "ssh", "--inventory", self.inventory]);
        command.args(["--ssh-config", "ssh_config", "--seed", "7", "--json"]);
        command.args(["--examples-per-node", "64", "--test-examples-per-node", "32"]);
        command.args(options).current_dir(self.dir.path()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.inside(0, || command.spawn())
    }

    /// The results folder of the only run below `out`, if it is there.
    pub(crate) fn results(&self, out: &str) -> Option<PathBuf> {
        let folder = fs::read_dir(self.path(out)).ok()?.flatten().next()?.path();
        folder.join("events.jsonl").exists().then_some(folder)
    }

    /// The same, once `run` has made it.
    pub(crate) fn await_results(&self, out: &str, run: &mut Child) -> PathBuf {
        await_some_for("a results folder", LONG, || {
            let ended = run.try_wait().unwrap();
            let results = self.results(out);
            if let (Some(status), None) = (ended, &results) {
                let mut said = String::new();
                run.stderr.take().unwrap().read_to_string(&mut said).unwrap();
                panic!("the run ended without results ({status}): {said}");
            }
            results
        })
    }

    /// Waits until so many rounds are in the results.
    pub(crate) fn await_rounds(&self, results: &Path, count: usize) {
        await_some_for("a round", LONG, || {
            let rounds = fs::read_to_string(results.join("rounds.csv")).ok()?;
            (rounds.lines().count() > count).then_some(())
        });
    }

    /// No process and no file, at once: whoever started the run has waited for it.
    pub(crate) fn assert_nothing_left_now(&self, hosts: impl IntoIterator<Item = u64>) {
        for host in hosts {
            assert_eq!(self.left_behind(host), Vec::<String>::new(), "on host {host}");
        }
    }

    pub(crate) fn assert_nothing_left(&self, hosts: impl IntoIterator<Item = u64>, patience: Duration) {
        for host in hosts {
            await_some_for(&format!("the end of everything on host {host}"), patience, || {
                self.left_behind(host).is_empty().then_some(())
            });
        }
    }

    pub(crate) fn doctor(&self, inventory: &str) -> (Option<i32>, String) {
        fs::write(self.path("hosts.ini"), inventory).unwrap();
        let output = self.harness(&["doctor", "--inventory", "hosts.ini", "--ssh-config", "ssh_config"]);
        let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code(), said)
    }

    /// Name of a host's network namespace, as /proc shows it.
    pub(crate) fn namespace(&self, host: u64) -> String {
        let name = self.inside(host, || fs::read_link("/proc/thread-self/ns/net"));
        name.to_str().unwrap().to_owned()
    }

    /// Processes, files and ports of a host beside its sshd's.
    pub(crate) fn left_behind(&self, host: u64) -> Vec<String> {
        let processes = self.processes(host).into_iter().map(|(_, line)| line);
        processes.chain(self.files(host)).chain(self.ports(host)).collect()
    }

    /// UDP ports in use, as the kernel lists them: the threads of a process that was killed may have them when it is gone
    /// from every list of processes.
    fn ports(&self, host: u64) -> Vec<String> {
        let table = self.inside(host, || fs::read_to_string("/proc/thread-self/net/udp"));
        table.lines().skip(1).map(|line| format!("udp {}", line.trim())).collect()
    }

    /// Files in what folders a host has of its own.
    pub(crate) fn files(&self, host: u64) -> Vec<String> {
        let folders = self.own_folders(host).into_iter();
        let entries = folders.flat_map(|(folder, _)| fs::read_dir(folder).unwrap().flatten());
        entries.map(|entry| entry.path().display().to_string()).collect()
    }

    fn processes(&self, host: u64) -> Vec<(i32, String)> {
        let own = self.inside(host, || fs::read_link("/proc/thread-self/ns/net"));
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let there = pids.filter(|pid| fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns == own));
        there
            .filter_map(|pid| Some((pid, fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?)))
            .filter(|(_, line)| !line.is_empty() && !line.contains("sshd"))
            .collect()
    }

    /// What a host does to its processes when it is shut down in order.
    pub(crate) fn shut_down(&self, host: u64) {
        for (pid, _) in self.processes(host) {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM);
        }
    }
}
