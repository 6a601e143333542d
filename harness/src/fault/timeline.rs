//! When faults strike and whom, when they end, and when members come and go: events, time and a seed in, actions out.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;

use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use replication::{Epoch, NodeId, StoreEvent};
use workloads::federated::Event;

use super::{Change, Fault, Kind, When, Who};
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
    /// Start `node`, which joins.
    Join {
        /// The node.
        node: NodeId,
    },
    /// Have `node` leave.
    Leave {
        /// The node.
        node: NodeId,
    },
    /// It was due, but its nodes were dead or struck already.
    Missed {
        /// What was planned.
        planned: Planned,
    },
    /// `fault` is over.
    Heal {
        /// The fault.
        fault: Fault,
        /// The nodes that it struck and that are not dead since.
        nodes: Vec<NodeId>,
    },
}

/// What waits for its moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planned {
    /// A fault.
    Fault(Fault),
    /// A member that comes or goes.
    Change(Change),
}

impl Planned {
    const fn when(self) -> When {
        match self {
            Self::Fault(fault) => fault.when,
            Self::Change(change) => change.when(),
        }
    }

    /// Whom it concerns, of those that are there.
    const fn who(self) -> Option<Who> {
        match self {
            Self::Fault(fault) => Some(fault.who),
            Self::Change(change) => change.leaver(),
        }
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => write!(f, "fault {fault}"),
            Self::Change(change) => write!(f, "member {change}"),
        }
    }
}

/// What is planned one after the other.
#[derive(Debug, Clone, Default)]
struct Lane {
    /// The last one first.
    waiting: Vec<Planned>,
    /// When the next one is due, once its random moment is drawn; and whom, by that time.
    drawn_ns: Option<u64>,
    /// Whether a voter was replaced since the last one.
    voters_changed: bool,
}

impl Lane {
    fn new(planned: impl DoubleEndedIterator<Item = Planned>) -> Self {
        Self { waiting: planned.rev().collect(), ..Self::default() }
    }
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

/// What is still to happen or to end, and what decides its moments.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// Who belongs to the cluster, in ascending order.
    nodes: Vec<NodeId>,
    /// Who joins next.
    newcomers: VecDeque<NodeId>,
    /// Faults, and changes of the nodes: neither waits for the other.
    lanes: [Lane; 2],
    standing: Vec<Standing>,
    motion: Option<Motion>,
    dead: BTreeSet<NodeId>,
    /// The newest epoch whose aggregator died: late news of it must not count once its node is back.
    over: Option<Epoch>,
    /// How long the last finished round took.
    round_ns: Option<u64>,
    dice: ChaCha8Rng,
}

impl Timeline {
    /// These faults and these changes, in this order, among `nodes`; `newcomers` join, in this order.
    #[must_use]
    pub fn new(
        faults: &[Fault],
        changes: &[Change],
        nodes: &[NodeId],
        newcomers: &[NodeId],
        seed: u64,
    ) -> Self {
        let lanes = [
            Lane::new(faults.iter().copied().map(Planned::Fault)),
            Lane::new(changes.iter().copied().map(Planned::Change)),
        ];
        Self {
            nodes: nodes.to_vec(),
            newcomers: newcomers.iter().copied().collect(),
            lanes,
            standing: Vec::new(),
            motion: None,
            dead: BTreeSet::new(),
            over: None,
            round_ns: None,
            dice: ChaCha8Rng::seed_from_u64(seed ^ STREAM),
        }
    }

