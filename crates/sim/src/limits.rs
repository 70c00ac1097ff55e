//! The hidden limits: requests per second, tokens per minute, requests in flight.
//!
//! Each rate is a token bucket: it holds `burst`, refills at the rate, and a refused request
//! takes nothing, as the providers' do.

use crate::faults::{Faults, RetryAfterForm};
use http::{HeaderMap, HeaderName, HeaderValue, header::RETRY_AFTER};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Buckets of one simulator.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    requests: Bucket,
    tokens: Bucket,
}

impl Limits {
    /// Takes one request; `Err` is the time until there is room for it.
    pub(crate) fn take_request(&mut self, faults: &Faults, now: Instant) -> Result<(), Duration> {
        let Some((rate, burst)) = request_rate(faults) else { return Ok(()) };
        self.requests.take(1.0, rate, burst, now)
    }

    /// Takes the tokens of one request; more than the bucket holds count as all it holds.
    pub(crate) fn take_tokens(
        &mut self,
        faults: &Faults,
        tokens: u64,
        now: Instant,
    ) -> Result<(), Duration> {
        let Some((rate, burst)) = token_rate(faults) else { return Ok(()) };
        self.tokens.take((tokens as f64).min(burst), rate, burst, now)
    }

    /// Writes `x-ratelimit-*` as OpenAI does: a minute's allowance, what of it is left, and when
    /// it is whole again. A refusal leaves 0 of the limit that refused.
    pub(crate) fn announce(
        &mut self,
        faults: &Faults,
        refused: Option<&'static str>,
        now: Instant,
        headers: &mut HeaderMap,
    ) {
        if let Some((rate, burst)) = request_rate(faults) {
            let used = self.requests.used(rate, burst, now);
            write(headers, &REQUESTS, rate, used, refused == Some("rate"));
        }
        if let Some((rate, burst)) = token_rate(faults) {
            let used = self.tokens.used(rate, burst, now);
            write(headers, &TOKENS, rate, used, refused == Some("tokens"));
        }
    }
}

fn request_rate(faults: &Faults) -> Option<(f64, f64)> {
    let rate = faults.rate.filter(|rate| *rate > 0.0)?;
    Some((rate, faults.burst.map_or(rate, f64::from).max(1.0)))
}

fn token_rate(faults: &Faults) -> Option<(f64, f64)> {
    let per_minute = faults.tokens_per_minute.filter(|tokens| *tokens > 0)?;
    let burst = faults.token_burst.unwrap_or(per_minute).max(1);
    Some((per_minute as f64 / 60.0, burst as f64))
}

/// A bucket, kept as what is used of it, so that a changed burst takes effect at once.
#[derive(Debug, Default)]
struct Bucket {
    used: f64,
    seen: Option<Instant>,
}

impl Bucket {
    fn take(&mut self, amount: f64, rate: f64, burst: f64, now: Instant) -> Result<(), Duration> {
        let over = self.used(rate, burst, now) + amount - burst;
        // A billionth of slack: the refill is a sum of rounded numbers.
        if over > 1e-9 * burst {
            return Err(Duration::try_from_secs_f64(over / rate).unwrap_or(Duration::MAX));
        }
        self.used += amount;
        Ok(())
    }

    fn used(&mut self, rate: f64, burst: f64, now: Instant) -> f64 {
        let passed = self.seen.map_or(0.0, |seen| now.duration_since(seen).as_secs_f64());
        self.seen = Some(now);
        self.used = (self.used - passed * rate).clamp(0.0, burst);
        self.used
    }
}

const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

fn write(headers: &mut HeaderMap, names: &[HeaderName; 3], rate: f64, used: f64, refused: bool) {
    let limit = (rate * 60.0).round();
    let remaining = if refused { 0.0 } else { (limit - used).floor().max(0.0) };
    let reset = Duration::try_from_secs_f64(used / rate).unwrap_or(Duration::MAX);
    headers.insert(&names[0], HeaderValue::from(limit as u64));
    headers.insert(&names[1], HeaderValue::from(remaining as u64));
    headers.insert(&names[2], text(&show_reset(reset)));
}

/// `12ms`, `1.5s` or `6m0s`, as OpenAI writes them.
fn show_reset(reset: Duration) -> String {
    match reset.as_millis() {
        millis @ 0..1000 => format!("{millis}ms"),
        millis @ 1000..60_000 => format!("{}s", millis as f64 / 1000.0),
        millis => format!("{}m{}s", millis / 60_000, millis % 60_000 / 1000),
    }
}

