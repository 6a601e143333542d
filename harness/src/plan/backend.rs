//! The store's part of a plan: which backend, with which parameters, and what follows from them for a run: when it cannot
//! go on, and which nodes have to show the final checkpoint. Pure.

use std::fmt;

use replication::backup::BackupConfig;
use replication::gossip::{Detector, GossipConfig};
use replication::local::LocalConfig;
use replication::raft::{Electorate, RaftConfig};
use replication::{DEFAULT_RETAINED, NodeId, Payload, Window};
use serde::{Deserialize, Serialize};

use crate::units::exact_ms;

/// Which replication backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// The lowest node aggregates and keeps everything in memory; nobody takes over.
    None,
    /// The same, from its own disk.
    Local,
    /// Every node votes and stores.
    Raft,
    /// The most suitable nodes vote and store.
    RaftSubset,
    /// Bytes are pulled from whoever has them.
    Gossip,
    /// Primary and backups, without consensus.
    Backup,
}

impl Backend {
    /// Whether its store can be kept on disk.
    #[must_use]
    pub fn keeps_on_disk(self) -> bool {
        !matches!(self, Self::None)
    }

    /// Whether another node takes over when the aggregator is gone.
    #[must_use]
    pub fn elects(self) -> bool {
        !matches!(self, Self::None | Self::Local)
    }
}

impl fmt::Display for Backend {
    /// As on the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Local => "local",
            Self::Raft => "raft",
            Self::RaftSubset => "raft-subset",
            Self::Gossip => "gossip",
            Self::Backup => "backup",
        })
    }
}

/// A backend with what only it has to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "snake_case")]
pub enum Scheme {
    /// The lowest node aggregates and keeps everything in memory; nobody takes over.
    None,
    /// The same, from its own disk.
    Local,
    /// Every node votes and stores.
    Raft,
    /// The most suitable nodes vote and store.
    RaftSubset {
        /// How many vote.
        voters: u32,
        /// A voter that is away for longer is replaced.
        voter_grace_ns: u64,
    },
    /// Bytes are pulled from whoever has them.
    Gossip {
        /// Nodes, the writer included, that hold a checkpoint before it is acknowledged.
        holders: u32,
        /// Peers a node gossips with each time.
        fan_out: u32,
        /// A node is suspected after a silence of this many thousandths of the interval.
        phi_milli: u32,
        /// Who says so.
        #[serde(default)]
        detector: Detector,
    },
    /// Primary and backups, without consensus.
    Backup {
        /// Nodes beside the aggregator that hold a checkpoint before it is acknowledged.
        backups: u32,
    },
}

/// The store's parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendPlan {
    /// Which one.
    #[serde(flatten)]
    pub scheme: Scheme,
    /// How bytes travel.
    pub payload: Payload,
    /// Earliest suspicion after the last contact with the aggregator, as asked for.
    pub window_lo_ns: u64,
    /// Latest suspicion after the last contact, as asked for.
    pub window_hi_ns: u64,
    /// Interval of signs of life: the aggregator's heartbeats; with gossip, every node's gossip.
    pub heartbeat_ns: u64,
    /// Whether the end of a lifeline to the aggregator tells that it crashed, before the window is over.
    #[serde(default)]
    pub fast_failover: bool,
}

/// How long a `put` waits for its guarantee before its outcome counts as unknown, in milliseconds.
const PUT_TIMEOUT_MS: u64 = 10_000;
const NS_PER_MS: u64 = 1_000_000;

/// Too few nodes are alive for the run to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortfall {
    /// Living ones.
    pub alive: usize,
    /// How many there were.
    pub of: usize,
    /// What they are: nodes or voters.
    pub what: &'static str,
    /// How many have to live.
    pub needed: usize,
    /// Why so many.
    why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Aggregator,
    Majority,
    Holders,
    Workers,
}

