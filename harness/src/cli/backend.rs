//! The options of the store: which backend they concern, what they default to, and their conversion to a plan.

use clap::{Args, ValueEnum};
use replication::Payload;
use replication::gossip::Detector;
use workloads::federated::Policy;

use super::convert::word;
use super::values::{self, PolicyArg, Span, Thousandths, Window};
use crate::exit::Usage;
use crate::plan::{Backend, BackendPlan, Scheme, majority_of};
use crate::resources::Override;
use crate::units::nanoseconds;

/// Which replication backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    /// Level 0 of self-recovery: the lowest node aggregates and keeps everything in memory; the job ends with it.
    None,
    /// Level 1: the same, on its own disk; `--fault restart@aggregator,...` has it go on from there.
    Local,
    /// Full Raft: every node votes and stores. Level 3; 2 with --stateless, 4 with --profile workers.
    Raft,
    /// Raft among the most suitable nodes; the others store nothing.
    RaftSubset,
    /// Gossip: bytes are pulled from whoever has them.
    Gossip,
    /// Primary-backup: bytes go to a few backups, without consensus.
    Backup,
}

/// How checkpoint bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PayloadArg {
    /// Inside the replicated log.
    Inline,
    /// Apart from the log, addressed by their digest.
    Digest,
}

const DEFAULT_HEARTBEAT_NS: u64 = 100_000_000;
const DEFAULT_GOSSIP_INTERVAL_NS: u64 = 250_000_000;
const DEFAULT_VOTERS: u32 = 3;
const DEFAULT_VOTER_GRACE_NS: u64 = 10_000_000_000;
const DEFAULT_BACKUPS: u32 = 2;
const DEFAULT_FAN_OUT: u32 = 2;

/// Options of the store. What concerns only some backends has no default of clap's, so that giving it to another one is
/// seen and refused.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct BackendArgs {
    /// Replication backend.
    #[arg(long, value_enum, default_value_t = BackendArg::Raft, help_heading = "Replication")]
    pub backend: BackendArg,
    /// Level 2 of self-recovery: the store only says who aggregates; nothing is written, and a new aggregator starts the job
    /// again.
    #[arg(long, help_heading = "Replication")]
    pub stateless: bool,
    /// How checkpoint bytes travel [default: inline for raft and raft-subset, digest for gossip and backup].
    #[arg(long, value_enum, help_heading = "Replication")]
    pub payload: Option<PayloadArg>,
    /// Detection window: a node that hears nothing from the aggregator suspects it within this span after the last
    /// contact (milliseconds unless a unit is given). With gossip, its middle gives --phi; with backup, it is that of the
    /// first in the order of succession.
    #[arg(long, value_name = "LO-HI", default_value = "1000-2000ms", help_heading = "Replication")]
    pub window: Window,
    /// Interval of the aggregator's signs of life: heartbeats, below half of the window's low end; with gossip the same as
    /// --gossip-interval (milliseconds unless a unit is given) [default: 100ms, 250ms with gossip].
    #[arg(long, value_name = "DURATION", value_parser = values::milliseconds, help_heading = "Replication")]
    pub heartbeat: Option<Span>,
    /// Keep a lifeline (TCP) from every node to the aggregator, whose end tells at once that it crashed. A stopped or unreachable
    /// aggregator is still suspected within --window.
    #[arg(long, help_heading = "Replication")]
    pub fast_failover: bool,
    /// Who aggregates: first (whoever is elected stays), latency (the node with the lowest mean round-trip time to its
    /// peers), suitability (the most suitable one) or rotate:SECONDS (every node in turn). Hands over between two rounds;
    /// a failure still has a new one elected. With raft-subset only voters can aggregate.
    #[arg(long, value_name = "first|latency|suitability|rotate:SECONDS", default_value = "first")]
    #[arg(help_heading = "Replication")]
    pub policy: PolicyArg,
    /// What a node has to offer, in place of what it measures: any of cpu, memory, bandwidth and mains. Repeatable, once
    /// per node; raft-subset, gossip and --policy suitability choose nodes by it.
    #[arg(long, value_name = "NODE:cpu=MB/s,memory=BYTES,bandwidth=BITS,mains=yes|no")]
    #[arg(help_heading = "Replication")]
    pub suitability: Vec<Override>,

    /// How many nodes vote and store, the most suitable ones [default: 3].
    #[arg(long, value_name = "K", help_heading = "Backend raft-subset")]
    pub voters: Option<u32>,
    /// A voter that is away for longer is replaced (seconds unless a unit is given) [default: 10s].
    #[arg(long, value_name = "DURATION", value_parser = values::seconds, help_heading = "Backend raft-subset")]
    pub voter_grace: Option<Span>,

    /// How many nodes, the writer included, hold a checkpoint before it is acknowledged [default: a majority].
    #[arg(long, value_name = "K", help_heading = "Backend gossip")]
    pub holders: Option<u32>,
    /// How often a node gossips (milliseconds unless a unit is given) [default: 250ms].
    #[arg(long, value_name = "DURATION", value_parser = values::milliseconds, help_heading = "Backend gossip")]
    #[arg(conflicts_with = "heartbeat")]
    pub gossip_interval: Option<Span>,
    /// Peers a node gossips with each time [default: 2].
    #[arg(long, value_name = "N", help_heading = "Backend gossip")]
    pub fan_out: Option<u32>,
    /// A node is suspected after a silence of about so many gossip intervals [default: the middle of --window].
    #[arg(long, value_name = "INTERVALS", help_heading = "Backend gossip")]
    pub phi: Option<Thousandths>,
    /// Who suspects a node: phi, as chitchat does, or eventually-perfect, a timeout that begins with --phi intervals and grows
    /// with each suspicion that was false [default: phi].
    #[arg(long, value_enum, help_heading = "Backend gossip")]
    pub detector: Option<DetectorArg>,

    /// How many nodes beside the aggregator hold a checkpoint before it is acknowledged [default: 2].
    #[arg(long, value_name = "K", help_heading = "Backend backup")]
    pub backups: Option<u32>,
}

