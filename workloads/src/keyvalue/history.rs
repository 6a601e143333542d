//! What clients saw: operations with their times and outcomes, the input of every check.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A value was read.
    Get,
    /// A value was written.
    Set,
    /// An entry was removed.
    Delete,
}

/// How an operation ended, as its client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// It was acknowledged.
    Ok,
    /// It certainly did not happen.
    Failed,
    /// It may have happened, at any time after its start.
    Unknown,
}

/// When in a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Before: every entry is written once.
    Fill,
    /// The load that is measured.
    Load,
    /// After everything is well again: every entry is read once.
    Verify,
}

/// One operation of one client. Every value written is written once in a history: it bears a number of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// When in the test.
    pub stage: Stage,
    /// The client, from 0.
    pub client: u32,
    /// The key's number, from 0.
    pub key: u32,
    /// What was asked.
    pub kind: Kind,
    /// The number of the value that was read or written; none: there was none.
    pub value: Option<u64>,
    /// When it was due, in nanoseconds on the client's clock.
    pub intended_ns: u64,
    /// When it was sent.
    pub start_ns: u64,
    /// When its outcome was known.
    pub end_ns: u64,
    /// Its outcome.
    pub ended: Ended,
    /// The node that was asked last.
    pub node: u64,
    /// Requests that were sent for it.
    pub attempts: u64,
}

impl Operation {
    /// Time from when it was due until its outcome was known.
    #[must_use]
    pub fn latency_ns(&self) -> u64 {
        self.end_ns.saturating_sub(self.intended_ns)
    }
}

/// Digits of a value's number.
pub const NUMBER_BYTES: usize = 16;

/// The key of this number.
#[must_use]
pub fn key(number: u32) -> String {
    format!("key-{number:08}")
}

/// A value of `bytes` bytes (at least [`NUMBER_BYTES`]) that bears `number`.
#[must_use]
pub fn value(number: u64, bytes: usize) -> Bytes {
    let mut value = format!("{number:016x}").into_bytes();
    value.resize(bytes.max(NUMBER_BYTES), b'.');
    value.into()
}

/// The number that a value bears; `None`: no client of a test wrote it.
#[must_use]
pub fn number(value: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(value.get(..NUMBER_BYTES)?).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_bear_their_number() {
        for (of, bytes) in [(0, 16), (7, 100), (u64::MAX, 1000)] {
            assert_eq!((value(of, bytes).len(), number(&value(of, bytes))), (bytes, Some(of)));
        }
        assert_eq!((number(b"short"), number(&[b'x'; 20])), (None, None));
    }
}
