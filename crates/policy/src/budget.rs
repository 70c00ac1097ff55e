//! Budgets: money is reserved before an attempt leaves and settled by what it cost.
//!
//! # Why
//!
//! A budget that is looked at only when the bill arrives is overspent by everything in flight, and
//! that is how the field's gateways do it. Here an attempt takes its cost out of the budget before
//! it is sent and gives back what it did not need.
//!
//! A **hard** budget reserves the most an attempt can cost and refuses what does not fit, so what
//! is spent never exceeds it. The price is that it refuses while much is reserved and little spent.
//! A **soft** budget refuses only once it is spent: its overshoot is what was in flight at that
//! moment. Days and months are UTC's, as bills are.
//!
//! ```text
//!            reserve: spent + reserved + most it can cost <= budget (hard)
//!                     spent < budget                                 (soft)
//! attempt ---+-----------------------------------------------+------ settle: reserved -> spent
//!            | one Window each for the day, the month, in all |
//! ```
//!
//! An attempt counts for the day and month in which it was reserved, also when it ends in the next.
//!
//! When the clock is set back over midnight, the new day stays open. When it is set back by more, it
//! was wrong before: the open period is then taken for the present one, with all that was spent in
//! it, and the next one opens when it should.

use crate::setting;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use tidegate_core::{Budgets, Money};

/// Settings of all budgets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Shares of a budget, in percent, at which an alert is given: each once per period. At most 8 of 1 to 100. Default [50, 80, 100].
    pub alert_at: Vec<u8>,
    /// Answer tokens that a hard budget reserves for a call that sets no maximum of its own: what its model gives at most. Default 16384.
    pub max_output_tokens: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { alert_at: vec![50, 80, 100], max_output_tokens: 16_384 }
    }
}

/// Alerts there may be per budget: what was told already is kept in a byte.
pub const MAX_ALERTS: usize = 8;

/// What may be spent, in US dollars. What is absent is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Amounts {
    /// Per day, UTC, in US dollars.
    #[serde(with = "setting::opt_usd")]
    #[schemars(with = "Option<f64>")]
    pub day: Option<Money>,
    /// Per calendar month, UTC, in US dollars.
    #[serde(with = "setting::opt_usd")]
    #[schemars(with = "Option<f64>")]
    pub month: Option<Money>,
    /// In all, in US dollars.
    #[serde(with = "setting::opt_usd")]
    #[schemars(with = "Option<f64>")]
    pub total: Option<Money>,
    /// Whether it is never overspent: each attempt reserves the most it can cost and is refused where that does not fit. Otherwise the overshoot is at most what is in flight. Default false.
    pub hard: bool,
}

impl From<Amounts> for Budgets {
    fn from(Amounts { day, month, total, hard }: Amounts) -> Self {
        Self { day, month, total, hard }
    }
}

/// What a budget is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// A day, UTC.
    Day,
    /// A calendar month, UTC.
    Month,
    /// Everything since the ledger began.
    Total,
}

impl Period {
    /// The word used in messages, logs and configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
            Self::Total => "total",
        }
    }
}

/// What one holder of budgets has spent and reserved. Its money is the sum of its attempts'.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    day: Window,
    month: Window,
    total: Window,
    /// Something was spent before, and nothing was settled since.
    resumed: bool,
}

/// One period's account.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    /// Which day since 1970, or which month since the year 0; always 0 for the total.
    index: u64,
    /// How many were opened before it. Reservations know it by this, as `index` may be corrected.
    before: u64,
    spent: Money,
    reserved: Money,
    /// One bit per alert that was given.
    alerted: u8,
}

/// What was spent before, as a ledger tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// This day.
    pub day: Money,
    /// This month.
    pub month: Money,
    /// In all.
    pub total: Money,
}

/// What an attempt took out of a budget; give it back to [`Budget::settle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Reservation {
    amount: Money,
    /// [`Window::before`] of the day and the month it was made in.
    day: u64,
    month: u64,
}

/// A budget has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which period's.
    pub period: Period,
    /// What it allows.
    pub limit: Money,
    /// What is spent of it.
    pub spent: Money,
    /// What calls in flight hold of it.
    pub reserved: Money,
    /// What the attempt asked for.
    pub asked: Money,
}

/// An alert: so much of a budget is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossed {
    /// Which period's.
    pub period: Period,
    /// The share that was reached, in percent.
    pub percent: u8,
    /// What the budget allows.
    pub limit: Money,
    /// What is spent of it.
    pub spent: Money,
}

impl Budget {
    /// Goes on from what was spent before `now`, Unix seconds. Alerts below that are not given.
    pub fn resume(&mut self, spent: Spent, now: u64) {
        self.roll(now);
        self.day.spent = self.day.spent.plus(spent.day);
        self.month.spent = self.month.spent.plus(spent.month);
        self.total.spent = self.total.spent.plus(spent.total);
        self.resumed = true;
    }

