//! etcd in place of this suite's nodes, under the same load and the same checks, for comparison. Its members run as processes at
//! the addresses that the nodes would have (TCP), without TLS, with their data in the folder of the stores.
//!
//! ```text
//!   message   fields of bytes in protobuf: pure   client      what a client of etcd says
//!   this file   members started and ended, the clients' orders
//! ```

mod client;
pub mod message;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use replication::NodeId;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::load::{Clients, News, Order};
use super::outcome::{Conclusion, Early, Seen};
use super::plan::{KvPlan, Peer};
use super::record::Summary;
use crate::clock;
use crate::exit::Usage;
use crate::place::Placement as _;
use crate::place::process::Processes;
use crate::plan::{Durability, Plan, Trial};
use crate::progress::Progress;
use crate::record::{ControllerEvent, Manifest, Recorder};
use crate::run::{Setup, Stop};
use client::Members;

/// How often members are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Runs a trial that etcd serves to its end, whatever that is, and writes its results.
///
/// # Errors
/// If the results cannot be written, or etcd cannot be started. A run that fails is no error: its summary says so.
pub async fn run(setup: Setup, progress: Progress, stops: mpsc::Receiver<Stop>) -> anyhow::Result<Summary> {
    let Setup { trial, dir, command, repeat, timeouts, .. } = setup;
    let kv = trial.plan.kv.clone().context("the plan is of another workload")?;
    let server = version()?;
    let started = clock::utc_now();
    let mut manifest = Manifest::starting(&trial, timeouts.timers(&trial.plan), command, repeat);
    let mut recorder = match dir {
        Some(dir) => Recorder::create_in(&dir, &manifest)?,
        None => Recorder::create(&trial.out, started, &manifest)?,
    };
    progress.note(&format!("results go to {}", recorder.dir().display()));
    let data = data_folders(&trial, recorder.dir())?;
    let mut members = Processes::new(Peer::Etcd.name().into(), arguments(&trial.plan, &data));
    for node in data.keys() {
        // Nothing is said over its streams.
        drop(members.start(*node, &recorder.node_log(*node))?);
        recorder.controller_event(&ControllerEvent::NodeStarted { target: *node, life: 1 })?;
    }
    progress.note(&format!("{server}: {} members, seed {}", data.len(), manifest.seed));
    let mut course = Course { begin_ns: None, ended: BTreeMap::new(), progress, stops };
    let (seen, early) = match course.drive(&kv, addresses(&trial.plan), &mut members).await {
        Ok(Ok(seen)) => (seen, None),
        Ok(Err(early)) => (Seen::default(), Some(early)),
        Err(error) => (Seen::default(), Some(Early::Failed(format!("{error:#}")))),
    };
    members.kill_all();
    course.progress.clear();
    let conclusion = Conclusion {
        kv: &kv,
        backend: Peer::Etcd.name().into(),
        server,
        payload: None,
        nodes: data.len(),
        seen,
        early,
        ended: &course.ended,
        begin_ns: course.begin_ns,
        epochs: 0,
        disturbances: 0,
    };
    conclusion.write(&recorder, &mut manifest)
}

/// How far a run has come.
struct Course {
    begin_ns: Option<u64>,
    /// Members that ended, and how.
    ended: BTreeMap<NodeId, String>,
    progress: Progress,
    stops: mpsc::Receiver<Stop>,
}

impl Course {
    /// From the first connection to the last answer; returns every operation.
    async fn drive(
        &mut self,
        kv: &KvPlan,
        addresses: Vec<(NodeId, SocketAddr)>,
        members: &mut Processes,
    ) -> anyhow::Result<Result<Seen, Early>> {
        let nodes: Vec<NodeId> = addresses.iter().map(|(node, _)| *node).collect();
        let mut clients = Clients::start(kv.load, Members(addresses))?;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                Some(stop) = self.stops.recv() => return Ok(Err(Early::Stopped(stop))),
                news = clients.news.recv() => {
                    let order = match news.context("the clients ended")? {
                        News::Connected => Order::Fill,
                        News::Filled => {
                            self.progress.note(&format!("{} entries are written", kv.load.entries));
                            Order::Load
                        }
                        News::Begins { at_ns } => {
                            self.begin_ns = Some(at_ns);
                            continue;
                        }
                        News::Ended => Order::Verify,
                        News::Verified { history, differing } => {
                            return Ok(Ok(Seen { history, differing, tally: None }));
                        }
                        News::Failed { reason } => return Ok(Err(Early::Failed(reason))),
                    };
                    // The clients end only with this run.
                    let _ = clients.orders.send(order);
                }
                _ = look.tick() => {
                    for node in &nodes {
                        if let Some(how) = members.ended(*node) {
                            let reason = format!("member {node} of etcd ended ({how}); see its log");
                            self.ended.insert(*node, how);
                            return Ok(Err(Early::Failed(reason)));
                        }
                    }
                }
            }
        }
    }
}

