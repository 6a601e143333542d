//! Who is told how long operations took on a server's node. Nothing depends on it.
//!
//! Deliberately knows no clock, no format and nobody who looks at the figures.

use std::time::Duration;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A read, from its arrival at this node to its answer.
    Read,
    /// A write, from its arrival at this node to its answer.
    Write,
    /// A vote of a leaderboard, from its arrival at this node, which may pass it on, to its answer.
    Vote,
    /// A batch, from its making to its acknowledgement by the store.
    Put {
        /// Nodes known to hold it.
        holders: usize,
    },
}

/// Takes note of operations, from any thread. Must not block.
pub trait Meter: Send + Sync + 'static {
    /// An operation took so long; `done` says whether it was done, as far as is known.
    fn measured(&self, operation: Operation, took: Duration, done: bool);
}
