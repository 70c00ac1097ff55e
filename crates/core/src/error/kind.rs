//! The kinds of failure, with the code by which callers tell them apart and the class that says
//! what each means for the upstream.

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The body or a header of the call is not valid.
    InvalidRequest,
    /// The body cannot be read as one JSON object.
    InvalidJson,
    /// No key, or not a valid one.
    Unauthenticated,
    /// A token that was valid once.
    TokenExpired,
    /// A budget of the caller or its team has no room for this.
    BudgetExceeded,
    /// The key does not cover this model.
    ModelNotAllowed,
    /// No such model is configured.
    ModelNotFound,
    /// No such thing.
    NotFound,
    /// The body is longer than allowed.
    TooLarge,
    /// One of the caller's own rate limits.
    RateLimited,
    /// The caller has too many calls in flight.
    ConcurrencyLimited,
    /// Admission refused the call to protect the calls already running, or we are draining.
    Overloaded,
    /// The upstream refused this request as invalid: its answer is the caller's answer.
    Rejected,
    /// The upstream refuses our credential.
    UpstreamCredential,
    /// Our account at the upstream is out of money or quota: waiting does not help.
    UpstreamQuota,
    /// The upstream has no capacity now (429, 503, 529).
    UpstreamCapacity,
    /// The upstream could not be reached at all.
    Unavailable,
    /// The upstream failed or answered wrongly.
    Upstream,
    /// One of our clocks ran out while waiting for the upstream.
    UpstreamTimeout(Clock),
    /// The call's own deadline passed.
    DeadlineExceeded,
    /// The caller gave up before the reply was complete.
    Cancelled,
    /// A bug on our side.
    Internal,
}

impl Kind {
    /// What an attempt that ends so says about the upstream.
    pub(super) const fn class(self) -> Class {
        match self {
            Self::Rejected => Class::Caller,
            Self::UpstreamCredential => Class::Credential,
            Self::UpstreamQuota => Class::Quota,
            Self::UpstreamCapacity => Class::Capacity,
            Self::Unavailable | Self::Upstream => Class::Fault,
            Self::UpstreamTimeout(_) => Class::Timeout,
            Self::Cancelled => Class::Cancelled,
            Self::InvalidRequest
            | Self::InvalidJson
            | Self::Unauthenticated
            | Self::TokenExpired
            | Self::BudgetExceeded
            | Self::ModelNotAllowed
            | Self::ModelNotFound
            | Self::NotFound
            | Self::TooLarge => Class::Caller,
            Self::RateLimited | Self::ConcurrencyLimited | Self::Overloaded | Self::Internal => {
                Class::Refused
            }
            Self::DeadlineExceeded => Class::Timeout,
        }
    }

    /// The stable code callers branch on (SPEC §4).
    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::InvalidRequest | Self::Rejected => "invalid_request_error",
            Self::InvalidJson => "invalid_json",
            Self::Unauthenticated => "invalid_api_key",
            Self::TokenExpired => "token_expired",
            Self::BudgetExceeded => "budget_exceeded",
            Self::ModelNotAllowed => "model_not_allowed",
            Self::ModelNotFound => "model_not_found",
            Self::NotFound => "not_found",
            Self::TooLarge => "request_too_large",
            Self::RateLimited => "rate_limit_exceeded",
            Self::ConcurrencyLimited => "concurrency_limit_exceeded",
            Self::Overloaded => "overloaded",
            Self::UpstreamCapacity | Self::Unavailable => "no_upstream_available",
            Self::UpstreamCredential | Self::UpstreamQuota | Self::Upstream => "upstream_error",
            Self::UpstreamTimeout(_) => "upstream_timeout",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal_error",
        }
    }
}

/// Which clock ran out (SPEC §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Clock {
    /// Opening a connection.
    Connect,
    /// From sending the request to the first token of a stream, or to a unary answer.
    FirstToken,
    /// Between two chunks of a body.
    Idle,
    /// The whole attempt.
    Total,
}

impl Clock {
    /// The word used in messages, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::FirstToken => "first_token",
            Self::Idle => "idle",
            Self::Total => "total",
        }
    }
}

/// What an attempt's end says about the upstream (SPEC §6.1).
///
/// Breakers count `Fault`, `Timeout` and, of `Capacity`, a 503; limiters learn from `Capacity`;
/// nothing else blames the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The caller's request is at fault (400, 404, 413, 422 …).
    Caller,
    /// Our key at the upstream is (401, 403).
    Credential,
    /// `insufficient_quota` and kin: never retried.
    Quota,
    /// 429, 503, 529.
    Capacity,
    /// Connect error, reset, 500, 502, 504, bad protocol, an error event inside a 200 stream.
    Fault,
    /// One of our clocks ran out.
    Timeout,
    /// The caller went away.
    Cancelled,
    /// We refused it ourselves before any upstream was asked.
    Refused,
}

impl Class {
    /// The word used in logs, metrics and batch rows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Credential => "credential",
            Self::Quota => "quota",
            Self::Capacity => "capacity",
            Self::Fault => "fault",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Refused => "refused",
        }
    }
}