/// What `etcd --version` says of itself.
fn version() -> anyhow::Result<String> {
    let output = Command::new(Peer::Etcd.name()).arg("--version").output().context("cannot start etcd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.lines().find_map(|line| line.strip_prefix("etcd Version: "));
    Ok(format!("etcd {}", version.context("etcd does not say its version")?.trim()))
}

/// A folder for the data of each member, new.
fn data_folders(trial: &Trial, results: &Path) -> anyhow::Result<BTreeMap<NodeId, PathBuf>> {
    let parent = match &trial.durability {
        Durability::Disk { dir: Some(dir) } => dir.clone(),
        _ => results.join("store"),
    };
    let refuse = |error: std::io::Error| {
        let wrong = format!("the data of etcd cannot be put there ({error})");
        Usage::option("--store", parent.display(), wrong, "name a new folder, or leave it out")
    };
    fs::create_dir_all(&parent).map_err(refuse)?;
    let folder = |node: NodeId| {
        let dir = parent.join(format!("etcd-{node}"));
        fs::create_dir(&dir).map_err(refuse)?;
        Ok((node, dir))
    };
    trial.plan.nodes().into_iter().map(folder).collect()
}

/// Where clients reach the members.
fn addresses(plan: &Plan) -> Vec<(NodeId, SocketAddr)> {
    let address = |node| plan.learning_address(node).map(|address| (node, address.into()));
    plan.nodes().into_iter().filter_map(address).collect()
}

/// The command line of each member.
fn arguments(plan: &Plan, data: &BTreeMap<NodeId, PathBuf>) -> BTreeMap<NodeId, Vec<String>> {
    let url = |ip, port| format!("http://{ip}:{port}");
    let peers: Vec<_> =
        plan.members.iter().map(|member| (member, url(member.ip, plan.replication_port))).collect();
    let cluster: Vec<String> =
        peers.iter().map(|(member, peer)| format!("node-{}={peer}", member.node)).collect();
    let of = |(member, peer): &(&crate::plan::Member, String)| {
        let client = url(member.ip, plan.learning_port);
        let dir = data.get(&member.node)?.display().to_string();
        let options = [
            ("name", format!("node-{}", member.node)),
            ("data-dir", dir),
            ("listen-client-urls", client.clone()),
            ("advertise-client-urls", client),
            ("listen-peer-urls", peer.clone()),
            ("initial-advertise-peer-urls", peer.clone()),
            ("initial-cluster", cluster.join(",")),
            ("initial-cluster-state", "new".into()),
            ("logger", "zap".into()),
            ("log-level", "warn".into()),
        ];
        Some((member.node, options.into_iter().map(|(name, value)| format!("--{name}={value}")).collect()))
    };
    peers.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_told_of_each_other_and_have_data_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let plan = crate::plan::tests::plan(3);
        let durability = Durability::Disk { dir: Some(dir.path().join("store")) };
        let (faults, changes, out) = (Vec::new(), Vec::new(), "out".into());
        let trial = Trial { plan, durability, faults, changes, out, shelf: None, json: false, quiet: true };
        let data = data_folders(&trial, dir.path()).unwrap();
        let arguments = arguments(&trial.plan, &data);
        assert_eq!(arguments.len(), 3);
        for (node, words) in &arguments {
            let cluster = words.iter().find(|word| word.starts_with("--initial-cluster=")).unwrap();
            assert_eq!(cluster.matches("=http://").count(), 3, "{cluster}");
            assert!(words.contains(&format!("--data-dir={}", data[node].display())), "{words:?}");
        }
        let again = data_folders(&trial, dir.path()).unwrap_err().to_string();
        assert!(again.starts_with("--store ") && again.contains("name a new folder"), "{again}");
    }
}
