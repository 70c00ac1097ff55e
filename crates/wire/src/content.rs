//! Tells what an event of a stream carries: the first output, a piece of it, nothing but usage.
//!
//! # Why
//!
//! A chat stream opens with a role, one of responses with up to four events that say it will
//! begin. Servers send them before the model has run, and an error after them is still an error
//! before the answer. So a stream is held back until an event carries something generated.
//!
//! What is not known for an announcement counts as content: a dialect we have not met is passed on
//! as it comes rather than held.
//!
//! Where a stream is cut before its usage was told, what passed of it is counted: by the events
//! that carried a piece of the answer, which is a token's text in most servers.

mod filled;

use filled::{Delta, Filled};
use serde::{Deserialize, de::IgnoredAny};

/// Whether an event (its data) carries a piece of an answer, or its end.
///
/// | event | is content when |
/// |---|---|
/// | chat | a choice has a finish reason, or anything in its delta but `role` and `name` that is not empty: text, reasoning, refusal, tool calls, audio |
/// | completions | a choice has a finish reason or a text that is not empty |
/// | responses | all but `response.created`, `.queued`, `.in_progress`, `.content_part.added`, `.reasoning_summary_part.added`, `.output_item.added` of a message, and deltas that are empty |
/// | any | not for empty data, `{}`, `{"type":"ping"}` and `{"type":"keepalive"}` |
///
/// # Cost
///
/// One walk over the event, about 2 µs per KiB, that keeps nothing but a list of choices. It is
/// asked of held events only: of most streams, the first or the first two.
/// [`is_output`] is asked of all.
pub fn is_content(data: &[u8]) -> bool {
    if data.trim_ascii().is_empty() {
        return false;
    }
    let Ok(event) = serde_json::from_slice::<Event<'_>>(data) else { return true };
    match (event.choices, event.kind) {
        (Some(choices), _) => choices.iter().any(Choice::is_filled),
        (None, None) => serde_json::from_slice::<Filled>(data).is_ok_and(|all| all.0),
        (None, Some(kind)) => match kind {
            "ping"
            | "keepalive"
            | "response.created"
            | "response.queued"
            | "response.in_progress"
            | "response.content_part.added"
            | "response.reasoning_summary_part.added" => false,
            // A reasoning or tool item means that the model has begun; a message item, nothing yet.
            "response.output_item.added" => event.item.is_none_or(|item| item.kind != "message"),
            _ => event.delta.is_none_or(|delta| delta.0),
        },
    }
}

/// Whether an event (its data) carries a piece of an answer: what tokens are counted by.
///
/// | event | is output when |
/// |---|---|
/// | chat | a choice has anything in its delta but `role` and `name` that is not empty |
/// | completions | a choice has a text that is not empty |
/// | responses | its type ends in `.delta`, and its delta is not empty |
/// | any other | it is JSON with something in it |
///
/// A finish reason, a usage and a message repeated at its end are none.
///
/// # Cost
///
/// One search for the event of a text's token, one walk as [`is_content`]'s for any other.
pub fn is_output(data: &[u8]) -> bool {
    if begins_with_text(data) == Some(true) {
        return true;
    }
    let Ok(event) = serde_json::from_slice::<Event<'_>>(data) else { return false };
    match (event.choices, event.kind) {
        (Some(choices), _) => choices.iter().any(Choice::is_output),
        (None, Some(kind)) => kind.ends_with(".delta") && event.delta.is_some_and(|delta| delta.0),
        (None, None) => serde_json::from_slice::<Filled>(data).is_ok_and(|all| all.0),
    }
}

/// Whether the first choice begins with a text that is not empty, as most servers write it;
/// `None` when it begins otherwise.
fn begins_with_text(data: &[u8]) -> Option<bool> {
    const CHOICES: &[u8] = b"\"choices\":[{";
    // Responses repeat what they were told. In a string of the answer these quotes would be
    // escaped.
    if data.starts_with(b"{\"type\"") {
        return None;
    }
    let at = memchr::memmem::find(data, CHOICES)?;
    let mut choice = &data[at + CHOICES.len()..];
    if let Some(index) = choice.strip_prefix(b"\"index\":") {
        let digits = index.iter().take_while(|byte| byte.is_ascii_digit()).count();
        choice = index[digits..].strip_prefix(b",")?;
    }
    let text = choice
        .strip_prefix(b"\"delta\":{\"content\":\"")
        .or_else(|| choice.strip_prefix(b"\"text\":\""))?;
    text.first().map(|byte| *byte != b'"')
}

