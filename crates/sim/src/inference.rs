//! `/inference` and `/recommend`: plain JSON in and out, as scoring servers have them.

use crate::{
    Options,
    call::Work,
    chance::{Chance, hash},
    fields::Text,
    generation::json,
    refusal::Refusal,
    request::parse,
    tokens,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::sync::Arc;

/// Items of one request at most.
const MAX_ITEMS: usize = 4096;

const LABELS: [&str; 6] = ["positive", "negative", "neutral", "question", "request", "spam"];

#[derive(Deserialize)]
struct Inference<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    inputs: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct Scores<'a> {
    model: &'a str,
    outputs: Vec<Output>,
}

#[derive(Serialize)]
struct Score<'a> {
    model: &'a str,
    output: Output,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Output {
    Score { label: &'static str, score: f64, tokens: u32 },
    Error { error: String },
}

/// `{"inputs": [...]}` gives `{"outputs": [...]}` item by item, a null item failing alone;
/// `{"input": x}` gives `{"output": y}`.
pub(crate) fn plan(
    body: &[u8],
    options: &Options,
    model: impl FnOnce(&str) -> Arc<str>,
) -> Result<Work, Refusal> {
    let body: Inference<'_> = parse(body)?;
    let model = model(body.model.as_ref().map_or(&options.models[0], |model| &model.0));
    if let Some(inputs) = body.inputs {
        let items: Vec<&RawValue> = serde_json::from_str(inputs.get())
            .map_err(|_| Refusal::invalid("inputs", "`inputs` must be a list"))?;
        if items.is_empty() || items.len() > MAX_ITEMS {
            return Err(Refusal::invalid("inputs", "`inputs` must have from 1 to 4096 items"));
        }
        let tokens =
            items.iter().fold(0u32, |sum, item| sum.saturating_add(tokens::count(item.get())));
        let outputs = items.iter().enumerate().map(|(at, item)| score(item, at, options.seed));
        let reply = json(&Scores { model: &model, outputs: outputs.collect() });
        return Ok(Work::Json { reply, model, items: items.len(), prompt_tokens: tokens });
    }
    let input = body.input.ok_or_else(|| Refusal::missing("inputs"))?;
    let reply = json(&Score { model: &model, output: score(input, 0, options.seed) });
    let prompt_tokens = tokens::count(input.get());
    Ok(Work::Json { reply, model, items: 1, prompt_tokens })
}

fn score(input: &RawValue, at: usize, seed: u64) -> Output {
    if input.get() == "null" {
        return Output::Error { error: format!("input {at} is null") };
    }
    let mut chance = Chance::new(&[seed, hash(input.get().as_bytes())]);
    Output::Score {
        label: chance.pick(&LABELS),
        score: (5000.0 + chance.unit() * 4999.0).round() / 1e4,
        tokens: tokens::count(input.get()),
    }
}

#[derive(Deserialize)]
struct Recommend<'a> {
    #[serde(borrow)]
    model: Option<Text<'a>>,
    user_id: Option<UserId>,
    user_ids: Option<Vec<UserId>>,
    limit: Option<usize>,
}

/// A user by name or number.
#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum UserId {
    Number(i64),
    Name(String),
}

#[derive(Serialize)]
struct Recommendations<'a> {
    model: &'a str,
    results: Vec<Recommended>,
}

#[derive(Serialize)]
struct Recommended {
    user_id: UserId,
    items: Vec<Item>,
}

#[derive(Serialize)]
struct Item {
    item_id: String,
    score: f64,
}

/// `{"user_id": u, "limit": 10}` gives `{"user_id", "items": [{"item_id", "score"}]}`, best
/// first; `{"user_ids": [...]}` gives `{"model", "results": [...]}`.
pub(crate) fn recommend(
    body: &[u8],
    options: &Options,
    model: impl FnOnce(&str) -> Arc<str>,
) -> Result<Work, Refusal> {
    let body: Recommend<'_> = parse(body)?;
    let model = model(body.model.as_ref().map_or(&options.models[0], |model| &model.0));
    let limit = body.limit.unwrap_or(10);
    if !(1..=100).contains(&limit) {
        return Err(Refusal::invalid("limit", "`limit` must be from 1 to 100"));
    }
    if let Some(users) = body.user_ids {
        if users.is_empty() || users.len() > MAX_ITEMS {
            return Err(Refusal::invalid("user_ids", "`user_ids` must have from 1 to 4096 items"));
        }
        let items = users.len();
        let results = users.into_iter().map(|user| recommended(user, limit, options.seed));
        let reply = json(&Recommendations { model: &model, results: results.collect() });
        return Ok(Work::Json { reply, model, items, prompt_tokens: items as u32 });
    }
    let user = body.user_id.ok_or_else(|| Refusal::missing("user_id"))?;
    let reply = json(&recommended(user, limit, options.seed));
    Ok(Work::Json { reply, model, items: 1, prompt_tokens: 1 })
}

fn recommended(user_id: UserId, limit: usize, seed: u64) -> Recommended {
    let user = match &user_id {
        UserId::Number(number) => hash(&number.to_le_bytes()),
        UserId::Name(name) => hash(name.as_bytes()),
    };
    let mut chance = Chance::new(&[seed, user]);
    let mut score = 1.0;
    let items = (0..limit).map(|_| {
        score *= 0.85 + chance.unit() * 0.14;
        let item_id = format!("item-{}", chance.below(100_000));
        Item { item_id, score: (score * 1e4).round() / 1e4 }
    });
    let items = items.collect();
    Recommended { user_id, items }
}
