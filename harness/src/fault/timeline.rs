//! When faults strike and whom, and when they end: events, time and a seed in, actions out.

use std::collections::BTreeSet;

use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use replication::{Epoch, NodeId, StoreEvent};
use workloads::federated::Event;

use super::{Fault, Kind, When, Who};
use crate::control::{Impair, LinkLoss, NodeEvent};

/// Sets the generator of faults apart from others that have the trial's seed.
const STREAM: u64 = u64::from_be_bytes(*b"faults  ");

/// What the run has to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Carry `fault` out on `nodes`, in ascending order, at least one.
    Strike {
        /// The fault.
        fault: Fault,
        /// The nodes.
        nodes: Vec<NodeId>,
    },
    /// `fault` was due, but its nodes were dead or struck already.
    Missed {
        /// The fault.
        fault: Fault,
    },
    /// `fault` is over.
    Heal {
        /// The fault.
        fault: Fault,
        /// The nodes that it struck and that are not dead since.
        nodes: Vec<NodeId>,
    },
}

/// A round between its start and its end, as far as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Motion {
    epoch: Epoch,
    round: u64,
    /// When the aggregator's `RoundStarted` was seen. Events of different nodes may arrive in any order.
    started_ns: Option<u64>,
    /// Living workers that began to train, in the order seen.
    training: Vec<NodeId>,
}

/// A fault that is in force.
#[derive(Debug, Clone)]
struct Standing {
    fault: Fault,
    nodes: Vec<NodeId>,
    ends_ns: Option<u64>,
}

/// The faults that are still to strike or to end, and what decides their moments.
#[derive(Debug, Clone)]
pub struct Timeline {
    nodes: Vec<NodeId>,
    waiting: Vec<Fault>,
    standing: Vec<Standing>,
    motion: Option<Motion>,
    dead: BTreeSet<NodeId>,
    /// The newest epoch whose aggregator died: late news of it must not count once its node is back.
    over: Option<Epoch>,
    /// Whether a voter was replaced since the last fault.
    voters_changed: bool,
    /// How long the last finished round took.
    round_ns: Option<u64>,
    /// When the next fault strikes, once its random moment is drawn; and whom, by that time.
    drawn_ns: Option<u64>,
    dice: ChaCha8Rng,
}

impl Timeline {
    /// These faults, in this order, among `nodes`.
    #[must_use]
    pub fn new(faults: &[Fault], nodes: &[NodeId], seed: u64) -> Self {
        Self {
            nodes: nodes.to_vec(),
            waiting: faults.iter().rev().copied().collect(),
            standing: Vec::new(),
            motion: None,
            dead: BTreeSet::new(),
            over: None,
            voters_changed: false,
            round_ns: None,
            drawn_ns: None,
            dice: ChaCha8Rng::seed_from_u64(seed ^ STREAM),
        }
    }

    /// Takes note of an event of `node`, heard of at `now_ns`; returns what is to be done now, in order.
    pub fn observe(&mut self, now_ns: u64, node: NodeId, event: &NodeEvent) -> Vec<Action> {
        match event {
            NodeEvent::Store(StoreEvent::VotersChanged { joined: Some(_), .. }) => self.voters_changed = true,
            NodeEvent::Federated(event) => self.note(now_ns, node, event),
            _ => return Vec::new(),
        }
        self.advance(now_ns)
    }

    fn note(&mut self, now_ns: u64, node: NodeId, event: &Event) {
        match *event {
            Event::RoundStarted { epoch, round, .. } => {
                if let Some(motion) = self.motion_of(epoch, round) {
                    motion.started_ns.get_or_insert(now_ns);
                }
            }
            Event::FitStarted { epoch, round } if self.is_well(node) => {
                if let Some(motion) = self.motion_of(epoch, round) {
                    motion.training.push(node);
                }
            }
            Event::RoundFinished { epoch, round, round_ns, .. } => {
                self.round_ns = Some(round_ns);
                self.motion.take_if(|motion| (motion.epoch, motion.round) <= (epoch, round));
            }
            _ => {}
        }
    }

    /// What is to be done at `now_ns`, in order.
    pub fn advance(&mut self, now_ns: u64) -> Vec<Action> {
        let mut actions = self.end(|standing| standing.ends_ns.is_some_and(|ends_ns| ends_ns <= now_ns));
        while let Some(&fault) = self.waiting.last() {
            if !self.is_due(fault, now_ns) {
                break;
            }
            self.waiting.pop();
            self.voters_changed = false;
            self.drawn_ns = None;
            let nodes = self.whom(fault.who);
            if nodes.is_empty() {
                actions.push(Action::Missed { fault });
            } else {
                self.strike(fault, &nodes, now_ns);
                actions.push(Action::Strike { fault, nodes });
            }
        }
        actions
    }

