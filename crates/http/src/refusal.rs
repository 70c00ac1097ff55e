//! Requests that are refused: the reasons of HTTP in fixed words, and what is told of those that
//! never became calls. (The engine records those that did.)

use crate::{oauth, request_id::RequestId, shown};
use hyper::{StatusCode, http::request::Parts};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tidegate_core::{Class, Error, Tenant};
use tidegate_wire::error_body;

/// Why a request is not answered.
pub(crate) enum Refusal {
    /// For a reason every front knows.
    Error(Error),
    /// For a reason of HTTP.
    Fixed(&'static Fixed),
    /// Known path, wrong method: only these are, as the `Allow` header says it.
    Method(String),
    /// A body in a coding that is not taken.
    Coding,
    /// A call with this key runs; when to ask again.
    InProgress(Duration),
    /// Too many wrong credentials came from its address: none is told from another for so long.
    Throttled(Duration),
    /// A token is not issued, said in OAuth's own words.
    OAuth(oauth::Refused),
}

impl Refusal {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Error(error) => status_of(error),
            Self::Fixed(fixed) => fixed.status,
            Self::Method(_) => NOT_ALLOWED.status,
            Self::Coding => OTHER_ENCODING.status,
            Self::Throttled(_) => TOO_MANY_WRONG.status,
            Self::InProgress(_) => IDEMPOTENCY_IN_PROGRESS.status,
            Self::OAuth(refused) => refused.status(),
        }
    }

    /// The code callers branch on.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Error(error) => error.code(),
            Self::Fixed(fixed) => fixed.code,
            Self::Method(_) => NOT_ALLOWED.code,
            Self::Coding => OTHER_ENCODING.code,
            Self::Throttled(_) => TOO_MANY_WRONG.code,
            Self::InProgress(_) => IDEMPOTENCY_IN_PROGRESS.code,
            Self::OAuth(refused) => refused.code(),
        }
    }

    pub(crate) const fn class(&self) -> Class {
        match self {
            Self::Error(error) => error.class(),
            Self::Fixed(fixed) if fixed.status.as_u16() >= 500 => Class::Refused,
            Self::Fixed(_)
            | Self::Method(_)
            | Self::Coding
            | Self::InProgress(_)
            | Self::Throttled(_)
            | Self::OAuth(_) => Class::Caller,
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// A refusal whose words never change.
pub(crate) struct Fixed {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: &'static str,
    /// Code and message as callers read them.
    pub(crate) body: &'static str,
    /// The request cannot be trusted to end where it seems to.
    pub(crate) close: bool,
}

impl Fixed {
    /// Whether the same request may fare better in a moment.
    pub(crate) fn passes(&self) -> bool {
        self.code == IDEMPOTENCY_IN_PROGRESS.code
            || matches!(self.status, StatusCode::REQUEST_TIMEOUT | StatusCode::SERVICE_UNAVAILABLE)
    }
}

macro_rules! fixed {
    ($($(#[$doc:meta])* $name:ident = $status:ident, $code:literal, $close:literal, $message:literal;)*) => {$(
        $(#[$doc])*
        pub(crate) static $name: Fixed = Fixed {
            status: StatusCode::$status,
            code: $code,
            message: $message,
            body: concat!(
                r#"{"error":{"message":""#, $message,
                r#"","type":"invalid_request_error","param":null,"code":""#, $code, r#""}}"#,
            ),
            close: $close,
        };
    )*};
}

fixed! {
    NO_HOST = BAD_REQUEST, "invalid_request_error", true,
        "the request has no Host header";
    TWO_HOSTS = BAD_REQUEST, "invalid_request_error", true,
        "the request has more than one Host header";
    BAD_HOST = BAD_REQUEST, "invalid_request_error", true,
        "the Host header is no host name with an optional port";
    OTHER_HOST = BAD_REQUEST, "invalid_request_error", true,
        "the request's target and its Host header name different hosts";
    TWO_LENGTHS = BAD_REQUEST, "invalid_request_error", true,
        "the request has both Content-Length and Transfer-Encoding: send one of them";
    OTHER_CODING = BAD_REQUEST, "invalid_request_error", true,
        "the request's Transfer-Encoding is not one plain `chunked`";
    BARE_LINE_END = BAD_REQUEST, "invalid_request_error", true,
        "a line of the request's head ends in LF alone: end each with CR LF";
    AMBIGUOUS_PATH = BAD_REQUEST, "invalid_request_error", true,
        "the path has empty or dot segments, or escaped dots or slashes: write it plainly";
    TARGET_TOO_LONG = URI_TOO_LONG, "request_too_large", true,
        "the request's URL is longer than 8 KiB";
    NOT_JSON = UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", false,
        "the body must be JSON: send `content-type: application/json`";
    OTHER_ENCODING = UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", false,
        "the body's content-encoding is not one of zstd, br, gzip, applied once: use one of them or none";
    BODY_DAMAGED = BAD_REQUEST, "invalid_request_error", false,
        "the body cannot be unpacked: it is not what content-encoding says, is cut off, or goes on after its end";
    BODY_TOO_SLOW = REQUEST_TIMEOUT, "request_timeout", true,
        "the request's body arrived too slowly";
    BODY_BROKEN = BAD_REQUEST, "invalid_request_error", true,
        "the request's body broke off or is not framed as HTTP asks";
    NOT_FOUND = NOT_FOUND, "not_found", false,
        "nothing is at this path: see GET /v1/models, and POST /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/responses";
    NOT_ALLOWED = METHOD_NOT_ALLOWED, "method_not_allowed", false,
        "this path does not take this method: see the allow header";
    TOO_MANY_WRONG = TOO_MANY_REQUESTS, "rate_limit_exceeded", true,
        "the key or token is not valid, and too many such came from this address: check it, and wait as retry-after says; valid ones are answered all the time";
    NOT_FOUND_BY_ADMIN = NOT_FOUND, "not_found", false,
        "nothing is at this path of the admin port: see GET /admin/upstreams, /admin/mirrors, /admin/keys, /admin/usage, /livez, /readyz";
    FOREIGN_HOST = FORBIDDEN, "host_not_allowed", false,
        "without server.admin_token the admin port answers only to localhost, 127.0.0.1 and [::1] as its Host";
    FOREIGN_ORIGIN = FORBIDDEN, "origin_not_allowed", false,
        "a page of another origin may not ask the admin port";
    IDEMPOTENCY_IN_PROGRESS = CONFLICT, "idempotency_in_progress", false,
        "the call with this Idempotency-Key is still running: send it again after the time in retry-after to get its answer";
    IDEMPOTENCY_MISMATCH = UNPROCESSABLE_ENTITY, "idempotency_mismatch", false,
        "this Idempotency-Key was sent before with another request: repeat a request as it was, and take a new key for a new one";
    IDEMPOTENCY_INTERRUPTED = CONFLICT, "idempotency_not_replayable", false,
        "the gateway stopped while the call with this Idempotency-Key ran, so whether it was carried out is not known: to have it carried out, send it with a new key";
    IDEMPOTENCY_TOO_LONG = CONFLICT, "idempotency_not_replayable", false,
        "the call with this Idempotency-Key was answered, but its answer was too long to be kept: to have it carried out again, send it with a new key";
    IDEMPOTENCY_PUSHED_OUT = CONFLICT, "idempotency_not_replayable", false,
        "the call with this Idempotency-Key was answered, but its answer made room for later ones: to have it carried out again, send it with a new key";
    IDEMPOTENCY_UNAVAILABLE = SERVICE_UNAVAILABLE, "idempotency_unavailable", false,
        "the Idempotency-Key cannot be noted now, so the call was not carried out: send it again, or without the key";
    IDEMPOTENCY_BUSY = SERVICE_UNAVAILABLE, "idempotency_unavailable", false,
        "the call with this Idempotency-Key was answered, but too many long answers are being given again just now: send it again in a moment";
    NO_ADMIN_TOKEN = UNAUTHORIZED, "invalid_admin_token", false,
        "this needs the token of server.admin_token: send it as `Authorization: Bearer TOKEN`";
}

pub(crate) fn status_of(error: &Error) -> StatusCode {
    let status = StatusCode::from_u16(error_body::status(error));
    status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// A request that was refused before it became a call. No body, no key, no query.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Id of the request.
    pub id: Arc<str>,
    /// Who asked, where its key was looked at and good.
    pub tenant: Option<Arc<str>>,
    /// The method, cut at 256 bytes. Of this and the path, without what may be a key.
    pub method: Box<str>,
    /// The path without its query, cut at 256 bytes.
    pub path: Box<str>,
    /// HTTP status of the refusal.
    pub status: u16,
    /// The code callers branch on.
    pub code: &'static str,
    /// Whose fault it is.
    pub class: Class,
    /// When its head was here.
    pub started_at: SystemTime,
    /// From then to the refusal.
    pub duration: Duration,
}

/// Where the front tells of each refused request. Called on the hot path: must not block.
pub type Refusals = Arc<dyn Fn(Refused) + Send + Sync>;

impl Refused {
    /// What is told of `refusal`, `duration` after the head of `parts` was here.
    pub(crate) fn new(
        refusal: &Refusal,
        parts: &Parts,
        id: &RequestId,
        tenant: Option<&Tenant>,
        duration: Duration,
    ) -> Self {
        let now = SystemTime::now();
        Self {
            id: Arc::clone(&id.text),
            tenant: tenant.map(|tenant| tenant.id.clone()),
            method: shown::method(parts).into(),
            path: shown::path(parts).into(),
            status: refusal.status().as_u16(),
            code: refusal.code(),
            class: refusal.class(),
            started_at: now.checked_sub(duration).unwrap_or(now),
            duration,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_bodies_are_json() {
        for fixed in [&NO_HOST, &NOT_FOUND, &NOT_JSON, &TWO_LENGTHS] {
            let body: serde_json::Value = serde_json::from_str(fixed.body).unwrap();
            assert!(body["error"]["code"].is_string());
        }
    }
}
