//! What a failed answer means: whose fault it is and whether another attempt can help.
//!
//! # Why
//!
//! Retries, breakers and limiters all act on the class (SPEC §6.1), so it is found once, here,
//! from status and body together: a 429 may be a full house (wait) or an empty account (stop).
//! The upstream's own words reach a caller only when they speak of the caller's own request.

mod said;

use crate::{rate_limits, retry_after};
use bytes::Bytes;
use said::Said;
use serde::{Deserialize, de::IgnoredAny};
use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};
use tidegate_core::{Error, Kind, Origin, Retry};

/// The error of an answer whose status is not 2xx.
///
/// | status | kind | retry |
/// |---|---|---|
/// | any, when the body says the account is empty; 402 | `UpstreamQuota` | never |
/// | 401, 403 | `UpstreamCredential` | never |
/// | 429, 503, 529 | `UpstreamCapacity` | after `retry-after` |
/// | 408, 5xx | `Upstream` | after `retry-after`; 501 and 505 never |
/// | other 4xx | `Rejected`, with the answer | never |
/// | 3xx and the rest | `Upstream` | never: redirects are not followed |
pub fn refusal<'h>(
    status: u16,
    header: impl Fn(&str) -> Option<&'h str>,
    body: Bytes,
    now: SystemTime,
) -> Error {
    let wait = retry_after::read(&header, now);
    let said = Said::read(&body);
    let error =
        if said.is_out_of_money() { out_of_money() } else { by_status(status, &said, wait) };
    error.with_retry_after(wait).with_limits(rate_limits::read(&header)).with_answer(status, body)
}

/// The error an event of a stream (its data) carries, if it is an error event.
///
/// Covers `{"error":…}` of chat and completions, with a status, a word or nothing as its code,
/// and `{"type":"error",…}` of responses. Costs one search for events that are none.
pub fn error_event(data: &[u8]) -> Option<Error> {
    memchr::memmem::find(data, b"\"error\"")?;
    let said = Said::read(data);
    if !said.is_error {
        return None;
    }
    Some(by_event(&said, data))
}

/// The error of a response (an event's data) that failed before it carried anything, if the
/// server is to blame.
///
/// `response.failed` is an answer: a response object, its error among its fields. While nothing
/// of the stream was passed on, one that failed of `server_error` or `rate_limit_exceeded` may as
/// well be made elsewhere; one that failed of what the caller sent would fail there too. Costs one
/// search for events that are none.
pub fn failed_response(data: &[u8]) -> Option<Error> {
    #[derive(Deserialize)]
    struct Failed<'a> {
        #[serde(borrow, rename = "type")]
        kind: &'a str,
        #[serde(borrow)]
        response: Response<'a>,
    }
    #[derive(Deserialize)]
    struct Response<'a> {
        #[serde(borrow)]
        error: Cause<'a>,
    }
    #[derive(Deserialize)]
    struct Cause<'a> {
        #[serde(borrow)]
        code: Cow<'a, str>,
    }
    memchr::memmem::find(data, b"\"response.failed\"")?;
    let failed = serde_json::from_slice::<Failed<'_>>(data).ok()?;
    let code = failed.response.error.code;
    let is_the_servers = matches!(&*code, "server_error" | "rate_limit_exceeded");
    if failed.kind != "response.failed" || !is_the_servers {
        return None;
    }
    Some(by_event(&Said { is_error: true, code: Some(code), ..Said::default() }, data))
}

/// The error an event says, with the event as its answer.
fn by_event(said: &Said<'_>, data: &[u8]) -> Error {
    let error = match said.status() {
        _ if said.is_out_of_money() => out_of_money(),
        Some(status) => by_status(status, said, None),
        None => by_words(said),
    };
    let status = said.status().unwrap_or(match error.kind() {
        Kind::Rejected => 400,
        Kind::UpstreamCapacity => 429,
        _ => 500,
    });
    error.with_answer(status, Bytes::copy_from_slice(data))
}

/// The error a whole answer of status 200 carries in an answer's place, if it does.
///
/// Some gateways (OpenRouter is one) send `{"error":…}` with a status of success. An object of the
/// API that has an `error` among its fields (a response that failed, or `null` in one that did
/// not) is an answer. Costs nothing for long answers, and one search for short ones.
pub fn error_answer(body: &[u8]) -> Option<Error> {
    /// Longest error that is looked for.
    const MAX_BYTES: usize = 16 << 10;
    /// What an answer of any operation has one of.
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        object: Option<IgnoredAny>,
        #[serde(default)]
        choices: Option<IgnoredAny>,
        #[serde(default)]
        data: Option<IgnoredAny>,
        #[serde(default)]
        output: Option<IgnoredAny>,
    }
    if body.len() > MAX_BYTES {
        return None;
    }
    memchr::memmem::find(body, b"\"error\"")?;
    match serde_json::from_slice::<Answer>(body) {
        Ok(Answer { object: None, choices: None, data: None, output: None }) => error_event(body),
        _ => None,
    }
}

