//! The `harness` command: places the nodes of a federated job, watches them, breaks them on request, and writes down
//! what happened.
//!
//! ```text
//!   main -> cli -> cmd/{run, experiment, node, data, ...}  one file per subcommand
//!   ---------------------------------------------------------------------------------------------------
//!   controller                                             node (the same binary, started by the controller)
//!     plan, preflight   validated before anything starts     cmd/node   stdin and stdout <-> channels
//!     run               the loop: events in, orders out      node       what a node does with its plan
//!     fault             pure: events in, actions out         meter      memory and processor time of this process
//!                                                            resources  what the node has to offer
//!     experiment        many runs from a file, resumable
//!     place, link       where nodes run: child processes, in network namespaces, on hosts over ssh; links between them
//!     record, progress  results folder; display
//!     metrics           what a node shows to Prometheus        watch   what a person sees of it
//!     kv                the key-value workload: its nodes, its clients, its controller, its prompt
//!                      \____ control: JSON lines over stdin and stdout ____/
//!   ---------------------------------------------------------------------------------------------------
//!   report, stats: recorded files to a page, figures and tables; medians and intervals
//!   ---------------------------------------------------------------------------------------------------
//!   data (download, check, unpack), disk (folders of stores), offload (of interfaces), capability, http, machine, board, facts, probe, examine, ssh, tend (hosts), shards (data of one node), resume (a run that is continued), identity (credentials), clock, units, exit
//! ```
//!
//! Only this crate touches processes and result files. It deliberately does not know how a checkpoint is replicated
//! or what a round computes: it sees events.

pub mod board;
pub mod capability;
pub mod capture;
pub mod cli;
pub mod clock;
pub mod cmd;
pub mod control;
pub mod data;
pub mod disk;
pub mod election;
pub mod examine;
pub mod exit;
pub mod experiment;
pub mod facts;
pub mod fault;
pub mod http;
pub mod identity;
pub mod kv;
pub mod link;
pub mod machine;
pub mod meter;
pub mod metrics;
pub mod node;
pub mod offload;
pub mod place;
pub mod plan;
pub mod preflight;
pub mod probe;
pub mod progress;
pub mod record;
pub mod report;
pub mod resources;
pub mod resume;
pub mod run;
pub mod shards;
pub mod ssh;
mod standby;
pub mod stats;
pub mod tend;
pub mod units;
pub mod watch;
