//! The operators' port: what it says, and to whom it says nothing.

use crate::stub::{Said, Stub, read_all};
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tidegate_core::{BoundBy, BreakerState, Keys, MirrorState, Secret, UpstreamState};
use tidegate_http::{Drained, serve_admin};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub(crate) const TOKEN: &str = "admin-token";

pub(crate) struct Admin {
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    done: JoinHandle<std::io::Result<Drained>>,
}

impl Admin {
    pub(crate) async fn start(stub: &Arc<Stub>, token: Option<&str>) -> Self {
        Self::start_with(stub, token, None).await
    }

    /// With callers' keys.
    pub(crate) async fn start_with(
        stub: &Arc<Stub>,
        token: Option<&str>,
        keys: Option<Arc<dyn Keys>>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let token = token.map(|token| watch::channel(Secret::new(token.to_owned())).1);
        let served =
            tidegate_http::Admin { answer: Arc::clone(stub) as _, keys, ledger: None, token };
        let done = tokio::spawn(serve_admin(listener, served, stop.clone()));
        Self { address, stop, done }
    }

    /// One request on a connection of its own; `headers` end in line breaks.
    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &str) -> Said {
        self.send(method, path, headers, "").await
    }

    /// The same with a body.
    pub(crate) async fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Said {
        let mut io = TcpStream::connect(self.address).await.unwrap();
        let length = match body {
            "" => String::new(),
            body => format!("Content-Length: {}\r\n", body.len()),
        };
        let request =
            format!("{method} {path} HTTP/1.1\r\n{headers}{length}Connection: close\r\n\r\n{body}");
        io.write_all(request.as_bytes()).await.unwrap();
        Said::parse(&read_all(&mut io).await)
    }

    pub(crate) async fn stop(self) -> Drained {
        self.stop.cancel();
        self.done.await.unwrap().unwrap()
    }
}

/// A refusal as RFC 9457 writes it, with its status in both places.
#[track_caller]
pub(crate) fn is_problem(said: &Said, status: u16, code: &str) {
    assert_eq!(said.status, status, "{said:?}");
    assert_eq!(said.header("content-type"), Some("application/problem+json"));
    assert_eq!(said.header("cache-control"), Some("no-store"));
    let problem = said.json();
    assert_eq!((&problem["status"], &problem["code"]), (&status.into(), &code.into()));
    assert_eq!(problem["type"], "about:blank");
    assert!(!problem["title"].as_str().unwrap().is_empty());
    assert!(!problem["detail"].as_str().unwrap().is_empty());
    assert!(!said.body.contains(TOKEN));
}

fn upstream() -> UpstreamState {
    UpstreamState {
        upstream: "vllm".into(),
        model: "qwen3-8b".into(),
        concurrency: 12,
        in_flight: 11,
        waiting: 3,
        requests_per_second: Some(2.5),
        shut_for: Duration::from_micros(1_500_100),
        bound_by: BoundBy::Refusals,
        breaker: BreakerState::HalfOpen,
        share: 0.25,
        latency: Some(Duration::from_micros(12_345)),
        attempts: 100,
        refusals: 7,
    }
}

#[tokio::test]
async fn upstreams_are_listed_with_all_that_is_known() {
    let stub = Stub::fine();
    let admin = Admin::start(&stub, None).await;
    let host = "Host: localhost:8081\r\n";
    let said = admin.ask("GET", "/admin/upstreams", host).await;
    assert_eq!((said.status, &*said.body), (200, "[]"));

    stub.upstreams.lock().unwrap().extend([
        upstream(),
        UpstreamState {
            requests_per_second: None,
            shut_for: Duration::ZERO,
            bound_by: BoundBy::Nothing,
            latency: None,
            ..upstream()
        },
    ]);
    let said = admin.ask("GET", "/admin/upstreams", host).await;
    assert_eq!(said.header("content-type"), Some("application/json"));
    assert_eq!(said.header("cache-control"), Some("no-store"));
    assert_eq!(said.header("x-content-type-options"), Some("nosniff"));
    let list = said.json();
    let expected = serde_json::json!({
        "upstream": "vllm",
        "model": "qwen3-8b",
        "concurrency": 12,
        "in_flight": 11,
        "waiting": 3,
        "requests_per_second": 2.5,
        "shut_for_ms": 1501,
        "bound_by": "refusals",
        "breaker": "half-open",
        "share": 0.25,
        "latency_ms": 12.345,
        "attempts": 100,
        "refusals": 7,
    });
    assert_eq!(list[0], expected);
    let [shut, bound] = ["shut_for_ms", "bound_by"];
    for unknown in ["requests_per_second", "latency_ms"] {
        let field = list[1].as_object().unwrap().get(unknown);
        assert_eq!(field, Some(&serde_json::Value::Null), "{unknown}");
    }
    assert_eq!((&list[1][shut], &list[1][bound]), (&0.into(), &"nothing".into()));

    let head = admin.ask("HEAD", "/admin/upstreams", host).await;
    assert_eq!((head.status, &*head.body), (200, ""));
    assert_eq!(head.header("content-length"), Some(&*said.body.len().to_string()));
    assert_eq!(admin.stop().await.cut, 0);
}