/// Writes when to come back, in the form asked for.
pub(crate) fn write_retry_after(faults: &Faults, headers: &mut HeaderMap) {
    let wait = faults.retry_after;
    let up = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let value = match faults.retry_after_form {
        RetryAfterForm::None => return,
        RetryAfterForm::Ms => {
            let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            let name = const { HeaderName::from_static("retry-after-ms") };
            headers.insert(name, HeaderValue::from(millis));
            return;
        }
        RetryAfterForm::Seconds => HeaderValue::from(up),
        RetryAfterForm::Fraction => text(&format!("{:.3}", wait.as_secs_f64())),
        RetryAfterForm::Date => text(&http_date(SystemTime::now(), up)),
        RetryAfterForm::Garbage => HeaderValue::from_static("soon"),
        RetryAfterForm::Negative => HeaderValue::from_static("-1"),
    };
    headers.insert(RETRY_AFTER, value);
}

/// `now` plus `seconds`, rounded up to a second, as HTTP writes dates (RFC 9110 §5.6.7).
fn http_date(now: SystemTime, seconds: u64) -> String {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let second = now.as_secs() + u64::from(now.subsec_nanos() > 0);
    let at = i64::try_from(second.saturating_add(seconds)).unwrap_or(i64::MAX);
    let at = jiff::Timestamp::from_second(at).unwrap_or(jiff::Timestamp::MAX);
    at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).expect("digits and letters make a header")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(limits: &mut Limits, faults: &Faults, now: Instant, tries: u32) -> u32 {
        (0..tries).filter(|_| limits.take_request(faults, now).is_ok()).count() as u32
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let faults = Faults { rate: Some(40.0), ..Faults::default() };
        let (mut limits, start) = (Limits::default(), Instant::now());
        assert_eq!(taken(&mut limits, &faults, start, 100), 40);
        assert_eq!(taken(&mut limits, &faults, start + Duration::from_millis(500), 100), 20);
        let refused = limits.take_request(&faults, start + Duration::from_millis(500));
        assert_eq!(refused, Err(Duration::from_millis(25)));
        assert_eq!(taken(&mut limits, &faults, start + Duration::from_secs(60), 100), 40);
    }

    #[test]
    fn a_request_longer_than_the_bucket_passes_when_it_is_full() {
        let faults = Faults { tokens_per_minute: Some(600), ..Faults::default() };
        let (mut limits, start) = (Limits::default(), Instant::now());
        assert!(limits.take_tokens(&faults, 10_000, start).is_ok());
        assert!(limits.take_tokens(&faults, 1, start).is_err());
        assert!(limits.take_tokens(&faults, 10, start + Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn announced_as_openai_does() {
        let faults = Faults { rate: Some(10.0), ..Faults::default() };
        let (mut limits, start) = (Limits::default(), Instant::now());
        assert_eq!(taken(&mut limits, &faults, start, 3), 3);
        let mut headers = HeaderMap::new();
        limits.announce(&faults, None, start, &mut headers);
        assert_eq!(headers[&REQUESTS[0]], "600");
        assert_eq!(headers[&REQUESTS[1]], "597");
        assert_eq!(headers[&REQUESTS[2]], "300ms");
        assert!(!headers.contains_key(&TOKENS[0]));
        assert_eq!(show_reset(Duration::from_secs(361)), "6m1s");
        assert_eq!(show_reset(Duration::from_millis(1500)), "1.5s");
    }

    #[test]
    fn retry_after_in_every_form() {
        let check = |form, name: &str, expected: &str| {
            let faults = Faults {
                retry_after: Duration::from_millis(1250),
                retry_after_form: form,
                ..Faults::default()
            };
            let mut headers = HeaderMap::new();
            write_retry_after(&faults, &mut headers);
            assert_eq!(headers.get(name).map_or("", |value| value.to_str().unwrap()), expected);
        };
        check(RetryAfterForm::Seconds, "retry-after", "2");
        check(RetryAfterForm::Fraction, "retry-after", "1.250");
        check(RetryAfterForm::Ms, "retry-after-ms", "1250");
        check(RetryAfterForm::Garbage, "retry-after", "soon");
        check(RetryAfterForm::Negative, "retry-after", "-1");
        check(RetryAfterForm::None, "retry-after", "");
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(784_111_775_500);
        assert_eq!(http_date(at, 1), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
