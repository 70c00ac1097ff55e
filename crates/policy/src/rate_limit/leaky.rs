//! Leaky bucket, as a meter: what passes is spaced evenly, and what comes too soon is refused.
//!
//! Nothing is queued here; who wants to wait is told how long. The next unit may pass once the
//! last ones have leaked out, `cost * period / limit` after them.

use super::{Rate, Refused, later};
use std::time::{Duration, Instant};
use tidegate_core::Allowance;

#[derive(Clone, Debug)]
pub(super) struct Leaky {
    rate: Rate,
    /// When it has leaked empty.
    empty_at: Option<Instant>,
}

impl Leaky {
    pub(super) const fn new(rate: Rate) -> Self {
        Self { rate, empty_at: None }
    }

    pub(super) fn take(&mut self, now: Instant, cost: u64) -> Result<(), Refused> {
        self.ask(now, cost)?;
        self.empty_at = Some(later(now, self.left(now).saturating_add(self.rate.cost(cost))));
        Ok(())
    }

    pub(super) fn ask(&self, now: Instant, cost: u64) -> Result<(), Refused> {
        if cost > self.rate.burst {
            return Err(Refused { retry_after: None });
        }
        let left = self.left(now);
        if !left.is_zero() && cost > 0 {
            return Err(Refused { retry_after: Some(left) });
        }
        Ok(())
    }

    pub(super) fn settle(&mut self, now: Instant, reserved: u64, used: u64) {
        let left = self.left(now);
        let corrected = if used >= reserved {
            left.saturating_add(self.rate.cost(used - reserved))
        } else {
            left.saturating_sub(self.rate.cost(reserved - used))
        };
        self.empty_at = Some(later(now, corrected));
    }

    pub(super) fn allowance(&self, now: Instant) -> Allowance {
        let left = self.left(now);
        let remaining = u64::from(left.is_zero()).min(self.rate.burst);
        Allowance { limit: Some(self.rate.limit), remaining: Some(remaining), reset: Some(left) }
    }

    pub(super) fn is_idle(&self, now: Instant) -> bool {
        self.left(now).is_zero()
    }

    pub(super) fn used(&self, now: Instant) -> u64 {
        self.units(self.left(now))
    }

    pub(super) fn units(&self, time: Duration) -> u64 {
        self.rate.units(time)
    }

    pub(super) fn left(&self, now: Instant) -> Duration {
        self.empty_at.map_or(Duration::ZERO, |empty| empty.saturating_duration_since(now))
    }
}
