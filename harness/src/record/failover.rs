//! failovers.csv: how a change of aggregator after a fault went, stage by stage. Pure: facts in, rows out.

use std::collections::{BTreeMap, BTreeSet};

use replication::{Epoch, NodeId, StoreEvent};
use serde::{Deserialize, Serialize};
use workloads::federated::Event;

use crate::control::NodeEvent;

/// Stages in the order in which they follow, in the order of [`FailoverRow`]'s columns.
pub const STAGES: [&str; 6] = ["suspected", "elected", "agreed", "restored", "serving", "resumed"];

/// A fail-over is uncertain if its times may be wrong by more than this share of the time until all agreed (or, if they did
/// not, until one was elected).
pub const UNCERTAIN_SHARE_PERCENT: u64 = 5;

/// A row of failovers.csv. Stages are in ns since the fault struck; none: it was not reached, or nobody told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailoverRow {
    fault: String,
    struck_nodes: String,
    struck_at_ns: u64,
    struck_aggregator: bool,
    from_epoch_counter: Option<u64>,
    from_epoch_node: Option<u64>,
    to_epoch_counter: u64,
    to_epoch_node: u64,
    suspected_by: Option<u64>,
    suspected_ns: Option<u64>,
    elected_ns: u64,
    agreed_ns: Option<u64>,
    restored_ns: Option<u64>,
    serving_ns: Option<u64>,
    resumed_ns: Option<u64>,
    uncertainty_ns: u64,
    uncertain: bool,
}

impl FailoverRow {
    /// Names of the columns, in order.
    pub const COLUMNS: [&str; 17] = [
        "fault",
        "struck_nodes",
        "struck_at_ns",
        "struck_aggregator",
        "from_epoch_counter",
        "from_epoch_node",
        "to_epoch_counter",
        "to_epoch_node",
        "suspected_by",
        "suspected_ns",
        "elected_ns",
        "agreed_ns",
        "restored_ns",
        "serving_ns",
        "resumed_ns",
        "uncertainty_ns",
        "uncertain",
    ];

    /// Nanoseconds since the fault, by stage, in the order of [`STAGES`].
    #[must_use]
    pub fn stages_ns(&self) -> [Option<u64>; STAGES.len()] {
        [
            self.suspected_ns,
            Some(self.elected_ns),
            self.agreed_ns,
            self.restored_ns,
            self.serving_ns,
            self.resumed_ns,
        ]
    }
}

/// Changes of aggregator after faults, in a few numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverSummary {
    /// Rows of failovers.csv whose fault struck the aggregator.
    pub count: u64,
    /// Those of them whose times may be wrong by more than [`UNCERTAIN_SHARE_PERCENT`].
    #[serde(default)]
    pub uncertain: u64,
    /// Lower median of each stage over these rows, as far as it was reached, in ns since the fault.
    pub median_ns: BTreeMap<String, u64>,
}

impl FailoverSummary {
    /// The medians of `rows`.
    #[must_use]
    pub fn of(rows: &[FailoverRow]) -> Self {
        let rows: Vec<&FailoverRow> = rows.iter().filter(|row| row.struck_aggregator).collect();
        let median = |stage: usize| {
            let mut values: Vec<u64> = rows.iter().filter_map(|row| row.stages_ns()[stage]).collect();
            values.sort_unstable();
            values.get(values.len().saturating_sub(1) / 2).copied()
        };
        let medians = STAGES.iter().enumerate();
        let median_ns =
            medians.filter_map(|(stage, name)| Some(((*name).to_owned(), median(stage)?))).collect();
        let uncertain = rows.iter().filter(|row| row.uncertain).count() as u64;
        Self { count: rows.len() as u64, uncertain, median_ns }
    }
}

/// A fault that struck.
#[derive(Debug, Clone)]
struct Strike {
    at_ns: u64,
    /// How much later it may have been.
    uncertainty_ns: u64,
    /// Nodes that have told when it reached them.
    reached: BTreeSet<NodeId>,
    fault: String,
    nodes: Vec<NodeId>,
    /// Who was left to agree on a new aggregator.
    survivors: Vec<NodeId>,
}

/// The first time that something was told of an epoch.
#[derive(Debug, Clone, Default)]
struct Office {
    /// When each node learned of it.
    known: BTreeMap<NodeId, u64>,
    restored: Option<u64>,
    serving: Option<u64>,
    resumed: Option<u64>,
    /// When its end was planned.
    handing_over: Option<u64>,
}

