//! Failures of the way to an upstream, in the words of [`tidegate_core::Error`].

use std::{error::Error as _, sync::Arc, time::Duration};
use tidegate_core::{Clock, Error, Kind, Origin, Retry};

const NOW: Retry = Retry::After(Duration::ZERO);

/// A setting that cannot work; `field` is its name.
pub(crate) fn setting(upstream: &str, field: &'static str, problem: &str) -> Error {
    Error::new(
        Kind::InvalidRequest,
        Origin::Gateway,
        format!("upstream {upstream}: {field} {problem}"),
    )
    .with_param(field)
}

/// The upstream answered wrongly; another attempt may fare better.
pub(crate) fn wrong(message: impl Into<String>) -> Error {
    Error::new(Kind::Upstream, Origin::Upstream, message).with_retry(NOW)
}

/// The connection ended without a word of why.
pub(crate) fn ended_early() -> Error {
    wrong("the upstream closed the connection before its answer was complete")
}

/// No connection was opened. Cloned to all who waited for it.
#[derive(Clone, Debug)]
pub(crate) struct DialError {
    kind: Kind,
    message: Arc<str>,
    source: Option<Arc<std::io::Error>>,
}

impl DialError {
    pub(crate) fn unreachable(authority: &str, doing: &str, source: std::io::Error) -> Self {
        Self {
            kind: Kind::Unavailable,
            message: format!("cannot reach {authority}: {doing}: {source}").into(),
            source: Some(Arc::new(source)),
        }
    }

    pub(crate) fn timed_out(authority: &str, after: Duration) -> Self {
        Self {
            kind: Kind::UpstreamTimeout(Clock::Connect),
            message: format!("cannot reach {authority}: no connection within {after:?}").into(),
            source: None,
        }
    }

    /// Every connection is in use and none came free in time.
    pub(crate) fn exhausted(authority: &str, max_connections: usize) -> Self {
        Self {
            kind: Kind::UpstreamTimeout(Clock::Total),
            message: format!(
                "all {max_connections} connections to {authority} stayed in use; \
                 raise max_connections, or send less at once"
            )
            .into(),
            source: None,
        }
    }
}

impl From<DialError> for Error {
    fn from(dial: DialError) -> Self {
        let error =
            Self::new(dial.kind, Origin::Upstream, &*dial.message).with_retry(Retry::Unsent);
        match dial.source {
            Some(source) => error.caused_by(source),
            None => error,
        }
    }
}

/// A connection died before it took the request, again and again.
pub(crate) fn unsent(authority: &str, source: hyper::Error) -> Error {
    Error::new(
        Kind::Unavailable,
        Origin::Upstream,
        format!("{authority} closes connections before taking a request"),
    )
    .with_retry(Retry::Unsent)
    .caused_by(source)
}

/// A connection broke after the request went out.
pub(crate) fn broken(source: hyper::Error) -> Error {
    if was_not_processed(&source) {
        return wrong("the upstream turned the request away unprocessed")
            .with_retry(Retry::Unsent)
            .caused_by(source);
    }
    let error = if source.is_parse() {
        wrong("the upstream's answer is not valid HTTP")
    } else {
        ended_early()
    };
    error.caused_by(source)
}

/// Whether HTTP/2 tells us that the server did nothing with the request: RFC 9113 §8.7.
fn was_not_processed(error: &hyper::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let reason = error.reason();
            return reason == Some(h2::Reason::REFUSED_STREAM)
                || (error.is_go_away()
                    && error.is_remote()
                    && reason == Some(h2::Reason::NO_ERROR));
        }
        cause = error.source();
    }
    false
}
