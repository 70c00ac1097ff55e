//! The server as a whole: drain, TLS, both protocols on one port, start-up errors.

use crate::stub::{Act, BODY, KEY, Said, Server, Stub, json, post, read_all, read_until, reply};
use futures_util::{StreamExt as _, stream};
use http_body_util::BodyExt as _;
use hyper::{Request, Version, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{path::Path, sync::Arc, time::Duration};
use tidegate_core::{Body, ContentType};
use tidegate_http::{Callers, Drained, Options, Tls, serve};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

/// A stream that ends when `go` is notified.
fn waiting_stream(go: &Arc<Notify>) -> Arc<Stub> {
    let go = Arc::clone(go);
    Stub::new(move |_, ended| {
        let go = Arc::clone(&go);
        let last = stream::once(async move {
            go.notified().await;
            Ok("data: [DONE]\n\n".into())
        });
        let body = Body::stream(stream::iter([Ok("data: 1\n\n".into())]).chain(last));
        Act::Reply(reply(ContentType::EventStream, body.holding(Box::new(ended))))
    })
}

#[tokio::test]
async fn a_drain_lets_streams_finish_and_closes_the_rest() {
    let go = Arc::new(Notify::new());
    let stub = waiting_stream(&go);
    let server = Server::start(&stub, Options::default()).await;
    let mut idle = server.connect().await;
    idle.write_all(b"GET /readyz HTTP/1.1\r\nHost: gate\r\n\r\n").await.unwrap();
    read_until(&mut idle, "ready").await;
    let mut busy = server.connect().await;
    busy.write_all(post("/v1/responses", "", BODY).as_bytes()).await.unwrap();
    read_until(&mut busy, "data: 1").await;

    server.stop.cancel();
    assert_eq!(read_all(&mut idle).await, "", "an idle connection is closed");
    let refused = TcpStream::connect(server.address).await;
    assert!(refused.is_err(), "the listener is closed");
    go.notify_one();
    let rest = read_all(&mut busy).await;
    assert!(rest.contains("[DONE]") && rest.ends_with("0\r\n\r\n"), "{rest}");
    assert_eq!(server.stop().await.cut, 0);
    Stub::wait(&stub.ended, 1).await;
}

#[tokio::test]
async fn what_outlives_the_drain_is_cut() {
    let stub = waiting_stream(&Arc::new(Notify::new()));
    let options = Options { drain_timeout: Duration::from_millis(50), ..Options::default() };
    let server = Server::start(&stub, options).await;
    let mut busy = server.connect().await;
    busy.write_all(post("/v1/responses", "", BODY).as_bytes()).await.unwrap();
    read_until(&mut busy, "data: 1").await;
    assert_eq!(server.stop().await, Drained { finished: 0, cut: 1 });
    // Every task was joined: the call has ended already.
    assert_eq!(stub.ended.available_permits(), 1);
    assert!(!read_all(&mut busy).await.ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn readiness_goes_before_the_listener() {
    let options = Options { drain_notice: Duration::from_secs(3600), ..Options::default() };
    let server = Server::start(&Stub::fine(), options).await;
    server.stop.cancel();
    let mut io = server.connect().await;
    io.write_all(b"GET /readyz HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n").await.unwrap();
    let said = Said::parse(&read_all(&mut io).await);
    assert_eq!((said.status, &said.json()["status"]), (503, &"draining".into()));
    assert_eq!(said.header("retry-after"), Some("1"));
    let mut io = server.connect().await;
    io.write_all(post("/v1/embeddings", "Connection: close\r\n", BODY).as_bytes()).await.unwrap();
    assert_eq!(Said::parse(&read_all(&mut io).await).status, 200);
    server.done.abort();
}

#[tokio::test]
async fn an_answer_during_the_drain_closes_its_connection() {
    let server = Server::start(&Stub::fine(), Options::default()).await;
    let mut io = server.connect().await;
    let request = post("/v1/embeddings", "Expect: 100-continue\r\n", BODY);
    let (head, rest) = request.split_at(request.len() - BODY.len());
    io.write_all(head.as_bytes()).await.unwrap();
    // The head has been read for certain only once the body is asked for.
    read_until(&mut io, "100 Continue\r\n\r\n").await;
    let mut idle = server.connect().await;
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: gate\r\n\r\n").await.unwrap();
    read_until(&mut idle, "live").await;
    server.stop.cancel();
    // Connections have been told once an idle one is closed.
    read_all(&mut idle).await;
    io.write_all(rest.as_bytes()).await.unwrap();
    let said = Said::parse(&read_all(&mut io).await);
    assert_eq!((said.status, said.header("connection")), (200, Some("close")));
    assert_eq!(server.stop().await.cut, 0);
}

/// Calls over HTTP/2 on `io`; returns what was said.
async fn over_http2(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> String {
    let io = TokioIo::new(io);
    let (mut send, connection) =
        http2::handshake::<_, _, String>(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::post("http://gate/v1/embeddings")
        .header("authorization", format!("Bearer {KEY}"))
        .body(BODY.to_owned())
        .unwrap();
    let answer = send.send_request(request).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, Version::HTTP_2));
    assert_eq!(answer.headers()["content-length"], "11");
    assert!(!answer.headers().contains_key("connection"));
    let said = answer.into_body().collect().await.unwrap().to_bytes();
    for (uri, host, status) in [
        ("http://gate/v1/nothing", "", 404),
        ("http://gate/livez", "gate", 200),
        ("http://gate/livez", "other", 400),
        ("http://gate/v1//models", "", 400),
    ] {
        let mut request = Request::get(uri);
        if !host.is_empty() {
            request = request.header("host", host);
        }
        let answer = send.send_request(request.body(String::new()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), status, "{uri} {host}");
    }
    drop(send);
    connection.await.unwrap().unwrap();
    String::from_utf8(said.to_vec()).unwrap()
}

#[tokio::test]
async fn http2_with_prior_knowledge() {
    let server = Server::start(&Stub::fine(), Options::default()).await;
    assert_eq!(over_http2(server.connect().await).await, r#"{"ok":true}"#);
    assert_eq!(server.stop().await.cut, 0);
}

#[tokio::test]
async fn a_broken_stream_on_http2_says_so() {
    let stub = Stub::new(|_, ended| {
        let error = tidegate_core::Error::new(
            tidegate_core::Kind::Upstream,
            tidegate_core::Origin::Upstream,
            "broke",
        );
        let body = Body::stream(stream::iter([Ok("data: 1\n\n".into()), Err(error)]));
        Act::Reply(reply(ContentType::EventStream, body.holding(Box::new(ended))))
    });
    let server = Server::start(&stub, Options::default()).await;
    let io = TokioIo::new(server.connect().await);
    let (mut send, connection) =
        http2::handshake::<_, _, String>(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::post("http://gate/v1/embeddings")
        .header("x-api-key", KEY)
        .body(BODY.to_owned())
        .unwrap();
    let answer = send.send_request(request).await.unwrap();
    let said = answer.into_body().collect().await.unwrap().to_bytes();
    let said = String::from_utf8(said.to_vec()).unwrap();
    assert!(said.contains("data: {\"error\"") && !said.contains("[DONE]"), "{said}");
    drop(send);
    connection.await.unwrap().unwrap();
    server.stop().await;
}

/// A certificate for `gate` in `directory`, and a client configuration that trusts it.
fn certificate(directory: &Path, alpn: &[&[u8]]) -> (Tls, tokio_rustls::TlsConnector) {
    let made = rcgen::generate_simple_self_signed(["gate".to_owned()]).unwrap();
    let tls = Tls { cert: directory.join("cert.pem"), key: directory.join("key.pem") };
    std::fs::write(&tls.cert, made.cert.pem()).unwrap();
    std::fs::write(&tls.key, made.signing_key.serialize_pem()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    (tls, Arc::new(config).into())
}

#[tokio::test]
async fn tls_speaks_what_alpn_says() {
    let directory = tempfile::tempdir().unwrap();
    let (tls, client) = certificate(directory.path(), &[b"h2", b"http/1.1"]);
    let server =
        Server::start(&Stub::fine(), Options { tls: Some(tls), ..Options::default() }).await;
    let name = || rustls::pki_types::ServerName::try_from("gate").unwrap();
    let io = client.connect(name(), server.connect().await).await.unwrap();
    assert_eq!(io.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(over_http2(io).await, r#"{"ok":true}"#);
    assert_eq!(server.stop().await.cut, 0);

    let (tls, client) = certificate(directory.path(), &[b"http/1.1"]);
    let server =
        Server::start(&Stub::fine(), Options { tls: Some(tls), ..Options::default() }).await;
    let mut io = client.connect(name(), server.connect().await).await.unwrap();
    let request = post("/v1/embeddings", "Connection: close\r\n", BODY);
    io.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(Said::parse(&read_all(&mut io).await).body, r#"{"ok":true}"#);
    // Plain HTTP on a TLS port is closed, and hurts nobody.
    let mut plain = server.connect().await;
    plain.write_all(b"GET /livez HTTP/1.1\r\nHost: gate\r\n\r\n").await.unwrap();
    assert!(!read_all_lossy(&mut plain).await.contains("live"));
    drop(io);
    assert_eq!(server.stop().await.cut, 0);
}

async fn read_all_lossy(io: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(io, &mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn options_that_cannot_be_served_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let (good, _) = certificate(directory.path(), &[]);
    let empty = directory.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let missing = directory.path().join("missing.pem");
    for (tls, named) in [
        (Tls { cert: missing.clone(), ..good.clone() }, "missing.pem"),
        (Tls { key: missing, ..good.clone() }, "missing.pem"),
        (Tls { cert: empty.clone(), ..good.clone() }, "empty.pem"),
        (Tls { key: empty, ..good.clone() }, "empty.pem"),
        (Tls { key: good.cert.clone(), ..good.clone() }, "cert.pem"),
    ] {
        let options = Options { tls: Some(tls), ..Options::default() };
        assert!(options.check().unwrap_err().to_string().contains(named));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let error =
            serve(listener, Stub::fine(), options, Callers::default(), CancellationToken::new())
                .await;
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("tls: ") && error.contains(named), "{error}");
    }
    Options { tls: Some(good), ..Options::default() }.check().unwrap();
}

#[tokio::test]
async fn a_panic_leaves_the_server_standing() {
    let stub = Stub::new(|call, ended| match &*call.model {
        "small" => {
            let body = Body::stream(stream::poll_fn(|_| panic!("scripted")));
            Act::Reply(reply(ContentType::EventStream, body.holding(Box::new(ended))))
        }
        _ => Act::Reply(json("{}", ended)),
    });
    let server = Server::start(&stub, Options::default()).await;
    let mut io = server.connect().await;
    io.write_all(post("/v1/embeddings", "", BODY).as_bytes()).await.unwrap();
    read_all(&mut io).await;
    Stub::wait(&stub.ended, 1).await;
    let mut io = server.connect().await;
    let fine = post("/v1/embeddings", "", &BODY.replace("small", "other"));
    io.write_all(fine.as_bytes()).await.unwrap();
    read_until(&mut io, "{}").await;
    drop(io);
    server.stop().await;
}