/// What the timeline of fail-overs is made from. Facts may come in any order of time.
#[derive(Debug, Clone, Default)]
pub struct Failovers {
    strikes: Vec<Strike>,
    offices: BTreeMap<Epoch, Office>,
    suspicions: BTreeSet<(u64, NodeId)>,
    /// Whom a suspicion was about, where somebody was known.
    suspected: Vec<(u64, NodeId, Epoch)>,
    gone: BTreeSet<NodeId>,
}

impl Failovers {
    /// Takes note of an event that happened on `node` at `at_ns`.
    pub fn observe(&mut self, at_ns: u64, node: NodeId, event: &NodeEvent) {
        let earliest = |moment: &mut Option<u64>| *moment = Some(moment.map_or(at_ns, |was| was.min(at_ns)));
        match event {
            NodeEvent::Store(StoreEvent::Suspected { epoch, .. }) => {
                self.suspicions.insert((at_ns, node));
                self.suspected.extend(epoch.map(|epoch| (at_ns, node, epoch)));
            }
            NodeEvent::Store(StoreEvent::AggregatorChanged { epoch: Some(epoch) }) => {
                let known = self.office(*epoch).known.entry(node).or_insert(at_ns);
                *known = at_ns.min(*known);
            }
            NodeEvent::Federated(Event::Restored { epoch, .. }) => {
                earliest(&mut self.office(*epoch).restored);
            }
            NodeEvent::Federated(Event::Serving { epoch, .. }) => earliest(&mut self.office(*epoch).serving),
            // Workers write in an epoch, too; only its aggregator writes the state.
            NodeEvent::Federated(Event::CheckpointPut { id, .. }) if node == id.epoch.node => {
                earliest(&mut self.office(id.epoch).resumed);
            }
            NodeEvent::Federated(Event::HandingOver { epoch, .. }) => {
                self.office(*epoch).handing_over = Some(at_ns);
            }
            NodeEvent::Federated(Event::HandOverFailed { epoch, .. }) => {
                self.office(*epoch).handing_over = None;
            }
            _ => {}
        }
    }

    /// Takes note of a fault that struck `nodes` at `at_ns` and left `survivors`.
    pub fn struck(&mut self, at_ns: u64, fault: String, nodes: &[NodeId], survivors: Vec<NodeId>) {
        let (nodes, reached, uncertainty_ns) = (nodes.to_vec(), BTreeSet::new(), 0);
        self.strikes.push(Strike { at_ns, uncertainty_ns, reached, fault, nodes, survivors });
    }

    /// Takes note that the last fault that struck `node` took so long: it may have struck as much later.
    pub fn took(&mut self, duration_ns: u64, node: NodeId) {
        if let Some(strike) = self.strikes.iter_mut().rfind(|strike| strike.nodes.contains(&node)) {
            strike.uncertainty_ns = strike.uncertainty_ns.max(duration_ns);
        }
    }

    /// Takes note that the last fault that struck `node` reached it at `at_ns`. Over a link that is later than it was
    /// ordered; the first of its nodes counts.
    pub fn reached(&mut self, at_ns: u64, node: NodeId) {
        let strike = self.strikes.iter_mut().rfind(|strike| strike.nodes.contains(&node));
        if let Some(strike) = strike.filter(|strike| !strike.reached.contains(&node)) {
            strike.at_ns = if strike.reached.is_empty() { at_ns } else { strike.at_ns.min(at_ns) };
            strike.reached.insert(node);
        }
    }

    /// Takes note that the aggregator of `epoch` is asked at `at_ns` to leave, and hands over.
    pub fn hands_over(&mut self, at_ns: u64, epoch: Epoch) {
        self.office(epoch).handing_over = Some(at_ns);
    }

    /// Takes note that a node has ended, so that it need not agree.
    pub fn gone(&mut self, node: NodeId) {
        self.gone.insert(node);
    }

    /// How often a node suspected an aggregator when no fault had struck either of them.
    #[must_use]
    pub fn false_suspicions(&self) -> u64 {
        let struck = |node: NodeId, at_ns: u64| {
            self.strikes.iter().any(|strike| strike.at_ns <= at_ns && strike.nodes.contains(&node))
        };
        let is_false =
            |(at_ns, by, of): &&(u64, NodeId, Epoch)| !struck(*by, *at_ns) && !struck(of.node, *at_ns);
        self.suspected.iter().filter(is_false).count() as u64
    }

