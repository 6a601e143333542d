//! Who aggregates, who is next, and when: pure decisions on events and time.
//!
//! Nodes succeed each other in ascending order of their ids, from the aggregator onwards and around. Nobody votes: a higher
//! epoch is believed by whoever hears of it. Knows neither checkpoints nor the network.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;

use crate::config::Window;
use crate::lifeline::TURNS;
use crate::store::{Epoch, NodeId};

/// What a node does next, as far as nothing happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It aggregates: it says so to everyone.
    Lead,
    /// It waits, at most until then.
    Wait(Option<Instant>),
    /// It is the lowest of a new cluster and has its backups: it begins.
    Begin,
    /// It has heard nothing of the aggregator for too long.
    Succeed,
}

/// What an epoch that was heard of is to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// It has ended; this one is in force.
    Stale(Epoch),
    /// It is in force.
    Known,
    /// It is new, and in force from now on; this one was before, as far as this life knows.
    New(Option<Epoch>),
}

/// One node's place in the succession.
#[derive(Debug)]
pub(super) struct Succession {
    nodes: BTreeSet<NodeId>,
    local: NodeId,
    backups: usize,
    window: Window,
    rng: ChaCha8Rng,
    /// The highest that was heard of, in this life or an earlier one.
    epoch: Option<Epoch>,
    /// It was heard of, or begun, in this life.
    heard: bool,
    /// There may have been earlier lives, of all nodes.
    durable: bool,
    /// When the aggregator was last heard of, or succession last tried.
    contact: Instant,
    /// How long after it the first in the order suspects the aggregator.
    draw: Duration,
    /// A lifeline told that the aggregator crashed: how long a successor has before the next one, and how often it is tried.
    hurry: Option<(Duration, u32)>,
}

impl Succession {
    pub(super) fn new(
        nodes: BTreeSet<NodeId>,
        local: NodeId,
        backups: u32,
        window: Window,
        rng: ChaCha8Rng,
        now: Instant,
    ) -> Self {
        let backups = backups as usize;
        let (contact, draw, hurry) = (now, Duration::ZERO, None);
        let (epoch, heard, durable) = (None, false, false);
        let mut new =
            Self { nodes, local, backups, window, rng, epoch, heard, durable, contact, draw, hurry };
        new.wait_anew(now);
        new
    }

    /// From now on these succeed each other.
    pub(super) fn among(&mut self, nodes: BTreeSet<NodeId>) {
        self.nodes = nodes;
    }

    /// The same after a restart: with the highest epoch that an earlier life heard of.
    pub(super) fn remembering(self, epoch: Option<Epoch>) -> Self {
        Self { epoch, durable: true, ..self }
    }

    /// How many others have to answer before this node begins an epoch: enough to be its backups. Who has come back and not
    /// heard of anybody asks so many that somebody among them holds whatever was acknowledged: all may have been gone.
    pub(super) fn needed(&self) -> usize {
        if self.durable && !self.heard {
            self.backups.max(self.nodes.len().saturating_sub(1 + self.backups))
        } else {
            self.backups
        }
    }

    /// The epoch in force, as far as this node knows.
    pub(super) fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// Whether this node aggregates.
    pub(super) fn leads(&self) -> bool {
        self.heard && self.epoch.is_some_and(|epoch| epoch.node == self.local)
    }

    /// The epoch this node would begin.
    pub(super) fn next_epoch(&self) -> Epoch {
        Epoch { counter: self.epoch.map_or(0, |epoch| epoch.counter).saturating_add(1), node: self.local }
    }

    /// The others in the order in which they come after `node`, and around.
    pub(super) fn after(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        let beyond = self.nodes.range(node..);
        beyond.chain(self.nodes.range(..node)).copied().filter(move |other| *other != node)
    }

    /// The nodes that are asked to hold a checkpoint, in order: the first that answer do.
    pub(super) fn candidates(&self, connected: &[NodeId]) -> Vec<NodeId> {
        self.after(self.local).filter(|node| connected.contains(node)).collect()
    }

    /// How many living nodes succeed before this one.
    fn rank(&self, connected: &[NodeId]) -> u32 {
        let before_local = |node: &NodeId| *node != self.local;
        let ahead: Vec<NodeId> = match self.epoch {
            Some(epoch) => self.after(epoch.node).take_while(before_local).collect(),
            None => self.nodes.iter().copied().take_while(before_local).collect(),
        };
        ahead.iter().filter(|node| connected.contains(node)).count() as u32
    }

