//! Medians with percentile intervals from a seeded bootstrap.
//!
//! A median is the lower one, so that it is a value that was measured. An interval comes of [`RESAMPLES`] draws with
//! replacement, from a generator that is seeded the same way each time: what is computed again is the same to the last digit.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// How often a sample is drawn again.
const RESAMPLES: usize = 2_000;
/// Seed of the draws; any would do, but always the same.
const SEED: u64 = 0x626f_6f74;

/// A median and its interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// How many values it is of.
    pub n: usize,
    /// The lower median, in the values' unit.
    pub median: u64,
    /// Lower end of the interval.
    pub lo: u64,
    /// Upper end of the interval.
    pub hi: u64,
}

/// The ratio of two medians and its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// Second median by first.
    pub ratio: f64,
    /// Lower end of the interval.
    pub lo: f64,
    /// Upper end of the interval.
    pub hi: f64,
}

/// The lower median; none of nothing.
#[must_use]
pub fn median(values: &[u64]) -> Option<u64> {
    quantile(values, 0.5)
}

/// The smallest value that at least this share of the values does not exceed; none of nothing.
#[must_use]
pub fn quantile(values: &[u64], share: f64) -> Option<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// The median of `values` with its interval at `confidence` (0.95: 95 %); none of nothing.
///
/// With fewer than six values the interval at 95 % is that of the extremes, or nearly, and says little.
#[must_use]
pub fn estimate(values: &[u64], confidence: f64) -> Option<Estimate> {
    let median = median(values)?;
    let mut dice = ChaCha8Rng::seed_from_u64(SEED);
    let mut medians: Vec<u64> = (0..RESAMPLES).map(|_| redrawn_median(values, &mut dice)).collect();
    medians.sort_unstable();
    let (lo, hi) = ends(confidence);
    Some(Estimate { n: values.len(), median, lo: medians[lo], hi: medians[hi] })
}

/// The median of `of` by the median of `by`, with its interval at `confidence`; none of nothing, or by zero.
#[must_use]
pub fn ratio(of: &[u64], by: &[u64], confidence: f64) -> Option<Ratio> {
    let (upper, lower) = (median(of)?, median(by).filter(|median| *median > 0)?);
    let mut dice = ChaCha8Rng::seed_from_u64(SEED);
    let mut ratios: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let of = redrawn_median(of, &mut dice) as f64;
            of / redrawn_median(by, &mut dice) as f64
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let (lo, hi) = ends(confidence);
    Some(Ratio { ratio: upper as f64 / lower as f64, lo: ratios[lo], hi: ratios[hi] })
}

/// Where the ends of an interval are among the sorted resamples.
fn ends(confidence: f64) -> (usize, usize) {
    let outside = (1.0 - confidence) / 2.0 * RESAMPLES as f64;
    let lo = (outside.floor() as usize).min(RESAMPLES / 2);
    (lo, RESAMPLES - 1 - lo)
}

fn redrawn_median(values: &[u64], dice: &mut ChaCha8Rng) -> u64 {
    let mut drawn: Vec<u64> = (0..values.len()).map(|_| values[dice.random_range(0..values.len())]).collect();
    let middle = (drawn.len() - 1) / 2;
    *drawn.select_nth_unstable(middle).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_lower_of_two() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[7]), Some(7));
        assert_eq!(median(&[4, 1, 3, 2]), Some(2));
        assert_eq!(median(&[5, 1, 3]), Some(3));
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let hundred: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(quantile(&hundred, 0.99), Some(99));
        assert_eq!(quantile(&hundred, 1.0), Some(100));
        assert_eq!(quantile(&hundred, 0.0), Some(1));
    }

    #[test]
    fn an_interval_surrounds_the_median_and_is_the_same_each_time() {
        let values: Vec<u64> = (0..41).map(|i| 100 + i * i).collect();
        let first = estimate(&values, 0.95).unwrap();
        assert_eq!(first, estimate(&values, 0.95).unwrap());
        assert_eq!((first.n, first.median), (41, 500));
        assert!(first.lo < 500 && 500 < first.hi, "{first:?}");
        // By order statistics the 95 % interval of a median of 41 is from the 14th to the 28th value.
        assert!(first.lo.abs_diff(100 + 13 * 13) < 80 && first.hi.abs_diff(100 + 27 * 27) < 120, "{first:?}");
        let wider = estimate(&values, 0.999).unwrap();
        assert!(wider.lo <= first.lo && wider.hi >= first.hi, "{wider:?}");
    }

    #[test]
    fn a_single_value_has_no_spread() {
        assert_eq!(estimate(&[9], 0.95), Some(Estimate { n: 1, median: 9, lo: 9, hi: 9 }));
        assert_eq!(estimate(&[], 0.95), None);
    }

    #[test]
    fn a_ratio_of_the_same_sample_has_one_in_its_interval() {
        let values: Vec<u64> = (50..90).collect();
        let same = ratio(&values, &values, 0.95).unwrap();
        assert!(same.lo < 1.0 && same.hi > 1.0 && (same.ratio - 1.0).abs() < f64::EPSILON, "{same:?}");
        let doubled: Vec<u64> = values.iter().map(|value| value * 2).collect();
        let twice = ratio(&doubled, &values, 0.95).unwrap();
        assert!(twice.lo > 1.5 && (twice.ratio - 2.0).abs() < 1e-9, "{twice:?}");
        assert_eq!(ratio(&values, &[0, 0, 0], 0.95), None);
    }
}
