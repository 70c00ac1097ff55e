//! What is limited, for whom, and how it is counted.

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};
use tidegate_core::{Limits, Tenant};
use tidegate_policy::rate_limit::{Algorithm, Limiter, Rate};

const MINUTE: Duration = Duration::from_secs(60);

/// Limits by scope. Who is not named has none, but for callers, who have the default's.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Of every caller without its own.
    pub default: Rule,
    /// Of callers, by their id; before those that a key brings along.
    pub callers: HashMap<Arc<str>, Rule>,
    /// Of all callers of a team together, by its name.
    pub teams: HashMap<Arc<str>, Rule>,
    /// Of all calls that ask for a model, by the name callers use.
    pub models: HashMap<Arc<str>, Rule>,
    /// Of all attempts at an upstream, by its name.
    pub upstreams: HashMap<Arc<str>, Rule>,
}

/// One scope's limits, and how they are counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// How much.
    pub limits: Limits,
    /// How requests, tokens and money are counted.
    pub algorithm: Algorithm,
    /// How long a token bucket fills: so much of a limit may pass at once after a pause.
    pub burst: Duration,
}

impl Default for Rule {
    /// No limits; where numbers come from elsewhere, token buckets a minute deep.
    fn default() -> Self {
        Self { limits: Limits::default(), algorithm: Algorithm::default(), burst: MINUTE }
    }
}

impl Options {
    /// What holds for a caller: what is written for its id, else its key's own limits, counted
    /// as the default's, else the default.
    pub(super) fn of_caller(&self, tenant: &Tenant) -> Cow<'_, Rule> {
        match (self.callers.get(&tenant.id), tenant.limits) {
            (Some(rule), _) => Cow::Borrowed(rule),
            (None, Some(limits)) => Cow::Owned(Rule { limits, ..self.default }),
            (None, None) => Cow::Borrowed(&self.default),
        }
    }
}

impl Rule {
    pub(super) fn limiter(&self, per_minute: u64) -> Limiter {
        Limiter::new(self.algorithm, self.rate(per_minute))
    }

    /// `limiter` with this rule's numbers, and what is used of it.
    pub(super) fn changed(
        &self,
        limiter: &Limiter,
        per_minute: u64,
        now: std::time::Instant,
    ) -> Limiter {
        limiter.changed(now, self.algorithm, self.rate(per_minute))
    }

    fn rate(&self, limit: u64) -> Rate {
        let burst = match self.algorithm {
            Algorithm::TokenBucket => self.depth(limit),
            // The largest cost that ever passes; windows do not look at it.
            Algorithm::LeakyBucket | Algorithm::FixedWindow | Algorithm::SlidingWindow => limit,
        };
        Rate { limit, per: MINUTE, burst }
    }

    /// One at least: a bucket that never lets anything through is no limit but a wall.
    fn depth(&self, limit: u64) -> u64 {
        let units = u128::from(limit) * self.burst.as_nanos() / MINUTE.as_nanos();
        u64::try_from(units).unwrap_or(u64::MAX).max(u64::from(limit > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// How many of a thousand pass at once.
    fn at_once(algorithm: Algorithm, burst: Duration, limit: u64) -> u64 {
        let mut limiter = Rule { limits: Limits::default(), algorithm, burst }.limiter(limit);
        let now = Instant::now();
        (0..1_000).take_while(|_| limiter.take(now, 1).is_ok()).count() as u64
    }

    #[test]
    fn a_burst_is_so_much_of_the_limit_and_one_at_least() {
        let bucket =
            |secs, limit| at_once(Algorithm::TokenBucket, Duration::from_secs(secs), limit);
        assert_eq!([bucket(60, 60), bucket(10, 60), bucket(120, 60)], [60, 10, 120]);
        assert_eq!([bucket(1, 6), bucket(0, 60), bucket(60, 0)], [1, 1, 0]);
        assert_eq!(at_once(Algorithm::FixedWindow, Duration::ZERO, 60), 60);
    }

    #[test]
    fn what_is_written_for_a_caller_comes_before_its_key_and_that_before_the_default() {
        let rpm = |rpm| Limits { requests_per_minute: Some(rpm), ..Limits::default() };
        let rule = |limits| Rule { limits, algorithm: Algorithm::FixedWindow, ..Rule::default() };
        let callers = HashMap::from([("ann".into(), rule(rpm(1)))]);
        let options = Options { default: rule(rpm(3)), callers, ..Options::default() };
        let of = |id: &str, limits| {
            let tenant = Tenant { id: id.into(), limits, ..Tenant::local() };
            options.of_caller(&tenant).into_owned()
        };
        let found = [("ann", Some(rpm(2))), ("bob", Some(rpm(2))), ("bob", None)]
            .map(|(id, limits)| of(id, limits));
        assert_eq!(found, [1, 2, 3].map(|n| rule(rpm(n))));
    }
}
