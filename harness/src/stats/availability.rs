//! How available a service was: from its outages to the measures of dependability. Pure.

use serde::{Deserialize, Serialize};

use crate::units::show_ns;

/// A gap without an answer shorter than this is no outage.
pub const LEAST_OUTAGE_NS: u64 = 500_000_000;

/// How available a service was over a span of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Availability {
    /// Outages.
    pub outages: u64,
    /// Time in outages, all together.
    pub outage_ns: u64,
    /// Share of the span that was no outage, in millionths, rounded down.
    pub available_ppm: u64,
    /// Mean time to failure: time that was no outage, per outage. None without an outage: the span was too short to say.
    pub mttf_ns: Option<u64>,
    /// Mean time to repair: the mean length of an outage.
    pub mttr_ns: Option<u64>,
    /// Mean time between failures: the sum of the two.
    pub mtbf_ns: Option<u64>,
}

impl Availability {
    /// Over `span_ns`, with outages of these lengths, which do not overlap.
    #[must_use]
    pub fn of(span_ns: u64, outages_ns: &[u64]) -> Self {
        let (count, down) = (outages_ns.len() as u64, outages_ns.iter().sum::<u64>().min(span_ns));
        let up = span_ns - down;
        let per_outage = |ns: u64| (count > 0).then(|| ns / count.max(1));
        let ppm = |ns: u64| u128::from(ns) * 1_000_000 / u128::from(span_ns.max(1));
        Self {
            outages: count,
            outage_ns: down,
            available_ppm: if span_ns == 0 { 0 } else { ppm(up) as u64 },
            mttf_ns: per_outage(up),
            mttr_ns: per_outage(down),
            mtbf_ns: per_outage(up + down),
        }
    }
}

impl std::fmt::Display for Availability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.4} %", self.available_ppm as f64 / 1e4)?;
        if let (Some(mttf), Some(mttr), Some(mtbf)) = (self.mttf_ns, self.mttr_ns, self.mtbf_ns) {
            let outages = self.outages;
            write!(
                f,
                ", {outages} outages, MTTF {}, MTTR {}, MTBF {}",
                show_ns(mttf),
                show_ns(mttr),
                show_ns(mtbf)
            )?;
        }
        Ok(())
    }
}

/// A request: when it was due and, if it was answered, when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// When it was due.
    pub due_ns: u64,
    /// When its answer came; none: it was not answered.
    pub answered_ns: Option<u64>,
}

/// Lengths of the gaps in which requests were due and none was answered: each from the first request due after an answer until
/// the next answer, or until `end_ns`.
#[must_use]
pub fn gaps(requests: &[Asked], begin_ns: u64, end_ns: u64) -> Vec<u64> {
    let mut due: Vec<u64> = requests.iter().map(|asked| asked.due_ns.max(begin_ns)).collect();
    let mut answers: Vec<u64> = requests.iter().filter_map(|asked| asked.answered_ns).collect();
    due.sort_unstable();
    answers.sort_unstable();
    let waiting = requests.iter().any(|asked| asked.answered_ns.is_none());
    let ends = answers.iter().copied().chain(waiting.then_some(end_ns));
    let mut last = begin_ns;
    let mut gaps = Vec::new();
    for end in ends {
        let first_due = due.get(due.partition_point(|due| *due < last));
        gaps.extend(first_due.filter(|due| **due < end).map(|due| end - due));
        last = last.max(end);
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_follow_from_the_outages() {
        let found = Availability::of(10_000, &[1000, 3000]);
        assert_eq!((found.outages, found.outage_ns, found.available_ppm), (2, 4000, 600_000));
        assert_eq!((found.mttf_ns, found.mttr_ns, found.mtbf_ns), (Some(3000), Some(2000), Some(5000)));
        let none = Availability::of(10_000, &[]);
        assert_eq!((none.available_ppm, none.mttf_ns, none.mttr_ns), (1_000_000, None, None));
        assert_eq!(Availability::of(0, &[]).available_ppm, 0);
        assert_eq!(Availability::of(100, &[300]).available_ppm, 0, "down throughout");
    }

    #[test]
    fn a_gap_needs_somebody_who_waits() {
        let asked = |due_ns, answered_ns| Asked { due_ns, answered_ns };
        // Answered at 10, 20 and 100; between 20 and 90 nobody asked.
        let requests = [asked(0, Some(10)), asked(12, Some(20)), asked(90, Some(100))];
        assert_eq!(gaps(&requests, 0, 200), [10, 8, 10]);
        // One waits from 30 on in vain, another one from 40 to 100.
        let requests = [asked(0, Some(10)), asked(30, None), asked(40, Some(100))];
        assert_eq!(gaps(&requests, 0, 150), [10, 70], "nothing was due after the last answer");
        let requests = [asked(0, Some(10)), asked(30, None)];
        assert_eq!(gaps(&requests, 0, 150), [10, 120]);
        assert_eq!(gaps(&[], 0, 150), [] as [u64; 0]);
    }
}