/// Who suspects nodes under gossip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DetectorArg {
    /// chitchat's phi accrual.
    Phi,
    /// A timeout for each node that grows with each false suspicion.
    EventuallyPerfect,
}

/// An option that concerns only some backends.
struct Special {
    option: &'static str,
    /// Its value, if it was given.
    given: Option<String>,
    of: &'static [Backend],
    why: &'static str,
}

impl BackendArgs {
    /// The store's part of a plan for so many nodes.
    ///
    /// # Errors
    /// An option that does not concern the backend, with its remedy.
    pub(super) fn to_plan(&self, nodes: u64) -> Result<BackendPlan, Usage> {
        let backend = self.kind();
        for special in self.specials() {
            if let (Some(value), false) = (special.given, special.of.contains(&backend)) {
                let allowed = special.of.iter().map(Backend::to_string).collect::<Vec<_>>().join(" or ");
                let wrong = format!("not for --backend {backend}: {}", special.why);
                let remedy = format!("leave it out, or use --backend {allowed}");
                return Err(Usage::option(special.option, value, wrong, remedy));
            }
        }
        Ok(self.effective(nodes))
    }

    fn kind(&self) -> Backend {
        match self.backend {
            BackendArg::None => Backend::None,
            BackendArg::Local => Backend::Local,
            BackendArg::Raft => Backend::Raft,
            BackendArg::RaftSubset => Backend::RaftSubset,
            BackendArg::Gossip => Backend::Gossip,
            BackendArg::Backup => Backend::Backup,
        }
    }

