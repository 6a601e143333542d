//! How the Raft group begins: the lowest node of all sees to it.
//!
//! If everyone votes, that node founds the group itself. If the most suitable vote, it asks every node what it has to
//! offer, and lets the first of the chosen found the group, since only a member can.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use openraft::EmptyNode;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::config::Electorate;
use super::machine::RaftCore;
use super::proposer::Proposer;
use crate::store::NodeId;
use crate::suitability::{Resources, ranked};
use crate::transport::{Class, Frame, Refusal, Transport, TransportError};
use crate::wire;

/// How long the founder waits for all nodes once a majority is connected.
const WAIT_FOR_THE_REST: Duration = Duration::from_secs(3);
/// How long a node may take to report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// What a node says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) resources: Resources,
    /// Whether it knows of a group.
    pub(crate) founded: bool,
    /// Log entries it has applied, by the index of the last.
    pub(crate) applied: Option<u64>,
    /// Whether it has the bytes of every checkpoint in its state.
    pub(crate) complete: bool,
    /// Whether it leaves, so that it is not to be chosen.
    pub(crate) leaving: bool,
}

/// Asks `peers` for their reports; those who do not answer in time are left out.
pub(crate) async fn reports(
    transport: &Arc<dyn Transport>,
    peers: impl IntoIterator<Item = NodeId>,
) -> BTreeMap<NodeId, Report> {
    let asked: FuturesUnordered<_> = peers
        .into_iter()
        .map(|peer| async move {
            let request = transport.request(peer, Class::Election, Frame::new(wire::REPORT, Vec::new()));
            let answer = tokio::time::timeout(REPORT_TIMEOUT, request).await.ok()?.ok()?;
            Some((peer, wire::decode::<Report>(&answer.head).ok()?))
        })
        .collect();
    asked.filter_map(std::future::ready).collect().await
}

/// Founds the group, if this node is the lowest.
pub(crate) async fn run(proposer: Arc<Proposer>) {
    let nodes = &proposer.config.nodes;
    // Whoever finds a log on disk is part of a group already.
    let new = matches!(proposer.raft.is_initialized().await, Ok(false));
    if nodes.first() != Some(&proposer.transport.local()) || !new {
        return;
    }
    let mut connected = proposer.transport.connected();
    let count = |peers: &Vec<NodeId>| 1 + peers.iter().filter(|peer| nodes.contains(peer)).count();
    if connected.wait_for(|peers| count(peers) > nodes.len() / 2).await.is_err() {
        return;
    }
    match proposer.config.electorate {
        Electorate::Everyone => found(&proposer.raft, nodes).await,
        Electorate::MostSuitable { voters, .. } => {
            let everyone = connected.wait_for(|peers| count(peers) == nodes.len());
            // Whoever is late is no voter for now.
            let _ = tokio::time::timeout(WAIT_FOR_THE_REST, everyone).await.map(drop);
            if let Some(chosen) = choose(&proposer, voters as usize).await {
                appoint(&proposer, &chosen).await;
            }
        }
    }
}

async fn found(raft: &RaftCore, voters: &BTreeSet<NodeId>) {
    let members: BTreeMap<u64, EmptyNode> = voters.iter().map(|voter| (voter.0, EmptyNode {})).collect();
    // openraft has the founder stand for election at once.
    if let Err(error) = raft.initialize(members).await {
        tracing::info!(%error, "the group exists already");
    }
}

/// The most suitable nodes, best first; `None` if there is a group already.
async fn choose(proposer: &Proposer, voters: usize) -> Option<Vec<NodeId>> {
    loop {
        let began = Instant::now();
        let connected = proposer.transport.connected().borrow().clone();
        let peers = connected.into_iter().filter(|peer| proposer.config.nodes.contains(peer));
        let mut reports = reports(&proposer.transport, peers).await;
        reports.insert(proposer.transport.local(), proposer.report().await);
        if reports.values().any(|report| report.founded) {
            return None;
        }
        // A majority of all nodes would know of a group that exists.
        if reports.len() >= voters && reports.len() > proposer.config.nodes.len() / 2 {
            let scores = reports.iter().map(|(node, report)| (*node, report.resources.score()));
            let mut chosen = ranked(scores);
            chosen.truncate(voters);
            return Some(chosen);
        }
        tokio::time::sleep_until(began + REPORT_TIMEOUT).await;
    }
}

/// Has the first of the chosen that answers found the group. Another one is asked with the same set: groups founded by two
/// members with the same set are one group.
async fn appoint(proposer: &Proposer, chosen: &[NodeId]) {
    let voters: BTreeSet<NodeId> = chosen.iter().copied().collect();
    loop {
        for first in chosen {
            if *first == proposer.transport.local() {
                return found(&proposer.raft, &voters).await;
            }
            let request = Frame::new(wire::FOUND, wire::encode(&voters));
            let asked = proposer.transport.request(*first, Class::Election, request);
            match tokio::time::timeout(REPORT_TIMEOUT, asked).await {
                Ok(Ok(_)) => return,
                Ok(Err(TransportError::Refused { reason, .. })) => {
                    return tracing::info!(%first, reason, "the group is not founded by it");
                }
                Ok(Err(error)) => tracing::debug!(%error, "asked the next to found the group"),
                Err(_) => tracing::debug!(%first, "asked the next to found the group"),
            }
        }
        tokio::time::sleep(Duration::from_millis(proposer.config.heartbeat_ms)).await;
    }
}

impl Proposer {
    /// What this node says of itself.
    pub(crate) async fn report(&self) -> Report {
        let founded = self.standing.told().is_some() || self.raft.is_initialized().await.unwrap_or(true);
        // In this order: what is here then is at least as new as what was applied before.
        let applied = self.applied();
        let blobs = self.exchange.blobs();
        let complete =
            self.machine.read(|ledger| ledger.records().all(|record| blobs.get(record.digest).is_some()));
        let leaving = self.leaving.load(Ordering::Relaxed);
        Report { resources: self.resources, founded, applied, complete, leaving }
    }

    /// Founds the group of `voters`, as `from` asks.
    pub(crate) async fn found_for(&self, from: NodeId, voters: &BTreeSet<NodeId>) -> Result<(), Refusal> {
        let Electorate::MostSuitable { voters: wanted, .. } = self.config.electorate else {
            return Err(Refusal("here everyone votes".into()));
        };
        if self.config.nodes.first() != Some(&from) {
            return Err(Refusal(format!("node {from} is not the one that founds")));
        }
        let fits = voters.len() == wanted as usize
            && voters.is_subset(&self.config.nodes)
            && voters.contains(&self.transport.local());
        if !fits {
            return Err(Refusal("these cannot be the voters".into()));
        }
        if self.report().await.founded {
            return Err(Refusal("there is a group already".into()));
        }
        found(&self.raft, voters).await;
        Ok(())
    }
}
