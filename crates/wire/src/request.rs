//! Looks at a caller's body just far enough to route it, limit it and price it.
//!
//! # Why
//!
//! The body is forwarded as sent. Building a tree of it would cost more than everything else the
//! gateway does with a call, so the handful of fields that matter are borrowed from the text and
//! the rest is skipped. Whatever is not looked at is the upstream's to judge.

mod prompts;

use crate::json::{check_depth, invalid, object_text};
use prompts::Prompts;
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_json::value::RawValue;
use std::ops::Range;
use tidegate_core::{Error, Operation, Result, TokenEstimate};

/// What routing and limits need of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The model's name, unescaped.
    pub model: Box<str>,
    /// Where the model's name stands in the body, its quotes included.
    pub model_span: Range<usize>,
    /// Whether a stream of events is asked for.
    pub stream: bool,
    /// Most tokens one answer may have, when the caller said so.
    pub max_output: Option<u64>,
    /// How many answers are made, at least 1: `n`, or `best_of` where that is more, for each of the
    /// prompts of a completion.
    pub choices: u64,
    /// Whether the same body means the same answer: `temperature` is 0, or there is a `seed`.
    pub deterministic: bool,
    /// Where `stream_options` may be written in the caller's stead, behind the body's opening
    /// brace: in a body that asks for a stream of chat or completions and says nothing of them.
    pub opening: Option<usize>,
}

/// Bytes of body per prompt token: English and JSON punctuation come to about four.
const BYTES_PER_TOKEN: u64 = 4;

/// Answer tokens expected when the caller set no maximum.
const EXPECTED_OUTPUT_TOKENS: u64 = 256;

/// Longest model name in bytes. Names go into logs, metrics and tables.
const MAX_MODEL_BYTES: usize = 256;

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
    #[serde(borrow)]
    max_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    max_completion_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    max_output_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    n: Option<&'a RawValue>,
    #[serde(borrow)]
    best_of: Option<&'a RawValue>,
    #[serde(default)]
    prompt: Prompts,
    #[serde(borrow)]
    temperature: Option<&'a RawValue>,
    #[serde(borrow)]
    seed: Option<&'a RawValue>,
    #[serde(default)]
    stream_options: Said,
}

/// Whether a field is there at all, `null` included.
#[derive(Default)]
struct Said(bool);

impl<'de> Deserialize<'de> for Said {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(from).map(|_| Self(true))
    }
}

/// Reads the view of `body`, a request of `operation`.
///
/// # Errors
///
/// [`tidegate_core::Kind::InvalidJson`] when the body is not one JSON object in UTF-8 (the
/// message says line and column) or nests deeper than [`crate::json::MAX_DEPTH`];
/// [`tidegate_core::Kind::InvalidRequest`] when it names a field twice that we route by
/// (upstreams differ in which one they take), or a field we need has the wrong type (`param`
/// names it).
pub fn read(operation: Operation, body: &[u8]) -> Result<View> {
    let text = object_text("the request body", body)?;
    let fields: Fields<'_> = serde_json::from_str(text).map_err(|error| explain(&error))?;
    check_depth("the request body", text)?;

    let raw_model = fields.model.ok_or_else(|| {
        Error::invalid("model", "the field `model` is missing; name the model to call")
    })?;
    let stream = flag("stream", fields.stream)?;
    Ok(View {
        model: model_name(raw_model)?,
        model_span: span_in(text, raw_model),
        stream,
        max_output: told_maximum(operation, &fields)?,
        choices: choices(operation, &fields)?,
        deterministic: fields.seed.is_some()
            || fields.temperature.is_some_and(|raw| raw.get().parse() == Ok(0.0_f64)),
        opening: (stream && takes_stream_options(operation) && !fields.stream_options.0)
            .then(|| text.len() - text.trim_ascii_start().len() + 1),
    })
}

/// Tokens `view`'s call is expected to use, from the length of its body.
///
/// Four bytes of body per prompt token; the answer is taken at its maximum, or as 256 tokens
/// when the caller set none. Embeddings have no answer tokens. The engine corrects the estimate
/// by the usage an answer tells.
pub fn estimate(operation: Operation, body_len_bytes: usize, view: &View) -> TokenEstimate {
    let output = match operation {
        Operation::Embeddings => 0,
        Operation::ChatCompletions | Operation::Completions | Operation::Responses => {
            view.max_output.unwrap_or(EXPECTED_OUTPUT_TOKENS).saturating_mul(view.choices)
        }
    };
    TokenEstimate { input: (body_len_bytes as u64).div_ceil(BYTES_PER_TOKEN), output }
}

