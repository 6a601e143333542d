//! Faults: how they are written, and ([`Timeline`]) when they strike and end. Pure functions of events, time and a seed;
//! who carries an action out is not known here.
//!
//! A fault is written `KIND@WHO,WHEN[,for:DURATION|,after:DURATION]`, for example `kill@aggregator,round:2` or
//! `restart@all,round:2,after:3s`. `round:N` is the middle of
//! the first round from N on: its `RoundStarted` was seen, and a `FitStarted` of a worker. `random:N` is a moment of
//! round N drawn from the seed, `time:T` a time after the begin of a load that has no rounds. Faults strike in the order given, each once: the next one waits for the one before it to
//! have struck. A [`Change`] is a member that comes or goes, at the same moments. What does not kill ends after its duration, at the latest when the job is over.

mod change;
mod timeline;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use replication::NodeId;
use serde::{Deserialize, Serialize};

pub use change::Change;
pub use timeline::{Action, Planned, Timeline};

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
    /// The power of the host is cut.
    PowerOff,
    /// SIGSTOP, at the end SIGCONT.
    Stop,
    /// No datagram passes between those struck and the others.
    Partition,
    /// Datagrams to and from those struck are lost.
    Loss {
        /// How many of a hundred.
        percent: u8,
    },
    /// What those struck send is lost.
    OmitSend,
    /// What is sent to those struck is lost.
    OmitReceive,
    /// A bit of the frames that those struck send flips, between codec and connection.
    Corrupt {
        /// Of how many of a hundred.
        percent: u8,
    },
    /// What those struck send leaves later.
    Delay {
        /// By so much.
        by_ns: u64,
    },
}

/// Longest delay: beyond it a node would be taken for dead.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// How long a node that is restarted stays away, where the fault does not say it.
const DEFAULT_AFTER_NS: u64 = 1_000_000_000;

impl Kind {
    /// Whether the processes of those struck end.
    #[must_use]
    pub const fn ends_processes(self) -> bool {
        matches!(self, Self::Kill | Self::Restart { .. } | Self::PowerOff)
    }

    /// Whether it is done by the nodes, to what they send.
    #[must_use]
    pub const fn disturbs_links(self) -> bool {
        matches!(
            self,
            Self::Partition
                | Self::Loss { .. }
                | Self::OmitSend
                | Self::OmitReceive
                | Self::Corrupt { .. }
                | Self::Delay { .. }
        )
    }
}

/// Whom a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// The node that leads the round.
    Aggregator,
    /// The first worker that was seen to train in the round.
    Worker,
    /// A node drawn from the seed, of those that are well.
    Random,
    /// The aggregator and others drawn from the seed, together just a majority of all nodes.
    Majority,
    /// The aggregator and others drawn from the seed, together just no majority, nor half, of all nodes.
    Minority,
    /// One node, whatever it does.
    Node(NodeId),
    /// Every node that is well.
    All,
}

impl Who {
    /// How many it can be, of so many nodes.
    #[must_use]
    pub fn most_of(self, nodes: usize) -> usize {
        match self {
            Self::Aggregator | Self::Worker | Self::Random | Self::Node(_) => 1,
            Self::Majority => nodes / 2 + 1,
            Self::Minority => (nodes.saturating_sub(1) / 2).max(1),
            Self::All => nodes,
        }
    }
}

