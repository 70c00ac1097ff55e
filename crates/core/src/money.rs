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

    /// So many dollars, to the nearest picodollar; `None` when negative, no number, too much, or
    /// so little that it would come to nothing.
    pub fn from_usd(usd: f64) -> Option<Self> {
        let pico = (usd * 1e12).round();
        let is_lost = pico == 0.0 && usd != 0.0;
        (!is_lost && (0.0..1.8e19).contains(&pico)).then_some(Self(pico as u64))
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

/// What tokens cost, each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// A prompt token.
    pub input: Money,
    /// A prompt token the upstream had in its own cache.
    pub cached_input: Money,
    /// A prompt token the upstream wrote to its own cache.
    pub cache_write: Money,
    /// An answer token, reasoning included.
    pub output: Money,
}

impl Rates {
    /// The same for every prompt token, wherever it comes from.
    pub const fn new(input: Money, output: Money) -> Self {
        Self { input, cached_input: input, cache_write: input, output }
    }

    /// What `usage` costs.
    pub fn of(&self, usage: Usage) -> Money {
        let cached = usage.cached_input.min(usage.input);
        let written = usage.cache_write.min(usage.input - cached);
        let fresh = self.input.times(usage.input - cached - written);
        fresh
            .plus(self.cached_input.times(cached))
            .plus(self.cache_write.times(written))
            .plus(self.output.times(usage.output))
    }

    /// The dearest prompt token.
    fn dearest_input(&self) -> Money {
        self.input.max(self.cached_input).max(self.cache_write)
    }
}

/// What a model's tokens cost: by the length of the prompt, in steps.
///
/// The whole attempt is paid at the rates of the step that all its prompt tokens together, cached
/// ones included, fall in: a prompt of 200,001 tokens is dearer than one of 200,000 from its first
/// token on, and so is its answer. That is how Google, Anthropic and OpenAI bill long prompts.
///
/// 152 bytes, copied into each attempt; a price without steps costs one comparison more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    base: Rates,
    /// Shortest prompts first. Unused ones come last, beyond the length of any prompt.
    steps: [Step; Price::MAX_STEPS],
}

/// What tokens cost in long prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// In prompts of more tokens than this.
    pub above: u64,
    /// What each costs there.
    pub rates: Rates,
}

impl Step {
    const UNUSED: Self = Self { above: u64::MAX, rates: Rates::new(Money::ZERO, Money::ZERO) };
}

impl Default for Price {
    /// Nothing.
    fn default() -> Self {
        Self::flat(Rates::default())
    }
}

impl From<Rates> for Price {
    fn from(rates: Rates) -> Self {
        Self::flat(rates)
    }
}

impl Price {
    /// Steps beside the price of short prompts: no provider is known to have more.
    pub const MAX_STEPS: usize = 3;

    /// The same for prompts of any length.
    pub const fn flat(rates: Rates) -> Self {
        Self { base: rates, steps: [Step::UNUSED; Self::MAX_STEPS] }
    }

    /// With other rates for prompts of more than `above` tokens; `None` when that is not more
    /// than at the step before, or when there are [`Price::MAX_STEPS`] already.
    pub fn with_step(mut self, above: u64, rates: Rates) -> Option<Self> {
        let used = self.steps().count();
        let least = self.steps().last().map_or(0, |step| step.above);
        let free = self.steps.get_mut(used)?;
        *free = Step { above, rates };
        (least < above && above < u64::MAX).then_some(self)
    }

    /// What short prompts cost.
    pub const fn base(&self) -> Rates {
        self.base
    }

    /// What longer ones do, shortest first; mostly none.
    pub fn steps(&self) -> impl Iterator<Item = Step> {
        self.steps.iter().copied().take_while(|step| step.above < u64::MAX)
    }

    /// What tokens cost beside so many prompt tokens.
    pub fn at(&self, prompt_tokens: u64) -> Rates {
        let step = self.steps().take_while(|step| step.above < prompt_tokens).last();
        step.map_or(self.base, |step| step.rates)
    }

    /// What `usage` costs.
    pub fn of(&self, usage: Usage) -> Money {
        self.at(usage.input).of(usage)
    }

