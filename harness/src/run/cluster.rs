//! What the controller knows of the run: a pure function of what it was told. No time, no streams.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use replication::suitability::Resources;
use replication::{CheckpointId, Epoch, NodeId, Slot, StoreEvent};
use workloads::federated::Event;

use crate::control::{Counted, Held, Lifecycle, NodeEvent, Status};
use crate::plan::{Expected, Roll};

/// Where a node is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Life {
    /// Started, but not ready.
    Starting,
    /// Has its data and engine.
    Ready,
    /// Killed, to be started again.
    Returning,
    /// Gone.
    Gone {
        /// Exit code or signal.
        how: String,
        /// Whether a fault or the end of the run was the reason.
        expected: bool,
    },
}

/// What is known of one node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeView {
    /// Which life it is, from 1: it has another one each time it is started again.
    pub count: u32,
    /// Where it is in its life.
    pub life: Life,
    /// The last thing heard of it, in words.
    pub last: String,
    /// Its last status.
    pub status: Option<Status>,
    /// Why it failed, if it said so.
    pub failure: Option<String>,
    /// What it has to offer, and its score.
    pub resources: Option<(Resources, u32)>,
    /// What its transports had counted when its part of the job began.
    pub begin: Option<Counted>,
}

impl NodeView {
    /// The beginning of a life.
    fn beginning(count: u32) -> Self {
        Self {
            count,
            life: Life::Starting,
            last: "started".into(),
            status: None,
            failure: None,
            resources: None,
            begin: None,
        }
    }

    /// The node's state as a word or two.
    #[must_use]
    pub fn state(&self) -> String {
        match &self.life {
            Life::Starting => "starting".into(),
            Life::Ready => "alive".into(),
            Life::Returning => "to be started again".into(),
            Life::Gone { how, .. } => how.clone(),
        }
    }
}

/// A finished round in numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoundFacts {
    /// Mean test loss.
    pub loss: Option<f64>,
    /// Share of test examples classified correctly.
    pub accuracy: Option<f64>,
    /// How long it took.
    pub round_ns: u64,
}

/// An acknowledged write of a global checkpoint, its parts included where the profile writes them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutFacts {
    /// What was written.
    pub held: Held,
    /// Size of its parameters.
    pub bytes: u64,
    /// How long `put` took.
    pub put_ns: u64,
}

/// What stores told of besides their work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Incidents {
    /// Voters that were replaced.
    pub voters_replaced: u64,
    /// Pairs that acted as aggregator at the same time: who stays, who yields.
    pub rivals: BTreeSet<(Epoch, Epoch)>,
    /// Answers with bytes that do not match their digest.
    pub corrupt_blobs: u64,
    /// Claims to hold bytes that proved false.
    pub false_claims: u64,
}

/// What is known of the run.
#[derive(Debug, Clone)]
pub struct Cluster {
    nodes: BTreeMap<NodeId, NodeView>,
    /// Ended lives of nodes that were to be started again, in the order of their ends.
    past: Vec<(NodeId, NodeView)>,
    /// Nodes that belong to the cluster no more: they have left, or another one came in their place.
    departed: BTreeSet<NodeId>,
    /// How many nodes there were at the beginning.
    founders: usize,
    /// The newest aggregator any node told of.
    pub aggregator: Option<Epoch>,
    /// Every aggregator any node told of.
    pub epochs: BTreeSet<Epoch>,
    /// The newest round that was started.
    pub round: u64,
    /// Finished rounds.
    pub finished: BTreeMap<u64, RoundFacts>,
    /// Acknowledged writes of global checkpoints, in the order heard.
    pub puts: Vec<PutFacts>,
    /// Acknowledged parts of a global checkpoint that is not complete yet: of which, bytes, `put_ns`.
    parts: Vec<(CheckpointId, u64, u64)>,
    /// Whether the job is done.
    pub completed: bool,
    /// The final checkpoint, if the job keeps any.
    pub last: Option<Held>,
    /// Whether a node uses the synthetic set.
    pub synthetic: bool,
    /// Who votes, in ascending order, as was told last; empty: nobody told.
    pub voters: Vec<NodeId>,
    /// What stores told of besides their work.
    pub incidents: Incidents,
}

