//! One election as facts: what each node said, and when; what follows from it for the trial's row. Pure.

use std::collections::{BTreeMap, BTreeSet};

use replication::{CheckpointId, Epoch, NodeId, StoreEvent};

use crate::control::{Lifecycle, NodeEvent};

/// A suspicion: when, by whom, after how long a silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Suspicion {
    pub(super) at_ns: u64,
    pub(super) by: NodeId,
    pub(super) silence_ns: Option<u64>,
}

/// How one node is, by what it said in this life.
#[derive(Debug, Clone, Default)]
struct View {
    /// Peers it is connected to.
    peers: u64,
    /// The aggregator it knows.
    epoch: Option<Epoch>,
    /// The newest round that it has applied.
    applied: u64,
}

/// What is known of the cluster.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    views: BTreeMap<NodeId, View>,
    /// When each node learned of each epoch.
    learned: BTreeMap<Epoch, BTreeMap<NodeId, u64>>,
    suspicions: BTreeSet<Suspicion>,
    /// The newest round that an aggregator wrote.
    written: u64,
    /// Why the last order to write failed.
    failure: Option<String>,
}

/// A stroke against the aggregator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Strike {
    pub(super) at_ns: u64,
    /// The epoch that it ends.
    pub(super) epoch: Epoch,
    /// Who is left.
    pub(super) survivors: Vec<NodeId>,
}

/// How an election went. Times are in ns since the stroke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Election {
    pub(super) epoch: Epoch,
    /// Age of the last sign of life of the aggregator when it was struck, on the survivor that suspected first; none if
    /// nobody told.
    pub(super) heartbeat_age_ns: Option<u64>,
    pub(super) suspected_ns: Option<u64>,
    /// How many suspicions there were.
    pub(super) suspicions: u64,
    pub(super) elected_ns: u64,
    pub(super) agreed_ns: u64,
}

impl Cluster {
    /// A node begins a life.
    pub(super) fn begin(&mut self, node: NodeId) {
        self.views.insert(node, View::default());
    }

    /// Takes note of what `node` said.
    pub(super) fn observe(&mut self, node: NodeId, at_ns: u64, event: &NodeEvent) {
        let Some(view) = self.views.get_mut(&node) else { return };
        match event {
            NodeEvent::Store(StoreEvent::AggregatorChanged { epoch }) => {
                view.epoch = *epoch;
                if let Some(epoch) = epoch {
                    self.learned.entry(*epoch).or_default().entry(node).or_insert(at_ns);
                }
            }
            NodeEvent::Store(StoreEvent::Suspected { silence_ns, .. }) => {
                self.suspicions.insert(Suspicion { at_ns, by: node, silence_ns: *silence_ns });
            }
            NodeEvent::Store(StoreEvent::Applied { id: CheckpointId { round, .. }, .. }) => {
                view.applied = view.applied.max(*round);
            }
            NodeEvent::Store(StoreEvent::SnapshotInstalled { latest }) => {
                view.applied = view.applied.max(latest.map_or(0, |id| id.round));
            }
            NodeEvent::Node(Lifecycle::Connected { peers }) => view.peers = *peers,
            NodeEvent::Node(Lifecycle::Written { round, failure: None }) => {
                self.written = self.written.max(*round);
            }
            NodeEvent::Node(Lifecycle::Written { failure: Some(failure), .. }) => {
                self.failure = Some(failure.clone());
            }
            _ => {}
        }
    }

    /// The aggregator that every node knows, once everyone is connected to everyone.
    pub(super) fn whole(&self) -> Option<Epoch> {
        let epoch = self.views.values().next()?.epoch?;
        let others = self.views.len() as u64 - 1;
        let whole = self.views.values().all(|view| view.epoch == Some(epoch) && view.peers == others);
        whole.then_some(epoch)
    }

    /// Whether `round` was acknowledged, and `holders` have applied it.
    pub(super) fn holds(&self, round: u64, holders: &[NodeId]) -> bool {
        let applied = |node: &NodeId| self.views.get(node).is_some_and(|view| view.applied >= round);
        self.written >= round && holders.iter().all(applied)
    }

    /// Why the last order to write failed, if it did; told once.
    pub(super) fn take_failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    /// What is not as it should be, in words.
    pub(super) fn describe(&self) -> String {
        let words = self.views.iter().map(|(node, view)| {
            let aggregator = Epoch::describe(view.epoch);
            format!("node {node}: aggregator {aggregator}, {} peers, round {}", view.peers, view.applied)
        });
        words.collect::<Vec<_>>().join("; ")
    }

    /// Forgets what concerns earlier trials.
    pub(super) fn forget(&mut self) {
        self.learned.clear();
        self.suspicions.clear();
    }

    /// How often an aggregator that was well was suspected since [`forget`](Self::forget).
    pub(super) fn suspicions_before(&self, at_ns: u64) -> u64 {
        self.suspicions.iter().filter(|suspicion| suspicion.at_ns < at_ns).count() as u64
    }