    /// The most that up to `input` prompt tokens, of whatever kind, and up to `output` answer
    /// tokens can cost: each at the dearest step that such a prompt can reach.
    pub fn most(&self, input: u64, output: u64) -> Money {
        let steps = self.steps().take_while(|step| step.above < input).map(|step| step.rates);
        let (dearest_input, dearest_output) = steps
            .fold((self.base.dearest_input(), self.base.output), |(input, output), rates| {
                (input.max(rates.dearest_input()), output.max(rates.output))
            });
        dearest_input.times(input).plus(dearest_output.times(output))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn pico(pico: u64) -> Money {
        Money::from_pico(pico)
    }

    #[test]
    fn a_call_costs_what_its_tokens_cost() {
        let rates = Rates {
            input: pico(150_000),
            cached_input: pico(75_000),
            cache_write: pico(187_500),
            output: pico(600_000),
        };
        let price = Price::flat(rates);
        let usage =
            Usage { input: 100, cached_input: 40, cache_write: 20, output: 10, reasoning: 4 };
        let cost = 40 * 150_000 + 40 * 75_000 + 20 * 187_500 + 10 * 600_000;
        assert_eq!(price.of(usage).pico(), cost);
        assert_eq!(price.of(usage).to_string(), "$0.00001875");
        let odd = Usage { cached_input: 400, ..usage };
        assert_eq!(price.of(odd).pico(), 100 * 75_000 + 10 * 600_000, "no more cached than sent");
    }

    /// Gemini 2.5 Pro: 1.25 and 10 dollars per million, 2.50 and 15 beyond 200,000 tokens.
    fn gemini() -> Price {
        let base =
            Rates { cached_input: pico(125_000), ..Rates::new(pico(1_250_000), pico(10_000_000)) };
        let long =
            Rates { cached_input: pico(250_000), ..Rates::new(pico(2_500_000), pico(15_000_000)) };
        Price::flat(base).with_step(200_000, long).unwrap()
    }

    #[test]
    fn a_long_prompt_is_dearer_from_its_first_token_on_and_so_is_its_answer() {
        let cost = |input, cached_input| {
            gemini()
                .of(Usage { input, cached_input, output: 1_000, ..Usage::default() })
                .to_string()
        };
        assert_eq!(cost(200_000, 0), "$0.26");
        assert_eq!(cost(200_001, 0), "$0.5150025");
        assert_eq!(cost(200_001, 200_001), "$0.06500025", "cached tokens count for the length");
    }

    #[test]
    fn a_price_has_few_steps_and_they_go_up() {
        let one = |above| Price::default().with_step(above, Rates::default());
        assert!(one(0).is_none() && one(u64::MAX).is_none());
        let three = one(1).and_then(|p| p.with_step(2, p.base())?.with_step(3, p.base())).unwrap();
        assert_eq!(three.steps().map(|step| step.above).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(three.with_step(4, Rates::default()), None, "no room");
        assert_eq!(one(5).unwrap().with_step(5, Rates::default()), None, "not further up");
    }

    #[test]
    fn the_most_is_at_the_dearest_step_that_can_be_reached() {
        let most = |input, output| gemini().most(input, output).to_string();
        assert_eq!(most(200_000, 1_000), "$0.26");
        assert_eq!(most(200_001, 1_000), "$0.5150025");
        // Cheaper for longer prompts: a shorter one than the bound may still come.
        let dear = Rates { cache_write: pico(4), ..Rates::new(pico(3), pico(9)) };
        let falling = Price::flat(dear).with_step(10, Rates::new(pico(1), pico(1))).unwrap();
        assert_eq!(falling.most(100, 10), pico(4 * 100 + 9 * 10));
        for input in [0, 10, 11, 100] {
            let all_written = Usage { input, cache_write: input, output: 10, ..Usage::default() };
            assert!(falling.of(all_written) <= falling.most(100, 10));
        }
    }

    #[test]
    fn dollars_are_read_and_shown() {
        let shown = |usd| Money::from_usd(usd).map(|money| money.to_string());
        assert_eq!(shown(0.0).as_deref(), Some("$0.00"));
        assert_eq!(shown(12.5).as_deref(), Some("$12.50"));
        assert_eq!(shown(1e-12).as_deref(), Some("$0.000000000001"));
        for wrong in [-1.0, f64::NAN, 1e9, 1e-13, -1e-13] {
            assert_eq!(shown(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sums_stay_at_the_most_there_is() {
        let most = Money::from_pico(u64::MAX);
        assert_eq!([most, Money::DOLLAR].into_iter().sum::<Money>(), most);
        assert_eq!(Money::ZERO.minus(most), Money::ZERO);
        assert_eq!(most.times(2), most);
    }
}