impl Cluster {
    /// These nodes, all starting.
    #[must_use]
    pub fn new(nodes: &[NodeId]) -> Self {
        Self {
            nodes: nodes.iter().map(|node| (*node, NodeView::beginning(1))).collect(),
            past: Vec::new(),
            departed: BTreeSet::new(),
            founders: nodes.len(),
            aggregator: None,
            epochs: BTreeSet::new(),
            round: 0,
            finished: BTreeMap::new(),
            puts: Vec::new(),
            parts: Vec::new(),
            completed: false,
            last: None,
            synthetic: false,
            voters: Vec::new(),
            incidents: Incidents::default(),
        }
    }

    /// Every node, in ascending order.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &NodeView)> {
        self.nodes.iter().map(|(node, view)| (*node, view))
    }

    /// Every life of every node, by node and life.
    #[must_use]
    pub fn lives(&self) -> Vec<(NodeId, &NodeView)> {
        let past = self.past.iter().map(|(node, view)| (*node, view));
        let mut lives: Vec<_> = past.chain(self.nodes()).collect();
        lives.sort_by_key(|(node, view)| (*node, view.count));
        lives
    }

    /// How many nodes were started, each counted once.
    #[must_use]
    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// Nodes that run now, in ascending order.
    #[must_use]
    pub fn running(&self) -> Vec<NodeId> {
        let running = self.nodes.iter().filter(|(_, view)| matches!(view.life, Life::Starting | Life::Ready));
        running.map(|(node, _)| *node).collect()
    }

    /// Nodes that are to be started again, in ascending order.
    #[must_use]
    pub fn returning(&self) -> Vec<NodeId> {
        let returning = self.nodes.iter().filter(|(_, view)| view.life == Life::Returning);
        returning.map(|(node, _)| *node).collect()
    }

    /// Nodes that are not gone for good, in ascending order.
    #[must_use]
    pub fn alive(&self) -> Vec<NodeId> {
        let alive = self.nodes.iter().filter(|(_, view)| !matches!(view.life, Life::Gone { .. }));
        alive.map(|(node, _)| *node).collect()
    }

    /// Who belongs to the cluster, who of them lives, and who votes.
    #[must_use]
    pub fn roll(&self) -> Roll {
        let member = |node: &NodeId| !self.departed.contains(node);
        let of = |nodes: Vec<NodeId>| nodes.into_iter().filter(member).collect();
        let members = of(self.nodes.keys().copied().collect());
        Roll { members, alive: of(self.alive()), voters: of(self.voters.clone()), founders: self.founders }
    }

    /// Takes note of a node that joins.
    pub fn joined(&mut self, node: NodeId) {
        self.nodes.insert(node, NodeView::beginning(1));
    }

    /// Takes note that a node belongs to the cluster no more.
    pub fn departed(&mut self, node: NodeId) {
        self.departed.insert(node);
    }

    /// Whether a node belongs to the cluster no more.
    #[must_use]
    pub fn has_departed(&self, node: NodeId) -> bool {
        self.departed.contains(&node)
    }

    /// Living nodes that are not ready.
    #[must_use]
    pub fn starting(&self) -> Vec<NodeId> {
        let starting = self.nodes.iter().filter(|(_, view)| view.life == Life::Starting);
        starting.map(|(node, _)| *node).collect()
    }

    /// Nodes that are gone although no fault struck them, and what is known of each.
    #[must_use]
    pub fn unexpectedly_gone(&self) -> Vec<(NodeId, &NodeView)> {
        self.nodes().filter(|(_, view)| matches!(view.life, Life::Gone { expected: false, .. })).collect()
    }

    /// Why `node` ended, if it said so itself.
    #[must_use]
    pub fn failure_of(&self, node: NodeId) -> Option<&str> {
        self.nodes.get(&node)?.failure.as_deref()
    }

    /// The newest acknowledged global checkpoint that was heard of.
    #[must_use]
    pub fn acknowledged(&self) -> Option<PutFacts> {
        self.puts.iter().max_by_key(|put| (put.held.id.round, put.held.id.phase, put.held.id.epoch)).copied()
    }

    /// Living nodes that still have to tell of holding the final checkpoint, if so many are expected to; and any that tell
    /// of another one by the same name.
    #[must_use]
    pub fn lagging(&self, expected: &Expected) -> Vec<NodeId> {
        let alive = self.alive();
        if !self.completed {
            return alive;
        }
        // Where the job keeps nothing there is nothing to wait for.
        let Some(completed) = self.last else { return Vec::new() };
        let holds = |node: &NodeId| self.latest_of(*node) == Some(completed);
        let differs = |node: &NodeId| {
            self.latest_of(*node)
                .is_some_and(|held| held.id == completed.id && held.digest != completed.digest)
        };
        let missing: Vec<NodeId> = alive.into_iter().filter(|node| !holds(node)).collect();
        let awaited = |node: &NodeId| match expected {
            Expected::Nodes(nodes) => nodes.contains(node),
            Expected::AnyOf(count) => self.alive().len() - missing.len() < *count,
        };
        missing.iter().copied().filter(|node| awaited(node) || differs(node)).collect()
    }

    /// What living nodes hold, by checkpoint; the newest first. Nodes that did not tell are left out.
    #[must_use]
    pub fn holdings(&self) -> Vec<(Held, Vec<NodeId>)> {
        let mut holdings: Vec<(Held, Vec<NodeId>)> = Vec::new();
        for node in self.alive() {
            let Some(held) = self.latest_of(node) else { continue };
            match holdings.iter_mut().find(|(other, _)| *other == held) {
                Some((_, nodes)) => nodes.push(node),
                None => holdings.push((held, vec![node])),
            }
        }
        holdings.sort_by_key(|(held, _)| std::cmp::Reverse((held.id.round, held.id.phase, held.id.epoch)));
        holdings
    }

    fn latest_of(&self, node: NodeId) -> Option<Held> {
        self.nodes.get(&node)?.status.as_ref()?.latest
    }

    /// Takes note of a node's status.
    pub fn status(&mut self, node: NodeId, status: Status) {
        if let Some(view) = self.nodes.get_mut(&node) {
            view.status = Some(status);
        }
    }

    /// Takes note of a node's end.
    pub fn gone(&mut self, node: NodeId, how: String, expected: bool) {
        if let Some(view) = self.nodes.get_mut(&node) {
            view.life = Life::Gone { how, expected };
        }
    }

    /// Takes note of the end of a node that is to be started again.
    pub fn away(&mut self, node: NodeId, how: String) {
        if let Some(view) = self.nodes.get_mut(&node) {
            let next = NodeView { life: Life::Returning, ..NodeView::beginning(view.count + 1) };
            let mut ended = std::mem::replace(view, next);
            ended.life = Life::Gone { how, expected: true };
            self.past.push((node, ended));
        }
    }

    /// Takes note that a node was started again; returns which of its lives this is.
    pub fn returned(&mut self, node: NodeId) -> u32 {
        self.nodes.get_mut(&node).map_or(1, |view| {
            view.life = Life::Starting;
            view.count
        })
    }

    /// Takes note of an event.
    pub fn observe(&mut self, node: NodeId, event: &NodeEvent) {
        if let Some(view) = self.nodes.get_mut(&node) {
            view.last = in_words(event);
            match event {
                NodeEvent::Federated(Event::Ready { synthetic, .. }) if view.life == Life::Starting => {
                    view.life = Life::Ready;
                    self.synthetic |= synthetic;
                }
                NodeEvent::Node(Lifecycle::Failed { reason }) => view.failure = Some(reason.clone()),
                NodeEvent::Node(Lifecycle::Resources { resources, score }) => {
                    view.resources = Some((*resources, *score));
                }
                NodeEvent::Node(Lifecycle::JobBegun { counted }) => {
                    view.begin = Some(Counted::clone(counted))
                }
                _ => {}
            }
        }
        match event {
            NodeEvent::Federated(event) => self.observe_job(event),
            NodeEvent::Store(event) => self.observe_store(event),
            NodeEvent::Node(_) => {}
        }
    }

    fn observe_store(&mut self, event: &StoreEvent) {
        match event {
            StoreEvent::AggregatorChanged { epoch: Some(epoch) } => self.saw(*epoch),
            StoreEvent::VotersChanged { lost, joined, voters } => {
                self.voters.clone_from(voters);
                self.incidents.voters_replaced += u64::from(lost.is_some() && joined.is_some());
            }
            StoreEvent::RivalAggregators { stays, yields } => {
                // Several nodes may learn of the same two.
                self.incidents.rivals.insert((*stays, *yields));
            }
            StoreEvent::CorruptBlob { .. } => self.incidents.corrupt_blobs += 1,
            StoreEvent::FalseClaim { .. } => self.incidents.false_claims += 1,
            _ => {}
        }
    }

    fn observe_job(&mut self, event: &Event) {
        match *event {
            Event::RoundStarted { epoch, round, .. } => {
                self.saw(epoch);
                self.round = self.round.max(round);
            }
            Event::RoundFinished { round, loss, accuracy, round_ns, fit_workers, .. } => {
                let facts = RoundFacts { loss, accuracy, round_ns };
                // Who takes a round over after its averaging only evaluates it: the whole round is the better figure.
                if fit_workers > 0 || !self.finished.contains_key(&round) {
                    self.finished.insert(round, facts);
                }
            }
            Event::CheckpointPut { id, bytes, put_ns, .. } if matches!(id.slot, Slot::Part(_)) => {
                self.parts.push((CheckpointId { slot: Slot::Global, ..id }, bytes, put_ns));
            }
            Event::CheckpointPut { id, digest, bytes, put_ns, .. } if id.slot == Slot::Global => {
                let mut put = PutFacts { held: Held { id, digest }, bytes, put_ns };
                for (_, bytes, put_ns) in self.parts.drain(..).filter(|(of, ..)| *of == id) {
                    put.bytes += bytes;
                    put.put_ns += put_ns;
                }
                self.puts.push(put);
            }
            Event::Completed { last, .. } => (self.completed, self.last) = (true, last),
            _ => {}
        }
    }

    fn saw(&mut self, epoch: Epoch) {
        self.epochs.insert(epoch);
        self.aggregator = self.aggregator.max(Some(epoch));
    }

    /// Every node's state, a line each.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (node, view) in &self.nodes {
            let _ = write!(text, "\n  node {node}: {}, last heard: {}", view.state(), view.last);
            if let Some(held) = self.latest_of(*node) {
                let _ = write!(text, ", has {}", held.id);
            }
        }
        text
    }
}

