//! The command line: its types, and (in `convert`) their conversion to a validated plan. Nothing is started here.

mod backend;
mod convert;
mod election;
mod experiment;
mod kv;
mod resume;
mod run;
mod values;
mod watch;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use replication::NodeId;

use crate::exit::Usage;
use crate::kv::prompt::Action;

pub use backend::{BackendArg, BackendArgs, DetectorArg, PayloadArg};
pub use convert::{shell_line, shell_words};
pub use election::{ElectionArgs, FaultArg, LogsArg};
pub use experiment::{ExperimentCommand, ExperimentRunArgs, ExperimentShowArgs, run_options};
pub use kv::{DeliveryArg, KeysArg, KvArgs as KvOptions, ReadsArg, WorkloadArg};
pub use run::RunArgs;
pub use values::{PartitionArg, PolicyArg, Size, Span, Thousandths, Window};
pub use watch::WatchArgs;

/// Runs, breaks and measures replicated federated-learning jobs.
///
/// Ten nodes train a small network together; the state of the training is replicated, so that another node can go on
/// when the one that leads dies. `harness run` starts them all on this machine and writes down what happened.
#[derive(Debug, Parser)]
#[command(name = "harness", version, propagate_version = true, max_term_width = 110)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 bad input, 3 too few nodes left, 130 SIGINT, 143 SIGTERM.\n\
    Every file and column of a results folder is explained in docs/RESULTS.md."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one federated job over a replicated checkpoint store.
    Run(Box<RunArgs>),
    /// Run many trials that a file spells out: shipped experiments, or your own.
    Experiment {
        /// What to do with experiments.
        #[command(subcommand)]
        command: ExperimentCommand,
    },
    /// Strike the aggregator of a warm cluster again and again, and measure the elections.
    ///
    /// Nodes keep their stores and do nothing else. A node that was killed is started again; the next trial begins once the
    /// cluster is whole. Writes a row for each trial as it ends; Ctrl-C ends it with what there is.
    Election(Box<ElectionArgs>),
    /// Make a new cluster from a survivor's store, when the majority of nodes is gone for good.
    ///
    /// Shows what the store holds. With --accept-loss it writes stores for a new cluster that begins with that; continue
    /// with `harness run --resume RESULTS_DIR --store DIR`. What was acknowledged without the survivor is lost.
    Recover(RecoverArgs),
    /// Start a node on this host and stand between it and its controller, at the other end of ssh.
    #[command(hide = true)]
    Tend,
    /// Be a node: controlled over stdin and stdout, started by `run`.
    #[command(hide = true)]
    Node,
    /// Check the hosts of an inventory: reachable, same program, ports free, clocks, capabilities, memory and disk.
    ///
    /// Connects to each over ssh with your own configuration and keys, and says what to do about what is not in order. Exit
    /// code 1 if anything would keep a run from working. docs/BOARDS.md explains the inventory.
    Doctor(DoctorArgs),
    /// Answer questions about this host over stdin and stdout, asked by `doctor`.
    #[command(hide = true)]
    Probe,
    /// Count the packets of an interface by port, direction and second, until Ctrl-C; needs root or CAP_NET_RAW.
    ///
    /// UDP and TCP over IPv4 and IPv6, fragments included; bytes at IP level, headers included. On a loopback interface
    /// every packet is counted once, as it leaves. Counts are exact when the interface's offloads are off (ethtool -K NAME tso
    /// off gso off gro off); if they are on, it says so.
    Capture(CaptureArgs),
    /// Make a page, figures and tables of recorded results.
    ///
    /// One HTML page that needs nothing else (index.html), each figure as SVG and PNG, and the same in Markdown (report.md).
    /// Single runs are reported together as one experiment; experiments and elections may be given together. The same files give
    /// the same report, byte for byte.
    Report(ReportArgs),
    /// Compare two results folders of the same kind, cell by cell.
    ///
    /// Medians, their ratio with a bootstrap interval, and which differences are real: those whose interval leaves 1 out. The
    /// intervals are widened for the number of comparisons (Bonferroni, 5 % over all of them).
    Compare(CompareArgs),
    /// See, make or download the training data.
    Data {
        /// What to do with the data.
        #[command(subcommand)]
        command: DataCommand,
    },
    /// Use and administer the cluster of a key-value run while it runs; without a command, a prompt.
    Kv(KvArgs),
    /// A leaderboard: votes over HTTP on every node, behind a load balancer.
    Leaderboard {
        /// What to do with it.
        #[command(subcommand)]
        command: LeaderboardCommand,
    },
    /// See how the nodes of a running cluster are: role, epoch, round, age of the checkpoint, bytes per second, suspicion, latencies.
    ///
    /// For runs that were started with --metrics. On a terminal the view is brought up to date until Ctrl-C; elsewhere it is printed
    /// once. A node that does not answer is a line that says so; exit code 1 if none does.
    Watch(WatchArgs),
    /// Print a completion script for a shell.
    ///
    /// For example: harness completions bash > ~/.local/share/bash-completion/completions/harness
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// `harness kv`.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct KvArgs {
    /// The file that `harness run --workload kv --cluster FILE` writes while it runs.
    #[arg(long, value_name = "FILE", global = true, required = false, default_value = "cluster.json")]
    pub cluster: PathBuf,
    /// How long a command may take (seconds unless a unit is given).
    #[arg(long, value_name = "DURATION", value_parser = values::seconds, default_value = "10s", global = true)]
    pub timeout: Span,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<KvCommand>,
}

