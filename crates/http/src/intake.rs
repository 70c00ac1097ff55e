//! From a request's headers and body to a call.

use crate::{
    Options, body,
    coding::Coding,
    pulse::Pulse,
    refusal::{self, Refusal},
    request_id::RequestId,
};
use hyper::{
    HeaderMap,
    body::Incoming,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderName},
};
use std::{sync::Arc, time::Duration};
use tidegate_core::{
    Answer, Call, Error, Front, Identity, Kind, Operation, Origin, Patience, Payload, Priority,
    Result, Tenant,
};
use tidegate_policy::setting::parse_duration;
use tidegate_wire::request;
use tokio::time::Instant;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const API_KEY: HeaderName = HeaderName::from_static("api-key");
const PRIORITY: HeaderName = HeaderName::from_static("x-tidegate-priority");
const TIMEOUT: HeaderName = HeaderName::from_static("x-tidegate-timeout");
const STAINLESS_READ_TIMEOUT: HeaderName = HeaderName::from_static("x-stainless-read-timeout");
const STAINLESS_RETRY_COUNT: HeaderName = HeaderName::from_static("x-stainless-retry-count");

/// Who sends this request: `Authorization: Bearer`, `x-api-key` or `api-key`, the first there is.
///
/// One of them twice is refused: whoever checks requests before us may look at the other.
pub(crate) fn identify<'a>(answer: &'a dyn Answer, headers: &'a HeaderMap) -> Identity<'a> {
    let is_twice = |name: &&HeaderName| headers.get_all(*name).iter().nth(1).is_some();
    if let Some(name) = [&AUTHORIZATION, &X_API_KEY, &API_KEY].into_iter().find(is_twice) {
        return Identity::Refused(Error::new(
            Kind::InvalidRequest,
            Origin::Caller,
            format!("header {name} is there more than once: send one key"),
        ));
    }
    match key(headers) {
        Some(key) => answer.identify(key),
        None => Identity::Refused(Error::new(
            Kind::Unauthenticated,
            Origin::Caller,
            "no API key: send it as `Authorization: Bearer KEY` (or `x-api-key: KEY`)",
        )),
    }
}

/// The key or token a request presents.
pub(crate) fn key(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    let bearer = text(&AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim_start())
    });
    let keys = [bearer, text(&X_API_KEY), text(&API_KEY)];
    keys.into_iter().flatten().find(|key| !key.is_empty())
}

/// Reads the body and builds the call; everything a header alone can spoil is checked before.
pub(crate) async fn call(
    operation: Operation,
    headers: &HeaderMap,
    body: &mut Incoming,
    tenant: Arc<Tenant>,
    id: &RequestId,
    options: &Options,
    pulse: &Pulse,
) -> Result<Call, Refusal> {
    let arrived = Instant::now();
    check_media(headers)?;
    let coding = Coding::of_body(headers).map_err(|_| Refusal::Coding)?;
    let priority = priority(headers)?;
    let asked = asked_timeout(headers)?;
    let body = body::read(body, coding, options, pulse).await?;
    let view = request::read(operation, &body)?;
    let tokens = request::estimate(operation, body.len(), &view);
    let timeout = timeout(headers, asked, view.stream, options);
    let max_output = request::max_output(operation, &view);
    Ok(Call {
        id: Arc::clone(&id.text),
        operation,
        model: view.model.into(),
        payload: Payload::new(body, view.model_span).asking(view.opening),
        stream: view.stream,
        tokens,
        max_output,
        choices: view.choices,
        tenant,
        priority,
        deadline: (arrived + timeout).into_std(),
        patience: Patience::Counted,
        front: Front::Http,
        headers: routed(headers, &options.routed_headers),
        client_retries: client_retries(headers),
    })
}

/// JSON, as far as the caller says what it is.
pub(crate) fn check_media(headers: &HeaderMap) -> Result<(), Refusal> {
    let is_json = |value: &[u8]| {
        let essence = value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        essence.eq_ignore_ascii_case(b"application/json")
            || essence.len() > 5 && essence[essence.len() - 5..].eq_ignore_ascii_case(b"+json")
    };
    if headers.get(CONTENT_TYPE).is_some_and(|value| !is_json(value.as_bytes())) {
        return Err(Refusal::Fixed(&refusal::NOT_JSON));
    }
    Ok(())
}