/// An event as its JSON says it: name first. Long ones are cut.
fn in_words(event: &NodeEvent) -> String {
    const LONGEST: usize = 160;
    let text = match event {
        NodeEvent::Federated(event) => format!("{event:?}"),
        NodeEvent::Store(event) => format!("{event:?}"),
        NodeEvent::Node(event) => format!("{event:?}"),
    };
    text.chars().take(LONGEST).collect()
}

/// Nodes for people: `nodes 1, 2, 5`, `node 3`, `no node`.
#[must_use]
pub fn list(nodes: &[NodeId]) -> String {
    let ids = nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ");
    match nodes.len() {
        0 => "no node".into(),
        1 => format!("node {ids}"),
        _ => format!("nodes {ids}"),
    }
}

#[cfg(test)]
mod tests {
    use replication::{CheckpointId, Digest, Phase};

    use super::*;

    fn held(round: u64, counter: u64) -> Held {
        let epoch = Epoch { counter, node: NodeId(1) };
        let id = CheckpointId { epoch, round, phase: Phase::AggregateFit, slot: Slot::Global };
        Held { id, digest: Digest::of(&round.to_le_bytes()) }
    }

    fn status(latest: Held) -> Status {
        Status { latest: Some(latest), ..Status::default() }
    }

    #[test]
    fn the_living_are_those_that_are_not_gone() {
        let nodes: Vec<NodeId> = (1..=4).map(NodeId).collect();
        let mut cluster = Cluster::new(&nodes);
        cluster.gone(NodeId(1), "killed".into(), true);
        assert_eq!((cluster.alive().len(), cluster.size()), (3, 4));
        cluster.gone(NodeId(2), "exit code 1".into(), false);
        assert_eq!(cluster.unexpectedly_gone()[0].0, NodeId(2));
        assert_eq!(list(&cluster.alive()), "nodes 3, 4");
    }

