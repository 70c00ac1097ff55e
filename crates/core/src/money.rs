//! Money: what tokens cost, to the last digit.

use crate::Usage;
use std::{fmt, iter::Sum};

/// US dollars, in whole picodollars (10⁻¹² USD).
///
/// Prices are written in dollars per million tokens, with up to six decimals: one token then
/// costs a whole number of picodollars, and sums are exact whatever their order. Up to 18 million
/// dollars; more stays at that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Money(u64);

impl Money {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// One dollar.
    pub const DOLLAR: Self = Self(1_000_000_000_000);

    /// So many picodollars.
    pub const fn from_pico(pico: u64) -> Self {
        Self(pico)
    }

    /// So many dollars, to the nearest picodollar; `None` when negative, no number, or too much.
    pub fn from_usd(usd: f64) -> Option<Self> {
        let pico = (usd * 1e12).round();
        (0.0..1.8e19).contains(&pico).then_some(Self(pico as u64))
    }

    /// In picodollars.
    pub const fn pico(self) -> u64 {
        self.0
    }

    /// In dollars, as near as a double gets.
    pub fn usd(self) -> f64 {
        self.0 as f64 / 1e12
    }

    /// The sum, or the most there is.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, or nothing.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// So many times.
    #[must_use]
    pub const fn times(self, count: u64) -> Self {
        Self(self.0.saturating_mul(count))
    }
}

impl Sum for Money {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::ZERO, Self::plus)
    }
}

impl fmt::Display for Money {
    /// In dollars, with as many decimals as it takes and two at least: `$0.000045`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dollars, rest) = (self.0 / Self::DOLLAR.0, self.0 % Self::DOLLAR.0);
        let decimals = format!("{rest:012}");
        let shown = decimals.trim_end_matches('0').len().max(2);
        write!(f, "${dollars}.{}", &decimals[..shown])
    }
}

/// What a model's tokens cost, each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Price {
    /// A prompt token.
    pub input: Money,
    /// A prompt token the upstream had in its own cache.
    pub cached_input: Money,
    /// An answer token, reasoning included.
    pub output: Money,
}

impl Price {
    /// What `usage` costs.
    pub fn of(&self, usage: Usage) -> Money {
        let cached = usage.cached_input.min(usage.input);
        let fresh = self.input.times(usage.input - cached);
        fresh.plus(self.cached_input.times(cached)).plus(self.output.times(usage.output))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_costs_what_its_tokens_cost() {
        let price = Price {
            input: Money::from_pico(150_000),
            cached_input: Money::from_pico(75_000),
            output: Money::from_pico(600_000),
        };
        let usage = Usage { input: 100, cached_input: 40, output: 10, reasoning: 4 };
        assert_eq!(price.of(usage).pico(), 60 * 150_000 + 40 * 75_000 + 10 * 600_000);
        assert_eq!(price.of(usage).to_string(), "$0.000018");
        let odd = Usage { cached_input: 400, ..usage };
        assert_eq!(price.of(odd).pico(), 100 * 75_000 + 10 * 600_000, "no more cached than sent");
    }

    #[test]
    fn dollars_are_read_and_shown() {
        let shown = |usd| Money::from_usd(usd).map(|money| money.to_string());
        assert_eq!(shown(0.0).as_deref(), Some("$0.00"));
        assert_eq!(shown(12.5).as_deref(), Some("$12.50"));
        assert_eq!(shown(1e-12).as_deref(), Some("$0.000000000001"));
        assert_eq!((shown(-1.0), shown(f64::NAN), shown(1e9)), (None, None, None));
    }

    #[test]
    fn sums_stay_at_the_most_there_is() {
        let most = Money::from_pico(u64::MAX);
        assert_eq!([most, Money::DOLLAR].into_iter().sum::<Money>(), most);
        assert_eq!(Money::ZERO.minus(most), Money::ZERO);
        assert_eq!(most.times(2), most);
    }
}