impl Shortfall {
    /// Whether `alive` of `of` workers are too few for a round, which takes `needed`.
    pub(super) fn of_workers(alive: usize, of: usize, needed: usize) -> Option<Self> {
        (alive < needed).then_some(Self { alive, of, what: "workers", needed, why: Why::Workers })
    }
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { alive, of, what, needed, why } = self;
        match why {
            Why::Aggregator => f.write_str("the aggregator is gone, and nobody takes over"),
            Why::Majority => {
                write!(f, "no majority is left: {alive} of {of} {what} alive, {needed} needed")
            }
            Why::Holders => write!(
                f,
                "too few {what} are left to hold a checkpoint: {alive} of {of} {what} alive, {needed} needed"
            ),
            Why::Workers => write!(
                f,
                "too few {what} are left to train a round: {alive} of {of} {what} alive, {needed} needed \
                 (--min-fit-clients)"
            ),
        }
    }
}

/// Who there is, as far as the controller was told; each in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roll {
    /// Nodes that belong to the cluster, dead ones included.
    pub members: Vec<NodeId>,
    /// Nodes that are not gone for good.
    pub alive: Vec<NodeId>,
    /// Who votes, as was told last; none: nobody told yet.
    pub voters: Vec<NodeId>,
    /// How many nodes the cluster began with.
    pub founders: usize,
}

impl Roll {
    /// Holders that gossip awaits now, of `holders` at the beginning.
    fn holders(&self, holders: u32) -> usize {
        replication::gossip::holders_among(holders, self.founders, self.members.len()) as usize
    }

    /// The lowest member, alone.
    fn lowest(&self) -> &[NodeId] {
        self.members.get(..1).unwrap_or_default()
    }
}

/// Which living nodes have to show the final checkpoint before a run has settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// These nodes.
    Nodes(Vec<NodeId>),
    /// Any so many.
    AnyOf(usize),
}

impl BackendPlan {
    /// Which backend.
    #[must_use]
    pub fn backend(&self) -> Backend {
        match self.scheme {
            Scheme::None => Backend::None,
            Scheme::Local => Backend::Local,
            Scheme::Raft => Backend::Raft,
            Scheme::RaftSubset { .. } => Backend::RaftSubset,
            Scheme::Gossip { .. } => Backend::Gossip,
            Scheme::Backup { .. } => Backend::Backup,
        }
    }

    /// The backend among `nodes`, with the trial's seed.
    #[must_use]
    pub fn for_nodes(&self, nodes: &[NodeId], seed: u64) -> replication::Backend {
        let nodes = nodes.iter().copied().collect();
        let window = Window { from_ms: self.window_lo_ns / NS_PER_MS, to_ms: self.window_hi_ns / NS_PER_MS };
        let heartbeat_ms = self.heartbeat_ns / NS_PER_MS;
        let (put_timeout_ms, retained) = (PUT_TIMEOUT_MS, DEFAULT_RETAINED);
        let electorate = match self.scheme {
            // The same store: what makes the difference is whether it is given a storage.
            Scheme::None | Scheme::Local => {
                return replication::Backend::Local(LocalConfig {
                    nodes,
                    heartbeat_ms,
                    put_timeout_ms,
                    retained,
                });
            }
            Scheme::Gossip { holders, fan_out, phi_milli, detector } => {
                return replication::Backend::Gossip(GossipConfig {
                    nodes,
                    holders,
                    interval_ms: heartbeat_ms,
                    fan_out,
                    phi_milli,
                    detector,
                    put_timeout_ms,
                    retained,
                    seed,
                });
            }
            Scheme::Backup { backups } => {
                return replication::Backend::Backup(BackupConfig {
                    nodes,
                    backups,
                    window,
                    heartbeat_ms,
                    put_timeout_ms,
                    retained,
                    seed,
                });
            }
            Scheme::Raft => Electorate::Everyone,
            Scheme::RaftSubset { voters, voter_grace_ns } => {
                Electorate::MostSuitable { voters, grace_ms: voter_grace_ns / NS_PER_MS }
            }
        };
        replication::Backend::Raft(RaftConfig {
            nodes,
            electorate,
            payload: self.payload,
            window,
            heartbeat_ms,
            put_timeout_ms,
            retained,
            seed,
        })
    }

