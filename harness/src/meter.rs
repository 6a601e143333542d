//! What this process uses of its machine. Knows nothing of the job.

use std::fs;

use replication::work::{self, Spent};
use serde::{Deserialize, Serialize};

use crate::clock;

/// Memory and processor time of one process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Resident memory now, in bytes.
    pub rss_bytes: u64,
    /// Most resident memory so far, in bytes.
    pub rss_peak_bytes: u64,
    /// Processor time so far, all threads, in nanoseconds.
    pub cpu_ns: u64,
    /// What of it went into hashing, encoding and decoding.
    pub work: Spent,
}

/// Usage of this process, its work since it was `before`; memory is 0 where `/proc` does not tell.
#[must_use]
pub fn usage(before: Spent) -> Usage {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    Usage {
        rss_bytes: field_bytes(&status, "VmRSS:"),
        rss_peak_bytes: field_bytes(&status, "VmHWM:"),
        cpu_ns: clock::process_cpu_ns(),
        work: since(before, work::spent()),
    }
}

fn since(before: Spent, now: Spent) -> Spent {
    Spent {
        hash_ns: now.hash_ns.saturating_sub(before.hash_ns),
        encode_ns: now.encode_ns.saturating_sub(before.encode_ns),
        decode_ns: now.decode_ns.saturating_sub(before.decode_ns),
    }
}

/// A `Name:  123 kB` line of a `/proc` file, in bytes; 0 if it is not there.
pub(crate) fn field_bytes(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("");
    value.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let usage = usage(Spent::default());
        assert!(usage.rss_bytes > 100_000 && usage.rss_peak_bytes >= usage.rss_bytes, "{usage:?}");
        assert!(usage.cpu_ns > 0);
    }

    #[test]
    fn work_counts_from_where_it_was_before() {
        let before = Spent { hash_ns: 5, encode_ns: 1, decode_ns: 9 };
        let now = Spent { hash_ns: 7, encode_ns: 1, decode_ns: 10 };
        assert_eq!(since(before, now), Spent { hash_ns: 2, encode_ns: 0, decode_ns: 1 });
    }

    #[test]
    fn a_missing_field_is_zero() {
        assert_eq!(field_bytes("VmRSS:\t  12 kB\n", "VmRSS:"), 12 * 1024);
        assert_eq!(field_bytes("VmRSS:\n", "VmRSS:"), 0);
        assert_eq!(field_bytes("", "VmRSS:"), 0);
    }
}