#[tokio::test]
async fn mirrors_tell_what_became_of_their_copies() {
    let stub = Stub::fine();
    let admin = Admin::start(&stub, None).await;
    let host = "Host: localhost:8081\r\n";
    let said = admin.ask("GET", "/admin/mirrors", host).await;
    assert_eq!((said.status, &*said.body), (200, "[]"));
    stub.mirrors.lock().unwrap().push(MirrorState {
        model: "chat".into(),
        upstream: "next".into(),
        upstream_model: "qwen3-next".into(),
        share: 0.05,
        sent: 10,
        answered: 6,
        failed: 1,
        skipped: 2,
    });
    let expected = serde_json::json!([{
        "model": "chat",
        "upstream": "next",
        "upstream_model": "qwen3-next",
        "share": 0.05,
        "sent": 10,
        "in_flight": 3,
        "answered": 6,
        "failed": 1,
        "skipped": 2,
    }]);
    assert_eq!(admin.ask("GET", "/admin/mirrors", host).await.json(), expected);
    is_problem(&admin.ask("POST", "/admin/mirrors", host).await, 405, "method_not_allowed");
    admin.stop().await;

    let admin = Admin::start(&stub, Some(TOKEN)).await;
    is_problem(&admin.ask("GET", "/admin/mirrors", host).await, 401, "invalid_admin_token");
    admin.stop().await;
}

#[tokio::test]
async fn wrong_paths_and_methods_are_problems() {
    let admin = Admin::start(&Stub::fine(), None).await;
    let host = "Host: 127.0.0.1\r\n";
    for path in ["/", "/admin", "/admin/other", "/v1/models", "/v1/chat/completions"] {
        is_problem(&admin.ask("GET", path, host).await, 404, "not_found");
    }
    for path in ["/admin/upstreams", "/livez", "/readyz"] {
        for method in ["POST", "DELETE", "PUT"] {
            let said = admin.ask(method, path, host).await;
            is_problem(&said, 405, "method_not_allowed");
            assert_eq!(said.header("allow"), Some("GET, HEAD"));
        }
    }
    // The checks of the callers' port hold here too.
    let twice = format!("{host}{host}");
    is_problem(&admin.ask("GET", "/livez", &twice).await, 400, "invalid_request_error");
    is_problem(&admin.ask("GET", "/livez", "").await, 400, "invalid_request_error");
    is_problem(&admin.ask("GET", "//livez", host).await, 400, "invalid_request_error");
    admin.stop().await;
}

/// A page whose name was made to resolve to 127.0.0.1 is of one origin with us, for a browser.
#[tokio::test]
async fn without_a_token_only_loopback_names_are_answered() {
    let stub = Stub::fine();
    let admin = Admin::start(&stub, None).await;
    for host in ["localhost", "LOCALHOST:8081", "127.0.0.1:9", "[::1]:8081"] {
        let said = admin.ask("GET", "/admin/upstreams", &format!("Host: {host}\r\n")).await;
        assert_eq!(said.status, 200, "{host}");
    }
    for host in ["rebound.example:8081", "localhost.example", "10.0.0.1:8081", "127.0.0.1.a"] {
        for path in ["/admin/upstreams", "/livez", "/nothing"] {
            let said = admin.ask("GET", path, &format!("Host: {host}\r\n")).await;
            is_problem(&said, 403, "host_not_allowed");
        }
    }
    // HTTP/1.0 need not name a host, and then it is not known to be ours.
    let mut io = TcpStream::connect(admin.address).await.unwrap();
    io.write_all(b"GET /admin/upstreams HTTP/1.0\r\n\r\n").await.unwrap();
    is_problem(&Said::parse(&read_all(&mut io).await), 403, "host_not_allowed");
    admin.stop().await;
}

