//! `batch plan`: what a batch would be and cost, told before the first call.
//!
//! # Why
//!
//! A wrong template or a forgotten maximum is cheap to find here and dear to find later. Output
//! tokens cannot be known, so three figures are told; a price nobody knows is "unknown", never 0.

use crate::{
    Failure, Prices,
    input::{Input, InputOptions},
};
use serde::{Serialize, Serializer};
use std::{collections::BTreeMap, fmt, ops::AddAssign, path::Path};
use tidegate_core::{Money, Price, Usage};
use tidegate_wire::request;

/// What a batch would be and cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Rows taken from the input, bad ones included.
    pub rows: u64,
    /// Rows that are no requests.
    pub bad_lines: u64,
    /// The first of them, with line, column and what to do.
    pub bad_lines_shown: Vec<String>,
    /// Rows whose request an earlier row has too.
    pub duplicates: u64,
    /// Prompt tokens, estimated from the bodies' length.
    pub tokens_in: u64,
    /// Answer tokens.
    pub tokens_out: Range<u64>,
    /// US dollars for all models.
    pub cost: Cost,
    /// The same for each model.
    pub models: BTreeMap<String, ModelPlan>,
}

/// The rows of one model.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ModelPlan {
    /// Rows that ask for it.
    pub rows: u64,
    /// Prompt tokens, estimated.
    pub tokens_in: u64,
    /// Answer tokens.
    pub tokens_out: Range<u64>,
    /// US dollars.
    pub cost: Cost,
}

/// A figure that is not known yet.
///
/// `high` is every answer at its `max_tokens`, or four times the usual length where none is set;
/// `expected` is the usual length (256 tokens), or the maximum if that is less; `low` an eighth
/// of the usual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Range<T> {
    /// At least, most likely.
    pub low: T,
    /// Most likely.
    pub expected: T,
    /// At most.
    pub high: T,
}

/// Money, where the price is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cost {
    /// No price is known for at least one of the models.
    Unknown,
    /// So much.
    Known(Range<Money>),
}

/// Models told one by one; the rest are told together.
const MAX_MODELS: usize = 1000;
const OTHER_MODELS: &str = "(other models)";

/// Plans the batch that `options` describe; a pipe is copied into `spool_dir`.
///
/// # Errors
///
/// An option or input that cannot be used at all. Bad lines are part of the plan.
pub fn plan_input(
    options: &InputOptions,
    spool_dir: &Path,
    prices: &Prices,
) -> Result<Plan, Failure> {
    let input =
        Input::open(options, spool_dir).map_err(|error| Failure::Usage(error.to_string()))?;
    Ok(plan(&input, &**prices))
}

/// Plans the batch of `input`; `prices` say what models cost.
pub(crate) fn plan(input: &Input, prices: &dyn Fn(&str) -> Option<Price>) -> Plan {
    let mut models: BTreeMap<String, ModelPlan> = BTreeMap::new();
    let (mut tokens_in, mut tokens_out) = (0, Range::default());
    for index in input.indexes().filter(|&index| input.hash(index).is_some()) {
        // A row that turned bad since the input was opened is the run's to tell.
        let Ok(row) = input.measure(index) else { continue };
        let tokens = request::estimate(row.operation, row.counted_bytes, &row.view);
        let out = answer_tokens(row.operation, row.counted_bytes, row.view.clone());
        tokens_in += tokens.input;
        tokens_out += out;
        let name = match models.contains_key(&*row.view.model) || models.len() < MAX_MODELS {
            true => &*row.view.model,
            false => OTHER_MODELS,
        };
        let model = models.entry(name.to_owned()).or_default();
        model.rows += 1;
        model.tokens_in += tokens.input;
        model.tokens_out += out;
        // Row by row: what a token costs may depend on the length of its prompt.
        let price = prices(&row.view.model);
        let cost = price.map_or(Cost::Unknown, |price| Cost::of(price, tokens.input, out));
        model.cost = model.cost.and(cost);
    }
    let cost = match models.is_empty() {
        true => Cost::Unknown,
        false => models.values().fold(Cost::default(), |sum, model| sum.and(model.cost)),
    };
    Plan {
        rows: input.rows(),
        bad_lines: input.bad().total,
        bad_lines_shown: input.bad().shown.iter().map(ToString::to_string).collect(),
        duplicates: input.duplicates(),
        tokens_in,
        tokens_out,
        cost,
        models,
    }
}

fn answer_tokens(
    operation: tidegate_core::Operation,
    counted_bytes: usize,
    mut view: request::View,
) -> Range<u64> {
    let most = view.max_output.take().map(|most| most.saturating_mul(view.choices));
    let usual = request::estimate(operation, counted_bytes, &view).output;
    let high = if usual == 0 { 0 } else { most.unwrap_or(usual.saturating_mul(4)) };
    let expected = usual.min(high);
    Range { low: expected.min(usual / 8), expected, high }
}

impl Cost {
    fn of(price: Price, input: u64, Range { low, expected, high }: Range<u64>) -> Self {
        let of = |output| price.of(Usage { input, output, ..Usage::default() });
        Self::Known(Range { low: of(low), expected: of(expected), high: of(high) })
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Known(a), Self::Known(b)) => Self::Known(Range {
                low: a.low.plus(b.low),
                expected: a.expected.plus(b.expected),
                high: a.high.plus(b.high),
            }),
            _ => Self::Unknown,
        }
    }
}