/// When a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// In the middle of the first round from this one on.
    Round(u64),
    /// A share of a round after the start of the first round from this one on. The share is drawn from the seed; a
    /// round is as long as the one before it was.
    Random(u64),
    /// In the middle of a round, once a voter was replaced since the fault before.
    VotersChanged,
    /// So long after the begin of the load, where there are no rounds.
    Time(u64),
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
    /// How long it lasts; none: until the job is over. What is killed stays dead.
    pub lasts_ns: Option<u64>,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill => f.write_str("kill"),
            Self::Restart { .. } => f.write_str("restart"),
            Self::PowerOff => f.write_str("power-off"),
            Self::Stop => f.write_str("stop"),
            Self::Partition => f.write_str("partition"),
            Self::Loss { percent } => write!(f, "loss:{percent}"),
            Self::OmitSend => f.write_str("omit-send"),
            Self::OmitReceive => f.write_str("omit-receive"),
            Self::Corrupt { percent } => write!(f, "corrupt:{percent}"),
            Self::Delay { by_ns } => write!(f, "delay:{}", exact_ms(*by_ns)),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aggregator => f.write_str("aggregator"),
            Self::Worker => f.write_str("worker"),
            Self::Random => f.write_str("random"),
            Self::Majority => f.write_str("majority"),
            Self::Minority => f.write_str("minority"),
            Self::Node(node) => write!(f, "node:{node}"),
            Self::All => f.write_str("all"),
        }
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Round(round) => write!(f, "round:{round}"),
            Self::Random(round) => write!(f, "random:{round}"),
            Self::VotersChanged => f.write_str("voters-changed"),
            Self::Time(ns) => write!(f, "time:{}", exact_ms(*ns)),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{},{}", self.kind, self.who, self.when)?;
        if let Kind::Restart { after_ns } = self.kind {
            write!(f, ",after:{}", exact_ms(after_ns))?;
        }
        self.lasts_ns.map_or(Ok(()), |lasts_ns| write!(f, ",for:{}", exact_ms(lasts_ns)))
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(by) = text.strip_prefix("delay:") {
            let by = parse_duration(by, Bare::Milliseconds)?;
            if by.is_zero() || by > MAX_DELAY {
                return Err(format!("a delay is above 0 and at most {MAX_DELAY:?}, for example delay:40ms"));
            }
            return Ok(Self::Delay { by_ns: nanoseconds(by) });
        }
        if let Some(percent) = text.strip_prefix("corrupt:") {
            return match percent.parse() {
                Ok(percent @ 1..=99) => Ok(Self::Corrupt { percent }),
                _ => Err("use corrupt:P, P from 1 to 99 percent".into()),
            };
        }
        match (text, text.strip_prefix("loss:").map(str::parse)) {
            ("kill", _) => Ok(Self::Kill),
            ("restart", _) => Ok(Self::Restart { after_ns: DEFAULT_AFTER_NS }),
            ("power-off", _) => Ok(Self::PowerOff),
            ("stop", _) => Ok(Self::Stop),
            ("partition", _) => Ok(Self::Partition),
            ("omit-send", _) => Ok(Self::OmitSend),
            ("omit-receive", _) => Ok(Self::OmitReceive),
            (_, Some(Ok(percent @ 1..=99))) => Ok(Self::Loss { percent }),
            _ => Err(format!(
                "unknown kind '{text}'; use kill, restart, power-off, stop, partition, omit-send, omit-receive, loss:P or corrupt:P, P from 1 to 99 percent, or delay:DURATION"
            )),
        }
    }
}

