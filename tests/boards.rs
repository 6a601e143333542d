//! Hosts reached over ssh: namespaces on a bridge, each with an sshd of its own that the test starts. Needs root and
//! OpenSSH's server; the machine's own is left alone.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use harness::link::Link;
use harness::place::netns::network::Network;
use harness::plan::{Member, Plan};
use replication::NodeId;
use tempfile::TempDir;

use serde_json::Value;

use crate::netns::{PATIENCE, await_some, await_some_for, need_root};

/// How far the clock of each host is ahead of the one before it, the first one's of the controller's.
const AHEAD_S: u64 = 5000;
/// How long a run may take to get somewhere on a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// The controller is in the first namespace, a host in each of the others.
struct Shelf {
    network: Network,
    members: Vec<Member>,
    dir: TempDir,
    servers: Vec<Child>,
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
    fn new(hosts: u64) -> Self {
        need_root();
        fs::create_dir_all("/run/sshd").unwrap();
        let members = Plan::members_in("10.8.8.0".parse().unwrap(), hosts + 1);
        let network = Network::build(&members, &Link::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("authorized_keys"), key(&dir.path().join("id"))).unwrap();
        let mut shelf = Self { network, members, dir, servers: Vec::new() };
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

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn address(&self, host: u64) -> Ipv4Addr {
        self.members[usize::try_from(host).unwrap()].ip
    }

    fn inside<T: Send>(&self, host: u64, work: impl FnOnce() -> io::Result<T> + Send) -> T {
        self.network.namespace(NodeId(host + 1)).unwrap().run(work).unwrap()
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
        // The clocks of boards begin when they are switched on.
        let mut command = Command::new("unshare");
        command.args(["--time", "--monotonic", &(host * AHEAD_S).to_string(), "/usr/sbin/sshd"]);
        command.args(["-D", "-e", "-f"]).arg(&config).stdin(Stdio::null()).stderr(Stdio::null());
        let server = self.inside(host, || command.spawn());
        let address = (self.address(host), 22);
        await_some("an sshd", || self.inside(0, || Ok(std::net::TcpStream::connect(address).ok())));
        self.servers.push(server);
    }

    /// `harness` in the controller's namespace.
    fn harness(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_harness"));
        command.args(words).current_dir(self.dir.path()).stdin(Stdio::null());
        self.inside(0, || command.output())
    }

    /// An inventory of the first `hosts`.
    fn inventory(&self, hosts: u64, more: impl Fn(u64) -> String) -> String {
        let line = |host| format!("pi{host} ansible_host={} {}\n", self.address(host), more(host));
        let lines: String = (1..=hosts).map(line).collect();
        format!("[boards]\n{lines}[boards:vars]\nharness_program={PROGRAM}\nharness_interface=eth0\n")
    }

    /// `harness run` on the hosts of hosts.ini.
    fn run(&self, options: &[&str]) -> Child {
        let mut command = Command::new(PROGRAM);
        command.args(["run", "--placement", "ssh", "--inventory", "hosts.ini", "--ssh-config", "ssh_config"]);
        command.args([
            "--seed",
            "7",
            "--json",
            "--examples-per-node",
            "64",
            "--test-examples-per-node",
            "32",
        ]);
        command.args(options).current_dir(self.dir.path()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.inside(0, || command.spawn())
    }

    /// The results folder of the only run below `out`, once it is there.
    fn results(&self, out: &str) -> PathBuf {
        await_some_for("a results folder", LONG, || {
            let folder = fs::read_dir(self.path(out)).ok()?.flatten().next()?.path();
            folder.join("events.jsonl").exists().then_some(folder)
        })
    }

    /// Waits until so many rounds are in the results.
    fn await_rounds(&self, results: &Path, count: usize) {
        await_some_for("a round", LONG, || {
            let rounds = fs::read_to_string(results.join("rounds.csv")).ok()?;
            (rounds.lines().count() > count).then_some(())
        });
    }

    fn assert_nothing_left(&self, hosts: impl IntoIterator<Item = u64>, patience: Duration) {
        for host in hosts {
            await_some_for(&format!("the end of everything on host {host}"), patience, || {
                self.left_behind(host).is_empty().then_some(())
            });
        }
    }

    fn doctor(&self, inventory: &str) -> (Option<i32>, String) {
        fs::write(self.path("hosts.ini"), inventory).unwrap();
        let output = self.harness(&["doctor", "--inventory", "hosts.ini", "--ssh-config", "ssh_config"]);
        let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code(), said)
    }

    /// Name of a host's network namespace, as /proc shows it.
    fn namespace(&self, host: u64) -> String {
        let name = self.inside(host, || fs::read_link("/proc/thread-self/ns/net"));
        name.to_str().unwrap().to_owned()
    }

    /// Processes in a host's namespace beside its sshd's.
    fn left_behind(&self, host: u64) -> Vec<String> {
        let own = self.inside(host, || fs::read_link("/proc/thread-self/ns/net"));
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let there = pids.filter(|pid| fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns == own));
        there
            .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).ok())
            .filter(|line| !line.is_empty() && !line.contains("sshd"))
            .collect()
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_harness");