fn priority(headers: &HeaderMap) -> Result<Priority> {
    let Some(value) = headers.get(&PRIORITY) else { return Ok(Priority::default()) };
    let all = [Priority::Interactive, Priority::Default, Priority::Bulk];
    let said = value.to_str().unwrap_or_default().trim();
    all.into_iter().find(|priority| priority.name().eq_ignore_ascii_case(said)).ok_or_else(|| {
        Error::invalid(
            "x-tidegate-priority",
            "header x-tidegate-priority is none of `interactive`, `default`, `bulk`",
        )
    })
}

/// What `x-tidegate-timeout` asks for: seconds (`30`, `2.5`) or a duration (`250ms`).
fn asked_timeout(headers: &HeaderMap) -> Result<Option<Duration>> {
    let Some(value) = headers.get(&TIMEOUT) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    let read = seconds(text).or_else(|| parse_duration(text).ok());
    match read.filter(|timeout| !timeout.is_zero()) {
        Some(timeout) => Ok(Some(timeout)),
        None => Err(Error::invalid(
            "x-tidegate-timeout",
            "header x-tidegate-timeout is not a time above zero: write seconds like `30`, or a \
             duration like `250ms`",
        )),
    }
}

fn seconds(text: &str) -> Option<Duration> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds = is_number.then(|| text.parse().ok()).flatten()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// How often the client says it has sent this before; what is no number says nothing.
fn client_retries(headers: &HeaderMap) -> u32 {
    let said = headers.get(&STAINLESS_RETRY_COUNT).and_then(|value| value.to_str().ok());
    said.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Those of the headers that routing looks at.
fn routed(headers: &HeaderMap, names: &[String]) -> Vec<(Box<str>, Box<str>)> {
    let value =
        |name: &String| Some((name.as_str().into(), headers.get(name)?.to_str().ok()?.into()));
    names.iter().filter_map(value).collect()
}

/// How long the answer may take.
///
/// A client's read timeout is how long it waits for the next bytes: for a unary answer that is
/// the whole call, for a stream it says nothing about its length.
fn timeout(
    headers: &HeaderMap,
    asked: Option<Duration>,
    stream: bool,
    options: &Options,
) -> Duration {
    let of_client = headers
        .get(&STAINLESS_READ_TIMEOUT)
        .filter(|_| !stream)
        .and_then(|value| seconds(value.to_str().ok()?.trim()))
        .filter(|timeout| !timeout.is_zero());
    let timeout = asked.unwrap_or(options.default_timeout);
    of_client.map_or(timeout, |of_client| of_client.min(timeout)).min(options.max_timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn keys_come_in_three_headers() {
        for (pairs, expected) in [
            (&[("authorization", "Bearer k")][..], Some("k")),
            (&[("authorization", "bearer  k ")], Some("k")),
            (&[("x-api-key", "k")], Some("k")),
            (&[("api-key", "k")], Some("k")),
            (&[("authorization", "Basic eA=="), ("api-key", "k")], Some("k")),
            (&[("authorization", "Bearer "), ("x-api-key", "k")], Some("k")),
            (&[("authorization", "k")], None),
            (&[], None),
        ] {
            assert_eq!(key(&headers(pairs)), expected, "{pairs:?}");
        }
    }

    #[test]
    fn the_timeout_is_the_callers_within_bounds() {
        const HEADER: &str = "x-tidegate-timeout";
        const READ: &str = "x-stainless-read-timeout";
        let options = Options::default();
        for (pairs, stream, millis) in [
            (&[][..], false, 600_000),
            (&[(HEADER, "30")], false, 30_000),
            (&[(HEADER, "2.5")], false, 2_500),
            (&[(HEADER, "250ms")], true, 250),
            (&[(HEADER, "999999")], false, 3_600_000),
            (&[(READ, "20")], false, 20_000),
            (&[(READ, "20")], true, 600_000),
            (&[(READ, "900")], false, 600_000),
            (&[(READ, "None")], false, 600_000),
            (&[(HEADER, "30"), (READ, "20.5")], false, 20_500),
        ] {
            let headers = headers(pairs);
            let asked = asked_timeout(&headers).unwrap();
            let timeout = timeout(&headers, asked, stream, &options);
            assert_eq!(timeout.as_millis(), millis, "{pairs:?} {stream}");
        }
        for bad in ["", "0", "-1", "soon", "1e3", "inf", "0ms", "."] {
            let error = asked_timeout(&headers(&[(HEADER, bad)])).unwrap_err();
            assert_eq!(error.param(), Some(HEADER), "{bad}");
        }
    }
}
