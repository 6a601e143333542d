//! The store's part of a plan: which backend, with which parameters, and what follows from them for a run: when it cannot
//! go on, and which nodes have to show the final checkpoint. Pure.

use std::fmt;

use replication::backup::BackupConfig;
use replication::gossip::GossipConfig;
use replication::raft::{Electorate, RaftConfig};
use replication::{DEFAULT_RETAINED, NodeId, Payload, Window};
use serde::{Deserialize, Serialize};

use crate::units::exact_ms;

/// Which replication backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
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
        matches!(self, Self::Raft | Self::RaftSubset | Self::Gossip | Self::Backup)
    }
}

impl fmt::Display for Backend {
    /// As on the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
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
    Majority,
    Holders,
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { alive, of, what, needed, why } = self;
        match why {
            Why::Majority => {
                write!(f, "no majority is left: {alive} of {of} {what} alive, {needed} needed")
            }
            Why::Holders => write!(
                f,
                "too few {what} are left to hold a checkpoint: {alive} of {of} {what} alive, {needed} needed"
            ),
        }
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
            Scheme::Gossip { holders, fan_out, phi_milli } => {
                return replication::Backend::Gossip(GossipConfig {
                    nodes,
                    holders,
                    interval_ms: heartbeat_ms,
                    fan_out,
                    phi_milli,
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

    /// Earliest and latest suspicion after the last contact with the aggregator, as the backend really sets it: with
    /// gossip about `interval x phi`; with backup for the first in the order of succession.
    #[must_use]
    pub fn detection_ns(&self) -> (u64, u64) {
        match self.scheme {
            Scheme::Gossip { phi_milli, .. } => {
                let timeout = u128::from(self.heartbeat_ns) * u128::from(phi_milli) / 1000;
                let timeout = u64::try_from(timeout).unwrap_or(u64::MAX);
                (timeout, timeout)
            }
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
            Scheme::Raft => format!("{head}: election window {low}-{high}, heartbeat {interval}"),
            Scheme::RaftSubset { voters, voter_grace_ns } => format!(
                "{head}: {voters} voters, replaced after {}; election window {low}-{high}, heartbeat {interval}",
                exact_ms(voter_grace_ns)
            ),
            Scheme::Gossip { holders, fan_out, phi_milli } => format!(
                "{head}: {holders} holders; gossip every {interval} with {fan_out} peers; suspected after about {low} \
                 ({interval} x phi {})",
                f64::from(phi_milli) / 1000.0
            ),
            Scheme::Backup { backups } => format!(
                "{head}: {backups} backups; detection window {low}-{high} for the first in the order of succession, \
                 heartbeat {interval}"
            ),
        }
    }

    /// Whether too few of so many nodes are alive for anything more to be acknowledged. `voters` are the newest that were
    /// told of; none: nobody told yet.
    #[must_use]
    pub fn shortfall(&self, nodes: usize, alive: &[NodeId], voters: &[NodeId]) -> Option<Shortfall> {
        let living = alive.len();
        let all = |needed, why| Shortfall { alive: living, of: nodes, what: "nodes", needed, why };
        let shortfall = match self.scheme {
            Scheme::Raft => all(majority_of(nodes), Why::Majority),
            Scheme::RaftSubset { voters: count, .. } if voters.is_empty() => {
                all(majority_of(count as usize), Why::Majority)
            }
            Scheme::RaftSubset { .. } => Shortfall {
                alive: voters.iter().filter(|voter| alive.contains(voter)).count(),
                of: voters.len(),
                what: "voters",
                needed: majority_of(voters.len()),
                why: Why::Majority,
            },
            Scheme::Gossip { holders, .. } => all(holders as usize, Why::Holders),
            Scheme::Backup { backups } => all(backups as usize + 1, Why::Holders),
        };
        (shortfall.alive < shortfall.needed).then_some(shortfall)
    }

    /// Which of the living nodes have to show the final checkpoint: those that the backend promises to hold it.
    #[must_use]
    pub fn expected(&self, alive: &[NodeId], voters: &[NodeId]) -> Expected {
        match self.scheme {
            Scheme::Raft => Expected::Nodes(alive.to_vec()),
            Scheme::RaftSubset { voters: count, .. } if voters.is_empty() => {
                Expected::AnyOf(majority_of(count as usize))
            }
            Scheme::RaftSubset { .. } => {
                Expected::Nodes(voters.iter().copied().filter(|voter| alive.contains(voter)).collect())
            }
            Scheme::Gossip { holders, .. } => Expected::AnyOf((holders as usize).min(alive.len())),
            Scheme::Backup { backups } => Expected::AnyOf((backups as usize + 1).min(alive.len())),
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

    const SUBSET: Scheme = Scheme::RaftSubset { voters: 3, voter_grace_ns: 10_000_000_000 };
    const GOSSIP: Scheme = Scheme::Gossip { holders: 6, fan_out: 2, phi_milli: 6000 };

    #[test]
    fn a_run_goes_on_while_its_backend_can_acknowledge() {
        let short = |scheme, alive: u64, voters: &[u64]| {
            plan(scheme).shortfall(10, &ids(1..=alive), &ids(voters.iter().copied()))
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
    fn only_nodes_that_promised_to_hold_have_to_show() {
        let expected =
            |scheme, voters: &[u64]| plan(scheme).expected(&ids([1, 2, 4]), &ids(voters.iter().copied()));
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
        for scheme in [Scheme::Raft, SUBSET, GOSSIP, Scheme::Backup { backups: 2 }] {
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
                replication::Backend::Local(_) => false,
            };
            assert!(matches, "{scheme:?}");
        }
    }
}
