//! LiteLLM's price file, `model_prices_and_context_window.json`: what models cost, by the
//! providers' own names of them.
//!
//! The file is a list kept by many hands, with some two hundred fields that are about money. What
//! cannot be read as a price of tokens is left out and so stays unknown; nothing is ever taken for
//! free because a field is missing.
//!
//! # Rule
//!
//! ```text
//! price = input_cost_per_token, output_cost_per_token, cache_read_input_token_cost,
//!         cache_creation_input_token_cost
//! step  = the same with _above_200k_tokens: in prompts of more tokens
//! or all of them in tiered_pricing, a list of { range: [0, 32000], … }
//! ```
//!
//! Where a plain call of text is not paid by the number of its tokens alone, the price is unknown
//! rather than wrong: `is_more_than_tokens` lists by what.

use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, sync::Arc};
use tidegate_core::{Money, Price, Rates};

/// What a file lists.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listed {
    /// Models with a price for their tokens.
    pub prices: BTreeMap<Arc<str>, Price>,
    /// Models without: priced by picture, second, page, search or hour, or not at all.
    pub unpriced: usize,
}

/// An entry that only explains the others.
const SAMPLE: &str = "sample_spec";

/// Reads the file.
///
/// A model counts as priced when the file says what a prompt token costs and, except for
/// embeddings and rerankers, what an answer token does. Prompt tokens from and to a cache cost as
/// much as others where it does not say.
///
/// # Errors
///
/// When the text is not one JSON object, with line and column.
pub fn read(text: &[u8]) -> Result<Listed, String> {
    let all: BTreeMap<String, Value> = serde_json::from_slice(text).map_err(|error| {
        if serde_json::from_slice::<IgnoredAny>(text).is_ok() {
            "is not LiteLLM's price file: that is one JSON object, a model to a key".to_owned()
        } else {
            format!("is not JSON: {error}")
        }
    })?;
    let mut listed = Listed::default();
    for (name, entry) in all {
        let price = || Entry { name: &name, fields: entry.as_object()? }.price();
        match price() {
            _ if name == SAMPLE => {}
            Some(price) => drop(listed.prices.insert(name.into(), price)),
            None => listed.unpriced += 1,
        }
    }
    Ok(listed)
}

/// What the file says of one model.
struct Entry<'a> {
    name: &'a str,
    fields: &'a Map<String, Value>,
}

const INPUT: &str = "input_cost_per_token";
const OUTPUT: &str = "output_cost_per_token";
const CACHED_INPUT: &str = "cache_read_input_token_cost";
const CACHE_WRITE: &str = "cache_creation_input_token_cost";
const REASONING: &str = "output_cost_per_reasoning_token";

impl Entry<'_> {
    fn price(&self) -> Option<Price> {
        if self.is_more_than_tokens() {
            return None;
        }
        let tiers = self.fields.get("tiered_pricing").filter(|tiers| !tiers.is_null());
        let price = tiers.map_or_else(|| self.by_name(), tiered)?;
        // Tokens that cost nothing beside something that has a price: that is what is paid for.
        let rates = price.base();
        let is_free = rates.input == Money::ZERO && rates.output == Money::ZERO;
        (!is_free || !self.is_priced_otherwise()).then_some(price)
    }

    /// A price whose steps are in the fields' names.
    fn by_name(&self) -> Option<Price> {
        let has_no_answer =
            matches!(self.text("mode"), Some("embedding" | "rerank" | "moderation"));
        let output = match cost(self.fields, OUTPUT)? {
            Some(output) => output,
            None if has_no_answer => Money::ZERO,
            None => return None,
        };
        let mut price = Price::flat(rates(self.fields, "", output)?);
        let said = self.fields.iter().filter(|(_, cost)| !cost.is_null());
        let mut steps: Vec<(u64, &str)> = said.filter_map(|(field, _)| step(field)).collect();
        steps.sort_unstable();
        for (above, suffix) in steps {
            // "From 200,000 tokens on" at this provider, "above" at all others.
            let above =
                if self.text("litellm_provider") == Some("xai") { above - 1 } else { above };
            price = price.with_step(above, rates(self.fields, suffix, output)?)?;
        }
        Some(price)
    }

    /// Whether a plain call of text is paid by more than the number of its tokens.
    fn is_more_than_tokens(&self) -> bool {
        // Pictures, speech and live sessions: their tokens have prices by what they carry.
        let is_text = matches!(
            self.text("mode"),
            None | Some(
                "chat" | "completion" | "responses" | "embedding" | "rerank" | "moderation"
            )
        );
        let costs = |field| costs(self.fields, field);
        // Where such a model thinks, all tokens of its answer cost more, not only its thoughts.
        let thinks_otherwise = self.fields.get(REASONING).is_some_and(|reasoning| {
            !reasoning.is_null() && cost(self.fields, REASONING) != cost(self.fields, OUTPUT)
        });
        // All can search; these always do.
        let searches = self.fields.contains_key("search_context_cost_per_query")
            && (self.name.contains("search") || self.name.contains("sonar"));
        // Its plain answer is a picture.
        let draws = costs("output_cost_per_image_token")
            && cost(self.fields, "output_cost_per_image_token") != cost(self.fields, OUTPUT);
        !is_text
            || thinks_otherwise
            || searches
            || draws
            || costs("input_cost_per_request")
            || costs("input_cost_per_query")
            || costs("citation_cost_per_token")
            // Cheaper by night.
            || self.fields.get("off_peak_pricing").is_some_and(|hours| !hours.is_null())
    }

    /// Whether a picture, second, page or query of it costs something.
    fn is_priced_otherwise(&self) -> bool {
        self.fields.keys().any(|name| name.contains("_cost_per_") && costs(self.fields, name))
    }

    fn text(&self, field: &str) -> Option<&str> {
        self.fields.get(field)?.as_str()
    }
}

