//! What survives a restart, a power loss and a damaged file.

#![allow(clippy::unwrap_used, reason = "a failed test is what unwrap is for; helpers are not seen as tests")]

mod damage;
mod disk;
mod full;
mod group;
mod nodes;
mod power;
mod recover;
mod restart;
mod slow;
