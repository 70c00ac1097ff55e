//! Servers that speak HTTP in ways of their own.

use super::*;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":5}}"#;

/// What a server does after an answer.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// Waits for the next request.
    Stays,
    /// Closes the connection.
    Goes,
}

/// Twenty requests by one worker to a server that answers each with these bytes; the report, and
/// how many connections it took.
async fn answered_with(answer: String, then: Then, stream: bool) -> (Report, u64) {
    let connections = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&connections);
    let target = Target::local(move || {
        let (near, far) = tokio::io::duplex(64 * 1024);
        counter.fetch_add(1, Relaxed);
        tokio::spawn(serve(far, answer.clone(), then));
        near
    });
    let options = Options { requests: Some(20), ..options(target, closed(1), stream) };
    let report = ran(options).await;
    (report, connections.load(Relaxed))
}

async fn serve(mut socket: DuplexStream, answer: String, then: Then) {
    let mut request = vec![0; 64 * 1024];
    while let Ok(1..) = socket.read(&mut request).await {
        if socket.write_all(answer.as_bytes()).await.is_err() || then == Then::Goes {
            return;
        }
    }
}

fn json(head: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{head}content-length: {}\r\n\r\n{body}", body.len())
}

fn events(events: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n{events}")
}

#[tokio::test(start_paused = true)]
async fn answers_end_in_many_ways() {
    let chunked = format!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n",
        &USAGE[..5],
        USAGE.len() - 5,
        &USAGE[5..]
    );
    let big =
        format!("{}{}", &USAGE[..USAGE.len() - 1], ",\"pad\":\"") + &"x".repeat(300_000) + "\"}";
    for (name, answer, then, connections) in [
        ("length", json("", USAGE), Then::Stays, 1),
        ("chunks", chunked, Then::Stays, 1),
        ("large", json("", &big), Then::Stays, 1),
        ("interim", format!("HTTP/1.1 100 Go\r\n\r\n{}", json("", USAGE)), Then::Stays, 1),
        ("close", json("connection: close\r\n", USAGE), Then::Goes, 20),
        ("close, unsaid", json("", USAGE), Then::Goes, 20),
        ("end", format!("HTTP/1.1 200 OK\r\n\r\n{USAGE}"), Then::Goes, 20),
        ("old", json("", USAGE).replace("HTTP/1.1", "HTTP/1.0"), Then::Goes, 20),
    ] {
        let (report, opened) = answered_with(answer, then, false).await;
        assert_eq!((report.requests.ok, opened), (20, connections), "{name}: {:?}", report.samples);
        assert_eq!((report.tokens.input, report.tokens.output), (40, 100), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_answer_is_invalid() {
    let error = json("", r#"{"error":{"message":"out of GPUs"}}"#);
    for (answer, says) in [
        (error, "status 200: out of GPUs"),
        (json("", "<html>"), "not JSON"),
        ("SSH-2.0-x\r\n".into(), "not HTTP"),
        (format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(70_000)), "64 KiB"),
        ("HTTP/1.1 301 Moved\r\ncontent-length: 0\r\n\r\n".into(), "status 301"),
    ] {
        let (report, _) = answered_with(answer, Then::Stays, false).await;
        assert_eq!(count(&report, "invalid"), 20, "{says}: {:?}", report.samples);
        assert!(report.samples[0].message.contains(says), "{:?}", report.samples);
    }
}

#[tokio::test(start_paused = true)]
async fn streams_without_usage_are_counted_by_event() {
    let text =
        |text: &str| format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}");
    for (end, ok) in [("data: [DONE]\r\n\r\n", 20), ("", 0)] {
        let stream = format!(": hello\n\n{}\r\n\r\n{}\r\r{end}", text("a"), text("b"));
        let (report, _) = answered_with(events(&stream), Then::Goes, true).await;
        assert_eq!(report.requests.ok, ok, "{:?}", report.samples);
        assert_eq!((report.tokens.output, report.tokens.answers_without_usage), (40, ok));
        assert!(ok == 0 || report.to_text().contains("counted by events"));
    }
}
