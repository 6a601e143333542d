//! Who can reach whom, which connections stand, and when a message arrives: pure decisions on events and time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;

use super::tamper::Tamper;
use crate::store::NodeId;
use crate::transport::Lane;

/// Bytes per packet, for loss and for estimated datagram counts.
pub const PACKET_BYTES: u64 = 1200;

/// Most retransmissions of one message; with a loss of 1 a message arrives very late instead of never.
const MAX_RETRANSMISSIONS: u32 = 64;

/// What every link of the network is like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkSpec {
    /// One way.
    pub delay: Duration,
    /// Added to the delay, uniformly between zero and this.
    pub jitter: Duration,
    /// Probability that a packet is lost, from 0 to 1.
    pub loss: f64,
    /// Probability that a request reaches its handler twice, from 0 to 1. The second answer is discarded.
    pub duplication: f64,
    /// What a node can send per second, over all its links. `None` is without limit.
    pub bandwidth_bytes_per_s: Option<u64>,
}

impl Default for LinkSpec {
    /// One millisecond, and nothing else.
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(1),
            jitter: Duration::ZERO,
            loss: 0.0,
            duplication: 0.0,
            bandwidth_bytes_per_s: None,
        }
    }
}

impl LinkSpec {
    /// How late a packet is after one loss: a round trip at its slowest, and 25 ms for which QUIC may withhold an
    /// acknowledgement.
    #[must_use]
    pub fn retransmission_timeout(&self) -> Duration {
        (self.delay + self.jitter) * 2 + Duration::from_millis(25)
    }

    fn handshake(&self) -> Duration {
        self.delay * 3
    }
}

/// Two nodes, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pair(NodeId, NodeId);

impl Pair {
    pub(super) fn new(a: NodeId, b: NodeId) -> Self {
        Self(a.min(b), a.max(b))
    }
}

/// The connection between two nodes.
#[derive(Debug, Default)]
struct Connection {
    /// Whether both ends, as far as they live, believe in it.
    up: bool,
    /// One of its ends has died since.
    stale: bool,
    /// Grows when the connection is lost or made anew.
    generation: u64,
    /// Whether it was reachable when last looked at.
    reachable: bool,
    /// Grows with every change of reachability: a timer of an earlier epoch is void.
    epoch: u64,
}

/// A change that is due later.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timer {
    pair: Pair,
    epoch: u64,
}

/// What the network does with a message.
#[derive(Debug)]
pub(super) struct Departure {
    pub(super) arrives: Instant,
    pub(super) lost_packets: u64,
}

/// Until when a node's egress is busy.
#[derive(Debug, Clone, Copy)]
struct Egress {
    control: Instant,
    bulk: Instant,
}

#[derive(Debug)]
pub(super) struct Model {
    seed: u64,
    pub(super) link: LinkSpec,
    /// Added to the delay of every link of a node, one way.
    pub(super) distances: BTreeMap<NodeId, Duration>,
    /// Known nodes, and whether they are up.
    nodes: BTreeMap<NodeId, bool>,
    cuts: BTreeSet<Pair>,
    paused: BTreeSet<NodeId>,
    /// Nodes of which nothing arrives anywhere, and at which nothing arrives.
    mute: BTreeSet<NodeId>,
    deaf: BTreeSet<NodeId>,
    /// Probability that a bit of a frame flips on its way, and that a frame of a node is a lie.
    pub(super) corruption: f64,
    pub(super) lies: BTreeMap<NodeId, f64>,
    connections: BTreeMap<Pair, Connection>,
    egress: BTreeMap<NodeId, Egress>,
    dice: BTreeMap<(NodeId, NodeId), ChaCha8Rng>,
}

impl Model {
    pub(super) fn new(seed: u64, link: LinkSpec, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        Self {
            seed,
            link,
            distances: BTreeMap::new(),
            nodes: nodes.into_iter().map(|node| (node, false)).collect(),
            cuts: BTreeSet::new(),
            paused: BTreeSet::new(),
            mute: BTreeSet::new(),
            deaf: BTreeSet::new(),
            corruption: 0.0,
            lies: BTreeMap::new(),
            connections: BTreeMap::new(),
            egress: BTreeMap::new(),
            dice: BTreeMap::new(),
        }
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes.keys().copied()
    }

    fn pairs(&self) -> Vec<Pair> {
        let of = |a: NodeId| self.nodes().filter(move |b| a < *b).map(move |b| Pair(a, b));
        self.nodes().flat_map(of).collect()
    }

