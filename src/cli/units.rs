//! Sizes and times as people type and read them.
//!
//! Invariant: `k` is 1024, as in fio, in whatever case and with or without `b` or `ib` behind it.
//! Deliberately not here: fractions. `1.5g` has no exact meaning for an offset.

use std::time::Duration;

/// Reads `4096`, `4k`, `16m`, `200G`, `1tib`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let refuse =
        || format!("a size is a whole number with k, m, g, t or p behind it: size={text:?}");
    let lower = text.trim().to_ascii_lowercase();
    let split = lower
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(lower.len());
    let (digits, unit) = lower.split_at(split);
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(refuse()),
    };
    let number: u64 = digits.parse().map_err(|_| refuse())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("a size has at most 64 bits: size={text:?}"))
}

/// Reads a size of at least one byte.
pub(crate) fn parse_size_above_zero(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("it must be at least one byte".to_owned()),
        size => Ok(size),
    }
}

/// Reads `A-B`, the bytes from A up to but not including B; without B, up to the end.
pub(crate) fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text
        .split_once('-')
        .ok_or_else(|| format!("a range is A-B, or A- up to the end: range={text:?}"))?;
    let from = parse_size(from)?;
    let to = match to.trim() {
        "" => u64::MAX,
        to => parse_size(to)?,
    };
    if from > to {
        return Err(format!(
            "a range ends where it begins or later: range={text:?}"
        ));
    }
    Ok((from, to))
}

/// Reads `60`, `60s`, `500ms`, `20us`, `5m`, `1h`; a bare number is seconds.
pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    let refuse =
        || format!("a time is a whole number with us, ms, s, m, h or d behind it: time={text:?}");
    let lower = text.trim().to_ascii_lowercase();
    let split = lower
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(lower.len());
    let (digits, unit) = lower.split_at(split);
    let number: u64 = digits.parse().map_err(|_| refuse())?;
    let micros = match unit {
        "us" => 1,
        "ms" => 1_000,
        "" | "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return Err(refuse()),
    };
    let micros = number.checked_mul(micros).ok_or_else(refuse)?;
    Ok(Duration::from_micros(micros))
}

/// A size for people: `512 B`, `4.0 KiB`, `1.5 GiB`.
pub(crate) fn show_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1024.0;
    let mut unit = 0;
    // From 1023.95 on, one decimal would be shown as 1024.0.
    while size >= 1023.95 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// A time for people, with three digits: `870 ns`, `12.3 us`, `4.56 ms`, `1.23 s`.
pub(crate) fn show_time(ns: u64) -> String {
    let (value, unit) = match ns {
        0..=999 => return format!("{ns} ns"),
        1_000..=999_999 => (ns as f64 / 1e3, "us"),
        1_000_000..=999_999_999 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    match value {
        value if value < 9.995 => format!("{value:.2} {unit}"),
        value if value < 99.95 => format!("{value:.1} {unit}"),
        value => format!("{value:.0} {unit}"),
    }
}

/// A count or a rate for people: `950`, `12.3 k`, `4.56 M`.
pub(crate) fn show_count(count: f64) -> String {
    match count {
        count if count < 1e4 => format!("{count:.0}"),
        count if count < 1e6 => format!("{:.1} k", count / 1e3),
        count => format!("{:.2} M", count / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_is_1024_as_in_fio() {
        for (text, size) in [
            ("0", 0),
            ("4096", 4096),
            ("4k", 4096),
            ("4K", 4096),
            ("4kb", 4096),
            ("4KiB", 4096),
            ("16m", 16 << 20),
            ("200G", 200 << 30),
            ("1t", 1 << 40),
            ("2p", 2 << 50),
            ("512b", 512),
            (" 1g ", 1 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in [
            "", "k", "-1", "+1", "1.5g", "4kk", "4 k", "0x10", "20000p", "1e3", "4ki",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert!(parse_size_above_zero("0").is_err());
    }

    #[test]
    fn ranges_are_half_open() {
        assert_eq!(parse_range("0-4k"), Ok((0, 4096)));
        assert_eq!(parse_range("1m-"), Ok((1 << 20, u64::MAX)));
        assert_eq!(parse_range("5-5"), Ok((5, 5)));
        for text in ["", "5", "6-5", "-5", "a-b"] {
            assert!(parse_range(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bare_times_are_seconds() {
        assert_eq!(parse_time("60"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_time("20us"), Ok(Duration::from_micros(20)));
        assert_eq!(parse_time("2m"), Ok(Duration::from_secs(120)));
        for text in ["", "s", "1.5s", "-1", "5y"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn figures_for_people_have_few_digits() {
        assert_eq!(show_size(0), "0 B");
        assert_eq!(show_size(1023), "1023 B");
        assert_eq!(show_size(1024), "1.0 KiB");
        assert_eq!(show_size((1 << 20) - 1), "1.0 MiB");
        assert_eq!(show_size(3 << 29), "1.5 GiB");
        assert_eq!(show_time(870), "870 ns");
        assert_eq!(show_time(12_345), "12.3 us");
        assert_eq!(show_time(4_560_000), "4.56 ms");
        assert_eq!(show_time(1_230_000_000), "1.23 s");
        assert_eq!(show_count(12_345.0), "12.3 k");
    }
}
