//! Boards reached over ssh, as [`shelf`](crate::shelf) gives them.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::netns::{PATIENCE, await_some, await_some_for};
use crate::shelf::{AHEAD_S, LONG, PROGRAM, Shelf};

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
    let shelf = Shelf::new(4);
    shelf.mount(4, &["-t", "tmpfs", "-o", "size=1m", "tmpfs", "/var/tmp"]);
    // The same size, another build.
    let mut build = fs::read(PROGRAM).unwrap();
    *build.last_mut().unwrap() ^= 1;
    fs::write(shelf.path("build"), build).unwrap();
    fs::set_permissions(shelf.path("build"), fs::Permissions::from_mode(0o755)).unwrap();
    let known = fs::read_to_string(shelf.path("known_hosts")).unwrap();
    let stranger = shelf.address(3).to_string();
    let others: Vec<&str> = known.lines().filter(|line| !line.starts_with(&stranger)).collect();
    fs::write(shelf.path("known_hosts"), others.join("\n") + "\n").unwrap();
    // The head of a program for a machine that nobody has.
    let mut foreign = vec![0; 256];
    foreign[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    foreign[16..22].copy_from_slice(&[2, 0, 0xff, 0x7f, 1, 0]);
    fs::write(shelf.path("foreign"), foreign).unwrap();
    fs::set_permissions(shelf.path("foreign"), fs::Permissions::from_mode(0o755)).unwrap();
    let address = shelf.address(1);
    let taken = shelf.inside(1, || UdpSocket::bind((address, 5000)));
    let [one, two, three, four] = [1, 2, 3, 4].map(|host| shelf.address(host));
    let (foreign, build) = (shelf.path("foreign"), shelf.path("build"));
    let inventory = format!(
        "taken ansible_host={one} harness_program={PROGRAM}\n\
         elsewhere ansible_host={two} harness_address=10.8.8.99 harness_program={PROGRAM}\n\
         otherwise ansible_host={two} harness_interface=wlan0 harness_program={PROGRAM}\n\
         bare ansible_host={two} harness_address=10.8.8.98 harness_program=/nowhere/harness\n\
         foreign ansible_host={two} harness_address=10.8.8.97 harness_program={}\n\
         unknown ansible_host={three} harness_program={PROGRAM}\n\
         full ansible_host={four} harness_program={PROGRAM}\n\
         differs ansible_host={four} harness_address=10.8.8.96 harness_program={}\n\
         off ansible_host=10.8.8.11 harness_program={PROGRAM}\n",
        foreign.display(),
        build.display()
    );
    let (code, said) = shelf.doctor(&inventory);
    assert_eq!(code, Some(1), "{said}");
    let shard = r#"{"place":2,"cut":{"nodes":9,"partition":"iid","examples_per_node":64,"test_examples_per_node":32,"seed":8}}"#;
    fs::write(shelf.path("shard.json"), shard).unwrap();
    let mut tar = Command::new("tar");
    let tar = tar.args(["-czf", "shard.tar.gz", "shard.json"]).current_dir(shelf.dir.path()).status();
    assert!(tar.unwrap().success());
    let data = shelf.path("shard.tar.gz");
    let refused = shelf.run(&["--data", data.to_str().unwrap()]).wait_with_output().unwrap();
    drop(taken);
    let named = String::from_utf8_lossy(&refused.stderr).into_owned();
    let other = "has the images of node 2 of 9 (seed 8, iid, 64 examples and 32 for tests each) only, \
                 not those of node 3 of 9 (seed 7,";
    let refused_shard = |line: &str| line.contains("host otherwise: --data ") && line.contains(other);
    assert!(named.lines().any(refused_shard), "{named}");
    assert_eq!(refused.status.code(), Some(2), "{named}");
    assert!(!shelf.path("results").exists(), "nothing was written");
    for (host, wrong, remedy) in [
        ("taken", "UDP port 5000 cannot be used", "ss -ulpn"),
        ("elsewhere", "none of its interfaces (lo, eth0) has the address 10.8.8.99", "harness_address"),
        ("otherwise", "is the address of eth0, not of wlan0; it has lo, eth0", "harness_interface"),
        ("bare", "there is no /nowhere/harness", "harness_program"),
        ("foreign", "is for another architecture", "scripts/cross-build"),
        ("unknown", "its host key is not known", "accept it: ssh"),
        ("full", "of space in /var/tmp are free", "free at least"),
        ("differs", "its program is another build than that of taken", "copy the same binary"),
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
    shelf.assert_nothing_left_now(1..=10);
    assert_eq!(output.status.code(), Some(0), "{said}");
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
    // How wrong a moment may be at most, by any one comparison that was made before: that, and 100 ns for each ms between.
    let promised_ns = |node: u64, at_ns: i128| {
        let own = clocks.iter().filter(|row| row["node"] == node.to_string());
        let promises = own.filter_map(|row| {
            let number = |name: &str| row[name].parse::<i128>().unwrap();
            let (uncertainty_ns, age_ns) = (number("uncertainty_ns"), at_ns - number("at_ns"));
            // The comparison itself took twice its uncertainty.
            (age_ns >= 0).then(|| uncertainty_ns + (age_ns + 2 * uncertainty_ns) / 10_000)
        });
        promises.min().unwrap_or_else(|| panic!("the clock of node {node} was not compared before {at_ns}"))
    };
    // What the namespaces were made with is the truth.
    for line in fs::read_to_string(results.join("events.jsonl")).unwrap().lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let at_ns = i128::from(event["at_ns"].as_u64().unwrap());
        if event["event"] == "round_started" {
            first_round_ns.get_or_insert(at_ns);
        }
        if let (Some(node), Some(shown_ns)) = (event["node"].as_u64(), event["node_at_ns"].as_u64()) {
            let error = at_ns - (i128::from(shown_ns) - ahead_ns(node));
            let promised_ns = promised_ns(node, at_ns);
            assert!(error.abs() <= promised_ns, "{event}: wrong by {error} ns, not by {promised_ns} ns");
        }
    }
    let start_ns = first_round_ns.unwrap() - i128::from(begun_ns);
    assert!(start_ns < 20_000_000_000, "the first round began after {start_ns} ns");
    println!("first round after {start_ns} ns, uncertainty {uncertainty_ns} ns");
    let report = shelf.harness(&["report", results.to_str().unwrap()]);
    assert_eq!(report.status.code(), Some(0), "{}", String::from_utf8_lossy(&report.stderr));
}

