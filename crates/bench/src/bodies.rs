//! What is sent: bodies made once, before the run.

use bytes::Bytes;
use serde_json::{Map, Value, json};
use std::io::{BufRead, Write};
use tidegate_core::Operation;

/// Most bytes of a file of prompts.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Stands for the request's number in a prompt.
const NUMBER: &str = "{{number}}";

/// Bodies, sent in turn.
#[derive(Clone, Debug)]
pub struct Bodies(pub(crate) Vec<Pieces>);

/// A body cut where the request's number goes; one piece when it goes nowhere.
#[derive(Clone, Debug)]
pub(crate) struct Pieces(Vec<Bytes>);

/// What every body has in common.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The endpoint, whose words are used.
    pub operation: Operation,
    /// Model where a body names none.
    pub model: String,
    /// Whether `model` replaces the one a body names.
    pub overrides_model: bool,
    /// Most tokens of an answer; the server's own bound by default.
    pub max_tokens: Option<u32>,
    /// Whether to ask for a stream of events, usage included.
    pub stream: bool,
}

impl Bodies {
    /// One prompt for all requests. `{{number}}` in it becomes the request's number, so that no
    /// cache answers.
    pub fn prompt(text: &str, shape: &Shape) -> Self {
        Self(vec![Pieces::cut(&shape.body_of(text))])
    }

    /// One line, one body: a JSON string (a prompt), `{"prompt": …}`, a request's body, or a
    /// line of OpenAI's batch format.
    ///
    /// # Errors
    ///
    /// Names the line and what is wrong with it; a file is at most 1 GiB.
    pub fn read(lines: impl BufRead, shape: &Shape) -> Result<Self, String> {
        let mut bodies = Vec::new();
        let mut bytes = 0;
        for (at, line) in lines.take(MAX_FILE_BYTES + 1).lines().enumerate() {
            let at = at + 1;
            let line = line.map_err(|error| format!("line {at} cannot be read: {error}"))?;
            bytes += line.len() as u64 + 1;
            if bytes > MAX_FILE_BYTES {
                return Err("it is longer than 1 GiB; give a part of it".into());
            }
            let line = line.trim_start_matches('\u{feff}').trim();
            if line.is_empty() {
                continue;
            }
            let value = serde_json::from_str(line)
                .map_err(|error| format!("line {at} is not JSON: {error}"))?;
            let body = shape.body_from(value).map_err(|why| format!("line {at} {why}"))?;
            bodies.push(Pieces::cut(&body));
        }
        if bodies.is_empty() {
            return Err("it has no line with a prompt".into());
        }
        Ok(Self(bodies))
    }

    /// How many different ones there are.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none, which no constructor lets happen.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Pieces {
    fn cut(body: &Map<String, Value>) -> Self {
        let text = serde_json::to_string(body).expect("JSON can be written");
        Self(text.split(NUMBER).map(|piece| Bytes::copy_from_slice(piece.as_bytes())).collect())
    }

    /// The body, when the number is not in it.
    pub(crate) fn whole(&self) -> Option<&Bytes> {
        match &self.0[..] {
            [whole] => Some(whole),
            _ => None,
        }
    }

    /// Length of the body of request `number`.
    pub(crate) fn len(&self, number: u64) -> usize {
        let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
        self.0.iter().map(Bytes::len).sum::<usize>() + digits * (self.0.len() - 1)
    }

    /// Appends the body of request `number`.
    pub(crate) fn write(&self, number: u64, into: &mut Vec<u8>) {
        for (at, piece) in self.0.iter().enumerate() {
            if at > 0 {
                // Writing to a vector cannot fail.
                let _ = write!(into, "{number}");
            }
            into.extend_from_slice(piece);
        }
    }
}

impl Shape {
    fn body_of(&self, prompt: &str) -> Map<String, Value> {
        let body = match self.operation {
            Operation::ChatCompletions => {
                json!({"messages": [{"role": "user", "content": prompt}]})
            }
            Operation::Completions => json!({"prompt": prompt}),
            Operation::Embeddings | Operation::Responses => json!({"input": prompt}),
        };
        let Value::Object(body) = body else { unreachable!("all of them are objects") };
        self.finished(body)
    }

