//! HDR histograms of the samples: percentile distributions (.hgrm, as the public HdrHistogram plotters read them) and an
//! interval log (.hlog). A view of samples that are recorded elsewhere, to three significant digits.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use crate::record::write_whole;

/// Values differ by less than one in a thousand of what they are.
const SIGNIFICANT_DIGITS: u8 = 3;
/// Linear sub-buckets that this takes, a power of two: part of a .hgrm's last line.
const SUB_BUCKETS: u32 = 2048;
/// Lines for each halving of what is left to 100 %.
const TICKS_PER_HALF_DISTANCE: u32 = 5;
/// Percentile distributions and interval logs are in milliseconds, as is usual.
const NS_PER_MS: f64 = 1e6;

/// A histogram of `samples_ns`, in nanoseconds.
///
/// # Errors
/// If it has no room for them.
pub fn of(samples_ns: &[u64]) -> anyhow::Result<Histogram<u64>> {
    let mut histogram = Histogram::new(SIGNIFICANT_DIGITS).context("cannot make a histogram")?;
    for sample in samples_ns {
        histogram.record(*sample).context("cannot record a sample")?;
    }
    Ok(histogram)
}

/// The percentile distribution as text, values in milliseconds.
fn percentiles(histogram: &Histogram<u64>) -> String {
    let mut text =
        format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut counted = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        counted += step.count_since_last_iteration();
        let value = step.value_iterated_to() as f64 / NS_PER_MS;
        let share = step.quantile_iterated_to();
        let _ = if share < 1.0 {
            writeln!(text, "{value:12.3} {share:14.12} {counted:10} {:14.2}", 1.0 / (1.0 - share))
        } else {
            writeln!(text, "{value:12.3} {share:14.12} {counted:10}")
        };
    }
    let (mean, deviation) = (histogram.mean() / NS_PER_MS, histogram.stdev() / NS_PER_MS);
    let max = histogram.max() as f64 / NS_PER_MS;
    let _ = writeln!(text, "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]");
    let _ = writeln!(text, "#[Max     = {max:12.3}, Total count    = {:12}]", histogram.len());
    let _ = writeln!(text, "#[Buckets = {:12}, SubBuckets     = {SUB_BUCKETS:12}]", histogram.buckets());
    text
}

/// Files of these samples in the folder `dir`: a percentile distribution of each, `<name>.hgrm`, and an interval log of all,
/// `<log>.hlog`, over the whole of the span that `started` begins. `tags` says what the names are.
///
/// # Errors
/// If they cannot be written.
pub(crate) fn write(
    dir: &Path,
    log: &str,
    tags: &str,
    samples_ns: &[(&str, Vec<u64>)],
    (started, lasted): (SystemTime, Duration),
) -> anyhow::Result<()> {
    let mut histograms = Vec::new();
    for (name, samples) in samples_ns {
        let histogram = of(samples)?;
        write_whole(dir, &format!("{name}.hgrm"), percentiles(&histogram).as_bytes())?;
        histograms.push((*name, histogram));
    }
    write_whole(dir, &format!("{log}.hlog"), &interval_log(&histograms, tags, started, lasted)?)
}

/// An interval log with one interval for each named histogram, all over the whole of the run.
fn interval_log(
    histograms: &[(&str, Histogram<u64>)],
    tags: &str,
    started: SystemTime,
    lasted: Duration,
) -> anyhow::Result<Vec<u8>> {
    let (mut log, mut serializer) = (Vec::new(), V2DeflateSerializer::new());
    let mut writer = IntervalLogWriterBuilder::new()
        .add_comment(&format!("durations in ns; a tag names {tags}"))
        .with_start_time(started)
        .with_base_time(started)
        .with_max_value_divisor(NS_PER_MS)
        .begin_log_with(&mut log, &mut serializer)
        .context("cannot begin an interval log")?;
    for (name, histogram) in histograms {
        let written = writer.write_histogram(histogram, Duration::ZERO, lasted, Tag::new(name));
        written.map_err(|error| anyhow::anyhow!("cannot write an interval: {error:?}"))?;
    }
    drop(writer);
    Ok(log)
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;

    #[test]
    fn a_percentile_distribution_has_the_plotters_columns() {
        let samples: Vec<u64> = (1..=1000).map(|ms| ms * 1_000_000).collect();
        let text = percentiles(&of(&samples).unwrap());
        let rows: Vec<Vec<f64>> = text
            .lines()
            .skip(2)
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().map(|word| word.parse().unwrap()).collect())
            .collect();
        let median = rows.iter().find(|row| row[1] == 0.5).unwrap();
        assert!(
            (499.0..=501.0).contains(&median[0]) && (499.0..=501.0).contains(&median[2]) && median[3] == 2.0
        );
        let last = rows.last().unwrap();
        assert_eq!((last.len(), last[1], last[2]), (3, 1.0, 1000.0), "100 % has no fourth column");
        assert!(rows.is_sorted_by(|one, other| one[0] <= other[0] && one[1] <= other[1]));
        assert!(
            text.lines().next().unwrap().contains("Value     Percentile TotalCount 1/(1-Percentile)"),
            "{text}"
        );
        assert!(text.contains("Total count    =         1000]"), "{text}");
    }

    #[test]
    fn an_interval_log_is_read_back() {
        let agreed = of(&[160_000_000, 170_000_000]).unwrap();
        let log = interval_log(
            &[("agreed", agreed.clone())],
            "the stage",
            SystemTime::UNIX_EPOCH,
            Duration::from_secs(9),
        )
        .unwrap();
        let entry = IntervalLogIterator::new(&log).filter_map(Result::ok).find_map(|entry| match entry {
            LogEntry::Interval(interval) => Some(interval),
            _ => None,
        });
        let interval = entry.unwrap();
        assert_eq!(interval.tag().map(|tag| tag.as_str().to_owned()).as_deref(), Some("agreed"));
        assert_eq!(interval.duration(), Duration::from_secs(9));
        let bytes = decode_base64(interval.encoded_histogram());
        let read: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
        assert_eq!((read.len(), read.max()), (2, agreed.max()));
    }

    fn decode_base64(text: &str) -> Vec<u8> {
        const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let bits = text.bytes().filter_map(|letter| LETTERS.iter().position(|known| *known == letter));
        let bits: Vec<u32> = bits.map(|value| value as u32).collect();
        let triple = |four: &[u32]| {
            let word = four.iter().fold(0, |word, six| (word << 6) | six) << (6 * (4 - four.len()));
            word.to_be_bytes()[1..four.len()].to_vec()
        };
        bits.chunks(4).flat_map(triple).collect()
    }
}