#[test]
fn clients_on_a_host_of_their_own_load_a_dictionary_on_others() {
    let shelf = Shelf::new(4);
    fs::write(shelf.path("hosts.ini"), shelf.inventory(3, |_| String::new())).unwrap();
    let test = ["--workload", "kv", "--entries", "20"];
    // The controller is on a host of its own, and so are its clients.
    let run = shelf.run(&[&test[..], &["--duration", "2", "--clients", "4"]].concat());
    let run = run.wait_with_output().unwrap();
    assert_eq!(run.status.code(), Some(0), "{}", String::from_utf8_lossy(&run.stderr));
    let summary: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert!(summary["valid"] == true && summary["operations"].as_u64() > Some(0), "{summary}");
    let results = shelf.path(summary["results"].as_str().unwrap());
    assert_eq!(json(&results.join("manifest.json"))["hosts"].as_array().unwrap().len(), 3);
    shelf.assert_nothing_left_now(1..=3);

    // Clients of the fourth host fetch the settings of the test from the cluster.
    let serving = ["--duration", "2", "--clients", "0", "--cluster", "cluster.json"];
    let mut run = shelf.run(&[&test[..], &serving].concat());
    await_some_for("the cluster", LONG, || shelf.path("cluster.json").exists().then_some(()));
    let said = await_some_for("a load", LONG, || {
        let load = shelf.inside(4, || {
            let mut command = Command::new(PROGRAM);
            command.args(["kv", "load", "--clients", "3", "--cluster", "cluster.json"]);
            command.current_dir(shelf.dir.path()).stdin(Stdio::null()).output()
        });
        // Until the nodes are there it cannot reach them.
        eprint!("{}", String::from_utf8_lossy(&load.stderr));
        load.status.success().then(|| String::from_utf8_lossy(&load.stdout).into_owned())
    });
    signal(&run, rustix::process::Signal::INT);
    assert_eq!(run.wait().unwrap().code(), Some(130));
    shelf.assert_nothing_left_now(1..=3);
    assert!(said.contains(" operations by 3 clients in 2.0"), "{said}");
}

