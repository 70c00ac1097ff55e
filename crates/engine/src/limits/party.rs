//! What one caller, team, model or upstream has used of its limits.

use super::{Amount, Rule, Scope};
use parking_lot::{Mutex, MutexGuard};
use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};
use tidegate_core::{Allowance, Error, Kind, Limits, Money, Origin, RateLimits, Retry};
use tidegate_policy::rate_limit::{Limiter, Taken};

/// When to come again where too many are in flight: nobody knows when one ends.
pub(super) const SLOT_AGAIN: Duration = Duration::from_secs(1);

/// How often those who wait look for a free slot.
const SLOT_LOOK: Duration = Duration::from_millis(100);

/// One scope's limiters.
pub(crate) struct Party {
    pub(super) scope: Scope,
    id: Arc<str>,
    // Held for a few instructions. Where several are held at once they are of different scopes,
    // and locked in the order of these.
    state: Mutex<State>,
}

/// The limiters of a party that is locked: what was asked of them holds until it is taken.
pub(crate) struct State {
    rule: Rule,
    requests: Option<Limiter>,
    tokens: Option<Limiter>,
    cost: Option<Limiter>,
    in_flight: u32,
    /// By those in flight, and not settled.
    reserved: Amount,
}

/// What one call or attempt took of one party.
#[derive(Clone, Copy, Default)]
pub(super) struct Took {
    tokens: Option<Taken>,
    cost: Option<Taken>,
}

/// Why a party refuses.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refusal {
    scope: Scope,
    id: Arc<str>,
    limit: Limit,
    /// `None` when it never helps to wait.
    retry_after: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Limit {
    Requests(u32),
    Tokens(u64),
    Cost(Money),
    Concurrency(u32),
}