    /// Successors do not race: each has the whole window to itself, those ahead of it come first.
    fn deadline(&self, connected: &[NodeId]) -> Instant {
        let width = Duration::from_millis(self.window.to_ms - self.window.from_ms);
        let width = self.hurry.map_or(width, |(turn, _)| turn);
        self.contact + self.draw + width * self.rank(connected)
    }

    /// What to do at `now`, with these peers connected.
    pub(super) fn step(&self, now: Instant, connected: &[NodeId]) -> Step {
        if self.leads() {
            return Step::Lead;
        }
        if connected.len() < self.needed() || !self.nodes.contains(&self.local) {
            return Step::Wait(None);
        }
        if self.epoch.is_none() && self.nodes.first() == Some(&self.local) {
            return Step::Begin;
        }
        let deadline = self.deadline(connected);
        if now < deadline { Step::Wait(Some(deadline)) } else { Step::Succeed }
    }

    /// A lifeline ended: the successors take turns of this length at once.
    pub(super) fn hurry(&mut self, now: Instant, turn: Duration) {
        (self.contact, self.draw) = (now, Duration::ZERO);
        self.hurry = Some((turn, TURNS - 1));
    }

    /// Whether a lifeline ended, and its hurry is not over.
    pub(super) fn hurries(&self) -> bool {
        self.hurry.is_some()
    }

    /// The aggregator was heard of, or others have to be let go first: a new draw. In a hurry, a turn: what was under way when
    /// the aggregator crashed may be heard of later.
    pub(super) fn wait_anew(&mut self, now: Instant) {
        let Window { from_ms, to_ms } = self.window;
        self.contact = now;
        if let Some((turn, left)) = self.hurry.filter(|(_, left)| *left > 0) {
            (self.draw, self.hurry) = (turn, Some((turn, left - 1)));
            return;
        }
        self.hurry = None;
        self.draw = Duration::from_micros(self.rng.random_range(from_ms * 1000..to_ms * 1000));
    }

    /// For how long nothing was heard of the aggregator, nor succession tried.
    pub(super) fn silence_ns(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.contact).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Whether this node has no reason to doubt that somebody aggregates.
    pub(super) fn content(&self, now: Instant) -> bool {
        let lease = Duration::from_millis(self.window.from_ms * 3 / 4);
        self.leads() || (self.heard && !self.hurries() && now < self.contact + lease)
    }

    /// Takes note of an epoch that somebody named: the highest is in force.
    pub(super) fn hear(&mut self, epoch: Epoch, now: Instant) -> Heard {
        match self.epoch {
            Some(current) if epoch < current => return Heard::Stale(current),
            Some(current) if epoch == current && self.heard => return Heard::Known,
            _ => {}
        }
        if epoch.node == self.local {
            // An earlier life's: nobody holds it any more.
            (self.epoch, self.heard) = (Some(epoch), false);
            return Heard::Known;
        }
        Heard::New(self.follow(epoch, now))
    }

    /// Begins an epoch of this node. Returns the one that was in force.
    pub(super) fn begin(&mut self, epoch: Epoch, now: Instant) -> Option<Epoch> {
        self.follow(epoch, now)
    }

