//! Statistics of samples that are integers: medians and how sure one may be of them. Pure, and the same for the same input.
//!
//! It does not know what a sample is of, nor where it was recorded. `histogram` also writes the files that other tools read.

pub mod availability;
mod bootstrap;
pub mod histogram;

pub use bootstrap::{Estimate, Ratio, estimate, median, quantile, ratio};
