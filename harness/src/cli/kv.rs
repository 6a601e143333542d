//! Options of the key-value workload, and their conversion to its part of a plan.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use workloads::keyvalue::Freshness;
use workloads::keyvalue::load::{Keys, Load};

use super::convert::word;
use super::values::{self, Span};
use crate::exit::Usage;
use crate::kv::leaderboard::DEFAULT_RATE;
use crate::kv::plan::{Balancer, BoardPlan, Disturbance, Disturbances, KvPlan, Peer};
use crate::plan::Backend;
use crate::units::nanoseconds;

/// What runs over the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum WorkloadArg {
    /// Federated learning: few large checkpoints.
    #[default]
    Federated,
    /// A replicated dictionary under a load of small operations.
    Kv,
    /// A leaderboard: votes over HTTP, behind a load balancer. Its options are those of kv that concern it.
    Leaderboard,
}

/// How new reads have to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReadsArg {
    /// Linearizable: the aggregator asks a majority first.
    Index,
    /// Linearizable as long as clocks run alike: by the aggregator's lease.
    Lease,
    /// From any node's own copy; may be stale.
    Local,
}

impl ReadsArg {
    const fn freshness(self) -> Freshness {
        match self {
            Self::Index => Freshness::Index,
            Self::Lease => Freshness::Lease,
            Self::Local => Freshness::Local,
        }
    }
}

/// How often a write that is repeated may be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeliveryArg {
    /// Once.
    ExactlyOnce,
    /// As often as it arrives.
    AtLeastOnce,
}

/// Which keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KeysArg(pub Keys);

impl FromStr for KeysArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "uniform" {
            return Ok(Self(Keys::Uniform));
        }
        let exponent = text.strip_prefix("zipf:").and_then(|exponent| exponent.parse().ok());
        let exponent = exponent.ok_or("use uniform or zipf:S, S a number, for example zipf:0.99")?;
        Ok(Self(Keys::Zipf { exponent }))
    }
}

impl fmt::Display for KeysArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Keys::Uniform => f.write_str("uniform"),
            Keys::Zipf { exponent } => write!(f, "zipf:{exponent}"),
        }
    }
}