fn by_status(status: u16, said: &Said<'_>, wait: Option<Duration>) -> Error {
    let later = Retry::After(wait.unwrap_or_default());
    match status {
        401 | 403 => upstream(
            Kind::UpstreamCredential,
            format!("the upstream refuses this gateway's credential (status {status})"),
        ),
        402 => out_of_money(),
        429 | 503 | 529 => full(status).with_retry(later),
        501 | 505 => failed(status),
        408 | 500..=599 => failed(status).with_retry(later),
        400..=499 => rejected(format!("the upstream rejects the request: {}", said.text(status))),
        300..=399 => upstream(
            Kind::Upstream,
            format!(
                "the upstream answers with a redirect (status {status}), which is not followed; \
                 set base_url to its final address"
            ),
        ),
        _ => failed(status),
    }
}

/// An error event without a status: its type and code are all there is.
fn by_words(said: &Said<'_>) -> Error {
    let says = |needle: &str| {
        [&said.code, &said.kind].into_iter().flatten().any(|word| {
            let plain = word.bytes().filter(u8::is_ascii_alphanumeric);
            let plain: String = plain.map(|b| char::from(b.to_ascii_lowercase())).collect();
            plain.contains(needle)
        })
    };
    if says("ratelimit") || says("overloaded") || says("toomanyrequests") || says("unavailable") {
        return full(429).with_retry(Retry::After(Duration::ZERO));
    }
    if says("authentication") || says("permission") || says("invalidapikey") {
        return by_status(401, said, None);
    }
    let of_the_caller =
        ["badrequest", "invalidrequest", "contextlength", "contentfilter", "validation"];
    if of_the_caller.into_iter().any(says) {
        return rejected(format!("the upstream rejects the request: {}", said.text(400)));
    }
    upstream(Kind::Upstream, "the upstream's answer is an error, sent as a success")
        .with_retry(Retry::After(Duration::ZERO))
}

fn out_of_money() -> Error {
    upstream(
        Kind::UpstreamQuota,
        "the upstream account is out of quota or credit: waiting does not help",
    )
}

fn full(status: u16) -> Error {
    upstream(Kind::UpstreamCapacity, format!("the upstream has no capacity now (status {status})"))
}

fn failed(status: u16) -> Error {
    upstream(Kind::Upstream, format!("the upstream failed (status {status})"))
}

fn rejected(message: String) -> Error {
    Error::new(Kind::Rejected, Origin::Caller, message)
}

