//! Sliding window: a count over the period that ends now.
//!
//! The period is twenty slots; a unit counts until its slot has wholly left the window, so never
//! more than the limit passes in any period, at the price of up to a twentieth of the period that
//! it counts too long. A log of every unit would be exact and as large as the limit.

use super::{Rate, Refused};
use std::time::{Duration, Instant};
use tidegate_core::Allowance;

/// Slots the period is cut into.
const SLOTS: u64 = 20;
/// Kept besides the slots of a period: the one that is being filled.
const KEPT: usize = SLOTS as usize + 1;

#[derive(Clone, Debug)]
pub(super) struct Sliding {
    rate: Rate,
    start: Option<Instant>,
    /// Number of the newest slot.
    newest: u64,
    /// Units by slot number, modulo.
    used: [u64; KEPT],
}

impl Sliding {
    pub(super) const fn new(rate: Rate) -> Self {
        Self { rate, start: None, newest: 0, used: [0; KEPT] }
    }

    pub(super) fn take(&mut self, now: Instant, cost: u64) -> Result<(), Refused> {
        self.ask(now, cost)?;
        self.turn(now);
        let newest = &mut self.used[Self::place(self.newest)];
        *newest = newest.saturating_add(cost);
        Ok(())
    }

    pub(super) fn ask(&self, now: Instant, cost: u64) -> Result<(), Refused> {
        if cost > self.rate.limit {
            return Err(Refused { retry_after: None });
        }
        let after = self.used(now).saturating_add(cost);
        if after > self.rate.limit {
            return Err(Refused { retry_after: Some(self.wait(now, after - self.rate.limit)) });
        }
        Ok(())
    }

    /// Corrects what was reserved at `at`: from its own slot, as long as that counts.
    pub(super) fn settle(&mut self, now: Instant, at: Instant, reserved: u64, used: u64) {
        self.turn(now);
        if used >= reserved {
            let newest = &mut self.used[Self::place(self.newest)];
            *newest = newest.saturating_add(used - reserved);
            return;
        }
        let slot = self.number(at);
        if self.in_window(self.newest).any(|counts| counts == slot) {
            let held = &mut self.used[Self::place(slot)];
            *held = held.saturating_sub(reserved - used);
        }
    }

    pub(super) fn allowance(&self, now: Instant) -> Allowance {
        let newest = self.number(now);
        let last = self.live().rev().find(|slot| self.used[Self::place(*slot)] > 0);
        Allowance {
            limit: Some(self.rate.limit),
            remaining: Some(self.rate.limit.saturating_sub(self.total(newest))),
            reset: Some(last.map_or(Duration::ZERO, |slot| self.leaves(slot, now))),
        }
    }

    pub(super) fn is_idle(&self, now: Instant) -> bool {
        self.used(now) == 0
    }

    pub(super) fn used(&self, now: Instant) -> u64 {
        self.total(self.number(now))
    }

    /// Makes the slot of `now` the newest, and empties those that have left.
    fn turn(&mut self, now: Instant) {
        if self.start.is_none() {
            self.start = Some(now);
        }
        let number = self.number(now);
        for slot in (self.newest + 1..=number).take(KEPT) {
            self.used[Self::place(slot)] = 0;
        }
        if number >= self.newest + KEPT as u64 {
            self.used = [0; KEPT];
        }
        self.newest = self.newest.max(number);
    }

    /// Units that count while `newest` is the newest slot.
    fn total(&self, newest: u64) -> u64 {
        self.in_window(newest)
            .fold(0, |sum: u64, slot| sum.saturating_add(self.used[Self::place(slot)]))
    }

    /// Numbers of the slots that are kept, oldest first.
    fn live(&self) -> impl DoubleEndedIterator<Item = u64> + use<> {
        self.newest.saturating_sub(SLOTS)..=self.newest
    }

    /// Numbers of the slots that count while `newest` is the newest, oldest first.
    fn in_window(&self, newest: u64) -> impl Iterator<Item = u64> + use<> {
        self.live().filter(move |slot| slot + SLOTS >= newest)
    }

    /// How long until `excess` units have left.
    fn wait(&self, now: Instant, excess: u64) -> Duration {
        let mut gone = 0u64;
        for slot in self.in_window(self.number(now)) {
            gone = gone.saturating_add(self.used[Self::place(slot)]);
            if gone >= excess {
                return self.leaves(slot, now);
            }
        }
        self.rate.per
    }

    /// How long until `slot` has wholly left the window.
    fn leaves(&self, slot: u64, now: Instant) -> Duration {
        let Some(start) = self.start else { return Duration::ZERO };
        let at = self.slot_length() * (slot + SLOTS + 1) as f64;
        let past = now.saturating_duration_since(start).as_secs_f64();
        // A nanosecond more than rounding can lose.
        Duration::try_from_secs_f64((at - past).max(0.0))
            .unwrap_or_default()
            .saturating_add(Duration::from_nanos(100))
    }

    fn number(&self, now: Instant) -> u64 {
        let past = self.start.map_or(Duration::ZERO, |start| now.saturating_duration_since(start));
        (past.as_secs_f64() / self.slot_length()) as u64
    }

    fn slot_length(&self) -> f64 {
        self.rate.per.as_secs_f64().max(1e-6) / SLOTS as f64
    }

    const fn place(slot: u64) -> usize {
        (slot % KEPT as u64) as usize
    }
}