/// Options of `harness run --workload kv`. None is given a default here, so that one without the workload is noticed.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct KvArgs {
    /// What runs over the store. With kv and leaderboard, options of the federated job have no effect.
    #[arg(long, value_enum, default_value_t = WorkloadArg::Federated, help_heading = "Job")]
    pub workload: WorkloadArg,
    /// Have another system serve in place of this suite's nodes, for comparison: etcd, from the PATH, without TLS, its data in the
    /// folder store of the results. Options of the store have no effect then.
    #[arg(long, value_enum, value_name = "NAME", help_heading = "Backend of others")]
    pub peer: Option<Peer>,
    /// Clients, each with a connection of its own, 0 to 1024; 0: serve only, until it is ended [default: 64; of a leaderboard 1, as each vote has
    /// a connection of its own].
    #[arg(long, value_name = "N", help_heading = "Workload kv")]
    pub clients: Option<u32>,
    /// Entries of the dictionary; players of a leaderboard [default: 1000; 20].
    #[arg(long, value_name = "N", help_heading = "Workload kv")]
    pub entries: Option<u32>,
    /// Bytes of a value, 16 to 65536 [default: 100].
    #[arg(long, value_name = "BYTES", help_heading = "Workload kv")]
    pub value_size: Option<u32>,
    /// Share of operations that read, 0 to 1 [default: 0.5].
    #[arg(long, value_name = "SHARE", help_heading = "Workload kv")]
    pub read_ratio: Option<f64>,
    /// Share of operations that delete, 0 to 1 [default: 0].
    #[arg(long, value_name = "SHARE", help_heading = "Workload kv")]
    pub delete_ratio: Option<f64>,
    /// Which keys: uniform, or zipf:S for chances that fall with the rank to the power of -S [default: uniform].
    #[arg(long, value_name = "uniform|zipf:S", help_heading = "Workload kv")]
    pub keys: Option<KeysArg>,
    /// Operations per second of all clients together (open loop) [default: a client's next one follows its last (closed
    /// loop); of a leaderboard 200].
    #[arg(long, value_name = "PER_SECOND", help_heading = "Workload kv")]
    pub rate: Option<f64>,
    /// How long clients begin operations (seconds unless a unit is given) [default: 10s].
    #[arg(long, value_name = "DURATION", value_parser = values::seconds, help_heading = "Workload kv")]
    pub duration: Option<Span>,
    /// How new reads have to be [default: index with raft and raft-subset, else local].
    #[arg(long, value_enum, help_heading = "Workload kv")]
    pub reads: Option<ReadsArg>,
    /// Whether a write that is repeated is applied once [default: exactly-once].
    #[arg(long, value_enum, help_heading = "Workload kv")]
    pub delivery: Option<DeliveryArg>,
    /// How long an operation may take before its outcome counts as unknown (seconds unless a unit is given) [default: 5s].
    #[arg(long, value_name = "DURATION", value_parser = values::seconds, help_heading = "Workload kv")]
    pub operation_timeout: Option<Span>,
    /// How stale reads may be where they are not linearizable (seconds unless a unit is given) [default: 2s].
    #[arg(long, value_name = "DURATION", value_parser = values::seconds, help_heading = "Workload kv")]
    pub staleness: Option<Span>,
    /// Disturb a node drawn from the seed now and then: kill (and start it again; needs --durability disk), stop or
    /// partition. Repeatable; each time one of those given is drawn.
    #[arg(long, value_enum, value_name = "KIND", help_heading = "Workload kv")]
    pub disturb: Vec<Disturbance>,
    /// From one disturbance to the next (seconds unless a unit is given) [default: 10s].
    #[arg(long, value_name = "DURATION", value_parser = values::seconds, help_heading = "Workload kv")]
    pub disturb_every: Option<Span>,
    /// How long each lasts (seconds unless a unit is given) [default: 3s].
    #[arg(long, value_name = "DURATION", value_parser = values::seconds, help_heading = "Workload kv")]
    pub disturb_for: Option<Span>,
    /// What stands in front of a leaderboard's nodes, at host 254 of their network, port 8000 [default: haproxy].
    #[arg(long, value_enum, help_heading = "Workload leaderboard")]
    pub balancer: Option<Balancer>,
    /// File that receives what `harness kv --cluster FILE` needs, while the run lasts. It holds a private key.
    #[arg(long = "cluster", value_name = "FILE", help_heading = "Workload kv")]
    pub cluster_file: Option<PathBuf>,
}

/// Options of the key-value workload without a meaning for a leaderboard. Its faults are those of --fault.
const NOT_OF_A_LEADERBOARD: [&str; 12] = [
    "peer",
    "value-size",
    "read-ratio",
    "delete-ratio",
    "keys",
    "reads",
    "delivery",
    "staleness",
    "disturb",
    "disturb-every",
    "disturb-for",
    "cluster",
];

impl KvArgs {
    /// The workload's part of a plan; none: another workload.
    ///
    /// # Errors
    /// An option without the workload, or one out of its range.
    pub(super) fn to_plan(&self, backend: Backend, seed: u64) -> Result<Option<KvPlan>, Usage> {
        let foreign = |option: &&(&str, String)| match self.workload {
            WorkloadArg::Federated => true,
            WorkloadArg::Kv => option.0 == "balancer",
            WorkloadArg::Leaderboard => NOT_OF_A_LEADERBOARD.contains(&option.0),
        };
        if let Some((option, value)) = self.given().iter().find(foreign) {
            let (wrong, remedy) = match self.workload {
                WorkloadArg::Federated => {
                    ("it concerns the key-value workload", "add --workload kv, or leave it out")
                }
                WorkloadArg::Kv => {
                    ("only a leaderboard has one", "use --workload leaderboard, or leave it out")
                }
                WorkloadArg::Leaderboard => ("it does not concern a leaderboard", "leave it out"),
            };
            return Err(Usage::option(&format!("--{option}"), value, wrong, remedy));
        }
        if self.workload == WorkloadArg::Federated {
            return Ok(None);
        }
        let plan = self.effective(backend, seed);
        plan.validate()?;
        if let (Some(peer), Some(file)) = (self.peer, &self.cluster_file) {
            let wrong = format!("{} has no such credentials", peer.name());
            return Err(Usage::option("--cluster", file.display(), wrong, "leave it out"));
        }
        Ok(Some(plan))
    }

