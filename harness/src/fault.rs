//! Faults and when they strike: a pure function of events. Events in, actions out; who carries an action out is not
//! known here.
//!
//! A fault is written `KIND@WHO,WHEN`, for example `kill@aggregator,round:2` or `restart@all,round:2,after:3s`. `round:N` is the middle of the first
//! round from N on: its `RoundStarted` was seen, and a `FitStarted` of a worker. Faults strike in the order given,
//! each once: the next one waits for the one before it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use replication::{Epoch, NodeId, StoreEvent};
use serde::{Deserialize, Serialize};
use workloads::federated::Event;

use crate::control::NodeEvent;
use crate::units::{Bare, exact_ms, nanoseconds, parse_duration};

/// What is done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// SIGKILL.
    Kill,
    /// SIGKILL, and the same node is started again.
    Restart {
        /// How long after the kill.
        after_ns: u64,
    },
}

/// How long a node that is restarted stays away, where the fault does not say it.
const DEFAULT_AFTER_NS: u64 = 1_000_000_000;

/// Whom a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// The node that leads the round.
    Aggregator,
    /// The first worker that was seen to train in the round.
    Worker,
    /// One node, whatever it does.
    Node(NodeId),
    /// Every node that lives.
    All,
}

/// When a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// In the middle of the first round from this one on.
    Round(u64),
    /// In the middle of a round, once a voter was replaced since the fault before.
    VotersChanged,
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Round(round) => write!(f, "round:{round}"),
            Self::VotersChanged => f.write_str("voters-changed"),
        }
    }
}

/// One fault of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What is done.
    pub kind: Kind,
    /// To whom.
    pub who: Who,
    /// When.
    pub when: When,
}

/// What the run has to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Carry `fault` out on `node`.
    Strike {
        /// The fault.
        fault: Fault,
        /// The node.
        node: NodeId,
    },
    /// `fault` was due, but its node was dead already.
    Missed {
        /// The fault.
        fault: Fault,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Kill => "kill",
            Kind::Restart { .. } => "restart",
        };
        let when = self.when;
        match self.who {
            Who::Aggregator => write!(f, "{kind}@aggregator,{when}"),
            Who::Worker => write!(f, "{kind}@worker,{when}"),
            Who::Node(node) => write!(f, "{kind}@node:{node},{when}"),
            Who::All => write!(f, "{kind}@all,{when}"),
        }?;
        match self.kind {
            Kind::Kill => Ok(()),
            Kind::Restart { after_ns } => write!(f, ",after:{}", exact_ms(after_ns)),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "write KIND@WHO,WHEN, for example kill@aggregator,round:2";
        let (kind, rest) = text.split_once('@').ok_or(form)?;
        let (who, when) = rest.split_once(',').ok_or(form)?;
        let (when, after) = match when.split_once(",after:") {
            Some((when, after)) => (when, Some(nanoseconds(parse_duration(after, Bare::Seconds)?))),
            None => (when, None),
        };
        let kind = match (kind, after) {
            ("kill", None) => Kind::Kill,
            ("kill", Some(_)) => return Err("a killed node stays away; after: is for restart".into()),
            ("restart", after) => Kind::Restart { after_ns: after.unwrap_or(DEFAULT_AFTER_NS) },
            (other, _) => return Err(format!("unknown kind '{other}'; use kill or restart")),
        };
        let who = match (who, who.strip_prefix("node:").map(str::parse)) {
            ("aggregator", _) => Who::Aggregator,
            ("worker", _) => Who::Worker,
            ("all", _) => Who::All,
            (_, Some(Ok(node))) => Who::Node(NodeId(node)),
            _ => return Err(format!("unknown node '{who}'; use aggregator, worker, node:ID or all")),
        };
        let when = match (when, when.strip_prefix("round:").map(str::parse)) {
            ("voters-changed", _) => When::VotersChanged,
            (_, Some(Ok(round))) if round > 0 => When::Round(round),
            _ => return Err(format!("unknown moment '{when}'; use round:N, N from 1, or voters-changed")),
        };
        Ok(Self { kind, who, when })
    }
}

/// A round between its start and its end, as far as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Motion {
    epoch: Epoch,
    round: u64,
    /// The aggregator's `RoundStarted` was seen. Events of different nodes may arrive in any order.
    started: bool,
    /// Living workers that began to train, in the order seen.
    training: Vec<NodeId>,
}

