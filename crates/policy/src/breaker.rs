//! Breaker: stop sending to a target that keeps failing.
//!
//! # Why
//!
//! A dead server costs every call a full timeout, and the retries it causes load its healthy
//! siblings. A breaker turns that slow failure into a fast one and gives the server room to
//! recover. It listens to two alarms, as each alone is deaf to something: *failures in a row*
//! sees a dead server within a few attempts but misses one that fails six times in ten at high
//! volume; the *failed share* of a sliding window sees that, but needs more attempts than a quiet
//! server gets (Envoy's outlier detection uses both). Coming back is gradual: one probe at a time,
//! then a growing share, so that a server with cold caches is not knocked over again.
//!
//! Failures are fast and answers slow: of a burst of which a few fail, those few come back first,
//! all in a row. So a failure is weighed against the attempts it has overtaken: those sent before
//! it, or at about the same time, that have not ended yet. Both alarms count them as good until they
//! end, and failures in a row must besides be a quarter of themselves and what they overtook.
//!
//! A failure is a fault or a timeout. A 4xx is the caller's, a 429 feeds the limiters, and a
//! caller who hangs up says nothing ([`Outcome::Unknown`]).
//!
//! # States
//!
//! ```text
//!   Closed --- 5 in a row, or half of >= 20 in 10 s ---> Open (1 s, 2 s, 4 s … 60 s, +-20 %)
//!     ^                                                    ^                |
//!     | 3 good probes,                          bad probe  |                | time is up
//!     | slow start 10 % -> 50 % -> 100 %                   |                v
//!     +------------------------------------------------ HalfOpen (one probe out at a time)
//! ```
//!
//! Opening again before a slow start is over doubles the time; a whole one resets it.

mod out;

use self::out::{Moment, Out};
use crate::setting;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// One-second slots of the sliding window.
const WINDOW: usize = 10;
/// Failures in a row open the breaker when they are this share of themselves and what they have
/// overtaken: five as long as no more than fifteen slower ones are out.
const IN_A_ROW_SHARE: f64 = 0.25;
/// Share of its traffic a target gets when it has just closed, and while it may be probed.
const FIRST_SHARE: f64 = 0.1;
/// The same half way through its slow start.
const HALFWAY_SHARE: f64 = 0.5;
/// While a probe is out, it is worth asking again this often.
const PROBE_WAIT: Duration = Duration::from_millis(100);
/// Open time is spread by this much either way, so that replicas do not probe in step.
const JITTER: f64 = 0.2;

/// Settings of a [`Breaker`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Failures in a row that open the breaker, in attempts. Default 5; 0 turns the breaker off.
    pub failures: u32,
    /// Failed share of the last ten seconds' attempts that opens it too, from 0 to 1. Default 0.5.
    #[serde(with = "setting::share")]
    #[schemars(with = "f64")]
    pub failure_share: f64,
    /// Attempts within ten seconds before `failure_share` counts. Default 20.
    pub min_attempts: u32,
    /// How long it stays open the first time before a probe is let through. Doubles each time
    /// it opens again without having recovered. Default "1s".
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub open_for: Duration,
    /// The longest it stays open. Default "60s".
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub max_open_for: Duration,
    /// Good probes, one after the other, that close it. Default 3.
    pub probes: u32,
    /// How long after closing a target gets less than its weight's share, while others can take
    /// the rest: 10 % at first, half after half of this time. Default "10s".
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub slow_start: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            failures: 5,
            failure_share: 0.5,
            min_attempts: 20,
            open_for: Duration::from_secs(1),
            max_open_for: Duration::from_secs(60),
            probes: 3,
            slow_start: Duration::from_secs(10),
        }
    }
}

/// Watches one target and refuses attempts while it is failing.
#[derive(Debug)]
pub struct Breaker {
    options: Options,
    phase: Phase,
    /// Counts the phases, so that news from an earlier one is known to be old.
    epoch: u64,
    /// How often it opened without a whole slow start in between.
    reopened: u32,
    start: Instant,
    window: [Slot; WINDOW],
}

#[derive(Debug)]
enum Phase {
    /// `since` is when it closed, if it was ever open.
    Closed {
        in_a_row: u32,
        since: Option<Instant>,
        out: Out,
    },
    Open {
        until: Instant,
    },
    HalfOpen {
        probe_out: bool,
        good: u32,
    },
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    second: u64,
    good: u32,
    bad: u32,
}

/// Whether an attempt may be sent.
#[derive(Debug, PartialEq)]
pub enum Admit {
    /// Yes; report how it went with [`Breaker::ended`].
    Go(Permit),
    /// No, the target is failing.
    Refused {
        /// The earliest moment worth asking again.
        retry_at: Instant,
    },
}

