//! Tells a token from an event without one, at the price of a search.
//!
//! # Why
//!
//! The first event of a chat stream names a role and carries no text: taking it for the first
//! token would flatter the server by the whole prefill. Parsing every event would cost more than
//! all else a request does here. A key's quotes would be escaped inside a string, so a key found
//! is a key.

use memchr::memmem::Finder;
use tidegate_core::Operation;

/// Recognizes the events of one endpoint's streams.
pub(crate) struct Content {
    /// Keys whose non-empty string is part of an answer.
    keys: Vec<Finder<'static>>,
    complete: Vec<Finder<'static>>,
    failed: Option<Finder<'static>>,
}

impl Content {
    pub(crate) fn of(operation: Operation) -> Self {
        let finders =
            |words: &[&'static str]| words.iter().map(|word| Finder::new(*word)).collect();
        let (keys, complete, failed): (&[_], &[_], _) = match operation {
            Operation::ChatCompletions => (
                &["\"content\"", "\"reasoning_content\"", "\"reasoning\"", "\"arguments\""],
                &[],
                None,
            ),
            Operation::Completions => (&["\"text\""], &[], None),
            Operation::Embeddings => (&[], &[], None),
            Operation::Responses => (
                &["\"delta\""],
                &["\"response.completed\"", "\"response.incomplete\""],
                Some(Finder::new("\"response.failed\"")),
            ),
        };
        Self { keys: finders(keys), complete: finders(complete), failed }
    }

    /// Whether the event carries part of an answer.
    pub(crate) fn has_token(&self, event: &[u8]) -> bool {
        self.keys.iter().any(|key| {
            key.find_iter(event).any(|at| {
                let rest = event[at + key.needle().len()..].trim_ascii_start();
                let Some(value) = rest.strip_prefix(b":") else { return false };
                let value = value.trim_ascii_start();
                value.starts_with(b"\"") && !value.starts_with(b"\"\"")
            })
        })
    }

    /// Whether the event says that all has been said.
    pub(crate) fn is_complete(&self, event: &[u8]) -> bool {
        event == b"[DONE]" || self.complete.iter().any(|mark| mark.find(event).is_some())
    }

    /// Whether the event says that the answer failed.
    pub(crate) fn is_failed(&self, event: &[u8]) -> bool {
        self.failed.as_ref().is_some_and(|mark| mark.find(event).is_some())
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
            assert_eq!(chat.has_token(event.as_bytes()), is_token, "{event}");
        }
        assert!(chat.is_complete(b"[DONE]"));
    }

    #[test]
    fn other_endpoints() {
        assert!(Content::of(Operation::Completions).has_token(br#"{"choices":[{"text":"a"}]}"#));
        let responses = Content::of(Operation::Responses);
        assert!(responses.has_token(br#"{"type":"response.output_text.delta","delta":"a"}"#));
        assert!(!responses.has_token(br#"{"type":"response.created","response":{}}"#));
        assert!(responses.is_complete(br#"{"type":"response.completed","response":{}}"#));
        assert!(responses.is_failed(br#"{"type":"response.failed","response":{}}"#));
    }
}
