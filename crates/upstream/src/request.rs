//! Writes requests: one template per upstream, a few headers per attempt, the caller's bytes.

mod body;

pub(crate) use body::{Form, Pieces, RequestBody, pieces};

use crate::{connect::Protocol, fault::setting, options::Options, sent::Sent};
use arc_swap::ArcSwap;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version,
    header::{
        ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HOST, USER_AGENT,
    },
    uri::Scheme,
};
use std::{sync::Arc, time::Duration};
use tidegate_core::{Attempt, Operation, Result, Secret};
use tokio::time::Instant;

pub(crate) const USER_AGENT_VALUE: HeaderValue =
    HeaderValue::from_static(concat!("tidegate/", env!("CARGO_PKG_VERSION")));
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_TIMEOUT: HeaderName = HeaderName::from_static("x-tidegate-timeout");
const X_ATTEMPT: HeaderName = HeaderName::from_static("x-attempt");

/// What every request to an upstream has in common, made once and cloned.
pub(crate) struct Template {
    /// Replaced as a whole when our key is.
    headers: ArcSwap<HeaderMap>,
    /// Our key is what goes into `authorization`: the settings name no such header.
    sends_key: bool,
    host: HeaderValue,
    /// By operation, path only: what HTTP/1.1 writes.
    paths: [Uri; Operation::ALL.len()],
    /// By operation, with scheme and authority: what HTTP/2 writes.
    urls: [Uri; Operation::ALL.len()],
}

/// Reads a base URL.
///
/// # Errors
///
/// Names the field and what is wrong; never repeats the URL, which may hold a secret.
pub(crate) fn parse_base(upstream: &str, base_url: &str) -> Result<Uri> {
    let bad = |problem: &str| Err(setting(upstream, "base_url", problem));
    if base_url.is_empty() {
        return bad("is missing; it looks like \"http://127.0.0.1:8000/v1\"");
    }
    let Ok(base) = base_url.trim().parse::<Uri>() else {
        return bad("is not a URL; it looks like \"http://127.0.0.1:8000/v1\"");
    };
    if base.scheme() != Some(&Scheme::HTTP) && base.scheme() != Some(&Scheme::HTTPS) {
        return bad("must start with http:// or https://");
    }
    match base.authority() {
        Some(authority) if authority.as_str().contains('@') => {
            return bad("must not hold a user name or password; use api_key");
        }
        Some(authority) if !authority.host().is_empty() => {}
        _ => return bad("has no host"),
    }
    if base.query().is_some() || base_url.contains('#') {
        return bad("must not have a query or a fragment");
    }
    Ok(base)
}

impl Template {
    pub(crate) fn new(
        upstream: &str,
        base: &Uri,
        options: &Options,
        credential: Option<&Secret<String>>,
    ) -> Result<Self> {
        let authority = base.authority().expect("a parsed base URL has a host").as_str();
        let below = base.path().trim_end_matches('/');
        let path = |operation: Operation| {
            format!("{below}{}", operation.path()).parse().expect("two paths make a path")
        };
        let url = |operation: Operation| {
            let scheme = base.scheme_str().unwrap_or("http");
            format!("{scheme}://{authority}{below}{}", operation.path())
                .parse()
                .expect("a base URL and a path make a URL")
        };
        Ok(Self {
            headers: ArcSwap::from_pointee(headers(upstream, options, credential)?),
            sends_key: !options
                .headers
                .keys()
                .any(|name| name.eq_ignore_ascii_case("authorization")),
            host: authority.parse().expect("an authority is a header value"),
            paths: Operation::ALL.map(path),
            urls: Operation::ALL.map(url),
        })
    }

    /// What every request carries, as it is now.
    pub(crate) fn headers(&self) -> Arc<HeaderMap> {
        self.headers.load_full()
    }

    /// Sends `key` from the next request on.
    ///
    /// # Errors
    ///
    /// When no header may carry it; the one before stays.
    pub(crate) fn replace_key(&self, upstream: &str, key: &Secret<String>) -> Result<()> {
        if self.sends_key {
            let mut headers = HeaderMap::clone(&self.headers.load());
            headers.insert(AUTHORIZATION, bearer(upstream, key)?);
            self.headers.store(Arc::new(headers));
        }
        Ok(())
    }