    /// When [`advance`](Self::advance) has something to do even if nothing is heard until then.
    #[must_use]
    pub fn next_ns(&self) -> Option<u64> {
        let ends = self.standing.iter().filter_map(|standing| standing.ends_ns);
        let strikes = self.waiting.last().filter(|fault| self.has_target(**fault)).and(self.drawn_ns);
        ends.chain(strikes).min()
    }

    /// Ends every fault that is in force, because the job is over. Nothing strikes between rounds any more.
    pub fn heal(&mut self) -> Vec<Action> {
        self.motion = None;
        self.drawn_ns = None;
        self.end(|_| true)
    }

    /// Takes note of a node's death, by a fault or not.
    pub fn died(&mut self, node: NodeId) {
        self.dead.insert(node);
        let led = self.motion.as_ref().map(|motion| motion.epoch).filter(|epoch| epoch.node == node);
        self.over = self.over.max(led);
        self.lost(node);
        for standing in &mut self.standing {
            standing.nodes.retain(|struck| *struck != node);
        }
    }

    /// Takes note that a dead node was started again.
    pub fn returned(&mut self, node: NodeId) {
        self.dead.remove(&node);
    }

    /// Faults that have not struck, in order.
    #[must_use]
    pub fn remaining(&self) -> Vec<Fault> {
        self.waiting.iter().rev().copied().collect()
    }

    /// What the faults in force do to what `from` sends. Peers that nothing is lost to are left out; delays add up.
    #[must_use]
    pub fn impairment(&self, from: NodeId) -> Impair {
        let share = |to: NodeId| {
            let passes: f64 = self.standing.iter().map(|standing| 1.0 - standing.loss(from, to)).product();
            1.0 - passes
        };
        let peers = self.nodes.iter().filter(|node| **node != from);
        let losses = peers.map(|to| LinkLoss { to: *to, share: share(*to) });
        Impair {
            losses: losses.filter(|loss| loss.share > 0.0).collect(),
            delay_ns: self.standing.iter().map(|standing| standing.delay_ns(from)).sum(),
        }
    }

    /// Nodes that are neither dead nor kept from the others' work by a fault in force.
    #[must_use]
    pub fn well(&self) -> Vec<NodeId> {
        self.nodes.iter().copied().filter(|node| self.is_well(*node)).collect()
    }

    /// Whether a node is stopped: what it is asked, it answers when it goes on.
    #[must_use]
    pub fn is_stopped(&self, node: NodeId) -> bool {
        let stops = |standing: &Standing| standing.fault.kind == Kind::Stop && standing.nodes.contains(&node);
        self.standing.iter().any(stops)
    }

    /// A node's part in the current round is over.
    fn lost(&mut self, node: NodeId) {
        self.motion.take_if(|motion| motion.epoch.node == node);
        if let Some(motion) = &mut self.motion {
            motion.training.retain(|worker| *worker != node);
        }
    }

    /// Whether a node is neither dead nor struck by what keeps it from its work.
    fn is_well(&self, node: NodeId) -> bool {
        let disabled = |standing: &Standing| standing.disables(node, self.nodes.len());
        !self.dead.contains(&node) && !self.standing.iter().any(disabled)
    }

    /// The round in motion that an event belongs to; none if the event is of an older round or of an aggregator that was
    /// struck.
    fn motion_of(&mut self, epoch: Epoch, round: u64) -> Option<&mut Motion> {
        if !self.is_well(epoch.node) || Some(epoch) <= self.over {
            return None;
        }
        let current = self.motion.as_ref().map(|motion| (motion.epoch, motion.round));
        if current.is_none_or(|current| current < (epoch, round)) {
            self.motion = Some(Motion { epoch, round, started_ns: None, training: Vec::new() });
        }
        self.motion.as_mut().filter(|motion| (motion.epoch, motion.round) == (epoch, round))
    }

