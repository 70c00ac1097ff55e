//! Whether a client should come again, and when.

use hyper::{
    HeaderMap, StatusCode,
    header::{HeaderName, HeaderValue, RETRY_AFTER},
};
use std::time::Duration;
use tidegate_core::{Error, Kind, Retry};

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// What a 429 or 503 asks for when nobody knows better.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Says of `error` whether and when to come again.
pub(super) fn write_error(error: &Error, status: StatusCode, headers: &mut HeaderMap) {
    write_after(status, time_to_wait(error), headers);
    write_again(should_retry(error), headers);
}

/// Says whether to come `again`, in the header that OpenAI's clients read.
pub(super) fn write_again(again: bool, headers: &mut HeaderMap) {
    headers.insert(SHOULD_RETRY, HeaderValue::from_static(if again { "true" } else { "false" }));
}

/// Says when to come back, on every 429 and 503.
pub(super) fn write_after(status: StatusCode, after: Option<Duration>, headers: &mut HeaderMap) {
    if !matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return;
    }
    let after = after.filter(|wait| !wait.is_zero()).unwrap_or(DEFAULT_RETRY_AFTER);
    write_wait(after, headers);
}

/// In whole seconds for everybody, and in milliseconds for clients that read them.
pub(super) fn write_wait(after: Duration, headers: &mut HeaderMap) {
    let millis = u64::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    headers.insert(RETRY_AFTER, millis.div_ceil(1000).into());
    headers.insert(RETRY_AFTER_MS, millis.into());
}

/// How long the error asks a client to wait, if it does.
fn time_to_wait(error: &Error) -> Option<Duration> {
    error.retry_after().or(match error.retry() {
        Retry::After(wait) => Some(wait),
        Retry::Never | Retry::Unsent => None,
    })
}

/// Whether a client should try again by itself. Once attempts were made here it should not:
/// layers that each try three times multiply.
fn should_retry(error: &Error) -> bool {
    match error.kind() {
        // Without a time to come back, the call alone is more than the limit: it never fits.
        Kind::RateLimited => time_to_wait(error).is_some(),
        Kind::ConcurrencyLimited | Kind::Overloaded => true,
        Kind::UpstreamCapacity | Kind::Unavailable | Kind::Upstream | Kind::UpstreamTimeout(_) => {
            error.attempts() == 0
        }
        Kind::InvalidRequest
        | Kind::InvalidJson
        | Kind::Unauthenticated
        | Kind::TokenExpired
        | Kind::BudgetExceeded
        | Kind::ModelNotAllowed
        | Kind::ModelNotFound
        | Kind::NotFound
        | Kind::TooLarge
        | Kind::Rejected
        | Kind::UpstreamCredential
        | Kind::UpstreamQuota
        | Kind::DeadlineExceeded
        | Kind::Cancelled
        | Kind::Internal => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::Origin;

    #[test]
    fn a_wait_is_never_rounded_down() {
        let check = |after, seconds: &str, millis: &str| {
            let mut headers = HeaderMap::new();
            write_after(StatusCode::TOO_MANY_REQUESTS, after, &mut headers);
            assert_eq!(headers[RETRY_AFTER], seconds);
            assert_eq!(headers[RETRY_AFTER_MS], millis);
        };
        check(None, "1", "1000");
        check(Some(Duration::ZERO), "1", "1000");
        check(Some(Duration::from_micros(1_500)), "1", "2");
        check(Some(Duration::from_millis(2_001)), "3", "2001");
        let mut headers = HeaderMap::new();
        write_after(StatusCode::BAD_GATEWAY, None, &mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn clients_retry_only_what_we_have_not() {
        let of = |kind, attempts| {
            let error = Error::new(kind, Origin::Gateway, "");
            should_retry(&if attempts > 0 {
                error.after_attempts(attempts, "u".into())
            } else {
                error
            })
        };
        assert!(of(Kind::ConcurrencyLimited, 0) && of(Kind::Overloaded, 0));
        assert!(of(Kind::Unavailable, 0));
        assert!(!of(Kind::UpstreamCapacity, 3) && !of(Kind::Upstream, 1));
        assert!(!of(Kind::InvalidRequest, 0) && !of(Kind::UpstreamQuota, 0));
    }

    #[test]
    fn a_call_that_never_fits_its_limit_was_to_be_retried() {
        let refused = |after| {
            let error = Error::new(Kind::RateLimited, Origin::Caller, "").with_retry_after(after);
            should_retry(&error)
        };
        assert!(refused(Some(Duration::from_secs(1))));
        assert!(!refused(None));
    }
}
