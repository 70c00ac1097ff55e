use super::*;
use serde_json::{Value, json};

/// Tokens of `body`'s prompt for both vocabularies, GPT-4's first.
fn both(operation: Operation, body: &Value) -> [Option<u64>; 2] {
    ["gpt-4", "gpt-4o"].map(|model| of(model).unwrap()(operation, body.to_string().as_bytes()))
}

#[track_caller]
fn check(operation: Operation, body: &Value, expected: [u64; 2]) {
    assert_eq!(both(operation, body), expected.map(Some), "{body}");
}

fn text(text: &str, expected: [u64; 2]) {
    check(Operation::Embeddings, &json!({ "model": "m", "input": text }), expected);
}

/// The cookbook's examples: "How to count tokens with tiktoken", sections 3 and 5.
#[test]
fn texts_have_as_many_tokens_as_openai_says() {
    text("tiktoken is great!", [6, 6]);
    text("antidisestablishmentarianism", [6, 6]);
    text("2 + 2 = 4", [7, 7]);
    text("お誕生日おめでとう", [9, 8]);
    text("", [0, 0]);
    text("<|endoftext|>", [7, 7]);
    // Scaled up from its first 64 bytes, which are one token.
    text(&"-".repeat(1_024), [16, 16]);
}

/// The cookbook's example, section 6, with what OpenAI's API counted: 129 for gpt-3.5-turbo and
/// gpt-4, 124 for gpt-4o and gpt-4o-mini.
#[test]
fn messages_have_as_many_tokens_as_openai_counted() {
    let messages = json!([
        { "role": "system", "content": "You are a helpful, pattern-following assistant that translates corporate jargon into plain English." },
        { "role": "system", "name": "example_user", "content": "New synergies will help drive top-line growth." },
        { "role": "system", "name": "example_assistant", "content": "Things working well together will increase revenue." },
        { "role": "system", "name": "example_user", "content": "Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage." },
        { "role": "system", "name": "example_assistant", "content": "Let's talk later when we're less busy about how to do better." },
        { "role": "user", "content": "This late pivot means we don't have time to boil the ocean for the client deliverable." },
    ]);
    let whole = json!({ "model": "m", "messages": messages });
    check(Operation::ChatCompletions, &whole, [129, 124]);

    // The same in parts, escaped, and with what counts nothing.
    let mut parts = messages.as_array().unwrap().clone();
    for message in &mut parts {
        message["content"] = json!([{ "type": "text", "text": message["content"] }]);
        message["refusal"] = Value::Null;
    }
    let body = json!({ "messages": parts, "temperature": 0.5, "tools": null, "model": "m" });
    check(Operation::ChatCompletions, &body, [129, 124]);
    let escaped = whole.to_string().replace("circle", "\\u0063ircle").replace("role", "r\\u006fle");
    let counted = of("gpt-4o").unwrap()(Operation::ChatCompletions, escaped.as_bytes());
    assert_eq!(counted, Some(124));
    let body = json!({ "model": "m", "input": messages });
    check(Operation::Responses, &body, [129, 124]);
}

/// The cookbook's example, section 7: 105 and 101 by OpenAI's API.
#[test]
fn tools_are_counted_as_somewhat_more_than_they_are() {
    let body = json!({
        "model": "m",
        "messages": [
            { "role": "system", "content": "You are a helpful assistant that can answer to questions about the weather." },
            { "role": "user", "content": "What's the weather like in San Francisco?" },
        ],
        "tools": [{ "type": "function", "function": {
            "name": "get_current_weather",
            "description": "Get the current weather in a given location",
            "parameters": { "type": "object", "properties": {
                "location": { "type": "string", "description": "The city and state, e.g. San Francisco, CA" },
                "unit": { "type": "string", "description": "The unit of temperature to return", "enum": ["celsius", "fahrenheit"] },
            }, "required": ["location"] },
        }}],
    });
    let [gpt4, gpt4o] = both(Operation::ChatCompletions, &body).map(Option::unwrap);
    assert!((105..=135).contains(&gpt4) && (101..=135).contains(&gpt4o), "{gpt4} {gpt4o}");
}

#[test]
fn each_operation_has_its_own_shape() {
    let hello = json!({ "model": "m", "prompt": "hello", "input": "hello" });
    check(Operation::Completions, &hello, [1, 1]);
    check(Operation::Responses, &hello, [8, 8]);
    let many = json!({ "prompt": ["hello", "hello world"], "input": [[1, 2, 3], [4]] });
    check(Operation::Completions, &many, [3, 3]);
    check(Operation::Embeddings, &many, [4, 4]);
    let told =
        json!({ "instructions": "hello", "input": [{ "role": "user", "content": "hello" }] });
    check(Operation::Responses, &told, [13, 13]);
}

#[test]
fn what_is_no_text_is_taken_by_its_bytes() {
    let picture = json!({ "type": "image_url", "image_url": { "url": "data:;base64,AAAA" } });
    let bytes = picture.to_string().len().div_ceil(4) as u64;
    let content = json!([{ "type": "text", "text": "hello" }, picture]);
    let body = json!({ "messages": [{ "role": "user", "content": content }] });
    check(Operation::ChatCompletions, &body, [8 + bytes, 8 + bytes]);
}

#[test]
fn what_is_too_long_or_of_another_shape_is_not_counted() {
    let of_size = |bytes: usize| {
        let fixed = r#"{"input":""}"#.len();
        json!({ "input": "a".repeat(bytes - fixed) })
    };
    assert!(both(Operation::Embeddings, &of_size(MAX_BODY_BYTES))[0].is_some());
    assert_eq!(both(Operation::Embeddings, &of_size(MAX_BODY_BYTES + 1)), [None, None]);
    for body in [json!({ "model": "m" }), json!({ "messages": 7 }), json!([]), json!("hello")] {
        assert_eq!(both(Operation::ChatCompletions, &body), [None, None], "{body}");
    }
    // A message may be anything; the upstream judges it.
    check(Operation::ChatCompletions, &json!({ "messages": ["hello", null] }), [4, 4]);
}

#[test]
fn models_are_known_by_their_names() {
    let known = [
        ("gpt-4o-mini-2024-07-18", Vocabulary::O200k),
        ("openai/gpt-4.1-nano", Vocabulary::O200k),
        ("ft:gpt-4o-2024-08-06:us::id", Vocabulary::O200k),
        ("gpt-5", Vocabulary::O200k),
        ("gpt-5.1-codex", Vocabulary::O200k),
        ("o3-pro", Vocabulary::O200k),
        ("gpt-4", Vocabulary::Cl100k),
        ("gpt-4-turbo", Vocabulary::Cl100k),
        ("ft:gpt-3.5-turbo", Vocabulary::Cl100k),
        ("text-embedding-3-large", Vocabulary::Cl100k),
    ];
    for (model, expected) in known {
        assert_eq!(vocabulary(model), Some(expected), "{model}");
    }
    for model in ["qwen3-8b", "gpt-4.9", "gpt-45", "gpt-oss-20b", "o1x", "o4", "gpt-6", "", "/"] {
        assert_eq!(vocabulary(model), None, "{model}");
    }
}
