//! Quantities as people write and read them: `90s`, `1000-2000ms`, `248.0 kB`. Rounding happens here, when printing,
//! and nowhere else.

use std::time::Duration;

/// The unit of a bare number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bare {
    /// `90` means 90 s.
    Seconds,
    /// `90` means 90 ms.
    Milliseconds,
}

impl Bare {
    const fn suffix(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Milliseconds => "ms",
        }
    }
}

/// Longest duration that is accepted: a day. Everything here waits for something; more is a typing error.
pub const MAX_DURATION: Duration = Duration::from_secs(24 * 3600);

/// Reads `90`, `1.5s`, `100ms` or `2m`.
///
/// # Errors
/// What is wrong, with the forms that would be right.
pub fn parse_duration(text: &str, bare: Bare) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = if digits.len() == text.len() { bare.suffix() } else { &text[digits.len()..] };
    let wrong = || {
        format!("not a duration; write for example 90s, 1500ms or 2m (a bare number means {})", bare.suffix())
    };
    let seconds_per_unit = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" | "min" => 60.0,
        _ => return Err(wrong()),
    };
    let number: f64 = digits.trim().parse().map_err(|_| wrong())?;
    let seconds = number * seconds_per_unit;
    if !seconds.is_finite() || seconds < 0.0 {
        return Err(wrong());
    }
    if seconds > MAX_DURATION.as_secs_f64() {
        return Err("longer than a day; use at most 1440m".into());
    }
    Ok(Duration::from_nanos((seconds * 1e9).round() as u64))
}

/// Reads `1000-2000ms` or `1s-2s`: the unit of the upper end holds for the lower one, unless that has its own.
///
/// # Errors
/// What is wrong, with the form that would be right.
pub fn parse_window(text: &str) -> Result<(Duration, Duration), String> {
    let wrong = || "not a window; write LO-HI with a unit, for example 1000-2000ms".to_string();
    let (low, high) = text.split_once('-').ok_or_else(wrong)?;
    let unit: String = high.chars().skip_while(|c| !c.is_ascii_alphabetic()).collect();
    let low_has_unit = low.ends_with(|c: char| c.is_ascii_alphabetic());
    let low = if low_has_unit { low.to_owned() } else { format!("{low}{unit}") };
    let parse = |text: &str| parse_duration(text, Bare::Milliseconds).map_err(|_| wrong());
    Ok((parse(&low)?, parse(high)?))
}

/// Reads `248024`, `64kB`, `45MB` (powers of 1000), `64KiB` or `4MiB` (powers of 1024).
///
/// # Errors
/// What is wrong, with the forms that would be right.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let wrong = || "not a number of bytes; write for example 248024, 64kB, 45MB or 4MiB".to_owned();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: f64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1_048_576.0,
        _ => return Err(wrong()),
    };
    let number: f64 = digits.trim().parse().map_err(|_| wrong())?;
    let bytes = number * unit;
    // Whole, and exact as a float.
    if !(bytes >= 0.0 && bytes <= 2f64.powi(53) && bytes.fract() == 0.0) {
        return Err(wrong());
    }
    Ok(bytes as u64)
}

/// Nanoseconds of a duration that [`parse_duration`] accepts.
#[must_use]
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A span for people: `312 ms`, `4.81 s`, `2 min 05 s`.
#[must_use]
pub fn show_ns(ns: u64) -> String {
    match ns {
        0..1_000_000 => format!("{} us", ns / 1_000),
        1_000_000..10_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{} ms", ns / 1_000_000),
        1_000_000_000..120_000_000_000 => format!("{:.2} s", ns as f64 / 1e9),
        _ => format!("{} min {:02} s", ns / 60_000_000_000, ns / 1_000_000_000 % 60),
    }
}

/// A size for people, in powers of 1000: `248.0 kB`.
#[must_use]
pub fn show_bytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// Milliseconds with as many digits as they need: `100ms`, `1.5ms`.
#[must_use]
pub fn exact_ms(ns: u64) -> String {
    if ns.is_multiple_of(1_000_000) {
        format!("{}ms", ns / 1_000_000)
    } else {
        format!("{}ms", ns as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_both_kinds() {
        let sizes = ["248024", "64kB", "64 KB", "4MiB", "1.5MB", "0"].map(|text| parse_bytes(text).unwrap());
        assert_eq!(sizes, [248_024, 64_000, 64_000, 4_194_304, 1_500_000, 0]);
        for text in ["", "MB", "-1", "1.5", "1e400", "nan", "3 apples"] {
            assert!(parse_bytes(text).unwrap_err().contains("45MB"), "{text}");
        }
    }

    #[test]
    fn durations_take_a_unit_or_the_option_s_own() {
        let ms = Duration::from_millis;
        for (text, bare, expected) in [
            ("90", Bare::Seconds, ms(90_000)),
            ("90", Bare::Milliseconds, ms(90)),
            ("1.5s", Bare::Seconds, ms(1_500)),
            ("100ms", Bare::Seconds, ms(100)),
            ("2m", Bare::Seconds, ms(120_000)),
            ("0", Bare::Seconds, ms(0)),
        ] {
            assert_eq!(parse_duration(text, bare), Ok(expected), "{text}");
        }
        for text in ["", "s", "-1s", "1h", "nan", "inf", "1 2", "é", "1e99s", "1441m"] {
            assert!(parse_duration(text, Bare::Seconds).is_err(), "{text}");
        }
    }

    #[test]
    fn windows_share_the_upper_end_s_unit() {
        let ms = Duration::from_millis;
        assert_eq!(parse_window("1000-2000ms"), Ok((ms(1000), ms(2000))));
        assert_eq!(parse_window("150-300"), Ok((ms(150), ms(300))));
        assert_eq!(parse_window("1-2s"), Ok((ms(1000), ms(2000))));
        assert_eq!(parse_window("500ms-2s"), Ok((ms(500), ms(2000))));
        for text in ["", "1000", "-", "a-b", "1000-", "-2000ms", "1-2-3"] {
            assert!(parse_window(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_rounded_for_people() {
        assert_eq!(show_ns(312_000_000), "312 ms");
        assert_eq!(show_ns(4_812_000_000), "4.81 s");
        assert_eq!(show_ns(125_000_000_000), "2 min 05 s");
        assert_eq!(show_bytes(248_024), "248.0 kB");
        assert_eq!(exact_ms(100_000_000), "100ms");
        assert_eq!(exact_ms(1_500_000), "1.5ms");
    }
}
