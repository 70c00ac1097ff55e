//! Readers fed with noise: whatever the bytes, no panic, and cuts make no difference.

use bytes::Bytes;
use proptest::prelude::*;
use std::time::SystemTime;
use tidegate_core::Operation;
use tidegate_wire::{
    batch_line, classify, content, error_body, json, rate_limits, request, retry_after,
    sieve::Sieve, sse::Scanner, usage,
};

/// Bytes that are often nearly right.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"",
        "\\",
        "\\u00",
        "null",
        "true",
        "-",
        "1e999",
        "0",
        " ",
        "\n",
        "\r",
        "\u{feff}",
        "ü",
        "\"model\"",
        "\"m\"",
        "\"stream\"",
        "\"usage\"",
        "\"error\"",
        "\"prompt_tokens\"",
        "\"code\"",
        "\"message\"",
        "\"type\"",
        "\"choices\"",
        "\"delta\"",
        "\"response.failed\"",
        "\"url\"",
        "\"body\"",
        "data:",
        "data: ",
        "event: x",
        "[DONE]",
        "/v1/embeddings",
    ]);
    let piece = prop_oneof![
        9 => pieces.prop_map(|piece| piece.as_bytes().to_vec()),
        1 => any::<u8>().prop_map(|byte| vec![byte]),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

fn events(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut scanner = Scanner::default();
    let mut events = Vec::new();
    for chunk in chunks {
        scanner.push(chunk, |data| events.push(data.to_vec())).expect("short events are allowed");
    }
    scanner.finish(|data| events.push(data.to_vec()));
    events
}

/// What passes of a stream without its events that have a colon in them.
fn sieved(chunks: &[&[u8]]) -> Vec<u8> {
    let passes = |data: &[u8]| !data.contains(&b':');
    let mut sieve = Sieve::default();
    let mut passed = Vec::new();
    for chunk in chunks {
        let chunk = Bytes::copy_from_slice(chunk);
        passed.extend_from_slice(&sieve.push(chunk, passes).expect("short events are allowed"));
    }
    passed.extend_from_slice(&sieve.finish(passes));
    passed
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in noise()) {
        for operation in Operation::ALL {
            if let Ok(view) = request::read(operation, &bytes) {
                prop_assert!(json::is_valid(&bytes));
                let quoted = &bytes[view.model_span.clone()];
                let name: String = serde_json::from_slice(quoted).expect("the span is a string");
                prop_assert_eq!(&*name, &*view.model);
                if let Some(opening) = view.opening {
                    let asking = [b"{\"x\":1,", &bytes[opening..]].concat();
                    prop_assert!(json::is_valid(&asking));
                }
            }
        }
        if let Ok(line) = batch_line::read(&bytes) {
            prop_assert!(json::is_valid(&bytes[line.body]));
        }
        usage::read(&bytes);
        classify::error_event(&bytes);
        classify::failed_response(&bytes);
        content::is_content(&bytes);
        content::is_output(&bytes);
        content::is_usage_alone(&bytes);
        let body = Bytes::from(bytes);
        for status in [400, 429, 500] {
            let error = classify::refusal(status, |_| None, body.clone(), SystemTime::UNIX_EPOCH);
            prop_assert!(json::is_valid(&error_body::encode(&error)));
            let event = error_body::event(&error);
            prop_assert_eq!(events(&[&event]).len(), 1);
        }
    }

    #[test]
    fn no_header_makes_a_reader_panic(value in "[-+0-9a-zA-Zµ.: ,]{0,24}") {
        retry_after::read(|_| Some(&value), SystemTime::UNIX_EPOCH);
        rate_limits::read(|_| Some(&value));
    }

    #[test]
    fn cuts_make_no_difference(bytes in noise(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.sort_unstable();
        let mut chunks = Vec::new();
        let mut from = 0;
        for cut in cuts {
            chunks.push(&bytes[from..cut]);
            from = cut;
        }
        chunks.push(&bytes[from..]);
        prop_assert_eq!(events(&chunks), events(&[&bytes]));
        let passed = sieved(&chunks);
        prop_assert_eq!(&passed, &sieved(&[&bytes]));
        let mut kept = events(&[&bytes]);
        kept.retain(|data| !data.contains(&b':'));
        prop_assert_eq!(events(&[&passed]), kept);
    }

    #[test]
    fn lines_stay_lines(text in any::<String>()) {
        let pretty = serde_json::to_vec_pretty(&serde_json::json!({ "a": [text] })).expect("plain");
        let mut out = Vec::new();
        batch_line::push_on_one_line(&mut out, &pretty);
        prop_assert!(!out.contains(&b'\n') && !out.contains(&b'\r'));
        let parse = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).expect("JSON");
        prop_assert_eq!(parse(&out), parse(&pretty));
    }
}