/// Tokens that one answer to `view`'s call may have; `None` where the caller set no maximum.
/// Embeddings have none.
pub fn max_output(operation: Operation, view: &View) -> Option<u64> {
    match operation {
        Operation::Embeddings => Some(0),
        Operation::ChatCompletions | Operation::Completions | Operation::Responses => {
            view.max_output
        }
    }
}

/// Streams of responses tell their usage unasked.
const fn takes_stream_options(operation: Operation) -> bool {
    matches!(operation, Operation::ChatCompletions | Operation::Completions)
}

fn explain(error: &serde_json::Error) -> Error {
    const ROUTED_BY: [&str; 11] = [
        "model",
        "stream",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "n",
        "best_of",
        "prompt",
        "temperature",
        "seed",
        "stream_options",
    ];
    let reason = error.to_string();
    let twice = reason.strip_prefix("duplicate field `").and_then(|rest| rest.split('`').next());
    match ROUTED_BY.into_iter().find(|field| Some(*field) == twice) {
        Some(field) => Error::invalid(field, format!("the request body has a {reason}")),
        // serde repeats a value of the wrong kind; what callers write is for nobody's log.
        None => match reason.rfind(", expected ") {
            Some(at) if error.is_data() => {
                invalid(format!("the request body is not as it should be: {}", &reason[at + 2..]))
            }
            _ => invalid(format!("the request body is not valid JSON: {reason}")),
        },
    }
}

fn model_name(raw: &RawValue) -> Result<Box<str>> {
    let name: Box<str> = serde_json::from_str(raw.get())
        .map_err(|_| Error::invalid("model", "the field `model` must be a string"))?;
    if name.trim().is_empty() {
        return Err(Error::invalid("model", "the field `model` is empty; name the model to call"));
    }
    if name.len() > MAX_MODEL_BYTES {
        return Err(Error::invalid(
            "model",
            format!("the field `model` is longer than {MAX_MODEL_BYTES} bytes"),
        ));
    }
    Ok(name)
}

/// Where `raw`, borrowed from `text`, stands in it.
fn span_in(text: &str, raw: &RawValue) -> Range<usize> {
    let start = raw.get().as_ptr().addr() - text.as_ptr().addr();
    start..start + raw.get().len()
}

fn flag(name: &'static str, raw: Option<&RawValue>) -> Result<bool> {
    match raw.map(RawValue::get) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(Error::invalid(name, format!("the field `{name}` must be true or false"))),
    }
}

/// A count; a negative one means "no limit" to some servers (`max_tokens: -1`), and whether
/// `100.0` will do is theirs to judge.
fn whole(name: &'static str, raw: Option<&RawValue>) -> Result<Option<u64>> {
    let Some(raw) = raw else { return Ok(None) };
    if let Ok(count) = raw.get().parse::<u64>() {
        return Ok(Some(count));
    }
    match raw.get().parse::<f64>() {
        Ok(number) => Ok((number >= 0.0).then_some(number.ceil() as u64)),
        Err(_) => Err(Error::invalid(name, format!("the field `{name}` must be a number"))),
    }
}

/// Answers that are paid for. Servers make `best_of` of them to give back `n`, for every prompt.
fn choices(operation: Operation, fields: &Fields<'_>) -> Result<u64> {
    let given = whole("n", fields.n)?.unwrap_or(1).max(1);
    if operation != Operation::Completions {
        return Ok(given);
    }
    let made = whole("best_of", fields.best_of)?.unwrap_or(1).max(given);
    Ok(made.saturating_mul(fields.prompt.0))
}

/// The operation's own word for the most tokens of an answer; the other words are not ours.
fn told_maximum(operation: Operation, fields: &Fields<'_>) -> Result<Option<u64>> {
    match operation {
        Operation::ChatCompletions => {
            let newer = whole("max_completion_tokens", fields.max_completion_tokens)?;
            let older = whole("max_tokens", fields.max_tokens)?;
            let said = [fields.max_completion_tokens, fields.max_tokens].into_iter().flatten();
            if said.count() > [newer, older].into_iter().flatten().count() {
                // A negative one is no maximum.
                return Ok(None);
            }
            // Which of two an upstream obeys is its own affair: budgets reserve for the larger.
            Ok(newer.max(older))
        }
        Operation::Completions => whole("max_tokens", fields.max_tokens),
        Operation::Responses => whole("max_output_tokens", fields.max_output_tokens),
        Operation::Embeddings => Ok(None),
    }
}

#[cfg(test)]
mod tests;
