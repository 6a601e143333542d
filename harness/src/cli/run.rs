//! Options of `harness run`, which experiments and resumed runs read, too.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::Args;

use super::backend::BackendArgs;
use super::kv::KvArgs as KvOptions;
use super::values::{self, PartitionArg, Size, Span};
use super::{CaptureArg, DurabilityArg, EngineArg, PlacementArg, ProfileArg};
use crate::fault::{Change, Fault};
use crate::plan::MetricsAt;

/// `harness run`.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct RunArgs {
    /// The store.
    #[command(flatten)]
    pub store: BackendArgs,
    /// The key-value workload.
    #[command(flatten)]
    pub kv: KvOptions,
    /// What is written to the store in each round.
    #[arg(long, value_enum, default_value_t = ProfileArg::Once, help_heading = "Replication")]
    pub profile: ProfileArg,
    /// Let the store send bytes that the learning plane carries anyway; without it they are sent once. No effect with
    /// --payload inline.
    #[arg(long, help_heading = "Replication")]
    pub no_reuse: bool,
    /// Whether what nodes store survives their end [default: memory, disk for local].
    #[arg(long, value_enum, help_heading = "Replication")]
    pub durability: Option<DurabilityArg>,
    /// Folder of the stores with --durability disk, a file node-N.redb for each node. If it holds stores, nodes go on from
    /// them [default: the folder store in the results folder].
    #[arg(long = "store", value_name = "DIR", help_heading = "Replication")]
    pub store_dir: Option<PathBuf>,

    /// Number of nodes, 2 to 244: one aggregates, the others train [default: 10; with --placement ssh all hosts].
    #[arg(long, value_name = "N", help_heading = "Job")]
    pub nodes: Option<u64>,
    /// Federated rounds.
    #[arg(long, value_name = "N", default_value_t = 5, help_heading = "Job")]
    pub rounds: u64,
    /// Fewest workers whose results make a round count [default: half of the workers, rounded up].
    #[arg(long, value_name = "N", help_heading = "Job")]
    pub min_fit_clients: Option<u32>,
    /// Time after which a round goes on without the results that are missing (seconds unless a unit is given) [default:
    /// 120s, or the time for the parameters to go to all workers and back at 1 MB/s, if that is longer].
    #[arg(long, value_name = "DURATION", value_parser = values::seconds, help_heading = "Job")]
    pub round_deadline: Option<Span>,
    /// Let the aggregator train, too.
    #[arg(long, help_heading = "Job")]
    pub aggregator_trains: bool,
    /// Send the parameters with every instruction, as in Flower, instead of only to workers that lack them
    #[arg(long, help_heading = "Job")]
    pub resend: bool,
    /// Seed of the initial model, the data split and every other choice; printed and recorded [default: random].
    #[arg(long, value_name = "N", help_heading = "Job")]
    pub seed: Option<u64>,

    /// Passes of a worker over its examples in each round.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Training")]
    pub local_epochs: u32,
    /// Examples per SGD step.
    #[arg(long, value_name = "N", default_value_t = 32, help_heading = "Training")]
    pub batch_size: u32,
    /// Learning rate of SGD.
    #[arg(long, value_name = "RATE", default_value_t = 0.001, help_heading = "Training")]
    #[arg(allow_negative_numbers = true)]
    pub lr: f64,
    /// Momentum of SGD, from 0 to below 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, help_heading = "Training")]
    #[arg(allow_negative_numbers = true)]
    pub momentum: f64,
    /// Training engine.
    #[arg(long, value_enum, default_value_t = EngineArg::Candle, help_heading = "Training")]
    pub engine: EngineArg,
    /// Size of the parameters with --engine none, from 4 B to 256 MiB, for example 64kB or 45MB; a multiple of 4 [default:
    /// the size of the model, 248024].
    #[arg(long, value_name = "SIZE", help_heading = "Training")]
    pub parameter_bytes: Option<Size>,

    /// CIFAR-10 in its binary layout: a folder or the .tar.gz archive, with --placement ssh on every host [default: the
    /// built-in synthetic set].
    #[arg(long, value_name = "DIR|ARCHIVE", help_heading = "Data")]
    pub data: Option<PathBuf>,
    /// Training examples of each worker.
    #[arg(long, value_name = "N", default_value_t = 1000, help_heading = "Data")]
    pub examples_per_node: u32,
    /// Test examples of each worker.
    #[arg(long, value_name = "N", default_value_t = 200, help_heading = "Data")]
    pub test_examples_per_node: u32,
    /// How examples are spread: iid, or dirichlet:ALPHA for class shares per worker (a smaller ALPHA is more skewed).
    #[arg(long, value_name = "iid|dirichlet:ALPHA", default_value = "iid", help_heading = "Data")]
    pub partition: PartitionArg,

    /// Where nodes run.
    #[arg(long, value_enum, default_value_t = PlacementArg::Process, help_heading = "Placement")]
    pub placement: PlacementArg,
    /// Ansible inventory of the hosts for --placement ssh, YAML if its name ends in .yml or .yaml, otherwise INI: node i is on
    /// the i-th. docs/BOARDS.md explains it.
    #[arg(long, value_name = "FILE", help_heading = "Placement")]
    pub inventory: Option<PathBuf>,
    /// Only the hosts of this group of the inventory [default: all].
    #[arg(long, value_name = "NAME", requires = "inventory", help_heading = "Placement")]
    pub group: Option<String>,
    /// Configuration of ssh [default: ssh's own].
    #[arg(long, value_name = "FILE", requires = "inventory", help_heading = "Placement")]
    pub ssh_config: Option<PathBuf>,
    /// The /24 of the nodes: node i, from 1, gets the address ending in 10+i [default: 127.0.0.0, or 10.0.0.0 with
    /// --placement netns].
    #[arg(long, value_name = "A.B.C.0", help_heading = "Placement")]
    pub network: Option<Ipv4Addr>,
    /// Links between nodes: lan, wifi-pi3, a TOML file with rate, delay, jitter, loss and reordering, or its keys and values,
    /// for example delay_ms=25,loss=0.01 [default: as fast as this machine].
    #[arg(long, value_name = "NAME|FILE.toml|KEY=VALUE,...", help_heading = "Placement")]
    pub link: Option<String>,
    /// Whether nodes count their packets by capture (pnet).
    #[arg(long, value_enum, default_value_t = CaptureArg::Auto, help_heading = "Placement")]
    pub capture: CaptureArg,
    /// UDP port of the learning plane on every node.
    #[arg(long, value_name = "PORT", default_value_t = 8080, help_heading = "Placement")]
    pub learning_port: u16,
    /// UDP port of the replication plane (elections, checkpoints) on every node.
    #[arg(long, value_name = "PORT", default_value_t = 5000, help_heading = "Placement")]
    pub replication_port: u16,

    /// Break something: KIND@WHO,WHEN or KIND@WHO,WHEN,for:DURATION. Repeatable; faults strike in the order given.
    ///
    /// KIND is kill (SIGKILL), power-off (by harness_power_off of the inventory), restart (SIGKILL, then the same node is started again 1 s later, or as ,after:DURATION says;
    /// without --durability disk under a new id, in the place of the one that lost its memory), stop (SIGSTOP), partition (between WHO and the others), loss:P (P percent of the
    /// datagrams to and from WHO), omit-send and omit-receive (nothing that WHO sends, or that is sent to it, arrives),
    /// corrupt:P (a bit flips in P percent of the frames that WHO sends, which the others' codec refuses) or delay:DURATION (what WHO sends leaves later by this, milliseconds unless a unit is given). WHO is aggregator, worker, random (any node), majority or minority (that side of all
    /// nodes, with the aggregator), node:ID or all. WHEN is round:N, when a worker begins to train in the first round from N
    /// on; random:N, a moment of that round drawn from the seed, N from 2; voters-changed, as round:N in the first round
    /// in which a voter was replaced since the fault before; or, of a leaderboard, time:T after the first vote. What leaves a node alive ends after DURATION (seconds unless a
    /// unit is given), at the latest when the last round is acknowledged.
    #[arg(long, value_name = "FAULT", help_heading = "Faults")]
    pub fault: Vec<Fault>,

    /// Have a node join or leave while the job runs: join@WHEN or leave@WHO,WHEN. Repeatable; they happen in the order given.
    ///
    /// WHEN is as for faults, WHO aggregator, worker, random or node:ID. Who joins gets the next number after --nodes, and data
    /// of its own; who leaves hands over if it aggregates, and ends. For backends that elect; with gossip
    /// and backup as many stay as hold a checkpoint.
    #[arg(long, value_name = "join@WHEN|leave@WHO,WHEN", help_heading = "Membership")]
    pub member: Vec<Change>,

    /// Have every node show its metrics over HTTP at /metrics, in Prometheus' text format: with PORT (for example 9464) each at its
    /// own address, with IP:PORT all at that address, node i at PORT + i - 1, with --placement process only. Without it no node
    /// shows any.
    #[arg(long, value_name = "PORT|IP:PORT", help_heading = "Output")]
    pub metrics: Option<MetricsAt>,

    /// Continue the run of a results folder that was stopped or killed, with --durability disk, from its last acknowledged
    /// checkpoint. Its options hold; only --out, --json, --quiet, --fault and --store (stores made by `harness recover`) may
    /// be given beside.
    #[arg(long, value_name = "RESULTS_DIR", help_heading = "Job")]
    pub resume: Option<PathBuf>,

    /// Folder that receives a results folder named after time and host.
    #[arg(long, value_name = "DIR", default_value = "results/run", help_heading = "Output")]
    pub out: PathBuf,
    /// Print the summary as JSON on standard output; progress goes to standard error.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Leave progress out; warnings and the summary stay.
    #[arg(long, help_heading = "Output")]
    pub quiet: bool,
}
