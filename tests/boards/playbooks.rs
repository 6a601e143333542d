//! The playbooks of `scripts/pi`, from a login to a report and back. What is the machine's own (services, packages, the
//! processor) is not touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::rows;
use crate::netns::PATIENCE;
use crate::shelf::{PROGRAM, Shelf};

/// How many boards they are played on.
const BOARDS: u64 = 10;
/// What setup.yml writes.
const SETTINGS: &str = "/etc/default/harness-measuring";
const SCRIPT: &str = "/usr/local/sbin/harness-measuring";

/// A shelf with an inventory for Ansible.
struct Stage {
    shelf: Shelf,
    boards: u64,
    /// Of ssh's connections; the name of a socket is short.
    sockets: TempDir,
}

impl Stage {
    fn new(boards: u64) -> Self {
        let stage = Self { shelf: Shelf::new(boards), boards, sockets: tempfile::tempdir().unwrap() };
        let shelf = &stage.shelf;
        for host in 1..=boards {
            for place in ["/usr/local/sbin", "/etc/default", "/var/lib", "/sys/devices/system/cpu"] {
                shelf.mount(host, &["-t", "tmpfs", "tmpfs", place]);
            }
        }
        let more = |host| {
            let remote = shelf.path(&format!("own{host}/remote"));
            let (program, remote) = (stage.program(host).display().to_string(), remote.display().to_string());
            format!("harness_program={program} ansible_become=false ansible_remote_tmp={remote}")
        };
        let common = format!("harness_program={PROGRAM}\n");
        let inventory = shelf.inventory(boards, more).replace(&common, "");
        fs::write(shelf.path("hosts.ini"), inventory).unwrap();
        stage
    }

    fn program(&self, host: u64) -> PathBuf {
        self.shelf.path(&format!("own{host}/bin/harness"))
    }

    fn play(&self, name: &str, variables: &Value) -> String {
        let begun = Instant::now();
        let dir = self.shelf.dir.path();
        let mut command = Command::new("ansible-playbook");
        let playbook = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/pi").join(name);
        command.args(["-i", "hosts.ini", "--forks", "10", "--skip-tags", "packages"]).arg(playbook);
        command.args(["-e", &variables.to_string()]).current_dir(dir).stdin(std::process::Stdio::null());
        command.env("ANSIBLE_SSH_ARGS", "-F ssh_config -o ControlMaster=auto -o ControlPersist=5s");
        command.env("ANSIBLE_PIPELINING", "1").env("ANSIBLE_NOCOLOR", "1").env("PWD", dir);
        command.env("HOME", dir).env("ANSIBLE_SSH_CONTROL_PATH_DIR", self.sockets.path());
        let output = self.shelf.inside(0, || command.output());
        let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{name}: {said}");
        println!("{name} on {} boards: {:?}", self.boards, begun.elapsed());
        said
    }

    fn deploy_twice(&self) {
        // Copied many times.
        let binary = self.shelf.path("binary");
        let mut strip = Command::new("strip");
        assert!(strip.arg("-o").arg(&binary).arg(PROGRAM).status().unwrap().success());
        let deployed = json!({ "binary": binary });
        self.play("deploy.yml", &deployed);
        let again = self.play("deploy.yml", &deployed);
        assert_eq!(again.matches("changed=0").count() as u64, self.boards, "{again}");
    }

    /// A job whose aggregator is killed; returns the folder of its results.
    fn run(&self) -> PathBuf {
        let options = ["--rounds", "6", "--fault", "kill@aggregator,round:2", "--capture", "required"];
        let examples = ["--examples-per-node", "64", "--test-examples-per-node", "32"];
        let options = [&options[..], &examples[..]].concat();
        let ssh_options = ["--ssh-config", "ssh_config"];
        self.play("run.yml", &json!({"controller": PROGRAM, "ssh_options": ssh_options, "options": options}));
        self.shelf.results("results/run").unwrap()
    }

    fn assert_set_up(&self) {
        for host in 1..=self.boards {
            let names_it = self.shelf.seen_from(host, SETTINGS);
            assert_eq!(fs::read_to_string(names_it).unwrap(), "HARNESS_INTERFACE=eth0\n");
            assert!(self.shelf.seen_from(host, SCRIPT).exists());
        }
    }

    fn assert_taken_back(&self) {
        for host in 1..=self.boards {
            assert!(!self.program(host).exists());
            assert!(!self.shelf.seen_from(host, SETTINGS).exists());
            assert!(!self.shelf.seen_from(host, SCRIPT).exists());
        }
        self.shelf.assert_nothing_left(1..=self.boards, PATIENCE);
    }
}

#[test]
fn playbooks_take_boards_from_set_up_to_a_report_and_back() {
    let boards = std::env::var("HARNESS_BOARDS");
    let boards = boards.map_or(BOARDS, |boards| boards.parse().expect("HARNESS_BOARDS is a number"));
    let stage = Stage::new(boards);
    let no_services = json!({"ansible_service_mgr": "none"});
    stage.play("setup.yml", &no_services);
    stage.assert_set_up();
    stage.deploy_twice();
    let results = stage.run();
    stage.play("collect.yml", &json!({"controller": PROGRAM, "results": results}));
    assert!(fs::read_to_string(results.join("boards/pi2.txt")).unwrap().contains("# uname -a\nLinux"));
    assert_eq!(rows(&results.join("failovers.csv")).len(), 1);
    assert!(results.join("report/index.html").exists());
    stage.play("teardown.yml", &no_services);
    stage.assert_taken_back();
}