    fn follow(&mut self, epoch: Epoch, now: Instant) -> Option<Epoch> {
        let before = self.epoch.replace(epoch).filter(|_| self.heard);
        self.heard = true;
        self.hurry = None;
        self.wait_anew(now);
        before
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const WINDOW: Window = Window { from_ms: 300, to_ms: 600 };

    fn succession(local: u64, backups: u32, now: Instant) -> Succession {
        let nodes = (1..=5).map(NodeId).collect();
        Succession::new(nodes, NodeId(local), backups, WINDOW, ChaCha8Rng::seed_from_u64(local), now)
    }

    fn epoch(counter: u64, node: u64) -> Epoch {
        Epoch { counter, node: NodeId(node) }
    }

    fn others(local: u64) -> Vec<NodeId> {
        (1..=5).map(NodeId).filter(|node| *node != NodeId(local)).collect()
    }

    #[test]
    fn after_the_end_of_a_lifeline_successors_take_short_turns_a_few_times() {
        let (now, turn) = (Instant::now(), Duration::from_millis(10));
        let mut second = succession(3, 2, now);
        second.hear(epoch(1, 1), now);
        assert!(second.content(now));
        second.hurry(now, turn);
        assert!(!second.content(now));
        let connected = others(3);
        assert_eq!(second.step(now, &connected), Step::Wait(Some(now + turn)), "node 2 comes first");
        assert_eq!(second.step(now + turn, &connected), Step::Succeed);
        for _ in 1..TURNS {
            second.wait_anew(now);
            assert_eq!(second.step(now, &connected), Step::Wait(Some(now + 2 * turn)));
        }
        second.wait_anew(now);
        assert!(!second.hurries() && second.content(now), "then the window holds again");
        second.hurry(now, turn);
        second.hear(epoch(2, 2), now);
        assert!(!second.hurries(), "somebody has succeeded");
    }

    #[test]
    fn the_lowest_begins_once_it_has_backups() {
        let now = Instant::now();
        let lowest = succession(1, 2, now);
        assert_eq!(lowest.step(now, &[NodeId(4)]), Step::Wait(None));
        assert_eq!(lowest.step(now, &[NodeId(4), NodeId(5)]), Step::Begin);
        assert!(matches!(succession(2, 2, now).step(now, &others(2)), Step::Wait(Some(_))));
        assert_eq!(lowest.next_epoch(), epoch(1, 1));
    }

    #[test]
    fn successors_take_turns_around_the_circle() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        for (local, rank) in [(5, 0), (1, 1), (2, 2), (3, 3)] {
            for _ in 0..100 {
                let mut successor = succession(local, 2, now);
                successor.hear(epoch(7, 4), now);
                let turn = 300 * rank;
                assert!(matches!(successor.step(at(turn + 299), &others(local)), Step::Wait(Some(_))));
                assert_eq!(successor.step(at(turn + 600), &others(local)), Step::Succeed);
            }
        }
        let mut third = succession(2, 2, now);
        third.hear(epoch(7, 4), now);
        let without_5 = [1, 3, 4].map(NodeId);
        assert_eq!(
            third.step(at(900), &without_5),
            Step::Succeed,
            "who is not connected is not let go first"
        );
    }

    #[test]
    fn a_higher_epoch_ends_an_office() {
        let now = Instant::now();
        let mut node = succession(1, 2, now);
        assert_eq!(node.begin(epoch(1, 1), now), None);
        assert_eq!(node.step(now, &[]), Step::Lead);
        assert_eq!(node.hear(epoch(2, 3), now), Heard::New(Some(epoch(1, 1))));
        assert_eq!(node.hear(epoch(1, 1), now), Heard::Stale(epoch(2, 3)));
        assert_eq!(
            node.hear(epoch(2, 4), now),
            Heard::New(Some(epoch(2, 3))),
            "of two with one counter the higher node"
        );
        assert_eq!(node.next_epoch(), epoch(3, 1));
    }

    #[test]
    fn who_comes_back_leads_no_more_and_asks_enough_to_find_what_was_acknowledged() {
        let now = Instant::now();
        let back = |local, backups| succession(local, backups, now).remembering(Some(epoch(3, 1)));
        let mut aggregator = back(1, 1);
        assert!(!aggregator.leads() && !aggregator.content(now));
        assert_eq!(aggregator.hear(epoch(3, 1), now), Heard::Known, "its own, of which others tell it");
        assert!(!aggregator.leads() && aggregator.next_epoch() == epoch(4, 1));
        // On two nodes of five, on three of five.
        assert_eq!((back(2, 1).needed(), back(2, 2).needed(), back(2, 3).needed()), (3, 2, 3));
        let late = now + Duration::from_secs(9);
        assert_eq!(back(2, 1).step(late, &[NodeId(4), NodeId(5)]), Step::Wait(None));
        assert_eq!(back(2, 1).step(late, &[3, 4, 5].map(NodeId)), Step::Succeed);
        let mut other = back(2, 1);
        assert_eq!(other.hear(epoch(3, 1), now), Heard::New(None), "it is heard of again");
        assert_eq!(other.needed(), 1);
        let mut first = succession(1, 1, now).remembering(None);
        assert_eq!(first.step(now, &[2, 3, 4].map(NodeId)), Step::Begin);
        first.begin(epoch(1, 1), now);
        assert_eq!(first.step(now, &[]), Step::Lead);
    }

    #[test]
    fn backups_are_the_next_that_are_connected() {
        let node = succession(4, 2, Instant::now());
        assert_eq!(node.candidates(&[1, 2, 3].map(NodeId)), [1, 2, 3].map(NodeId));
        assert_eq!(node.candidates(&[5, 2].map(NodeId)), [5, 2].map(NodeId));
    }

    #[test]
    fn who_has_just_heard_of_the_aggregator_is_content() {
        let now = Instant::now();
        let mut node = succession(2, 2, now);
        assert!(!node.content(now), "nobody aggregates yet");
        node.hear(epoch(1, 1), now);
        assert!(node.content(now + Duration::from_millis(224)));
        assert!(!node.content(now + Duration::from_millis(225)));
    }
}
