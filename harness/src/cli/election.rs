//! The options of `harness election`: those of a run that concern the store and where nodes are, and what is done to the
//! aggregator.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{Args, FromArgMatches as _, ValueEnum};

use super::convert::word;
use super::{BackendArg, BackendArgs, CaptureArg, PlacementArg, RunArgs};
use crate::election::{Fault, Logs};
use crate::exit::Usage;
use crate::plan::{Roll, Scheme, Trial};

/// What is done to the aggregator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FaultArg {
    /// SIGKILL; the node is started again.
    Kill,
    /// SIGSTOP, until the others agree.
    Stop,
}

/// Whether all survivors have the aggregator's last entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogsArg {
    /// They do.
    Equal,
    /// Only as many as it takes to acknowledge it; the others cannot be elected.
    Unequal,
}

/// `harness election`.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct ElectionArgs {
    /// The store.
    #[command(flatten)]
    pub store: BackendArgs,
    /// Folder of the stores of raft and raft-subset, which have to survive a restart [default: one in /dev/shm, in memory,
    /// for the time of the command].
    #[arg(long = "store", value_name = "DIR", help_heading = "Replication")]
    pub store_dir: Option<PathBuf>,

    /// Number of nodes, 3 to 244.
    #[arg(long, value_name = "N", default_value_t = 5, help_heading = "Elections")]
    pub nodes: u64,
    /// Elections.
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = "Elections")]
    pub trials: u64,
    /// What is done to the aggregator.
    #[arg(long, value_enum, default_value_t = FaultArg::Kill, help_heading = "Elections")]
    pub fault: FaultArg,
    /// Whether all survivors have the aggregator's last entry; raft and raft-subset only.
    #[arg(long, value_enum, default_value_t = LogsArg::Equal, help_heading = "Elections")]
    pub logs: LogsArg,
    /// Seed of the timers and of the moments of the strokes; printed and recorded [default: random].
    #[arg(long, value_name = "N", help_heading = "Elections")]
    pub seed: Option<u64>,

    /// Where nodes run.
    #[arg(long, value_enum, default_value_t = PlacementArg::Process, help_heading = "Placement")]
    pub placement: PlacementArg,
    /// The /24 of the nodes: node i, from 1, gets the address ending in 10+i [default: 127.0.0.0, or 10.0.0.0 with
    /// --placement netns].
    #[arg(long, value_name = "A.B.C.0", help_heading = "Placement")]
    pub network: Option<Ipv4Addr>,
    /// Links between nodes, as for a run [default: as fast as this machine].
    #[arg(long, value_name = "NAME|FILE.toml", help_heading = "Placement")]
    pub link: Option<String>,
    /// Port of the replication plane on every node.
    #[arg(long, value_name = "PORT", default_value_t = 5000, help_heading = "Placement")]
    pub replication_port: u16,

    /// Folder that receives a results folder named after time and host.
    #[arg(long, value_name = "DIR", default_value = "results/election", help_heading = "Output")]
    pub out: PathBuf,
    /// Print the summary as JSON on standard output; progress goes to standard error.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Leave progress out; warnings and the summary stay.
    #[arg(long, help_heading = "Output")]
    pub quiet: bool,
}

/// Fewest nodes of which the others can elect a new aggregator.
const MIN_NODES: u64 = 3;
/// Most elections.
const MAX_TRIALS: u64 = 1_000_000;

impl ElectionArgs {
    /// A run's trial with these options, of which elections take the plan. `random_seed` is used where no seed was given.
    ///
    /// # Errors
    /// The first contradiction, by option, with its remedy.
    pub fn to_trial(&self, random_seed: u64) -> Result<Trial, Usage> {
        if self.nodes < MIN_NODES {
            let wrong = "nobody could be elected when one of them is gone";
            return Err(Usage::option("--nodes", self.nodes, wrong, format!("use {MIN_NODES} or more")));
        }
        if self.placement == PlacementArg::Ssh {
            let wrong = "elections are measured on this machine";
            return Err(Usage::option("--placement", "ssh", wrong, "use process or netns, or `harness run`"));
        }
        if !(1..=MAX_TRIALS).contains(&self.trials) {
            let wrong = "outside of what can be done";
            return Err(Usage::option("--trials", self.trials, wrong, format!("use 1 to {MAX_TRIALS}")));
        }
        if self.logs == LogsArg::Unequal
            && !matches!(self.store.backend, BackendArg::Raft | BackendArg::RaftSubset)
        {
            let wrong = format!("--backend {} has no log", word(self.store.backend));
            return Err(Usage::option("--logs", "unequal", wrong, "use --logs equal, or --backend raft"));
        }
        let trial = self.run_args()?.to_trial(random_seed)?;
        let backend = trial.plan.backend.backend();
        if !backend.elects() {
            return Err(Usage::option("--backend", backend, "it elects nobody", "use for example raft"));
        }
        can_elect(&trial)?;
        Ok(trial)
    }

