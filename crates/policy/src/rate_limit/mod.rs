//! Rate limit: how much of something (requests, tokens, money) may pass per period.
//!
//! # Why
//!
//! Four rules, because people count in four ways, and a limit must be explained to those it
//! stops. What differs is how much may pass at once:
//!
//! | algorithm | at once, at most | in any period, at most | remembers |
//! |---|---|---|---|
//! | `token_bucket` | the burst | burst + limit | an instant |
//! | `leaky_bucket` | one | limit + 1 | an instant |
//! | `fixed_window` | the limit | 2 × limit, around a window's end | a count |
//! | `sliding_window` | the limit | the limit | twenty counts |
//!
//! All take weighted costs, answer a refusal with the exact wait, and correct a reservation to
//! what was really used: tokens are reserved by estimate before a call and settled after it. What
//! was not used comes back as long as it still counts, which keeps the table true however late
//! that is.

mod fixed;
mod gcra;
mod leaky;
mod sliding;

pub use gcra::Bucket;

use fixed::Fixed;
use leaky::Leaky;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sliding::Sliding;
use std::time::{Duration, Instant};
use tidegate_core::Allowance;

/// How much of something may pass in a period.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Units per [`Rate::per`].
    pub limit: u64,
    /// The period.
    pub per: Duration,
    /// Units that may pass at once after a pause. The token bucket's; a leaky bucket takes it for
    /// the largest cost it ever lets through, windows let the limit through at once.
    pub burst: u64,
}

impl Rate {
    /// `limit` per minute, all of which may pass at once.
    pub const fn per_minute(limit: u64) -> Self {
        Self { limit, per: Duration::from_secs(60), burst: limit }
    }

    /// Time in which `units` come to pass.
    fn cost(&self, units: u64) -> Duration {
        let nanos = self.per.as_nanos() * u128::from(units) / u128::from(self.limit.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Units that come to pass in `time`, rounded up.
    fn units(&self, time: Duration) -> u64 {
        let units = time.as_nanos().saturating_mul(u128::from(self.limit));
        u64::try_from(units.div_ceil(self.per.as_nanos().max(1))).unwrap_or(u64::MAX)
    }
}

/// Not that much may pass now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Refused {
    /// How long until it may; `None` when it never can, as the cost exceeds what may pass at once.
    pub retry_after: Option<Duration>,
}

/// Units that were taken, to be corrected once it is known how many it took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Taken {
    units: u64,
    /// Until when they count: the last of them has leaked out, or their window ends. In a sliding
    /// window, since when.
    counts: Instant,
}

/// How a limit counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// A bucket of the burst's depth that refills steadily (GCRA). The default.
    #[default]
    TokenBucket,
    /// One at a time, evenly spaced, no burst. Refuses what comes too soon; nothing is queued.
    LeakyBucket,
    /// A count that starts anew each period, from the first use on. Easy to explain; lets up to
    /// twice the limit through around a window's end.
    FixedWindow,
    /// A count over the period that ends now, exact to a twentieth of it.
    SlidingWindow,
}

/// One limit, counted by one of the four algorithms.
#[derive(Clone, Debug)]
pub struct Limiter(Rule);

#[derive(Clone, Debug)]
enum Rule {
    Bucket(Bucket),
    Leaky(Leaky),
    Fixed(Fixed),
    // Boxed: the others are a few words, and there is a limiter per caller.
    Sliding(Box<Sliding>),
}

impl Limiter {
    /// A limiter nothing has passed yet.
    pub fn new(algorithm: Algorithm, rate: Rate) -> Self {
        Self(match algorithm {
            Algorithm::TokenBucket => Rule::Bucket(Bucket::new(rate)),
            Algorithm::LeakyBucket => Rule::Leaky(Leaky::new(rate)),
            Algorithm::FixedWindow => Rule::Fixed(Fixed::new(rate)),
            Algorithm::SlidingWindow => Rule::Sliding(Box::new(Sliding::new(rate))),
        })
    }

