//! Token bucket, kept as one instant (GCRA).
//!
//! The generic cell rate algorithm (ITU-T I.371) is a token bucket whose whole state is the
//! *theoretical arrival time*: no refill timer, no drift between windows, exact waiting times.
//! It takes weighted costs, and gives back what a reservation did not use, which a plain counter
//! per minute cannot do without letting twice the limit through at a window's edge.
//!
//! ```text
//! T = period / limit      tau = burst * T
//! new = max(now, tat) + cost * T       allow iff new - now <= tau
//! remaining = (tau - (tat - now)) / T      retry_after = new - tau - now
//! ```

use super::{Rate, Refused, later};
use std::time::{Duration, Instant};
use tidegate_core::Allowance;

/// One bucket. Costs two comparisons and an addition per question.
#[derive(Clone, Debug)]
pub struct Bucket {
    rate: Rate,
    /// Time in which the whole burst comes to pass.
    depth: Duration,
    /// When the bucket is full again, had nothing more arrived.
    tat: Option<Instant>,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: Rate) -> Self {
        Self { depth: rate.cost(rate.burst), rate, tat: None }
    }

    /// Takes `cost` units at `now`; how long until the bucket is full again.
    ///
    /// # Errors
    ///
    /// [`Refused`] when they are not there; nothing is taken then.
    pub fn take(&mut self, now: Instant, cost: u64) -> Result<Duration, Refused> {
        let after = self.after(now, cost)?;
        self.tat = Some(later(now, after));
        Ok(after)
    }

    /// Whether [`Bucket::take`] would let `cost` units pass at `now`; takes nothing.
    pub(super) fn ask(&self, now: Instant, cost: u64) -> Result<(), Refused> {
        self.after(now, cost).map(|_| ())
    }

    /// How much is used once `cost` more units are taken, if they are there.
    fn after(&self, now: Instant, cost: u64) -> Result<Duration, Refused> {
        let after = self.used(now).saturating_add(self.rate.cost(cost));
        if after <= self.depth {
            return Ok(after);
        }
        let never = cost > self.rate.burst;
        Err(Refused { retry_after: (!never).then(|| after - self.depth) })
    }

    /// Corrects a reservation of `reserved` units to the `used` that were really needed.
    ///
    /// More than reserved is taken even if the bucket goes below zero: the tokens are spent, and
    /// the next calls wait for them.
    pub fn settle(&mut self, now: Instant, reserved: u64, used: u64) {
        let held = self.used(now);
        let corrected = if used >= reserved {
            held.saturating_add(self.rate.cost(used - reserved))
        } else {
            held.saturating_sub(self.rate.cost(reserved - used))
        };
        self.tat = Some(later(now, corrected));
    }

    /// What callers are told of this bucket.
    pub fn allowance(&self, now: Instant) -> Allowance {
        let used = self.used(now);
        let one = self.rate.cost(1).as_nanos().max(1);
        let left = self.depth.saturating_sub(used).as_nanos() / one;
        Allowance {
            limit: Some(self.rate.limit),
            remaining: Some(u64::try_from(left).unwrap_or(u64::MAX).min(self.rate.burst)),
            reset: Some(used),
        }
    }

    /// Whether the bucket is full, so that forgetting it changes nothing.
    pub fn is_idle(&self, now: Instant) -> bool {
        self.used(now).is_zero()
    }

    pub(super) const fn rate(&self) -> &Rate {
        &self.rate
    }

    pub(super) fn used(&self, now: Instant) -> Duration {
        self.tat.map_or(Duration::ZERO, |tat| tat.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays `<ms> take <n> -> ok|<wait ms>|never` and `<ms> settle <reserved> <used>` lines.
    #[track_caller]
    fn check(rate: Rate, script: &str) {
        let (mut bucket, start) = (Bucket::new(rate), Instant::now());
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<_> = line.split_whitespace().collect();
            let now = start + Duration::from_millis(words[0].parse().unwrap());
            let number = |at: usize| words[at].parse::<u64>().unwrap();
            match words[1] {
                "take" => {
                    let got = match bucket.take(now, number(2)) {
                        Ok(_) => "ok".to_owned(),
                        Err(Refused { retry_after: None }) => "never".to_owned(),
                        Err(Refused { retry_after: Some(wait) }) => wait.as_millis().to_string(),
                    };
                    assert_eq!(got, words[4], "at: {line}");
                }
                "settle" => bucket.settle(now, number(2), number(3)),
                "left" => {
                    assert_eq!(bucket.allowance(now).remaining, Some(number(2)), "at: {line}")
                }
                other => panic!("unknown word {other}"),
            }
        }
    }

    fn ten_per_second() -> Rate {
        Rate { limit: 10, per: Duration::from_secs(1), burst: 5 }
    }

    #[test]
    fn lets_a_burst_through_and_then_the_rate() {
        check(
            ten_per_second(),
            "
            0    left 5
            0    take 5 -> ok
            0    left 0
            0    take 1 -> 100
            100  take 1 -> ok
            100  take 1 -> 100
            150  take 1 -> 50
            900  left 5
            ",
        );
    }

    #[test]
    fn a_refusal_takes_nothing_and_says_when() {
        check(
            ten_per_second(),
            "0 take 4 -> ok\n0 take 2 -> 100\n0 take 1 -> ok\n0 take 6 -> never",
        );
    }

    #[test]
    fn unused_reservation_comes_back_and_overuse_is_owed() {
        check(
            ten_per_second(),
            "
            0  take 5 -> ok
            0  settle 5 2
            0  take 3 -> ok
            0  settle 3 8
            0  take 1 -> 600
            ",
        );
    }

    #[test]
    fn a_refund_never_overfills() {
        check(
            ten_per_second(),
            "0 take 2 -> ok\n5000 settle 2 0\n5000 left 5\n5000 take 5 -> ok\n5000 take 1 -> 100",
        );
    }

    #[test]
    fn never_more_than_burst_plus_rate_times_time() {
        let (mut bucket, start) = (Bucket::new(ten_per_second()), Instant::now());
        let passed = (0..60_000u64)
            .filter(|ms| bucket.take(start + Duration::from_millis(*ms), 1).is_ok())
            .count();
        assert_eq!(passed, 5 + 599);
    }
}