    fn reachable(&self, pair: Pair) -> bool {
        let up = |node| self.nodes.get(&node).copied().unwrap_or(false);
        let running = |node| up(node) && !self.paused.contains(&node);
        running(pair.0) && running(pair.1) && !self.cuts.contains(&pair)
    }

    /// Whether what `from` sends to `to` is lost.
    fn omits(&self, from: NodeId, to: NodeId) -> bool {
        self.mute.contains(&from) || self.deaf.contains(&to)
    }

    /// Whether each end hears the other, so that neither takes the connection for lost.
    fn both_hear(&self, pair: Pair) -> bool {
        self.reachable(pair) && !self.omits(pair.0, pair.1) && !self.omits(pair.1, pair.0)
    }

    /// Whether the connection between two nodes carries messages of `from` now: it stands, both its ends live and reach each
    /// other, and neither omits to send or to receive.
    pub(super) fn carries(&self, from: NodeId, to: NodeId) -> bool {
        let pair = Pair::new(from, to);
        let whole = |connection: &Connection| connection.up && !connection.stale;
        let stands = self.connections.get(&pair).is_some_and(whole);
        stands && self.reachable(pair) && !self.omits(from, to)
    }

    /// What is done to a frame beside delaying it. Throws no dice where nothing is done to any.
    pub(super) fn tampers(&mut self, from: NodeId, to: NodeId) -> Option<Tamper> {
        let lies = self.lies.get(&from).copied().unwrap_or(0.0);
        let corruption = self.corruption;
        let mut happens = |share: f64| share > 0.0 && self.dice(from, to).random::<f64>() < share;
        if happens(lies) {
            return Some(Tamper::Lie);
        }
        happens(corruption).then_some(Tamper::Flip)
    }

    /// Which connection of `pair` stands.
    pub(super) fn generation(&self, pair: Pair) -> Option<u64> {
        self.connections.get(&pair).filter(|connection| connection.up).map(|connection| connection.generation)
    }

    /// To whom `node` believes to be connected.
    pub(super) fn connected(&self, node: NodeId) -> Vec<NodeId> {
        self.nodes().filter(|peer| self.generation(Pair::new(node, *peer)).is_some()).collect()
    }

    pub(super) fn pause(&mut self, node: NodeId) {
        self.paused.insert(node);
    }

    pub(super) fn resume(&mut self, node: NodeId) {
        self.paused.remove(&node);
    }

    /// From now on `node` omits to send, to receive, both or neither.
    pub(super) fn omit(&mut self, node: NodeId, to_send: bool, to_receive: bool) {
        for (set, omits) in [(&mut self.mute, to_send), (&mut self.deaf, to_receive)] {
            if omits {
                set.insert(node);
            } else {
                set.remove(&node);
            }
        }
    }

    pub(super) fn set_up(&mut self, node: NodeId, up: bool) {
        self.nodes.insert(node, up);
        self.paused.remove(&node);
        if !up {
            self.of(node).for_each(|connection| connection.stale = true);
        }
    }

    /// `node` says goodbye to whom it can reach; the others hear nothing.
    pub(super) fn leave(&mut self, node: NodeId) {
        self.set_up(node, false);
        self.of(node).filter(|connection| connection.reachable).for_each(Connection::lose);
    }

    fn of(&mut self, node: NodeId) -> impl Iterator<Item = &mut Connection> {
        let own = move |pair: &Pair| pair.0 == node || pair.1 == node;
        self.connections.iter_mut().filter(move |(pair, _)| own(pair)).map(|(_, connection)| connection)
    }

    pub(super) fn cut(&mut self, a: NodeId, b: NodeId) {
        self.cuts.insert(Pair::new(a, b));
    }

    pub(super) fn isolate(&mut self, node: NodeId) {
        let cuts: Vec<_> =
            self.nodes().filter(|peer| *peer != node).map(|peer| Pair::new(node, peer)).collect();
        self.cuts.extend(cuts);
    }

    pub(super) fn partition(&mut self, groups: &[&[NodeId]]) {
        let group = |node: NodeId| groups.iter().position(|group| group.contains(&node));
        self.cuts = self.pairs().into_iter().filter(|pair| group(pair.0) != group(pair.1)).collect();
    }

    pub(super) fn heal(&mut self) {
        self.cuts.clear();
        self.mute.clear();
        self.deaf.clear();
    }

