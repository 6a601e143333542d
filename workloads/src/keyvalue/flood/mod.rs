//! Flooding consensus: the upper bound of what agreement costs, for the dictionary on the in-process network.
//!
//! ```text
//!   instance k:  round 1 .. N   every node multicasts all commands it knows of, and waits for every node that is not known to
//!                               have crashed
//!                after round N  all of them are decided, in the order of the nodes that proposed them
//! ```
//!
//! # Guarantees
//! Fail-stop: nodes crash and do not come back, channels lose nothing, and who is reported as crashed has crashed (a perfect
//! failure detector; on the in-process network: a peer whose connection ended). Then all nodes decide the same commands in
//! the same order, a node that crashes right after deciding included, with up to N - 1 crashes: in one of N rounds nobody
//! crashes, and after that round all know the same. Nothing is promised under partitions, pauses or loss, and nothing survives
//! the end of all nodes: not a store for anything but comparison. It has no aggregator, so it is no
//! [`CheckpointStore`](replication::CheckpointStore) but a server of the same protocol, [`FloodServer`].
//!
//! # Traffic
//! Without a crash an instance takes N² (N - 1) messages, and every command travels N² (N - 1) times, less one round in which
//! only its proposer knows it: then N - 1 times. ([`bound`])
//!
//! This file is pure: messages and crashes in, messages and decisions out.

mod server;

use std::collections::{BTreeMap, BTreeSet};

use replication::NodeId;
use serde::{Deserialize, Serialize};

use super::message::Command;
pub use server::FloodServer;

/// Commands by the node that proposed them.
pub type Known = BTreeMap<NodeId, Vec<Command>>;

/// What a node multicasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Which decision it is about, from 1.
    pub instance: u64,
    /// The round, from 1.
    pub round: u32,
    /// Every command of this instance that the sender knows of.
    pub known: Known,
}

/// What a node does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It multicasts this.
    Send(Message),
    /// It has decided: commands in their order, each with the node that proposed it.
    Decide(Vec<(NodeId, Command)>),
}

/// Most messages of an instance among `nodes`: in each of as many rounds everybody sends to all others.
#[must_use]
pub const fn bound(nodes: u64) -> u64 {
    nodes * nodes * nodes.saturating_sub(1)
}

/// One node's part in one instance after the other.
#[derive(Debug)]
pub struct Flood {
    node: NodeId,
    /// Every node that has not crashed.
    alive: BTreeSet<NodeId>,
    rounds: u32,
    instance: u64,
    /// 0: this node has proposed nothing in this instance yet.
    round: u32,
    known: Known,
    /// What arrived, by instance and round.
    heard: BTreeMap<(u64, u32), BTreeMap<NodeId, Known>>,
}

impl Flood {
    /// Of `node` among `nodes`.
    #[must_use]
    pub fn new(node: NodeId, nodes: &[NodeId]) -> Self {
        Self {
            node,
            alive: nodes.iter().copied().collect(),
            rounds: nodes.len() as u32,
            instance: 1,
            round: 0,
            known: Known::new(),
            heard: BTreeMap::new(),
        }
    }