    #[test]
    fn the_run_has_converged_when_every_living_node_has_the_final_checkpoint() {
        let mut cluster = Cluster::new(&[NodeId(1), NodeId(2), NodeId(3)]);
        cluster.status(NodeId(1), status(held(5, 1)));
        let all = Expected::Nodes(cluster.alive());
        assert_eq!(cluster.lagging(&all).len(), 3, "not completed");
        let last = held(5, 1);
        let completed =
            Event::Completed { epoch: last.id.epoch, rounds: 5, last: Some(last), digest: last.digest };
        cluster.observe(NodeId(1), &NodeEvent::Federated(completed));
        cluster.status(NodeId(2), status(held(4, 1)));
        assert_eq!(cluster.lagging(&all), [NodeId(2), NodeId(3)]);
        assert_eq!(
            cluster.lagging(&Expected::Nodes(vec![NodeId(1), NodeId(2)])),
            [NodeId(2)],
            "node 3 holds nothing"
        );
        assert!(cluster.lagging(&Expected::AnyOf(1)).is_empty());
        assert_eq!(cluster.lagging(&Expected::AnyOf(2)), [NodeId(2), NodeId(3)]);
        cluster.status(NodeId(2), status(Held { digest: Digest::of(b"other"), ..held(5, 1) }));
        assert_eq!(cluster.lagging(&Expected::AnyOf(1)), [NodeId(2)], "another value by the same name");
        cluster.status(NodeId(2), status(held(4, 1)));
        assert_eq!(cluster.holdings(), [(held(5, 1), vec![NodeId(1)]), (held(4, 1), vec![NodeId(2)])]);
        cluster.gone(NodeId(3), "killed".into(), true);
        cluster.status(NodeId(2), status(held(5, 1)));
        assert!(cluster.lagging(&all).is_empty());
        assert!(cluster.describe().contains("node 3: killed"), "{}", cluster.describe());
    }

