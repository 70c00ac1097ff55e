//! How a request ended, and how that is written: status, headers, body (SPEC §4).

mod retry;

use crate::{
    body::Outgoing,
    coding::Coding,
    compress::Compressing,
    oauth, problem,
    pulse::Busy,
    refusal::{
        self, Fixed, IDEMPOTENCY_IN_PROGRESS, NOT_ALLOWED, OTHER_ENCODING, Refusal, TOO_MANY_WRONG,
    },
    request_id::{RequestId, X_REQUEST_ID},
};
use bytes::Bytes;
use hyper::{
    HeaderMap, Response, StatusCode, Version,
    header::{
        ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE,
        HeaderName, HeaderValue, PRAGMA, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
    },
};
use std::time::Duration;
use tidegate_core::{Allowance, ContentType, Error, KeptAnswer, Kind, RateLimits, Reply, Served};
use tidegate_wire::{error_body, rate_limits};

const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
const UPSTREAM: HeaderName = HeaderName::from_static("x-tidegate-upstream");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-tidegate-attempts");
const OVERHEAD_MS: HeaderName = HeaderName::from_static("x-tidegate-overhead-ms");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const LIMIT_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const LIMIT_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-limit-tokens");
const REMAINING_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const REMAINING_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-tokens");
const RESET_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");
const RESET_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-reset-tokens");

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");

/// Room for the headers of an answer without growing.
const HEADERS: usize = 16;

/// A request that was answered.
#[expect(clippy::large_enum_variant, reason = "one per request, moved twice: a box costs more")]
pub(crate) enum Success {
    /// By the engine, in `took` since the whole request was here.
    Reply { reply: Reply, took: Duration },
    /// By the one before with the same key.
    Replay(KeptAnswer),
    /// By us.
    Own { status: StatusCode, json: Bytes },
    /// By us, in a form that was asked for.
    File { content_type: &'static str, bytes: Bytes },
    /// By us, for one caller and nobody's cache (RFC 6749 §5.1).
    Token { json: Bytes },
    /// By us, for everybody, for a while.
    Public { json: Bytes },
}

/// How a refusal is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorForm {
    /// `{"error":{"message",…}}`, which OpenAI's clients read.
    OpenAi,
    /// `application/problem+json` (RFC 9457), for everybody else.
    Problem,
}

/// What of the request shapes its answer.
pub(crate) struct Asked<'a> {
    pub(crate) id: RequestId,
    pub(crate) version: Version,
    /// The answer's headers only.
    pub(crate) head_only: bool,
    /// Bytes of the request were not read: the connection cannot be used again.
    pub(crate) unread: bool,
    /// How its refusal is written; what the admin port says is no browser's to keep or to guess.
    pub(crate) errors: ErrorForm,
    /// The request presents a key or token.
    pub(crate) has_credential: bool,
    /// Whether and how the answer may be compressed.
    pub(crate) compressing: Option<Compressing<'a>>,
}