    /// Whether this node may propose: it takes part in no instance.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.round == 0
    }

    /// Whether others have begun the instance that is next: then this node has to propose, if only nothing.
    #[must_use]
    pub fn is_called(&self) -> bool {
        self.is_idle() && self.heard.contains_key(&(self.instance, 1))
    }

    /// Instances decided.
    #[must_use]
    pub fn decided(&self) -> u64 {
        self.instance - 1
    }

    /// Proposes `commands` in the next instance; an idle node only.
    pub fn propose(&mut self, commands: Vec<Command>) -> Message {
        debug_assert!(self.is_idle(), "one instance at a time");
        self.round = 1;
        self.known = Known::from([(self.node, commands)]);
        self.message()
    }

    /// A message arrived.
    pub fn take(&mut self, from: NodeId, Message { instance, round, known }: Message) {
        // Nobody can be further ahead than the next instance, which begins without this node only if it has crashed.
        let current = (self.instance..=self.instance + 1).contains(&instance);
        if current && (1..=self.rounds).contains(&round) {
            self.heard.entry((instance, round)).or_default().insert(from, known);
        }
    }

    /// A node has crashed.
    pub fn crashed(&mut self, node: NodeId) {
        self.alive.remove(&node);
    }

    /// What follows from what was heard; to be called until there is nothing more.
    pub fn step(&mut self) -> Option<Step> {
        if self.is_idle() {
            return None;
        }
        let at = (self.instance, self.round);
        let heard = self.heard.get(&at);
        let is_heard =
            |node: &NodeId| *node == self.node || heard.is_some_and(|heard| heard.contains_key(node));
        if !self.alive.iter().all(is_heard) {
            return None;
        }
        for known in self.heard.remove(&at).unwrap_or_default().into_values() {
            self.known.extend(known);
        }
        if self.round < self.rounds {
            self.round += 1;
            return Some(Step::Send(self.message()));
        }
        (self.instance, self.round) = (self.instance + 1, 0);
        let instance = self.instance;
        self.heard.retain(|(of, _), _| *of >= instance);
        let decided = std::mem::take(&mut self.known).into_iter();
        Some(Step::Decide(
            decided
                .flat_map(|(node, commands)| commands.into_iter().map(move |command| (node, command)))
                .collect(),
        ))
    }

    fn message(&self) -> Message {
        Message { instance: self.instance, round: self.round, known: self.known.clone() }
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::message::Change;
    use super::*;

    const NODES: u64 = 5;
    const INSTANCES: u64 = 6;

    fn command(node: NodeId, number: u64) -> Command {
        Command::Change { origin: None, change: Change::Delete { key: format!("{node}/{number}") } }
    }

    /// What is on its way to a node.
    #[derive(Clone)]
    enum Event {
        Message(NodeId, Message),
        Crash(NodeId),
    }

    /// Nodes whose messages arrive in any order, and which crash in the middle of a multicast.
    struct World {
        rng: ChaCha8Rng,
        nodes: Vec<NodeId>,
        floods: BTreeMap<NodeId, Flood>,
        crashed: BTreeSet<NodeId>,
        on_the_way: Vec<(NodeId, Event)>,
        decided: BTreeMap<NodeId, Vec<(NodeId, Command)>>,
        proposed: BTreeSet<String>,
        sent: u64,
    }

    impl World {
        fn new(seed: u64) -> Self {
            let nodes: Vec<NodeId> = (1..=NODES).map(NodeId).collect();
            let floods = nodes.iter().map(|node| (*node, Flood::new(*node, &nodes))).collect();
            Self {
                rng: ChaCha8Rng::seed_from_u64(seed),
                nodes,
                floods,
                crashed: BTreeSet::new(),
                on_the_way: Vec::new(),
                decided: BTreeMap::new(),
                proposed: BTreeSet::new(),
                sent: 0,
            }
        }

        fn multicast(&mut self, from: NodeId, message: &Message, crash: bool) {
            for to in self.nodes.clone().into_iter().filter(|to| *to != from) {
                if !crash || self.rng.random_bool(0.5) {
                    self.sent += 1;
                    self.on_the_way.push((to, Event::Message(from, message.clone())));
                }
            }
            if crash {
                self.crashed.insert(from);
                for to in self.nodes.clone() {
                    self.on_the_way.push((to, Event::Crash(from)));
                }
            }
        }

        /// Lets `node` go on, which may crash at its next multicast.
        fn run(&mut self, node: NodeId, risk: f64) {
            while !self.crashed.contains(&node) {
                let flood = self.floods.get_mut(&node).unwrap();
                let message = if flood.is_idle() && (flood.is_called() || flood.decided() < INSTANCES) {
                    let command = command(node, flood.decided());
                    self.proposed.insert(command.to_string());
                    flood.propose(vec![command])
                } else {
                    match flood.step() {
                        Some(Step::Send(message)) => message,
                        Some(Step::Decide(commands)) => {
                            self.decided.entry(node).or_default().extend(commands);
                            continue;
                        }
                        None => return,
                    }
                };
                let crash = self.crashed.len() + 1 < self.nodes.len() && self.rng.random_bool(risk);
                self.multicast(node, &message, crash);
            }
        }

        fn play(mut self, risk: f64) -> Self {
            for node in self.nodes.clone() {
                self.run(node, risk);
            }
            while !self.on_the_way.is_empty() {
                let index = self.rng.random_range(0..self.on_the_way.len());
                let (to, event) = self.on_the_way.swap_remove(index);
                match event {
                    _ if self.crashed.contains(&to) => continue,
                    Event::Message(from, message) => self.floods.get_mut(&to).unwrap().take(from, message),
                    Event::Crash(node) => self.floods.get_mut(&to).unwrap().crashed(node),
                }
                self.run(to, risk);
            }
            self
        }
    }

    #[test]
    fn all_decide_the_same_whoever_crashes_when() {
        let mut most = 0;
        for seed in 0..500 {
            let world = World::new(seed).play(0.01 * (seed % 5) as f64);
            most = most.max(world.crashed.len());
            let whole = world.decided.values().max_by_key(|decided| decided.len()).unwrap();
            for (node, decided) in &world.decided {
                assert!(whole.starts_with(decided), "seed {seed}: node {node}, crashed or not");
            }
            for node in world.nodes.iter().filter(|node| !world.crashed.contains(node)) {
                assert_eq!(world.decided.get(node), Some(whole), "seed {seed}: node {node} is alive");
                let own = whole.iter().filter(|(proposer, _)| proposer == node).count() as u64;
                assert!(own >= INSTANCES, "seed {seed}: what node {node} proposed is decided, {own}");
            }
            assert!(whole.iter().all(|(_, command)| world.proposed.contains(&command.to_string())));
            let instances = world.floods.values().map(Flood::decided).max().unwrap();
            // Of those that crashed in the instance after the last decision, too.
            assert!(world.sent <= (instances + 1) * bound(NODES), "seed {seed}: {} messages", world.sent);
            if world.crashed.is_empty() {
                assert_eq!(world.sent, instances * bound(NODES), "seed {seed}");
            }
        }
        assert_eq!(most as u64, NODES - 1, "all but one crashed in some run");
    }

    #[test]
    fn messages_of_the_past_and_nonsense_are_ignored() {
        let nodes = [NodeId(1), NodeId(2)];
        let mut flood = Flood::new(NodeId(1), &nodes);
        for (instance, round) in [(0, 1), (3, 1), (1, 0), (1, 3)] {
            flood.take(NodeId(2), Message { instance, round, known: Known::new() });
        }
        assert!(!flood.is_called() && flood.step().is_none());
        let alone = [NodeId(1)];
        let mut flood = Flood::new(NodeId(1), &alone);
        flood.propose(vec![command(NodeId(1), 0)]);
        assert!(matches!(flood.step(), Some(Step::Decide(commands)) if commands.len() == 1));
    }
}