    /// The options of a run with the same store and nodes.
    fn run_args(&self) -> Result<RunArgs, Usage> {
        let defaults = RunArgs::augment_args(clap::Command::new("run")).try_get_matches_from(["run"]);
        let defaults = defaults.and_then(|defaults| RunArgs::from_arg_matches(&defaults));
        let defaults = defaults.map_err(|error| Usage(error.to_string()))?;
        Ok(RunArgs {
            store: self.store.clone(),
            nodes: Some(self.nodes),
            seed: self.seed,
            // No node has a shard of the data.
            examples_per_node: 1,
            test_examples_per_node: 1,
            batch_size: 1,
            placement: self.placement,
            network: self.network,
            link: self.link.clone(),
            capture: CaptureArg::Off,
            replication_port: self.replication_port,
            out: self.out.clone(),
            json: self.json,
            quiet: self.quiet,
            ..defaults
        })
    }

    /// What is done to the aggregator.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self.fault {
            FaultArg::Kill => Fault::Kill,
            FaultArg::Stop => Fault::Stop,
        }
    }

    /// Whether logs are equal.
    #[must_use]
    pub fn logs(&self) -> Logs {
        match self.logs {
            LogsArg::Equal => Logs::Equal,
            LogsArg::Unequal => Logs::Unequal,
        }
    }

    /// The command that repeats the elections, every option spelled out.
    #[must_use]
    pub fn repeat_command(&self, trial: &Trial) -> Vec<String> {
        let mut words: Vec<String> = ["harness", "election"].map(String::from).to_vec();
        let mut option = |name: &str, value: &dyn std::fmt::Display| {
            words.extend([format!("--{name}"), value.to_string()]);
        };
        for (name, value) in self.store.repeat(self.nodes) {
            option(name, &value);
        }
        if let Some(dir) = &self.store_dir {
            option("store", &dir.display());
        }
        option("nodes", &self.nodes);
        option("trials", &self.trials);
        option("fault", &word(self.fault));
        option("logs", &word(self.logs));
        option("seed", &trial.plan.job.seed);
        option("placement", &word(self.placement));
        if let Some(network) = self.network {
            option("network", &network);
        }
        if let Some(link) = &self.link {
            option("link", link);
        }
        option("replication-port", &self.replication_port);
        option("out", &self.out.display());
        if self.store.fast_failover {
            words.push("--fast-failover".into());
        }
        words
    }
}

/// Whether the others can go on when one node is gone.
fn can_elect(trial: &Trial) -> Result<(), Usage> {
    let plan = &trial.plan;
    let members = plan.nodes();
    let roll = Roll { founders: members.len(), alive: members[1..].to_vec(), members, voters: Vec::new() };
    if let Some(shortfall) = plan.backend.shortfall(&roll) {
        let wrong = format!("when one of them is gone {shortfall}");
        let remedy = "use more, or fewer --backups or --holders";
        return Err(Usage::option("--nodes", plan.members.len(), wrong, remedy));
    }
    if let Scheme::RaftSubset { voters: voters @ 0..3, .. } = plan.backend.scheme {
        let wrong = "the others are no majority when one of them is gone";
        return Err(Usage::option("--voters", voters, wrong, "use 3 or more"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::{Cli, Command};
    use super::*;

    fn parse(words: &[&str]) -> ElectionArgs {
        match Cli::try_parse_from(["harness", "election"].iter().chain(words)).unwrap().command {
            Command::Election(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_repeating_command_describes_the_same_elections() {
        for words in [
            "--backend raft --nodes 7 --trials 9 --window 150-300ms --heartbeat 30ms --logs unequal",
            "--backend gossip --window 150-300 --heartbeat 30 --fault stop --network 127.3.2.0 --fast-failover",
            "--backend raft-subset --store x --link lan --placement netns --replication-port 6000",
        ] {
            let args = parse(&words.split(' ').collect::<Vec<_>>());
            let trial = args.to_trial(42).unwrap();
            let repeat = args.repeat_command(&trial);
            let again = parse(&repeat[2..].iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(again.to_trial(1).unwrap(), trial, "{repeat:?}");
            assert_eq!(again.repeat_command(&trial), repeat);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_remedy() {
        for (words, start) in [
            ("--nodes 2", "--nodes 2: nobody could be elected"),
            ("--trials 0", "--trials 0: outside"),
            ("--backend none", "--backend none: it elects nobody; use"),
            ("--backend backup --nodes 3", "--nodes 3: when one of them is gone too few nodes"),
            ("--backend raft-subset --voters 2", "--voters 2: the others are no majority"),
            ("--backend gossip --logs unequal", "--logs unequal: --backend gossip has no log; use"),
            ("--window 300-150ms", "--window 300ms-150ms:"),
            ("--window 50-100ms --heartbeat 30ms", "--heartbeat 30ms:"),
            ("--backend gossip --voters 3", "--voters 3: not for --backend gossip"),
            ("--network 127.0.0.7", "--network 127.0.0.7:"),
        ] {
            let message = parse(&words.split(' ').collect::<Vec<_>>()).to_trial(1).unwrap_err().to_string();
            assert!(message.starts_with(start), "{words}: {message}");
        }
    }
}
