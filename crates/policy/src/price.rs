//! Prices: from US dollars per million tokens, as providers list them, to what one token costs.
//!
//! # Why
//!
//! Sums of small floats drift: a ledger of a million rows then disagrees with itself. A listed
//! price is a float only until here; from then on one token costs a whole number of picodollars
//! and every sum is exact, in whatever order it is made.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidegate_core::{Money, Price};

/// What a model's tokens cost, in US dollars per million.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Prompt tokens, USD per million, from 0 to 1,000,000.
    pub input: f64,
    /// Answer tokens, reasoning included, USD per million, from 0 to 1,000,000.
    pub output: f64,
    /// Prompt tokens that the upstream had in its own cache, USD per million. Default: as `input`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<f64>,
}

/// A dollar for every token: whoever writes more has mistaken the unit.
const MOST_PER_MILLION: f64 = 1e6;

impl Options {
    /// What each token costs, to the nearest picodollar: exact for up to six decimals.
    ///
    /// # Errors
    ///
    /// The name of the field that is no price.
    pub fn price(&self) -> Result<Price, &'static str> {
        let token = |field, usd| per_token(usd).ok_or(field);
        let input = token("input", self.input)?;
        let cached_input = self.cached_input.map(|usd| token("cached_input", usd)).transpose()?;
        Ok(Price {
            input,
            cached_input: cached_input.unwrap_or(input),
            output: token("output", self.output)?,
        })
    }
}

/// What one token costs at `usd` per million; `None` when that is no price.
fn per_token(usd: f64) -> Option<Money> {
    (0.0..=MOST_PER_MILLION).contains(&usd).then(|| Money::from_usd(usd / 1e6)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a token costs in and out and cached, in picodollars.
    #[track_caller]
    fn check(written: &str, expected: Result<[u64; 3], &'static str>) {
        let options: Options = serde_json::from_str(written).unwrap();
        let price = options.price();
        let pico = price.map(|p| [p.input.pico(), p.output.pico(), p.cached_input.pico()]);
        assert_eq!(pico, expected, "{written}");
    }

    #[test]
    fn listed_prices_are_exact_per_token() {
        check(r#"{"input":0.15,"output":0.6}"#, Ok([150_000, 600_000, 150_000]));
        check(
            r#"{"input":0.15,"output":0.6,"cached_input":0.075}"#,
            Ok([150_000, 600_000, 75_000]),
        );
        check(r#"{"input":0.000001,"output":75}"#, Ok([1, 75_000_000, 1]));
        check(r#"{"input":0,"output":0}"#, Ok([0, 0, 0]));
    }

    #[test]
    fn what_is_no_price_is_named() {
        check(r#"{"input":-1,"output":0}"#, Err("input"));
        check(r#"{"input":0,"output":1000001}"#, Err("output"));
        check(r#"{"input":0,"output":0,"cached_input":-0.1}"#, Err("cached_input"));
        let nan = Options { input: f64::NAN, output: 0.0, cached_input: None };
        assert_eq!(nan.price(), Err("input"));
    }
}