    /// Whether [`Limiter::take`] would let `cost` units pass at `now`; takes nothing.
    ///
    /// # Errors
    ///
    /// [`Refused`] when they are not there.
    pub fn ask(&self, now: Instant, cost: u64) -> Result<(), Refused> {
        match &self.0 {
            Rule::Bucket(rule) => rule.ask(now, cost),
            Rule::Leaky(rule) => rule.ask(now, cost),
            Rule::Fixed(rule) => rule.ask(now, cost),
            Rule::Sliding(rule) => rule.ask(now, cost),
        }
    }

    /// Takes `cost` units at `now`.
    ///
    /// # Errors
    ///
    /// [`Refused`] when they are not there; nothing is taken then.
    pub fn take(&mut self, now: Instant, cost: u64) -> Result<Taken, Refused> {
        let counts = match &mut self.0 {
            Rule::Bucket(rule) => rule.take(now, cost).map(|used| later(now, used)),
            Rule::Leaky(rule) => rule.take(now, cost).map(|()| now + rule.left(now)),
            Rule::Fixed(rule) => rule.take(now, cost).map(|()| now + rule.left(now)),
            Rule::Sliding(rule) => rule.take(now, cost).map(|()| now),
        };
        Ok(Taken { units: cost, counts: counts? })
    }

    /// Corrects what was taken to the `used` units that were really needed.
    ///
    /// What was not needed comes back as far as it still counts: what has leaked out meanwhile,
    /// or left with its window, makes room already, and making it twice would let more through
    /// than the limit. More than was taken is taken now, even if there is less: it is spent, and
    /// the next calls wait for it.
    pub fn settle(&mut self, now: Instant, taken: Taken, used: u64) {
        let Taken { units: reserved, counts } = taken;
        let left = counts.saturating_duration_since(now);
        let still = |units: u64| used.max(reserved.saturating_sub(units));
        match &mut self.0 {
            Rule::Bucket(rule) => rule.settle(now, reserved, still(rule.rate().units(left))),
            Rule::Leaky(rule) => rule.settle(now, reserved, still(rule.units(left))),
            Rule::Fixed(rule) if left.is_zero() => rule.settle(now, reserved, still(0)),
            Rule::Fixed(rule) => rule.settle(now, reserved, used),
            Rule::Sliding(rule) => rule.settle(now, counts, reserved, used),
        }
    }

    /// A limiter of another rule that goes on from what is used of this one, so that a change of
    /// limits is no fresh start.
    #[must_use]
    pub fn changed(&self, now: Instant, algorithm: Algorithm, rate: Rate) -> Self {
        let mut changed = Self::new(algorithm, rate);
        let owed = Taken { units: 0, counts: now };
        changed.settle(now, owed, self.used(now));
        changed
    }

    /// Units that are taken and have not come back yet, rounded up.
    fn used(&self, now: Instant) -> u64 {
        match &self.0 {
            Rule::Bucket(rule) => rule.rate().units(rule.used(now)),
            Rule::Leaky(rule) => rule.used(now),
            Rule::Fixed(rule) => rule.used(now),
            Rule::Sliding(rule) => rule.used(now),
        }
    }

    /// What callers are told of this limit.
    pub fn allowance(&self, now: Instant) -> Allowance {
        match &self.0 {
            Rule::Bucket(rule) => rule.allowance(now),
            Rule::Leaky(rule) => rule.allowance(now),
            Rule::Fixed(rule) => rule.allowance(now),
            Rule::Sliding(rule) => rule.allowance(now),
        }
    }

    /// Whether nothing is taken, so that forgetting the limiter changes nothing.
    pub fn is_idle(&self, now: Instant) -> bool {
        match &self.0 {
            Rule::Bucket(rule) => rule.is_idle(now),
            Rule::Leaky(rule) => rule.is_idle(now),
            Rule::Fixed(rule) => rule.is_idle(now),
            Rule::Sliding(rule) => rule.is_idle(now),
        }
    }
}

/// `now + wait`, or a moment far away when there is no such instant.
fn later(now: Instant, wait: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(100 * 366 * 24 * 3600);
    now + wait.min(FAR)
}

#[cfg(test)]
mod tests;