#[test]
fn hosts_that_are_lost_are_survived_and_one_comes_back_with_what_it_stored() {
    let mut shelf = Shelf::new(5);
    let off = shelf.path("off");
    let script = "#!/bin/sh\nfor p in /proc/[0-9]*; do [ \"$(readlink $p/ns/net)\" = \"$1\" ] && kill -9 ${p#/proc/}; done\n\
                  true\n";
    fs::write(&off, script).unwrap();
    fs::set_permissions(&off, fs::Permissions::from_mode(0o755)).unwrap();
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
    shelf.assert_nothing_left_now(1..=3);
    // Whose power is cut may not have the time to tidy up.
    for host in [4, 5] {
        assert_eq!(shelf.left_behind(host), shelf.files(host));
    }
}

/// However a run ends, hosts are as they were: one of the nodes is stopped, and sees nothing of it.
#[test]
fn nothing_is_left_behind_when_a_run_is_interrupted_killed_or_cut_off() {
    let mut shelf = Shelf::new(3);
    shelf.inventory = "hosts.yml";
    fs::write(shelf.path(shelf.inventory), shelf.yaml_inventory(3)).unwrap();
    type End = fn(&Shelf, &mut Child);
    let endings: [(&str, End, u64); 4] = [
        ("int", |_, run| signal(run, rustix::process::Signal::INT), 20),
        ("kill", |_, run| run.kill().unwrap(), 20),
        ("shutdown", |shelf, _| (1..=3).for_each(|host| shelf.shut_down(host)), 20),
        ("cut", |shelf, _| cut(shelf), 60),
    ];
    for (name, end, patience_s) in endings {
        let options = ["--rounds", "500", "--fault", "stop@node:3,round:2", "--durability", "disk"];
        let mut run = shelf.run(&[&options[..], &["--min-fit-clients", "1", "--out", name]].concat());
        let results = shelf.results(name);
        shelf.await_rounds(&results, 2);
        for host in 1..=3 {
            assert_eq!(shelf.files(host).len(), 1, "{name}: the store of host {host}");
        }
        end(&shelf, &mut run);
        // Who is killed cannot wait for hosts, and who is cut off cannot see them.
        shelf.assert_nothing_left(1..=3, Duration::from_secs(patience_s));
        let output = run.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = match name {
            "int" => Some(130),
            "kill" => None,
            // Two of three nodes are gone, or out of reach.
            _ => Some(3),
        };
        assert_eq!(output.status.code(), code, "{name}: {said}");
    }
}