fn upstream(kind: Kind, message: impl Into<String>) -> Error {
    Error::new(kind, Origin::Upstream, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::Class;

    fn refused(status: u16, body: &str, headers: &[(&str, &'static str)]) -> Error {
        let find = |name: &str| headers.iter().find(|(key, _)| *key == name).map(|(_, v)| *v);
        refusal(status, find, Bytes::copy_from_slice(body.as_bytes()), SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn statuses() {
        let now = Retry::After(Duration::ZERO);
        for (status, class, retry) in [
            (400, Class::Caller, Retry::Never),
            (404, Class::Caller, Retry::Never),
            (409, Class::Caller, Retry::Never),
            (413, Class::Caller, Retry::Never),
            (422, Class::Caller, Retry::Never),
            (401, Class::Credential, Retry::Never),
            (403, Class::Credential, Retry::Never),
            (402, Class::Quota, Retry::Never),
            (429, Class::Capacity, now),
            (503, Class::Capacity, now),
            (529, Class::Capacity, now),
            (408, Class::Fault, now),
            (500, Class::Fault, now),
            (502, Class::Fault, now),
            (504, Class::Fault, now),
            (524, Class::Fault, now),
            (501, Class::Fault, Retry::Never),
            (302, Class::Fault, Retry::Never),
            (199, Class::Fault, Retry::Never),
        ] {
            let error = refused(status, "", &[]);
            assert_eq!((error.class(), error.retry()), (class, retry), "{status}");
            assert_eq!(error.answer().unwrap().status, status);
        }
    }

    #[test]
    fn an_empty_account_is_no_rate_limit() {
        for (status, body) in [
            (429, r#"{"error":{"message":"x","type":"insufficient_quota","code":null}}"#),
            (429, r#"{"error":{"message":"x","code":"insufficient_quota"}}"#),
            (429, r#"{"error":{"code":"billing_hard_limit_reached"}}"#),
            (403, r#"{"error":{"type":"billing_error"}}"#),
            (400, r#"{"error":{"message":"Your credit balance is too low to go on"}}"#),
            (429, r#"{"error":{"type":"enforced_spend_limit_reached"}}"#),
        ] {
            let error = refused(status, body, &[("retry-after", "1")]);
            assert_eq!((error.class(), error.retry()), (Class::Quota, Retry::Never), "{body}");
        }
        let gemini = r#"{"error":{"code":429,"message":"You exceeded your current quota"}}"#;
        assert_eq!(refused(429, gemini, &[]).class(), Class::Capacity);
    }

    #[test]
    fn waits_and_limits_are_kept() {
        let headers = [("retry-after", "2"), ("x-ratelimit-limit-requests", "60")];
        let error = refused(429, "{}", &headers);
        assert_eq!(error.retry(), Retry::After(Duration::from_secs(2)));
        assert_eq!(error.retry_after(), Some(Duration::from_secs(2)));
        assert_eq!(error.limits().requests.limit, Some(60));
    }

    #[test]
    fn words_reach_the_caller_only_about_its_request() {
        for body in [
            r#"{"error":{"message":"prompt too long"}}"#,
            r#"{"error":"prompt too long"}"#,
            r#"{"object":"error","message":"prompt too long","code":400}"#,
            r#"{"detail":"prompt too long"}"#,
        ] {
            let error = refused(400, body, &[]);
            assert_eq!(error.message(), "the upstream rejects the request: prompt too long");
        }
        for status in [401, 403, 429, 500, 503] {
            let error = refused(status, r#"{"error":{"message":"key sk-secret"}}"#, &[]);
            assert!(!error.message().contains("sk-secret"));
        }
        assert!(refused(422, "<html>", &[]).message().ends_with("status 422"));
    }

    #[test]
    fn an_error_in_an_answers_place() {
        let kind = |body: &str| error_answer(body.as_bytes()).map(|error| error.kind());
        for (body, expected) in [
            (r#"{"error":{"message":"boom"}}"#, Some(Kind::Upstream)),
            (
                r#"{"user":"u","error":{"code":429,"message":"slow down"}}"#,
                Some(Kind::UpstreamCapacity),
            ),
            (r#"{"error":{"code":400,"message":"no"}}"#, Some(Kind::Rejected)),
            (r#"{"error":"boom"}"#, Some(Kind::Upstream)),
            (r#"{"error":null}"#, None),
            (r#"{"object":"response","status":"failed","error":{"code":"server_error"}}"#, None),
            (r#"{"choices":[{"message":{"content":"a \"error\" b"}}],"error":{"code":1}}"#, None),
            (r#"{"data":[],"x":"\"error\""}"#, None),
        ] {
            assert_eq!(kind(body), expected, "{body}");
        }
    }

    #[test]
    fn error_events() {
        for (data, class) in [
            (r#"{"error":{"message":"x","type":"BadRequestError","code":400}}"#, Class::Caller),
            (r#"{"error":{"message":"x","type":"invalid_request_error"}}"#, Class::Caller),
            (r#"{"error":{"code":"context_length_exceeded"}}"#, Class::Caller),
            (r#"{"error":{"message":"x","code":502}}"#, Class::Fault),
            (r#"{"error":{"message":"x","code":"429"}}"#, Class::Capacity),
            (r#"{"error":{"type":"rate_limit_error"}}"#, Class::Capacity),
            (r#"{"error":{"type":"overloaded_error"}}"#, Class::Capacity),
            (r#"{"error":{"code":"insufficient_quota"}}"#, Class::Quota),
            (r#"{"error":{"type":"server_error"}}"#, Class::Fault),
            (r#"{"error":"engine died"}"#, Class::Fault),
            (r#"{"type":"error","code":"server_error","message":"x"}"#, Class::Fault),
            (r#"{"type":"error","error":{"type":"overloaded_error"}}"#, Class::Capacity),
        ] {
            assert_eq!(error_event(data.as_bytes()).map(|e| e.class()), Some(class), "{data}");
        }
        for fine in [
            r#"{"choices":[{"delta":{"content":"{\"error\":1}"}}]}"#,
            r#"{"choices":[{"error":null}],"error":null}"#,
            r#"{"response":{"error":{"code":"x"}},"type":"response.failed"}"#,
            "[DONE]",
            "\"error\"",
        ] {
            assert!(error_event(fine.as_bytes()).is_none(), "{fine}");
        }
    }

    #[test]
    fn responses_that_failed() {
        let class = |data: &str| failed_response(data.as_bytes()).map(|error| error.class());
        let failed = |code: &str| {
            format!(r#"{{"type":"response.failed","response":{{"error":{{"code":{code}}}}}}}"#)
        };
        for (code, expected) in [
            ("\"server_error\"", Some(Class::Fault)),
            ("\"rate_limit_exceeded\"", Some(Class::Capacity)),
            ("\"invalid_prompt\"", None),
            ("null", None),
        ] {
            assert_eq!(class(&failed(code)), expected, "{code}");
        }
        let other = failed("\"server_error\"").replace("response.failed", "response.completed");
        assert_eq!(class(&other), None);
        assert_eq!(class(r#"{"type":"response.failed","response":{"error":null}}"#), None);
    }
}
