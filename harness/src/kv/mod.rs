//! The key-value workload as a run: nodes that serve, clients in the controller that load them, disturbances, checks, results;
//! and what administers a cluster while it runs.
//!
//! ```text
//!   plan     settings of a run      node     what a node of such a run does       run      the controller's part, from start to checks
//!   load     clients on threads     record   operations.csv, summary.json         disturb  which node is disturbed when (pure)
//!   outcome  the end: checked, counted, written           etcd     another system that serves under the same load
//!   members  nodes that come and go                       leaderboard   votes over HTTP, behind a load balancer
//!   cluster  how to reach a cluster from outside, in a file                       prompt   commands typed by a person
//! ```
//!
//! Knows no backend: it asks what the store guarantees.

pub mod cluster;
pub mod disturb;
pub mod etcd;
pub mod leaderboard;
pub mod load;
mod members;
pub mod node;
mod outcome;
pub mod plan;
pub mod prompt;
pub mod record;
pub mod run;
