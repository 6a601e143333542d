//! What a server did in the last ten seconds: a function of what it notes and the time. Pure.

use std::collections::VecDeque;

use tokio::time::Instant;

/// What was done in a second.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bucket {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) appends: u64,
}

/// What was done in each of the last seconds.
#[derive(Debug)]
pub(super) struct Rates {
    begun: Instant,
    /// The second that the last bucket counts.
    second: u64,
    buckets: VecDeque<Bucket>,
}

/// Seconds that rates are added up over.
const RATE_SECONDS: u64 = 10;

impl Rates {
    pub(super) fn new(begun: Instant) -> Self {
        Self { begun, second: 0, buckets: VecDeque::from([Bucket::default()]) }
    }

    fn advance(&mut self, now: Instant) {
        let second = now.duration_since(self.begun).as_secs();
        for _ in self.second..second.min(self.second + RATE_SECONDS) {
            self.buckets.push_back(Bucket::default());
        }
        self.second = self.second.max(second);
        while self.buckets.len() as u64 > RATE_SECONDS {
            self.buckets.pop_front();
        }
    }

    pub(super) fn note(&mut self, now: Instant, count: impl FnOnce(&mut Bucket)) {
        self.advance(now);
        if let Some(bucket) = self.buckets.back_mut() {
            count(bucket);
        }
    }

    pub(super) fn last_10_s(&mut self, now: Instant) -> Bucket {
        self.advance(now);
        self.buckets.iter().fold(Bucket::default(), |sum, bucket| Bucket {
            reads: sum.reads + bucket.reads,
            writes: sum.writes + bucket.writes,
            appends: sum.appends + bucket.appends,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rates_count_ten_seconds() {
        let begun = Instant::now();
        let mut rates = Rates::new(begun);
        let at = |seconds| begun + Duration::from_secs(seconds);
        rates.note(at(0), |bucket| bucket.reads += 5);
        rates.note(at(9), |bucket| bucket.reads += 1);
        assert_eq!(rates.last_10_s(at(9)).reads, 6);
        assert_eq!(rates.last_10_s(at(10)).reads, 1);
        assert_eq!(rates.last_10_s(at(100)).reads, 0);
        rates.note(at(100), |bucket| bucket.writes += 2);
        assert_eq!(rates.last_10_s(at(100)).writes, 2);
    }
}