    /// Compares every connection with what is reachable now; returns what is due, and after how long.
    pub(super) fn refresh(&mut self, idle_timeout: Duration) -> Vec<(Duration, Timer)> {
        let mut timers = Vec::new();
        for pair in self.pairs() {
            let reachable = self.both_hear(pair);
            let connection = self.connections.entry(pair).or_default();
            if connection.reachable == reachable {
                continue;
            }
            connection.reachable = reachable;
            connection.epoch += 1;
            let timer = Timer { pair, epoch: connection.epoch };
            if reachable && (!connection.up || connection.stale) {
                timers.push((self.link.handshake(), timer));
            } else if !reachable && connection.up {
                timers.push((idle_timeout, timer));
            }
        }
        timers
    }

    /// A handshake is complete, or a silence has lasted for the idle timeout.
    pub(super) fn fire(&mut self, timer: Timer) {
        let Some(connection) = self.connections.get_mut(&timer.pair) else { return };
        if connection.epoch != timer.epoch {
            return;
        }
        connection.lose();
        connection.up = connection.reachable;
    }

    fn delay(&self, from: NodeId, to: NodeId) -> Duration {
        let distance = |node| self.distances.get(&node).copied().unwrap_or_default();
        self.link.delay + distance(from) + distance(to)
    }

    /// What a small message and its answer take on an idle link.
    pub(super) fn round_trip(&self, a: NodeId, b: NodeId) -> Duration {
        self.delay(a, b) * 2 + self.link.jitter
    }

    /// Sends a message of `bytes` at `now`.
    pub(super) fn send(
        &mut self,
        from: NodeId,
        to: NodeId,
        lane: Lane,
        bytes: u64,
        now: Instant,
    ) -> Departure {
        let leaves = self.occupy(from, lane, bytes, now);
        let LinkSpec { jitter, loss, .. } = self.link;
        let delay = self.delay(from, to);
        let retransmission = self.link.retransmission_timeout();
        let dice = self.dice(from, to);
        let jitter = jitter.mul_f64(dice.random::<f64>());
        // A control message is lost as a whole, so that its exact size decides nothing: chitchat's varies unseeded.
        let mut missing = if lane == Lane::Control { 1 } else { bytes.div_ceil(PACKET_BYTES) };
        let mut arrives = leaves + delay + jitter;
        let mut lost_packets = 0;
        for _ in 0..MAX_RETRANSMISSIONS {
            missing = (0..missing).map(|_| u64::from(loss > 0.0 && dice.random::<f64>() < loss)).sum();
            if missing == 0 {
                break;
            }
            lost_packets += missing;
            arrives += retransmission;
        }
        Departure { arrives, lost_packets }
    }

    /// Whether a request that has arrived arrives once more.
    pub(super) fn duplicates(&mut self, from: NodeId, to: NodeId) -> bool {
        let duplication = self.link.duplication;
        duplication > 0.0 && self.dice(from, to).random::<f64>() < duplication
    }

    pub(super) fn dice(&mut self, from: NodeId, to: NodeId) -> &mut ChaCha8Rng {
        let seed = self.seed;
        self.dice.entry((from, to)).or_insert_with(|| dice(seed, from, to))
    }

    /// When the last byte has left the sender.
    fn occupy(&mut self, from: NodeId, lane: Lane, bytes: u64, now: Instant) -> Instant {
        let Some(bandwidth) = self.link.bandwidth_bytes_per_s else { return now };
        let takes = Duration::from_secs_f64(bytes as f64 / bandwidth.max(1) as f64);
        let egress = self.egress.entry(from).or_insert(Egress { control: now, bulk: now });
        match lane {
            Lane::Control => {
                egress.control = egress.control.max(now) + takes;
                egress.bulk = egress.bulk.max(now) + takes;
                egress.control
            }
            Lane::Bulk => {
                egress.bulk = egress.bulk.max(now) + takes;
                egress.bulk
            }
        }
    }
}

impl Connection {
    fn lose(&mut self) {
        self.up = false;
        self.stale = false;
        self.generation += 1;
    }
}

/// Every directed link throws its own, so that traffic on one does not change another's luck.
fn dice(seed: u64, from: NodeId, to: NodeId) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new_derive_key("checkpoint channel network, dice of a link, 1");
    for word in [seed, from.0, to.0] {
        hasher.update(&word.to_be_bytes());
    }
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}
