//! How long an answer asks us to wait.

use std::time::{Duration, SystemTime};

/// The longest wait believed. Anything longer is over every deadline anyway.
pub const CAP: Duration = Duration::from_secs(24 * 60 * 60);

/// Reads `retry-after-ms`, then `retry-after` in seconds (fractions too) or as an HTTP date.
///
/// A date that has passed is no wait. Garbage and negative numbers are as good as nothing said;
/// waits are cut at [`CAP`]. Source: RFC 9110 §10.2.3, and the millisecond form of OpenAI's and
/// Azure's servers.
pub fn read<'h>(header: impl Fn(&str) -> Option<&'h str>, now: SystemTime) -> Option<Duration> {
    let millis = header("retry-after-ms").and_then(number).and_then(|ms| wait(ms / 1_000.0));
    millis.or_else(|| {
        let value = header("retry-after")?.trim();
        match number(value) {
            Some(seconds) => wait(seconds),
            None => until(value, now),
        }
    })
}

fn number(value: &str) -> Option<f64> {
    value.trim().parse().ok()
}

fn wait(seconds: f64) -> Option<Duration> {
    if seconds > CAP.as_secs_f64() {
        return Some(CAP);
    }
    // Negative numbers and NaN fail to convert.
    Duration::try_from_secs_f64(seconds).ok()
}

fn until(date: &str, now: SystemTime) -> Option<Duration> {
    let date = httpdate::parse_http_date(date).ok()?;
    Some(date.duration_since(now).unwrap_or_default().min(CAP))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&str, &str)], expected_ms: Option<u64>) {
        // Sun, 06 Nov 1994 08:49:37 GMT
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let find = |name: &str| headers.iter().find(|(key, _)| *key == name).map(|(_, v)| *v);
        assert_eq!(read(find, now), expected_ms.map(Duration::from_millis), "{headers:?}");
    }

    #[test]
    fn every_form() {
        check(&[], None);
        check(&[("retry-after", "2")], Some(2_000));
        check(&[("retry-after", " 0.25 ")], Some(250));
        check(&[("retry-after", "0")], Some(0));
        check(&[("retry-after-ms", "120"), ("retry-after", "7")], Some(120));
        check(&[("retry-after-ms", "soon"), ("retry-after", "7")], Some(7_000));
        check(&[("retry-after", "Sun, 06 Nov 1994 08:49:40 GMT")], Some(3_000));
        check(&[("retry-after", "Sunday, 06-Nov-94 08:49:40 GMT")], Some(3_000));
        check(&[("retry-after", "Sun, 06 Nov 1994 08:49:30 GMT")], Some(0));
        check(&[("retry-after", "1e9")], Some(86_400_000));
        check(&[("retry-after", "99999999999999999999999")], Some(86_400_000));
        check(&[("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT")], Some(86_400_000));
        for garbage in ["-1", "NaN", "-inf", "soon", "", "1 second"] {
            check(&[("retry-after", garbage)], None);
        }
    }
}
