//! The two clocks: CLOCK_MONOTONIC for every measurement, UTC for names and the manifest.

use rustix::time::{ClockId, clock_gettime};
use time::OffsetDateTime;

/// CLOCK_MONOTONIC in nanoseconds. Processes of one host share it.
#[must_use]
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// Processor time of this process, all threads, in nanoseconds.
#[must_use]
pub fn process_cpu_ns() -> u64 {
    nanoseconds(ClockId::ProcessCPUTime)
}

/// Processor time of the calling thread, in nanoseconds.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    nanoseconds(ClockId::ThreadCPUTime)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Now, in UTC.
#[must_use]
pub fn utc_now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

/// For file names: `20261120T161500Z`.
#[must_use]
pub fn utc_compact(at: OffsetDateTime) -> String {
    let (date, clock) = (at.date(), at.time());
    format!(
        "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second()
    )
}

/// For the manifest: RFC 3339 to the millisecond, `2026-11-20T16:15:00.123Z`.
#[must_use]
pub fn utc_rfc3339(at: OffsetDateTime) -> String {
    let (date, clock) = (at.date(), at.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second(),
        clock.millisecond()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utc_is_written_in_both_forms() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_795_191_300_123_000_000).unwrap();
        assert_eq!(utc_compact(at), "20261120T161500Z");
        assert_eq!(utc_rfc3339(at), "2026-11-20T16:15:00.123Z");
    }

    #[test]
    fn the_monotonic_clock_does_not_go_back() {
        let first = monotonic_ns();
        assert!(first > 0 && monotonic_ns() >= first);
    }
}
