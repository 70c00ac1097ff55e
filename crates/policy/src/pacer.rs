//! Pacer: when the next attempt may leave for an upstream, so that its rate limit is met and
//! not run into.
//!
//! # Why
//!
//! A client faster than a limit it was not told about spends its attempts on refusals and loses
//! rows. The pacer finds the limit. It rests on one fact about token buckets and windows alike:
//! *between two moments at which the upstream's allowance was empty, what it accepted is exactly
//! what it allows*. So after each refusal it measures `accepted / elapsed` since the one before,
//! waits as asked, and goes on a tenth faster than measured: fast enough to use all there is and
//! to notice when there is more, slow enough that the next refusal is seconds away and is met by
//! one or two attempts, not by all in flight. A plain "halve it" needs many refusals to come down
//! from a wild start and wastes half of what is there.
//!
//! # States
//!
//! ```text
//!          no refusal yet: pace doubles every 250 ms while answers come (a fixed concurrency: no pace)
//! Open ------------------------------------------------------------------------------+
//!   ^  refused: shut until Retry-After (or a doubling backoff), pace = measured x 1.1 |
//!   +---- reopens, paced; after 5 s without a refusal the pace grows faster <---- Shut
//! ```
//!
//! A refusal that names no wait, while others are let in, shuts nothing: up to one in ten is the
//! concurrency limit's to answer, beyond that the pace goes a bit below what was accepted.
//!
//! Told rates (`requests_per_minute` and kin, or what answer headers say) only ever lower the
//! pace. Our own allowance is a tenth of a second deep and starts empty: a limit of 6,000 per
//! minute never lets 6,000 go at once.

mod pace;
mod recent;

use crate::rate_limit::{Bucket, Rate};
use pace::{MAX_PER_SECOND, Pace, Trust};
use recent::Recent;
use std::time::{Duration, Instant};
use tidegate_core::{BoundBy, RateLimits};

/// Pace before anything is known, in requests per second.
const START_PER_SECOND: f64 = 100.0;
/// How much faster than measured the pacer goes on.
const PROBE: f64 = 1.1;
/// How much slower than measured it goes on where no pause was asked for.
const BELOW: f64 = 0.95;
/// Share of attempts that may be refused where no pause was asked for.
const RARE: f64 = 0.1;
/// Time to measure over where no pause was asked for: the shorter if enough was accepted in it.
const SETTLE: Duration = Duration::from_millis(500);
const LONG_SETTLE: Duration = Duration::from_secs(5);
const ENOUGH: u64 = 10;
/// A guess is not below this.
const MIN_GUESS_PER_SECOND: f64 = 10.0;
/// First wait after a refusal that named none; doubles up to [`BACKOFF_CAP`].
const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_CAP: Duration = Duration::from_secs(20);
/// How far the pace may lag behind the clock and still catch up: timers fire late, and calls
/// come in bursts.
const CATCH_UP: Duration = Duration::from_millis(100);
/// No upstream shuts the gate for longer than this, whatever it asks.
const SHUT_CAP: Duration = Duration::from_secs(86_400);
/// A pace below this could starve a job for minutes on one odd measurement.
const MIN_PER_SECOND: f64 = 0.2;
/// A told rate is taken for no less than one attempt per day.
const MIN_TOLD_PER_SECOND: f64 = 1.0 / 86_400.0;
/// Rates the pacer was told by configuration or flag; `None` where nothing was said.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Options {
    /// Requests per second, at least one per day; several told rates become the lowest.
    pub requests_per_second: Option<f64>,
    /// Tokens per minute, input and output together.
    pub tokens_per_minute: Option<u64>,
    /// Whether the pace is unlimited before the first refusal, because the caller said how much
    /// may be in flight.
    pub eager: bool,
}

/// Whether an attempt may leave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Go {
    /// Now; it has been counted.
    Now,
    /// Ask again then.
    At(Instant, BoundBy),
}

/// Paces the attempts of one upstream.
#[derive(Debug)]
pub struct Pacer {
    options: Options,
    tokens: Option<Bucket>,
    /// When the next attempt may leave at the present pace.
    next: Instant,
    shut_until: Option<Instant>,
    pace: Pace,
    /// Requests per second that answer headers say are refilled, while little is left.
    hinted: Option<f64>,
    epoch: Epoch,
    recent: Recent,
    unanswered_refusals: u32,
    /// The last pace that was measured with anything accepted.
    good: f64,
}

/// From one refusal to the next.
#[derive(Debug)]
struct Epoch {
    start: Instant,
    accepted: u64,
    /// Those that named no wait.
    refused: u64,
    /// Whether the pace has held an attempt back.
    is_held: bool,
}

