//! Values of options that are more than a number or a word. Each is written as it is read.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use workloads::federated::{Partition, Policy};

use crate::units::{Bare, exact_ms, nanoseconds, parse_bytes, parse_duration, parse_window};

/// A duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Span {
    pub(super) fn of_ns(ns: u64) -> Self {
        Self(Duration::from_nanos(ns))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&exact_ms(nanoseconds(self.0)))
    }
}

pub(super) fn seconds(text: &str) -> Result<Span, String> {
    parse_duration(text, Bare::Seconds).map(Span)
}

pub(super) fn milliseconds(text: &str) -> Result<Span, String> {
    parse_duration(text, Bare::Milliseconds).map(Span)
}

/// A number of bytes, written as such.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_bytes(text).map(Self)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A span between two durations after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its low end.
    pub low: Duration,
    /// Its high end.
    pub high: Duration,
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_window(text).map(|(low, high)| Self { low, high })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", exact_ms(nanoseconds(self.low)), exact_ms(nanoseconds(self.high)))
    }
}

/// A number with three decimal places, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thousandths(pub u32);

impl FromStr for Thousandths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "not a number of intervals; use for example 6 or 6.5".to_owned();
        let milli = (text.parse::<f64>().map_err(|_| wrong())? * 1000.0).round();
        if !(0.0..=f64::from(u32::MAX)).contains(&milli) {
            return Err(wrong());
        }
        Ok(Self(milli as u32))
    }
}

impl fmt::Display for Thousandths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.0) / 1000.0)
    }
}

/// Who aggregates, beyond what a failure decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyArg(pub Policy);

impl FromStr for PolicyArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let policy = match (text, text.strip_prefix("rotate:")) {
            ("first", _) => Policy::First,
            ("latency", _) => Policy::Latency,
            ("suitability", _) => Policy::Suitability,
            (_, Some(every)) => {
                let every = parse_duration(every, Bare::Seconds)?;
                Policy::Rotate { every_ms: u64::try_from(every.as_millis()).unwrap_or(u64::MAX) }
            }
            _ => {
                return Err("use first, latency, suitability or rotate:SECONDS, for example rotate:10".into());
            }
        };
        Ok(Self(policy))
    }
}

impl fmt::Display for PolicyArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Policy::First => f.write_str("first"),
            Policy::Latency => f.write_str("latency"),
            Policy::Suitability => f.write_str("suitability"),
            Policy::Rotate { every_ms } => write!(f, "rotate:{every_ms}ms"),
        }
    }
}

/// How examples are spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PartitionArg(pub Partition);

impl FromStr for PartitionArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "iid" {
            return Ok(Self(Partition::Iid));
        }
        let alpha =
            text.strip_prefix("dirichlet:").ok_or("use iid or dirichlet:ALPHA, for example dirichlet:0.5")?;
        let alpha =
            alpha.parse().map_err(|_| format!("'{alpha}' is not a number; use for example dirichlet:0.5"))?;
        Ok(Self(Partition::Dirichlet { alpha }))
    }
}

impl fmt::Display for PartitionArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Partition::Iid => f.write_str("iid"),
            Partition::Dirichlet { alpha } => write!(f, "dirichlet:{alpha}"),
        }
    }
}
