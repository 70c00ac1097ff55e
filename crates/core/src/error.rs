//! How a call fails: what went wrong, whose fault it is, whether to try again, and what it
//! taught us about the upstream.
//!
//! Fronts match on [`Kind`] to speak their own language (an HTTP status, an exit code). The
//! match is exhaustive inside the workspace, so a new kind does not compile until every front
//! can say it.

mod kind;

use crate::{RateLimits, redact};
use bytes::Bytes;
use std::{borrow::Cow, fmt, time::Duration};

pub use kind::{Class, Clock, Kind};

/// Result of anything that can fail a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed. One pointer wide, so `Result<T>` stays small on the hot path.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    origin: Origin,
    retry: Retry,
    message: String,
    param: Option<&'static str>,
    answer: Option<UpstreamAnswer>,
    retry_after: Option<Duration>,
    limits: RateLimits,
    tenant_limits: RateLimits,
    attempts: u32,
    upstream: Option<std::sync::Arc<str>>,
    is_paid_for: bool,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Whose side the failure is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The caller: its request, its key, or its hanging up.
    Caller,
    /// This gateway.
    Gateway,
    /// The provider, or the network to it.
    Upstream,
}

/// Whether another attempt can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Another attempt would fail the same way, could act twice, or we have spent our tries.
    Never,
    /// The request never left: any attempt is safe.
    Unsent,
    /// Worth another attempt, no sooner than this. Zero means our own backoff decides.
    After(Duration),
}

/// An upstream's own answer to a request it refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamAnswer {
    /// HTTP status.
    pub status: u16,
    /// Body, cut at 64 KiB.
    pub body: Bytes,
}

impl Error {
    /// An error with no cause below it, that no retry can help.
    ///
    /// What looks like a key is taken out of the message ([`redact()`]): it may repeat what a caller
    /// wrote, and is logged, kept and sent on.
    pub fn new(kind: Kind, origin: Origin, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if let Cow::Owned(cleaned) = redact(&message) {
            message = cleaned;
        }
        Self(Box::new(Inner {
            kind,
            origin,
            retry: Retry::Never,
            message,
            param: None,
            answer: None,
            retry_after: None,
            limits: RateLimits::default(),
            tenant_limits: RateLimits::default(),
            attempts: 0,
            upstream: None,
            is_paid_for: false,
            source: None,
        }))
    }

    /// A caller's mistake in the field `param`.
    pub fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        let mut error = Self::new(Kind::InvalidRequest, Origin::Caller, message);
        error.0.param = Some(param);
        error
    }

    /// Says whether another attempt can help.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// Says how long the one who refused asked us to wait.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Option<Duration>) -> Self {
        self.0.retry_after = wait;
        self
    }

    /// Names the field at fault.
    #[must_use]
    pub fn with_param(mut self, param: &'static str) -> Self {
        self.0.param = Some(param);
        self
    }

    /// Keeps the upstream's own answer.
    #[must_use]
    pub fn with_answer(mut self, status: u16, body: Bytes) -> Self {
        self.0.answer = Some(UpstreamAnswer { status, body });
        self
    }

    /// Keeps what the upstream said of its limits.
    #[must_use]
    pub fn with_limits(mut self, limits: RateLimits) -> Self {
        self.0.limits = limits;
        self
    }

    /// Keeps what is left of the tenant's own limits, for the caller.
    #[must_use]
    pub fn with_tenant_limits(mut self, limits: RateLimits) -> Self {
        self.0.tenant_limits = limits;
        self
    }

    /// Says what was tried before giving up.
    #[must_use]
    pub fn after_attempts(mut self, attempts: u32, upstream: std::sync::Arc<str>) -> Self {
        self.0.attempts = attempts;
        self.0.upstream = Some(upstream);
        self
    }

    /// Says that the upstream had made its answer when this went wrong, and will be paid for it.
    #[must_use]
    pub fn after_the_answer(mut self) -> Self {
        self.0.is_paid_for = true;
        self
    }

    /// Keeps the cause for the log; callers see only the message.
    #[must_use]
    pub fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What went wrong.
    pub const fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Whose side the failure is on.
    pub const fn origin(&self) -> Origin {
        self.0.origin
    }

    /// Whether another attempt can help.
    pub const fn retry(&self) -> Retry {
        self.0.retry
    }

    /// What to do, in words for the caller.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The field at fault, if one is.
    pub const fn param(&self) -> Option<&'static str> {
        self.0.param
    }

    /// The upstream's own answer, if there was one.
    pub const fn answer(&self) -> Option<&UpstreamAnswer> {
        self.0.answer.as_ref()
    }

    /// How long whoever refused asked us to wait.
    pub const fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// What the upstream said of its limits.
    pub const fn limits(&self) -> RateLimits {
        self.0.limits
    }

    /// What is left of the tenant's own limits; empty when nobody looked.
    pub const fn tenant_limits(&self) -> RateLimits {
        self.0.tenant_limits
    }

    /// Attempts made before giving up; zero when none was.
    pub const fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// The upstream of the last attempt.
    pub fn upstream(&self) -> Option<&str> {
        self.0.upstream.as_deref()
    }

    /// Whether the upstream had made its answer when this went wrong: it has to be paid for.
    pub const fn is_paid_for(&self) -> bool {
        self.0.is_paid_for
    }

    /// What this end of an attempt says about the upstream.
    pub const fn class(&self) -> Class {
        self.0.kind.class()
    }

    /// The stable code callers branch on (SPEC §4).
    pub const fn code(&self) -> &'static str {
        self.0.kind.code()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    /// Everything but the upstream's body, which may repeat a caller's prompt.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, origin, retry, message, attempts, upstream, source, .. } = &*self.0;
        f.debug_struct("Error")
            .field("kind", kind)
            .field("origin", origin)
            .field("retry", retry)
            .field("message", message)
            .field("attempts", attempts)
            .field("upstream", upstream)
            .field("source", source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}
