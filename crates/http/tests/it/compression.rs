//! Compressed answers and compressed bodies.

use crate::stub::{Act, BODY, KEY, Said, Stub, memory, post, read_all, reply};
use async_compression::{
    Level,
    tokio::bufread::{
        BrotliDecoder, BrotliEncoder, GzipDecoder, GzipEncoder, ZstdDecoder, ZstdEncoder,
    },
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Request,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::sync::Arc;
use tidegate_core::{Body, ContentType, Error, Kind, Origin};
use tidegate_http::{Compression, Options};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Notify,
};

const CHAT: &str = "/v1/chat/completions";
const ALL: [&str; 3] = ["zstd", "br", "gzip"];

/// A JSON text of at least `length` bytes.
fn answer(length: usize) -> Bytes {
    let numbers: Vec<u32> = (0..).take(length / 4 + 1).map(|n: u32| n.wrapping_mul(77)).collect();
    serde_json::to_vec(&numbers).unwrap().into()
}

/// Answers with `length` bytes of JSON, whole.
fn whole(length: usize) -> Arc<Stub> {
    let bytes = answer(length);
    Stub::new(move |_, ended| {
        let body = Body::whole(bytes.clone()).holding(Box::new(ended));
        Act::Reply(reply(ContentType::Json, body))
    })
}

async fn packed(plain: &[u8], coding: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    match coding {
        "zstd" => ZstdEncoder::with_quality(plain, Level::Fastest).read_to_end(&mut bytes).await,
        "br" => BrotliEncoder::with_quality(plain, Level::Fastest).read_to_end(&mut bytes).await,
        "gzip" => GzipEncoder::with_quality(plain, Level::Fastest).read_to_end(&mut bytes).await,
        other => panic!("{other}"),
    }
    .unwrap();
    bytes
}

async fn unpacked(packed: &[u8], coding: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    match coding {
        "zstd" => ZstdDecoder::new(packed).read_to_end(&mut bytes).await,
        "br" => BrotliDecoder::new(packed).read_to_end(&mut bytes).await,
        "gzip" => GzipDecoder::new(packed).read_to_end(&mut bytes).await,
        "" => return packed.to_vec(),
        other => panic!("{other}"),
    }
    .unwrap();
    bytes
}

/// One request with the good key over a connection of its own; status, headers, body as sent.
async fn ask(
    stub: &Arc<Stub>,
    options: Options,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> (u16, HeaderMap, Bytes) {
    let (io, _stop) = memory(stub, options);
    let (mut send, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path);
    request = request.header("host", "gate").header("x-api-key", KEY);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body.into())).unwrap();
    let (parts, body) = send.send_request(request).await.unwrap().into_parts();
    (parts.status.as_u16(), parts.headers, body.collect().await.unwrap().to_bytes())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn an_answer_is_compressed_as_its_caller_likes() {
    let stub = whole(64 << 10);
    for (accepted, coding) in [
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip, deflate, br", "br"),
        ("gzip, deflate", "gzip"),
        ("gzip;q=1.0, zstd;q=0.5", "gzip"),
        ("gzip, identity;q=0", "gzip"),
        ("*", "zstd"),
        ("identity", ""),
        ("gzip;q=0", ""),
        ("deflate", ""),
        ("", ""),
    ] {
        let headers = [("accept-encoding", accepted)];
        let (status, headers, body) =
            ask(&stub, Options::default(), ("POST", CHAT), &headers, BODY).await;
        assert_eq!((status, text(&headers, "content-encoding")), (200, coding), "{accepted}");
        assert_eq!(text(&headers, "vary"), "accept-encoding", "{accepted}");
        assert_eq!(text(&headers, "content-type"), "application/json");
        let is_plain = coding.is_empty();
        assert_eq!(headers.contains_key("content-length"), is_plain, "{accepted}");
        assert!(is_plain || body.len() < answer(64 << 10).len() / 2, "{accepted} {}", body.len());
        assert!(unpacked(&body, coding).await == answer(64 << 10), "{accepted}");
        // The whole answer was sent, and so the call is over.
        Stub::wait(&stub.ended, 1).await;
    }
}

