//! The schema answers must follow: put into each request, and checked on each answer.
//!
//! # Why
//!
//! A provider's strict mode promises valid answers, other servers ignore it. Checking here makes
//! a bad answer a failed attempt on any of them, and never a row that breaks its reader later.

use crate::input::{InputError, json};
use serde::Deserialize;
use std::{borrow::Cow, fs, path::Path};
use tidegate_core::Operation;

/// Longest schema file taken.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Longest name OpenAI takes for a schema.
const MAX_NAME_CHARS: usize = 64;

/// A JSON Schema, read and compiled once.
#[derive(Debug)]
pub(crate) struct Schema {
    validator: jsonschema::Validator,
    name: String,
    /// The schema as it was written, its keys in their order: models answer in that order.
    text: String,
}

impl Schema {
    /// Reads and compiles the schema in the file `path`.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is no JSON, or is no valid schema; references to other files or
    /// the network are not followed.
    pub(crate) fn open(path: &Path) -> Result<Self, InputError> {
        let shown = path.display();
        let about = fs::metadata(path).map_err(|error| InputError::unreadable(path, error))?;
        if about.len() > MAX_FILE_BYTES {
            return Err(InputError::new(format!(
                "the schema {shown} is longer than {MAX_FILE_BYTES} bytes"
            )));
        }
        let text = fs::read_to_string(path).map_err(|error| InputError::unreadable(path, error))?;
        let text = text.trim_start_matches('\u{feff}');
        let value: serde_json::Value = serde_json::from_str(text).map_err(|error| {
            InputError::new(format!("the schema {shown} is not valid JSON: {error}"))
        })?;
        if !value.is_object() {
            return Err(InputError::new(format!("the schema {shown} is not a JSON object")));
        }
        let validator = jsonschema::validator_for(&value).map_err(|error| {
            InputError::new(format!("the schema {shown} is not a valid JSON Schema: {error}"))
        })?;
        let title = value.get("title").and_then(|title| title.as_str());
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let name = name_from(title.or(stem).unwrap_or_default());
        Ok(Self { validator, name, text: json::minified(text) })
    }

    /// Where in a body of `operation` the schema goes, and what goes there.
    ///
    /// # Errors
    ///
    /// When answers of `operation` are no text.
    pub(crate) fn field(&self, operation: Operation) -> Result<(Vec<String>, String), String> {
        let mut name = String::new();
        json::push_string(&mut name, &self.name);
        let schema = &self.text;
        match operation {
            Operation::ChatCompletions => Ok((
                vec!["response_format".into()],
                format!(
                    r#"{{"type":"json_schema","json_schema":{{"name":{name},"strict":true,"schema":{schema}}}}}"#
                ),
            )),
            Operation::Responses => Ok((
                vec!["text".into(), "format".into()],
                format!(
                    r#"{{"type":"json_schema","name":{name},"strict":true,"schema":{schema}}}"#
                ),
            )),
            Operation::Completions | Operation::Embeddings => Err(format!(
                "--schema does not go with /v1{}: use it with chat or responses",
                operation.path()
            )),
        }
    }

    /// Checks the answer in `answer_body` against the schema.
    ///
    /// The answer's text is taken as it is: fences or words around the JSON are a fault.
    ///
    /// # Errors
    ///
    /// What is wrong, naming the path in the answer.
    pub(crate) fn check(&self, answer_body: &[u8], operation: Operation) -> Result<(), String> {
        let text = answer_text(answer_body, operation)?;
        let answer: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| format!("the answer is not valid JSON: {error}"))?;
        self.validator.validate(&answer).map_err(|error| {
            let path = error.instance_path().as_str();
            let place = if path.is_empty() { "its root" } else { path };
            format!("the answer does not follow the schema at {place}: {}", error.masked())
        })
    }
}

/// A name OpenAI accepts (letters, digits, `_`, `-`) made of `title`.
fn name_from(title: &str) -> String {
    let name: String = title
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
        .take(MAX_NAME_CHARS)
        .collect();
    if name.is_empty() { "answer".into() } else { name }
}