    /// A row for each change of aggregator after a fault, by the last fault before it. Planned hand-overs are none.
    #[must_use]
    ///
    /// `uncertainties_ns` says how wrong a node's moments may be; of nodes that share the controller's clock it says nothing.
    pub fn rows(&self, uncertainties_ns: &BTreeMap<NodeId, u64>) -> Vec<FailoverRow> {
        // An aggregator is elected when it knows it.
        let elected = self.offices.iter().filter_map(|(epoch, office)| {
            let at_ns = office.known.get(&epoch.node)?;
            Some((*at_ns, *epoch))
        });
        let elected: BTreeSet<(u64, Epoch)> = elected.collect();
        elected
            .iter()
            .filter_map(|(at_ns, epoch)| self.row(&elected, *at_ns, *epoch, uncertainties_ns))
            .collect()
    }

    fn row(
        &self,
        elected: &BTreeSet<(u64, Epoch)>,
        elected_ns: u64,
        epoch: Epoch,
        uncertainties_ns: &BTreeMap<NodeId, u64>,
    ) -> Option<FailoverRow> {
        let strike = self.strikes.iter().rfind(|strike| strike.at_ns <= elected_ns)?;
        let before = |at_ns: u64| elected.iter().rfind(|(at, other)| *at <= at_ns && *other < epoch);
        let predecessor = before(elected_ns).and_then(|(_, epoch)| self.offices.get(epoch));
        if predecessor.is_some_and(|office| office.handing_over.is_some_and(|at| at <= elected_ns)) {
            return None;
        }
        let office = self.offices.get(&epoch)?;
        let since = |at_ns: u64| at_ns.saturating_sub(strike.at_ns);
        let survived = |node: &NodeId| strike.survivors.contains(node);
        let suspicion = self
            .suspicions
            .range((strike.at_ns, NodeId(0))..)
            .take_while(|(at_ns, _)| *at_ns <= elected_ns)
            .find(|(_, node)| survived(node));
        let from = before(strike.at_ns).map(|(_, epoch)| *epoch);
        let worst = |nodes: &[NodeId]| {
            nodes.iter().filter_map(|node| uncertainties_ns.get(node)).max().copied().unwrap_or(0)
        };
        // A stage is the difference between a moment of a survivor and one of a node that was struck.
        let uncertainty_ns = worst(&strike.survivors) + worst(&strike.nodes) + strike.uncertainty_ns;
        let agreed_ns = self.agreed(strike, office).map(since);
        let whole_ns = agreed_ns.unwrap_or(since(elected_ns));
        Some(FailoverRow {
            fault: strike.fault.clone(),
            struck_nodes: strike.nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(" "),
            struck_at_ns: strike.at_ns,
            struck_aggregator: from.is_some_and(|from| strike.nodes.contains(&from.node)),
            from_epoch_counter: from.map(|from| from.counter),
            from_epoch_node: from.map(|from| from.node.0),
            to_epoch_counter: epoch.counter,
            to_epoch_node: epoch.node.0,
            suspected_by: suspicion.map(|(_, node)| node.0),
            suspected_ns: suspicion.map(|(at_ns, _)| since(*at_ns)),
            elected_ns: since(elected_ns),
            agreed_ns,
            restored_ns: office.restored.map(since),
            serving_ns: office.serving.map(since),
            resumed_ns: office.resumed.map(since),
            uncertainty_ns,
            uncertain: uncertainty_ns.saturating_mul(100) > whole_ns.saturating_mul(UNCERTAIN_SHARE_PERCENT),
        })
    }

    /// When the last survivor learned of it; none if one did not. Those that ended without learning of it do not count.
    fn agreed(&self, strike: &Strike, office: &Office) -> Option<u64> {
        let awaited = strike
            .survivors
            .iter()
            .filter(|node| office.known.contains_key(node) || !self.gone.contains(node));
        let learned: Option<Vec<u64>> = awaited.map(|node| office.known.get(node).copied()).collect();
        learned?.into_iter().max()
    }

    fn office(&mut self, epoch: Epoch) -> &mut Office {
        self.offices.entry(epoch).or_default()
    }
}

#[cfg(test)]
mod tests {
    use replication::{CheckpointId, Digest, Guarantee, Phase, Slot};