    /// Asks to spend up to `amount` at `now`, Unix seconds.
    ///
    /// # Errors
    ///
    /// [`Refused`] by the first period that has no room.
    pub fn reserve(
        &mut self,
        amount: Money,
        limits: &Budgets,
        now: u64,
    ) -> Result<Reservation, Refused> {
        self.roll(now);
        for (period, limit) in periods(limits) {
            let Window { spent, reserved, .. } = *self.window(period);
            let fits = if limits.hard {
                spent.plus(reserved).plus(amount) <= limit
            } else {
                spent < limit
            };
            if !fits {
                return Err(Refused { period, limit, spent, reserved, asked: amount });
            }
        }
        for window in [&mut self.day, &mut self.month, &mut self.total] {
            window.reserved = window.reserved.plus(amount);
        }
        Ok(Reservation { amount, day: self.day.before, month: self.month.before })
    }

    /// Turns a reservation into what was really spent; the alerts this gives, mostly none.
    pub fn settle(
        &mut self,
        reservation: Reservation,
        cost: Money,
        limits: &Budgets,
        options: &Options,
    ) -> Vec<Crossed> {
        if std::mem::take(&mut self.resumed) {
            // Whoever was here before has given these.
            drop(self.alerts(limits, options));
        }
        let Reservation { amount, day, month } = reservation;
        for (window, before) in
            [(&mut self.day, day), (&mut self.month, month), (&mut self.total, 0)]
        {
            // A period that is over was closed with all its reservations.
            if window.before == before {
                window.reserved = window.reserved.minus(amount);
                window.spent = window.spent.plus(cost);
            }
        }
        self.alerts(limits, options)
    }

    /// What is reserved now.
    pub const fn reserved(&self) -> Money {
        self.total.reserved
    }

    /// What was spent in the period of `now`, Unix seconds.
    pub fn spent(&mut self, now: u64) -> Spent {
        self.roll(now);
        Spent { day: self.day.spent, month: self.month.spent, total: self.total.spent }
    }

    /// Opens the day and the month of `now`, unless the clock was set back: see the head of this file.
    fn roll(&mut self, now: u64) {
        let day = now / DAY_SECS;
        for (window, index) in [(&mut self.day, day), (&mut self.month, month_of(day))] {
            if index > window.index {
                *window = Window { index, before: window.before + 1, ..Window::default() };
            } else if index + 1 < window.index {
                window.index = index;
            }
        }
    }

    fn alerts(&mut self, limits: &Budgets, options: &Options) -> Vec<Crossed> {
        let mut all = Vec::new();
        for (period, limit) in periods(limits) {
            let window = match period {
                Period::Day => &mut self.day,
                Period::Month => &mut self.month,
                Period::Total => &mut self.total,
            };
            for (bit, &percent) in options.alert_at.iter().take(MAX_ALERTS).enumerate() {
                let mask = 1 << bit;
                // In u128: a hundred times the most there is.
                let reached = u128::from(window.spent.pico()) * 100
                    >= u128::from(limit.pico()) * u128::from(percent);
                if reached && window.alerted & mask == 0 {
                    window.alerted |= mask;
                    all.push(Crossed { period, percent, limit, spent: window.spent });
                }
            }
        }
        all
    }

    const fn window(&self, period: Period) -> &Window {
        match period {
            Period::Day => &self.day,
            Period::Month => &self.month,
            Period::Total => &self.total,
        }
    }
}

const DAY_SECS: u64 = 24 * 3600;

/// The first moment of the day and of the month of `now`, in Unix seconds.
pub const fn begins(now: u64) -> (u64, u64) {
    let day = now / DAY_SECS;
    (day * DAY_SECS, (day - civil(day).1) * DAY_SECS)
}

/// The month of a day since 1970, counted from the year 0.
const fn month_of(day: u64) -> u64 {
    civil(day).0
}

/// The month of a day since 1970, counted from the year 0, and how many days of it are over.
///
/// Howard Hinnant, "chrono-compatible low-level date algorithms": years that begin in March have
/// their leap day at the end.
const fn civil(day: u64) -> (u64, u64) {
    let day = day + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * from_march + 2) / 5;
    ((era * 400 + year) * 12 + from_march + 2, of_month)
}

/// The periods that have a budget.
fn periods(limits: &Budgets) -> impl Iterator<Item = (Period, Money)> {
    [(Period::Day, limits.day), (Period::Month, limits.month), (Period::Total, limits.total)]
        .into_iter()
        .filter_map(|(period, limit)| Some((period, limit?)))
}

impl fmt::Display for Refused {
    /// `of $1.00 for the day, $0.90 are spent and $0.08 held by calls in flight`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { period, limit, spent, reserved, .. } = self;
        match period {
            Period::Total => write!(f, "of {limit} in all")?,
            Period::Day | Period::Month => write!(f, "of {limit} for the {}", period.name())?,
        }
        write!(f, ", {spent} are spent and {reserved} held by calls in flight")
    }
}

#[cfg(test)]
mod tests;
