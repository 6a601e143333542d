//! What each level of self-recovery keeps (Dautov and Husom 2024, Table 1): whole jobs in one process on the seeded network,
//! under virtual time, whose nodes may come back from their disks.

#![allow(clippy::unwrap_used, reason = "a failed test is what unwrap is for; helpers are not seen as tests")]

#[path = "../../../replication/tests/simulation/disk.rs"]
mod disk;
mod job;
mod levels;