/// There the host stands in `:authority`.
#[tokio::test]
async fn hosts_are_looked_at_over_http2_too() {
    let admin = Admin::start(&Stub::fine(), None).await;
    let io = TokioIo::new(TcpStream::connect(admin.address).await.unwrap());
    let (mut send, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    for (host, origin, status) in [
        ("localhost:8081", None, 200),
        ("localhost:8081", Some("http://localhost:8081"), 200),
        ("localhost:8081", Some("http://localhost:3000"), 403),
        ("rebound.example:8081", None, 403),
        ("rebound.example:8081", Some("http://rebound.example:8081"), 403),
    ] {
        let mut request = Request::get(format!("http://{host}/admin/upstreams"));
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let answer = send.send_request(request.body(String::new()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), status, "{host} {origin:?}");
    }
    drop(send);
    admin.stop().await;
}

#[tokio::test]
async fn pages_of_other_origins_are_refused() {
    let stub = Stub::fine();
    for token in [None, Some(TOKEN)] {
        let admin = Admin::start(&stub, token).await;
        let headers = format!("Host: localhost:8081\r\nAuthorization: Bearer {TOKEN}\r\n");
        for origin in ["http://localhost:8081", "http://LOCALHOST:8081"] {
            let headers = format!("{headers}Origin: {origin}\r\n");
            assert_eq!(admin.ask("GET", "/admin/upstreams", &headers).await.status, 200);
        }
        for origin in [
            "null",
            "",
            "http://localhost",
            "http://localhost:3000",
            "http://evil.example",
            "http://localhost:8081.evil.example",
            "localhost:8081",
            "http://localhost:8081\r\nOrigin: http://evil.example",
        ] {
            let headers = format!("{headers}Origin: {origin}\r\n");
            for path in ["/admin/upstreams", "/livez"] {
                is_problem(&admin.ask("GET", path, &headers).await, 403, "origin_not_allowed");
            }
        }
        admin.stop().await;
    }
}

#[tokio::test]
async fn a_token_is_asked_for_by_everything_but_the_probes() {
    let stub = Stub::fine();
    let admin = Admin::start(&stub, Some(TOKEN)).await;
    let host = "Host: gate.internal:8081\r\n";
    for (path, status) in [("/livez", "live"), ("/readyz", "ready")] {
        let said = admin.ask("GET", path, host).await;
        assert_eq!((said.status, &said.json()["status"]), (200, &status.into()));
    }
    for bearer in ["Bearer", "bearer", "BEARER "] {
        let headers = format!("{host}Authorization: {bearer} {TOKEN}\r\n");
        assert_eq!(admin.ask("GET", "/admin/upstreams", &headers).await.status, 200, "{bearer}");
    }
    let mut wrong = vec![String::new()];
    for said in ["admin-toke", "admin-token2", "Admin-token", "", "tg-good"] {
        wrong.push(format!("Authorization: Bearer {said}\r\n"));
    }
    wrong.push(format!("Authorization: {TOKEN}\r\n"));
    wrong.push(format!("Authorization: Basic {TOKEN}\r\n"));
    wrong.push(format!("x-api-key: {TOKEN}\r\n"));
    admin.stop().await;
    for wrong in wrong {
        // Each on a port that has seen no wrong token yet: others are told to wait.
        let admin = Admin::start(&stub, Some(TOKEN)).await;
        let headers = format!("{host}{wrong}");
        for (method, path) in
            [("GET", "/admin/upstreams"), ("POST", "/admin/upstreams"), ("GET", "/nothing")]
        {
            let said = admin.ask(method, path, &headers).await;
            is_problem(&said, 401, "invalid_admin_token");
            assert_eq!(said.header("www-authenticate"), Some("Bearer"), "{wrong}");
        }
        admin.stop().await;
    }
}

#[tokio::test]
async fn without_a_token_other_machines_are_not_served() {
    for (address, token, is_served) in
        [("0.0.0.0:0", None, false), ("0.0.0.0:0", Some(TOKEN), true), ("127.0.0.1:0", None, true)]
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        let token = token.map(|token| watch::channel(Secret::new(token.to_owned())).1);
        let admin = tidegate_http::Admin { answer: Stub::fine(), keys: None, ledger: None, token };
        let served = serve_admin(listener, admin, stop).await;
        assert_eq!(served.is_ok(), is_served, "{address}");
        if let Err(error) = served {
            assert!(error.to_string().contains("set a token"), "{error}");
        }
    }
}