impl Party {
    pub(super) fn new(scope: Scope, id: Arc<str>, rule: Rule) -> Self {
        Self { scope, id, state: Mutex::new(State::new(rule)) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Whether `needs` can be had now.
    pub(crate) fn ask(&self, state: &State, needs: Amount, now: Instant) -> Result<(), Refusal> {
        let Some((limit, retry_after)) = state.ask(needs, now) else { return Ok(()) };
        Err(Refusal { scope: self.scope, id: self.id.clone(), limit, retry_after })
    }

    /// Goes by `rule` from now on.
    pub(super) fn follow(&self, rule: &Rule, now: Instant) {
        let mut state = self.lock();
        if state.rule != *rule {
            state.change(*rule, now);
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.lock().in_flight as usize
    }

    pub(super) fn reserved(&self) -> Amount {
        self.lock().reserved
    }

    /// Whether forgetting it changes nothing.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        self.lock().is_idle(now)
    }
}

impl State {
    fn new(rule: Rule) -> Self {
        let Limits { requests_per_minute, tokens_per_minute, cost_per_minute, .. } = rule.limits;
        Self {
            rule,
            requests: requests_per_minute.map(|limit| rule.limiter(limit.into())),
            tokens: tokens_per_minute.map(|limit| rule.limiter(limit)),
            cost: cost_per_minute.map(|limit| rule.limiter(limit.pico())),
            in_flight: 0,
            reserved: Amount::default(),
        }
    }

    fn change(&mut self, rule: Rule, now: Instant) {
        let fresh = Self::new(rule);
        let carry =
            |old: &Option<Limiter>, new: Option<Limiter>, limit: Option<u64>| match (old, limit) {
                (Some(old), Some(limit)) => Some(rule.changed(old, limit, now)),
                _ => new,
            };
        let Limits { requests_per_minute, tokens_per_minute, cost_per_minute, .. } = rule.limits;
        self.requests = carry(&self.requests, fresh.requests, requests_per_minute.map(u64::from));
        self.tokens = carry(&self.tokens, fresh.tokens, tokens_per_minute);
        self.cost = carry(&self.cost, fresh.cost, cost_per_minute.map(Money::pico));
        self.rule = rule;
    }

    /// The limit that stands in the way for longest, if any does.
    fn ask(&self, needs: Amount, now: Instant) -> Option<(Limit, Option<Duration>)> {
        let Limits { requests_per_minute, tokens_per_minute, cost_per_minute, concurrency } =
            self.rule.limits;
        let full = concurrency.filter(|most| self.in_flight >= *most);
        let full = full.map(|most| (Limit::Concurrency(most), Some(SLOT_AGAIN)));
        let over = |limiter: &Option<Limiter>, units: u64, limit: Option<Limit>| {
            let refused = limiter.as_ref()?.ask(now, units).err()?;
            Some((limit?, refused.retry_after))
        };
        let requests = over(&self.requests, 1, requests_per_minute.map(Limit::Requests));
        let tokens = over(&self.tokens, needs.tokens, tokens_per_minute.map(Limit::Tokens));
        let cost = over(&self.cost, needs.cost.pico(), cost_per_minute.map(Limit::Cost));
        [full, requests, tokens, cost]
            .into_iter()
            .flatten()
            .reduce(|one, other| if lasts_longer(other.1, one.1) { other } else { one })
    }

    /// Takes `needs`, which were asked for under the same lock.
    pub(super) fn take(&mut self, needs: Amount, now: Instant) -> Took {
        let take = |limiter: &mut Option<Limiter>, units| {
            let taken = limiter.as_mut()?.take(now, units);
            debug_assert!(taken.is_ok(), "it was asked for");
            taken.ok()
        };
        take(&mut self.requests, 1);
        self.in_flight += 1;
        self.reserved = self.reserved.plus(needs);
        Took {
            tokens: take(&mut self.tokens, needs.tokens),
            cost: take(&mut self.cost, needs.cost.pico()),
        }
    }

    /// Corrects what was taken to what was used.
    pub(super) fn settle(&mut self, took: Took, used: Amount, now: Instant) {
        let settle = |limiter: &mut Option<Limiter>, taken: Option<Taken>, used: u64| {
            if let (Some(limiter), Some(taken)) = (limiter, taken) {
                limiter.settle(now, taken, used);
            }
        };
        settle(&mut self.tokens, took.tokens, used.tokens);
        settle(&mut self.cost, took.cost, used.cost.pico());
    }

    /// A call or an attempt has ended: what it reserved is no reservation any more.
    pub(super) fn leave(&mut self, needs: Amount) {
        debug_assert!(self.in_flight > 0, "a slot is given back once");
        self.in_flight -= 1;
        self.reserved = self.reserved.minus(needs);
    }

    pub(super) fn told(&self, now: Instant) -> RateLimits {
        let allowance = |limiter: &Option<Limiter>| {
            limiter.as_ref().map(|limiter| limiter.allowance(now)).unwrap_or_default()
        };
        RateLimits { requests: allowance(&self.requests), tokens: allowance(&self.tokens) }
    }

    fn is_idle(&self, now: Instant) -> bool {
        let limiters = [&self.requests, &self.tokens, &self.cost];
        self.in_flight == 0 && limiters.into_iter().flatten().all(|limiter| limiter.is_idle(now))
    }
}

impl Refusal {
    /// The one that is to be told of several: whoever comes back after the shorter wait would be
    /// refused again.
    pub(super) fn or_longer(self, other: Self) -> Self {
        if lasts_longer(other.retry_after, self.retry_after) { other } else { self }
    }

    /// What a caller is told who is over a limit of its own, its team's or its model's.
    pub(super) fn into_error(self, told: RateLimits) -> Error {
        let kind = match self.limit {
            Limit::Concurrency(_) => Kind::ConcurrencyLimited,
            Limit::Requests(_) | Limit::Tokens(_) | Limit::Cost(_) => Kind::RateLimited,
        };
        Error::new(kind, Origin::Caller, self.to_string())
            .with_retry_after(self.retry_after)
            .with_tenant_limits(told)
            .caused_by(self)
    }

    /// What an attempt is told that its upstream's limit stops: nothing was sent.
    pub(crate) fn into_unsent(self) -> Error {
        Error::new(Kind::Overloaded, Origin::Gateway, self.to_string())
            .with_retry(Retry::Unsent)
            .with_retry_after(self.retry_after.or(Some(SLOT_AGAIN)))
            .caused_by(self)
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scope, id, limit, retry_after } = self;
        if retry_after.is_none() {
            f.write_str("this call alone is over ")?;
        }
        write!(f, "the limit of {limit} ")?;
        match scope {
            Scope::Caller => f.write_str("of this caller")?,
            Scope::Team => write!(f, "of the team `{id}`")?,
            Scope::Model => write!(f, "of the model `{id}`, which all callers share")?,
            Scope::Upstream => write!(f, "of the upstream `{id}`")?,
        }
        f.write_str(if retry_after.is_none() { "" } else { " is reached" })
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requests(limit) => write!(f, "{limit} requests per minute"),
            Self::Tokens(limit) => write!(f, "{limit} tokens per minute"),
            Self::Cost(limit) => write!(f, "{limit} per minute"),
            Self::Concurrency(limit) => write!(f, "{limit} calls in flight"),
        }
    }
}

/// How long it helps to wait after `error`, when that is the refusal of a limit.
pub(crate) fn wait(error: &Error) -> Option<Duration> {
    let refusal = std::error::Error::source(error)?.downcast_ref::<Refusal>()?;
    match refusal.limit {
        Limit::Concurrency(_) => Some(SLOT_LOOK),
        Limit::Requests(_) | Limit::Tokens(_) | Limit::Cost(_) => refusal.retry_after,
    }
}

/// Whether a wait is longer than another; `None` is for ever.
fn lasts_longer(wait: Option<Duration>, than: Option<Duration>) -> bool {
    wait.unwrap_or(Duration::MAX) > than.unwrap_or(Duration::MAX)
}

/// Of two allowances the one that is used up first.
pub(super) fn tighter(one: RateLimits, other: RateLimits) -> RateLimits {
    let of = |one: Allowance, other: Allowance| match (one.remaining, other.remaining) {
        (Some(left), Some(others)) if others < left => other,
        (Some(left), Some(others)) if others == left && other.reset > one.reset => other,
        (None, _) => other,
        _ => one,
    };
    RateLimits { requests: of(one.requests, other.requests), tokens: of(one.tokens, other.tokens) }
}