    fn body_from(&self, value: Value) -> Result<Map<String, Value>, String> {
        let mut object = match value {
            Value::String(prompt) => return Ok(self.body_of(&prompt)),
            Value::Object(object) => object,
            _ => return Err("is neither a string nor an object".into()),
        };
        if let Some(Value::Object(body)) = object.get_mut("body") {
            object = std::mem::take(body);
        }
        let input = match self.operation {
            Operation::ChatCompletions => "messages",
            Operation::Completions => "prompt",
            Operation::Embeddings | Operation::Responses => "input",
        };
        if object.contains_key(input) {
            return Ok(self.finished(object));
        }
        match object.get("prompt") {
            Some(Value::String(prompt)) => Ok(self.body_of(prompt)),
            _ => Err(format!("has neither `{input}` nor `prompt`")),
        }
    }

    fn finished(&self, mut body: Map<String, Value>) -> Map<String, Value> {
        if self.overrides_model || !body.contains_key("model") {
            body.insert("model".into(), self.model.as_str().into());
        }
        if self.operation == Operation::Embeddings {
            return body;
        }
        if let Some(max_tokens) = self.max_tokens {
            let name = match self.operation {
                Operation::Responses => "max_output_tokens",
                _ => "max_tokens",
            };
            body.insert(name.into(), max_tokens.into());
        }
        body.remove("stream");
        if self.stream {
            body.insert("stream".into(), true.into());
            // A body's own options stand: a server that knows none must not be asked.
            if self.operation != Operation::Responses && !body.contains_key("stream_options") {
                body.insert("stream_options".into(), json!({"include_usage": true}));
            }
        } else {
            body.remove("stream_options");
        }
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(operation: Operation) -> Shape {
        Shape {
            operation,
            model: "m".into(),
            overrides_model: false,
            max_tokens: Some(8),
            stream: true,
        }
    }

    fn check(operation: Operation, line: &str, expected: Value) {
        let bodies = Bodies::read(line.as_bytes(), &shape(operation)).unwrap();
        assert_eq!(body(&bodies, 0), expected, "{line}");
    }

    fn body(bodies: &Bodies, number: u64) -> Value {
        let mut body = Vec::new();
        bodies.0[0].write(number, &mut body);
        assert_eq!(body.len(), bodies.0[0].len(number));
        serde_json::from_slice(&body).unwrap()
    }

    #[test]
    fn lines_of_every_form() {
        let chat = Operation::ChatCompletions;
        let full = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 8, "stream": true, "stream_options": {"include_usage": true}});
        check(chat, r#""hi""#, full.clone());
        check(chat, r#"{"prompt":"hi"}"#, full.clone());
        check(chat, r#"{"messages":[{"role":"user","content":"hi"}],"stream":false}"#, full);
        let mut own = json!({"model": "mine", "messages": [], "top_k": 3, "max_tokens": 8,
            "stream": true, "stream_options": {"include_usage": true}});
        let line = r#"{"custom_id":"a","body":{"model":"mine","messages":[],"top_k":3}}"#;
        check(chat, line, own.clone());
        own["model"] = "m".into();
        let shape = Shape { overrides_model: true, ..shape(chat) };
        let bodies = Bodies::read(line.as_bytes(), &shape).unwrap();
        assert_eq!(body(&bodies, 0), own);
        own["model"] = "mine".into();
        own["stream_options"] = json!({"include_usage": false});
        check(chat, &own.to_string(), own);
        check(Operation::Embeddings, r#""hi""#, json!({"model": "m", "input": "hi"}));
        let responses =
            json!({"model": "m", "input": "hi", "max_output_tokens": 8, "stream": true});
        check(Operation::Responses, r#""hi""#, responses);
    }

    #[test]
    fn a_bad_line_is_named() {
        let read = |text: &str| Bodies::read(text.as_bytes(), &shape(Operation::Completions));
        for (text, says) in [
            ("\"a\"\n{", "line 2 is not JSON"),
            ("\n\n7", "line 3 is neither"),
            (r#"{"messages":[]}"#, "line 1 has neither `prompt`"),
            ("\n", "no line"),
        ] {
            assert!(read(text).unwrap_err().contains(says), "{text}");
        }
    }

    #[test]
    fn numbers_make_bodies_differ() {
        let shape = Shape { stream: false, ..shape(Operation::Completions) };
        let bodies = Bodies::prompt("{{number}} and {{number}}", &shape);
        for number in [0, 9, 10, 42, 1000] {
            assert_eq!(body(&bodies, number)["prompt"], format!("{number} and {number}"));
        }
        assert!(bodies.0[0].whole().is_none());
        assert!(Bodies::prompt("plain", &shape).0[0].whole().is_some());
    }
}
