//! Whole federated jobs in one process: real stores and the real round protocol, on the seeded network under virtual time,
//! with a stand-in for training that takes seconds of virtual time and adds a constant to every parameter. `levels` asks what
//! each level of self-recovery keeps (Dautov and Husom 2024, Table 1); its nodes may come back from their disks.

#![allow(clippy::unwrap_used, reason = "a failed test is what unwrap is for; helpers are not seen as tests")]

#[path = "../../../replication/tests/simulation/disk.rs"]
mod disk;
mod job;
mod levels;
mod members;
mod policies;
mod rounds;
mod traffic;
