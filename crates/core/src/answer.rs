//! What a front calls.

use crate::{BoxFuture, Call, Identity, Reply, Result, Tenant, Tokens};
use std::{sync::Arc, time::Duration};

/// Answers calls: the engine, or a stub in a front's tests.
pub trait Answer: Send + Sync + 'static {
    /// Who holds `key`, a caller's key or a token: checked without I/O, except for a token signed
    /// by a key that was never seen.
    fn identify<'a>(&'a self, key: &'a str) -> Identity<'a>;

    /// Who issues tokens; `None` where nobody does.
    fn tokens(&self) -> Option<&dyn Tokens> {
        None
    }

    /// Answers one call. Dropping the future or the reply's body cancels it.
    ///
    /// # Errors
    ///
    /// Whatever ended the call, after all attempts it may have.
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Reply>>;

    /// The models `tenant` may use, in the configuration's order.
    fn models(&self, tenant: &Tenant) -> Vec<ModelInfo>;

    /// What the limiters of every upstream model are doing now.
    fn upstreams(&self) -> Vec<UpstreamState>;

    /// What became of the copies of calls that mirrors got, one entry per mirrored model in the
    /// configuration's order. Whoever mirrors nothing need not say so.
    fn mirrors(&self) -> Vec<MirrorState> {
        Vec::new()
    }
}

/// A model as callers see it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// The name callers use.
    pub id: Arc<str>,
    /// Name of its first upstream.
    pub owned_by: Arc<str>,
    /// Unix seconds at which it was configured.
    pub created: u64,
}

/// What one upstream said of one of its rate limits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Allowance {
    /// Size of the window's allowance.
    pub limit: Option<u64>,
    /// What is left of it.
    pub remaining: Option<u64>,
    /// When it is whole again.
    pub reset: Option<Duration>,
}

/// Rate limits as told by an upstream's answer headers; empty when it told nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RateLimits {
    /// `x-ratelimit-*-requests`
    pub requests: Allowance,
    /// `x-ratelimit-*-tokens`
    pub tokens: Allowance,
}

/// The limiter of one (upstream, credential, upstream model), as it stands now.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamState {
    /// Name of the upstream.
    pub upstream: Arc<str>,
    /// The upstream's own name of the model.
    pub model: Arc<str>,
    /// Attempts that may be in flight at once.
    pub concurrency: u32,
    /// Attempts in flight.
    pub in_flight: u32,
    /// Calls waiting at the gate.
    pub waiting: u32,
    /// Requests per second the pacer lets through; `None` while it knows no limit.
    pub requests_per_second: Option<f64>,
    /// How long the gate stays shut after a refusal; zero when open.
    pub shut_for: Duration,
    /// What holds back the next call.
    pub bound_by: BoundBy,
    /// What its breaker is doing.
    pub breaker: BreakerState,
    /// Share of its usual traffic it gets, from 0 (open) over a slow start to 1.
    pub share: f64,
    /// Smoothed first-token time (whole-answer time of unary calls), failures counted as slow;
    /// `None` before the first attempt has ended.
    pub latency: Option<Duration>,
    /// Attempts sent so far.
    pub attempts: u64,
    /// Capacity refusals (429, 503, 529) so far.
    pub refusals: u64,
}

/// The mirror of one model, and what became of the copies it was to get since the start.
///
/// What was sent and neither answered nor failed is in flight.
#[derive(Clone, Debug, PartialEq)]
pub struct MirrorState {
    /// The model whose calls are copied, as callers name it.
    pub model: Arc<str>,
    /// Name of the upstream that gets the copies.
    pub upstream: Arc<str>,
    /// That upstream's own name of the model.
    pub upstream_model: Arc<str>,
    /// Share of the calls that are to be copied, 0 to 1.
    pub share: f64,
    /// Copies sent.
    pub sent: u64,
    /// Of these, answered to the last byte.
    pub answered: u64,
    /// Of these, answered by an error, or broken off.
    pub failed: u64,
    /// Copies not made though it was their turn: the mirror's limiters had no room, or too many
    /// copies were in flight.
    pub skipped: u64,
}

/// What a breaker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Attempts pass.
    Closed,
    /// Attempts are refused.
    Open,
    /// Only probes pass, one at a time.
    HalfOpen,
}

impl BreakerState {
    /// The word used in logs, metrics and the admin API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// What holds back the next call of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoundBy {
    /// Nothing: calls leave as they come.
    Nothing,
    /// The concurrency limit.
    Concurrency,
    /// The breaker: the upstream keeps failing.
    Breaker,
    /// A told requests-per-minute or -second rate.
    Requests,
    /// A told tokens-per-minute rate.
    Tokens,
    /// A rate found from refusals, or a gate shut by one.
    Refusals,
}