    /// Whether nobody can join or leave, as the store has it.
    #[must_use]
    pub fn has_fixed_members(&self, nodes: &[NodeId]) -> bool {
        self.for_nodes(nodes, 0).has_fixed_members()
    }

    /// Earliest and latest suspicion after the last contact with the aggregator, as the backend really sets it: with
    /// gossip about `interval x phi`; with backup for the first in the order of succession. 0 where nobody is suspected,
    /// because nobody takes over.
    #[must_use]
    pub fn detection_ns(&self) -> (u64, u64) {
        match self.scheme {
            Scheme::Gossip { phi_milli, .. } => {
                let timeout = u128::from(self.heartbeat_ns) * u128::from(phi_milli) / 1000;
                let timeout = u64::try_from(timeout).unwrap_or(u64::MAX);
                (timeout, timeout)
            }
            Scheme::None | Scheme::Local => (0, 0),
            _ => (self.window_lo_ns, self.window_hi_ns),
        }
    }

    /// The effective settings in a line.
    #[must_use]
    pub fn describe(&self) -> String {
        let (low, high) = self.detection_ns();
        let (low, high, interval) = (exact_ms(low), exact_ms(high), exact_ms(self.heartbeat_ns));
        let head = format!("backend {}, payload {}", self.backend(), self.payload);
        match self.scheme {
            Scheme::None | Scheme::Local => {
                format!("backend {}: the lowest node aggregates, and nobody takes over", self.backend())
            }
            Scheme::Raft => format!("{head}: election window {low}-{high}, heartbeat {interval}"),
            Scheme::RaftSubset { voters, voter_grace_ns } => format!(
                "{head}: {voters} voters, replaced after {}; election window {low}-{high}, heartbeat {interval}",
                exact_ms(voter_grace_ns)
            ),
            Scheme::Gossip { holders, fan_out, phi_milli, detector } => format!(
                "{head}: {holders} holders; gossip every {interval} with {fan_out} peers; suspected after about {low} \
                 ({interval} x phi {}){}",
                f64::from(phi_milli) / 1000.0,
                match detector {
                    Detector::Phi => "",
                    Detector::EventuallyPerfect => ", later after each false suspicion",
                }
            ),
            Scheme::Backup { backups } => format!(
                "{head}: {backups} backups; detection window {low}-{high} for the first in the order of succession, \
                 heartbeat {interval}"
            ),
        }
    }

    /// Fewest nodes that a cluster may shrink to from `founders`: those that a promise takes.
    #[must_use]
    pub fn least_members(&self, founders: u64) -> u64 {
        match self.scheme {
            Scheme::Gossip { holders, .. } => {
                let needed = |left: &u64| {
                    let needed =
                        replication::gossip::holders_among(holders, founders as usize, *left as usize);
                    u64::from(needed) <= *left
                };
                (1..=founders).find(needed).unwrap_or(founders)
            }
            Scheme::Backup { backups } => u64::from(backups) + 1,
            _ => 1,
        }
    }

    /// Whether too few nodes are alive for anything more to be acknowledged.
    #[must_use]
    pub fn shortfall(&self, roll: &Roll) -> Option<Shortfall> {
        let short = |of: &[NodeId], what, needed, why| Shortfall {
            alive: of.iter().filter(|node| roll.alive.contains(node)).count(),
            of: of.len(),
            what,
            needed,
            why,
        };
        let all = |needed, why| short(&roll.members, "nodes", needed, why);
        let shortfall = match self.scheme {
            Scheme::None | Scheme::Local => short(roll.lowest(), "nodes", 1, Why::Aggregator),
            Scheme::Raft => {
                let group = if roll.voters.is_empty() { &roll.members } else { &roll.voters };
                short(group, "nodes", majority_of(group.len()), Why::Majority)
            }
            Scheme::RaftSubset { voters: count, .. } if roll.voters.is_empty() => {
                all(majority_of(count as usize), Why::Majority)
            }
            Scheme::RaftSubset { .. } => {
                short(&roll.voters, "voters", majority_of(roll.voters.len()), Why::Majority)
            }
            Scheme::Gossip { holders, .. } => all(roll.holders(holders), Why::Holders),
            Scheme::Backup { backups } => all(backups as usize + 1, Why::Holders),
        };
        (shortfall.alive < shortfall.needed).then_some(shortfall)
    }

