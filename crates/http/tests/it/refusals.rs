//! What is told of requests that never became calls.

use crate::stub::{
    Act, BODY, Ended, KEY, Server, Stub, exchange, get, json, memory, post, read_all,
};
use std::sync::Arc;
use tidegate_core::{Call, Class, Error, Kind, Origin};
use tidegate_http::{Options, Refused};
use tokio::io::AsyncWriteExt as _;

const CHAT: &str = "/v1/chat/completions";

fn take(stub: &Arc<Stub>) -> Vec<Refused> {
    std::mem::take(&mut *stub.refused.lock().unwrap())
}

#[tokio::test(start_paused = true)]
async fn every_refused_request_is_told_once() {
    let stub = Stub::fine();
    let no_key = |request: String| request.replace(&format!("Bearer {KEY}"), "Bearer tg-bad");
    let no_host = |request: String| request.replace("Host: gate\r\n", "");
    for (request, known, status, code) in [
        (no_key(post(CHAT, "", BODY)), false, 401, "invalid_api_key"),
        (no_key(get("/v1/models")), false, 401, "invalid_api_key"),
        (post(CHAT, "", "{"), true, 400, "invalid_json"),
        (post(CHAT, "x-tidegate-timeout: soon\r\n", BODY), true, 400, "invalid_request_error"),
        (post(CHAT, "Content-Type: text/plain\r\n", BODY), true, 415, "unsupported_media_type"),
        (post(CHAT, "Content-Encoding: deflate\r\n", BODY), true, 415, "unsupported_media_type"),
        (post("/v1/nothing?key=secret", "", BODY), false, 404, "not_found"),
        (get("/v1/models/none"), true, 404, "model_not_found"),
        (get(CHAT), false, 405, "method_not_allowed"),
        (no_host(get("/v1/models")), false, 400, "invalid_request_error"),
    ] {
        let said = exchange(&stub, &request).await;
        assert_eq!(said.status, status, "{request}");
        let told = take(&stub);
        let [refused] = &told[..] else { panic!("{request}: {told:?}") };
        assert_eq!((refused.status, refused.code, refused.class), (status, code, Class::Caller));
        assert_eq!(refused.tenant.is_some(), known, "{request}");
        assert_eq!(said.header("x-request-id"), Some(&*refused.id));
        let line = format!("{} {}", refused.method, refused.path);
        assert!(request.starts_with(&line), "{line}");
        assert!(!line.contains("secret"));
    }
    assert!(stub.calls.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_no_refusal_or_has_become_a_call_is_not_told() {
    let failing = |_: &Call, _: Ended| Act::Fail(Error::new(Kind::Upstream, Origin::Upstream, "x"));
    for (stub, status) in [
        (Stub::fine(), 200),
        (Stub::new(failing), 502),
        (Stub::new(|_, _| Act::Panic), 500),
        (Stub::new(|_, ended| Act::Reply(json("{}", ended))), 200),
    ] {
        assert_eq!(exchange(&stub, post(CHAT, "", BODY)).await.status, status);
        assert_eq!(exchange(&stub, get("/v1/models")).await.status, 200);
        assert_eq!(exchange(&stub, get("/livez")).await.status, 200);
        assert!(take(&stub).is_empty(), "{status}");
    }
}

#[tokio::test]
async fn long_words_of_a_caller_are_cut() {
    let stub = Stub::fine();
    let server = Server::start(&stub, Options { max_body: 16, ..Options::default() }).await;
    for path in [format!("/{}", "a".repeat(8000)), format!("/{}", "a".repeat(9000)), CHAT.into()] {
        let mut io = server.connect().await;
        let method = "M".repeat(300);
        let request = post(&path, "Connection: close\r\n", BODY);
        let request = if path == CHAT { request } else { request.replace("POST", &method) };
        io.write_all(request.as_bytes()).await.unwrap();
        read_all(&mut io).await;
    }
    let told = take(&stub);
    let lengths = told.iter().map(|told| (told.status, told.method.len(), told.path.len()));
    let expected = [(404, 256, 256), (414, 256, 256), (413, 4, CHAT.len())];
    assert_eq!(lengths.collect::<Vec<_>>(), expected);
    server.stop().await;
}

/// A body that took too long: the time is that of the whole request.
#[tokio::test(start_paused = true)]
async fn a_refusal_says_how_long_it_took() {
    let stub = Stub::fine();
    let (mut io, _stop) = memory(&stub, Options::default());
    let head = post(CHAT, "", "").replace("Content-Length: 0", "Content-Length: 9000");
    io.write_all(head.as_bytes()).await.unwrap();
    read_all(&mut io).await;
    let told = take(&stub);
    assert_eq!((told[0].status, told[0].duration.as_secs()), (408, 10));
}