    fn specials(&self) -> [Special; 12] {
        use Backend::{Backup, Gossip, Raft, RaftSubset};
        const ELECTING: &[Backend] = &[Raft, RaftSubset, Gossip, Backup];
        fn special(
            option: &'static str,
            given: Option<String>,
            of: &'static [Backend],
            why: &'static str,
        ) -> Special {
            Special { option, given, of, why }
        }
        let number = |value: Option<u32>| value.map(|value| value.to_string());
        let span = |value: Option<Span>| value.map(|value| value.to_string());
        let unused = self.suitability.first().filter(|_| self.policy.0 != Policy::Suitability);
        let suitability = unused.map(Override::to_string);
        let payload = self.payload.map(word);
        let policy = Some(self.policy).filter(|policy| policy.0 != Policy::First);
        let policy = policy.map(|policy| policy.to_string());
        let stateless = self.stateless.then(String::new);
        [
            special("--payload", payload, ELECTING, "its checkpoints stay where they are written"),
            special("--policy", policy, ELECTING, "nobody takes over from its aggregator"),
            special("--stateless", stateless, ELECTING, "it elects nobody"),
            special(
                "--suitability",
                suitability,
                &[RaftSubset, Gossip],
                "it does not choose nodes by what they have to offer",
            ),
            special("--voters", number(self.voters), &[RaftSubset], "it does not choose who votes"),
            special("--voter-grace", span(self.voter_grace), &[RaftSubset], "it replaces no voters"),
            special("--holders", number(self.holders), &[Gossip], "its guarantee is not a number of holders"),
            special("--gossip-interval", span(self.gossip_interval), &[Gossip], "it does not gossip"),
            special("--fan-out", number(self.fan_out), &[Gossip], "it does not gossip"),
            special("--phi", self.phi.map(|phi| phi.to_string()), &[Gossip], "it suspects within --window"),
            special("--detector", self.detector.map(word), &[Gossip], "it suspects within --window"),
            special("--backups", number(self.backups), &[Backup], "it has no backups"),
        ]
    }

    fn effective(&self, nodes: u64) -> BackendPlan {
        let (window_lo_ns, window_hi_ns) = (nanoseconds(self.window.low), nanoseconds(self.window.high));
        let ns = |span: Option<Span>, default| span.map_or(default, |span| nanoseconds(span.0));
        // A small cluster has fewer nodes than the default asks for.
        let at_most = |default: u32, most: u64| default.min(u32::try_from(most).unwrap_or(u32::MAX));
        let heartbeat_ns = match self.backend {
            BackendArg::Gossip => ns(self.gossip_interval.or(self.heartbeat), DEFAULT_GOSSIP_INTERVAL_NS),
            _ => ns(self.heartbeat, DEFAULT_HEARTBEAT_NS),
        };
        let scheme = match self.backend {
            BackendArg::None => Scheme::None,
            BackendArg::Local => Scheme::Local,
            BackendArg::Raft => Scheme::Raft,
            BackendArg::RaftSubset => Scheme::RaftSubset {
                voters: self.voters.unwrap_or(at_most(DEFAULT_VOTERS, nodes)),
                voter_grace_ns: ns(self.voter_grace, DEFAULT_VOTER_GRACE_NS),
            },
            BackendArg::Gossip => Scheme::Gossip {
                holders: self.holders.unwrap_or(majority_of(nodes as usize) as u32),
                fan_out: self.fan_out.unwrap_or(at_most(DEFAULT_FAN_OUT, nodes - 1)),
                phi_milli: self
                    .phi
                    .map_or_else(|| middle_milli(window_lo_ns, window_hi_ns, heartbeat_ns), |phi| phi.0),
                detector: match self.detector {
                    None | Some(DetectorArg::Phi) => Detector::Phi,
                    Some(DetectorArg::EventuallyPerfect) => Detector::EventuallyPerfect,
                },
            },
            BackendArg::Backup => {
                Scheme::Backup { backups: self.backups.unwrap_or(at_most(DEFAULT_BACKUPS, nodes - 1)) }
            }
        };
        let default = match self.backend {
            BackendArg::None | BackendArg::Local | BackendArg::Raft | BackendArg::RaftSubset => {
                PayloadArg::Inline
            }
            BackendArg::Gossip | BackendArg::Backup => PayloadArg::Digest,
        };
        let payload = match self.payload.unwrap_or(default) {
            PayloadArg::Inline => Payload::Inline,
            PayloadArg::Digest => Payload::Digest,
        };
        BackendPlan {
            scheme,
            payload,
            window_lo_ns,
            window_hi_ns,
            heartbeat_ns,
            fast_failover: self.fast_failover,
        }
    }

