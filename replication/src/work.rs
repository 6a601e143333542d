//! What this process spends on hashing checkpoints and on encoding and decoding messages and parameters.
//!
//! The counters are statics: a measured node is a process of its own, they steer nothing, and the alternative is a meter in
//! the signature of everything that hashes. Two readings of a clock for each piece of work, some 50 ns.
//!
//! It does not know what the work is for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// BLAKE3 over the bytes of a checkpoint or an update.
    Hash,
    /// Values to bytes.
    Encode,
    /// Bytes to values.
    Decode,
}

static SPENT_NS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// Time that this process spent so far, on all threads, in nanoseconds as they pass: where cores are shared, waiting for one
/// is in them. (Processor time would take longer to read than a message takes to encode.)
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// Hashing.
    pub hash_ns: u64,
    /// Encoding: message heads and parameters.
    pub encode_ns: u64,
    /// Decoding: message heads and parameters.
    pub decode_ns: u64,
}

/// Does `work` and counts its time. Not to be nested: the time would count twice.
pub fn timed<T>(kind: Kind, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = work();
    let spent_ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
    SPENT_NS[kind as usize].fetch_add(spent_ns, Ordering::Relaxed);
    result
}

/// What was spent so far.
#[must_use]
pub fn spent() -> Spent {
    let [hash_ns, encode_ns, decode_ns] =
        [Kind::Hash, Kind::Encode, Kind::Decode].map(|kind| SPENT_NS[kind as usize].load(Ordering::Relaxed));
    Spent { hash_ns, encode_ns, decode_ns }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn work_counts_for_its_kind() {
        let before = spent();
        let span = Duration::from_millis(5);
        let answer = timed(Kind::Hash, || {
            std::thread::sleep(span);
            7
        });
        timed(Kind::Decode, || std::thread::sleep(2 * span));
        // Other tests of this process hash and decode, too.
        let after = spent();
        assert_eq!(answer, 7);
        assert!(after.hash_ns - before.hash_ns >= 5_000_000);
        assert!(after.decode_ns - before.decode_ns >= 10_000_000);
    }
}