#[tokio::test]
async fn what_is_not_worth_it_or_not_allowed_stays_as_it_is() {
    let accepting = [("accept-encoding", "gzip, br, zstd")];
    let compressing = |compression| Options { compression, ..Options::default() };
    let events = || {
        let event = Bytes::from(format!("data: {}\n\n", "x".repeat(40_000)));
        Stub::new(move |_, ended| {
            let event = event.clone();
            let body = Body::stream(stream::iter([Ok(event)])).holding(Box::new(ended));
            Act::Reply(reply(ContentType::EventStream, body))
        })
    };
    let sound = || {
        Stub::new(|_, _| {
            let body = Body::whole(vec![0; 40_000].into());
            Act::Reply(reply(ContentType::Other("audio/mpeg".into()), body))
        })
    };
    for (stub, options, why) in [
        (whole(8 << 10), Options::default(), "short"),
        (whole(64 << 10), compressing(Compression::Off), "off"),
        (whole(64 << 10), compressing(Compression::From(1 << 20)), "shorter than asked for"),
        (events(), compressing(Compression::From(0)), "events"),
        (sound(), compressing(Compression::From(0)), "sound"),
    ] {
        let (status, headers, body) = ask(&stub, options, ("POST", CHAT), &accepting, BODY).await;
        assert_eq!((status, text(&headers, "content-encoding")), (200, ""), "{why}");
        assert_eq!(text(&headers, "vary"), "", "{why}");
        assert!(body.len() > 8 << 10, "{why}");
    }
    // HTTP/1.0 has no chunks, and a compressed answer no length.
    let stub = whole(64 << 10);
    let (mut io, _stop) = memory(&stub, Options::default());
    let request = post(CHAT, "Accept-Encoding: gzip\r\n", BODY).replace("HTTP/1.1", "HTTP/1.0");
    io.write_all(request.as_bytes()).await.unwrap();
    let said = Said::parse(&read_all(&mut io).await);
    assert_eq!((said.status, said.header("content-encoding")), (200, None));
}