    /// Options and values that repeat the store of a trial of so many nodes, every one that concerns the backend.
    pub(super) fn repeat(&self, nodes: u64) -> Vec<(&'static str, String)> {
        let plan = self.effective(nodes);
        let interval = Span::of_ns(plan.heartbeat_ns).to_string();
        let mut options = vec![("backend", word(self.backend)), ("window", self.window.to_string())];
        if plan.backend().elects() {
            options.extend([("payload", plan.payload.to_string()), ("policy", self.policy.to_string())]);
        }
        match plan.scheme {
            Scheme::None | Scheme::Local | Scheme::Raft => options.push(("heartbeat", interval)),
            Scheme::RaftSubset { voters, voter_grace_ns } => options.extend([
                ("heartbeat", interval),
                ("voters", voters.to_string()),
                ("voter-grace", Span::of_ns(voter_grace_ns).to_string()),
            ]),
            Scheme::Gossip { holders, fan_out, phi_milli, detector } => options.extend([
                ("holders", holders.to_string()),
                ("gossip-interval", interval),
                ("fan-out", fan_out.to_string()),
                ("phi", Thousandths(phi_milli).to_string()),
                (
                    "detector",
                    word(match detector {
                        Detector::Phi => DetectorArg::Phi,
                        Detector::EventuallyPerfect => DetectorArg::EventuallyPerfect,
                    }),
                ),
            ]),
            Scheme::Backup { backups } => {
                options.extend([("heartbeat", interval), ("backups", backups.to_string())]);
            }
        }
        options.extend(self.suitability.iter().map(|given| ("suitability", given.to_string())));
        options
    }
}