/// One attempt that was let through. Whoever holds it reports it with [`Breaker::ended`], from
/// its `Drop` with [`Outcome::Unknown`] if need be: a probe never reported keeps the target shut.
#[must_use = "an unreported probe keeps the target shut"]
#[derive(Debug, PartialEq)]
pub struct Permit {
    epoch: u64,
    sent: Moment,
    roll: f64,
}

/// How an attempt ended, as far as the target's health is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The target answered as a working one does.
    Good,
    /// A fault or a timeout.
    Bad,
    /// Nothing was learned: the caller went away. Counts neither way.
    Unknown,
}

/// What a breaker is doing, for display.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Attempts pass.
    Closed,
    /// Attempts are refused.
    Open {
        /// When the first probe may leave.
        until: Instant,
    },
    /// Only probes pass, one at a time.
    HalfOpen,
}

impl Breaker {
    /// A closed breaker whose clock starts at `now`.
    pub fn new(options: Options, now: Instant) -> Self {
        Self {
            options,
            phase: Phase::closed(None),
            epoch: 0,
            reopened: 0,
            start: now,
            window: [Slot::default(); WINDOW],
        }
    }

    /// Asks to send one attempt at `now`; `roll` is drawn evenly from `[0, 1)` and spreads the
    /// open time should this attempt be the last straw.
    ///
    /// A slow start is not enforced here: with nowhere else to go, refusing callers of a server
    /// that works again would only prolong the outage. Choose targets by [`Breaker::share`].
    pub fn admit(&mut self, now: Instant, roll: f64) -> Admit {
        let sent = Moment::of(now.saturating_duration_since(self.start));
        match &mut self.phase {
            Phase::Closed { out, .. } => out.sent(sent),
            Phase::Open { until } if now < *until => return Admit::Refused { retry_at: *until },
            Phase::Open { .. } => self.enter(Phase::HalfOpen { probe_out: true, good: 0 }),
            Phase::HalfOpen { probe_out: true, .. } => {
                return Admit::Refused { retry_at: now + PROBE_WAIT };
            }
            Phase::HalfOpen { probe_out, .. } => *probe_out = true,
        }
        Admit::Go(Permit { epoch: self.epoch, sent, roll })
    }

    /// Lets an attempt through whatever the state, as [`panicking`] asks for. If it may not be a
    /// probe, its outcome does not count.
    pub fn admit_anyway(&mut self, now: Instant, roll: f64) -> Permit {
        match self.admit(now, roll) {
            Admit::Go(permit) => permit,
            Admit::Refused { .. } => Permit { epoch: u64::MAX, sent: Moment::default(), roll },
        }
    }

    /// An attempt ended at `now`.
    pub fn ended(&mut self, permit: Permit, outcome: Outcome, now: Instant) {
        if permit.epoch != self.epoch {
            // Sent before the breaker opened, or before it closed: old news either way.
            return;
        }
        match (&mut self.phase, outcome) {
            (Phase::Closed { in_a_row, out, .. }, Outcome::Good) => {
                *in_a_row = 0;
                out.ended(permit.sent);
                self.slot(now).good += 1;
            }
            (Phase::Closed { in_a_row, out, .. }, Outcome::Bad) => {
                *in_a_row = in_a_row.saturating_add(1);
                out.ended(permit.sent);
                let (in_a_row, overtaken) = (*in_a_row, out.overtaken_by(permit.sent));
                self.slot(now).bad += 1;
                if self.is_alarming(in_a_row, overtaken, now) {
                    self.trip(permit.roll, now);
                }
            }
            (Phase::HalfOpen { .. }, Outcome::Bad) => self.trip(permit.roll, now),
            (Phase::HalfOpen { probe_out, good }, Outcome::Good) => {
                *probe_out = false;
                *good += 1;
                if *good >= self.options.probes {
                    self.window = [Slot::default(); WINDOW];
                    self.enter(Phase::closed(Some(now)));
                }
            }
            (Phase::HalfOpen { probe_out, .. }, Outcome::Unknown) => *probe_out = false,
            (Phase::Closed { out, .. }, Outcome::Unknown) => out.ended(permit.sent),
            (Phase::Open { .. }, _) => {}
        }
    }