#[tokio::test]
async fn a_caller_that_refuses_plain_answers_gets_even_short_ones_compressed() {
    let stub = Stub::fine();
    let headers = [("accept-encoding", "br, *;q=0")];
    let (status, headers, body) =
        ask(&stub, Options::default(), ("POST", CHAT), &headers, BODY).await;
    assert_eq!((status, text(&headers, "content-encoding")), (200, "br"));
    assert_eq!(unpacked(&body, "br").await, br#"{"ok":true}"#);
    assert_eq!(text(&headers, "vary"), "accept-encoding");
}

#[tokio::test]
async fn our_own_answers_are_compressed_and_their_heads_stay_as_they_are() {
    let options = || Options { compression: Compression::From(1), ..Options::default() };
    let accepting = [("accept-encoding", "gzip")];
    let stub = Stub::fine();
    let (status, headers, body) =
        ask(&stub, options(), ("GET", "/v1/models"), &accepting, "").await;
    assert_eq!((status, text(&headers, "content-encoding")), (200, "gzip"));
    let models = unpacked(&body, "gzip").await;
    assert!(models.starts_with(br#"{"object":"list""#));
    let (status, headers, body) =
        ask(&stub, options(), ("HEAD", "/v1/models"), &accepting, "").await;
    assert_eq!((status, text(&headers, "content-encoding"), &*body), (200, "", &b""[..]));
    assert_eq!(text(&headers, "content-length"), models.len().to_string());
}

#[tokio::test]
async fn an_answer_that_is_not_all_here_is_compressed_as_it_comes() {
    let chunk = answer(300 << 10);
    let pieces = chunk.clone();
    let stub = Stub::new(move |_, ended| {
        let chunk = pieces.clone();
        let chunks = stream::iter((0..10).map(move |_| Ok(chunk.clone())));
        Act::Reply(reply(ContentType::Json, Body::stream(chunks).holding(Box::new(ended))))
    });
    for coding in ALL {
        let headers = [("accept-encoding", coding)];
        let (_, headers, body) =
            ask(&stub, Options::default(), ("POST", CHAT), &headers, BODY).await;
        assert_eq!(text(&headers, "content-encoding"), coding);
        assert!(unpacked(&body, coding).await == chunk.repeat(10), "{coding}");
        Stub::wait(&stub.ended, 1).await;
    }
}

/// What cannot be finished must not look finished, compressed or not.
#[tokio::test]
async fn an_answer_that_breaks_off_is_cut() {
    for coding in ALL {
        let go_on = Arc::new(Notify::new());
        let waiting = go_on.clone();
        let stub = Stub::new(move |_, ended| {
            let waiting = waiting.clone();
            let rest = stream::once(async move {
                waiting.notified().await;
                Err(Error::new(Kind::Upstream, Origin::Upstream, "gone"))
            });
            let body = Body::stream(stream::iter([Ok(answer(100 << 10))]).chain(rest));
            Act::Reply(reply(ContentType::Json, body.holding(Box::new(ended))))
        });
        let (mut io, _stop) = memory(&stub, Options::default());
        let request = post(CHAT, &format!("Accept-Encoding: {coding}\r\n"), BODY);
        io.write_all(request.as_bytes()).await.unwrap();
        let mut said = vec![0; 1024];
        io.read_exact(&mut said).await.unwrap();
        go_on.notify_one();
        io.read_to_end(&mut said).await.unwrap();
        assert!(said.starts_with(b"HTTP/1.1 200"));
        assert!(!said.ends_with(b"\r\n0\r\n\r\n"), "{coding}: it has its last chunk");
        Stub::wait(&stub.ended, 1).await;
    }
}

#[tokio::test]
async fn a_caller_that_hangs_up_ends_the_answer_it_was_compressed_for() {
    let stub = Stub::new(|_, ended| {
        // Ends never, and packs badly enough to fill what is between us.
        let chunks = stream::unfold(1_u64, |seed| async move {
            let next = |seed: u64| seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let mut seed = seed;
            let mut byte = || {
                seed = next(seed);
                (seed >> 56) as u8
            };
            let chunk: Bytes = (0..16 << 10).map(|_| byte()).collect();
            Some((Ok(chunk), seed))
        });
        Act::Reply(reply(ContentType::Json, Body::stream(chunks).holding(Box::new(ended))))
    });
    let (mut io, _stop) = memory(&stub, Options::default());
    let request = post(CHAT, "Accept-Encoding: zstd\r\n", BODY);
    io.write_all(request.as_bytes()).await.unwrap();
    io.read_exact(&mut [0; 100 << 10]).await.unwrap();
    assert_eq!(stub.ended.available_permits(), 0);
    drop(io);
    Stub::wait(&stub.ended, 1).await;
}

#[tokio::test]
async fn an_answer_is_compressed_over_http2_too() {
    let stub = whole(256 << 10);
    let (io, _stop) = memory(&stub, Options::default());
    let (mut send, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    for coding in ALL {
        let request = Request::post(format!("http://gate{CHAT}"))
            .header("x-api-key", KEY)
            .header("accept-encoding", coding)
            .body(BODY.to_owned())
            .unwrap();
        let (parts, body) = send.send_request(request).await.unwrap().into_parts();
        assert_eq!(text(&parts.headers, "content-encoding"), coding);
        let body = body.collect().await.unwrap().to_bytes();
        assert!(unpacked(&body, coding).await == answer(256 << 10), "{coding}");
    }
    drop(send);
}

#[tokio::test]
async fn a_compressed_body_becomes_the_same_call() {
    let long = BODY.replace("\"hi\"", &format!("\"{}\"", "hello there ".repeat(20_000)));
    for coding in ALL {
        for body in [BODY, &long] {
            let stub = Stub::fine();
            let sent = packed(body.as_bytes(), coding).await;
            let headers = [("content-encoding", coding)];
            let (status, ..) = ask(&stub, Options::default(), ("POST", CHAT), &headers, sent).await;
            assert_eq!(status, 200, "{coding}");
            let call = stub.calls.lock().unwrap().pop().unwrap();
            assert!(call.payload.bytes() == body, "{coding}");
        }
    }
}

#[tokio::test]
async fn other_codings_are_refused_with_those_that_are_taken() {
    let stub = Stub::fine();
    let gzipped = packed(BODY.as_bytes(), "gzip").await;
    let twice = packed(&gzipped, "gzip").await;
    for (coding, body) in [
        ("deflate", &gzipped),
        ("compress", &gzipped),
        ("gzip, gzip", &twice),
        ("br, gzip", &gzipped),
        ("snappy", &gzipped),
    ] {
        let headers = [("content-encoding", coding)];
        let (status, headers, said) =
            ask(&stub, Options::default(), ("POST", CHAT), &headers, body.clone()).await;
        assert_eq!((status, text(&headers, "accept-encoding")), (415, "zstd, br, gzip"));
        let said: serde_json::Value = serde_json::from_slice(&said).unwrap();
        assert_eq!(said["error"]["code"], "unsupported_media_type", "{coding}");
    }
    assert!(stub.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_body_is_as_long_unpacked_as_it_may_be_sent() {
    let options = || Options { max_body: 1 << 20, ..Options::default() };
    let padded = |length: usize| BODY.to_owned() + &" ".repeat(length - BODY.len());
    for coding in ALL {
        let stub = Stub::fine();
        let headers = [("content-encoding", coding)];
        for (length, expected) in [(1 << 20, 200), ((1 << 20) + 1, 413), (8 << 20, 413)] {
            let sent = packed(padded(length).as_bytes(), coding).await;
            assert!(sent.len() < 1 << 20);
            let (status, headers, said) =
                ask(&stub, options(), ("POST", CHAT), &headers, sent).await;
            assert_eq!(status, expected, "{coding} {length}");
            if expected == 413 {
                let said: serde_json::Value = serde_json::from_slice(&said).unwrap();
                assert_eq!(said["error"]["code"], "request_too_large");
                let message = said["error"]["message"].as_str().unwrap();
                assert!(message.contains("unpacks to more than the 1MiB"), "{message}");
                // It was read to its end, so the connection can be used again.
                assert_eq!(text(&headers, "connection"), "");
            }
        }
    }
}

#[tokio::test]
async fn a_damaged_body_is_refused() {
    let stub = Stub::fine();
    for coding in ALL {
        let good = packed(BODY.as_bytes(), coding).await;
        let mut longer = good.clone();
        longer.extend_from_slice(b"{}");
        for bad in [&good[..good.len() - 1], &longer, BODY.as_bytes(), b""] {
            let headers = [("content-encoding", coding)];
            let (status, _, said) =
                ask(&stub, Options::default(), ("POST", CHAT), &headers, bad.to_vec()).await;
            let said: serde_json::Value = serde_json::from_slice(&said).unwrap();
            assert_eq!((status, &said["error"]["code"]), (400, &"invalid_request_error".into()));
            let message = said["error"]["message"].as_str().unwrap();
            assert!(message.starts_with("the body cannot be unpacked"), "{coding}: {message}");
        }
    }
    assert!(stub.calls.lock().unwrap().is_empty());
}

/// Nothing of ours compresses an error's few words; an upstream's long ones are like any answer.
#[tokio::test]
async fn errors_are_answers_too() {
    let long = format!(r#"{{"error":{{"message":"{}"}}}}"#, "why ".repeat(8000));
    let body = Bytes::from(long.clone());
    let stub = Stub::new(move |_, _| {
        let error = Error::new(Kind::Rejected, Origin::Caller, "no");
        Act::Fail(error.with_answer(422, body.clone()))
    });
    let accepting = [("accept-encoding", "gzip")];
    let (status, headers, said) =
        ask(&stub, Options::default(), ("POST", CHAT), &accepting, BODY).await;
    assert_eq!((status, text(&headers, "content-encoding")), (422, "gzip"));
    assert_eq!(unpacked(&said, "gzip").await, long.as_bytes());

    let (status, headers, _) =
        ask(&stub, Options::default(), ("GET", "/nothing"), &accepting, "").await;
    assert_eq!((status, text(&headers, "content-encoding")), (404, ""));
}