    fn effective(&self, backend: Backend, seed: u64) -> KvPlan {
        let ns = |span: Option<Span>, default| {
            nanoseconds(span.map_or(Duration::from_secs(default), |span| span.0))
        };
        let board = (self.workload == WorkloadArg::Leaderboard)
            .then(|| BoardPlan { balancer: self.balancer.unwrap_or(Balancer::Haproxy) });
        let (clients, entries) = if board.is_some() { (1, 20) } else { (64, 1000) };
        let load = Load {
            clients: self.clients.unwrap_or(clients),
            entries: self.entries.unwrap_or(entries),
            value_bytes: self.value_size.unwrap_or(100),
            read_ratio: self.read_ratio.unwrap_or(0.5),
            delete_ratio: self.delete_ratio.unwrap_or(0.0),
            keys: self.keys.map_or(Keys::Uniform, |keys| keys.0),
            rate: self.rate.or(board.map(|_| DEFAULT_RATE)),
            duration_ns: ns(self.duration, 10),
            patience_ns: ns(self.operation_timeout, 5),
            freshness: self.effective_reads(backend).freshness(),
            exactly_once: self.delivery != Some(DeliveryArg::AtLeastOnce),
            seed,
        };
        let disturbances = Disturbances {
            kinds: self.disturb.clone(),
            every_ns: ns(self.disturb_every, 10),
            lasts_ns: ns(self.disturb_for, 3),
        };
        KvPlan { load, peer: self.peer, board, staleness_ns: ns(self.staleness, 2), disturbances }
    }

    fn effective_reads(&self, backend: Backend) -> ReadsArg {
        self.reads.unwrap_or(match backend {
            Backend::Raft | Backend::RaftSubset => ReadsArg::Index,
            _ if self.peer.is_some() => ReadsArg::Index,
            _ => ReadsArg::Local,
        })
    }