impl Epoch {
    const fn new(start: Instant) -> Self {
        Self { start, accepted: 0, refused: 0, is_held: false }
    }
}

const fn within(per_second: f64) -> f64 {
    per_second.clamp(MIN_PER_SECOND, MAX_PER_SECOND)
}

impl Pacer {
    /// A pacer that knows only what `options` say.
    pub fn new(mut options: Options, now: Instant) -> Self {
        let told = options.requests_per_second;
        options.requests_per_second = told.map(|rate| rate.max(MIN_TOLD_PER_SECOND));
        let tokens = options.tokens_per_minute.map(|limit| {
            let mut bucket = Bucket::new(token_rate(limit));
            // Starts empty: the first minute must not get two minutes' worth.
            bucket.settle(now, 0, token_rate(limit).burst);
            bucket
        });
        let per_second = if options.eager { f64::INFINITY } else { START_PER_SECOND };
        Self {
            options,
            tokens,
            next: now,
            shut_until: None,
            pace: Pace::Unknown { per_second, doubled_at: now },
            hinted: None,
            epoch: Epoch::new(now),
            recent: Recent::new(now),
            unanswered_refusals: 0,
            good: START_PER_SECOND,
        }
    }

    /// Asks to send one attempt of `tokens` estimated tokens at `now`.
    pub fn admit(&mut self, now: Instant, tokens: u64) -> Go {
        if let Some(until) = self.shut_until {
            if now < until {
                return Go::At(until, BoundBy::Refusals);
            }
            self.reopen(until);
        }
        if now < self.next {
            self.epoch.is_held = true;
            return Go::At(self.next, self.request_bound(now));
        }
        let tokens = self.reservable(tokens);
        if let Some(bucket) = &mut self.tokens
            && let Err(refused) = bucket.take(now, tokens)
        {
            match refused.retry_after {
                Some(wait) => return Go::At(now + wait, BoundBy::Tokens),
                // More than the whole bucket holds: goes alone, and the next ones pay for it.
                None if bucket.is_idle(now) => bucket.settle(now, 0, tokens),
                None => {
                    let wait = bucket.allowance(now).reset.unwrap_or_default();
                    return Go::At(now + wait.max(Duration::from_millis(1)), BoundBy::Tokens);
                }
            }
        }
        let per_second = self.per_second(now);
        if per_second.is_finite() {
            let oldest = now.checked_sub(CATCH_UP).unwrap_or(now);
            self.next = self.next.max(oldest) + Duration::from_secs_f64(1.0 / per_second);
        }
        Go::Now
    }

    /// An attempt was accepted: it came back with anything but a capacity refusal.
    pub fn accepted(&mut self, now: Instant) {
        self.epoch.accepted += 1;
        self.recent.accepted(now);
        self.unanswered_refusals = 0;
        self.pace.accepted(now);
    }

    /// An attempt sent at `sent` was refused at `now`; the upstream asked to wait `asked`.
    /// `roll` is drawn evenly from `[0, 1)`.
    pub fn refused(&mut self, sent: Instant, now: Instant, asked: Option<Duration>, roll: f64) {
        if sent <= self.epoch.start && matches!(self.pace, Pace::Found { .. }) {
            // It left no later than the refusal that opened this epoch came: the same event,
            // unless it asks for a longer wait.
            if let Some(asked) = asked {
                let until = now + asked.min(SHUT_CAP);
                self.shut_until = self.shut_until.max(Some(until));
            }
            return;
        }
        if asked.is_none() && self.recent.per_second(now) > 0.0 {
            return self.slow_down(now);
        }
        let (measured, trust) = self.measure(now);
        let per_second = within(measured * PROBE);
        let backoff = BACKOFF.saturating_mul(1 << self.unanswered_refusals.min(6)).min(BACKOFF_CAP);
        let wait = asked.unwrap_or(backoff.mul_f64(0.5 + roll / 2.0)).min(SHUT_CAP);
        self.unanswered_refusals += 1;
        // Up to 5 % later than asked: other clients were told the same.
        let until = now + wait.mul_f64(1.0 + roll / 20.0);
        self.shut_until = Some(until);
        self.pace = Pace::Found { per_second, at: until, trust };
        self.epoch = Epoch::new(now);
    }