#[test]
fn the_doctor_finds_hosts_in_order_and_leaves_nothing_behind() {
    let shelf = Shelf::new(3);
    let lines: String =
        (1..=3).map(|host| format!("pi{host} ansible_host={}\n", shelf.address(host))).collect();
    let inventory =
        format!("[boards]\n{lines}[boards:vars]\nharness_program={PROGRAM}\nharness_interface=eth0\n");
    let (code, said) = shelf.doctor(&inventory);
    assert_eq!(code, Some(0), "{said}");
    for host in 1..=3 {
        let line = said.lines().find(|line| line.contains(&format!("pi{host} "))).unwrap();
        assert!(!line.contains("FAILED"), "{said}");
        await_some("the end of a probe", || shelf.left_behind(host).is_empty().then_some(()));
    }
}

#[test]
fn the_doctor_names_every_trouble_with_its_host_and_remedy() {
    let shelf = Shelf::new(3);
    let known = fs::read_to_string(shelf.path("known_hosts")).unwrap();
    let stranger = shelf.address(3).to_string();
    let others: Vec<&str> = known.lines().filter(|line| !line.starts_with(&stranger)).collect();
    fs::write(shelf.path("known_hosts"), others.join("\n") + "\n").unwrap();
    // The head of a program for a machine that nobody has.
    let mut foreign = vec![0; 256];
    foreign[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    foreign[16..22].copy_from_slice(&[2, 0, 0xff, 0x7f, 1, 0]);
    fs::write(shelf.path("foreign"), foreign).unwrap();
    fs::set_permissions(shelf.path("foreign"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let address = shelf.address(1);
    let taken = shelf.inside(1, || UdpSocket::bind((address, 5000)));
    let [one, two, three] = [1, 2, 3].map(|host| shelf.address(host));
    let foreign = shelf.path("foreign");
    let inventory = format!(
        "taken ansible_host={one} harness_program={PROGRAM}\n\
         elsewhere ansible_host={two} harness_address=10.8.8.99 harness_program={PROGRAM}\n\
         otherwise ansible_host={two} harness_interface=wlan0 harness_program={PROGRAM}\n\
         bare ansible_host={two} harness_address=10.8.8.98 harness_program=/nowhere/harness\n\
         foreign ansible_host={two} harness_address=10.8.8.97 harness_program={}\n\
         unknown ansible_host={three} harness_program={PROGRAM}\n\
         off ansible_host=10.8.8.11 harness_program={PROGRAM}\n",
        foreign.display()
    );
    let (code, said) = shelf.doctor(&inventory);
    assert_eq!(code, Some(1), "{said}");
    let refused = shelf.run(&[]).wait_with_output().unwrap();
    drop(taken);
    let named = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{named}");
    assert!(!shelf.path("results").exists(), "nothing was written");
    for (host, wrong, remedy) in [
        ("taken", "UDP port 5000 cannot be used", "ss -ulpn"),
        ("elsewhere", "none of its interfaces (lo, eth0) has the address 10.8.8.99", "harness_address"),
        ("otherwise", "is the address of eth0, not of wlan0; it has lo, eth0", "harness_interface"),
        ("bare", "there is no /nowhere/harness", "harness_program"),
        ("foreign", "is for another architecture", "scripts/cross-build"),
        ("unknown", "its host key is not known", "accept it: ssh"),
        ("off", "it cannot be reached", "see whether it is up"),
    ] {
        let found = said.lines().any(|line| {
            line.contains(&format!(" {host} "))
                && line.contains("FAILED")
                && line.contains(wrong)
                && line.contains(remedy)
        });
        assert!(found, "{host}: {wrong}:\n{said}");
        let refused = named.lines().any(|line| {
            line.contains(&format!("host {host}: ")) && line.contains(wrong) && line.contains(remedy)
        });
        assert!(refused, "{host}: {named}");
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn rows(path: &Path) -> Vec<std::collections::BTreeMap<String, String>> {
    csv::Reader::from_path(path).unwrap().deserialize().map(|row| row.unwrap()).collect()
}

/// Ten boards whose clocks differ by hours: what a run tells of them is as right as it says.
#[test]
fn a_run_on_ten_hosts_begins_soon_measures_right_and_leaves_nothing_behind() {
    let shelf = Shelf::new(10);
    fs::write(shelf.path("hosts.ini"), shelf.inventory(10, |_| String::new())).unwrap();
    let begun_ns = harness::clock::monotonic_ns();
    // Enough rounds for several comparisons of clocks, one every two seconds.
    let run = shelf.run(&["--rounds", "20", "--fault", "kill@aggregator,round:2", "--capture", "required"]);
    let output = run.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    shelf.assert_nothing_left(1..=10, PATIENCE);
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let results = shelf.path(summary["results"].as_str().unwrap());
    let manifest = json(&results.join("manifest.json"));
    assert_eq!(manifest["hosts"].as_array().unwrap().len(), 10);
    assert!(manifest["hosts"][3]["after"]["memory_available_bytes"].as_u64().unwrap() > 0);
    let traffic = &summary["traffic"];
    assert_eq!((&traffic["source"], &traffic["valid"]), (&"capture".into(), &true.into()), "{traffic}");
    assert_eq!(summary["unexpected_deaths"], 0);

    let ahead_ns = |node: u64| i128::from(node * AHEAD_S) * 1_000_000_000;
    let clocks = rows(&results.join("clocks.csv"));
    let victim = &crate::federated::events_in(&results, "fault_struck")[0]["target"];
    for node in (1..=10_u64).filter(|node| *victim != *node) {
        let compared = clocks.iter().filter(|row| row["node"] == node.to_string()).count();
        assert!(compared >= 2, "node {node} is compared again: {compared}");
    }
    for row in &clocks {
        let number = |name: &str| row[name].parse::<i128>().unwrap();
        let error = number("offset_ns") - ahead_ns(row["node"].parse().unwrap());
        assert!(error.abs() <= number("uncertainty_ns"), "{row:?}: wrong by {error} ns");
    }
    let failovers = rows(&results.join("failovers.csv"));
    let [failover] = &failovers[..] else { panic!("{failovers:?}") };
    let number = |name: &str| failover[name].parse::<i128>().unwrap();
    let uncertainty_ns = number("uncertainty_ns");
    assert!(uncertainty_ns > 0, "{failover:?}");
    let flagged = uncertainty_ns * 100 > number("agreed_ns") * 5;
    assert_eq!(failover["uncertain"], flagged.to_string(), "{failover:?}");
    let mut first_round_ns = None;
    // What the namespaces were made with is the truth.
    for line in fs::read_to_string(results.join("events.jsonl")).unwrap().lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let at_ns = i128::from(event["at_ns"].as_u64().unwrap());
        if event["event"] == "round_started" {
            first_round_ns.get_or_insert(at_ns);
        }
        if let (Some(node), Some(shown_ns)) = (event["node"].as_u64(), event["node_at_ns"].as_u64()) {
            let error = at_ns - (i128::from(shown_ns) - ahead_ns(node));
            assert!(error.abs() <= uncertainty_ns, "{event}: wrong by {error} ns");
        }
    }
    let start_ns = first_round_ns.unwrap() - i128::from(begun_ns);
    assert!(start_ns < 20_000_000_000, "the first round began after {start_ns} ns");
    println!("first round after {start_ns} ns, uncertainty {uncertainty_ns} ns");
    let report = shelf.harness(&["report", results.to_str().unwrap()]);
    assert_eq!(report.status.code(), Some(0), "{}", String::from_utf8_lossy(&report.stderr));
}

#[test]
fn hosts_that_are_lost_are_survived_and_one_comes_back_with_what_it_stored() {
    let mut shelf = Shelf::new(5);
    let off = shelf.path("off");
    let script = "#!/bin/sh\nfor p in /proc/[0-9]*; do [ \"$(readlink $p/ns/net)\" = \"$1\" ] && kill -9 ${p#/proc/}; done\n\
                  true\n";
    fs::write(&off, script).unwrap();
    fs::set_permissions(&off, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let hook = |host| format!("harness_power_off='{} {}'", off.display(), shelf.namespace(host));
    fs::write(shelf.path("hosts.ini"), shelf.inventory(5, hook)).unwrap();
    // Raft among five goes on with three; the one that is restarted makes them three again.
    let options = ["--rounds", "60", "--durability", "disk", "--out", "out", "--min-fit-clients", "1"];
    let faults = [
        "--fault",
        "stop@node:2,round:2,for:1s",
        "--fault",
        "restart@node:3,round:4,after:0.5s",
        "--fault",
        "power-off@node:4,round:6",
    ];
    let run = shelf.run(&[&options[..], &faults[..]].concat());
    let results = shelf.results("out");
    await_some_for("the power to be cut", LONG, || {
        fs::read_to_string(results.join("events.jsonl")).ok()?.contains("power-off@").then_some(())
    });
    // The listener, and with it what it serves.
    let sshd = shelf.namespace(5);
    shelf.servers[4].kill().unwrap();
    shelf.servers[4].wait().unwrap();
    assert!(Command::new(&off).arg(&sshd).status().unwrap().success());
    let output = run.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&summary["faults_struck"], &summary["unexpected_deaths"]), (&3.into(), &1.into()), "{said}");
    let nodes = rows(&results.join("nodes.csv"));
    let state = |node: &str, life: &str| {
        nodes.iter().find(|row| row["node"] == node && row["life"] == life).unwrap()["state"].clone()
    };
    assert_eq!(state("3", "1"), "killed (SIGKILL)");
    assert_eq!(state("3", "2"), "exit code 0");
    assert_eq!(state("4", "1"), "the power of pi4 was cut");
    assert_eq!(state("5", "1"), "the connection to pi5 was lost");
    shelf.assert_nothing_left(1..=5, PATIENCE);
    let dir = json(&results.join("manifest.json"))["plan"]["disk"]["dir"].as_str().unwrap().to_owned();
    for node in 1..=3 {
        await_some("the end of a store", || (!Path::new(&format!("{dir}-{node}")).exists()).then_some(()));
    }
    // Whose power is cut cannot tidy up.
    for node in [4, 5] {
        let _ = fs::remove_dir_all(format!("{dir}-{node}"));
    }
}

/// However a run ends, hosts are as they were: one of the nodes is stopped, and sees nothing of it.
#[test]
fn nothing_is_left_behind_when_a_run_is_interrupted_killed_or_cut_off() {
    let shelf = Shelf::new(3);
    fs::write(shelf.path("hosts.ini"), shelf.inventory(3, |_| String::new())).unwrap();
    type End = fn(&Shelf, &mut Child);
    let endings: [(&str, End, u64); 3] = [
        ("int", |_, run| signal(run, rustix::process::Signal::INT), 20),
        ("kill", |_, run| run.kill().unwrap(), 20),
        ("cut", |shelf, _| cut(shelf), 60),
    ];
    for (name, end, patience_s) in endings {
        let options = ["--rounds", "500", "--fault", "stop@node:3,round:2", "--durability", "disk"];
        let mut run = shelf.run(&[&options[..], &["--min-fit-clients", "1", "--out", name]].concat());
        let results = shelf.results(name);
        shelf.await_rounds(&results, 2);
        let dir = json(&results.join("manifest.json"))["plan"]["disk"]["dir"].as_str().unwrap().to_owned();
        end(&shelf, &mut run);
        shelf.assert_nothing_left(1..=3, Duration::from_secs(patience_s));
        for node in 1..=3 {
            assert!(!Path::new(&format!("{dir}-{node}")).exists(), "{name}: the store of node {node}");
        }
        let output = run.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = match name {
            "int" => Some(130),
            "kill" => None,
            // Two of three nodes are out of reach.
            _ => Some(3),
        };
        assert_eq!(output.status.code(), code, "{name}: {said}");
    }
}

fn signal(run: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(run.id() as i32).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Cuts the controller off: nobody is told.
fn cut(shelf: &Shelf) {
    let mut command = Command::new("ip");
    command.args(["link", "set", "eth0", "down"]);
    assert!(shelf.inside(0, || command.status()).success());
}

#[test]
fn an_inventory_that_cannot_be_used_is_refused_before_anything_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let doctor = |text: &str| {
        fs::write(dir.path().join("hosts.ini"), text).unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(["doctor", "--inventory", "hosts.ini"]).current_dir(dir.path()).stdin(Stdio::null());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let said = doctor("a ansible_host=10.0.0.1\nb ansible_host=10.0.0.1\n");
    assert!(
        said.starts_with(
            "error: --inventory hosts.ini: hosts a and b have the same address 10.0.0.1; correct"
        ),
        "{said}"
    );
    assert!(doctor("").contains("it lists no host"));
}

/// From a login to a report. What changes the machine itself is only looked at (`--check`): hosts share its file system.
#[test]
fn playbooks_take_boards_from_set_up_to_a_report() {
    let shelf = Shelf::new(2);
    let deployed = shelf.path("deployed/harness");
    let more = |_| format!("ansible_become=false ansible_remote_tmp={}", shelf.path("remote").display());
    let inventory = shelf.inventory(2, more).replace(PROGRAM, deployed.to_str().unwrap());
    fs::write(shelf.path("hosts.ini"), inventory).unwrap();
    let play = |name: &str, words: &[String]| {
        let mut command = Command::new("ansible-playbook");
        let playbook = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/pi").join(name);
        command.args(["-i", "hosts.ini"]).arg(playbook).args(words).current_dir(shelf.dir.path());
        command.env("ANSIBLE_SSH_ARGS", "-F ssh_config").env("ANSIBLE_PIPELINING", "1");
        command
            .env("PWD", shelf.dir.path())
            .env("HOME", shelf.dir.path())
            .env("ANSIBLE_NOCOLOR", "1")
            .stdin(Stdio::null());
        let output = shelf.inside(0, || command.output());
        let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{name}: {said}");
        said
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    play("setup.yml", &words(&["--check", "--skip-tags", "packages"]));
    let binary = words(&["-e", &format!("binary={PROGRAM}")]);
    play("deploy.yml", &binary);
    let again = play("deploy.yml", &binary);
    assert_eq!(again.matches("changed=0").count(), 2, "{again}");
    let options = ["--rounds", "3", "--examples-per-node", "64", "--test-examples-per-node", "32"];
    let options = serde_json::json!({
        "controller": PROGRAM,
        "ssh_options": ["--ssh-config", "ssh_config"],
        "options": options,
    });
    play("run.yml", &words(&["-e", &options.to_string()]));
    let results = shelf.results("results/run");
    let given = words(&["-e", &format!("controller={PROGRAM} results={}", results.display())]);
    play("collect.yml", &given);
    assert!(fs::read_to_string(results.join("boards/pi2.txt")).unwrap().contains("# uname -a\nLinux"));
    assert!(results.join("report/index.html").exists());
    shelf.assert_nothing_left(1..=2, PATIENCE);
}
