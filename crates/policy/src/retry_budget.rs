//! Retry budget: how many attempts beyond the first an upstream may get.
//!
//! # Why
//!
//! Each call retrying three times turns a brown-out into three times the load, which keeps it
//! down. A budget over *all* calls of an upstream bounds that: retries may be a tenth of first
//! attempts, whatever each call would like (Google SRE book, "Handling overload"; Finagle's
//! `RetryBudget`). A small floor lets a quiet upstream retry at all.
//!
//! Over any [`WINDOW`]: `retries <= ratio * first attempts + floor * 10 s`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// The span over which first attempts and retries are compared, in seconds.
pub const WINDOW: usize = 10;

/// Settings of a [`RetryBudget`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Retries, hedges and fallbacks allowed per first attempt. Default 0.1: each attempt at a
    /// model costs money.
    pub ratio: f64,
    /// Retries per second allowed whatever the traffic. Default 1.
    pub floor_per_second: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self { ratio: 0.1, floor_per_second: 1.0 }
    }
}

/// Counts one upstream's attempts in ten one-second slots.
#[derive(Debug)]
pub struct RetryBudget {
    options: Options,
    start: Instant,
    slots: [Slot; WINDOW],
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    second: u64,
    first: u32,
    retries: u32,
}

impl RetryBudget {
    /// A budget whose clock starts at `now`.
    pub fn new(options: Options, now: Instant) -> Self {
        Self { options, start: now, slots: [Slot::default(); WINDOW] }
    }

    /// Counts a call's first attempt.
    pub fn first_attempt(&mut self, now: Instant) {
        self.slot(now).first += 1;
    }

    /// Takes one retry out of the budget; `false` when it is spent.
    pub fn retry(&mut self, now: Instant) -> bool {
        let second = self.second(now);
        let live =
            self.slots.iter().filter(|slot| second - slot.second.min(second) < WINDOW as u64);
        let (first, retries) = live.fold((0u64, 0u64), |(f, r), slot| {
            (f + u64::from(slot.first), r + u64::from(slot.retries))
        });
        let allowed =
            self.options.ratio * first as f64 + self.options.floor_per_second * WINDOW as f64;
        let fits = (retries + 1) as f64 <= allowed;
        if fits {
            self.slot(now).retries += 1;
        }
        fits
    }

    /// When it is worth asking again after a refusal.
    pub const fn ask_again_after() -> Duration {
        Duration::from_secs(1)
    }

    fn second(&self, now: Instant) -> u64 {
        // From WINDOW on, so that a slot never used (second 0) is always out of the window.
        now.saturating_duration_since(self.start).as_secs() + WINDOW as u64
    }

    fn slot(&mut self, now: Instant) -> &mut Slot {
        let second = self.second(now);
        let slot = &mut self.slots[(second % WINDOW as u64) as usize];
        if slot.second != second {
            *slot = Slot { second, ..Slot::default() };
        }
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays `<second> first <n>` and `<second> retry <asked> -> <granted>` lines.
    #[track_caller]
    fn check(options: Options, script: &str) {
        let start = Instant::now();
        let mut budget = RetryBudget::new(options, start);
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<_> = line.split_whitespace().collect();
            let now = start + Duration::from_secs(words[0].parse().unwrap());
            let count: u32 = words[2].parse().unwrap();
            match words[1] {
                "first" => (0..count).for_each(|_| budget.first_attempt(now)),
                "retry" => {
                    let granted = (0..count).filter(|_| budget.retry(now)).count();
                    assert_eq!(granted.to_string(), words[4], "at: {line}");
                }
                other => panic!("unknown word {other}"),
            }
        }
    }

    #[test]
    fn a_tenth_of_first_attempts_and_a_floor() {
        check(Options::default(), "0 retry 50 -> 10\n0 first 1000\n0 retry 500 -> 100");
    }

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        check(
            Options { floor_per_second: 0.0, ..Options::default() },
            "
            0   first 100
            9   retry 50 -> 10
            10  retry 50 -> 0
            10  first 100
            11  retry 50 -> 0
            19  retry 50 -> 10
            ",
        );
    }

    #[test]
    fn an_outage_is_amplified_by_a_tenth_and_the_floor() {
        let start = Instant::now();
        let mut budget = RetryBudget::new(Options::default(), start);
        let (mut first, mut retries) = (0, 0);
        for ms in 0..30_000u64 {
            let now = start + Duration::from_millis(ms);
            budget.first_attempt(now);
            first += 1;
            retries += u32::from(budget.retry(now)) + u32::from(budget.retry(now));
        }
        assert!(f64::from(retries) <= 0.1 * f64::from(first) + 30.0 + 10.0, "{retries} of {first}");
    }
}