/// Whether an event (its data) is the one that only tells a stream's usage: without choices, and
/// with a usage that is not null.
pub fn is_usage_alone(data: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Last {
        choices: Vec<IgnoredAny>,
        usage: Filled,
    }
    serde_json::from_slice::<Last>(data).is_ok_and(|last| last.choices.is_empty() && last.usage.0)
}

/// An event of any operation, as far as it tells whether it carries output.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<&'a str>,
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(borrow, default)]
    item: Option<Item<'a>>,
    #[serde(default)]
    delta: Option<Filled>,
}

#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow, rename = "type")]
    kind: &'a str,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    /// Some servers send the message so far in each event.
    #[serde(default)]
    message: Delta,
    #[serde(default)]
    text: Filled,
    #[serde(default)]
    finish_reason: Filled,
}

impl Choice {
    const fn is_filled(&self) -> bool {
        self.is_output() || self.finish_reason.0
    }

    /// A message beside a finish reason repeats what was said.
    const fn is_output(&self) -> bool {
        self.delta.0 || self.text.0 || (self.message.0 && !self.finish_reason.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One event a line: `+` carries content, `-` does not.
    fn check(events: &str) {
        for line in events.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (mark, data) = line.split_at(1);
            assert_eq!(is_content(data.trim().as_bytes()), mark == "+", "{data}");
        }
    }

    /// One event a line: `+` is output, `-` is not.
    fn check_output(events: &str) {
        for line in events.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (mark, data) = line.split_at(1);
            assert_eq!(is_output(data.trim().as_bytes()), mark == "+", "{data}");
        }
    }

