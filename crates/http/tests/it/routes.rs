//! Every route, every method, every refusal before a call.

use crate::stub::{BODY, KEY, Stub, exchange, get, post};
use tidegate_core::{Front, Operation, Patience, Priority};

#[tokio::test(start_paused = true)]
async fn each_operation_becomes_a_call() {
    let stub = Stub::fine();
    for operation in Operation::ALL {
        let path = format!("/v1{}", operation.path());
        let said = exchange(&stub, post(&path, "Content-Type: application/json\r\n", BODY)).await;
        assert_eq!((said.status, &*said.body), (200, r#"{"ok":true}"#), "{said:?}");
        assert_eq!(said.header("content-length"), Some("11"));
        assert_eq!(said.header("content-type"), Some("application/json"));
        let call = stub.calls.lock().unwrap().pop().unwrap();
        assert_eq!(call.operation, operation);
        assert_eq!(call.payload.bytes(), BODY);
        assert_eq!(&*call.model, "small");
        assert_eq!((call.front, call.patience), (Front::Http, Patience::Counted));
        assert_eq!((call.priority, call.stream), (Priority::Default, false));
        assert!(call.tokens.total() > 0);
        Stub::wait(&stub.ended, 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn models_are_listed_and_found() {
    let stub = Stub::fine();
    let said = exchange(&stub, get("/v1/models")).await;
    let list = said.json();
    assert_eq!((said.status, list["object"].as_str()), (200, Some("list")));
    assert_eq!(list["data"][1]["id"], "org/large");
    assert_eq!(list["data"][0]["object"], "model");
    for path in ["/v1/models/org/large", "/v1/models/org%2Flarge"] {
        let said = exchange(&stub, get(path)).await;
        assert_eq!(said.json()["owned_by"], "up", "{path}");
    }
    let said = exchange(&stub, get("/v1/models/huge")).await;
    assert_eq!((said.status, said.code()), (404, "model_not_found".into()));
    let said = exchange(&stub, "GET /v1/models HTTP/1.1\r\nHost: gate\r\n\r\n").await;
    assert_eq!((said.status, said.code()), (401, "invalid_api_key".into()));
}

#[tokio::test(start_paused = true)]
async fn health_needs_no_key_and_no_model() {
    let stub = Stub::fine();
    for (path, status) in [("/livez", "live"), ("/readyz", "ready")] {
        let said = exchange(&stub, format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!((said.status, &said.json()["status"]), (200, &status.into()));
    }
    // An offer to change the protocol is declined by not mentioning it.
    let upgrade = "GET /livez HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
    let said = exchange(&stub, upgrade.repeat(2)).await;
    assert_eq!((said.status, said.body.matches("200 OK").count()), (200, 1), "{said:?}");
    assert!(stub.calls.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn head_says_what_get_would() {
    let stub = Stub::fine();
    for path in ["/v1/models", "/livez", "/readyz", "/v1/models/small", "/v1/models/none"] {
        let whole = exchange(&stub, get(path)).await;
        let head = exchange(&stub, get(path).replacen("GET", "HEAD", 1)).await;
        assert_eq!((head.status, &*head.body), (whole.status, ""), "{path}");
        assert_eq!(head.header("content-length"), whole.header("content-length"), "{path}");
        assert_eq!(head.header("content-type"), whole.header("content-type"), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn wrong_paths_and_methods_say_so() {
    let stub = Stub::fine();
    for (request, status, code, allow) in [
        (get("/v1/nothing"), 404, "not_found", None),
        (get("/"), 404, "not_found", None),
        (post("/v1/audio/speech", "", BODY), 404, "not_found", None),
        (get("/v1/chat/completions"), 405, "method_not_allowed", Some("POST")),
        (post("/v1/models", "", "{}"), 405, "method_not_allowed", Some("GET, HEAD")),
        (post("/livez", "", ""), 405, "method_not_allowed", Some("GET, HEAD")),
    ] {
        let said = exchange(&stub, &request).await;
        assert_eq!((said.status, &*said.code()), (status, code), "{request}");
        assert_eq!(said.header("allow"), allow, "{request}");
        assert!(said.header("x-request-id").is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_is_asked_for_before_the_body() {
    let stub = Stub::fine();
    // The body never comes: the answer must not wait for it, and must not ask for it.
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: gate\r\nContent-Length: 99\r\n\
                Expect: 100-continue\r\n";
    for headers in ["", "Authorization: Bearer bad\r\n", "x-api-key: bad\r\n", "api-key: ä\r\n"] {
        let said = exchange(&stub, format!("{head}{headers}\r\n")).await;
        assert_eq!((said.status, &*said.code()), (401, "invalid_api_key"), "{headers}");
        // A header that is no text carries no credential.
        let presented = headers.ends_with("bad\r\n");
        let challenge = if presented { r#"Bearer error="invalid_token""# } else { "Bearer" };
        assert_eq!(said.header("www-authenticate"), Some(challenge));
        assert_eq!(said.header("x-should-retry"), Some("false"));
        assert_eq!(said.header("connection"), Some("close"));
    }
    for header in ["x-api-key", "api-key"] {
        let request = post("/v1/embeddings", "", BODY)
            .replace(&format!("Authorization: Bearer {KEY}"), &format!("{header}: {KEY}"));
        assert_eq!(exchange(&stub, request).await.status, 200, "{header}");
    }
}

#[tokio::test(start_paused = true)]
async fn bodies_we_cannot_read_are_refused() {
    let stub = Stub::fine();
    let chat = "/v1/chat/completions";
    for (headers, body, status, code) in [
        ("Content-Type: text/plain\r\n", BODY, 415, "unsupported_media_type"),
        (
            "Content-Type: application/x-www-form-urlencoded\r\n",
            BODY,
            415,
            "unsupported_media_type",
        ),
        ("Content-Type: Application/JSON; charset=utf-8\r\n", BODY, 200, ""),
        ("Content-Type: application/vnd.x+json\r\n", BODY, 200, ""),
        ("", BODY, 200, ""),
        ("Content-Encoding: deflate\r\n", BODY, 415, "unsupported_media_type"),
        ("Content-Encoding: identity\r\n", BODY, 200, ""),
        ("", "", 400, "invalid_json"),
        ("", "{", 400, "invalid_json"),
        ("", r#"{"messages":[]}"#, 400, "invalid_request_error"),
        ("x-tidegate-priority: soon\r\n", BODY, 400, "invalid_request_error"),
        ("x-tidegate-timeout: soon\r\n", BODY, 400, "invalid_request_error"),
    ] {
        let said = exchange(&stub, post(chat, headers, body)).await;
        assert_eq!(said.status, status, "{headers}{body} {said:?}");
        if status != 200 {
            assert_eq!(said.code(), code, "{headers}{body}");
            assert_eq!(said.header("x-should-retry"), Some("false"));
        }
    }
    let said = exchange(&stub, post(chat, "x-tidegate-priority: soon\r\n", BODY)).await;
    assert_eq!(said.json()["error"]["param"], "x-tidegate-priority");
}

#[tokio::test(start_paused = true)]
async fn a_body_in_chunks_is_one_body() {
    let stub = Stub::fine();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: gate\r\nx-api-key: {KEY}\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    );
    let (first, second) = BODY.split_at(20);
    let chunks = format!(
        "{head}{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        first.len(),
        second.len()
    );
    // Chunks alone are no reason to close: the same connection answers again.
    let said = exchange(&stub, chunks.repeat(2)).await;
    assert_eq!(said.status, 200);
    assert_eq!(said.header("connection"), None);
    let calls = stub.calls.lock().unwrap();
    assert_eq!(calls.len(), 2);
    assert!(calls.iter().all(|call| call.payload.bytes() == BODY));
}
