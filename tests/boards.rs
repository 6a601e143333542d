//! Hosts reached over ssh: namespaces on a bridge, each with an sshd of its own that the test starts. Needs root and
//! OpenSSH's server; the machine's own is left alone.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use harness::link::Link;
use harness::place::netns::network::Network;
use harness::plan::{Member, Plan};
use replication::NodeId;
use tempfile::TempDir;

use crate::netns::{await_some, need_root};

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
        let mut command = Command::new("/usr/sbin/sshd");
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

    fn doctor(&self, inventory: &str) -> (Option<i32>, String) {
        fs::write(self.path("hosts.ini"), inventory).unwrap();
        let output = self.harness(&["doctor", "--inventory", "hosts.ini", "--ssh-config", "ssh_config"]);
        let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code(), said)
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
    drop(taken);
    assert_eq!(code, Some(1), "{said}");
    for (host, wrong, remedy) in [
        ("taken", "UDP port 5000 cannot be used", "ss -ulpn"),
        ("elsewhere", "none of its interfaces (lo, eth0) has the address 10.8.8.99", "harness_address"),
        ("otherwise", "is the address of eth0, not of wlan0; it has lo, eth0", "harness_interface"),
        ("bare", "there is no /nowhere/harness", "harness_program"),
        ("foreign", "is for another architecture", "cargo build --release --target"),
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
    }
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
