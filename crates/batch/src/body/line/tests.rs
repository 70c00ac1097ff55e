//! A line in, a body or what is wrong with it out.

use super::*;
use crate::{body::check as check_body, input::InputOptions};

/// What a line becomes: `operation id body`, or `column: message`.
fn made(options: &InputOptions, line: &str) -> String {
    let recipe = Recipe::new(options).unwrap();
    let prepared = recipe.line(line).and_then(|prepared| {
        check_body(Some(line), prepared.operation, &prepared.body)?;
        Ok(prepared)
    });
    match prepared {
        Ok(row) => {
            let id = row.custom_id.as_deref().unwrap_or("-");
            format!("{} {id} {}", row.operation.name(), row.body)
        }
        Err(fault) => {
            let column = fault.column.map_or("-".to_owned(), |column| column.to_string());
            format!("{column}: {}", fault.message)
        }
    }
}

#[track_caller]
fn check(options: &InputOptions, line: &str, expected: &str) {
    let got = made(options, line);
    assert!(got.starts_with(expected), "{line}\n{got}");
}

fn options() -> InputOptions {
    InputOptions { default_model: Some("d".into()), ..InputOptions::default() }
}

fn templated() -> InputOptions {
    InputOptions { prompt: Some("Say {{ text }}".into()), ..options() }
}