/// Writes the answer. The connection is `busy` until its last byte.
pub(crate) fn write(
    outcome: Result<Success, Refusal>,
    asked: Asked<'_>,
    busy: Busy,
) -> Response<Outgoing> {
    let mut headers = HeaderMap::with_capacity(HEADERS);
    let (status, body, close) = match outcome {
        Ok(success) => {
            let (status, body) = write_success(success, &mut headers, busy);
            (status, body, false)
        }
        Err(refusal) => write_refusal(refusal, &asked, &mut headers, busy),
    };
    headers.insert(X_REQUEST_ID, asked.id.header);
    if asked.errors == ErrorForm::Problem {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    // HTTP/2 has no such header: there the stream alone is reset.
    if (close || asked.unread) && asked.version < Version::HTTP_2 {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let body = match asked.compressing {
        _ if asked.head_only => body.without_bytes(&mut headers),
        Some(compressing) => compressing.apply(body, &mut headers),
        None => body,
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn write_success(success: Success, headers: &mut HeaderMap, busy: Busy) -> (StatusCode, Outgoing) {
    let (status, content_type, bytes) = match success {
        Success::Reply { reply, took } => return write_reply(reply, took, headers, busy),
        Success::Replay(answer) => return write_replay(answer, headers, busy),
        Success::Own { status, json } => {
            retry::write_after(status, None, headers);
            (status, JSON, json)
        }
        Success::File { content_type, bytes } => {
            (StatusCode::OK, HeaderValue::from_static(content_type), bytes)
        }
        Success::Token { json } => {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
            (StatusCode::OK, JSON, json)
        }
        Success::Public { json } => {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static(oauth::PUBLIC_FOR));
            (StatusCode::OK, JSON, json)
        }
    };
    headers.insert(CONTENT_TYPE, content_type);
    (status, Outgoing::own(bytes, busy))
}

fn write_reply(
    reply: Reply,
    took: Duration,
    headers: &mut HeaderMap,
    busy: Busy,
) -> (StatusCode, Outgoing) {
    let events = reply.content_type == ContentType::EventStream;
    match &reply.content_type {
        ContentType::Json => _ = headers.insert(CONTENT_TYPE, JSON),
        ContentType::EventStream => write_events(headers),
        ContentType::Other(other) => write_content_type(other, headers),
    }
    let Served { upstream, attempts, upstream_time, tenant, .. } = &reply.served;
    if let Ok(upstream) = HeaderValue::from_str(upstream) {
        headers.insert(UPSTREAM, upstream);
    }
    headers.insert(ATTEMPTS, count((*attempts).into()));
    headers.insert(OVERHEAD_MS, millis(took.saturating_sub(*upstream_time)));
    write_limits(tenant, headers);
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::OK);
    (status, Outgoing::reply(reply.body, events, busy))
}

/// The same status, content type and body; the id is the new request's own.
fn write_replay(answer: KeptAnswer, headers: &mut HeaderMap, busy: Busy) -> (StatusCode, Outgoing) {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    if &*answer.content_type == ContentType::EventStream.as_str() {
        write_events(headers);
    } else {
        write_content_type(&answer.content_type, headers);
    }
    if status.is_client_error() {
        retry::write_again(false, headers);
    }
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    (status, Outgoing::own(answer.body, busy))
}

fn write_content_type(content_type: &str, headers: &mut HeaderMap) {
    if let Ok(content_type) = HeaderValue::from_str(content_type) {
        headers.insert(CONTENT_TYPE, content_type);
    }
}

fn write_events(headers: &mut HeaderMap) {
    headers.insert(CONTENT_TYPE, EVENT_STREAM);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would hold events back to fill its buffers.
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
}

/// Also whether the connection ends with it.
fn write_refusal(
    refusal: Refusal,
    asked: &Asked<'_>,
    headers: &mut HeaderMap,
    busy: Busy,
) -> (StatusCode, Outgoing, bool) {
    let errors = asked.errors;
    match refusal {
        Refusal::Error(error) => {
            let status = write_error(&error, asked.has_credential, headers);
            let body = match errors {
                ErrorForm::OpenAi => error_body::encode(&error),
                ErrorForm::Problem => {
                    problem::encode(status, error.code(), error.message(), error.param())
                }
            };
            headers.insert(CONTENT_TYPE, error_type(errors));
            (status, Outgoing::own(body, busy), false)
        }
        Refusal::Method(allowed) => {
            let allowed = HeaderValue::try_from(allowed);
            headers.insert(ALLOW, allowed.expect("names of methods are a valid header value"));
            write_fixed(&NOT_ALLOWED, errors, headers, busy)
        }
        Refusal::Coding => {
            headers.insert(ACCEPT_ENCODING, Coding::TAKEN);
            write_fixed(&OTHER_ENCODING, errors, headers, busy)
        }
        Refusal::Throttled(wait) => {
            let written = write_fixed(&TOO_MANY_WRONG, errors, headers, busy);
            retry::write_after(TOO_MANY_WRONG.status, Some(wait), headers);
            written
        }
        Refusal::InProgress(wait) => {
            let written = write_fixed(&IDEMPOTENCY_IN_PROGRESS, errors, headers, busy);
            retry::write_wait(wait, headers);
            written
        }
        Refusal::OAuth(refused) => {
            let body = refused.write(headers);
            (refused.status(), Outgoing::own(body, busy), false)
        }
        Refusal::Fixed(fixed) => write_fixed(fixed, errors, headers, busy),
    }
}

fn write_error(error: &Error, has_credential: bool, headers: &mut HeaderMap) -> StatusCode {
    let status = refusal::status_of(error);
    if status == StatusCode::UNAUTHORIZED {
        // Who sent nothing is told of no error (RFC 6750 §3.1).
        let challenge = match error.kind() {
            Kind::TokenExpired => {
                r#"Bearer error="invalid_token", error_description="the token has expired""#
            }
            _ if has_credential => r#"Bearer error="invalid_token""#,
            _ => "Bearer",
        };
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    if let Some(upstream) = error.upstream().and_then(|name| HeaderValue::from_str(name).ok()) {
        headers.insert(UPSTREAM, upstream);
    }
    if error.attempts() > 0 {
        headers.insert(ATTEMPTS, count(error.attempts().into()));
    }
    retry::write_error(error, status, headers);
    write_limits(&error.tenant_limits(), headers);
    status
}

fn write_fixed(
    fixed: &'static Fixed,
    errors: ErrorForm,
    headers: &mut HeaderMap,
    busy: Busy,
) -> (StatusCode, Outgoing, bool) {
    headers.insert(CONTENT_TYPE, error_type(errors));
    if fixed.status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    retry::write_again(fixed.passes(), headers);
    retry::write_after(fixed.status, None, headers);
    let body = match errors {
        ErrorForm::OpenAi => Bytes::from_static(fixed.body.as_bytes()),
        ErrorForm::Problem => problem::encode(fixed.status, fixed.code, fixed.message, None),
    };
    (fixed.status, Outgoing::own(body, busy), fixed.close)
}

const fn error_type(errors: ErrorForm) -> HeaderValue {
    match errors {
        ErrorForm::OpenAi => JSON,
        ErrorForm::Problem => PROBLEM,
    }
}

/// The tenant's own limits; what an upstream said of ours is nobody else's business.
fn write_limits(limits: &RateLimits, headers: &mut HeaderMap) {
    let mut write = |allowance: &Allowance, [limit, remaining, reset]: [HeaderName; 3]| {
        if let Some(units) = allowance.limit {
            headers.insert(limit, count(units));
        }
        if let Some(units) = allowance.remaining {
            headers.insert(remaining, count(units));
        }
        let reset_in = allowance.reset.map(rate_limits::show_reset);
        if let Some(Ok(value)) = reset_in.as_deref().map(HeaderValue::from_str) {
            headers.insert(reset, value);
        }
    };
    write(&limits.requests, [LIMIT_REQUESTS, REMAINING_REQUESTS, RESET_REQUESTS]);
    write(&limits.tokens, [LIMIT_TOKENS, REMAINING_TOKENS, RESET_TOKENS]);
}

/// A number. The library's own conversion allocates twice.
fn count(number: u64) -> HeaderValue {
    let digits = HeaderValue::from_str(itoa::Buffer::new().format(number));
    digits.expect("digits are a valid header value")
}

/// Milliseconds with three decimals.
fn millis(duration: Duration) -> HeaderValue {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let mut text = [0; 24];
    let mut at = text.len();
    let mut rest = micros;
    // At least `0.000`; the dot goes before the third digit from the right.
    while rest > 0 || text.len() - at < 5 {
        at -= 1;
        if text.len() - at == 4 {
            text[at] = b'.';
            continue;
        }
        text[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    HeaderValue::from_bytes(&text[at..]).expect("digits and a dot are a valid header value")
}

impl Outgoing {
    /// Only what the headers say of it: the answer to `HEAD`.
    fn without_bytes(self, headers: &mut HeaderMap) -> Self {
        if let Some(length) = hyper::body::Body::size_hint(&self).exact() {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        self.emptied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_have_three_decimals() {
        for (micros, text) in [
            (0, "0.000"),
            (7, "0.007"),
            (120, "0.120"),
            (1_000, "1.000"),
            (61_234_567, "61234.567"),
            (u64::MAX, "18446744073709551.615"),
        ] {
            assert_eq!(millis(Duration::from_micros(micros)), text);
        }
    }
}
