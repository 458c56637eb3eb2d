//! Durations as people write them: `90s`, `1h 30m`, `3d`, and ISO 8601's `PT1H30M`, `P3D`.

use std::time::Duration;

const SECOND_MS: u64 = 1000;
const MINUTE_MS: u64 = 60 * SECOND_MS;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

/// Reads a duration; `None` for anything else, months and years included (their length is not fixed).
pub(super) fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    let total_ms = match text.strip_prefix(['P', 'p']) {
        Some(iso) => parse_iso(iso)?,
        None => parse_units(text, &|unit| match unit {
            "ms" => Some(1),
            "s" => Some(SECOND_MS),
            "m" => Some(MINUTE_MS),
            "h" => Some(HOUR_MS),
            "d" => Some(DAY_MS),
            "w" => Some(7 * DAY_MS),
            _ => None,
        })?,
    };
    Some(Duration::from_millis(total_ms))
}

fn parse_iso(text: &str) -> Option<u64> {
    let text = text.to_ascii_uppercase();
    let (days, time) = text.split_once('T').map_or((text.as_str(), None), |(days, time)| (days, Some(time)));
    let mut total = 0_u64;
    if !days.is_empty() {
        total = parse_units(days, &|unit| match unit {
            "D" => Some(DAY_MS),
            "W" => Some(7 * DAY_MS),
            _ => None,
        })?;
    } else if time.is_none() {
        return None;
    }
    if let Some(time) = time {
        let time = parse_units(time, &|unit| match unit {
            "S" => Some(SECOND_MS),
            "M" => Some(MINUTE_MS),
            "H" => Some(HOUR_MS),
            _ => None,
        })?;
        total = total.checked_add(time)?;
    }
    Some(total)
}

/// A sum of `number unit` pairs, at least one, white space between them allowed.
fn parse_units(text: &str, unit_ms: &dyn Fn(&str) -> Option<u64>) -> Option<u64> {
    let mut rest = text;
    let mut total = 0_u64;
    let mut any = false;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().ok()?;
        rest = rest[digits..].trim_start();
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        total = total.checked_add(number.checked_mul(unit_ms(&rest[..letters])?)?)?;
        rest = rest[letters..].trim_start();
        any = true;
    }
    any.then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_and_iso_forms_agree() {
        for (text, ms) in [
            ("90s", 90_000),
            ("1h 30m", 5_400_000),
            ("1h30m", 5_400_000),
            ("PT1H30M", 5_400_000),
            ("3d", 259_200_000),
            ("P3D", 259_200_000),
            ("P1DT12H", 129_600_000),
            ("2w", 1_209_600_000),
            ("250ms", 250),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "P",
            "PT",
            "1",
            "h",
            "1y",
            "P1M",
            "P1Y",
            "-1h",
            "1.5h",
            "1h x",
            "99999999999999999999d",
            "18446744073709551615w",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