/// `scripts/cross-build --check aarch64` makes the program and runs this. Three hosts, one of them of another architecture.
/// The program must not be in /tmp, of which each host has one of its own.
#[test]
#[ignore = "needs HARNESS_AARCH64, a program that was built for aarch64, and qemu-user registered with the kernel"]
fn an_emulated_board_and_two_others_run_a_job() {
    let program = std::env::var("HARNESS_AARCH64").expect("HARNESS_AARCH64 names the program");
    let shelf = Shelf::new(3);
    let more = |host| if host == 3 { format!("harness_program={program}") } else { String::new() };
    fs::write(shelf.path("hosts.ini"), shelf.inventory(3, more)).unwrap();
    let options =
        ["--rounds", "3", "--capture", "off", "--fault", "kill@node:1,round:2", "--min-fit-clients", "1"];
    let output = shelf.run(&options).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let results = shelf.path(summary["results"].as_str().unwrap());
    let hosts = json(&results.join("manifest.json"))["hosts"].clone();
    let architecture = |host: usize| hosts[host]["before"]["machine"]["architecture"].clone();
    println!("{} and {}: {summary}", architecture(0), architecture(2));
    assert_eq!(architecture(2), "aarch64");
    assert_ne!(architecture(0), "aarch64");
    assert_eq!(summary["unexpected_deaths"], 0, "{said}");
    let fits = crate::federated::events_in(&results, "fit_finished");
    assert!(fits.iter().any(|fit| fit["node"] == 3), "the emulated one has trained");
    shelf.assert_nothing_left_now(1..=3);
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

/// How many boards playbooks are played on: HARNESS_BOARDS, for example 10, or few, because each step logs in to each of them.
fn boards() -> u64 {
    std::env::var("HARNESS_BOARDS").map_or(3, |boards| boards.parse().expect("HARNESS_BOARDS is a number"))
}

/// From a login to a report, and back. What is the machine's own (services, packages, the processor) is not touched.
#[test]
fn playbooks_take_boards_from_set_up_to_a_report_and_back() {
    let boards = boards();
    let shelf = Shelf::new(boards);
    for host in 1..=boards {
        for place in ["/usr/local/sbin", "/etc/default", "/var/lib", "/sys/devices/system/cpu"] {
            shelf.mount(host, &["-t", "tmpfs", "tmpfs", place]);
        }
    }
    let program = |host| shelf.path(&format!("own{host}/bin/harness"));
    let more = |host| {
        let remote = shelf.path(&format!("own{host}/remote"));
        let (program, remote) = (program(host).display().to_string(), remote.display().to_string());
        format!("harness_program={program} ansible_become=false ansible_remote_tmp={remote}")
    };
    let inventory = shelf.inventory(boards, more);
    let common = format!("harness_program={PROGRAM}\n");
    fs::write(shelf.path("hosts.ini"), inventory.replace(&common, "")).unwrap();
    // Copied many times.
    let binary = shelf.path("binary");
    let mut strip = Command::new("strip");
    assert!(strip.arg("-o").arg(&binary).arg(PROGRAM).status().unwrap().success());
    // The name of a socket is short.
    let sockets = tempfile::tempdir().unwrap();
    let play = |name: &str, variables: Value| {
        let mut command = Command::new("ansible-playbook");
        let playbook = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/pi").join(name);
        command.args(["-i", "hosts.ini", "--forks", "10", "--skip-tags", "packages"]).arg(playbook);
        command.args(["-e", &variables.to_string()]).current_dir(shelf.dir.path()).stdin(Stdio::null());
        command.env("ANSIBLE_SSH_ARGS", "-F ssh_config -o ControlMaster=auto -o ControlPersist=5s");
        command.env("ANSIBLE_PIPELINING", "1").env("ANSIBLE_NOCOLOR", "1").env("PWD", shelf.dir.path());
        command.env("HOME", shelf.dir.path()).env("ANSIBLE_SSH_CONTROL_PATH_DIR", sockets.path());
        let output = shelf.inside(0, || command.output());
        let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{name}: {said}");
        said
    };
    play("setup.yml", serde_json::json!({"ansible_service_mgr": "none"}));
    for host in 1..=boards {
        let names_it = shelf.seen_from(host, "/etc/default/harness-measuring");
        assert_eq!(fs::read_to_string(names_it).unwrap(), "HARNESS_INTERFACE=eth0\n");
        assert!(shelf.seen_from(host, "/usr/local/sbin/harness-measuring").exists());
    }
    let deployed = serde_json::json!({ "binary": binary });
    play("deploy.yml", deployed.clone());
    let again = play("deploy.yml", deployed);
    assert_eq!(again.matches("changed=0").count() as u64, boards, "{again}");
    let options = ["--rounds", "6", "--fault", "kill@aggregator,round:2", "--capture", "required"];
    let examples = ["--examples-per-node", "64", "--test-examples-per-node", "32"];
    let options = [&options[..], &examples[..]].concat();
    let ssh_options = ["--ssh-config", "ssh_config"];
    let options = serde_json::json!({"controller": PROGRAM, "ssh_options": ssh_options, "options": options});
    play("run.yml", options);
    let results = shelf.results("results/run");
    play("collect.yml", serde_json::json!({"controller": PROGRAM, "results": results}));
    assert!(fs::read_to_string(results.join("boards/pi2.txt")).unwrap().contains("# uname -a\nLinux"));
    assert_eq!(rows(&results.join("failovers.csv")).len(), 1);
    assert!(results.join("report/index.html").exists());
    play("teardown.yml", serde_json::json!({"ansible_service_mgr": "none"}));
    for host in 1..=boards {
        assert!(!program(host).exists());
        assert!(!shelf.seen_from(host, "/etc/default/harness-measuring").exists());
        assert!(!shelf.seen_from(host, "/usr/local/sbin/harness-measuring").exists());
    }
    shelf.assert_nothing_left(1..=boards, PATIENCE);
}