impl Default for Cost {
    /// Nothing.
    fn default() -> Self {
        Self::Known(Range::default())
    }
}

impl AddAssign for Range<u64> {
    fn add_assign(&mut self, other: Self) {
        self.low = self.low.saturating_add(other.low);
        self.expected = self.expected.saturating_add(other.expected);
        self.high = self.high.saturating_add(other.high);
    }
}

impl Serialize for Cost {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unknown => serializer.serialize_str("unknown"),
            Self::Known(Range { low, expected, high }) => {
                Range { low: low.usd(), expected: expected.usd(), high: high.usd() }
                    .serialize(serializer)
            }
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = self.rows - self.bad_lines;
        writeln!(
            f,
            "{} rows: {} requests, {} bad lines, {} duplicates",
            count(self.rows),
            count(calls),
            count(self.bad_lines),
            count(self.duplicates)
        )?;
        for (name, model) in &self.models {
            writeln!(
                f,
                "  {name}: {} requests, {} tokens in, {} out, {}",
                count(model.rows),
                count(model.tokens_in),
                model.tokens_out,
                model.cost
            )?;
        }
        writeln!(
            f,
            "total: {} tokens in (estimated), {} out (low, expected, high), {}",
            count(self.tokens_in),
            self.tokens_out,
            self.cost
        )?;
        if self.bad_lines > 0 {
            writeln!(f, "bad lines:")?;
        }
        for line in &self.bad_lines_shown {
            writeln!(f, "  {line}")?;
        }
        let more = self.bad_lines - self.bad_lines_shown.len() as u64;
        if more > 0 {
            writeln!(f, "  and {} more", count(more))?;
        }
        Ok(())
    }
}

impl fmt::Display for Range<u64> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} / {} / {}", count(self.low), count(self.expected), count(self.high))
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("cost unknown (no price is configured)"),
            Self::Known(Range { low, expected, high }) => {
                write!(f, "{} / {} / {}", dollars(*low), dollars(*expected), dollars(*high))
            }
        }
    }
}

fn dollars(amount: Money) -> String {
    let amount = amount.usd();
    // A row can cost a hundredth of a cent: what is not nothing is not shown as nothing.
    if amount > 0.0 && amount < 0.01 { format!("${amount:.6}") } else { format!("${amount:.2}") }
}

/// A number with commas between its thousands.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::Rates;

    /// In US dollars per million tokens.
    fn price(input: u64, output: u64) -> Price {
        Price::flat(Rates::new(
            Money::from_pico(input * 1_000_000),
            Money::from_pico(output * 1_000_000),
        ))
    }

    fn planned(lines: &str, prices: &dyn Fn(&str) -> Option<Price>) -> Plan {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, lines).unwrap();
        let options = InputOptions { path, ..InputOptions::default() };
        plan(&Input::open(&options, dir.path()).unwrap(), prices)
    }

    fn chat(model: &str, extra: &str) -> String {
        format!("{{\"model\":\"{model}\",\"messages\":[]{extra}}}\n")
    }

    #[test]
    fn tokens_and_money_are_told_three_times() {
        let lines = chat("a", "").repeat(2) + &chat("a", ",\"max_tokens\":100,\"n\":2") + "oops\n";
        let plan = planned(&lines, &|_| Some(price(1_000_000, 1)));
        assert_eq!((plan.rows, plan.bad_lines, plan.duplicates), (4, 1, 1));
        assert_eq!(plan.tokens_in, 7 + 7 + 13);
        let expected =
            Range { low: 32 + 32 + 64, expected: 256 + 256 + 200, high: 1024 + 1024 + 200 };
        assert_eq!(plan.tokens_out, expected);
        let Cost::Known(cost) = plan.cost else { panic!("known") };
        assert_eq!(cost.expected.to_string(), "$27.000712");
        let shown = plan.to_string();
        assert!(
            shown.contains("128 / 712 / 2,248") && shown.contains("line 4, column 1"),
            "{shown}"
        );
    }

    #[test]
    fn rows_with_long_prompts_were_planned_at_the_price_of_short_ones() {
        let long = chat("a", &format!(",\"user\":\"{}\"", "x".repeat(40)));
        let steps = price(1_000_000, 0).with_step(8, price(2_000_000, 0).base()).unwrap();
        let plan = planned(&(chat("a", "") + &long), &|_| Some(steps));
        assert_eq!(plan.tokens_in, 7 + 20);
        let Cost::Known(cost) = plan.cost else { panic!("known") };
        assert_eq!(cost.expected.to_string(), "$47.00");
    }

    #[test]
    fn an_unknown_price_is_unknown_and_not_nothing() {
        let lines = chat("a", "") + &chat("b", "");
        let plan = planned(&lines, &|model| (model == "a").then_some(price(1, 2)));
        assert_eq!(plan.cost, Cost::Unknown);
        assert!(matches!(plan.models["a"].cost, Cost::Known(_)));
        let json = serde_json::to_value(&plan).unwrap();
        assert_eq!(json["cost"], "unknown");
        assert_eq!(json["models"]["b"]["cost"], "unknown");
        assert!(json["models"]["a"]["cost"]["high"].as_f64().unwrap() > 0.0);
        assert!(plan.to_string().contains("cost unknown"));
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [0.0, 0.0001, 0.01, 12.345].map(|usd| dollars(Money::from_usd(usd).unwrap())),
            ["$0.00", "$0.000100", "$0.01", "$12.35"]
        );
    }
}