/// The faults that are still to strike, and what decides their moment.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    waiting: Vec<Fault>,
    motion: Option<Motion>,
    nodes: Vec<NodeId>,
    dead: BTreeSet<NodeId>,
    /// The newest epoch whose aggregator died: late news of it must not count once its node is back.
    over: Option<Epoch>,
    /// Whether a voter was replaced since the last fault.
    voters_changed: bool,
}

impl Timeline {
    /// These faults, in this order, among `nodes`.
    #[must_use]
    pub fn new(faults: &[Fault], nodes: &[NodeId]) -> Self {
        let waiting = faults.iter().rev().copied().collect();
        Self { waiting, nodes: nodes.to_vec(), ..Self::default() }
    }

    /// Takes note of an event of `node`; returns what is to be done now, in order.
    pub fn observe(&mut self, node: NodeId, event: &NodeEvent) -> Vec<Action> {
        if let NodeEvent::Store(StoreEvent::VotersChanged { joined: Some(_), .. }) = event {
            self.voters_changed = true;
            return self.due();
        }
        let NodeEvent::Federated(event) = event else { return Vec::new() };
        match *event {
            Event::RoundStarted { epoch, round, .. } => {
                if let Some(motion) = self.motion_of(epoch, round) {
                    motion.started = true;
                }
            }
            Event::FitStarted { epoch, round } if !self.dead.contains(&node) => {
                if let Some(motion) = self.motion_of(epoch, round) {
                    motion.training.push(node);
                }
            }
            Event::RoundFinished { epoch, round, .. } => {
                self.motion.take_if(|motion| (motion.epoch, motion.round) <= (epoch, round));
            }
            _ => {}
        }
        self.due()
    }

