//! Private paths that the benches measure, on inputs of their making. No part of the interface: it changes as they do.

pub use crate::gossip::bench::Neighbourhood;
pub use crate::raft::bench::Proposal;
