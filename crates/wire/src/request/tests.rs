//! A body in, what routing needs of it or what is wrong with it out.

use super::*;
use tidegate_core::Kind;

fn chat(body: &str) -> View {
    read(Operation::ChatCompletions, body.as_bytes()).unwrap()
}

fn refused(body: impl AsRef<[u8]>) -> (Option<&'static str>, String) {
    let error = read(Operation::ChatCompletions, body.as_ref()).unwrap_err();
    let expected = if error.param().is_some() { Kind::InvalidRequest } else { Kind::InvalidJson };
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
    for (newer, older) in [(1, 200), (200, 1)] {
        let body =
            format!(r#"{{"model":"m","max_completion_tokens":{newer},"max_tokens":{older}}}"#);
        assert_eq!(chat(&body).max_output, Some(200));
    }
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
    assert_eq!(estimate_of(Operation::ChatCompletions), TokenEstimate { input: 101, output: 300 });
    assert_eq!(estimate_of(Operation::Embeddings).output, 0);
}
