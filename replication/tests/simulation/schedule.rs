//! Which fault strikes when: a pure function of a seed.
//!
//! Nodes and links have a track each, on which a fault is always followed by its end, so that faults of both kinds overlap.
//! Knows neither a backend nor a network.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::seq::{IteratorRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use replication::NodeId;

/// Something that is done to the cluster.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    /// The node ends without a word, and its memory with it.
    Crash(NodeId),
    /// A crashed node comes back with what it had stored.
    Restart(NodeId),
    /// Messages to and from the node are held.
    Pause(NodeId),
    /// A paused node goes on.
    Resume(NodeId),
    /// Nodes of these two groups do not reach each other.
    Partition(Vec<NodeId>, Vec<NodeId>),
    /// Two nodes do not reach each other, whoever else they reach.
    Cut(NodeId, NodeId),
    /// Every node reaches every other.
    Heal,
    /// Links lose, duplicate and reorder.
    Disturb {
        /// Probability that a packet is lost.
        loss: f64,
        /// Probability that a request arrives twice.
        duplication: f64,
        /// Longest delay that a message can have beyond the link's.
        jitter: Duration,
    },
    /// Links do none of this.
    Calm,
    /// The node omits to send, to receive, or both; Heal ends it.
    Omit {
        /// Which.
        node: NodeId,
        /// Nothing that it sends arrives.
        to_send: bool,
        /// Nothing arrives at it.
        to_receive: bool,
    },
    /// The lifelines that these nodes have to the aggregator end, although it lives.
    FalseAlarm(Vec<NodeId>),
}

/// Which faults there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kinds {
    /// All.
    Any,
    /// Nodes crash; links are well.
    Crashes,
    /// All, while two nodes join and one leaves.
    Members,
    /// All, while one in a hundred frames has a bit flipped on its way.
    Corruption,
    /// Nodes crash, pause, and omit to send or to receive.
    Omissions,
    /// All, while one node lies.
    Lies,
}

/// What a schedule is drawn for.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    pub(crate) nodes: Vec<NodeId>,
    /// Most nodes that may be down at once; if none comes back, most that crash.
    pub(crate) losses: u32,
    /// Whether crashed nodes come back.
    pub(crate) restarts: bool,
    pub(crate) kinds: Kinds,
    /// Whether there are lifelines, of which some end for nothing.
    pub(crate) lifelines: bool,
    /// When the last fault has ended.
    pub(crate) until: Duration,
}

/// Before this the cluster is left alone to begin.
const FIRST_FAULT: Duration = Duration::from_secs(2);

fn between(rng: &mut ChaCha8Rng, from_ms: u64, to_ms: u64) -> Duration {
    Duration::from_millis(rng.random_range(from_ms..to_ms))
}

/// The schedule of `seed`, in the order of time. After it every node that can is back, and every link is well.
pub(crate) fn schedule(seed: u64, bounds: &Bounds) -> Vec<(Duration, Fault)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut schedule = node_track(&mut rng, bounds);
    if bounds.kinds != Kinds::Crashes {
        schedule.extend(link_track(&mut rng, bounds));
    }
    if bounds.lifelines && bounds.kinds == Kinds::Any {
        schedule.extend(alarm_track(seed, bounds));
    }
    schedule.sort_by_key(|(at, _)| *at);
    schedule
}

/// When nodes 6 and 7 join, and which of the first five leaves when: under the other faults of `seed`.
pub(crate) fn member_track(seed: u64) -> (Vec<(Duration, NodeId)>, (Duration, NodeId)) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x6d65_6d62_6572_7321);
    let joins = [6, 7].map(|node| (FIRST_FAULT + between(&mut rng, 0, 12_000), NodeId(node)));
    let leaves = (FIRST_FAULT + between(&mut rng, 0, 16_000), NodeId(rng.random_range(1..=5)));
    (joins.into(), leaves)
}

fn node_track(rng: &mut ChaCha8Rng, bounds: &Bounds) -> Vec<(Duration, Fault)> {
    let mut track = Vec::new();
    let mut down = BTreeSet::new();
    let mut at = FIRST_FAULT + between(rng, 0, 2000);
    loop {
        let ends = at + between(rng, 200, 8000);
        if ends >= bounds.until {
            break;
        }
        let Some(node) = bounds.nodes.iter().filter(|node| !down.contains(*node)).copied().choose(rng) else {
            break;
        };
        let may_crash = (down.len() as u32) < bounds.losses;
        let crashes = bounds.kinds == Kinds::Crashes || rng.random_bool(0.4);
        if crashes && may_crash {
            track.push((at, Fault::Crash(node)));
            if bounds.restarts {
                track.push((ends, Fault::Restart(node)));
            } else {
                down.insert(node);
            }
        } else if bounds.kinds != Kinds::Crashes {
            track.push((at, Fault::Pause(node)));
            track.push((ends, Fault::Resume(node)));
        }
        at = ends + between(rng, 100, 3000);
    }
    track
}