    /// Which of the living nodes have to show the final checkpoint: those that the backend promises to hold it.
    #[must_use]
    pub fn expected(&self, roll: &Roll) -> Expected {
        let living = |nodes: &[NodeId]| {
            Expected::Nodes(nodes.iter().copied().filter(|node| roll.alive.contains(node)).collect())
        };
        match self.scheme {
            Scheme::None | Scheme::Local => living(roll.lowest()),
            Scheme::Raft => Expected::Nodes(roll.alive.clone()),
            Scheme::RaftSubset { voters: count, .. } if roll.voters.is_empty() => {
                Expected::AnyOf(majority_of(count as usize))
            }
            Scheme::RaftSubset { .. } => living(&roll.voters),
            Scheme::Gossip { holders, .. } => Expected::AnyOf(roll.holders(holders).min(roll.alive.len())),
            Scheme::Backup { backups } => Expected::AnyOf((backups as usize + 1).min(roll.alive.len())),
        }
    }

    /// What is allowed but unwise, a line each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let Scheme::RaftSubset { voters, .. } = self.scheme else { return Vec::new() };
        if !voters.is_multiple_of(2) {
            return Vec::new();
        }
        vec![format!(
            "--voters {voters}: an even number tolerates no more losses than one less; {} would do the same for less",
            voters - 1
        )]
    }
}