    #[test]
    fn a_node_that_is_started_again_has_another_life_and_has_shown_nothing_in_it() {
        let mut cluster = Cluster::new(&[NodeId(1), NodeId(2)]);
        cluster.status(NodeId(1), status(held(5, 1)));
        cluster.away(NodeId(1), "killed".into());
        let alive = (cluster.alive(), cluster.running(), cluster.returning());
        assert_eq!(alive, (vec![NodeId(1), NodeId(2)], vec![NodeId(2)], vec![NodeId(1)]));
        assert_eq!(cluster.holdings(), [], "what it had was in its old life");
        assert_eq!(cluster.returned(NodeId(1)), 2);
        assert_eq!(cluster.starting(), [NodeId(1), NodeId(2)]);
        let lives: Vec<_> =
            cluster.lives().into_iter().map(|(node, view)| (node.0, view.count, view.state())).collect();
        let expected =
            [(1, 1, "killed"), (1, 2, "starting"), (2, 1, "starting")].map(|(n, c, s)| (n, c, s.to_owned()));
        assert_eq!(lives, expected);
        assert!(cluster.lives()[0].1.status.is_some());
    }

    #[test]
    fn what_stores_tell_is_counted_once() {
        let mut cluster = Cluster::new(&[NodeId(1), NodeId(2), NodeId(3)]);
        let mut tell = |node, event| cluster.observe(NodeId(node), &NodeEvent::Store(event));
        let epoch = |counter, node| Epoch { counter, node: NodeId(node) };
        let voters = |joined: Option<u64>, voters: [u64; 2]| StoreEvent::VotersChanged {
            lost: joined.map(|_| NodeId(1)),
            joined: joined.map(NodeId),
            voters: voters.map(NodeId).to_vec(),
        };
        tell(1, voters(None, [1, 2]));
        tell(2, voters(Some(3), [2, 3]));
        for node in [1, 2] {
            tell(node, StoreEvent::RivalAggregators { stays: epoch(3, 2), yields: epoch(3, 1) });
        }
        tell(3, StoreEvent::FalseClaim { from: NodeId(1), digest: Digest::of(b"x") });
        tell(3, StoreEvent::CorruptBlob { from: NodeId(1), digest: Digest::of(b"x") });
        assert_eq!(cluster.voters, [NodeId(2), NodeId(3)]);
        let Incidents { voters_replaced, rivals, corrupt_blobs, false_claims } = cluster.incidents;
        assert_eq!((voters_replaced, rivals.len(), corrupt_blobs, false_claims), (1, 1, 1, 1));
    }
}
