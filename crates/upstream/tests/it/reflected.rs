//! An upstream that repeats what it was sent: our secrets come back in no error, however they are
//! written, and in nothing else that is passed on but an answer.

use crate::support::{
    JSON, OK_BODY, answer, answering, call, chat, chat_stream, events, open, options, send, server,
    text, upstream,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::StreamExt as _;
use std::{sync::Arc, time::Duration};
use tidegate_core::{Error, Kind, Operation, Secret};
use tidegate_upstream::{ClientAuth, ClientCredentials, Options, Upstream};
use tokio::sync::Semaphore;

/// Our key, and its beginnings that are too long to be told.
const KEY: &str = "sk-canary/0123456789";
const PART: &str = "sk-can";
const SECRET_HEADER: &str = "canary-of-a-header";

fn with_key(options: Options) -> Arc<Upstream> {
    let headers = [("x-secret".to_owned(), SECRET_HEADER.to_owned())].into();
    let options = Options { headers, ..options };
    Arc::new(Upstream::open("up".into(), options, Some(KEY.to_owned().into())).unwrap())
}

/// All an error can say to anybody.
#[track_caller]
fn check(error: &Error, what: &str) {
    let body = error.answer().map_or(&[][..], |answer| &answer.body);
    let said = format!("{error} {error:?} {error:#?} {}", String::from_utf8_lossy(body));
    assert!(!said.contains(PART) && !said.contains("canary"), "{what}: {said}");
}

fn in_json(text: &str) -> String {
    text.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect()
}

#[tokio::test]
async fn no_refusal_repeats_a_secret_in_any_form() {
    let forms = [
        KEY.to_owned(),
        format!("Bearer {KEY}"),
        KEY.replace('/', "\\/"),
        KEY.replace('/', "%2F"),
        in_json(KEY),
        format!("Basic {}", STANDARD.encode(format!("us:{KEY}"))),
        format!("x-secret: {SECRET_HEADER}"),
        format!("{{\\\"authorization\\\": \\\"Bearer {}\\\"}}", KEY.replace('/', "\\\\/")),
    ];
    for form in &forms {
        for status in ["302 Found", "400 No", "401 No", "404 No", "422 No", "429 No", "500 No"] {
            let body = format!(
                r#"{{"error":{{"message":"wrong: {form}","type":"{form}","param":"{form}","code":"{form}"}}}}"#
            );
            let plain = form.replace(['\\', '"', '{', '}'], "");
            let headers = format!(
                "location: http://127.0.0.1:1/?key={plain}\r\nwww-authenticate: {plain}\r\n\
                 retry-after: {plain}\r\nx-request-id: {plain}\r\n{JSON}"
            );
            for body in [body, format!("<html>{form}"), form.clone()] {
                let server = answering(answer(status, &headers, &body)).await;
                let upstream = with_key(options(server.address));
                check(&chat(&upstream).await.unwrap_err(), form);
                check(&chat_stream(&upstream).await.unwrap_err(), form);
            }
        }
    }
}

#[tokio::test]
async fn the_words_around_a_secret_stay() {
    let body = format!(r#"{{"error":{{"message":"no model a, said {KEY}","code":"no_model"}}}}"#);
    let server = answering(answer("404 No", JSON, body)).await;
    let error = chat(&with_key(options(server.address))).await.unwrap_err();
    assert!(error.message().contains("no model a, said [redacted]"), "{error}");
    let body = &error.answer().unwrap().body;
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    assert_eq!(body["error"]["code"], "no_model");
}

#[tokio::test]
async fn an_error_cut_in_the_middle_of_a_secret_did_tell_its_beginning() {
    for kept in 4..KEY.len() {
        let start = "x".repeat(64 * 1024 - kept);
        let server = answering(answer("500 No", "", format!("{start}{KEY} and more"))).await;
        check(&chat(&with_key(options(server.address))).await.unwrap_err(), "too long");
        let cut = format!("HTTP/1.1 400 No\r\ncontent-length: 99\r\n\r\nno: {}", &KEY[..kept]);
        let server = crate::support::answering_once(cut).await;
        let error = chat(&with_key(options(server.address))).await.unwrap_err();
        let body = String::from_utf8_lossy(&error.answer().unwrap().body).into_owned();
        assert!(!body.contains(&KEY[..kept]), "{body}");
    }
}

#[tokio::test]
async fn errors_sent_as_successes_repeat_nothing() {
    for body in [
        format!(r#"{{"error":{{"message":"{KEY}","code":"invalid_request"}}}}"#),
        format!(r#"{{"error":"{KEY}"}}"#),
        KEY.to_owned(),
    ] {
        let server = answering(answer("200 OK", JSON, &body)).await;
        check(&chat(&with_key(options(server.address))).await.unwrap_err(), &body);
        let stream = events(&format!("data: {body}\n\n"));
        let server = crate::support::answering_once(stream).await;
        check(&chat_stream(&with_key(options(server.address))).await.unwrap_err(), &body);
    }
    // A response that failed is an answer, and its error no words of a model's.
    let failed =
        format!(r#"{{"object":"response","status":"failed","error":{{"message":"{KEY}"}}}}"#);
    let server = answering(answer("200 OK", JSON, &failed)).await;
    let reply = chat(&with_key(options(server.address))).await.unwrap();
    assert_eq!(text(reply).await.unwrap(), failed.replace(KEY, "[redacted]"));
    let event = format!(
        "event: response.failed\ndata: {{\"type\":\"response.failed\",\"response\":{failed}}}\n\n"
    );
    let server = crate::support::answering_once(events(&event)).await;
    let upstream = with_key(options(server.address));
    check(
        &send(&upstream, &call(Operation::Responses, true)).await.unwrap_err(),
        "response.failed",
    );
}

#[tokio::test]
async fn what_a_model_says_is_passed_on_as_it_is() {
    let said = format!(r#"{{"id":"1","choices":[{{"message":{{"content":"{KEY}"}}}}]}}"#);
    let server = answering(answer("200 OK", JSON, &said)).await;
    let reply = chat(&with_key(options(server.address))).await.unwrap();
    assert_eq!(text(reply).await.unwrap(), said);
}

/// Half of an error event was passed on when it came in two pieces after the first content.
#[tokio::test]
async fn an_error_event_in_pieces_is_passed_on_in_no_part() {
    let fine = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let error = format!("data: {{\"error\":{{\"message\":\"no such key: {KEY}\"}}}}\n\n");
    for cut in 0..error.len() {
        let gate = Arc::new(Semaphore::new(0));
        let (one, two) = (format!("{fine}{}", &error[..cut]), error[cut..].to_owned());
        let pass = Arc::clone(&gate);
        let server = server(move |mut connection| {
            let (one, two, pass) = (one.clone(), two.clone(), Arc::clone(&pass));
            async move {
                connection.request().await;
                connection.send(events(&one)).await;
                pass.acquire().await.unwrap().forget();
                connection.send(&two).await;
            }
        })
        .await;
        let mut reply = chat_stream(&with_key(options(server.address))).await.unwrap();
        let mut passed = Vec::new();
        gate.add_permits(1);
        let error = loop {
            match reply.body.next().await {
                Some(Ok(chunk)) => passed.extend_from_slice(&chunk),
                Some(Err(error)) => break error,
                None => panic!("cut at {cut}: an error event is an error"),
            }
        };
        assert_eq!(String::from_utf8(passed).unwrap(), fine, "cut at {cut}");
        check(&error, "an error event");
    }
}

#[tokio::test]
async fn the_id_an_upstream_gives_a_request_is_no_secret() {
    for (id, told) in [("req-7", Some("req-7")), (KEY, None), (SECRET_HEADER, None)] {
        let headers = format!("x-request-id: {id}\r\n{JSON}");
        let server = answering(answer("200 OK", &headers, OK_BODY)).await;
        let reply = chat(&with_key(options(server.address))).await.unwrap();
        assert_eq!(reply.upstream_request_id.as_deref(), told);
    }
}

#[tokio::test]
async fn what_is_no_http_is_said_without_it() {
    for said in [
        format!("{KEY}\r\n\r\n"),
        format!("HTTP/1.1 {KEY}\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\n{KEY} {SECRET_HEADER}\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\ncontent-length: {KEY}\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{KEY}\r\n"),
        format!("HTTP/1.1 200 OK\r\ncontent-encoding: {KEY}\r\ncontent-length: 2\r\n\r\n{{}}"),
        format!("HTTP/1.1 200 OK\r\ncontent-type: {KEY}\r\ncontent-length: 2\r\n\r\n{{"),
    ] {
        let server = crate::support::answering_once(said.as_bytes()).await;
        check(&chat(&with_key(options(server.address))).await.unwrap_err(), &said);
    }
}

#[tokio::test]
async fn a_password_in_an_address_is_refused_and_not_repeated() {
    for base_url in [
        "https://us:canary@127.0.0.1/v1",
        "http://canary@127.0.0.1:1",
        "http://h/v1?key=canary",
        "http://h/v1#canary",
        "canary://h/v1",
        "http://us:canary@/v1",
        "canary canary",
    ] {
        let options = Options { base_url: base_url.into(), ..Options::default() };
        let error = Upstream::open("up".into(), options, None).unwrap_err();
        assert_eq!((error.kind(), error.param()), (Kind::InvalidRequest, Some("base_url")));
        check(&error, base_url);
    }
}

/// A key that was replaced while a call waited for a connection was sent and not known to be.
#[tokio::test]
async fn a_key_replaced_while_a_call_waits_is_not_told_either() {
    let gate = Arc::new(Semaphore::new(0));
    let (pass, seen) = (Arc::clone(&gate), Arc::new(Semaphore::new(0)));
    let arrived = Arc::clone(&seen);
    let server = server(move |mut connection| {
        let (pass, arrived) = (Arc::clone(&pass), Arc::clone(&arrived));
        async move {
            while let Some(request) = connection.request().await {
                arrived.add_permits(1);
                pass.acquire().await.unwrap().forget();
                let said = request.header("authorization").unwrap_or_default().to_owned();
                let body = format!(r#"{{"error":{{"message":"{said}"}}}}"#);
                connection.send(answer("400 No", JSON, body)).await;
            }
        }
    })
    .await;
    let upstream = with_key(Options { max_connections: 1, ..options(server.address) });
    let ask = || {
        let upstream = Arc::clone(&upstream);
        tokio::spawn(async move { chat(&upstream).await.unwrap_err() })
    };
    let first = ask();
    seen.acquire().await.unwrap().forget();
    let second = ask();
    // There is nothing but the connection that it waits for, so that this is far enough.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    upstream.replace_key(&Secret::new("sk-canary-another".to_owned())).unwrap();
    gate.add_permits(3);
    for error in [first.await.unwrap(), second.await.unwrap(), ask().await.unwrap()] {
        assert!(error.message().contains("[redacted]"), "{error}");
        check(&error, "replaced");
    }
}

/// A token that was renewed while an answer was on its way came back in it.
#[tokio::test]
async fn a_token_renewed_while_a_call_runs_is_not_told_either() {
    let issued = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&issued);
    let endpoint = server(move |mut connection| {
        let count = Arc::clone(&count);
        async move {
            while connection.request().await.is_some() {
                let number = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
                let body = format!(
                    r#"{{"access_token":"sk-canary-{number}","token_type":"Bearer","expires_in":100}}"#
                );
                connection.send(answer("200 OK", JSON, body)).await;
            }
        }
    })
    .await;
    let gate = Arc::new(Semaphore::new(0));
    let (pass, seen) = (Arc::clone(&gate), Arc::new(Semaphore::new(0)));
    let arrived = Arc::clone(&seen);
    let models = server(move |mut connection| {
        let (pass, arrived) = (Arc::clone(&pass), Arc::clone(&arrived));
        async move {
            while let Some(request) = connection.request().await {
                arrived.add_permits(1);
                let said = request.header("authorization").unwrap_or_default().to_owned();
                if said.ends_with('1') {
                    pass.acquire().await.unwrap().forget();
                }
                let body = format!(r#"{{"error":{{"message":"{said}"}}}}"#);
                connection.send(answer("400 No", JSON, body)).await;
            }
        }
    })
    .await;
    let credentials = ClientCredentials {
        token_url: format!("http://{}/token", endpoint.address),
        client_id: "us".into(),
        client_secret: "secret".to_owned().into(),
        scope: None,
        audience: None,
        auth: ClientAuth::Body,
    };
    let options = Options { max_connections: 9, ..options(models.address) };
    let upstream = Upstream::open("up".into(), options.clone(), None).unwrap();
    let upstream = Arc::new(upstream.with_tokens(credentials, &options).unwrap());
    let first = {
        let upstream = Arc::clone(&upstream);
        tokio::spawn(async move { chat(&upstream).await.unwrap_err() })
    };
    seen.acquire().await.unwrap().forget();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(100)).await;
    tokio::time::resume();
    check(&chat(&upstream).await.unwrap_err(), "the second token");
    assert_eq!(issued.load(std::sync::atomic::Ordering::SeqCst), 2);
    gate.add_permits(1);
    let error = first.await.unwrap();
    assert!(error.message().contains("[redacted]"), "{error}");
    check(&error, "the first token");
}

#[tokio::test]
async fn a_short_key_was_told() {
    let body = r#"{"error":{"message":"sk-1 is wrong, sk-12 is another"}}"#;
    let server = answering(answer("400 No", JSON, body)).await;
    let error = chat(&upstream(&server)).await.unwrap_err();
    assert!(error.message().contains("[redacted] is wrong, sk-12 is another"), "{error}");
    let keyless =
        open(Options { base_url: options(server.address).base_url, ..Options::default() });
    assert!(!chat(&keyless).await.unwrap_err().message().contains("sk-1 "));
}
