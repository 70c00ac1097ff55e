//! Money: a row starts only when what it is expected to cost still fits under `--max-cost`.
//!
//! # Why
//!
//! Reserving every row at its `max_tokens` refuses rows that would have fitted by far; reserving
//! nothing overshoots by all that is in flight. So a row is reserved at what rows have been seen
//! to need: the 95th percentile of answer tokens once 20 are known, the estimate before.

use crate::summary::Histogram;
use tidegate_core::{Price, TokenEstimate, Usage};

/// What a job has spent and may still spend, in US dollars.
pub(super) struct Budget {
    cap: Option<f64>,
    spent: f64,
    reserved: f64,
    /// Rows that hold a reservation.
    holders: u64,
    outputs: Histogram,
}

/// Whether a row may start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Admission {
    /// Yes; give this back to [`Budget::settle`].
    Start(f64),
    /// Not before a row in flight has settled: it may need less than was reserved.
    Wait,
    /// No, and nothing in flight can change it.
    Spent,
}

impl Budget {
    /// Answers that must be known before estimates are dropped for what was seen.
    const ENOUGH: u64 = 20;

    /// A budget of `cap`, of which earlier runs have spent `spent`.
    pub(super) fn new(cap: Option<f64>, spent: f64) -> Self {
        Self { cap, spent, reserved: 0.0, holders: 0, outputs: Histogram::new() }
    }

    /// Whether there is a cap at all.
    pub(super) const fn is_capped(&self) -> bool {
        self.cap.is_some()
    }

    /// Asks to start a row.
    pub(super) fn admit(&mut self, price: Option<Price>, tokens: TokenEstimate) -> Admission {
        let (Some(cap), Some(price)) = (self.cap, price) else { return Admission::Start(0.0) };
        let seen = self.outputs.quantile(0.95).filter(|_| self.outputs.count() >= Self::ENOUGH);
        let output = seen.unwrap_or(tokens.output);
        let cost = price.of(Usage { input: tokens.input, output, ..Usage::default() }).usd();
        if self.spent + self.reserved + cost <= cap {
            self.reserved += cost;
            self.holders += 1;
            Admission::Start(cost)
        } else if self.holders > 0 {
            Admission::Wait
        } else {
            Admission::Spent
        }
    }

    /// Ends a row: `reserved` is given back, `cost` is spent.
    pub(super) fn settle(&mut self, reserved: f64, cost: f64, output_tokens: Option<u64>) {
        self.holders = self.holders.saturating_sub(1);
        // Sums of floats drift: an idle budget must hold nothing at all.
        self.reserved = if self.holders == 0 { 0.0 } else { (self.reserved - reserved).max(0.0) };
        self.spent += cost;
        if let Some(tokens) = output_tokens {
            self.outputs.record(tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::{Money, Rates};

    const PRICE: Option<Price> = Some(Price::flat(Rates::new(Money::ZERO, Money::DOLLAR)));

    fn tokens(output: u64) -> TokenEstimate {
        TokenEstimate { input: 10, output }
    }

    #[test]
    fn a_row_waits_for_those_in_flight_and_then_stops() {
        let mut budget = Budget::new(Some(10.0), 3.0);
        assert_eq!(budget.admit(PRICE, tokens(5)), Admission::Start(5.0));
        assert_eq!(budget.admit(PRICE, tokens(5)), Admission::Wait);
        budget.settle(5.0, 2.0, Some(2));
        assert_eq!(budget.admit(PRICE, tokens(5)), Admission::Start(5.0));
        budget.settle(5.0, 4.0, Some(4));
        assert_eq!(budget.admit(PRICE, tokens(5)), Admission::Spent);
    }

    #[test]
    fn what_was_seen_replaces_the_estimate() {
        let mut budget = Budget::new(Some(100.0), 0.0);
        for _ in 0..20 {
            budget.settle(0.0, 0.0, Some(3));
        }
        assert_eq!(budget.admit(PRICE, tokens(4096)), Admission::Start(3.0));
    }

    #[test]
    fn an_idle_budget_holds_nothing_however_large_the_sums() {
        let mut budget = Budget::new(Some(1e7), 0.0);
        let reserved: Vec<f64> = (1..1000)
            .map(|output| match budget.admit(PRICE, tokens(output * 7 / 3)) {
                Admission::Start(reserved) => reserved + 0.1 - 0.1,
                refused => panic!("{refused:?}"),
            })
            .collect();
        reserved.iter().rev().for_each(|reserved| budget.settle(*reserved, 0.0, None));
        assert_eq!(budget.admit(PRICE, tokens(15_000_000)), Admission::Spent);
    }

    #[test]
    fn no_cap_reserves_nothing() {
        let mut budget = Budget::new(None, 0.0);
        assert_eq!(budget.admit(PRICE, tokens(u64::MAX)), Admission::Start(0.0));
        assert!(!budget.is_capped());
    }
}
