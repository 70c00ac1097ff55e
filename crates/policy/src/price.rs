//! Prices: from US dollars per million tokens, as providers list them, to what one token costs.
//!
//! # Why
//!
//! Sums of small floats drift: a ledger of a million rows then disagrees with itself. A listed
//! price is a float only until here; from then on one token costs a whole number of picodollars
//! and every sum is exact, in whatever order it is made.
//!
//! # Steps
//!
//! Several providers charge more for long prompts, and then for the whole call: all its prompt
//! tokens and its answer. [`Price::of`] has the rule; a list is what is written here.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use tidegate_core::{Money, Price, Rates};

/// What a model's tokens cost, in US dollars per million.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Prompt tokens, USD per million, from 0 to 1,000,000.
    pub input: f64,
    /// Answer tokens, reasoning included, USD per million, from 0 to 1,000,000.
    pub output: f64,
    /// Prompt tokens that the upstream had in its own cache, USD per million. Default: as `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<f64>,
    /// Prompt tokens that the upstream wrote to its own cache, where it says so, USD per million. Default: as `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<f64>,
    /// What calls with long prompts cost instead, shortest first. At most 3 steps. Default: the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub above: Vec<Above>,
}

/// What calls with long prompts cost, in US dollars per million tokens: all their prompt tokens,
/// from the first one on, and their answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Above {
    /// For prompts of more tokens than this, cached ones included. At least 1.
    pub tokens: u64,
    /// Prompt tokens, USD per million, from 0 to 1,000,000.
    pub input: f64,
    /// Answer tokens, reasoning included, USD per million, from 0 to 1,000,000.
    pub output: f64,
    /// Prompt tokens that the upstream had in its own cache, USD per million. Default: as this step's `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<f64>,
    /// Prompt tokens that the upstream wrote to its own cache, where it says so, USD per million. Default: as this step's `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<f64>,
}

/// What is wrong with a price as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// The field at fault: `input`, `above.1.tokens`.
    pub field: String,
    /// What it must be.
    pub why: &'static str,
}

/// A dollar for every token: whoever writes more has mistaken the unit.
const MOST_PER_MILLION: f64 = 1e6;

impl Options {
    /// The same for every prompt token, and for prompts of any length.
    pub const fn flat(input: f64, output: f64) -> Self {
        Self { input, output, cached_input: None, cache_write: None, above: Vec::new() }
    }

    /// What each token costs, to the nearest picodollar: exact for up to six decimals.
    ///
    /// # Errors
    ///
    /// The first field that is at fault.
    pub fn price(&self) -> Result<Price, Flaw> {
        let Self { input, output, cached_input, cache_write, above } = self;
        let base = Written { input, output, cached_input, cache_write };
        let mut price = Price::flat(base.rates("")?);
        if above.len() > Price::MAX_STEPS {
            return Err(Flaw { field: "above".into(), why: "must be at most 3 steps" });
        }
        for (index, step) in above.iter().enumerate() {
            let Above { tokens, input, output, cached_input, cache_write } = step;
            let at = format!("above.{index}.");
            let rates = Written { input, output, cached_input, cache_write }.rates(&at)?;
            price = price.with_step(*tokens, rates).ok_or_else(|| Flaw {
                field: at + "tokens",
                why: "must be at least 1, and more than at the step before",
            })?;
        }
        Ok(price)
    }
}

/// The rates of a step, as they are written.
struct Written<'a> {
    input: &'a f64,
    output: &'a f64,
    cached_input: &'a Option<f64>,
    cache_write: &'a Option<f64>,
}

impl Written<'_> {
    /// What they come to per token; `at` is how the names of their fields begin.
    fn rates(&self, at: &str) -> Result<Rates, Flaw> {
        let token = |field, usd: f64| {
            per_token(usd).ok_or_else(|| Flaw {
                field: format!("{at}{field}"),
                why: "must be 0, or 0.000001 to 1000000: US dollars per million tokens",
            })
        };
        let input = token("input", *self.input)?;
        let or_input = |field, usd: Option<f64>| usd.map_or(Ok(input), |usd| token(field, usd));
        Ok(Rates {
            input,
            cached_input: or_input("cached_input", *self.cached_input)?,
            cache_write: or_input("cache_write", *self.cache_write)?,
            output: token("output", *self.output)?,
        })
    }
}