/// The commands of `harness kv`.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum KvCommand {
    /// Print the value of a key.
    Get {
        /// The key, at most 1024 bytes.
        key: String,
    },
    /// Give a key a value.
    Set {
        /// The key, at most 1024 bytes.
        key: String,
        /// The value, at most 65536 bytes.
        value: String,
    },
    /// Remove a key.
    Delete {
        /// The key.
        key: String,
    },
    /// Print every entry.
    Show,
    /// Print how every node is: role, term, leader, commit index, members, and what it did in the last 10 seconds.
    Status,
    /// Print the newest commands that a node has applied: index, term, command.
    Log {
        /// How many, at most 256.
        #[arg(long, value_name = "N", default_value_t = crate::kv::prompt::LOG_LINES)]
        lines: u32,
        /// Of which node [default: the one that leads].
        #[arg(long, value_name = "ID")]
        node: Option<u64>,
    },
    /// Have one more node started, which joins the cluster (raft).
    AddNode,
    /// Have a node leave the cluster for good, and end.
    RemoveNode {
        /// The node.
        node: u64,
    },
    /// Run the clients of the test that the cluster is configured for on this host, and print what they saw.
    Load {
        /// How many, 1 to 1024 [default: as the cluster is configured].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(workloads::keyvalue::load::MAX_CLIENTS)))]
        clients: Option<u32>,
    },
}

impl KvCommand {
    /// The command as one of the prompt's; none: run the test's clients.
    ///
    /// # Errors
    /// A key or value over its limit.
    pub fn action(&self) -> Result<Option<Action>, Usage> {
        let action = match self.clone() {
            Self::Get { key } => Action::Get(key),
            Self::Set { key, value } => Action::Set(key, value),
            Self::Delete { key } => Action::Delete(key),
            Self::Show => Action::Show,
            Self::Status => Action::Status,
            Self::Log { lines, node } => Action::Log { node: node.map(NodeId), lines },
            Self::AddNode => Action::AddNode,
            Self::RemoveNode { node } => Action::RemoveNode(NodeId(node)),
            Self::Load { .. } => return Ok(None),
        };
        action.check().map_err(|error| Usage(format!("harness kv: {error}; use a shorter one")))?;
        Ok(Some(action))
    }
}

/// `harness leaderboard`.
#[derive(Debug, Subcommand)]
pub enum LeaderboardCommand {
    /// Serve a leaderboard on this machine until Ctrl-C, to try it: 3 nodes, for a day, unless options say otherwise.
    ///
    /// The options are those of `harness run`. Without --balancer, HAProxy stands in front if it is installed. The addresses are
    /// printed; open one in a browser.
    Serve(Box<RunArgs>),
}

/// `harness recover`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct RecoverArgs {
    /// The survivor's store (node-N.redb), or a folder of stores or results, of which the store that has seen most is taken.
    #[arg(long, value_name = "DIR|FILE")]
    pub from: PathBuf,
    /// Write the new cluster's stores, although what was acknowledged without the survivor is lost.
    #[arg(long, requires = "to")]
    pub accept_loss: bool,
    /// New folder that receives the new cluster's stores.
    #[arg(long, value_name = "DIR", requires = "accept_loss")]
    pub to: Option<PathBuf>,
}

/// `harness doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct DoctorArgs {
    /// Ansible inventory: YAML if its name ends in .yml or .yaml, otherwise INI.
    #[arg(long, value_name = "FILE")]
    pub inventory: PathBuf,
    /// Only the hosts of this group [default: all].
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,
    /// Configuration of ssh [default: ssh's own].
    #[arg(long, value_name = "FILE")]
    pub ssh_config: Option<PathBuf>,
    /// Where the data is on every host, if runs are to use it. Whose shard it is, is checked when a run begins.
    #[arg(long, value_name = "DIR|ARCHIVE")]
    pub data: Option<PathBuf>,
    /// Engine that runs are to use.
    #[arg(long, value_name = "NAME", default_value = "candle")]
    pub engine: EngineArg,
    /// UDP port of the learning plane on every node.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub learning_port: u16,
    /// UDP port of the replication plane on every node.
    #[arg(long, value_name = "PORT", default_value_t = 5000)]
    pub replication_port: u16,
}

/// `harness report`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ReportArgs {
    /// Results folders: runs, or experiments and elections.
    #[arg(value_name = "DIR", required = true)]
    pub dirs: Vec<PathBuf>,
    /// Folder of the report; an earlier report in it is replaced [default: the folder report in DIR, or results/report if there
    /// are several].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Also write the summary tables into this file, between its lines `<!-- harness report -->` and
    /// `<!-- end of harness report -->`.
    #[arg(long, value_name = "FILE")]
    pub splice: Option<PathBuf>,
}

