//! An error as callers of the OpenAI API read it: status, JSON body, event in a stream.
//!
//! Body: `{"error":{"message","type","param","code"}}`. `type` uses OpenAI's own words, `code` is
//! [`Error::code`]. What the upstream said of the caller's own request passes through as sent.

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use std::collections::HashMap;
use tidegate_core::{Error, Kind, UpstreamAnswer};

/// The HTTP status of SPEC §4. Rows of a batch carry it too.
pub fn status(error: &Error) -> u16 {
    match error.kind() {
        Kind::InvalidRequest | Kind::InvalidJson => 400,
        Kind::Rejected => error.answer().map_or(400, |answer| answer.status),
        Kind::Unauthenticated | Kind::TokenExpired => 401,
        Kind::BudgetExceeded => 402,
        Kind::ModelNotAllowed => 403,
        Kind::ModelNotFound | Kind::NotFound => 404,
        Kind::TooLarge => 413,
        Kind::RateLimited | Kind::ConcurrencyLimited => 429,
        Kind::Cancelled => 499,
        Kind::Internal => 500,
        Kind::UpstreamCredential | Kind::UpstreamQuota | Kind::Upstream => 502,
        Kind::Overloaded | Kind::UpstreamCapacity | Kind::Unavailable => 503,
        Kind::UpstreamTimeout(_) | Kind::DeadlineExceeded => 504,
    }
}

/// The JSON body of `error`.
///
/// A rejected request gets the upstream's own body when that has OpenAI's shape, byte for byte.
pub fn encode(error: &Error) -> Bytes {
    passed_through(error).cloned().unwrap_or_else(|| own(error).into())
}

/// `error` as the last event of a stream: `data: {"error":…}` and an empty line.
pub fn event(error: &Error) -> Bytes {
    let is_one_line = |body: &&Bytes| memchr::memchr2(b'\n', b'\r', body).is_none();
    let own_body;
    let body: &[u8] = match passed_through(error).filter(is_one_line) {
        Some(body) => body,
        None => {
            own_body = own(error);
            &own_body
        }
    };
    [b"data: ", body, b"\n\n"].concat().into()
}

/// The upstream's own body, if the caller may see it and can read it.
fn passed_through(error: &Error) -> Option<&Bytes> {
    let UpstreamAnswer { body, .. } = error.answer().filter(|_| error.kind() == Kind::Rejected)?;
    has_error_object(body).then_some(body)
}

fn has_error_object(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        #[serde(borrow, rename = "error")]
        _error: HashMap<std::borrow::Cow<'a, str>, IgnoredAny>,
    }
    let is_object = body.trim_ascii_start().starts_with(b"{");
    is_object
        && std::str::from_utf8(body)
            .is_ok_and(|text| serde_json::from_str::<Envelope<'_>>(text).is_ok())
}

fn own(error: &Error) -> Vec<u8> {
    #[derive(Serialize)]
    struct Envelope<'a> {
        error: Inner<'a>,
    }
    #[derive(Serialize)]
    struct Inner<'a> {
        message: &'a str,
        r#type: &'static str,
        param: Option<&'static str>,
        code: &'static str,
    }
    let inner = Inner {
        message: error.message(),
        r#type: kind_word(error),
        param: error.param(),
        code: error.code(),
    };
    serde_json::to_vec(&Envelope { error: inner }).expect("strings always serialize")
}

fn kind_word(error: &Error) -> &'static str {
    match error.kind() {
        Kind::InvalidRequest | Kind::InvalidJson | Kind::Rejected | Kind::TooLarge => {
            "invalid_request_error"
        }
        Kind::Unauthenticated | Kind::TokenExpired => "authentication_error",
        // The word OpenAI's clients know for "the money is gone".
        Kind::BudgetExceeded => "insufficient_quota",
        Kind::ModelNotAllowed => "permission_error",
        Kind::ModelNotFound | Kind::NotFound => "not_found_error",
        Kind::RateLimited | Kind::ConcurrencyLimited => "rate_limit_error",
        Kind::Overloaded | Kind::UpstreamCapacity | Kind::Unavailable => "overloaded_error",
        Kind::UpstreamTimeout(_) | Kind::DeadlineExceeded => "timeout_error",
        Kind::UpstreamCredential
        | Kind::UpstreamQuota
        | Kind::Upstream
        | Kind::Cancelled
        | Kind::Internal => "server_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::{Clock, Origin};

    #[test]
    fn every_kind_has_its_status() {
        for (kind, expected) in [
            (Kind::InvalidRequest, 400),
            (Kind::InvalidJson, 400),
            (Kind::Unauthenticated, 401),
            (Kind::TokenExpired, 401),
            (Kind::BudgetExceeded, 402),
            (Kind::ModelNotAllowed, 403),
            (Kind::ModelNotFound, 404),
            (Kind::NotFound, 404),
            (Kind::TooLarge, 413),
            (Kind::RateLimited, 429),
            (Kind::ConcurrencyLimited, 429),
            (Kind::Overloaded, 503),
            (Kind::Rejected, 400),
            (Kind::UpstreamCredential, 502),
            (Kind::UpstreamQuota, 502),
            (Kind::UpstreamCapacity, 503),
            (Kind::Unavailable, 503),
            (Kind::Upstream, 502),
            (Kind::UpstreamTimeout(Clock::Idle), 504),
            (Kind::DeadlineExceeded, 504),
            (Kind::Cancelled, 499),
            (Kind::Internal, 500),
        ] {
            assert_eq!(status(&Error::new(kind, Origin::Gateway, "x")), expected, "{kind:?}");
        }
    }

    #[test]
    fn our_own_body() {
        let error = Error::invalid("model", "say \"which\"\n");
        assert_eq!(
            encode(&error),
            r#"{"error":{"message":"say \"which\"\n","type":"invalid_request_error","param":"model","code":"invalid_request_error"}}"#
        );
        let error = Error::new(Kind::RateLimited, Origin::Caller, "slow down");
        assert_eq!(
            event(&error),
            "data: {\"error\":{\"message\":\"slow down\",\"type\":\"rate_limit_error\",\"param\":null,\"code\":\"rate_limit_exceeded\"}}\n\n"
        );
    }

    #[test]
    fn a_rejection_passes_through() {
        let body = Bytes::from_static(b"{\"error\":{\"message\":\"too long\",\"mine\":[1]}}\n");
        let rejected = |body: &Bytes| {
            Error::new(Kind::Rejected, Origin::Caller, "no").with_answer(422, body.clone())
        };
        assert_eq!(encode(&rejected(&body)), body);
        assert_eq!(status(&rejected(&body)), 422);
        let sent = event(&rejected(&body));
        assert_eq!(memchr::memchr_iter(b'\n', &sent).count(), 2, "one line and its end");
        for odd in ["<html>", "{\"error\":\"text\"}", "{\"error\":{", "{}", "[{\"a\":1}]", ""] {
            let encoded = encode(&rejected(&Bytes::from_static(odd.as_bytes())));
            assert!(encoded.starts_with(b"{\"error\":{\"message\":\"no\""), "{odd}");
        }
    }

    #[test]
    fn other_upstream_bodies_stay_inside() {
        let body = Bytes::from_static(b"{\"error\":{\"message\":\"key sk-1 is bad\"}}");
        let error = Error::new(Kind::UpstreamCredential, Origin::Upstream, "our key was refused")
            .with_answer(401, body);
        assert!(!encode(&error).windows(4).any(|window| window == b"sk-1"));
        assert_eq!(status(&error), 502);
    }
}