    /// A stream whose first token was good news broke off at `now`; `roll` as in
    /// [`Breaker::admit`]. The good news is taken back, so that a target all of whose streams
    /// break is one that always fails. Probes are believed at their first token.
    pub fn broke(&mut self, now: Instant, roll: f64) {
        let Phase::Closed { in_a_row, .. } = &mut self.phase else { return };
        *in_a_row = in_a_row.saturating_add(1);
        let in_a_row = *in_a_row;
        let slot = self.slot(now);
        (slot.good, slot.bad) = (slot.good.saturating_sub(1), slot.bad + 1);
        if self.is_alarming(in_a_row, 0, now) {
            self.trip(roll, now);
        }
    }

    /// Share of its usual traffic the target should get at `now`, from 0 (would be refused) over
    /// 0.1 (may be probed, or has just closed) to 1.
    pub fn share(&self, now: Instant) -> f64 {
        match self.phase {
            Phase::Closed { since: None, .. } => 1.0,
            Phase::Closed { since: Some(since), .. } => {
                let length = self.options.slow_start.as_secs_f64();
                let past = now.saturating_duration_since(since).as_secs_f64();
                if past >= length {
                    1.0
                } else if past * 2.0 < length {
                    FIRST_SHARE + (HALFWAY_SHARE - FIRST_SHARE) * past * 2.0 / length
                } else {
                    HALFWAY_SHARE + (1.0 - HALFWAY_SHARE) * (past * 2.0 / length - 1.0)
                }
            }
            Phase::Open { until } if now < until => 0.0,
            Phase::HalfOpen { probe_out: true, .. } => 0.0,
            Phase::Open { .. } | Phase::HalfOpen { .. } => FIRST_SHARE,
        }
    }

    /// Whether it ever opens.
    pub const fn is_on(&self) -> bool {
        self.options.failures > 0
    }

    /// What the breaker is doing at `now`.
    pub fn state(&self, now: Instant) -> State {
        match self.phase {
            Phase::Closed { .. } => State::Closed,
            Phase::Open { until } if now < until => State::Open { until },
            Phase::Open { .. } | Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Whether so much has failed that it opens, even if the `overtaken` attempts all turn out good.
    fn is_alarming(&self, in_a_row: u32, overtaken: u64, now: Instant) -> bool {
        let Options { failures, failure_share, min_attempts, .. } = self.options;
        if failures == 0 {
            return false;
        }
        let second = self.second(now);
        let live = self.window.iter().filter(|slot| slot.second + WINDOW as u64 > second);
        let (all, bad) = live.fold((0u64, 0u64), |(all, bad), slot| {
            (all + u64::from(slot.good) + u64::from(slot.bad), bad + u64::from(slot.bad))
        });
        let is_share = |bad: u64, all: u64, share| bad as f64 >= (all + overtaken) as f64 * share;
        let row = u64::from(in_a_row);
        in_a_row >= failures && is_share(row, row, IN_A_ROW_SHARE)
            || all >= u64::from(min_attempts) && is_share(bad, all, failure_share)
    }

    fn trip(&mut self, roll: f64, now: Instant) {
        if matches!(self.phase, Phase::Closed { .. }) && self.share(now) >= 1.0 {
            self.reopened = 0;
        }
        let doubled = self.options.open_for.saturating_mul(1 << self.reopened.min(30));
        let spread = 1.0 - JITTER + 2.0 * JITTER * roll;
        let open_for = doubled.min(self.options.max_open_for).mul_f64(spread);
        self.reopened = self.reopened.saturating_add(1);
        self.enter(Phase::Open { until: now + open_for });
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.epoch += 1;
    }

    fn slot(&mut self, now: Instant) -> &mut Slot {
        let second = self.second(now);
        let slot = &mut self.window[(second % WINDOW as u64) as usize];
        if slot.second != second {
            *slot = Slot { second, ..Slot::default() };
        }
        slot
    }

    fn second(&self, now: Instant) -> u64 {
        // From WINDOW on, so that a slot never used (second 0) is always out of the window.
        now.saturating_duration_since(self.start).as_secs() + WINDOW as u64
    }
}

impl Phase {
    fn closed(since: Option<Instant>) -> Self {
        Self::Closed { in_a_row: 0, since, out: Out::default() }
    }
}

/// Whether breakers are to be ignored, as `open` of `all` targets of a model are not closed and
/// that is more than `max_ejected_share` (0.5 by default).
///
/// # Why
///
/// When most servers look dead, the fault is more likely in front of them, or they are dying of
/// load; sending what is left to the few others takes those down as well. Then it is better to go
/// on spreading over all (Envoy's panic threshold). A model with one target has nothing to spread
/// over: it fails fast.
pub fn panicking(open: usize, all: usize, max_ejected_share: f64) -> bool {
    all > 1 && open as f64 > all as f64 * max_ejected_share
}

#[cfg(test)]
mod tests;
