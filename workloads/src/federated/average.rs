//! Federated averaging (FedAvg, McMahan et al. 2017, algorithm 1): the mean of the workers' parameters, weighted by the
//! examples behind them.
//!
//! Uploads are added one by one as they arrive, so that one upload need be in memory besides the sum. The sum is kept in
//! 64-bit fixed point, because integer addition gives the same bits in whatever order the workers answer; floating
//! point, even in `f64`, does not, and the average's digest would then depend on the network. What that costs: the sum
//! resolves 2^-32 of one example's weight, so the mean is off by at most 2^-32, and by 2^-32 / 1000 if each worker
//! has 1,000 examples, where an `f32` of the model's size (0.05) resolves 2^-29.
//!
//! This module does not know who the workers are, nor in which round: whoever adds an upload has checked that.

use super::model::{self, ModelError};

/// Fixed-point scale of the sum: units per (parameter x example).
const SCALE: f64 = (1u64 << 32) as f64;

/// Largest sum of |parameter| x examples that fits into the fixed point.
const CAPACITY: f64 = (1u64 << 30) as f64;

/// See [`quickly_rounded`].
const BESIDE: f64 = (3u64 << 51) as f64;

/// Largest absolute value that [`quickly_rounded`] takes.
const QUICKLY_ROUNDED: f64 = (1u64 << 51) as f64;

/// Why an upload cannot be averaged. The average is left as it was.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AverageError {
    /// The upload is not the model's parameters.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A worker claims to have trained on nothing.
    #[error("an upload without examples has no weight in the average")]
    NoExamples,
    /// Parameters so large, or so many examples, that the sum cannot hold them.
    #[error(
        "parameters up to {largest} from {examples} examples are too large to be averaged: training diverged"
    )]
    TooLarge {
        /// Largest absolute parameter of the upload, or 2 if it is below.
        largest: f32,
        /// Examples of the upload.
        examples: u64,
    },
    /// The average of no uploads was asked for.
    #[error("there is nothing to average: no worker's parameters were added")]
    Empty,
}

/// A weighted mean in the making.
#[derive(Debug, Clone)]
pub struct Average {
    /// Sum of parameter x examples, in units of 1 / [`SCALE`].
    sums: Vec<i64>,
    examples: u64,
    uploads: u32,
    /// Upper bound of the absolute values in `sums`, before scaling.
    bound: f64,
}

impl Average {
    /// An average of nothing yet, of a model of so many parameters.
    #[must_use]
    pub fn new(parameters: usize) -> Self {
        Self { sums: vec![0; parameters], examples: 0, uploads: 0, bound: 0.0 }
    }

    /// Adds one worker's parameters, trained on `examples` examples.
    ///
    /// # Errors
    /// [`AverageError`] other than `Empty`; the average is unchanged then.
    pub fn add(&mut self, parameters: &[f32], examples: u64) -> Result<(), AverageError> {
        let largest = bound(parameters);
        // What is not finite is larger than anything; the check that names it need not be made otherwise.
        if parameters.len() != self.sums.len() || !largest.is_finite() {
            model::check_sized(parameters, self.sums.len())?;
        }
        if examples == 0 {
            return Err(AverageError::NoExamples);
        }
        let weight = examples as f64;
        let bound = self.bound + f64::from(largest) * weight;
        let total = self.examples.checked_add(examples).filter(|_| weight < CAPACITY && bound < CAPACITY);
        let Some(total) = total else {
            return Err(AverageError::TooLarge { largest, examples });
        };
        let weight = weight * SCALE;
        let terms = self.sums.iter_mut().zip(parameters);
        if f64::from(largest) * weight <= QUICKLY_ROUNDED {
            terms.for_each(|(sum, parameter)| *sum += quickly_rounded(f64::from(*parameter) * weight));
        } else {
            terms.for_each(|(sum, parameter)| *sum += rounded(f64::from(*parameter) * weight));
        }
        (self.examples, self.bound) = (total, bound);
        self.uploads += 1;
        Ok(())
    }

    /// Uploads added.
    pub fn uploads(&self) -> u32 {
        self.uploads
    }

    /// Examples behind the uploads, together.
    pub fn examples(&self) -> u64 {
        self.examples
    }

    /// The mean: all of it finite. The same uploads give the same bits in any order.
    ///
    /// # Errors
    /// [`AverageError::Empty`].
    pub fn finish(self) -> Result<Vec<f32>, AverageError> {
        if self.examples == 0 {
            return Err(AverageError::Empty);
        }
        let scale = 1.0 / (SCALE * self.examples as f64);
        let mean = |sum: f64| (sum * scale) as f32;
        // With room for what rounding has added.
        if self.bound * SCALE <= QUICKLY_ROUNDED / 2.0 {
            return Ok(self.sums.iter().map(|sum| mean(quickly_converted(*sum))).collect());
        }
        Ok(self.sums.iter().map(|sum| mean(*sum as f64)).collect())
    }
}

/// Rounds to the nearest integer, halves to the even one; `value` is within +-2^62.
fn rounded(value: f64) -> i64 {
    value.round_ties_even() as i64
}

/// As [`rounded`], for values within +-[`QUICKLY_ROUNDED`]: no instruction that every x86-64 has converts several `f64` at once to
/// 64-bit integers, but beside 1.5 * 2^52 the last bit of an `f64` is worth 1, so that adding rounds and the bits count.
fn quickly_rounded(value: f64) -> i64 {
    (value + BESIDE).to_bits() as i64 - BESIDE.to_bits() as i64
}

