//! Streams: passed on as they come, and never ended cleanly when they failed.

use crate::stub::{Act, BODY, Said, Stub, exchange, memory, post, read_until, reply};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use std::sync::{Arc, Mutex};
use tidegate_core::{Body, ContentType, Error, Kind, Origin, Result};
use tidegate_http::Options;
use tokio::{io::AsyncWriteExt as _, sync::mpsc};

const CHAT: &str = "/v1/chat/completions";

/// A stub whose stream is fed by the test.
fn fed(content_type: ContentType) -> (Arc<Stub>, mpsc::Sender<Result<Bytes>>) {
    let (feed, chunks) = mpsc::channel(8);
    let chunks = Mutex::new(Some(chunks));
    let stub = Stub::new(move |_, ended| {
        let mut chunks = chunks.lock().unwrap().take().expect("one call");
        let body = Body::stream(stream::poll_fn(move |cx| chunks.poll_recv(cx)));
        Act::Reply(reply(content_type.clone(), body.holding(Box::new(ended))))
    });
    (stub, feed)
}

fn broken() -> Error {
    Error::new(Kind::Upstream, Origin::Upstream, "the upstream broke off")
}

#[tokio::test(start_paused = true)]
async fn events_are_passed_on_as_they_come() {
    let (stub, feed) = fed(ContentType::EventStream);
    let (mut io, _stop) = memory(&stub, Options::default());
    io.write_all(post(CHAT, "", BODY).as_bytes()).await.unwrap();
    for text in ["data: 1\n\n", "data: 2\n\n", "data: [DONE]\n\n"] {
        // Each is read before the next is fed: nothing waits for more.
        feed.send(Ok(text.into())).await.unwrap();
        let said = read_until(&mut io, text).await;
        if text.contains('1') {
            let said = Said::parse(&said);
            assert_eq!(said.header("content-type"), Some("text/event-stream"));
            assert_eq!(said.header("cache-control"), Some("no-cache"));
            assert_eq!(said.header("x-accel-buffering"), Some("no"));
            assert_eq!(said.header("x-tidegate-upstream"), Some("up"));
            assert_eq!(said.header("content-length"), None);
        }
    }
    drop(feed);
    read_until(&mut io, "0\r\n\r\n").await;
    Stub::wait(&stub.ended, 1).await;
    // The connection can be used again.
    io.write_all(b"GET /livez HTTP/1.1\r\nHost: gate\r\n\r\n").await.unwrap();
    read_until(&mut io, "live").await;
}

/// What a caller reads of a stream of `chunks`, then an error.
async fn broken_stream(content_type: ContentType, chunks: &'static [&'static str]) -> Said {
    let stub = Stub::new(move |_, ended| {
        let good = chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk.as_bytes())));
        let body = Body::stream(stream::iter(good).chain(stream::iter([Err(broken())])));
        Act::Reply(reply(content_type.clone(), body.holding(Box::new(ended))))
    });
    let started = tokio::time::Instant::now();
    let said = exchange(&stub, post(CHAT, "", BODY)).await;
    assert!(started.elapsed().is_zero(), "closed at once, not when a timer ran out");
    Stub::wait(&stub.ended, 1).await;
    said
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_says_so_and_is_cut() {
    let event = "data: {\"error\":{\"message\":\"the upstream broke off\"";
    let said = broken_stream(ContentType::EventStream, &["data: 1\n\n"]).await;
    assert_eq!(said.status, 200);
    assert!(said.body.contains(event), "{}", said.body);
    assert!(!said.body.contains("[DONE]") && !said.body.ends_with("0\r\n\r\n"), "{}", said.body);

    // Broken inside an event: ours must not become part of it.
    let said = broken_stream(ContentType::EventStream, &["data: 1\n\nda", "ta: {\"x"]).await;
    assert!(said.body.contains(&format!("\n\n{event}")), "{}", said.body);

    // A body that is no stream of events has no place for one.
    let said = broken_stream(ContentType::Json, &["{\"half\":"]).await;
    assert!(!said.body.contains("error") && !said.body.ends_with("0\r\n\r\n"), "{}", said.body);
}

#[tokio::test(start_paused = true)]
async fn the_error_event_of_a_full_connection_still_leaves() {
    let stub = Stub::new(|_, ended| {
        let chunk = Bytes::from(vec![b'x'; 100 << 10]);
        let parts = [Ok(chunk.clone()), Ok(chunk.clone()), Ok(chunk), Err(broken())];
        let body = Body::stream(stream::iter(parts)).holding(Box::new(ended));
        Act::Reply(reply(ContentType::EventStream, body))
    });
    let (mut io, _stop) = memory(&stub, Options::default());
    io.write_all(post(CHAT, "", BODY).as_bytes()).await.unwrap();
    Stub::wait(&stub.begun, 1).await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let said = crate::stub::read_all(&mut io).await;
    assert!(said.contains("\n\ndata: {\"error\""));
    assert!(said.len() > 300 << 10);
}
