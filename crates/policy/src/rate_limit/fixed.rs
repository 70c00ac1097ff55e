//! Fixed window: a count that starts anew each period.
//!
//! A window opens with the first unit after the one before has ended. More than was reserved is
//! carried into the next window if it does not fit into this one.

use super::{Rate, Refused};
use std::time::{Duration, Instant};
use tidegate_core::Allowance;

#[derive(Clone, Debug)]
pub(super) struct Fixed {
    rate: Rate,
    opened: Option<Instant>,
    used: u64,
}

impl Fixed {
    pub(super) const fn new(rate: Rate) -> Self {
        Self { rate, opened: None, used: 0 }
    }

    pub(super) fn take(&mut self, now: Instant, cost: u64) -> Result<(), Refused> {
        self.ask(now, cost)?;
        self.turn(now);
        self.used = self.used.saturating_add(cost);
        Ok(())
    }

    pub(super) fn ask(&self, now: Instant, cost: u64) -> Result<(), Refused> {
        if cost > self.rate.limit {
            return Err(Refused { retry_after: None });
        }
        let after = self.used(now).saturating_add(cost);
        if after > self.rate.limit {
            // What is owed from before takes up whole windows to come.
            let windows = (after - 1) / self.rate.limit.max(1);
            let more = windows.saturating_sub(1).min(u64::from(u32::MAX)) as u32;
            let wait = self.left(now).saturating_add(self.rate.per.saturating_mul(more));
            return Err(Refused { retry_after: Some(wait) });
        }
        Ok(())
    }

    pub(super) fn settle(&mut self, now: Instant, reserved: u64, used: u64) {
        self.turn(now);
        self.used = self.used.saturating_add(used).saturating_sub(reserved);
    }

    pub(super) fn allowance(&self, now: Instant) -> Allowance {
        let (_, used) = self.at(now);
        Allowance {
            limit: Some(self.rate.limit),
            remaining: Some(self.rate.limit.saturating_sub(used)),
            reset: Some(if used == 0 { Duration::ZERO } else { self.left(now) }),
        }
    }

    pub(super) fn is_idle(&self, now: Instant) -> bool {
        self.at(now).1 == 0
    }

    pub(super) fn used(&self, now: Instant) -> u64 {
        self.at(now).1
    }

    fn turn(&mut self, now: Instant) {
        let (opened, used) = self.at(now);
        self.opened = Some(opened);
        self.used = used;
    }

    /// When the window of `now` opened, and what is used of it.
    fn at(&self, now: Instant) -> (Instant, u64) {
        let Some(opened) = self.opened else { return (now, 0) };
        let per = self.rate.per.as_nanos().max(1);
        let passed = u64::try_from(now.saturating_duration_since(opened).as_nanos() / per)
            .unwrap_or(u64::MAX);
        let owed = self.used.saturating_sub(self.rate.limit.saturating_mul(passed));
        match passed {
            0 if self.used > 0 => (opened, self.used),
            // Debts are paid window by window, so these follow each other.
            _ if owed > 0 => (
                opened + self.rate.per.saturating_mul(u32::try_from(passed).unwrap_or(u32::MAX)),
                owed,
            ),
            _ => (now, 0),
        }
    }

    /// Time left of the window of `now`.
    pub(super) fn left(&self, now: Instant) -> Duration {
        let (opened, _) = self.at(now);
        self.rate.per.saturating_sub(now.saturating_duration_since(opened))
    }
}
