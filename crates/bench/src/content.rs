//! What an answer, or an event of a stream, is to one endpoint.
//!
//! # Why
//!
//! The first event of a chat stream names a role and carries no text: taking it for the first
//! token would flatter the server by the whole prefill.

use crate::json::{self, Facts};
use tidegate_core::Operation;

/// Recognizes the events of one endpoint's streams.
pub(crate) struct Content {
    /// Keys whose non-empty string is part of an answer.
    keys: &'static [&'static [u8]],
}

/// What an event means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// All has been said, and this of it.
    Complete(Facts<'a>),
    /// Some of an answer, or of what is about it.
    Part(Facts<'a>),
    /// The answer failed.
    Failed(Facts<'a>),
    /// It is not JSON.
    Odd,
}

impl Content {
    pub(crate) const fn of(operation: Operation) -> Self {
        let keys: &[&[u8]] = match operation {
            Operation::ChatCompletions => {
                &[b"content", b"reasoning_content", b"reasoning", b"arguments"]
            }
            Operation::Completions => &[b"text"],
            Operation::Embeddings => &[],
            Operation::Responses => &[b"delta"],
        };
        Self { keys }
    }

    /// Judges an event of a stream by its data.
    pub(crate) fn event<'a>(&self, data: &'a [u8]) -> Event<'a> {
        if data == b"[DONE]" {
            return Event::Complete(Facts::default());
        }
        match json::read(data, self.keys) {
            Some(facts) if data.starts_with(b"{") => match facts.kind {
                b"response.completed" | b"response.incomplete" => Event::Complete(facts),
                b"response.failed" => Event::Failed(facts),
                _ if facts.is_error => Event::Failed(facts),
                _ => Event::Part(facts),
            },
            _ => Event::Odd,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_no_token() {
        let chat = Content::of(Operation::ChatCompletions);
        for (event, is_token) in [
            (r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, false),
            (r#"{"choices":[{"delta":{"role":"assistant","content":null}}]}"#, false),
            (r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#, false),
            (r#"{"choices":[],"usage":{"prompt_tokens":1}}"#, false),
            (r#"{"choices":[{"delta":{"content":"a"}}]}"#, true),
            (r#"{"choices":[{"delta":{"content": " "}}]}"#, true),
            (r#"{"choices":[{"delta":{"content":"","reasoning_content":"hm"}}]}"#, true),
            (r#"{"choices":[{"delta":{"content":""}},{"delta":{"content":"b"}}]}"#, true),
            (r#"{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"{"}}]}}]}"#, true),
            (r#"{"id":"\"content\":\"x\"","choices":[]}"#, false),
        ] {
            let Event::Part(facts) = chat.event(event.as_bytes()) else { panic!("{event}") };
            assert_eq!(facts.has_token, is_token, "{event}");
        }
        assert!(matches!(chat.event(b"[DONE]"), Event::Complete(_)));
        assert!(matches!(chat.event(br#"{"error":{"message":"no"}}"#), Event::Failed(_)));
        for odd in ["{", "\"text\"", "[1]", "", r#"{"choices":[nope]}"#] {
            assert_eq!(chat.event(odd.as_bytes()), Event::Odd, "{odd}");
        }
    }

    #[test]
    fn other_endpoints() {
        let text = Content::of(Operation::Completions);
        let facts = |event| match event {
            Event::Part(facts) | Event::Complete(facts) => facts,
            other => panic!("{other:?}"),
        };
        assert!(facts(text.event(br#"{"choices":[{"text":"a"}]}"#)).has_token);
        let responses = Content::of(Operation::Responses);
        let delta = br#"{"type":"response.output_text.delta","delta":"a"}"#;
        assert!(facts(responses.event(delta)).has_token);
        assert!(!facts(responses.event(br#"{"type":"response.created","response":{}}"#)).has_token);
        let completed =
            br#"{"type":"response.completed","response":{"usage":{"output_tokens":2}}}"#;
        let Event::Complete(facts) = responses.event(completed) else { panic!("complete") };
        assert_eq!(facts.usage.unwrap().output, 2);
        let failed = br#"{"type":"response.failed","response":{}}"#;
        assert!(matches!(responses.event(failed), Event::Failed(_)));
    }
}
