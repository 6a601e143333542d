//! Reads Prometheus' text format, as far as `harness watch` needs it: samples with their labels. Total and bounded: whatever a node
//! sends is samples or a refusal, and neither takes much memory. Pure.
//!
//! Comments, and with them types and help, are left out; so are times of samples.

use std::collections::BTreeMap;

/// Longest page that is read.
pub const MAX_BYTES: usize = 1024 * 1024;
/// Most samples of a page.
pub const MAX_SAMPLES: usize = 10_000;
/// Most labels of a sample.
const MAX_LABELS: usize = 32;

/// One number.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Its name, `_total`, `_bucket`, `_sum` or `_count` included.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The number.
    pub value: f64,
}

/// Why a page is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It is over a limit.
    #[error("more than {MAX_BYTES} bytes or {MAX_SAMPLES} samples")]
    TooLong,
    /// A line that is no sample.
    #[error("line {line} is no sample: {what}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// The samples of a page, in its order.
///
/// # Errors
/// [`Malformed`].
pub fn parse(page: &str) -> Result<Vec<Sample>, Malformed> {
    if page.len() > MAX_BYTES {
        return Err(Malformed::TooLong);
    }
    let mut samples = Vec::new();
    for (line, text) in (1..).zip(page.lines()) {
        let text = text.trim_matches([' ', '\t', '\r']);
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        if samples.len() == MAX_SAMPLES {
            return Err(Malformed::TooLong);
        }
        samples.push(sample(text).map_err(|what| Malformed::Line { line, what })?);
    }
    Ok(samples)
}

fn sample(text: &str) -> Result<Sample, &'static str> {
    let (name, rest) = name(text).ok_or("it does not begin with a name")?;
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    // After the number there may be the time of the sample.
    let number = rest.split_ascii_whitespace().next().ok_or("it has no number")?;
    let value = number.parse().map_err(|_| "its number is none")?;
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// The name that `text` begins with, and what follows.
fn name(text: &str) -> Option<(&str, &str)> {
    let fits = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | ':');
    let end = text.find(|character| !fits(character)).unwrap_or(text.len());
    let begins = text.starts_with(|first: char| !first.is_ascii_digit());
    (end > 0 && begins).then(|| text.split_at(end))
}

/// Labels up to their closing brace, and what follows.
fn labels(mut text: &str) -> Result<(BTreeMap<String, String>, &str), &'static str> {
    let mut all = BTreeMap::new();
    loop {
        text = text.trim_start();
        if let Some(rest) = text.strip_prefix('}') {
            return Ok((all, rest));
        }
        if all.len() == MAX_LABELS {
            return Err("it has too many labels");
        }
        let (key, rest) = name(text).ok_or("a label has no name")?;
        let rest = rest.trim_start().strip_prefix('=').ok_or("a label has no value")?;
        let rest = rest.trim_start().strip_prefix('"').ok_or("a label's value is not quoted")?;
        let (value, rest) = quoted(rest)?;
        all.insert(key.to_owned(), value);
        text = rest.trim_start();
        // Also after the last one.
        text = match text.strip_prefix(',') {
            Some(rest) => rest,
            None if text.starts_with('}') => text,
            None => return Err("its labels do not end"),
        };
    }
}

/// A value up to its closing quote, and what follows.
fn quoted(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                _ => return Err("a label's value has an escape that is none"),
            },
            character => value.push(character),
        }
    }
    Err("a label's value does not end")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn samples_are_read_with_their_labels() {
        let page = "# HELP a b {\n# TYPE a counter\na_total 3\n\nb{x=\"1\",y = \"two \\\"\\\\\\n\" ,} +Inf 1700000000\r\n";
        let samples = parse(page).unwrap();
        let named: Vec<_> = samples.iter().map(|sample| (sample.name.as_str(), sample.value)).collect();
        assert_eq!(named, [("a_total", 3.0), ("b", f64::INFINITY)]);
        assert_eq!(samples[1].labels["y"], "two \"\\\n");
        assert!(parse("c NaN").unwrap()[0].value.is_nan());
    }

    #[test]
    fn what_is_no_sample_is_refused_by_line() {
        for text in
            ["a", "a b", "7 7", "{} 1", "a{x} 1", "a{x=1} 1", "a{x=\"1} 1", "a{x=\"\\t\"} 1", "a{x=\"1\" 1"]
        {
            let refused = parse(&format!("ok 1\n{text}"));
            assert!(matches!(refused, Err(Malformed::Line { line: 2, .. })), "{text}: {refused:?}");
        }
        assert_eq!(parse(&"a 1\n".repeat(MAX_SAMPLES + 1)), Err(Malformed::TooLong));
        assert_eq!(parse(&" ".repeat(MAX_BYTES + 1)), Err(Malformed::TooLong));
    }

    fn written(sample: &Sample) -> String {
        let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> =
            sample.labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
        format!("{}{{{}}} {}\n", sample.name, labels.join(","), sample.value)
    }

    proptest! {
        #[test]
        fn anything_is_samples_or_a_refusal(page in "(?s).{0,200}") {
            let _ = parse(&page);
        }

        #[test]
        fn near_samples_are_samples_or_a_refusal(page in "([a-c{}=\",\\\\ 0-9.\n#]|Inf){0,60}") {
            let _ = parse(&page);
        }

        #[test]
        fn what_was_written_is_read(
            samples in prop::collection::vec(
                (
                    "[a-zA-Z_:][a-zA-Z0-9_:]{0,8}",
                    prop::collection::btree_map("[a-zA-Z_][a-zA-Z0-9_]{0,4}", "[^\r]{0,8}", 0..4),
                    prop::num::f64::NORMAL | prop::num::f64::ZERO,
                ),
                0..8,
            )
        ) {
            let samples: Vec<Sample> =
                samples.into_iter().map(|(name, labels, value)| Sample { name, labels, value }).collect();
            let page: String = samples.iter().map(written).collect();
            prop_assert_eq!(parse(&page), Ok(samples));
        }
    }
}
