//! LiteLLM's price file, `model_prices_and_context_window.json`: what models cost, by the
//! providers' own names of them.
//!
//! The file is a list kept by many hands. What cannot be read as a price of tokens is left out
//! and so stays unknown; nothing is ever taken for free because a field is missing.

use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};
use tidegate_core::{Money, Price};

/// What a file lists.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listed {
    /// Models with a price for their tokens.
    pub prices: BTreeMap<Arc<str>, Price>,
    /// Models without: priced by picture, second or page, or not at all.
    pub unpriced: usize,
}

/// An entry that only explains the others.
const SAMPLE: &str = "sample_spec";

/// Reads the file.
///
/// A model counts as priced when the file says what a prompt token costs and, except for
/// embeddings and rerankers, what an answer token does. Cached prompt tokens cost as much as
/// others where it does not say.
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
        match price(&entry) {
            _ if name == SAMPLE => {}
            Some(price) => drop(listed.prices.insert(name.into(), price)),
            None => listed.unpriced += 1,
        }
    }
    Ok(listed)
}

/// The fields of an entry that are about tokens; there are hundreds of others.
#[derive(Deserialize)]
struct Entry {
    input_cost_per_token: Option<Value>,
    output_cost_per_token: Option<Value>,
    cache_read_input_token_cost: Option<Value>,
    mode: Option<Value>,
}

fn price(entry: &Value) -> Option<Price> {
    let fields = Entry::deserialize(entry).ok()?;
    let input = cost(fields.input_cost_per_token.as_ref()?)?;
    let has_no_answer = matches!(
        fields.mode.as_ref().and_then(Value::as_str),
        Some("embedding" | "rerank" | "moderation")
    );
    let output = match &fields.output_cost_per_token {
        Some(written) => cost(written)?,
        None if has_no_answer => Money::ZERO,
        None => return None,
    };
    let cached_input = match &fields.cache_read_input_token_cost {
        Some(written) => cost(written)?,
        None => input,
    };
    // Tokens at nothing beside a price for something else: it is that which is paid for.
    let is_free = input == Money::ZERO && output == Money::ZERO;
    if is_free && is_priced_otherwise(entry) {
        return None;
    }
    Some(Price { input, cached_input, output })
}

/// US dollars per token, as a number or, in some entries, as text.
fn cost(written: &Value) -> Option<Money> {
    let usd = match written {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    Money::from_usd(usd)
}

/// Whether a picture, second, page or query of it costs something.
fn is_priced_otherwise(entry: &Value) -> bool {
    let Some(fields) = entry.as_object() else { return false };
    fields.iter().any(|(name, written)| {
        name.contains("_cost_per_") && cost(written).is_some_and(|cost| cost > Money::ZERO)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries as the file has them, shortened.
    const FILE: &str = r#"{
        "sample_spec": {"input_cost_per_token": 0.0, "max_tokens": "LEGACY parameter"},
        "gpt-4o-mini": {
            "input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07,
            "cache_read_input_token_cost": 7.5e-08, "max_tokens": 16384,
            "litellm_provider": "openai", "mode": "chat", "supports_vision": true,
            "search_context_cost_per_query": {"search_context_size_low": 0.03}
        },
        "claude-3-haiku-20240307": {
            "input_cost_per_token": "2.5e-07", "output_cost_per_token": 1.25e-06, "mode": "chat"
        },
        "text-embedding-3-small": {"input_cost_per_token": 2e-08, "mode": "embedding"},
        "free-model": {"input_cost_per_token": 0, "output_cost_per_token": 0, "mode": "chat"},
        "dall-e-3": {
            "input_cost_per_token": 0, "output_cost_per_token": 0, "output_cost_per_image": 0.04
        },
        "half-known": {"input_cost_per_token": 1e-06, "mode": "chat"},
        "whisper-1": {"input_cost_per_second": 0.0001, "mode": "audio_transcription"},
        "bad": {"input_cost_per_token": -1, "output_cost_per_token": 1}
    }"#;

    #[test]
    fn the_price_file_is_read_to_the_picodollar() {
        let listed = read(FILE.as_bytes()).unwrap();
        let shown: Vec<_> = listed
            .prices
            .iter()
            .map(|(name, p)| (&**name, p.input.pico(), p.cached_input.pico(), p.output.pico()))
            .collect();
        assert_eq!(
            shown,
            [
                ("claude-3-haiku-20240307", 250_000, 250_000, 1_250_000),
                ("free-model", 0, 0, 0),
                ("gpt-4o-mini", 150_000, 75_000, 600_000),
                ("text-embedding-3-small", 20_000, 20_000, 0),
            ]
        );
        assert_eq!(listed.unpriced, 4, "a picture model, half a price, seconds, a negative one");
    }

    #[test]
    fn what_is_no_price_file_is_refused() {
        assert!(read(b"[]").unwrap_err().contains("one JSON object"));
        let cut = read(b"{\"a\": {\"mode\": ").unwrap_err();
        assert!(cut.contains("not JSON") && cut.contains("line 1"), "{cut}");
        assert_eq!(read(br#"{"a": 7}"#).unwrap().unpriced, 1);
    }
}