/// `harness compare`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct CompareArgs {
    /// The folder that is compared with.
    #[arg(value_name = "A")]
    pub a: PathBuf,
    /// The folder that is compared.
    #[arg(value_name = "B")]
    pub b: PathBuf,
    /// A factor in which cells may differ and still match, for example backend (then options that only one backend has may
    /// differ, too). Repeatable.
    #[arg(long, value_name = "FACTOR")]
    pub across: Vec<String>,
    /// Print the comparison as JSON, in raw integers.
    #[arg(long)]
    pub json: bool,
}

/// `harness data`.
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Show which files of CIFAR-10 are there and whether they are complete.
    ///
    /// Exit code 1 if a file is missing or has the wrong size.
    Status {
        /// Folder that holds the batch files or cifar-10-batches-bin, or the .tar.gz archive.
        dir: PathBuf,
    },
    /// Cut CIFAR-10 into an archive for each node, with the images of its own shard only, for boards.
    ///
    /// The same --nodes, --seed, --partition and numbers of examples as in the run that uses them: an archive is of no use to
    /// another one.
    Shards {
        /// Folder that receives node-1.tar.gz, node-2.tar.gz, ...
        dir: PathBuf,
        /// CIFAR-10: a folder or the .tar.gz archive.
        #[arg(long, value_name = "DIR|ARCHIVE")]
        from: PathBuf,
        /// Number of nodes, those that join later included.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=244))]
        nodes: u64,
        /// Seed of the run.
        #[arg(long, value_name = "N")]
        seed: u64,
        /// As in the run.
        #[arg(long, value_name = "iid|dirichlet:ALPHA", default_value = "iid")]
        partition: PartitionArg,
        /// Training examples of each worker.
        #[arg(long, value_name = "N", default_value_t = 1000)]
        examples_per_node: u32,
        /// Test examples of each worker.
        #[arg(long, value_name = "N", default_value_t = 200)]
        test_examples_per_node: u32,
    },
    /// Write the built-in synthetic set in CIFAR-10's binary layout (185 MB).
    Synthesize {
        /// Folder that receives cifar-10-batches-bin.
        dir: PathBuf,
    },
    /// Download CIFAR-10 (170 MB), check it, and unpack it.
    ///
    /// Nothing gets its final name before the SHA-256 of the archive is right.
    Fetch {
        /// Folder that receives cifar-10-batches-bin.
        dir: PathBuf,
        /// Address of the archive, http or https.
        #[arg(long, value_name = "URL", default_value = crate::data::OFFICIAL_URL)]
        url: String,
        /// SHA-256 that the archive must have, 64 hexadecimal digits.
        #[arg(long, value_name = "HEX", default_value = crate::data::OFFICIAL_SHA256)]
        sha256: String,
        /// Show no progress, only errors.
        #[arg(long)]
        quiet: bool,
    },
}

/// What is written to the store in each round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProfileArg {
    /// The averaged parameters, once a round.
    Once,
    /// Global parameters at three points of each round, as in the paper.
    Paper,
    /// As the paper's prototype: one write per tensor, and workers write what they received.
    Prototype,
    /// As once, plus every worker's own parameters: level 4 of self-recovery, a worker that is started again has them back.
    Workers,
}

/// Who computes the gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineArg {
    /// Pure Rust.
    Candle,
    /// libtorch; needs a binary built with the feature torch.
    Torch,
    /// None: updates of --parameter-bytes are drawn, sent and averaged, and nothing is learned. Options of training and data
    /// have no effect.
    None,
}

/// Whether what nodes store survives their end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DurabilityArg {
    /// In memory: a node that ends is lost.
    Memory,
    /// On disk before it is acknowledged: a node can be started again.
    Disk,
}

/// Where nodes run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlacementArg {
    /// Child processes on this machine, at loopback addresses.
    Process,
    /// Child processes on this machine, each in a network namespace of its own; needs root.
    Netns,
    /// Each on a host of --inventory, reached over ssh.
    Ssh,
}

/// Whether nodes capture their packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CaptureArg {
    /// No: traffic is what the transport counts.
    Off,
    /// With --placement netns; otherwise traffic is what the transport counts, and is marked as such.
    Auto,
    /// Yes, or nothing is run.
    Required,
}

/// `harness capture`.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct CaptureArgs {
    /// The interface.
    #[arg(long, value_name = "NAME")]
    pub interface: String,
    /// A port to count, 1 to 65535: packets that go to it or come from it. Repeatable, at most 64.
    #[arg(long = "port", value_name = "PORT", required = true)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub ports: Vec<u16>,
    /// End after this time (seconds unless a unit is given) [default: at Ctrl-C].
    #[arg(long, value_name = "DURATION", value_parser = values::seconds)]
    pub duration: Option<Span>,
    /// File that receives a row per second, port and direction; must not exist yet.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Print no table while it counts, only the totals at the end.
    #[arg(long)]
    pub quiet: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_is_documented() {
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
        }
    }
}
