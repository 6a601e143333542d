//! The leaderboard on the built binary: votes through HAProxy while nodes die, and the page in a browser.
//!
//! HAProxy and Chromium come from Debian's packages (haproxy, chromium), which CI installs. Where one is not installed its tests
//! say so and pass.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::federated::{Run, start, start_in};
use crate::network;

const PATIENCE: Duration = Duration::from_secs(60);

/// Whether `program` can be started; otherwise says so.
fn is_installed(program: &str) -> bool {
    let version = if program == "haproxy" { "-v" } else { "--version" };
    let found =
        Command::new(program).arg(version).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("NOT TESTED: {program} is not installed (apt-get install {program})");
    }
    found
}

/// Three nodes under 200 votes per second.
fn votes(options: &[&str]) -> Run {
    let load = "--workload leaderboard --nodes 3 --rate 200 --duration 4".split(' ');
    let words: Vec<&str> = load.chain(options.iter().copied()).collect();
    start(&words).wait()
}

#[test]
fn no_vote_is_lost_or_doubled_when_the_leader_is_killed_behind_haproxy() {
    every_vote_counts_once_when_the_leader_is_killed("raft");
}

#[test]
fn under_gossip_no_vote_is_lost_or_doubled_when_the_leader_is_killed_behind_haproxy() {
    every_vote_counts_once_when_the_leader_is_killed("gossip");
}

fn every_vote_counts_once_when_the_leader_is_killed(backend: &str) {
    if !is_installed("haproxy") {
        return;
    }
    let fault = "kill@aggregator,time:1500ms";
    let run = votes(&["--backend", backend, "--fault", fault, "--operation-timeout", "60s"]);
    assert_eq!(run.code(), 0, "{backend}: {}", run.text());
    let summary = run.summary();
    let count = |name: &str| summary[name].as_u64().unwrap();
    assert_eq!((count("operations"), count("disturbances")), (800, 1), "{summary}");
    assert!(count("votes_repeated") > 40 && count("epochs") >= 2, "{summary}");
    assert_eq!(
        (count("failed"), count("unknown")),
        (0, 0),
        "every vote is acknowledged in the end: {summary}"
    );
    // Somebody waited for the election; under gossip until a batch that died with its writer is given up, too.
    assert!((100_000_000..60_000_000_000).contains(&count("longest_gap_ns")), "{summary}");
    assert!(summary["balancer"].as_str().unwrap().starts_with("haproxy "), "{summary}");
    let votes = run.rows("operations.csv");
    let nodes: std::collections::BTreeSet<&str> =
        votes.iter().filter(|vote| vote["ended"] == "ok").map(|vote| vote["node"].as_str()).collect();
    assert_eq!(nodes.len(), 3, "round robin: {nodes:?}");
    assert!(run.results().join("haproxy.cfg").exists());
}

#[test]
fn a_vote_that_nobody_cast_fails_the_run() {
    let network = network();
    let load = "--workload leaderboard --nodes 3 --rate 100 --duration 3 --operation-timeout 60 --balancer none --seed 7 --network";
    let words: Vec<&str> = load.split(' ').chain([network.as_str()]).collect();
    let running = start_in(tempfile::tempdir().unwrap(), &words);
    let vote =
        || agent().post(format!("{}/add_vote", node(&network, 2))).send(r#"{"player": "player-0003"}"#).ok();
    wait_for("a vote from outside", vote);
    let run = running.wait();
    assert_eq!(run.code(), 1, "{}", run.text());
    let summary = run.summary();
    assert_eq!((&summary["valid"], &summary["outcome"]), (&false.into(), &"failed".into()));
    let failure = summary["checks"]["failure"].as_str().unwrap();
    assert!(failure.contains("1 votes for player-0003 were counted that nobody cast"), "{failure}");
    assert_eq!(summary["message"], failure);
}

/// Asks, and gives up soon.
pub(crate) fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(2))).build().into()
}

/// Where a node of a run serves.
fn node(network: &str, number: u8) -> String {
    format!("http://{}{}:8080", network.strip_suffix('0').unwrap(), 10 + number)
}

/// Ends with its test.
pub(crate) struct Process(Child);