    /// Takes note of an event of `node`, heard of at `now_ns`; returns what is to be done now, in order.
    pub fn observe(&mut self, now_ns: u64, node: NodeId, event: &NodeEvent) -> Vec<Action> {
        match event {
            NodeEvent::Store(StoreEvent::VotersChanged { joined: Some(_), .. }) => {
                self.lanes.iter_mut().for_each(|lane| lane.voters_changed = true);
            }
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
        for lane in 0..self.lanes.len() {
            while let Some(planned) = self.lanes[lane].waiting.last().copied() {
                if !self.is_due(lane, planned, now_ns) {
                    break;
                }
                let lane = &mut self.lanes[lane];
                lane.waiting.pop();
                (lane.voters_changed, lane.drawn_ns) = (false, None);
                actions.push(self.begin(planned, now_ns));
            }
        }
        actions
    }

    /// What `planned` is, now that it is due.
    fn begin(&mut self, planned: Planned, now_ns: u64) -> Action {
        let nodes = planned.who().map(|who| self.whom(who)).unwrap_or_default();
        match (planned, nodes.first().copied()) {
            (Planned::Fault(fault), Some(_)) => {
                self.strike(fault, &nodes, now_ns);
                Action::Strike { fault, nodes }
            }
            (Planned::Change(Change::Leave { .. }), Some(node)) => {
                self.nodes.retain(|other| *other != node);
                self.lost(node);
                Action::Leave { node }
            }
            (Planned::Change(Change::Join { .. }), _) => match self.newcomers.pop_front() {
                Some(node) => {
                    self.comes(node);
                    Action::Join { node }
                }
                None => Action::Missed { planned },
            },
            (_, None) => Action::Missed { planned },
        }
    }

    /// When [`advance`](Self::advance) has something to do even if nothing is heard until then.
    #[must_use]
    pub fn next_ns(&self) -> Option<u64> {
        let ends = self.standing.iter().filter_map(|standing| standing.ends_ns);
        let begins = self.lanes.iter().filter_map(|lane| {
            let next = lane.waiting.last()?;
            lane.drawn_ns.filter(|_| self.has_target(*next))
        });
        ends.chain(begins).min()
    }

    /// Ends every fault that is in force, because the job is over. Nothing strikes between rounds any more.
    pub fn heal(&mut self) -> Vec<Action> {
        self.motion = None;
        self.lanes.iter_mut().for_each(|lane| lane.drawn_ns = None);
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

    /// Takes note that `new` is started in the place of `dead`.
    pub fn replaced(&mut self, dead: NodeId, new: NodeId) {
        self.nodes.retain(|node| *node != dead);
        self.comes(new);
    }

    /// Takes note that `node`, which was to leave, is still a member.
    pub fn stays(&mut self, node: NodeId) {
        self.comes(node);
    }

    fn comes(&mut self, node: NodeId) {
        self.nodes.push(node);
        self.nodes.sort_unstable();
    }

    /// What has not happened, in order; faults first.
    #[must_use]
    pub fn remaining(&self) -> Vec<Planned> {
        self.lanes.iter().flat_map(|lane| lane.waiting.iter().rev().copied()).collect()
    }

    /// Whether nodes are still to join.
    #[must_use]
    pub fn awaits_newcomers(&self) -> bool {
        let joins = |planned: &Planned| matches!(planned, Planned::Change(Change::Join { .. }));
        self.lanes.iter().flat_map(|lane| &lane.waiting).any(joins)
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
            corrupt: 1.0
                - self.standing.iter().map(|standing| 1.0 - standing.corruption(from)).product::<f64>(),
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
        self.nodes.contains(&node) && !self.dead.contains(&node) && !self.standing.iter().any(disabled)
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

    /// Whether the moment of the next one in a lane has come; draws it, if it is random and can be drawn.
    fn is_due(&mut self, lane: usize, planned: Planned, now_ns: u64) -> bool {
        if let Some(drawn_ns) = self.lanes[lane].drawn_ns {
            return drawn_ns <= now_ns && self.has_target(planned);
        }
        let Some(motion) = &self.motion else { return false };
        let Some(started_ns) = motion.started_ns else { return false };
        match (planned.when(), self.round_ns) {
            (When::Random(from), Some(round_ns)) if motion.round >= from => {
                let share: f64 = self.dice.random();
                self.lanes[lane].drawn_ns = Some(started_ns + (share * round_ns as f64) as u64);
                self.is_due(lane, planned, now_ns)
            }
            (When::Random(_) | When::Time(_), _) => false,
            (When::Round(from), _) => motion.round >= from && !motion.training.is_empty(),
            (When::VotersChanged, _) => self.lanes[lane].voters_changed && !motion.training.is_empty(),
        }
    }

    /// Whether it can be said whom it concerns. Between two rounds no aggregator is at work: the next start of a round
    /// ends the waiting.
    const fn has_target(&self, planned: Planned) -> bool {
        self.motion.is_some() || matches!(planned.who(), None | Some(Who::Node(_) | Who::Random | Who::All))
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
                let size = who.most_of(self.nodes.len());
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
    /// Whether this keeps `node`, one of `size`, from the others' work: it is stopped or not heard, or on the side of a
    /// partition that is no majority.
    fn disables(&self, node: NodeId, size: usize) -> bool {
        let struck = self.nodes.contains(&node);
        match self.fault.kind {
            Kind::Kill
            | Kind::Restart { .. }
            | Kind::PowerOff
            | Kind::Stop
            | Kind::OmitSend
            | Kind::OmitReceive => struck,
            Kind::Partition => {
                let side = if struck { self.nodes.len() } else { size - self.nodes.len() };
                side * 2 <= size
            }
            Kind::Loss { .. } | Kind::Corrupt { .. } | Kind::Delay { .. } => false,
        }
    }

    /// How much later this lets leave what `from` sends.
    fn delay_ns(&self, from: NodeId) -> u64 {
        match self.fault.kind {
            Kind::Delay { by_ns } if self.nodes.contains(&from) => by_ns,
            _ => 0,
        }
    }

    /// Share of the frames of `from` in which this fault flips a bit.
    fn corruption(&self, from: NodeId) -> f64 {
        match self.fault.kind {
            Kind::Corrupt { percent } if self.nodes.contains(&from) => f64::from(percent) / 100.0,
            _ => 0.0,
        }
    }

    /// Share of the datagrams from one node to another that this fault loses.
    fn loss(&self, from: NodeId, to: NodeId) -> f64 {
        let struck = [from, to].map(|node| self.nodes.contains(&node));
        match self.fault.kind {
            Kind::Partition if struck[0] != struck[1] => 1.0,
            Kind::Loss { percent } if struck[0] || struck[1] => f64::from(percent) / 100.0,
            Kind::OmitSend if struck[0] => 1.0,
            Kind::OmitReceive if struck[1] => 1.0,
            _ => 0.0,
        }
    }
}

#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;