/// `sum as f64`, for values within +-[`QUICKLY_ROUNDED`]: the way back from [`quickly_rounded`].
fn quickly_converted(sum: i64) -> f64 {
    f64::from_bits((sum + BESIDE.to_bits() as i64) as u64) - BESIDE
}

/// A bound of the absolute values: 2 if all are below, as a network's are, else the largest of them. NaN is larger than infinity.
fn bound(parameters: &[f32]) -> f32 {
    const MAGNITUDE: u32 = 0x7fff_ffff;
    const TWO: u32 = 0x4000_0000;
    // Only what is at least 2 has this bit, and collecting bits takes a fraction of the time of a maximum.
    if parameters.iter().fold(0, |bits, x| bits | x.to_bits()) & TWO == 0 {
        return f32::from_bits(TWO);
    }
    // Non-negative floats compare as their bits do.
    f32::from_bits(parameters.iter().map(|x| x.to_bits() & MAGNITUDE).max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::model::PARAMETERS;
    use super::*;

    fn average(uploads: &[(Vec<f32>, u64)]) -> Vec<f32> {
        let mut average = Average::new(PARAMETERS);
        for (parameters, examples) in uploads {
            average.add(parameters, *examples).unwrap();
        }
        average.finish().unwrap()
    }

    #[test]
    fn weights_are_examples() {
        let mean = average(&[(vec![1.0; PARAMETERS], 1), (vec![-3.0; PARAMETERS], 3)]);
        assert!(mean.iter().all(|x| *x == -2.0));
    }

    #[test]
    fn one_upload_is_its_own_average() {
        let parameters = model::initial(3);
        let mean = average(&[(parameters.clone(), 1_000)]);
        assert!(mean.iter().zip(&parameters).all(|(a, b)| (a - b).abs() <= 1e-9 + 1e-7 * b.abs()));
    }

    #[test]
    fn bad_uploads_are_refused_and_leave_no_trace() {
        let good = model::initial(1);
        let mut average = Average::new(PARAMETERS);
        average.add(&good, 10).unwrap();
        let mut bad = good.clone();
        bad[5] = f32::NAN;
        assert!(matches!(
            average.add(&bad, 10),
            Err(AverageError::Model(ModelError::NotFinite { index: 5, .. }))
        ));
        assert_eq!(average.add(&good, 0), Err(AverageError::NoExamples));
        assert_eq!(
            average.add(&good[1..], 1),
            Err(ModelError::Length { actual: PARAMETERS - 1, expected: PARAMETERS }.into())
        );
        assert!(matches!(average.add(&good, u64::MAX), Err(AverageError::TooLarge { .. })));
        bad[5] = f32::MAX;
        assert!(matches!(average.add(&bad, 1), Err(AverageError::TooLarge { .. })));
        assert_eq!((average.uploads(), average.examples()), (1, 10));
        assert_eq!(Average::new(PARAMETERS).finish(), Err(AverageError::Empty));
    }

    #[test]
    fn rounding_is_the_same_quickly() {
        let halves = (-9..9).map(|half| f64::from(half) / 2.0);
        let large = [1.0, 0.5, 0.25, 0.0].map(|less| QUICKLY_ROUNDED - less);
        for value in halves.chain(large).flat_map(|value| [value, -value]) {
            assert_eq!(quickly_rounded(value), rounded(value), "{value}");
            assert_eq!(quickly_converted(rounded(value)), rounded(value) as f64, "{value}");
        }
    }

    #[test]
    fn the_bound_is_2_or_the_largest() {
        assert_eq!(bound(&[]), 2.0);
        assert_eq!(bound(&[-1.999, 0.0, 1.0]), 2.0);
        assert_eq!(bound(&[0.5, -2.5, 2.0]), 2.5);
        assert_eq!(bound(&[f32::NEG_INFINITY, 1.0]), f32::INFINITY);
        assert!(bound(&[1.0, -f32::NAN, f32::INFINITY]).is_nan());
    }

    proptest! {
        #[test]
        fn rounding_is_the_same_quickly_anywhere(value in -QUICKLY_ROUNDED..QUICKLY_ROUNDED) {
            for value in [value, value / 1e6, value / 1e12] {
                prop_assert_eq!(quickly_rounded(value), rounded(value));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn arrival_order_does_not_matter(seeds in prop::collection::vec((any::<u64>(), 1u64..5_000), 2..8)) {
            let mut uploads: Vec<_> = seeds.iter().map(|(seed, n)| (model::initial(*seed), *n)).collect();
            let forward = average(&uploads);
            uploads.reverse();
            let backward = average(&uploads);
            prop_assert!(forward.iter().zip(&backward).all(|(a, b)| a.to_bits() == b.to_bits()));
            let total: u64 = seeds.iter().map(|(_, n)| n).sum();
            for (i, mean) in forward.iter().enumerate().step_by(997) {
                let exact = uploads.iter().map(|(p, n)| f64::from(p[i]) * *n as f64).sum::<f64>() / total as f64;
                prop_assert!((f64::from(*mean) - exact).abs() <= 3e-9 + exact.abs() * 6e-8);
            }
        }
    }
}