    /// How the election after `strike` went, once every survivor follows the same new aggregator.
    pub(super) fn election(&self, strike: &Strike) -> Option<Election> {
        let survivors =
            strike.survivors.iter().map(|node| self.views.get(node)).collect::<Option<Vec<_>>>()?;
        let epoch = survivors.first()?.epoch.filter(|epoch| *epoch > strike.epoch)?;
        if survivors.iter().any(|view| view.epoch != Some(epoch)) {
            return None;
        }
        let learned = self.learned.get(&epoch)?;
        let since = |at_ns: u64| at_ns.saturating_sub(strike.at_ns);
        let agreed = strike.survivors.iter().filter_map(|node| learned.get(node)).max()?;
        let after: Vec<&Suspicion> = self
            .suspicions
            .iter()
            .filter(|suspicion| suspicion.at_ns >= strike.at_ns && strike.survivors.contains(&suspicion.by))
            .collect();
        // A message that was under way when the aggregator was struck may be heard of later: then its age was 0.
        let age = |suspicion: &&Suspicion| {
            let heard_ns = suspicion.at_ns.checked_sub(suspicion.silence_ns?)?;
            Some(strike.at_ns.saturating_sub(heard_ns))
        };
        Some(Election {
            epoch,
            heartbeat_age_ns: after.first().and_then(age),
            suspected_ns: after.first().map(|suspicion| since(suspicion.at_ns)),
            suspicions: after.len() as u64,
            elected_ns: since(*learned.get(&epoch.node)?),
            agreed_ns: since(*agreed),
        })
    }
}

#[cfg(test)]
mod tests {
    use replication::{Digest, Phase, Slot};

    use super::*;

    fn epoch(counter: u64, node: u64) -> Epoch {
        Epoch { counter, node: NodeId(node) }
    }

    fn follows(cluster: &mut Cluster, node: u64, at_ns: u64, epoch: Epoch) {
        let event = StoreEvent::AggregatorChanged { epoch: Some(epoch) };
        cluster.observe(NodeId(node), at_ns, &NodeEvent::Store(event));
    }

    fn suspects(cluster: &mut Cluster, node: u64, at_ns: u64, silence_ns: u64) {
        let silence_ns = Some(silence_ns);
        let event = StoreEvent::Suspected { epoch: None, silence_ns, lifeline: false };
        cluster.observe(NodeId(node), at_ns, &NodeEvent::Store(event));
    }

    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        for node in 1..=3 {
            cluster.begin(NodeId(node));
            follows(&mut cluster, node, 10, epoch(1, 1));
        }
        cluster
    }

    fn strike() -> Strike {
        Strike { at_ns: 1000, epoch: epoch(1, 1), survivors: vec![NodeId(2), NodeId(3)] }
    }

    #[test]
    fn a_cluster_is_whole_when_everyone_is_connected_and_follows_the_same() {
        let mut cluster = cluster();
        for node in 1..=3 {
            assert_eq!(cluster.whole(), None);
            let connected = Lifecycle::Connected { peers: 2 };
            cluster.observe(NodeId(node), 20, &NodeEvent::Node(connected));
        }
        assert_eq!(cluster.whole(), Some(epoch(1, 1)));
        cluster.begin(NodeId(1));
        assert_eq!(cluster.whole(), None, "it was started again");
    }

    #[test]
    fn a_round_is_held_when_it_was_acknowledged_and_applied() {
        let mut cluster = cluster();
        let written = Lifecycle::Written { round: 4, failure: None };
        cluster.observe(NodeId(1), 20, &NodeEvent::Node(written));
        assert!(cluster.holds(4, &[]) && !cluster.holds(4, &[NodeId(2)]) && !cluster.holds(5, &[]));
        let id =
            CheckpointId { epoch: epoch(1, 1), round: 4, phase: Phase::AggregateFit, slot: Slot::Global };
        let applied = StoreEvent::Applied { id, digest: Digest::of(b""), bytes: 0 };
        cluster.observe(NodeId(2), 21, &NodeEvent::Store(applied));
        assert!(cluster.holds(4, &[NodeId(2)]));
    }

    #[test]
    fn an_election_ends_when_every_survivor_follows_the_same_new_aggregator() {
        let mut cluster = cluster();
        suspects(&mut cluster, 3, 900, 5);
        suspects(&mut cluster, 2, 1170, 185);
        follows(&mut cluster, 2, 1180, epoch(2, 2));
        assert_eq!(cluster.election(&strike()), None);
        suspects(&mut cluster, 3, 1181, 190);
        follows(&mut cluster, 3, 1190, epoch(2, 2));
        let election = cluster.election(&strike()).unwrap();
        assert_eq!(
            election,
            Election {
                epoch: epoch(2, 2),
                heartbeat_age_ns: Some(15),
                suspected_ns: Some(170),
                suspicions: 2,
                elected_ns: 180,
                agreed_ns: 190,
            }
        );
        assert_eq!(cluster.suspicions_before(1000), 1, "the aggregator was well then");
    }

    #[test]
    fn of_two_new_aggregators_the_one_that_all_follow_counts() {
        let mut cluster = cluster();
        follows(&mut cluster, 2, 1180, epoch(2, 2));
        follows(&mut cluster, 3, 1185, epoch(3, 3));
        assert_eq!(cluster.election(&strike()), None);
        follows(&mut cluster, 2, 1200, epoch(3, 3));
        let election = cluster.election(&strike()).unwrap();
        assert_eq!((election.epoch, election.elected_ns, election.agreed_ns), (epoch(3, 3), 185, 200));
        assert_eq!((election.suspected_ns, election.heartbeat_age_ns), (None, None));
    }
}