    /// The request of `attempt`, its body in `form`, as `protocol` writes it, with the headers of
    /// `sent`, and its token in place of the key where there is one.
    pub(crate) fn request(
        &self,
        attempt: &Attempt<'_>,
        form: Form<'_>,
        sent: &Sent,
        protocol: Protocol,
    ) -> Request<RequestBody> {
        let call = attempt.call;
        let mut headers = HeaderMap::clone(&sent.headers);
        let body = match form {
            Form::Packed(packed) => {
                headers.insert(CONTENT_ENCODING, packed.coding.header());
                RequestBody::packed(packed)
            }
            Form::Plain(ask) => RequestBody::plain(attempt, ask),
        };
        if let Some(token) = &sent.token {
            headers.insert(AUTHORIZATION, token.header.clone());
        }
        let mut request = Request::new(body);
        let operation = position(call.operation);
        *request.method_mut() = Method::POST;
        match protocol {
            Protocol::Http1 => {
                headers.insert(HOST, self.host.clone());
                *request.uri_mut() = self.paths[operation].clone();
            }
            Protocol::Http2 => {
                *request.version_mut() = Version::HTTP_2;
                *request.uri_mut() = self.urls[operation].clone();
            }
        }
        if call.stream {
            headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
            // Compressing events delays them.
            headers.remove(ACCEPT_ENCODING);
        }
        if let Ok(id) = HeaderValue::from_str(&call.id) {
            headers.insert(X_REQUEST_ID, id);
        }
        headers.insert(X_ATTEMPT, attempt.number.into());
        let left = attempt.deadline.saturating_duration_since(Instant::now().into_std());
        if let Some(timeout) = told_timeout(left) {
            headers.insert(X_TIMEOUT, timeout);
        }
        *request.headers_mut() = headers;
        request
    }
}

/// What an upstream is told of the time that is `left`: less a twentieth, so that it gives up
/// before we do. A deadline as far off as an hour is no deadline, and nothing is said.
fn told_timeout(left: Duration) -> Option<HeaderValue> {
    const FAR: Duration = Duration::from_secs(3600);
    if left >= FAR {
        return None;
    }
    let millis = (left * 19 / 20).as_millis().max(1);
    HeaderValue::try_from(format!("{millis}ms")).ok()
}

const fn position(operation: Operation) -> usize {
    match operation {
        Operation::ChatCompletions => 0,
        Operation::Completions => 1,
        Operation::Embeddings => 2,
        Operation::Responses => 3,
    }
}

fn headers(
    upstream: &str,
    options: &Options,
    credential: Option<&Secret<String>>,
) -> Result<HeaderMap> {
    const OURS: [&str; 8] = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "te",
        "upgrade",
        "accept-encoding",
        "content-encoding",
    ];
    let mut headers = HeaderMap::with_capacity(8 + options.headers.len());
    headers.insert(USER_AGENT, USER_AGENT_VALUE);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip, br, zstd"));
    if let Some(key) = credential {
        headers.insert(AUTHORIZATION, bearer(upstream, key)?);
    }
    for (name, value) in &options.headers {
        let bad =
            |problem: &str| setting(upstream, "headers", &format!("has {name:?}, which {problem}"));
        let name = name.parse::<HeaderName>().map_err(|_| bad("is not a header's name"))?;
        if OURS.contains(&name.as_str()) {
            return Err(bad("is set by the connection itself"));
        }
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| bad("has a value with a character no header may carry"))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

fn bearer(upstream: &str, key: &Secret<String>) -> Result<HeaderValue> {
    let value = HeaderValue::try_from(format!("Bearer {}", key.expose()));
    let mut value = value.map_err(|_| {
        setting(upstream, "api_key", "has a character no header may carry (a line end?)")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls() {
        for good in
            ["http://h/v1", "https://h:8443/v1/", " http://[::1]:80 ", "http://10.0.0.5:8000/v1"]
        {
            assert!(parse_base("up", good).is_ok(), "{good}");
        }
        for (bad, says) in [
            ("", "missing"),
            ("localhost:8000/v1", "http://"),
            ("ftp://h/v1", "http://"),
            ("http://", "URL"),
            ("/v1", "http://"),
            ("http://u:canary@h/v1", "api_key"),
            ("http://h/v1?key=canary", "query"),
            ("http://h/v1#canary", "fragment"),
            ("http://h h/v1", "not a URL"),
        ] {
            let error = parse_base("up", bad).unwrap_err();
            assert_eq!(error.param(), Some("base_url"));
            assert!(error.message().contains(says), "{bad}: {}", error.message());
            assert!(!error.message().contains("canary"));
        }
    }

    #[test]
    fn bad_headers_and_keys() {
        let with = |name: &str, value: &str| Options {
            headers: [(name.to_owned(), value.to_owned())].into(),
            ..Options::default()
        };
        for (name, value) in [("a b", "x"), ("host", "x"), ("x-key", "can\nary")] {
            let error = headers("up", &with(name, value), None).unwrap_err();
            assert_eq!(error.param(), Some("headers"));
            assert!(!error.message().contains("ary"), "{}", error.message());
        }
        let key = Secret::new("canary\n".to_owned());
        let error = headers("up", &Options::default(), Some(&key)).unwrap_err();
        assert_eq!(error.param(), Some("api_key"));
        assert!(!error.message().contains("canary"));
    }

    #[test]
    fn an_upstream_is_told_to_give_up_before_we_do() {
        for (left_ms, told) in [
            (20_000, Some("19000ms")),
            (1, Some("1ms")),
            (0, Some("1ms")),
            (3_599_999, Some("3419999ms")),
            (3_600_000, None),
        ] {
            let said = told_timeout(Duration::from_millis(left_ms));
            assert_eq!(said.as_ref().map(|value| value.to_str().unwrap()), told);
        }
        assert_eq!(told_timeout(Duration::MAX), None);
    }

    #[test]
    fn positions_match() {
        for (at, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(position(operation), at);
        }
    }
}