    /// Whether the moment of the next fault has come; draws it, if it is random and can be drawn.
    fn is_due(&mut self, fault: Fault, now_ns: u64) -> bool {
        if let Some(drawn_ns) = self.drawn_ns {
            return drawn_ns <= now_ns && self.has_target(fault);
        }
        let Some(motion) = &self.motion else { return false };
        let Some(started_ns) = motion.started_ns else { return false };
        match (fault.when, self.round_ns) {
            (When::Random(from), Some(round_ns)) if motion.round >= from => {
                let share: f64 = self.dice.random();
                self.drawn_ns = Some(started_ns + (share * round_ns as f64) as u64);
                self.is_due(fault, now_ns)
            }
            (When::Random(_), _) => false,
            (When::Round(from), _) => motion.round >= from && !motion.training.is_empty(),
            (When::VotersChanged, _) => self.voters_changed && !motion.training.is_empty(),
        }
    }

    /// Whether it can be said whom a fault strikes. Between two rounds no aggregator is at work: the next start of a round
    /// ends the waiting.
    const fn has_target(&self, fault: Fault) -> bool {
        self.motion.is_some() || matches!(fault.who, Who::Node(_) | Who::Random | Who::All)
    }

    /// Those struck, of those that are well, in ascending order.
    fn whom(&mut self, who: Who) -> Vec<NodeId> {
        let well = self.well();
        let aggregator = self.motion.as_ref().map(|motion| motion.epoch.node);
        let worker = self.motion.as_ref().and_then(|motion| motion.training.first().copied());
        let mut nodes: Vec<NodeId> = match who {
            Who::Aggregator => aggregator.into_iter().collect(),
            // Under a random moment nobody may have begun to train.
            Who::Worker => worker.or_else(|| self.draw(&well, aggregator, 1).pop()).into_iter().collect(),
            Who::Random => self.draw(&well, None, 1),
            Who::Node(node) => vec![node],
            Who::All => well.clone(),
            Who::Majority | Who::Minority => {
                let size = match who {
                    Who::Majority => self.nodes.len() / 2 + 1,
                    _ => (self.nodes.len().saturating_sub(1) / 2).max(1),
                };
                let mut nodes = self.draw(&well, aggregator, size - aggregator.iter().len());
                nodes.extend(aggregator);
                nodes
            }
        };
        nodes.retain(|node| well.contains(node));
        nodes.sort_unstable();
        nodes
    }

    /// At most `count` of `well`, without one.
    fn draw(&mut self, well: &[NodeId], without: Option<NodeId>, count: usize) -> Vec<NodeId> {
        let mut others: Vec<NodeId> = well.iter().copied().filter(|node| Some(*node) != without).collect();
        others.shuffle(&mut self.dice);
        others.truncate(count);
        others
    }

    fn strike(&mut self, fault: Fault, nodes: &[NodeId], now_ns: u64) {
        if fault.kind.ends_processes() {
            nodes.iter().for_each(|node| self.died(*node));
            return;
        }
        let ends_ns = fault.lasts_ns.map(|lasts_ns| now_ns.saturating_add(lasts_ns));
        let standing = Standing { fault, nodes: nodes.to_vec(), ends_ns };
        let size = self.nodes.len();
        for node in self.nodes.clone() {
            if standing.disables(node, size) {
                self.lost(node);
            }
        }
        self.standing.push(standing);
    }

    /// Ends the faults in force that `is_over` names, the earliest first.
    fn end(&mut self, is_over: impl Fn(&Standing) -> bool) -> Vec<Action> {
        let mut over: Vec<Standing> = self.standing.extract_if(.., |standing| is_over(standing)).collect();
        over.sort_by_key(|standing| standing.ends_ns.unwrap_or(u64::MAX));
        over.into_iter().map(|Standing { fault, nodes, .. }| Action::Heal { fault, nodes }).collect()
    }
}

impl Standing {
    /// Whether this keeps `node`, one of `size`, from the others' work: it is stopped, or on the side of a partition that
    /// is no majority.
    fn disables(&self, node: NodeId, size: usize) -> bool {
        let struck = self.nodes.contains(&node);
        match self.fault.kind {
            Kind::Kill | Kind::Restart { .. } | Kind::Stop => struck,
            Kind::Partition => {
                let side = if struck { self.nodes.len() } else { size - self.nodes.len() };
                side * 2 <= size
            }
            Kind::Loss { .. } | Kind::Delay { .. } => false,
        }
    }

    /// How much later this lets leave what `from` sends.
    fn delay_ns(&self, from: NodeId) -> u64 {
        match self.fault.kind {
            Kind::Delay { by_ns } if self.nodes.contains(&from) => by_ns,
            _ => 0,
        }
    }