impl Process {
    /// The binary under test with these words, silent.
    pub(crate) fn harness(dir: &Path, words: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_harness"));
        command.args(words).current_dir(dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process of the node that leads, among those of `controller`.
pub(crate) fn leader(controller: &Child, network: &str) -> i32 {
    let leads = |number: u8| {
        let health = agent().get(format!("{}/healthz", node(network, number))).call().ok()?;
        let text = health.into_body().read_to_string().ok()?;
        let health: Value = serde_json::from_str(&text).ok()?;
        (health["role"] == "leader").then_some(number)
    };
    let leader = wait_for("a leader", || (1..=3).find_map(leads));
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", controller.id())).unwrap();
    let log = format!("/nodes/{leader}.log");
    let logs_there = |pid: &i32| {
        fs::read_link(format!("/proc/{pid}/fd/2")).is_ok_and(|to| to.to_string_lossy().ends_with(&log))
    };
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(logs_there).unwrap()
}

pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < until, "waited {PATIENCE:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Messages that end with a zero byte, until there are no more.
fn read_messages(from: ChildStdout) -> mpsc::Receiver<Value> {
    let (tell, messages) = mpsc::channel();
    std::thread::spawn(move || {
        for message in BufReader::new(from).split(0).map_while(Result::ok) {
            let Ok(message) = serde_json::from_slice(&message) else { return };
            if tell.send(message).is_err() {
                return;
            }
        }
    });
    messages
}

/// A page in a headless browser, driven over the browser's pipe (the DevTools protocol).
struct Browser {
    _process: Process,
    orders: ChildStdin,
    /// Messages as they come; a browser that says nothing must not keep a test.
    answers: mpsc::Receiver<Value>,
    session: Option<String>,
    asked: u64,
}

impl Browser {
    /// Opens `address`.
    fn open(address: &str, dir: &Path) -> Self {
        // It reads orders from descriptor 3 and answers on 4.
        let script = "exec chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run \
            --remote-debugging-pipe --user-data-dir=\"$0\" 3<&0 4>&1 </dev/null >/dev/null 2>&1";
        let mut process = Command::new("sh")
            .args(["-c", script])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (orders, answers) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let answers = read_messages(answers);
        let mut browser = Self { _process: Process(process), orders, answers, session: None, asked: 0 };
        let target = browser.ask("Target.createTarget", json!({ "url": address }))["targetId"].clone();
        let session = browser.ask("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        browser
    }

    fn ask(&mut self, method: &str, parameters: Value) -> Value {
        self.asked += 1;
        let mut order = json!({ "id": self.asked, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            order["sessionId"] = session.as_str().into();
        }
        self.orders.write_all(format!("{order}\0").as_bytes()).unwrap();
        let until = Instant::now() + PATIENCE;
        loop {
            let told = self.answers.recv_timeout(until.saturating_duration_since(Instant::now()));
            let told = told.unwrap_or_else(|error| panic!("the browser does not answer {method}: {error}"));
            // Events have no number.
            if told["id"] == self.asked {
                assert!(told["error"].is_null(), "{method}: {told}");
                return told["result"].clone();
            }
        }
    }

    /// What `script` is in the page.
    fn evaluate(&mut self, script: &str) -> Value {
        let parameters = json!({ "expression": script, "returnByValue": true });
        self.ask("Runtime.evaluate", parameters)["result"]["value"].clone()
    }

    /// Votes as a person would.
    fn vote(&mut self, player: &str) {
        let script = format!(
            "document.getElementById('player').value = '{player}'; document.querySelector('button').click()"
        );
        self.evaluate(&script);
    }

    /// Waits until the page shows a line of the board.
    fn await_line(&mut self, line: &str) {
        wait_for(line, || {
            let rows = self.evaluate(
                "[...document.querySelectorAll('#board tr')].map(row => [...row.cells].map(cell => cell.textContent).join(' ')).join('\\n')",
            );
            rows.as_str()?.lines().any(|row| row == line).then_some(())
        });
    }
}

#[test]
fn the_page_shows_votes_and_survives_the_leader() {
    if !is_installed("haproxy") || !is_installed("chromium") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let network = network();
    let serve = ["leaderboard", "serve", "--quiet", "--network", &network];
    let mut serving = Process::harness(dir.path(), &serve);
    let leads = leader(&serving.0, &network);
    let address = format!("http://{}254:8000/", network.strip_suffix('0').unwrap());
    let profile = tempfile::tempdir().unwrap();
    let mut page = Browser::open(&address, profile.path());
    wait_for("the page", || {
        (page.evaluate("document.getElementById('state')?.textContent") == "live").then_some(())
    });
    // A page that was loaded again would not have it.
    page.evaluate("window.mark = 1");
    page.vote("ada");
    page.await_line("1 ada 1");
    page.vote("bob <b>");
    page.await_line("1 bob <b> 1");

    kill_process(Pid::from_raw(leads).unwrap(), Signal::KILL).unwrap();
    page.vote("ada");
    page.await_line("1 ada 2");
    page.await_line("2 bob <b> 1");
    assert_eq!(page.evaluate("window.mark"), 1);
    drop(page);

    let controller = Pid::from_raw(serving.0.id() as i32).unwrap();
    kill_process(controller, Signal::TERM).unwrap();
    let status = wait_for("the end", || serving.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(143));
}

#[test]
fn the_start_script_s_configuration_is_valid() {
    if !is_installed("haproxy") {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/haproxy/start");
    let run = |words: &[&str]| Command::new(&script).args(words).output().unwrap();
    let checked = run(&["--check", "127.0.0.1:8000", "127.0.0.1:8080", "127.0.0.2:8080"]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    assert_eq!(run(&["127.0.0.1:8000"]).status.code(), Some(2), "no node");
}