/// The text a model answered with.
fn answer_text(body: &[u8], operation: Operation) -> Result<Cow<'_, str>, String> {
    let no_json = |error| format!("the upstream's answer is not valid JSON: {error}");
    match operation {
        Operation::ChatCompletions => {
            let chat: Chat<'_> = serde_json::from_slice(body).map_err(no_json)?;
            let choice = chat.choices.into_iter().next().ok_or("the answer has no choices")?;
            if let Some(refusal) = choice.message.refusal {
                return Err(format!("the model refused: {refusal}"));
            }
            choice.message.content.ok_or_else(|| {
                let reason = choice.finish_reason.as_deref().unwrap_or("none given");
                format!("the answer has no text (finish_reason: {reason})")
            })
        }
        Operation::Responses => {
            let responses: Responses<'_> = serde_json::from_slice(body).map_err(no_json)?;
            let mut text = Cow::Borrowed("");
            for part in responses.output.into_iter().flat_map(|item| item.content) {
                if let Some(refusal) = part.refusal {
                    return Err(format!("the model refused: {refusal}"));
                }
                match part.text {
                    Some(part) if text.is_empty() => text = part,
                    Some(part) => text.to_mut().push_str(&part),
                    None => {}
                }
            }
            if text.is_empty() { Err("the answer has no text".into()) } else { Ok(text) }
        }
        Operation::Completions | Operation::Embeddings => {
            Err("only answers of chat and responses are checked".into())
        }
    }
}

#[derive(Deserialize)]
struct Chat<'a> {
    #[serde(borrow)]
    choices: Vec<Choice<'a>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    message: Message<'a>,
    #[serde(borrow, default)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    refusal: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Responses<'a> {
    #[serde(borrow, default)]
    output: Vec<Item<'a>>,
}

#[derive(Deserialize)]
struct Item<'a> {
    /// Only messages have parts with text; reasoning items have an empty or absent list.
    #[serde(borrow, default)]
    content: Vec<Part<'a>>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, default)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    refusal: Option<Cow<'a, str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = "\u{feff}{ \"title\": \"My answer\",\n \"type\": \"object\", \
        \"properties\": {\"b\": {\"type\": \"number\"}, \"a\": {\"type\": \"string\"}}, \
        \"required\": [\"b\"] }";

    fn schema(text: &str) -> Result<Schema, InputError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.json");
        fs::write(&path, text).unwrap();
        Schema::open(&path)
    }

    #[track_caller]
    fn check(content: &str, expected: &str) {
        let schema = schema(SCHEMA).unwrap();
        let text = serde_json::Value::from(content);
        let bodies = [
            (
                Operation::ChatCompletions,
                format!(r#"{{"choices":[{{"message":{{"content":{text}}}}}]}}"#),
            ),
            (
                Operation::Responses,
                format!(
                    r#"{{"output":[{{"type":"reasoning"}},{{"content":[{{"type":"output_text","text":{text}}}]}}]}}"#
                ),
            ),
        ];
        for (operation, body) in bodies {
            match schema.check(body.as_bytes(), operation) {
                Ok(()) => assert_eq!(expected, "ok"),
                Err(said) => assert!(said.contains(expected), "{said}"),
            }
        }
    }

    #[test]
    fn answers_are_checked() {
        check(r#"{"b":1}"#, "ok");
        check(r#"{"b":"1"}"#, "at /b");
        check(r#"{}"#, "its root");
        check("```json\n{\"b\":1}\n```", "not valid JSON");
        check("", "");
        let schema = schema(SCHEMA).unwrap();
        for (body, expected) in [
            (r#"{"choices":[]}"#, "no choices"),
            (r#"{"choices":[{"message":{"content":null},"finish_reason":"length"}]}"#, "length"),
            (r#"{"choices":[{"message":{"refusal":"no"}}]}"#, "refused: no"),
            ("<html>", "upstream's answer"),
        ] {
            let said = schema.check(body.as_bytes(), Operation::ChatCompletions).unwrap_err();
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn the_schema_goes_into_the_body_as_written() {
        let schema = schema(SCHEMA).unwrap();
        let (path, value) = schema.field(Operation::ChatCompletions).unwrap();
        assert_eq!(path, ["response_format"]);
        assert!(value.contains(r#""name":"My_answer","strict":true"#), "{value}");
        assert!(value.contains(r#""properties":{"b":{"type":"number"},"a""#), "{value}");
        assert_eq!(schema.field(Operation::Responses).unwrap().0, ["text", "format"]);
        assert!(schema.field(Operation::Embeddings).is_err());
    }

    #[test]
    fn bad_schemas_are_refused() {
        for (text, expected) in [
            ("{", "not valid JSON"),
            ("[]", "not a JSON object"),
            (r#"{"type":"objekt"}"#, "not a valid JSON Schema"),
            (r#"{"$ref":"https://example.com/x.json"}"#, "not a valid JSON Schema"),
        ] {
            let said = schema(text).unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        }
        assert!(Schema::open(Path::new("/nowhere/s.json")).is_err());
    }
}