    /// Takes note of a node's death, by a fault or not.
    pub fn died(&mut self, node: NodeId) {
        self.dead.insert(node);
        if let Some(motion) = self.motion.take_if(|motion| motion.epoch.node == node) {
            self.over = self.over.max(Some(motion.epoch));
        }
        if let Some(motion) = &mut self.motion {
            motion.training.retain(|worker| *worker != node);
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

    /// The round in motion that an event belongs to; none if the event is of an older round or a dead aggregator.
    fn motion_of(&mut self, epoch: Epoch, round: u64) -> Option<&mut Motion> {
        if self.dead.contains(&epoch.node) || Some(epoch) <= self.over {
            return None;
        }
        let current = self.motion.as_ref().map(|motion| (motion.epoch, motion.round));
        if current.is_none_or(|current| current < (epoch, round)) {
            self.motion = Some(Motion { epoch, round, started: false, training: Vec::new() });
        }
        self.motion.as_mut().filter(|motion| (motion.epoch, motion.round) == (epoch, round))
    }

    fn due(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some(&fault) = self.waiting.last() {
            let Some(motion) = &self.motion else { break };
            let come = match fault.when {
                When::Round(from) => motion.round >= from,
                When::VotersChanged => self.voters_changed,
            };
            if !come || !motion.started || motion.training.is_empty() {
                break;
            }
            let mut struck = match fault.who {
                Who::Aggregator => vec![motion.epoch.node],
                Who::Worker => vec![motion.training[0]],
                Who::Node(node) => vec![node],
                Who::All => self.nodes.clone(),
            };
            struck.retain(|node| !self.dead.contains(node));
            self.waiting.pop();
            self.voters_changed = false;
            if struck.is_empty() {
                actions.push(Action::Missed { fault });
            }
            for node in struck {
                self.died(node);
                actions.push(Action::Strike { fault, node });
            }
        }
        actions
    }
}

#[cfg(test)]
mod tests {
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

    fn timeline(faults: &[&str]) -> Timeline {
        let faults: Vec<Fault> = faults.iter().map(|text| text.parse().unwrap()).collect();
        Timeline::new(&faults, &[1, 2, 3, 4].map(NodeId))
    }

    fn struck(actions: &[Action]) -> Vec<u64> {
        let node = |action: &Action| match action {
            Action::Strike { node, .. } => node.0,
            Action::Missed { .. } => 0,
        };
        actions.iter().map(node).collect()
    }

    #[test]
    fn faults_are_read_and_written_alike() {
        for text in [
            "kill@aggregator,round:2",
            "kill@worker,round:1",
            "kill@node:7,voters-changed",
            "restart@all,round:3,after:1500ms",
        ] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        let restart: Fault = "restart@worker,round:1".parse().unwrap();
        assert_eq!(restart.to_string(), "restart@worker,round:1,after:1000ms");
        for text in [
            "",
            "kill",
            "kill@aggregator",
            "stop@worker,round:1",
            "kill@node:x,round:1",
            "kill@worker,round:0",
            "kill@worker,round:1,after:1s",
            "restart@worker,round:1,after:soon",
        ] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_fault_strikes_in_the_middle_of_its_round_in_either_order_of_events() {
        let e = epoch(1, 1);
        let mut faults = timeline(&["kill@aggregator,round:2"]);
        assert!(faults.observe(NodeId(1), &started(e, 1)).is_empty());
        assert!(faults.observe(NodeId(2), &fit(e, 1)).is_empty());
        assert!(faults.observe(NodeId(2), &fit(e, 2)).is_empty(), "the round was not seen to start");
        assert_eq!(struck(&faults.observe(NodeId(1), &started(e, 2))), [1]);
        assert!(faults.remaining().is_empty());
        assert!(faults.observe(NodeId(3), &fit(e, 2)).is_empty());
    }

    #[test]
    fn the_second_aggregator_is_killed_in_its_own_round() {
        let mut faults = timeline(&["kill@aggregator,round:1", "kill@aggregator,round:1"]);
        faults.observe(NodeId(1), &started(epoch(1, 1), 1));
        assert_eq!(struck(&faults.observe(NodeId(2), &fit(epoch(1, 1), 1))), [1]);
        assert!(
            faults.observe(NodeId(3), &fit(epoch(1, 1), 1)).is_empty(),
            "late news of the dead aggregator"
        );
        faults.observe(NodeId(3), &started(epoch(2, 3), 2));
        assert_eq!(struck(&faults.observe(NodeId(2), &fit(epoch(2, 3), 2))), [3]);
    }

    #[test]
    fn several_nodes_can_be_killed_in_one_round_and_a_dead_one_is_missed() {
        let e = epoch(1, 1);
        let mut faults = timeline(&["kill@worker,round:1", "kill@node:2,round:1", "kill@node:3,round:1"]);
        faults.observe(NodeId(1), &started(e, 1));
        assert_eq!(struck(&faults.observe(NodeId(2), &fit(e, 1))), [2], "only the fault that has its worker");
        assert_eq!(struck(&faults.observe(NodeId(4), &fit(e, 1))), [0, 3]);
    }

    #[test]
    fn a_fault_can_wait_for_a_voter_to_be_replaced_since_the_one_before() {
        let voters = |joined: Option<u64>| {
            let voters = vec![NodeId(2)];
            NodeEvent::Store(StoreEvent::VotersChanged { lost: None, joined: joined.map(NodeId), voters })
        };
        let mut faults = timeline(&["kill@aggregator,round:1", "kill@aggregator,voters-changed"]);
        assert!(faults.observe(NodeId(1), &voters(Some(5))).is_empty(), "before the first fault");
        faults.observe(NodeId(1), &started(epoch(1, 1), 1));
        assert_eq!(struck(&faults.observe(NodeId(2), &fit(epoch(1, 1), 1))), [1]);
        faults.observe(NodeId(3), &started(epoch(2, 3), 1));
        assert!(faults.observe(NodeId(2), &fit(epoch(2, 3), 1)).is_empty());
        assert!(faults.observe(NodeId(3), &voters(None)).is_empty(), "founding is no replacement");
        assert_eq!(struck(&faults.observe(NodeId(3), &voters(Some(4)))), [3]);
    }

    #[test]
    fn a_node_that_is_back_can_be_struck_again_but_not_by_late_news_of_its_old_epoch() {
        let mut faults = timeline(&["restart@aggregator,round:1", "restart@all,round:1"]);
        faults.observe(NodeId(1), &started(epoch(1, 1), 1));
        assert_eq!(struck(&faults.observe(NodeId(2), &fit(epoch(1, 1), 1))), [1]);
        faults.returned(NodeId(1));
        faults.observe(NodeId(1), &started(epoch(1, 1), 1));
        assert!(faults.observe(NodeId(2), &fit(epoch(1, 1), 1)).is_empty(), "late news");
        faults.died(NodeId(4));
        faults.observe(NodeId(1), &started(epoch(2, 1), 1));
        assert_eq!(struck(&faults.observe(NodeId(2), &fit(epoch(2, 1), 1))), [1, 2, 3]);
    }

    #[test]
    fn after_its_end_a_round_has_no_middle() {
        let e = epoch(1, 1);
        let mut faults = timeline(&["kill@node:4,round:1", "kill@worker,round:1"]);
        faults.died(NodeId(2));
        faults.observe(NodeId(1), &started(e, 1));
        assert!(faults.observe(NodeId(2), &fit(e, 1)).is_empty(), "a dead node's late event");
        assert_eq!(faults.remaining().len(), 2);
    }
}
