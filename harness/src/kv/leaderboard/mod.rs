//! The leaderboard as a run: the web service on every node of a key-value run, a load balancer in front, voters in open loop,
//! and the check that every acknowledged vote was counted, once.
//!
//! ```text
//!   voters  -- HTTP -->  haproxy  -- round robin, next where one does not answer -->  service (on each node)
//!
//!   run       the controller's part: balancer, voters, faults, check      service   the web service on a node
//!   voters    votes when they are due, repeated until acknowledged       haproxy   its configuration and its process
//!   strikes   faults of the command line as strikes (pure)
//! ```
//!
//! Knows no backend. The votes become operations of the key-value workload, so that figures, files and reports are the same.

pub mod haproxy;
mod run;
mod service;
mod strikes;
mod voters;

pub(super) use run::Tally;
pub(super) use service::serve;
pub use strikes::check as check_faults;
pub use voters::DEFAULT_RATE;
