//! Looks at a caller's body just far enough to route it, limit it and price it.
//!
//! # Why
//!
//! The body is forwarded as sent. Building a tree of it would cost more than everything else the
//! gateway does with a call, so the handful of fields that matter are borrowed from the text and
//! the rest is skipped. Whatever is not looked at is the upstream's to judge.

use crate::json::{check_depth, invalid, object_text};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use std::{fmt, ops::Range};
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

/// How many prompts a completion has: a text is one, a list of numbers (tokens) is one, and any
/// other list has as many as it has items.
struct Prompts(u64);

impl Default for Prompts {
    fn default() -> Self {
        Self(1)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let count = match from.deserialize_any(Shapes)? {
            Shape::List { items, of_numbers: false } => items.max(1),
            Shape::List { .. } | Shape::Number | Shape::Other => 1,
        };
        Ok(Self(count))
    }
}

/// What a value is, as far as prompts are told apart by it.
enum Shape {
    Number,
    List { items: u64, of_numbers: bool },
    Other,
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Shapes)
    }
}

struct Shapes;

impl<'de> Visitor<'de> for Shapes {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_u64<E>(self, _: u64) -> Result<Shape, E> {
        Ok(Shape::Number)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Shape, E> {
        Ok(Shape::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Shape, E> {
        Ok(Shape::Number)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
        let (mut items, mut of_numbers) = (0, true);
        while let Some(item) = list.next_element()? {
            items += 1;
            of_numbers &= matches!(item, Shape::Number);
        }
        Ok(Shape::List { items, of_numbers })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Shape::Other)
    }
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
mod tests {
    use super::*;
    use tidegate_core::Kind;

    fn chat(body: &str) -> View {
        read(Operation::ChatCompletions, body.as_bytes()).unwrap()
    }

    fn refused(body: impl AsRef<[u8]>) -> (Option<&'static str>, String) {
        let error = read(Operation::ChatCompletions, body.as_ref()).unwrap_err();
        let expected =
            if error.param().is_some() { Kind::InvalidRequest } else { Kind::InvalidJson };
        assert_eq!(error.kind(), expected);
        (error.param(), error.message().to_owned())
    }

    #[test]
    fn a_completion_makes_an_answer_for_each_of_its_prompts() {
        for (fields, answers) in [
            (r#""prompt":"one""#, 1),
            (r#""prompt":["a","b\"","c"]"#, 3),
            (r#""prompt":["a","b"],"n":2"#, 4),
            (r#""prompt":["a","b"],"n":2,"best_of":5"#, 10),
            (r#""prompt":[1,2,3,4]"#, 1),
            (r#""prompt":[[1,2],[3]],"best_of":3"#, 6),
            (r#""prompt":[]"#, 1),
            (r#""prompt":null"#, 1),
            (r#""prompt":{"a":[1]},"best_of":null"#, 1),
        ] {
            let body = format!(r#"{{"model":"m","max_tokens":10,{fields}}}"#);
            let view = read(Operation::Completions, body.as_bytes()).unwrap();
            assert_eq!(view.choices, answers, "{fields}");
            let output = estimate(Operation::Completions, body.len(), &view).output;
            assert_eq!(output, 10 * answers, "{fields}");
            let chat = chat(&body);
            assert!(chat.choices <= 2, "chat has no such fields: {fields}");
        }
    }

    #[test]
    fn a_smaller_of_two_maxima_hides_no_larger_one_from_budgets() {
        let view = chat(r#"{"model":"m","max_completion_tokens":1,"max_tokens":200}"#);
        assert_eq!(view.max_output, Some(200));
    }

    #[test]
    fn reads_what_routing_needs() {
        let body = r#" {"x":{"model":"no"}, "model" : "qwen\/3" ,"stream":true,"n":2,
            "max_tokens":7,"temperature":0.0,"tools":[{"stream":1}]}"#;
        let view = chat(body);
        assert_eq!(&*view.model, "qwen/3");
        assert_eq!(&body[view.model_span.clone()], r#""qwen\/3""#);
        assert!(view.stream && view.deterministic);
        assert_eq!((view.max_output, view.choices), (Some(7), 2));
    }

    #[test]
    fn stream_options_may_be_added_where_nothing_is_said_of_them() {
        use Operation::{ChatCompletions, Completions, Embeddings, Responses};
        for (operation, body, opening) in [
            (ChatCompletions, r#"{"model":"m","stream":true}"#, Some(1)),
            (Completions, " \n\t{\"stream\":true,\"model\":\"m\"}", Some(4)),
            (ChatCompletions, r#"{"model":"m","stream":true,"x":{"stream_options":1}}"#, Some(1)),
            (ChatCompletions, r#"{"model":"m"}"#, None),
            (ChatCompletions, r#"{"model":"m","stream":true,"stream_options":{}}"#, None),
            (ChatCompletions, r#"{"model":"m","stream":true,"stream_options":null}"#, None),
            (ChatCompletions, r#"{"stream\u005foptions":1,"model":"m","stream":true}"#, None),
            (Responses, r#"{"model":"m","stream":true}"#, None),
            (Embeddings, r#"{"model":"m","stream":true}"#, None),
        ] {
            assert_eq!(read(operation, body.as_bytes()).unwrap().opening, opening, "{body}");
        }
        let twice = r#"{"model":"m","stream_options":{},"stream_options":{}}"#;
        assert_eq!(refused(twice).0, Some("stream_options"));
    }

    #[test]
    fn nulls_are_absent() {
        let view = chat(r#"{"model":"m","stream":null,"max_tokens":null,"n":null,"seed":null}"#);
        assert!(!view.stream && !view.deterministic);
        assert_eq!((view.max_output, view.choices), (None, 1));
    }

    #[test]
    fn odd_counts_are_the_upstreams_to_judge() {
        assert_eq!(chat(r#"{"model":"m","max_tokens":-1}"#).max_output, None);
        assert_eq!(chat(r#"{"model":"m","max_tokens":100.0}"#).max_output, Some(100));
        assert_eq!(chat(r#"{"model":"m","max_tokens":1e99}"#).max_output, Some(u64::MAX));
    }

    #[test]
    fn the_newer_word_wins() {
        assert_eq!(
            chat(r#"{"model":"m","max_tokens":7,"max_completion_tokens":9}"#).max_output,
            Some(9)
        );
    }

    #[test]
    fn a_maximum_beside_one_that_is_none_is_no_maximum() {
        for (body, most) in [
            (r#"{"model":"m","max_tokens":1,"max_completion_tokens":-1}"#, None),
            (r#"{"model":"m","max_tokens":-1,"max_completion_tokens":1}"#, None),
            (r#"{"model":"m","max_tokens":-1}"#, None),
            (r#"{"model":"m","max_tokens":1,"max_completion_tokens":null}"#, Some(1)),
            (r#"{"model":"m","max_tokens":1.5}"#, Some(2)),
        ] {
            assert_eq!(chat(body).max_output, most, "{body}");
        }
    }

    #[test]
    fn each_operation_has_its_own_word() {
        let body = br#"{"model":"m","max_output_tokens":5,"max_tokens":"not ours here"}"#;
        assert_eq!(read(Operation::Responses, body).unwrap().max_output, Some(5));
        assert_eq!(read(Operation::Embeddings, body).unwrap().max_output, None);
    }

    #[test]
    fn escaped_keys_are_the_same_key() {
        assert_eq!(&*chat(r#"{"mod\u0065l":"m"}"#).model, "m");
        assert_eq!(refused(r#"{"model":"a","mod\u0065l":"b"}"#).0, Some("model"));
    }

    #[test]
    fn bad_bodies() {
        for (body, param, message) in [
            ("{\"messages\":[]}", Some("model"), "missing"),
            ("{\"model\":7}", Some("model"), "must be a string"),
            ("{\"model\":\"\"}", Some("model"), "empty"),
            ("{\"model\":\"m\",\"stream\":\"yes\"}", Some("stream"), "true or false"),
            ("{\"model\":\"m\",\"max_tokens\":\"7\"}", Some("max_tokens"), "must be a number"),
            ("{\"model\":\"m\",\"n\":[]}", Some("n"), "must be a number"),
            ("{\"model\":\"a\",\"model\":\"b\"}", Some("model"), "duplicate field `model`"),
            ("{\"model\":\"m\",\n \"x\":}", None, "line 2 column 6"),
            ("{\"model\":\"m\"", None, "EOF while parsing an object at line 1 column 12"),
            ("{\"model\":\"m\"} {}", None, "trailing characters at line 1 column 15"),
            ("", None, "is empty"),
            ("  \n", None, "is empty"),
            ("[\"m\"]", None, "must be a JSON object"),
            ("\u{feff}{}", None, "byte order mark"),
        ] {
            let (named, said) = refused(body);
            assert_eq!(named, param, "{body}");
            assert!(said.contains(message), "{body}: {said}");
        }
        let (_, said) = refused(b"{\"model\":\"m\",\n\"x\":\"\xff\"}");
        assert!(said.contains("not UTF-8 at line 2 column 6"), "{said}");
        let deep = format!("{{\"model\":\"m\",\"x\":{}{}}}", "[".repeat(64), "]".repeat(64));
        assert!(refused(deep).1.contains("nests deeper"));
        let very_deep = format!("{{\"model\":\"m\",\"x\":{}", "[".repeat(1_000_000));
        assert!(refused(very_deep).1.contains("EOF"));
    }

    #[test]
    fn estimates() {
        let view = chat(r#"{"model":"m","max_tokens":100,"n":3}"#);
        let estimate_of = |operation| estimate(operation, 401, &view);
        assert_eq!(
            estimate_of(Operation::ChatCompletions),
            TokenEstimate { input: 101, output: 300 }
        );
        assert_eq!(estimate_of(Operation::Embeddings).output, 0);
    }
}