    /// Share of the datagrams from one node to another that this fault loses.
    fn loss(&self, from: NodeId, to: NodeId) -> f64 {
        let struck = [from, to].map(|node| self.nodes.contains(&node));
        match self.fault.kind {
            Kind::Partition if struck[0] != struck[1] => 1.0,
            Kind::Loss { percent } if struck[0] || struck[1] => f64::from(percent) / 100.0,
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use replication::Digest;

    use super::*;

    fn epoch(counter: u64, node: u64) -> Epoch {
        Epoch { counter, node: NodeId(node) }
    }

    fn started(epoch: Epoch, round: u64) -> NodeEvent {
        NodeEvent::Federated(Event::RoundStarted { epoch, round, workers: 3 })
    }

    fn fit(epoch: Epoch, round: u64) -> NodeEvent {
        NodeEvent::Federated(Event::FitStarted { epoch, round })
    }

    fn finished(epoch: Epoch, round: u64, round_ns: u64) -> NodeEvent {
        NodeEvent::Federated(Event::RoundFinished {
            epoch,
            round,
            round_ns,
            fit_ns: 0,
            fit_workers: 3,
            fit_examples: 1,
            train_loss: None,
            evaluate_workers: 3,
            evaluate_examples: 1,
            loss: None,
            accuracy: None,
            digest: Digest::of(b""),
        })
    }

    /// Among five nodes.
    fn timeline(faults: &[&str]) -> Timeline {
        seeded(faults, 7)
    }

    fn seeded(faults: &[&str], seed: u64) -> Timeline {
        let faults: Vec<Fault> = faults.iter().map(|text| text.parse().unwrap()).collect();
        Timeline::new(&faults, &[1, 2, 3, 4, 5].map(NodeId), seed)
    }

    /// Nodes struck, one after the other; 0: missed.
    fn struck(actions: &[Action]) -> Vec<u64> {
        let nodes = |action: &Action| match action {
            Action::Strike { nodes, .. } => nodes.iter().map(|node| node.0).collect(),
            Action::Missed { .. } => vec![0],
            Action::Heal { .. } => panic!("{action:?}"),
        };
        actions.iter().flat_map(nodes).collect()
    }

    /// The first round of node 1, in its middle at 100 ns.
    fn begin(faults: &mut Timeline) -> Vec<Action> {
        faults.observe(90, NodeId(1), &started(epoch(1, 1), 1));
        faults.observe(100, NodeId(2), &fit(epoch(1, 1), 1))
    }

    #[test]
    fn a_fault_strikes_in_the_middle_of_its_round_in_either_order_of_events() {
        let e = epoch(1, 1);
        let mut faults = timeline(&["kill@aggregator,round:2"]);
        assert!(faults.observe(0, NodeId(1), &started(e, 1)).is_empty());
        assert!(faults.observe(0, NodeId(2), &fit(e, 1)).is_empty());
        assert!(faults.observe(0, NodeId(2), &fit(e, 2)).is_empty(), "the round was not seen to start");
        assert_eq!(struck(&faults.observe(0, NodeId(1), &started(e, 2))), [1]);
        assert!(faults.remaining().is_empty());
        assert!(faults.observe(0, NodeId(3), &fit(e, 2)).is_empty());
    }

    #[test]
    fn the_second_aggregator_is_killed_in_its_own_round() {
        let mut faults = timeline(&["kill@aggregator,round:1", "kill@aggregator,round:1"]);
        faults.observe(0, NodeId(1), &started(epoch(1, 1), 1));
        assert_eq!(struck(&faults.observe(0, NodeId(2), &fit(epoch(1, 1), 1))), [1]);
        assert!(
            faults.observe(0, NodeId(3), &fit(epoch(1, 1), 1)).is_empty(),
            "late news of the dead aggregator"
        );
        faults.observe(0, NodeId(3), &started(epoch(2, 3), 2));
        assert_eq!(struck(&faults.observe(0, NodeId(2), &fit(epoch(2, 3), 2))), [3]);
    }

    #[test]
    fn several_nodes_can_be_killed_in_one_round_and_a_dead_one_is_missed() {
        let e = epoch(1, 1);
        let mut faults = timeline(&["kill@worker,round:1", "kill@node:2,round:1", "kill@node:3,round:1"]);
        faults.observe(0, NodeId(1), &started(e, 1));
        assert_eq!(
            struck(&faults.observe(0, NodeId(2), &fit(e, 1))),
            [2],
            "only the fault that has its worker"
        );
        assert_eq!(struck(&faults.observe(0, NodeId(4), &fit(e, 1))), [0, 3]);
    }

    #[test]
    fn a_fault_can_wait_for_a_voter_to_be_replaced_since_the_one_before() {
        let voters = |joined: Option<u64>| {
            let voters = vec![NodeId(2)];
            NodeEvent::Store(StoreEvent::VotersChanged { lost: None, joined: joined.map(NodeId), voters })
        };
        let mut faults = timeline(&["kill@aggregator,round:1", "kill@aggregator,voters-changed"]);
        assert!(faults.observe(0, NodeId(1), &voters(Some(5))).is_empty(), "before the first fault");
        faults.observe(0, NodeId(1), &started(epoch(1, 1), 1));
        assert_eq!(struck(&faults.observe(0, NodeId(2), &fit(epoch(1, 1), 1))), [1]);
        faults.observe(0, NodeId(3), &started(epoch(2, 3), 1));
        assert!(faults.observe(0, NodeId(2), &fit(epoch(2, 3), 1)).is_empty());
        assert!(faults.observe(0, NodeId(3), &voters(None)).is_empty(), "founding is no replacement");
        assert_eq!(struck(&faults.observe(0, NodeId(3), &voters(Some(4)))), [3]);
    }

    #[test]
    fn after_its_end_a_round_has_no_middle() {
        let e = epoch(1, 1);
        let mut faults = timeline(&["kill@node:4,round:1", "kill@worker,round:1"]);
        faults.died(NodeId(2));
        faults.observe(0, NodeId(1), &started(e, 1));
        assert!(faults.observe(0, NodeId(2), &fit(e, 1)).is_empty(), "a dead node's late event");
        assert_eq!(faults.remaining().len(), 2);
    }

    #[test]
    fn what_does_not_kill_ends_in_time_or_with_the_job() {
        let mut faults = timeline(&["stop@aggregator,round:1,for:50ms", "partition@worker,round:2"]);
        assert_eq!(struck(&begin(&mut faults)), [1]);
        let ends_ns = 100 + 50_000_000;
        assert_eq!(faults.next_ns(), Some(ends_ns));
        assert!(faults.advance(ends_ns - 1).is_empty());
        let healed = faults.advance(ends_ns);
        assert!(
            matches!(&healed[..], [Action::Heal { fault, nodes }]
                if fault.kind == Kind::Stop && *nodes == [NodeId(1)]),
            "{healed:?}"
        );
        assert_eq!((faults.next_ns(), faults.advance(ends_ns)), (None, Vec::new()));
        // Its round has ended with it; it may lead another one.
        faults.observe(ends_ns, NodeId(1), &started(epoch(3, 1), 2));
        assert_eq!(struck(&faults.observe(ends_ns, NodeId(3), &fit(epoch(3, 1), 2))), [3]);
        assert_eq!(faults.next_ns(), None);
        assert!(matches!(&faults.heal()[..], [Action::Heal { nodes, .. }] if *nodes == [NodeId(3)]));
        assert!(faults.heal().is_empty());
    }

    #[test]
    fn those_that_are_struck_are_not_struck_again() {
        let mut faults =
            timeline(&["stop@aggregator,round:1", "kill@aggregator,round:1", "kill@node:1,round:1"]);
        assert_eq!(struck(&begin(&mut faults)), [1]);
        assert!(faults.observe(101, NodeId(3), &fit(epoch(1, 1), 1)).is_empty(), "late news");
        faults.observe(102, NodeId(2), &started(epoch(2, 2), 1));
        assert_eq!(struck(&faults.observe(103, NodeId(3), &fit(epoch(2, 2), 1))), [2]);
        faults.observe(104, NodeId(3), &started(epoch(3, 3), 1));
        assert_eq!(struck(&faults.observe(105, NodeId(4), &fit(epoch(3, 3), 1))), [0], "node 1 is stopped");
    }

    #[test]
    fn a_partition_cuts_both_ways_and_losses_add_up() {
        let shares = |faults: &Timeline, from: u64| -> Vec<(u64, u64)> {
            let percent = |loss: &LinkLoss| (loss.to.0, (loss.share * 100.0).round() as u64);
            faults.impairment(NodeId(from)).losses.iter().map(percent).collect()
        };
        let mut faults = timeline(&["loss:50@node:2,round:1", "loss:20@node:3,round:1"]);
        assert_eq!(shares(&faults, 2), []);
        begin(&mut faults);
        assert_eq!(shares(&faults, 1), [(2, 50), (3, 20)]);
        assert_eq!(shares(&faults, 2), [(1, 50), (3, 60), (4, 50), (5, 50)]);
        let mut faults = timeline(&["partition@aggregator,round:1,for:1ms"]);
        begin(&mut faults);
        assert_eq!(shares(&faults, 1), [(2, 100), (3, 100), (4, 100), (5, 100)]);
        assert_eq!(shares(&faults, 4), [(1, 100)]);
        faults.advance(2_000_000);
        assert_eq!((shares(&faults, 1), shares(&faults, 4)), (vec![], vec![]));
    }

    #[test]
    fn what_a_slow_node_sends_leaves_later_until_it_is_over() {
        let delays = |faults: &Timeline| [1, 2].map(|node| faults.impairment(NodeId(node)).delay_ns);
        let mut faults = timeline(&["delay:40ms@aggregator,round:1,for:1ms", "delay:2ms@node:1,round:1"]);
        assert_eq!(delays(&faults), [0, 0]);
        begin(&mut faults);
        assert_eq!(delays(&faults), [42_000_000, 0]);
        faults.advance(2_000_000);
        assert_eq!(delays(&faults), [2_000_000, 0]);
    }

    #[test]
    fn sides_have_the_size_that_their_name_says_and_the_aggregator() {
        for seed in 0..20 {
            for (who, size) in [("majority", 3), ("minority", 2)] {
                let mut faults =
                    seeded(&[&format!("partition@{who},round:1"), "kill@aggregator,round:1"], seed);
                let actions = begin(&mut faults);
                let Action::Strike { nodes, .. } = &actions[0] else { panic!("{actions:?}") };
                assert_eq!((nodes.len(), nodes.contains(&NodeId(1))), (size, true), "{actions:?}");
                // An aggregator with a majority goes on, so that it can be killed next; one without is as good as gone.
                let goes_on = faults.motion_of(epoch(1, 1), 2).is_some() || actions.len() == 2;
                assert_eq!(goes_on, who == "majority", "{actions:?}");
            }
        }
    }

    #[test]
    fn random_nodes_are_the_seed_s_choice_among_the_well() {
        let pick = |seed| struck(&begin(&mut seeded(&["kill@node:3,round:1", "kill@random,round:1"], seed)));
        let picked: BTreeSet<u64> = (0..100).map(|seed| pick(seed)[1]).collect();
        assert_eq!(picked, BTreeSet::from([1, 2, 4, 5]));
        assert_eq!(pick(5), pick(5));
    }

    #[test]
    fn a_random_moment_is_a_share_of_the_round_before() {
        let moment = |seed| {
            let mut faults = seeded(&["kill@aggregator,random:2"], seed);
            let e = epoch(1, 1);
            begin(&mut faults);
            faults.observe(1000, NodeId(1), &finished(e, 1, 900_000));
            assert_eq!(faults.next_ns(), None);
            assert!(faults.observe(1100, NodeId(1), &started(e, 2)).is_empty());
            let drawn_ns = faults.next_ns().unwrap();
            assert!(faults.advance(drawn_ns - 1).is_empty());
            assert_eq!(struck(&faults.advance(drawn_ns)), [1]);
            drawn_ns
        };
        let moments: Vec<u64> = (0..200).map(moment).collect();
        assert!(moments.iter().all(|moment| (1100..901_100).contains(moment)), "{moments:?}");
        for third in 0..3 {
            let span = 1100 + third * 300_000..1100 + (third + 1) * 300_000;
            let count = moments.iter().filter(|moment| span.contains(*moment)).count();
            assert!((40..100).contains(&count), "{third}: {count}");
        }
        assert_eq!(moment(3), moments[3]);
    }

    #[test]
    fn a_moment_between_two_rounds_waits_for_the_next_one() {
        let mut faults = timeline(&["kill@aggregator,random:2"]);
        let e = epoch(1, 1);
        begin(&mut faults);
        faults.observe(1000, NodeId(1), &finished(e, 1, 1_000_000));
        faults.observe(1100, NodeId(1), &started(e, 2));
        let drawn_ns = faults.next_ns().unwrap();
        faults.observe(1200, NodeId(1), &finished(e, 2, 50));
        assert_eq!(faults.next_ns(), None, "no busy waiting");
        assert!(faults.advance(drawn_ns + 1).is_empty());
        assert_eq!(struck(&faults.observe(drawn_ns + 2, NodeId(1), &started(e, 3))), [1]);
    }
}
