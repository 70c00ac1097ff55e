//! `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`: reading an upstream's, writing ours.

use std::time::Duration;
use tidegate_core::{Allowance, RateLimits};

/// What the names of all these headers begin with.
pub const PREFIX: &str = "x-ratelimit-";

/// Reads what an answer says of its upstream's limits; what it does not say stays `None`.
///
/// Resets come as Go durations (`6m0s`, `12ms`, `1m2.5s`) or as bare seconds.
pub fn read<'h>(header: impl Fn(&str) -> Option<&'h str>) -> RateLimits {
    RateLimits {
        requests: Allowance {
            limit: header("x-ratelimit-limit-requests").and_then(count),
            remaining: header("x-ratelimit-remaining-requests").and_then(count),
            reset: header("x-ratelimit-reset-requests").and_then(reset),
        },
        tokens: Allowance {
            limit: header("x-ratelimit-limit-tokens").and_then(count),
            remaining: header("x-ratelimit-remaining-tokens").and_then(count),
            reset: header("x-ratelimit-reset-tokens").and_then(reset),
        },
    }
}

/// Writes a reset as OpenAI does: `0s`, `12ms`, `1.5s`, `6m0s`, `1h0m0s`.
pub fn show_reset(reset: Duration) -> String {
    let (total, millis) = (reset.as_secs(), reset.subsec_millis());
    let mut shown = String::with_capacity(16);
    let mut say = |number: u64, unit: &str| {
        shown.push_str(itoa::Buffer::new().format(number));
        shown.push_str(unit);
    };
    if total == 0 && millis > 0 {
        say(millis.into(), "ms");
        return shown;
    }
    let (hours, minutes, seconds) = (total / 3_600, total / 60 % 60, total % 60);
    if hours > 0 {
        say(hours, "h");
    }
    if total >= 60 {
        say(minutes, "m");
    }
    if millis == 0 {
        say(seconds, "s");
        return shown;
    }
    say(seconds, ".");
    let fraction = format!("{millis:03}");
    shown.push_str(fraction.trim_end_matches('0'));
    shown.push('s');
    shown
}

fn count(value: &str) -> Option<u64> {
    let value = value.trim();
    value.parse().ok().or_else(|| {
        // Some servers count in floats.
        let float: f64 = value.parse().ok()?;
        (0.0..1e15).contains(&float).then_some(float as u64)
    })
}

fn reset(value: &str) -> Option<Duration> {
    const LONGEST_SECS: f64 = 10.0 * 366.0 * 86_400.0;
    let value = value.trim();
    let seconds = match value.parse::<f64>() {
        Ok(seconds) => seconds,
        Err(_) => go_duration_secs(value)?,
    };
    // Larger numbers are points in time, in whatever unit: no use to anybody.
    (0.0..LONGEST_SECS).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

fn go_duration_secs(value: &str) -> Option<f64> {
    let (mut total, mut rest) = (0.0, value);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit_len = rest[digits..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len() - digits);
        let scale = match &rest[digits..digits + unit_len] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        total += number * scale;
        rest = &rest[digits + unit_len..];
    }
    (!value.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets_round_trip() {
        for (shown, millis) in [
            ("0s", 0),
            ("12ms", 12),
            ("1s", 1_000),
            ("1.5s", 1_500),
            ("8.64s", 8_640),
            ("6m0s", 360_000),
            ("1m2.005s", 62_005),
            ("1h0m0s", 3_600_000),
            ("25h1m1s", 90_061_000),
        ] {
            let wait = Duration::from_millis(millis);
            assert_eq!(show_reset(wait), shown);
            let read = reset(shown).unwrap();
            assert!(read.abs_diff(wait) < Duration::from_micros(1), "{shown}: {read:?}");
        }
        assert_eq!(reset("1.5"), Some(Duration::from_millis(1_500)));
        for garbage in ["", "soon", "5x", "-1s", "-3", "s", "1s2", "1700000000000", "NaN", "1.2.3s"]
        {
            assert_eq!(reset(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn reads_what_is_there() {
        let limits = read(|name| match name {
            "x-ratelimit-limit-requests" => Some("5000"),
            "x-ratelimit-remaining-requests" => Some("4999.0"),
            "x-ratelimit-reset-tokens" => Some("6ms"),
            "x-ratelimit-limit-tokens" => Some("lots"),
            _ => None,
        });
        assert_eq!(limits.requests.limit, Some(5000));
        assert_eq!(limits.requests.remaining, Some(4999));
        assert_eq!(limits.tokens.reset, Some(Duration::from_millis(6)));
        assert_eq!(limits.tokens.limit, None);
    }
}