    /// Refused without a word on how long, while others are let in: the upstream is full, not
    /// shut. As long as that is rare it is the concurrency limit's to find, and two that answer
    /// one refusal both would leave half of the upstream unused. Where it is common, the pace
    /// goes a bit below what is let through: there is no pause in which an allowance could refill.
    fn slow_down(&mut self, now: Instant) {
        self.epoch.refused += 1;
        let elapsed = now.saturating_duration_since(self.epoch.start);
        if elapsed < SETTLE || elapsed < LONG_SETTLE && self.epoch.accepted < ENOUGH {
            return;
        }
        let Epoch { accepted, refused, .. } = std::mem::replace(&mut self.epoch, Epoch::new(now));
        if refused as f64 <= RARE * (accepted + refused) as f64 {
            return;
        }
        let measured = (accepted as f64 / elapsed.as_secs_f64()).min(self.per_second(now));
        let per_second = within(measured * BELOW);
        self.pace = Pace::Found { per_second, at: now, trust: Trust::Measured };
    }

    /// Takes what an answer said of the upstream's limits.
    pub fn told(&mut self, limits: RateLimits) {
        let requests = limits.requests;
        let (Some(limit), Some(remaining), Some(reset)) =
            (requests.limit, requests.remaining, requests.reset)
        else {
            return;
        };
        let spent = limit.saturating_sub(remaining);
        // While much is left there is no need to pace; near the end the refill rate is the limit.
        let low = remaining.saturating_mul(4) < limit;
        self.hinted = (low && spent > 0 && !reset.is_zero())
            .then(|| (spent as f64 / reset.as_secs_f64()).max(MIN_PER_SECOND));
    }

    /// Corrects the tokens of an attempt that has ended.
    pub fn settle_tokens(&mut self, now: Instant, reserved: u64, used: u64) {
        let (reserved, used) = (self.reservable(reserved), self.reservable(used));
        if let Some(bucket) = &mut self.tokens {
            bucket.settle(now, reserved, used);
        }
    }

    /// Requests per second at `now`; `None` while unlimited.
    pub fn rate(&self, now: Instant) -> Option<f64> {
        let per_second = self.per_second(now);
        (per_second < MAX_PER_SECOND).then_some(per_second)
    }

    /// How long the gate stays shut.
    pub fn shut_for(&self, now: Instant) -> Duration {
        self.shut_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// After a pause the upstream's bucket has refilled; the pace starts from the reopening.
    fn reopen(&mut self, until: Instant) {
        self.shut_until = None;
        self.next = self.next.max(until);
    }

    /// What the upstream let through since the last refusal, in requests per second.
    fn measure(&mut self, now: Instant) -> (f64, Trust) {
        let elapsed = now.saturating_duration_since(self.epoch.start).as_secs_f64().max(0.001);
        let mut accepted = self.epoch.accepted as f64 / elapsed;
        if !self.epoch.is_held {
            // Callers asked for less than the pace: the time they were silent measures nothing.
            accepted = accepted.max(self.recent.per_second(now));
        }
        let before = self.per_second(now);
        let (measured, trust) = match self.pace {
            // The first epoch began with a full allowance, so it measures too much.
            Pace::Unknown { .. } => {
                ((accepted / 2.0).max(MIN_GUESS_PER_SECOND).min(before), Trust::Guessed)
            }
            // An outage measures nothing: come down, but stay within reach of what was.
            Pace::Found { .. } if self.epoch.accepted == 0 => {
                ((before / 2.0).max(self.good / 4.0), Trust::Guessed)
            }
            Pace::Found { .. } => (accepted.min(before), Trust::Measured),
        };
        if trust == Trust::Measured {
            self.good = measured;
        }
        (measured, trust)
    }

    /// A minute's allowance at most: no estimate, however wild, holds others up for longer.
    fn reservable(&self, tokens: u64) -> u64 {
        tokens.min(self.options.tokens_per_minute.unwrap_or_default())
    }

    fn per_second(&self, now: Instant) -> f64 {
        self.pace.per_second(now).min(self.told_per_second())
    }

    /// The lower of what was configured and what answer headers say.
    fn told_per_second(&self) -> f64 {
        let told = self.options.requests_per_second.unwrap_or(f64::INFINITY);
        told.min(self.hinted.unwrap_or(f64::INFINITY))
    }

    fn request_bound(&self, now: Instant) -> BoundBy {
        if self.told_per_second() <= self.pace.per_second(now) {
            return BoundBy::Requests;
        }
        match self.pace {
            Pace::Found { .. } => BoundBy::Refusals,
            Pace::Unknown { .. } => BoundBy::Concurrency,
        }
    }
}

fn token_rate(limit: u64) -> Rate {
    // Two seconds' worth may go at once.
    Rate { limit, per: Duration::from_secs(60), burst: (limit / 30).max(1) }
}

#[cfg(test)]
mod tests;