    #[test]
    fn output_is_what_tokens_are_counted_by() {
        check_output(
            r#"
            - {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}
            + {"id":"c","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}],"usage":null}
            + {"id":"c","choices":[{"delta":{"content":"\""}}]}
            + {"choices": [{"delta": {"content": "a"}}]}
            + {"id":"c","choices":[{"delta":{"content":""}},{"delta":{"content":"b"}}]}
            + {"id":"c","choices":[{"delta":{"reasoning_content":"hm"}}]}
            + {"id":"c","choices":[{"delta":{"tool_calls":[{"function":{"arguments":"{"}}]}}]}
            + {"id":"c","choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}
            + {"choices":[{"message":{"content":"so far"}}]}
            - {"choices":[{"delta":{},"message":{"content":"all of it"},"finish_reason":"stop"}]}
            - {"id":"c","choices":[{"delta":{},"finish_reason":"stop"}]}
            - {"id":"c","choices":[{"delta":{"content":""},"finish_reason":"length"}]}
            - {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}
            - {"id":"c","choices":[],"prompt_filter_results":[{"text":"x"}]}
            - [DONE]
            - {"id":"broken","choices":[{"index":0,"delta":{"content":
            + {"id":"c","object":"text_completion","choices":[{"text":"a","index":0}]}
            - {"id":"c","object":"text_completion","choices":[{"text":"","finish_reason":"stop"}]}
            + {"token":{"text":"a"}}
            - {}
            - {"type":"ping"}
            - {"type":"response.created","response":{"instructions":[{"text":"Be brief."}]}}
            - {"type":"response.output_item.added","item":{"type":"reasoning"}}
            + {"type":"response.output_text.delta","delta":"a"}
            - {"type":"response.output_text.delta","delta":""}
            + {"type":"response.function_call_arguments.delta","delta":"{"}
            - {"type":"response.output_text.done","text":"all of it"}
            - {"type":"response.content_part.done","part":{"type":"output_text","text":"all of it"}}
            - {"type":"response.completed","response":{"usage":{"output_tokens":2}}}
            "#,
        );
    }

    #[test]
    fn the_event_that_only_tells_usage() {
        for (data, is_it) in [
            (r#"{"id":"c","choices":[],"usage":{"prompt_tokens":3}}"#, true),
            (r#"{"usage": {"prompt_tokens": 3}, "choices": []}"#, true),
            (r#"{"choices":[],"usage":null}"#, false),
            (r#"{"choices":[]}"#, false),
            (r#"{"choices":null,"usage":{"prompt_tokens":3}}"#, false),
            (r#"{"choices":[{"delta":{}}],"usage":{"prompt_tokens":3}}"#, false),
            (r#"{"choices":[{"delta":{"content":"\"choices\":[]"}}],"usage":{"x":3}}"#, false),
            (r#"{"type":"response.completed","response":{"choices":[],"usage":{"x":3}}}"#, false),
            ("[DONE]", false),
        ] {
            assert_eq!(is_usage_alone(data.as_bytes()), is_it, "{data}");
        }
    }

    #[test]
    fn chat() {
        check(
            r#"
            - {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}
            - {"choices":[{"delta":{"role":"assistant","content":null,"reasoning_content":"","tool_calls":[],"refusal":null},"finish_reason":""}]}
            - {"choices":[{"delta":{"role":"assistant","name":"Tide"}}]}
            - {"choices":[{"delta":{}},{"index":1}]}
            - {"choices":[{"delta":null}]}
            - {"choices":[],"prompt_filter_results":[{"prompt_index":0}]}
            - {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":0}}
            + {"choices":[{"delta":{"content":"a"}}]}
            + {"choices":[{"delta":{"role":"assistant","content":" "}}]}
            + { "choices" : [ { "delta" : { "content" : "\n" } } ] }
            + {"choices":[{"delta":{"content":""}},{"delta":{"content":"b"}}]}
            + {"choices":[{"delta":{"content":null,"reasoning":"hm"}}]}
            + {"choices":[{"delta":{"reasoning_content":"hm"}}]}
            + {"choices":[{"delta":{"refusal":"no"}}]}
            + {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"t","function":{"name":"f","arguments":""}}]}}]}
            + {"choices":[{"delta":{"function_call":{"name":"f"}}}]}
            + {"choices":[{"delta":{"audio":{"id":"a"}}}]}
            + {"choices":[{"delta":{},"finish_reason":"stop"}]}
            + {"choices":[{"delta":{"role":"assistant","content":""},"message":{"role":"assistant","content":"a"}}]}
            + [DONE]
            "#,
        );
    }

    #[test]
    fn completions_and_embeddings() {
        check(
            r#"
            - {"object":"text_completion","choices":[{"index":0,"text":"","logprobs":null,"finish_reason":null}]}
            + {"object":"text_completion","choices":[{"index":0,"text":"a","logprobs":null,"finish_reason":null}]}
            + {"choices":[{"text":"","finish_reason":"length"}]}
            + {"object":"list","data":[{"embedding":[0.5]}]}
            "#,
        );
    }

    #[test]
    fn responses() {
        check(
            r#"
            - {"type":"response.created","sequence_number":0,"response":{"id":"r","instructions":[{"role":"developer","content":"Be brief."}],"output":[]}}
            - {"type":"response.queued","response":{}}
            - {"type":"response.in_progress","response":{"status":"in_progress"}}
            - {"type":"response.output_item.added","output_index":0,"item":{"id":"i","type":"message","status":"in_progress","content":[],"role":"assistant"}}
            - {"type":"response.content_part.added","part":{"type":"output_text","text":""}}
            - {"type":"response.reasoning_summary_part.added","part":{"type":"summary_text","text":""}}
            - {"type":"response.output_text.delta","delta":""}
            - {"type":"keepalive","sequence_number":3}
            + {"type":"response.output_text.delta","delta":"a"}
            + {"type":"response.output_text.delta","delta":"response.created"}
            + {"response":{"x":"response.created"},"delta":"a","type":"response.refusal.delta"}
            + {"type":"response.reasoning_text.delta","delta":"hm"}
            + {"type":"response.function_call_arguments.delta","delta":"{"}
            + {"type":"response.output_item.added","item":{"type":"reasoning","summary":[]}}
            + {"type":"response.output_item.added","item":{"type":"function_call","name":"f","arguments":""}}
            + {"type":"response.web_search_call.in_progress","item_id":"w"}
            + {"type":"response.completed","response":{"status":"completed"}}
            + {"type":"response.incomplete","response":{}}
            + {"type":"response.failed","response":{}}
            "#,
        );
    }

    #[test]
    fn what_says_nothing_is_held_and_what_is_unknown_is_not() {
        assert!(!is_content(b"") && !is_content(b" \n"));
        check(
            r#"
            - {}
            - []
            - {"choices":null}
            - {"type":"ping"}
            + hello
            + "a"
            + 1
            + {"token":{"text":"a"}}
            + {"choices":"a"}
            + {"choices":[{"delta":{}}],"choices":[]}
            + {"type":7}
            + {"type":"response.output_item.added"}
            + {"choices":[
            "#,
        );
    }
}