impl FromStr for Who {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("node:").map(str::parse)) {
            ("aggregator", _) => Ok(Self::Aggregator),
            ("worker", _) => Ok(Self::Worker),
            ("random", _) => Ok(Self::Random),
            ("majority", _) => Ok(Self::Majority),
            ("minority", _) => Ok(Self::Minority),
            ("all", _) => Ok(Self::All),
            (_, Some(Ok(node))) => Ok(Self::Node(NodeId(node))),
            _ => Err(format!(
                "unknown node '{text}'; use aggregator, worker, random, majority, minority, node:ID or all"
            )),
        }
    }
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(time) = text.strip_prefix("time:") {
            return Ok(Self::Time(nanoseconds(parse_duration(time, Bare::Seconds)?)));
        }
        let after = |name: &str| text.strip_prefix(name).map(str::parse::<u64>);
        match (text, after("round:"), after("random:")) {
            ("voters-changed", _, _) => Ok(Self::VotersChanged),
            (_, Some(Ok(round @ 1..)), _) => Ok(Self::Round(round)),
            (_, _, Some(Ok(round @ 2..))) => Ok(Self::Random(round)),
            _ => Err(format!(
                "unknown moment '{text}'; use round:N, N from 1, random:N, N from 2, voters-changed, or time:T for a leaderboard"
            )),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "write KIND@WHO,WHEN[,for:DURATION], for example kill@aggregator,round:2";
        let (kind, rest) = text.split_once('@').ok_or(form)?;
        let mut parts = rest.split(',');
        let (who, when) = parts.next().zip(parts.next()).ok_or(form)?;
        let mut fault = Self { kind: kind.parse()?, who: who.parse()?, when: when.parse()?, lasts_ns: None };
        for part in parts {
            if let Some(after) = part.strip_prefix("after:") {
                let Kind::Restart { after_ns } = &mut fault.kind else {
                    return Err("only a restarted node comes back: leave 'after:' out".into());
                };
                *after_ns = nanoseconds(parse_duration(after, Bare::Seconds)?);
                continue;
            }
            let lasts = part.strip_prefix("for:").ok_or(form)?;
            if matches!(fault.kind, Kind::Kill | Kind::PowerOff) {
                return Err("what is killed stays dead: leave 'for:' out".into());
            }
            if matches!(fault.kind, Kind::Restart { .. }) {
                return Err("a restarted node comes back 'after:' a time: leave 'for:' out".into());
            }
            let lasts = parse_duration(lasts, Bare::Seconds)?;
            if lasts.is_zero() {
                return Err("a fault that lasts no time is none: use for example for:3s".into());
            }
            fault.lasts_ns = Some(nanoseconds(lasts));
        }
        Ok(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_and_written_alike() {
        for text in [
            "kill@aggregator,round:2",
            "kill@worker,round:1",
            "kill@node:7,voters-changed",
            "kill@random,random:2",
            "power-off@node:2,round:2",
            "stop@aggregator,round:2,for:2500ms",
            "stop@majority,round:2",
            "partition@minority,random:3,for:4000ms",
            "loss:30@worker,round:1,for:1.5ms",
            "restart@all,round:3,after:1500ms",
            "delay:40ms@aggregator,round:3,for:4000ms",
            "kill@aggregator,time:3000ms",
            "omit-send@aggregator,round:2,for:4000ms",
            "omit-receive@worker,round:2",
            "corrupt:1@all,round:1",
        ] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        let restart: Fault = "restart@worker,round:1".parse().unwrap();
        assert_eq!(restart.to_string(), "restart@worker,round:1,after:1000ms");
        assert_eq!("stop@worker,round:1,for:2".parse::<Fault>().unwrap().lasts_ns, Some(2_000_000_000));
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_words() {
        for (text, expected) in [
            ("", "write KIND@WHO,WHEN"),
            ("kill", "write KIND@WHO,WHEN"),
            ("kill@aggregator", "write KIND@WHO,WHEN"),
            ("kill@aggregator,round:1,until:3", "write KIND@WHO,WHEN"),
            ("explode@worker,round:1", "unknown kind 'explode'"),
            ("loss@worker,round:1", "loss:P"),
            ("loss:0@worker,round:1", "from 1 to 99"),
            ("loss:100@worker,round:1", "from 1 to 99"),
            ("corrupt:0@worker,round:1", "from 1 to 99"),
            ("corrupt:some@worker,round:1", "from 1 to 99"),
            ("delay:0@worker,round:1", "above 0"),
            ("delay:6s@worker,round:1", "at most 5s"),
            ("delay@worker,round:1", "delay:DURATION"),
            ("kill@node:x,round:1", "unknown node"),
            ("kill@worker,round:0", "unknown moment"),
            ("kill@worker,random:1", "N from 2"),
            ("kill@worker,time:soon", "not a duration"),
            ("kill@worker,round:1,for:2s", "stays dead"),
            ("power-off@worker,round:1,for:2s", "stays dead"),
            ("kill@worker,round:1,after:2s", "comes back"),
            ("restart@worker,round:1,for:2s", "'after:'"),
            ("restart@worker,round:1,after:soon", "not a duration"),
            ("stop@worker,round:1,for:0", "lasts no time"),
            ("stop@worker,round:1,for:soon", "not a duration"),
        ] {
            let error = text.parse::<Fault>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
    proptest::proptest! {
        #[test]
        fn what_is_read_is_written_alike(
            text in "(kill|stop|restart|loss:[0-9]{1,2}|delay:[0-9.]{1,4}(ms)?)@(all|worker|node:[0-9]),(round:[0-9]|random:[0-9]|time:[0-9.]{1,3}s?)(,(for|after):[0-9.]{1,3}(s|ms|m)?)?",
        ) {
            match text.parse::<Fault>() {
                Ok(fault) => proptest::prop_assert_eq!(fault.to_string().parse(), Ok(fault)),
                Err(reason) => proptest::prop_assert!(!reason.is_empty()),
            }
        }
    }
}
