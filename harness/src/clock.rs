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

/// Time since 1970 in UTC, in nanoseconds.
#[must_use]
pub fn utc_ns() -> u64 {
    nanoseconds(ClockId::Realtime)
}

/// A question for the time and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// When it was asked, on the asker's clock.
    pub asked_ns: u64,
    /// What the other's clock showed in between.
    pub shown_ns: u64,
    /// When the answer came, on the asker's clock.
    pub answered_ns: u64,
}

/// How far another clock is ahead of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset {
    /// The other's time less ours.
    pub offset_ns: i64,
    /// It is at most this wrong.
    pub uncertainty_ns: u64,
}

/// The offset by the exchange that took least: its answer was given at some moment of it.
#[must_use]
pub fn offset(exchanges: &[Exchange]) -> Option<Offset> {
    let span = |exchange: &&Exchange| exchange.answered_ns.saturating_sub(exchange.asked_ns);
    let best = exchanges.iter().min_by_key(span)?;
    let half = span(&best).div_ceil(2);
    let offset = i128::from(best.shown_ns) - i128::from(best.asked_ns) - i128::from(half);
    let limit = i128::from(i64::MAX);
    let offset_ns = i64::try_from(offset.clamp(-limit, limit)).unwrap_or(i64::MAX);
    Some(Offset { offset_ns, uncertainty_ns: half })
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
    fn the_offset_is_that_of_the_shortest_exchange() {
        let exchange = |asked_ns, shown_ns, answered_ns| Exchange { asked_ns, shown_ns, answered_ns };
        let exchanges = [exchange(0, 1_000_000, 500), exchange(1000, 5050, 1100), exchange(2000, 9000, 2400)];
        assert_eq!(offset(&exchanges), Some(Offset { offset_ns: 4000, uncertainty_ns: 50 }));
        let behind = [exchange(1_000_000, 10, 1_000_001)];
        assert_eq!(offset(&behind), Some(Offset { offset_ns: -999_991, uncertainty_ns: 1 }));
        assert_eq!(offset(&[]), None);
    }

    #[test]
    fn the_monotonic_clock_does_not_go_back() {
        let first = monotonic_ns();
        assert!(first > 0 && monotonic_ns() >= first);
    }
}