/// How many thousandths of `interval_ns` the middle of a window is; 0 where there is no interval.
fn middle_milli(low_ns: u64, high_ns: u64, interval_ns: u64) -> u32 {
    let doubled = u128::from(low_ns) + u128::from(high_ns);
    let milli = (doubled * 1000).checked_div(2 * u128::from(interval_ns)).unwrap_or(0);
    u32::try_from(milli).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::convert::tests::parse;
    use super::*;

    fn plan(words: &[&str]) -> BackendPlan {
        parse(words).to_trial(1).unwrap().plan.backend
    }

    fn refused(words: &str) -> String {
        parse(&words.split(' ').collect::<Vec<_>>()).to_trial(1).unwrap_err().to_string()
    }

    #[test]
    fn every_backend_has_defaults_that_fit_it() {
        let raft = plan(&[]);
        assert_eq!((raft.scheme, raft.payload), (Scheme::Raft, Payload::Inline));
        assert_eq!((raft.window_hi_ns, raft.heartbeat_ns), (2_000_000_000, 100_000_000));
        let subset = plan(&["--backend", "raft-subset"]);
        assert_eq!(subset.scheme, Scheme::RaftSubset { voters: 3, voter_grace_ns: 10_000_000_000 });
        assert_eq!(subset.payload, Payload::Inline);
        let gossip = plan(&["--backend", "gossip"]);
        assert_eq!(
            gossip.scheme,
            Scheme::Gossip { holders: 6, fan_out: 2, phi_milli: 6000, detector: Default::default() }
        );
        assert_eq!((gossip.payload, gossip.heartbeat_ns), (Payload::Digest, 250_000_000));
        assert_eq!(gossip.detection_ns().0, 1_500_000_000, "the middle of the window");
        let backup = plan(&["--backend", "backup"]);
        assert_eq!((backup.scheme, backup.payload), (Scheme::Backup { backups: 2 }, Payload::Digest));
        assert_eq!(plan(&["--backend", "local"]).scheme, Scheme::Local);
        for backend in ["none", "local", "raft", "raft-subset", "gossip", "backup"] {
            plan(&["--backend", backend, "--nodes", "2"]);
        }
    }

    #[test]
    fn phi_wins_over_the_window() {
        let gossip = plan(&["--backend", "gossip", "--phi", "8.5", "--gossip-interval", "100"]);
        assert_eq!(gossip.detection_ns(), (850_000_000, 850_000_000));
        let matched = plan(&["--backend", "gossip", "--window", "150-300", "--heartbeat", "30"]);
        assert_eq!((matched.heartbeat_ns, matched.detection_ns().0), (30_000_000, 225_000_000));
        let shifted = plan(&["--backend", "gossip", "--window", "2-3s"]);
        assert_eq!(shifted.detection_ns().0, 2_500_000_000);
    }

    #[test]
    fn options_of_another_backend_are_refused_with_the_remedy() {
        for (words, expected) in [
            (
                "--voters 3",
                "--voters 3: not for --backend raft: it does not choose who votes; leave it out, or use --backend \
                 raft-subset",
            ),
            ("--backend gossip --voter-grace 5", "--voter-grace 5000ms: not for --backend gossip:"),
            ("--backend backup --holders 2", "--holders 2: not for --backend backup:"),
            (
                "--backend raft-subset --phi 6",
                "--phi 6: not for --backend raft-subset: it suspects within --window",
            ),
            ("--backend raft --fan-out 2", "--fan-out 2: not for --backend raft:"),
            ("--backend backup --gossip-interval 250", "--gossip-interval 250ms: not for --backend backup:"),
            ("--backend gossip --backups 1", "--backups 1: not for --backend gossip:"),
            (
                "--backend none --payload digest",
                "--payload digest: not for --backend none: its checkpoints stay",
            ),
            (
                "--backend local --policy latency",
                "--policy latency: not for --backend local: nobody takes over",
            ),
            (
                "--backend local --stateless",
                "--stateless: not for --backend local: it elects nobody; leave it out",
            ),
            (
                "--backend local --durability memory",
                "--durability memory: at level 1 the aggregator goes on from its own disk; use --durability disk, or",
            ),
            (
                "--backend none --durability disk",
                "--durability disk: none keeps its state in memory only; use",
            ),
            (
                "--stateless --profile workers",
                "--stateless with --profile workers: nothing is written at level 2",
            ),
            ("--suitability 1:cpu=5", "--suitability 1:cpu=5: not for --backend raft:"),
            ("--backend gossip --payload inline", "--payload inline: gossip does not carry"),
            ("--backend backup --payload inline", "--payload inline: backup does not carry"),
            ("--backend raft-subset --voters 11", "--voters 11: there are only 10 nodes; use 1 to 10"),
            ("--backend gossip --gossip-interval 0", "--gossip-interval 0ms: below 1ms"),
            ("--backend gossip --gossip-interval 1s", "--phi 1.5: one late sign of life"),
        ] {
            let message = refused(words);
            assert!(message.starts_with(expected), "{words}: {message}");
        }
    }

    #[test]
    fn the_repeating_command_spells_out_every_backend() {
        for words in [
            "--backend raft --heartbeat 90",
            "--backend none --heartbeat 90",
            "--backend local",
            "--backend raft-subset --stateless",
            "--backend raft-subset --voters 5 --voter-grace 1.5s --suitability 2:cpu=5,mains=no",
            "--backend gossip --nodes 7 --holders 2 --detector eventually-perfect --phi 7.25 --suitability 1:memory=9",
            "--backend gossip --window 700-1500 --gossip-interval 300",
            "--backend backup --backups 3 --payload digest --no-reuse",
        ] {
            let args = parse(&words.split(' ').collect::<Vec<_>>());
            let repeat = args.repeat_command(3);
            let again = parse(&repeat[2..].iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(again.to_trial(1).unwrap(), args.to_trial(3).unwrap(), "{repeat:?}");
            assert_eq!(again.repeat_command(3), repeat);
        }
    }
}