/// How many of `count` are a majority.
#[must_use]
pub fn majority_of(count: usize) -> usize {
    count / 2 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(scheme: Scheme) -> BackendPlan {
        BackendPlan { scheme, ..crate::plan::tests::plan(4).backend }
    }

    fn ids(nodes: impl IntoIterator<Item = u64>) -> Vec<NodeId> {
        nodes.into_iter().map(NodeId).collect()
    }

    fn roll(
        members: impl IntoIterator<Item = u64>,
        alive: impl IntoIterator<Item = u64>,
        voters: impl IntoIterator<Item = u64>,
    ) -> Roll {
        let members = ids(members);
        Roll { founders: members.len(), members, alive: ids(alive), voters: ids(voters) }
    }

    const SUBSET: Scheme = Scheme::RaftSubset { voters: 3, voter_grace_ns: 10_000_000_000 };
    const GOSSIP: Scheme =
        Scheme::Gossip { holders: 6, fan_out: 2, phi_milli: 6000, detector: Detector::Phi };

    #[test]
    fn a_run_goes_on_while_its_backend_can_acknowledge() {
        let short = |scheme, alive: u64, voters: &[u64]| {
            plan(scheme).shortfall(&roll(1..=10, 1..=alive, voters.iter().copied()))
        };
        assert_eq!(short(Scheme::Raft, 6, &[]), None);
        let words = short(Scheme::Raft, 5, &[]).unwrap().to_string();
        assert_eq!(words, "no majority is left: 5 of 10 nodes alive, 6 needed");
        assert_eq!(short(SUBSET, 2, &[]), None, "nobody told of voters yet");
        assert_eq!(short(SUBSET, 2, &[1, 2, 9]), None);
        let words = short(SUBSET, 5, &[1, 8, 9]).unwrap().to_string();
        assert_eq!(words, "no majority is left: 1 of 3 voters alive, 2 needed");
        assert_eq!(short(GOSSIP, 6, &[]), None);
        let words = short(GOSSIP, 5, &[]).unwrap().to_string();
        assert!(words.starts_with("too few nodes are left to hold a checkpoint: 5 of 10"), "{words}");
        assert_eq!(short(Scheme::Backup { backups: 2 }, 3, &[]), None);
        assert_eq!(short(Scheme::Backup { backups: 2 }, 2, &[]).unwrap().needed, 3);
    }

    #[test]
    fn members_that_came_and_went_are_counted_as_they_are() {
        // Of five, 1 and 2 have left; of those that are left 3 is dead.
        let after = roll([3, 4, 5], [4, 5], [3, 4, 5]);
        assert_eq!(plan(Scheme::Raft).shortfall(&after), None);
        assert_eq!(plan(Scheme::Raft).expected(&after), Expected::Nodes(ids([4, 5])));
        // Gossip's holders remain a majority.
        let grown = Roll { founders: 10, ..roll(1..=13, 1..=6, []) };
        assert_eq!(plan(GOSSIP).shortfall(&grown).map(|short| (short.alive, short.needed)), Some((6, 7)));
        // The group votes as it is, whatever is about to join.
        let joining = roll(1..=6, [1, 2, 6], 1..=5);
        assert_eq!(plan(Scheme::Raft).shortfall(&joining).map(|short| (short.alive, short.of)), Some((2, 5)));
    }

    #[test]
    fn without_replication_everything_is_with_the_lowest_node() {
        for scheme in [Scheme::None, Scheme::Local] {
            assert_eq!(plan(scheme).shortfall(&roll(1..=4, [1], [])), None);
            let words = plan(scheme).shortfall(&roll(1..=4, [2, 3, 4], [])).unwrap().to_string();
            assert_eq!(words, "the aggregator is gone, and nobody takes over");
            assert_eq!(plan(scheme).expected(&roll(1..=4, [1, 2], [])), Expected::Nodes(ids([1])));
            assert_eq!(plan(scheme).detection_ns(), (0, 0));
        }
    }

    #[test]
    fn only_nodes_that_promised_to_hold_have_to_show() {
        let expected =
            |scheme, voters: &[u64]| plan(scheme).expected(&roll(1..=4, [1, 2, 4], voters.iter().copied()));
        assert_eq!(expected(Scheme::Raft, &[]), Expected::Nodes(ids([1, 2, 4])));
        assert_eq!(expected(SUBSET, &[2, 3, 4]), Expected::Nodes(ids([2, 4])));
        assert_eq!(expected(SUBSET, &[]), Expected::AnyOf(2));
        assert_eq!(expected(GOSSIP, &[]), Expected::AnyOf(3));
        assert_eq!(expected(Scheme::Backup { backups: 1 }, &[]), Expected::AnyOf(2));
    }

    #[test]
    fn gossip_states_the_timeout_that_is_in_force() {
        let gossip = BackendPlan { heartbeat_ns: 250_000_000, ..plan(GOSSIP) };
        assert_eq!(gossip.detection_ns(), (1_500_000_000, 1_500_000_000));
        assert!(gossip.describe().contains("about 1500ms (250ms x phi 6)"), "{}", gossip.describe());
        assert_eq!(plan(SUBSET).detection_ns(), (1_000_000_000, 2_000_000_000));
    }

    #[test]
    fn an_even_number_of_voters_is_warned_of() {
        assert!(plan(SUBSET).warnings().is_empty());
        let even = plan(Scheme::RaftSubset { voters: 4, voter_grace_ns: 1 });
        assert!(even.warnings()[0].starts_with("--voters 4: an even number"), "{:?}", even.warnings());
    }

    #[test]
    fn every_scheme_becomes_its_backend_and_is_read_back() {
        for scheme in
            [Scheme::None, Scheme::Local, Scheme::Raft, SUBSET, GOSSIP, Scheme::Backup { backups: 2 }]
        {
            let plan = plan(scheme);
            let text = serde_json::to_string(&plan).unwrap();
            assert_eq!(serde_json::from_str::<BackendPlan>(&text).unwrap(), plan, "{text}");
            let word = plan.backend().to_string().replace('-', "_");
            assert!(text.contains(&format!("\"backend\":\"{word}\"")), "{text}");
            let matches = match plan.for_nodes(&ids(1..=4), 7) {
                replication::Backend::Raft(config) => {
                    (config.electorate == Electorate::Everyone) == (scheme == Scheme::Raft)
                }
                replication::Backend::Gossip(config) => scheme == GOSSIP && config.holders == 6,
                replication::Backend::Backup(config) => config.backups == 2,
                replication::Backend::Local(_) => !plan.backend().elects(),
            };
            assert!(matches, "{scheme:?}");
        }
    }
}
