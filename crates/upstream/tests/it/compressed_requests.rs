//! Request bodies compressed for servers that unpack them and compare.

use crate::{
    http2,
    support::{JSON, OK_BODY, Request, answer, call, open, options, send, server, text},
};
use async_compression::tokio::write::{GzipDecoder, ZstdDecoder};
use bytes::Bytes;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use std::sync::Arc;
use tidegate_core::{Call, Class, Operation, Payload};
use tidegate_upstream::{CompressRequests, Options, Upstream};
use tokio::io::AsyncWriteExt;

/// Chat's call with a prompt of so many bytes, and the body its upstream should get.
fn prompt(bytes: usize) -> (Call, String) {
    let text: String =
        "The tide turns at noon, says the gate. ".chars().cycle().take(bytes).collect();
    let body = |model: &str| format!(r#"{{"model":"{model}","messages":["{text}"]}}"#);
    let payload = Payload::new(Bytes::from(body("gw")), 9..13);
    (Call { payload, ..call(Operation::ChatCompletions, false) }, body("real"))
}

async fn unpacked(coding: Option<&str>, body: &[u8]) -> String {
    macro_rules! unpack {
        ($decoder:ident) => {{
            let mut decoder = $decoder::new(Vec::new());
            decoder.write_all(body).await.unwrap();
            decoder.shutdown().await.unwrap();
            decoder.into_inner()
        }};
    }
    let plain = match coding {
        Some("gzip") => unpack!(GzipDecoder),
        Some("zstd") => unpack!(ZstdDecoder),
        other => {
            assert_eq!(other, None);
            body.to_vec()
        }
    };
    String::from_utf8(plain).unwrap()
}

/// What a server got: the codings of its requests, and their bodies unpacked.
#[derive(Clone, Default)]
struct Got(Arc<Mutex<Vec<(String, String)>>>);

impl Got {
    async fn keep(&self, request: &Request) {
        let coding = request.header("content-encoding");
        let body = unpacked(coding, &request.body).await;
        self.0.lock().push((coding.unwrap_or("plain").to_owned(), body));
    }

    /// The codings since the last look; every body was `expected`.
    fn codings(&self, expected: &str) -> Vec<String> {
        let got = std::mem::take(&mut *self.0.lock());
        assert!(got.iter().all(|(_, body)| body == expected));
        got.into_iter().map(|(coding, _)| coding).collect()
    }
}

/// An upstream whose server answers each request as `respond` says, and what it got.
async fn upstream(
    compress_requests: CompressRequests,
    respond: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static,
) -> (Upstream, Got) {
    let got = Got::default();
    let (keeping, respond) = (got.clone(), Arc::new(respond));
    let server = server(move |mut connection| {
        let (got, respond) = (keeping.clone(), Arc::clone(&respond));
        async move {
            while let Some(request) = connection.request().await {
                got.keep(&request).await;
                connection.send(respond(&request)).await;
            }
        }
    })
    .await;
    (open(Options { compress_requests, ..options(server.address) }), got)
}

fn ok(headers: &str) -> Vec<u8> {
    answer("200 OK", &format!("{JSON}{headers}"), OK_BODY)
}

fn refused(headers: &str) -> Vec<u8> {
    answer("415 Unsupported Media Type", headers, "")
}

/// Sends `call` and gives the codings that its server got, all of the same body.
async fn codings(upstream: &Upstream, got: &Got, (call, body): &(Call, String)) -> Vec<String> {
    let reply = send(upstream, call).await.unwrap();
    assert_eq!(text(reply).await.unwrap(), OK_BODY);
    got.codings(body)
}

#[tokio::test]
async fn bodies_arrive_as_they_were_with_the_model_replaced() {
    for (option, coding) in [
        (CompressRequests::Off, "plain"),
        (CompressRequests::Auto, "plain"),
        (CompressRequests::Gzip, "gzip"),
        (CompressRequests::Zstd, "zstd"),
    ] {
        let (upstream, got) = upstream(option, |_| ok("")).await;
        // The last two are written in pieces when plain, and compressed on another thread.
        for bytes in [2_000, 70_000, 200_000, 3 << 20] {
            assert_eq!(codings(&upstream, &got, &prompt(bytes)).await, [coding], "{bytes}");
        }
    }
}

#[tokio::test]
async fn bodies_up_to_one_kibibyte_stay_plain() {
    let (upstream, got) = upstream(CompressRequests::Gzip, |_| ok("")).await;
    let around = prompt(0).0.payload.len();
    assert_eq!(codings(&upstream, &got, &prompt(1024 - around)).await, ["plain"]);
    assert_eq!(codings(&upstream, &got, &prompt(1025 - around)).await, ["gzip"]);
}

#[tokio::test]
async fn what_is_asked_of_a_stream_is_in_them() {
    let (call, body) = prompt(5_000);
    let payload = call.payload.clone().asking(Some(1));
    let call = Call { payload, stream: true, ..call };
    let body = body.replacen('{', r#"{"stream_options":{"include_usage":true},"#, 1);
    let (upstream, got) = upstream(CompressRequests::Gzip, |_| ok("")).await;
    assert_eq!(codings(&upstream, &got, &(call, body)).await, ["gzip"]);
}

#[tokio::test]
async fn http2_carries_them_too() {
    for (option, coding) in [(CompressRequests::Gzip, "gzip"), (CompressRequests::Zstd, "zstd")] {
        let (call, expected) = prompt(200_000);
        let server = http2::serve(100, move |request| {
            let expected = expected.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                assert_eq!(head.headers["content-encoding"], coding);
                assert_eq!(head.headers["content-length"], body.len().to_string());
                assert!(body.len() < expected.len() / 2);
                assert_eq!(unpacked(Some(coding), &body).await, expected);
                http2::ok()
            }
        })
        .await;
        let options = Options { compress_requests: option, http2: true, ..options(server.address) };
        let reply = send(&open(options), &call).await.unwrap();
        assert_eq!(text(reply).await.unwrap(), OK_BODY);
    }
}

#[tokio::test]
async fn what_an_upstream_takes_is_learned_from_its_answers() {
    let (upstream, got) =
        upstream(CompressRequests::Auto, |_| ok("accept-encoding: gzip;q=0.5, zstd, br\r\n")).await;
    let long = prompt(5_000);
    assert_eq!(codings(&upstream, &got, &long).await, ["plain"]);
    for _ in 0..3 {
        assert_eq!(codings(&upstream, &got, &long).await, ["zstd"]);
    }
}

#[tokio::test]
async fn a_refused_coding_is_sent_plain_at_once_and_never_again() {
    for option in [CompressRequests::Gzip, CompressRequests::Zstd, CompressRequests::Auto] {
        let (upstream, got) = upstream(option, |request| {
            match request.header("content-encoding") {
                // It says one thing and does another.
                None => ok("accept-encoding: gzip\r\n"),
                Some(_) => refused(""),
            }
        })
        .await;
        let long = prompt(5_000);
        let mut all = Vec::new();
        for _ in 0..4 {
            all.extend(codings(&upstream, &got, &long).await);
        }
        let packed = all.iter().filter(|coding| *coding != "plain").count();
        assert_eq!((all.len(), packed), (5, 1), "{option:?}");
    }
}

#[tokio::test]
async fn a_refusal_that_names_another_coding_gets_that() {
    let (upstream, got) =
        upstream(CompressRequests::Auto, |request| match request.header("content-encoding") {
            Some("zstd") => refused("accept-encoding: gzip\r\n"),
            Some(_) => ok(""),
            None => ok("accept-encoding: zstd, gzip\r\n"),
        })
        .await;
    let long = prompt(5_000);
    assert_eq!(codings(&upstream, &got, &long).await, ["plain"]);
    assert_eq!(codings(&upstream, &got, &long).await, ["zstd", "plain"]);
    assert_eq!(codings(&upstream, &got, &long).await, ["gzip"]);
}

#[tokio::test]
async fn a_415_that_means_something_else_is_the_callers() {
    let (upstream, got) = upstream(CompressRequests::Gzip, |_| refused("")).await;
    let (call, body) = prompt(5_000);
    for _ in 0..2 {
        let error = send(&upstream, &call).await.unwrap_err();
        assert_eq!((error.class(), error.answer().unwrap().status), (Class::Caller, 415));
        assert_eq!(got.codings(&body), ["gzip", "plain"]);
    }
}