    /// Options of the workload that were given, with their values.
    fn given(&self) -> Vec<(&'static str, String)> {
        fn text<T: fmt::Display>(name: &'static str, value: Option<&T>) -> Option<(&'static str, String)> {
            value.map(|value| (name, value.to_string()))
        }
        let file = self.cluster_file.as_ref().map(|file| file.display().to_string());
        [
            self.peer.map(|peer| ("peer", word(peer))),
            text("clients", self.clients.as_ref()),
            text("entries", self.entries.as_ref()),
            text("value-size", self.value_size.as_ref()),
            text("read-ratio", self.read_ratio.as_ref()),
            text("delete-ratio", self.delete_ratio.as_ref()),
            text("keys", self.keys.as_ref()),
            text("rate", self.rate.as_ref()),
            text("duration", self.duration.as_ref()),
            self.reads.map(|reads| ("reads", word(reads))),
            self.delivery.map(|delivery| ("delivery", word(delivery))),
            text("operation-timeout", self.operation_timeout.as_ref()),
            text("staleness", self.staleness.as_ref()),
            self.disturb.first().map(|kind| ("disturb", word(*kind))),
            text("disturb-every", self.disturb_every.as_ref()),
            text("disturb-for", self.disturb_for.as_ref()),
            self.balancer.map(|balancer| ("balancer", word(balancer))),
            text("cluster", file.as_ref()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Options and values that repeat the workload of a trial, every one spelled out.
    pub(super) fn repeat(&self, backend: Backend, seed: u64) -> Vec<(&'static str, String)> {
        if self.workload == WorkloadArg::Federated {
            return Vec::new();
        }
        let KvPlan { load, peer, board, staleness_ns, disturbances } = self.effective(backend, seed);
        let span = |ns| Span::of_ns(ns).to_string();
        let mut options = vec![
            ("workload", word(self.workload)),
            ("clients", load.clients.to_string()),
            ("entries", load.entries.to_string()),
            ("value-size", load.value_bytes.to_string()),
            ("read-ratio", load.read_ratio.to_string()),
            ("delete-ratio", load.delete_ratio.to_string()),
            ("keys", KeysArg(load.keys).to_string()),
            ("duration", span(load.duration_ns)),
            ("reads", word(self.effective_reads(backend))),
            ("delivery", word(self.delivery.unwrap_or(DeliveryArg::ExactlyOnce))),
            ("operation-timeout", span(load.patience_ns)),
            ("staleness", span(staleness_ns)),
            ("disturb-every", span(disturbances.every_ns)),
            ("disturb-for", span(disturbances.lasts_ns)),
        ];
        options.extend(board.map(|board| ("balancer", word(board.balancer))));
        if board.is_some() {
            options.retain(|(option, _)| !NOT_OF_A_LEADERBOARD.contains(option));
        }
        options.extend(peer.map(|peer| ("peer", word(peer))));
        options.extend(load.rate.map(|rate| ("rate", rate.to_string())));
        options.extend(disturbances.kinds.iter().map(|kind| ("disturb", word(*kind))));
        options
    }
}

#[cfg(test)]
mod tests {
    use super::super::convert::tests::parse;

    fn refused(words: &str) -> String {
        parse(&words.split(' ').collect::<Vec<_>>()).to_trial(1).unwrap_err().to_string()
    }

    #[test]
    fn the_workload_s_options_need_the_workload() {
        assert!(refused("--clients 4").starts_with("--clients 4: it concerns the key-value workload"));
        assert!(parse(&["--workload", "kv", "--clients", "4"]).to_trial(1).unwrap().plan.kv.is_some());
    }

    #[test]
    fn bad_values_are_named_by_option() {
        for (words, start) in [
            ("--clients 1025", "--clients 1025: must be from 0 to 1024"),
            ("--value-size 8", "--value-size 8: must be from 16 to 65536"),
            ("--read-ratio 1.5", "--read-ratio 1.5: must be from 0 to 1"),
            ("--rate 0", "--rate 0: must be above 0"),
            ("--disturb stop --disturb-for 10 --disturb-every 10", "--disturb-for"),
            ("--disturb kill", "--disturb kill: "),
            ("--peer etcd --disturb stop", "--peer etcd: its members are not disturbed"),
            ("--peer etcd --reads lease", "--peer etcd: it is only asked for linearizable reads"),
            ("--peer etcd --clients 0", "--peer etcd: it is only asked by"),
            ("--peer etcd --cluster file", "--cluster file: etcd has no such credentials"),
            ("--placement netns --network 10.0.0.0", "--placement netns: "),
            ("--fault kill@aggregator,round:1", "--fault kill@aggregator,round:1: "),
            ("--balancer none", "--balancer none: only a leaderboard has one"),
        ] {
            let message = refused(&format!("--workload kv {words}"));
            assert!(message.starts_with(start), "{words}: {message}");
        }
    }

    #[test]
    fn a_leaderboard_has_options_of_its_own() {
        for (words, start) in [
            ("--reads local", "--reads local: it does not concern a leaderboard"),
            ("--disturb kill", "--disturb kill: it does not concern a leaderboard"),
            ("--rate 0", "--rate 0: must be above 0"),
            ("--rate 2000", "--duration 10000ms: 20000 votes; nodes remember 16384"),
            (
                "--fault kill@aggregator,round:1",
                "--fault kill@aggregator,round:1: not for --workload leaderboard",
            ),
            ("--fault kill@aggregator,time:10s", "--fault kill@aggregator,time:10000ms: the load is over"),
            (
                "--fault restart@node:1,time:1s",
                "--fault restart@node:1,time:1000ms,after:1000ms: a node that lost",
            ),
            ("--placement netns --network 10.0.0.0", "--placement netns: "),
        ] {
            let message = refused(&format!("--workload leaderboard --nodes 3 {words}"));
            assert!(message.starts_with(start), "{words}: {message}");
        }
        let words = "--workload leaderboard --nodes 3 --rate 50 --balancer none --fault kill@aggregator,time:2s --seed 4";
        let args = parse(&words.split_whitespace().collect::<Vec<_>>());
        let words = args.repeat_command(4);
        let again = parse(&words[2..].iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(again.to_trial(1).unwrap(), args.to_trial(4).unwrap());
        assert!(refused("--fault kill@aggregator,time:2s").contains("a federated job has rounds"));
    }

    #[test]
    fn the_repeating_command_describes_the_same_load() {
        let words = "--workload kv --nodes 5 --durability disk --clients 3 --rate 100 --keys zipf:0.9 --duration 2 \
            --disturb stop --disturb kill --reads lease --delete-ratio 0.1 --backend raft";
        let args = parse(&words.split_whitespace().collect::<Vec<_>>());
        let words = args.repeat_command(99);
        let again = parse(&words[2..].iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(again.to_trial(1).unwrap(), args.to_trial(99).unwrap());
    }
}