fn link_track(rng: &mut ChaCha8Rng, bounds: &Bounds) -> Vec<(Duration, Fault)> {
    let mut track = Vec::new();
    let mut at = FIRST_FAULT + between(rng, 0, 2000);
    loop {
        let ends = at + between(rng, 200, 8000);
        if ends >= bounds.until {
            return track;
        }
        let mut nodes = bounds.nodes.clone();
        nodes.shuffle(rng);
        let omits = bounds.kinds == Kinds::Omissions;
        let (fault, end) = match rng.random_range(0..4) {
            way if omits => {
                let fault = Fault::Omit { node: nodes[0], to_send: way != 1, to_receive: way != 0 };
                (fault, Fault::Heal)
            }
            0 => (Fault::Cut(nodes[0], nodes[1]), Fault::Heal),
            1 => {
                let side = rng.random_range(1..nodes.len());
                let rest = nodes.split_off(side);
                (Fault::Partition(nodes, rest), Fault::Heal)
            }
            _ => {
                let loss = rng.random_range(0.0..0.3);
                let duplication = rng.random_range(0.0..0.5);
                (Fault::Disturb { loss, duplication, jitter: between(rng, 1, 80) }, Fault::Calm)
            }
        };
        track.push((at, fault));
        track.push((ends, end));
        at = ends + between(rng, 100, 3000);
    }
}

/// From a generator of its own, so that the other faults of a seed are the same with lifelines and without.
fn alarm_track(seed: u64, bounds: &Bounds) -> Vec<(Duration, Fault)> {
    let mut rng = ChaCha8Rng::seed_from_u64(!seed);
    let mut track = Vec::new();
    let mut at = FIRST_FAULT + between(&mut rng, 0, 1000);
    while at < bounds.until {
        let mut nodes = bounds.nodes.clone();
        nodes.shuffle(&mut rng);
        nodes.truncate(rng.random_range(1..=nodes.len()));
        track.push((at, Fault::FalseAlarm(nodes)));
        at += between(&mut rng, 50, 2000);
    }
    track
}

#[test]
fn faults_end_and_stay_within_their_bounds() {
    let bounds = |restarts| Bounds {
        nodes: (1..=5).map(NodeId).collect(),
        losses: 2,
        restarts,
        kinds: Kinds::Any,
        lifelines: restarts,
        until: Duration::from_secs(25),
    };
    let mut kinds = BTreeSet::new();
    for seed in 0..200 {
        for restarts in [false, true] {
            let schedule = schedule(seed, &bounds(restarts));
            assert_eq!(schedule, self::schedule(seed, &bounds(restarts)));
            let (mut down, mut paused, mut cut, mut disturbed) =
                (BTreeSet::new(), BTreeSet::new(), false, false);
            let mut last = Duration::ZERO;
            for (at, fault) in schedule {
                assert!(at >= last && at >= FIRST_FAULT && at < bounds(restarts).until);
                last = at;
                let described = format!("{fault:?}");
                kinds.insert(described.split(|c: char| !c.is_alphabetic()).next().unwrap().to_owned());
                match fault {
                    Fault::Crash(node) => assert!(down.insert(node) && down.len() <= 2),
                    Fault::Restart(node) => assert!(restarts && down.remove(&node)),
                    Fault::Pause(node) => assert!(!down.contains(&node) && paused.insert(node)),
                    Fault::Resume(node) => assert!(paused.remove(&node)),
                    Fault::Partition(one, other) => {
                        assert!(!one.is_empty() && !other.is_empty() && one.len() + other.len() == 5);
                        cut = true;
                    }
                    Fault::Cut(one, other) => {
                        assert_ne!(one, other);
                        cut = true;
                    }
                    Fault::Omit { .. } => panic!("only with its kind"),
                    Fault::Heal => cut = false,
                    Fault::FalseAlarm(nodes) => assert!(restarts && !nodes.is_empty()),
                    Fault::Disturb { .. } => disturbed = true,
                    Fault::Calm => disturbed = false,
                }
            }
            assert!(paused.is_empty() && !cut && !disturbed && (!restarts || down.is_empty()), "seed {seed}");
        }
    }
    assert_eq!(kinds.len(), 10, "every kind occurs: {kinds:?}");
}