#[test]
fn the_three_shapes() {
    let o = &options();
    check(
        o,
        r#"{"custom_id":"r1","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"x","x":1.50}}"#,
        r#"embeddings r1 {"model":"m","input":"x","x":1.50}"#,
    );
    check(
        o,
        r#"  {"messages":[{"role":"user","content":"hi"}],"k":[1, 2]} "#,
        r#"chat - {"messages":[{"role":"user","content":"hi"}],"k":[1, 2],"model":"d"}"#,
    );
    check(
        &templated(),
        r#"{"text":"a\n\"b\"","custom_id":7}"#,
        r#"chat 7 {"model":"d","messages":[{"role":"user","content":"Say a\n\"b\""}]}"#,
    );
    check(o, r#"{"text":"x","id":1}"#, "-: the line is no request: it has no 'messages'");
}

#[test]
fn with_a_template_columns_may_be_called_anything() {
    let o = &templated();
    for line in [
        r#"{"text":"x","prompt":"p","input":"i"}"#,
        r#"{"text":"x","body":"an e-mail","url":"https://example.com"}"#,
        r#"{"text":"x","messages":"none"}"#,
    ] {
        check(o, line, r#"chat - {"model":"d","messages":[{"role":"user","content":"Say x"}]}"#);
    }
    check(o, r#"{"messages":[],"model":"m"}"#, r#"chat - {"messages":[],"model":"m"}"#);
    check(o, r#"{"txt":"x"}"#, "-: the template names column 'text'");
}

#[test]
fn a_bodys_operation() {
    let o = &options();
    check(o, r#"{"prompt":"x","model":"m"}"#, "text_completion - ");
    check(o, r#"{"input":"x"}"#, "-: a body with 'input' is for embeddings or responses");
    let embed = InputOptions { endpoint: Operation::Embeddings, ..options() };
    check(&embed, r#"{"input":"x","model":"m"}"#, "embeddings - ");
    check(&embed, r#"{"messages":[],"model":"m"}"#, "-: 'input' is missing");
    let responses = InputOptions { endpoint: Operation::Responses, ..options() };
    check(&responses, r#"{"input":[],"model":"m"}"#, "responses - ");
    check(o, r#"{"messages":"hi","model":"m"}"#, "13: 'messages' must be an array");
}

#[test]
fn the_model_of_a_body() {
    let line = r#"{"messages":[],"model":"own"}"#;
    check(&options(), line, r#"chat - {"messages":[],"model":"own"}"#);
    let told = InputOptions { model: Some("to\"ld".into()), ..options() };
    check(&told, line, r#"chat - {"messages":[],"model":"to\"ld"}"#);
    check(&told, r#"{"model":null,"messages":[]}"#, r#"chat - {"model":"to\"ld","messages":[]}"#);
    let none = InputOptions::default();
    check(&none, r#"{"messages":[]}"#, "-: no model is named");
    check(&none, r#"{"messages":[],"model":7}"#, "24: 'model' must be a string");
    check(&none, r#"{"messages":[],"model":""}"#, "24: the field `model` is empty");
    check(&none, r#"{"model":"a","messages":[],"model":"b"}"#, "36: 'model' stands twice");
}

#[test]
fn an_id_beside_a_body_is_ours_and_not_the_upstreams() {
    check(
        &options(),
        r#"{"custom_id":"r","messages":[],"model":"m"}"#,
        r#"chat r {"messages":[],"model":"m"}"#,
    );
    let long = format!(r#"{{"custom_id":"{}","messages":[],"model":"m"}}"#, "x".repeat(513));
    check(&options(), &long, "14: the custom_id is longer");
}

#[test]
fn set_and_schema_are_spliced() {
    let set = [("body.temperature", "0"), ("body.x.y", "warm"), ("body.seed", "\"1\"")];
    let set = set.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let o = InputOptions { set, ..templated() };
    check(
        &o,
        r#"{"temperature":1,"messages":[],"x":{"z":1.0}, "model":"m"}"#,
        r#"chat - {"temperature":0,"messages":[],"x":{"z":1.0,"y":"warm"}, "model":"m","seed":"1"}"#,
    );
    check(
        &o,
        r#"{"text":"t"}"#,
        r#"chat - {"model":"d","temperature":0,"x":{"y":"warm"},"seed":"1","messages":[{"role""#,
    );
    let dir = tempfile::tempdir().unwrap();
    let schema = dir.path().join("s.json");
    std::fs::write(&schema, r#"{"type": "object"}"#).unwrap();
    let o = InputOptions { schema: Some(schema), ..templated() };
    check(&o, r#"{"text":"t"}"#, r#"chat - {"model":"d","response_format":{"type":"json_schema""#);
    check(
        &o,
        r#"{"url":"/v1/embeddings","method":"POST","body":{"input":"x","model":"m"}}"#,
        "-: --schema does not go with /v1/embeddings",
    );
}

#[test]
fn bad_lines_name_their_column() {
    let o = &options();
    check(o, r#"{"messages":[],"model":"m","stream":true}"#, "37: 'stream' is true");
    check(o, r#"{"messages":[],"model":"m","max_tokens":"7"}"#, "41: the field `max_tokens`");
    check(
        o,
        r#"{"custom_id":"a","method":"GET","url":"/v1/embeddings","body":{}}"#,
        "27: `method`",
    );
    check(
        o,
        r#"{"method":"POST","url":"https://x/v1/embeddings","body":{}}"#,
        "24: `url` must be one of",
    );
    check(
        o,
        r#"{"method":"POST","url":"file:///etc/passwd","body":{}}"#,
        "24: `url` must be one of",
    );
    check(o, r#"{"custom_id":7,"url":"/v1/embeddings","body":{}}"#, "14: the field `custom_id`");
    check(
        o,
        r#"{"custom_id":"a","url":"/v1/chat/completions","body":{"model":"m"}}"#,
        "-: 'messages' is missing",
    );
    check(
        o,
        r#"{"custom_id":"a","url":"/v1/chat/completions","body":{"messages":[],"stream":true}}"#,
        "78: 'stream' is true",
    );
    check(o, r#"{"url":"/v1/embeddings","method":"POST"}"#, "-: the field `body` is missing");
    check(o, r#"{"messages":[}"#, "14: the line is not valid JSON");
    let recipe = Recipe::new(o).unwrap();
    let fault = recipe.line(r#"{"custom_id":"a7","messages":"x"}"#).unwrap_err();
    assert_eq!(fault.custom_id.as_deref(), Some("a7"));
}

#[test]
fn priorities_are_numbers() {
    let o = InputOptions { priority_column: Some("p".into()), ..templated() };
    let recipe = Recipe::new(&o).unwrap();
    let priority = |line: &str| recipe.line(line).map(|row| row.priority);
    assert_eq!(priority(r#"{"text":"x","p":2.5}"#), Ok(2.5));
    assert_eq!(priority(r#"{"text":"x","p":"-3"}"#), Ok(-3.0));
    assert_eq!(priority(r#"{"text":"x"}"#), Ok(0.0));
    assert_eq!(priority(r#"{"p":9,"messages":[]}"#), Ok(9.0));
    assert!(priority(r#"{"text":"x","p":"high"}"#).is_err());
    assert!(priority(r#"{"text":"x","p":"NaN"}"#).is_err());
}
