//! Tests of the whole: the built binary, from outside.

#![allow(clippy::unwrap_used, reason = "a failed test is what unwrap is for; helpers are not seen as tests")]

mod backends;
mod boards;
mod capture;
mod cli;
mod docs;
mod durability;
mod elections;
mod experiment;
mod faults;
mod federated;
mod fuzz;
mod keyvalue;
mod leaderboard;
mod levels;
mod members;
mod metrics;
mod netns;
mod packets;
mod policy;
mod reports;
mod shelf;
mod signals;

use std::sync::atomic::{AtomicU8, Ordering};

/// A loopback /24 for one run: runs of this process never share one, and other processes rarely have the same, so that
/// tests can run in parallel.
fn network() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let run = NEXT.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    format!("127.{}.{}.0", 100 + (u32::from(run) + 16 * (process >> 8)) % 150, process & 0xff)
}