    use super::*;

    fn epoch(counter: u64, node: u64) -> Epoch {
        Epoch { counter, node: NodeId(node) }
    }

    fn changed(epoch: Epoch) -> NodeEvent {
        NodeEvent::Store(StoreEvent::AggregatorChanged { epoch: Some(epoch) })
    }

    fn suspected() -> NodeEvent {
        NodeEvent::Store(StoreEvent::Suspected { epoch: None, silence_ns: None, lifeline: false })
    }

    fn put(epoch: Epoch, round: u64) -> NodeEvent {
        NodeEvent::Federated(Event::CheckpointPut {
            id: CheckpointId { epoch, round, phase: Phase::AggregateFit, slot: Slot::Global },
            digest: Digest::of(b""),
            bytes: 1,
            put_ns: 1,
            guarantee: Guarantee::Majority { of: 4 },
            holders: vec![],
        })
    }

    fn observe(failovers: &mut Failovers, events: &[(u64, u64, NodeEvent)]) {
        events.iter().for_each(|(at_ns, node, event)| failovers.observe(*at_ns, NodeId(*node), event));
    }

    /// Node 1 of four aggregates until it is struck at 1000.
    fn struck() -> Failovers {
        let mut failovers = Failovers::default();
        let first = epoch(1, 1);
        let known = [1, 2, 3, 4].map(|node| (100 + node, node, changed(first)));
        observe(&mut failovers, &known);
        observe(&mut failovers, &[(50, 3, suspected()), (900, 1, put(first, 1))]);
        let survivors = [2, 3, 4].map(NodeId).to_vec();
        failovers.struck(1000, "kill@aggregator,round:2".into(), &[NodeId(1)], survivors);
        failovers
    }

    fn taken_over(at_ns: u64, epoch: Epoch) -> Vec<(u64, u64, NodeEvent)> {
        let digest = Digest::of(b"");
        let restored = Event::Restored { epoch, from: None, digest };
        let node = epoch.node.0;
        vec![
            (at_ns, node, changed(epoch)),
            (at_ns + 300, node, NodeEvent::Federated(restored)),
            (at_ns + 400, node, NodeEvent::Federated(Event::Serving { epoch, worker: NodeId(4) })),
            (at_ns + 900, node, put(epoch, 3)),
            (at_ns + 600, node, put(epoch, 2)),
        ]
    }

    #[test]
    fn every_stage_counts_from_the_fault() {
        let mut failovers = struck();
        observe(&mut failovers, &[(2500, 4, suspected()), (2400, 2, suspected()), (2000, 1, suspected())]);
        observe(&mut failovers, &taken_over(2600, epoch(2, 2)));
        observe(&mut failovers, &[(2700, 3, changed(epoch(2, 2))), (2650, 4, changed(epoch(2, 2)))]);
        let rows = failovers.rows(&BTreeMap::new());
        let [row] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((row.struck_nodes.as_str(), row.struck_at_ns, row.struck_aggregator), ("1", 1000, true));
        assert_eq!((row.from_epoch_counter, row.from_epoch_node), (Some(1), Some(1)));
        assert_eq!((row.to_epoch_counter, row.to_epoch_node), (2, 2));
        assert_eq!(row.suspected_by, Some(2), "a node that was struck is no witness");
        let stages: Vec<u64> = row.stages_ns().into_iter().flatten().collect();
        assert_eq!(stages, [1400, 1600, 1700, 1900, 2000, 2200]);
        let summary = FailoverSummary::of(&rows);
        assert_eq!((summary.count, summary.median_ns["agreed"]), (1, 1700));
    }

    #[test]
    fn the_first_election_and_one_without_a_fault_have_no_row() {
        let mut failovers = Failovers::default();
        observe(&mut failovers, &taken_over(100, epoch(1, 1)));
        assert_eq!(failovers.rows(&BTreeMap::new()), []);
        failovers.struck(1000, "kill@worker,round:1".into(), &[NodeId(3)], vec![NodeId(1), NodeId(2)]);
        assert_eq!(failovers.rows(&BTreeMap::new()), [], "a change that was before the fault");
        assert_eq!(FailoverSummary::of(&failovers.rows(&BTreeMap::new())), FailoverSummary::default());
    }