/// `_above_200k_tokens` and its number, of the name of a prompt token's price; `None` for other
/// names, those of other service tiers among them.
fn step(field: &str) -> Option<(u64, &str)> {
    let suffix = field.strip_prefix(INPUT)?;
    let number = suffix.strip_prefix("_above_")?.strip_suffix("_tokens")?;
    let (digits, unit) = number.strip_suffix('k').map_or((number, 1), |digits| (digits, 1_000));
    let above = digits.parse::<u64>().ok()?.checked_mul(unit)?;
    (above > 0).then_some((above, suffix))
}

/// A price whose steps are a list: each begins where the one before ends.
fn tiered(tiers: &Value) -> Option<Price> {
    let mut tiers: Vec<(u64, &Map<String, Value>)> = tiers
        .as_array()?
        .iter()
        .map(|tier| {
            let tier = tier.as_object()?;
            let from = tier.get("range")?.as_array()?.first()?.as_f64()?;
            (0.0..1e15).contains(&from).then_some((from as u64, tier))
        })
        .collect::<Option<_>>()?;
    tiers.sort_unstable_by_key(|(from, _)| *from);
    let mut price = None::<Price>;
    for (from, tier) in tiers {
        let output = cost(tier, OUTPUT)??;
        let thinks_otherwise = cost(tier, REASONING)?.is_some_and(|reasoning| reasoning != output);
        let rates = (!thinks_otherwise).then(|| rates(tier, "", output)).flatten()?;
        price = match price {
            None => (from == 0).then_some(rates.into()),
            Some(price) => price.with_step(from, rates),
        };
        price?;
    }
    price
}

/// The rates in the fields of `from` that end in `suffix`; an answer costs `output` where that is
/// not said. `None` without a prompt's, or when one of them is no price.
fn rates(from: &Map<String, Value>, suffix: &str, output: Money) -> Option<Rates> {
    let cost = |field: &str| cost(from, &format!("{field}{suffix}"));
    let input = cost(INPUT)??;
    Some(Rates {
        input,
        cached_input: cost(CACHED_INPUT)?.unwrap_or(input),
        // Nobody gives a discount for writing: a lower number is a cache's rent, or a mistake.
        cache_write: cost(CACHE_WRITE)?.unwrap_or(input).max(input),
        output: cost(OUTPUT)?.unwrap_or(output),
    })
}

/// US dollars per token, as a number or, in some entries, as text; `Some(None)` where nothing is
/// said, `None` where what is said is no price.
fn cost(of: &Map<String, Value>, field: &str) -> Option<Option<Money>> {
    let usd = match of.get(field) {
        None | Some(Value::Null) => return Some(None),
        Some(Value::Number(number)) => number.as_f64()?,
        Some(Value::String(text)) => text.trim().parse().ok()?,
        Some(_) => return None,
    };
    Money::from_usd(usd).map(Some)
}

/// Whether that is more than nothing.
fn costs(of: &Map<String, Value>, field: &str) -> bool {
    cost(of, field).flatten().is_some_and(|cost| cost > Money::ZERO)
}

#[cfg(test)]
mod tests;