impl fmt::Display for Flaw {
    /// `above.1.tokens must be …`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.why)
    }
}

/// What one token costs at `usd` per million; `None` when that is no price.
fn per_token(usd: f64) -> Option<Money> {
    (0.0..=MOST_PER_MILLION).contains(&usd).then(|| Money::from_usd(usd / 1e6)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a token costs in and out, from a cache and into one, in picodollars, at each step.
    #[track_caller]
    fn check(written: &str, expected: Result<&[(u64, [u64; 4])], &str>) {
        let options: Options = serde_json::from_str(written).unwrap();
        let pico = |rates: Rates| {
            [rates.input, rates.output, rates.cached_input, rates.cache_write].map(Money::pico)
        };
        let shown = options.price().map(|price| {
            let steps = price.steps().map(|step| (step.above, pico(step.rates)));
            [(0, pico(price.base()))].into_iter().chain(steps).collect::<Vec<_>>()
        });
        let shown = shown.map_err(|flaw| flaw.to_string());
        assert_eq!(shown.as_deref().map_err(String::as_str), expected, "{written}");
    }

    #[test]
    fn listed_prices_are_exact_per_token() {
        check(r#"{"input":0.15,"output":0.6}"#, Ok(&[(0, [150_000, 600_000, 150_000, 150_000])]));
        check(
            r#"{"input":0.15,"output":0.6,"cached_input":0.075,"cache_write":0.1875}"#,
            Ok(&[(0, [150_000, 600_000, 75_000, 187_500])]),
        );
        check(r#"{"input":0.000001,"output":75}"#, Ok(&[(0, [1, 75_000_000, 1, 1])]));
        check(r#"{"input":0,"output":0}"#, Ok(&[(0, [0; 4])]));
    }

    #[test]
    fn long_prompts_have_prices_of_their_own() {
        check(
            r#"{"input":1.25,"output":10,"cached_input":0.125,"above":[
                {"tokens":200000,"input":2.5,"output":15,"cached_input":0.25},
                {"tokens":500000,"input":5,"output":20,"cache_write":6.25}]}"#,
            Ok(&[
                (0, [1_250_000, 10_000_000, 125_000, 1_250_000]),
                (200_000, [2_500_000, 15_000_000, 250_000, 2_500_000]),
                (500_000, [5_000_000, 20_000_000, 5_000_000, 6_250_000]),
            ]),
        );
    }

    #[test]
    fn what_is_no_price_is_named() {
        const USD: &str = "must be 0, or 0.000001 to 1000000: US dollars per million tokens";
        check(r#"{"input":-1,"output":0}"#, Err(&format!("input {USD}")));
        check(r#"{"input":0,"output":1000001}"#, Err(&format!("output {USD}")));
        // It would come to nothing.
        check(r#"{"input":0.0000004,"output":0}"#, Err(&format!("input {USD}")));
        check(r#"{"input":0,"output":0,"cached_input":-0.1}"#, Err(&format!("cached_input {USD}")));
        let nan = Options::flat(f64::NAN, 0.0);
        assert_eq!(nan.price().unwrap_err().field, "input");
        let above = |steps: &str| format!(r#"{{"input":1,"output":1,"above":[{steps}]}}"#);
        check(
            &above(r#"{"tokens":9,"input":1,"output":-1}"#),
            Err(&format!("above.0.output {USD}")),
        );
        const UP: &str = "must be at least 1, and more than at the step before";
        let step = |tokens: u32| format!(r#"{{"tokens":{tokens},"input":1,"output":1}}"#);
        check(&above(&step(0)), Err(&format!("above.0.tokens {UP}")));
        check(&above(&[step(9), step(9)].join(",")), Err(&format!("above.1.tokens {UP}")));
        let four = [1, 2, 3, 4].map(step).join(",");
        check(&above(&four), Err("above must be at most 3 steps"));
    }
}