    #[test]
    fn who_did_not_agree_leaves_the_stage_open_unless_it_ended() {
        let mut failovers = struck();
        observe(&mut failovers, &taken_over(2600, epoch(2, 2)));
        observe(&mut failovers, &[(2700, 3, changed(epoch(2, 2)))]);
        assert_eq!(failovers.rows(&BTreeMap::new())[0].agreed_ns, None);
        failovers.gone(NodeId(4));
        assert_eq!(failovers.rows(&BTreeMap::new())[0].agreed_ns, Some(1700));
    }

    #[test]
    fn each_change_belongs_to_the_last_fault_before_it() {
        let mut failovers = struck();
        observe(&mut failovers, &taken_over(2600, epoch(2, 2)));
        // Nobody was struck in between: the second change is the first fault's, too.
        observe(&mut failovers, &taken_over(3000, epoch(3, 3)));
        failovers.struck(4000, "stop@aggregator,round:3".into(), &[NodeId(3)], vec![NodeId(2), NodeId(4)]);
        observe(&mut failovers, &taken_over(5000, epoch(4, 4)));
        let rows = failovers.rows(&BTreeMap::new());
        let facts: Vec<_> =
            rows.iter().map(|row| (row.struck_at_ns, row.to_epoch_counter, row.elected_ns)).collect();
        assert_eq!(facts, [(1000, 2, 1600), (1000, 3, 2000), (4000, 4, 1000)]);
        assert_eq!(rows[2].from_epoch_counter, Some(3));
        assert!(rows[2].struck_aggregator);
    }

    #[test]
    fn who_suspects_an_aggregator_that_is_well_is_counted() {
        let suspects = |epoch| {
            NodeEvent::Store(StoreEvent::Suspected { epoch: Some(epoch), silence_ns: None, lifeline: true })
        };
        let mut failovers = struck();
        observe(&mut failovers, &[(900, 2, suspects(epoch(1, 1)))]);
        observe(&mut failovers, &[(1100, 2, suspects(epoch(1, 1))), (1100, 1, suspects(epoch(2, 2)))]);
        observe(&mut failovers, &[(1200, 3, suspects(epoch(2, 2)))]);
        assert_eq!(failovers.false_suspicions(), 2, "of node 1 before it was struck, and of node 2");
    }

    #[test]
    fn a_planned_hand_over_is_no_fail_over_unless_it_failed() {
        let plan = |epoch, to| NodeEvent::Federated(Event::HandingOver { epoch, to: NodeId(to) });
        let mut failovers = struck();
        observe(&mut failovers, &taken_over(2600, epoch(2, 2)));
        observe(&mut failovers, &[(3900, 2, plan(epoch(2, 2), 3))]);
        observe(&mut failovers, &taken_over(4000, epoch(3, 3)));
        assert_eq!(failovers.rows(&BTreeMap::new()).len(), 1);
        let failed =
            Event::HandOverFailed { epoch: epoch(2, 2), to: NodeId(3), reason: "nobody took over".into() };
        observe(&mut failovers, &[(3950, 2, NodeEvent::Federated(failed))]);
        assert_eq!(failovers.rows(&BTreeMap::new()).len(), 2);
    }

    #[test]
    fn a_fault_counts_from_when_it_reached_its_first_node_and_wrong_clocks_are_flagged() {
        let mut failovers = struck();
        failovers.reached(1100, NodeId(1));
        failovers.reached(1300, NodeId(1));
        failovers.reached(1050, NodeId(2));
        observe(&mut failovers, &taken_over(2600, epoch(2, 2)));
        observe(&mut failovers, &[(2700, 3, changed(epoch(2, 2))), (2650, 4, changed(epoch(2, 2)))]);
        failovers.took(30, NodeId(1));
        failovers.took(20, NodeId(1));
        let row = |uncertainty_ns| {
            let all = [1, 2, 3, 4].map(|node| (NodeId(node), uncertainty_ns + node));
            failovers.rows(&all.into()).remove(0)
        };
        let exact = row(6);
        assert_eq!((exact.struck_at_ns, exact.agreed_ns), (1100, Some(1600)));
        assert_eq!((exact.uncertainty_ns, exact.uncertain), (10 + 7 + 30, false), "5 % are 80");
        let rows = vec![row(40), exact];
        assert!(rows[0].uncertain);
        assert_eq!((FailoverSummary::of(&rows).count, FailoverSummary::of(&rows).uncertain), (2, 1));
    }
}
