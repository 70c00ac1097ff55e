use crate::web::{Gateway, json, send, simulator, text};
use http_body_util::BodyExt;
use tidegate_testkit::process::{Pipe, Tidegate};

const CHAT: &str =
    r#"{"model":"sim-small","messages":[{"role":"user","content":"hello there"}],"max_tokens":8}"#;

#[tokio::test]
async fn with_no_configuration_it_serves_the_simulated_model() {
    let gateway = Gateway::start("").await;
    let models = json(gateway.send("GET", "/v1/models", "").await).await;
    assert_eq!(models["data"][0]["id"], "sim-small");

    let response = gateway.send("POST", "/v1/chat/completions", CHAT).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-tidegate-upstream"], "sim");
    assert_eq!(response.headers()["x-tidegate-attempts"], "1");
    let answer = json(response).await;
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["usage"]["total_tokens"].as_u64().unwrap() > 0);
    assert_eq!(send(gateway.address, "GET", "/readyz", &[], "").await.status(), 200);
}

#[tokio::test]
async fn limits_of_a_model_and_of_an_upstream_say_whose_they_are() {
    let (_sim, address) = simulator(&["--ttft", "1ms", "--itl", "0ms"]).await;
    let gateway = Gateway::start(&format!(
        r#"
        [upstreams.far]
        base_url = "http://{address}/v1"
        [models.sim-small]
        targets = [{{ upstream = "far" }}]
        [models.sim-large]
        targets = [{{ upstream = "far" }}]
        [limits.models.sim-small]
        requests_per_minute = 1
        algorithm = "fixed_window"
        [limits.upstreams.far]
        requests_per_minute = 2
        algorithm = "sliding_window"
        "#
    ))
    .await;
    let chat = |model: &str| {
        let body = CHAT.replace("sim-small", model);
        let gateway = &gateway;
        async move { gateway.send("POST", "/v1/chat/completions", &body).await }
    };
    let answered = chat("sim-small").await;
    assert_eq!(answered.status(), 200);
    assert_eq!(answered.headers()["x-ratelimit-limit-requests"], "1");
    assert_eq!(answered.headers()["x-ratelimit-remaining-requests"], "0");
    let refused = chat("sim-small").await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    let error = json(refused).await["error"].take();
    let said = error["message"].as_str().unwrap();
    assert!(
        said.starts_with("the limit of 1 requests per minute of the model `sim-small`"),
        "{said}"
    );

    let answered = chat("sim-large").await;
    assert_eq!(answered.status(), 200);
    assert!(!answered.headers().contains_key("x-ratelimit-limit-requests"), "it is nobody's");
    let refused = chat("sim-large").await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    let error = json(refused).await["error"].take();
    assert_eq!(error["code"], "overloaded");
    let said = error["message"].as_str().unwrap();
    assert!(said.starts_with("the limit of 2 requests per minute of the upstream `far`"), "{said}");
}

#[tokio::test]
async fn every_operation_answers_in_its_own_shape() {
    let gateway = Gateway::start("").await;
    for (path, body, object) in [
        (
            "/v1/completions",
            r#"{"model":"sim-small","prompt":"a","max_tokens":4}"#,
            "text_completion",
        ),
        ("/v1/embeddings", r#"{"model":"sim-small","input":"a"}"#, "list"),
        ("/v1/responses", r#"{"model":"sim-small","input":"a"}"#, "response"),
    ] {
        let answer = json(gateway.send("POST", path, body).await).await;
        assert_eq!(answer["object"], object, "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_stream_comes_through_event_by_event() {
    let gateway = Gateway::start("").await;
    let body = CHAT.replace("\"max_tokens\"", "\"stream\":true,\"max_tokens\"");
    let response = gateway.send("POST", "/v1/chat/completions", &body).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let events = text(response).await;
    assert!(events.starts_with("data: {"), "{events}");
    assert!(events.ends_with("data: [DONE]\n\n"), "{events}");
    assert!(events.matches("data: ").count() > 3);
}

#[tokio::test]
async fn who_may_not_is_told_so() {
    let gateway = Gateway::start("").await;
    let response = send(gateway.address, "POST", "/v1/chat/completions", &[], CHAT).await;
    assert_eq!(response.status(), 401);
    assert!(response.headers().contains_key("www-authenticate"));
    let bad = [("authorization", "Bearer tg-nobody-nothing")];
    let error = json(send(gateway.address, "POST", "/v1/chat/completions", &bad, CHAT).await).await;
    assert_eq!(error["error"]["code"], "invalid_api_key");

    let unknown =
        gateway.send("POST", "/v1/chat/completions", &CHAT.replace("sim-small", "gpt-9")).await;
    assert_eq!(unknown.status(), 404);
    assert_eq!(json(unknown).await["error"]["code"], "model_not_found");
    let broken = gateway.send("POST", "/v1/chat/completions", "{\"model\":").await;
    assert_eq!(broken.status(), 400);
}

#[tokio::test]
async fn a_revoked_key_stops_working_without_a_restart() {
    let gateway = Gateway::start("").await;
    let id = gateway.key.split('-').nth(1).unwrap().to_owned();
    let state = gateway.dir.path().join("state");
    let revoked = std::process::Command::new(crate::web::BIN)
        .args(["keys", "revoke", &id, "--data-dir"])
        .arg(&state)
        .output()
        .unwrap();
    assert!(revoked.status.success(), "{revoked:?}");
    let refused = async {
        while gateway.send("GET", "/v1/models", "").await.status() != 401 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), refused).await.unwrap();
}

#[tokio::test]
async fn an_upstream_is_called_under_its_own_model_name_and_unknown_fields_reach_it() {
    let (_sim, address) =
        simulator(&["--ttft", "1ms", "--itl", "0ms", "--api-key", "sk-sim"]).await;
    let gateway = Gateway::start(&format!(
        r#"
        [upstreams.far]
        base_url = "http://{address}/v1"
        api_key = "sk-sim"
        [models.chat]
        targets = [{{ upstream = "far", model = "sim-large" }}]
        [limits.default]
        requests_per_minute = 2
        "#
    ))
    .await;
    let body = CHAT
        .replace("sim-small", "chat")
        .replace("\"max_tokens\"", "\"x_unknown\":[1,2],\"max_tokens\"");
    let response = gateway.send("POST", "/v1/chat/completions", &body).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-ratelimit-limit-requests"], "2");
    assert_eq!(response.headers()["x-ratelimit-remaining-requests"], "1");
    assert_eq!(json(response).await["model"], "sim-large");

    gateway.send("POST", "/v1/chat/completions", &body).await;
    let refused = gateway.send("POST", "/v1/chat/completions", &body).await;
    assert_eq!(refused.status(), 429);
    for header in ["retry-after", "retry-after-ms", "x-ratelimit-reset-requests", "x-should-retry"]
    {
        assert!(refused.headers().contains_key(header), "{header}");
    }
    assert_eq!(json(refused).await["error"]["code"], "rate_limit_exceeded");

    let seen = send(address, "GET", "/sim/ledger", &[("authorization", "Bearer sk-sim")], "").await;
    let seen = text(seen).await;
    assert!(seen.contains("sim-large"), "{seen}");
}

#[tokio::test]
async fn a_canary_answers_those_who_ask_for_it() {
    let gateway = Gateway::start(
        r#"
        [upstreams.stable]
        protocol = "sim"
        [upstreams.canary]
        protocol = "sim"
        [models.sim-small]
        targets = [
            { upstream = "stable" },
            { upstream = "canary", match = { header = { name = "X-Canary", value = "1" } } },
        ]
        "#,
    )
    .await;
    let auth = format!("Bearer {}", gateway.key);
    for (value, upstream) in [("1", "canary"), ("2", "stable")] {
        let headers = [("authorization", &*auth), ("x-canary", value)];
        let path = "/v1/chat/completions";
        let response = send(gateway.address, "POST", path, &headers, CHAT).await;
        assert_eq!(response.headers()["x-tidegate-upstream"], upstream);
    }
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight() {
    let (_sim, address) = simulator(&["--ttft", "300ms", "--itl", "20ms"]).await;
    let gateway = Gateway::start(&format!(
        "[upstreams.far]\nbase_url = \"http://{address}/v1\"\n\
         [models.sim-small]\ntargets = [{{ upstream = \"far\" }}]\n"
    ))
    .await;
    let body = CHAT.replace("\"max_tokens\"", "\"stream\":true,\"max_tokens\"");
    let mut response = gateway.send("POST", "/v1/chat/completions", &body).await;
    let first = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    gateway.process.terminate().unwrap();
    gateway.process.line(Pipe::Stderr, "draining").await;
    let rest = text(response).await;
    assert!(rest.ends_with("data: [DONE]\n\n"), "{}{rest}", String::from_utf8_lossy(&first));
    let finished = gateway.process.wait(std::time::Duration::from_secs(30)).await;
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    let log = std::fs::read_to_string(gateway.dir.path().join("access.log")).unwrap();
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(!log.contains("hello there") && !log.contains(&gateway.key), "{log}");
}

/// Refusals of the front had no line, and an upstream's 404 was logged as 400.
#[tokio::test]
async fn the_access_log_says_what_callers_got() {
    let (_sim, address) = simulator(&["--strict-models", "--ttft", "1ms", "--itl", "0ms"]).await;
    let gateway = Gateway::start(&format!(
        "[upstreams.far]\nbase_url = \"http://{address}/v1\"\n\
         [models.sim-small]\ntargets = [{{ upstream = \"far\" }}]\n\
         [models.gone]\ntargets = [{{ upstream = \"far\", model = \"unheard-of\" }}]\n"
    ))
    .await;
    let path = "/v1/chat/completions";
    let anonymous = send(gateway.address, "POST", path, &[], CHAT).await;
    let mut seen = vec![(anonymous.status().as_u16(), None, path)];
    for (method, path, body, model) in [
        ("POST", path, CHAT, Some("sim-small")),
        ("POST", path, &*CHAT.replace("sim-small", "gone"), Some("gone")),
        ("POST", path, &*CHAT.replace("sim-small", "none"), Some("none")),
        ("POST", path, "{", None),
        ("GET", "/v1/nothing?q=1", "", None),
        ("PUT", "/v1/models", "", None),
        ("GET", "/v1/models", "", None),
    ] {
        let status = gateway.send(method, path, body).await.status().as_u16();
        if path != "/v1/models" || method == "PUT" {
            seen.push((status, model, path.split('?').next().unwrap()));
        }
    }
    let statuses: Vec<u16> = seen.iter().map(|(status, ..)| *status).collect();
    assert_eq!(statuses, [401, 200, 404, 404, 400, 404, 405]);

    gateway.process.terminate().unwrap();
    gateway.process.wait(std::time::Duration::from_secs(30)).await;
    let log = std::fs::read_to_string(gateway.dir.path().join("access.log")).unwrap();
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), seen.len(), "{log}");
    // An answered call is settled with its last byte, which may be after the next refusal.
    for (status, model, path) in seen {
        let is_it = |line: &&serde_json::Value| match model {
            Some(model) => line["model"] == model,
            None => line["path"] == path && line["status"] == status,
        };
        let line = lines.iter().find(is_it).unwrap_or_else(|| panic!("{path} in {log}"));
        assert_eq!(line["status"], status, "{line}");
        assert!(line["request_id"].is_string() && line["duration_ms"].is_number(), "{line}");
    }
    assert!(!log.contains("q=1") && !log.contains(&gateway.key), "{log}");
}

#[tokio::test]
async fn long_answers_are_compressed_and_bodies_unpacked() {
    let gateway = Gateway::start("").await;
    let inputs = vec!["\"some words to embed\""; 16].join(",");
    let long = format!("{{\"model\":\"sim-small\",\"input\":[{inputs}]}}");
    let auth = format!("Bearer {}", gateway.key);
    for (accepted, coding) in [("gzip, deflate, br, zstd", Some("zstd")), ("identity", None)] {
        let headers = [("authorization", &*auth), ("accept-encoding", accepted)];
        let response = send(gateway.address, "POST", "/v1/embeddings", &headers, &long).await;
        assert_eq!(response.status(), 200);
        let said = response.headers().get("content-encoding");
        assert_eq!(said.map(|coding| coding.to_str().unwrap()), coding);
    }
    let headers = [("authorization", &*auth), ("content-encoding", "snappy")];
    let refused = send(gateway.address, "POST", "/v1/embeddings", &headers, &long).await;
    assert_eq!(refused.status(), 415);
    assert_eq!(refused.headers()["accept-encoding"], "zstd, br, gzip");

    let off = Gateway::start("[server]\ncompression = \"off\"\n").await;
    let auth = format!("Bearer {}", off.key);
    let headers = [("authorization", &*auth), ("accept-encoding", "gzip")];
    let response = send(off.address, "POST", "/v1/embeddings", &headers, &long).await;
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("content-encoding"));
}

#[tokio::test]
async fn operators_see_what_became_of_copies() {
    let gateway = Gateway::start(
        r#"
        [upstreams.sim]
        protocol = "sim"
        [models.sim-small]
        targets = [{ upstream = "sim" }]
        mirror = { upstream = "sim", model = "sim-large", share = 1.0 }
        "#,
    )
    .await;
    gateway.send("POST", "/v1/chat/completions", CHAT).await;
    let local = [("host", "localhost")];
    let answered = async {
        loop {
            let mirrors =
                json(send(gateway.admin, "GET", "/admin/mirrors", &local, "").await).await;
            if mirrors[0]["answered"] == 1 {
                return mirrors;
            }
            tokio::task::yield_now().await;
        }
    };
    let patience = std::time::Duration::from_secs(30);
    let mirrors = tokio::time::timeout(patience, answered).await.unwrap();
    let expected = serde_json::json!([{
        "model": "sim-small", "upstream": "sim", "upstream_model": "sim-large", "share": 1.0,
        "sent": 1, "in_flight": 0, "answered": 1, "failed": 0, "skipped": 0,
    }]);
    assert_eq!(mirrors, expected);
}

/// The warning went nowhere: no subscriber was installed.
#[tokio::test]
async fn what_operators_must_hear_of_was_said_to_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let serve = format!(
        "ulimit -n 40; exec {} serve --listen 127.0.0.1:0 --admin-listen off --data-dir state \
         --access-log off",
        crate::web::BIN
    );
    let mut command = std::process::Command::new("sh");
    let gateway =
        Tidegate::spawn_command(command.args(["-c", &serve]).current_dir(dir.path())).unwrap();
    let address = gateway.addr().await;
    let mut connections = Vec::new();
    for _ in 0..60 {
        connections.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    gateway.line(Pipe::Stderr, "cannot accept connections").await;
    drop(connections);
    assert_eq!(send(address, "GET", "/livez", &[], "").await.status(), 200);
}

#[tokio::test]
async fn operators_have_a_port_of_their_own() {
    let gateway = Gateway::start("").await;
    let local = [("host", "localhost")];
    let response = send(gateway.admin, "GET", "/admin/upstreams", &local, "").await;
    assert_eq!(response.status(), 200);
    let before = json(response).await;
    assert_eq!(before[0]["attempts"], 0, "{before}");
    // A presumption was told before anything was measured.
    assert_eq!(before[0].get("latency_ms"), Some(&serde_json::Value::Null));
    gateway.send("POST", "/v1/chat/completions", CHAT).await;
    let after = json(send(gateway.admin, "GET", "/admin/upstreams", &local, "").await).await;
    assert_eq!((&after[0]["upstream"], &after[0]["model"]), (&"sim".into(), &"sim-small".into()));
    assert_eq!(after[0]["attempts"], 1, "{after}");
    assert!(after[0]["latency_ms"].is_number(), "{after}");

    // Neither port answers what is the other's.
    let callers = gateway.send("GET", "/admin/upstreams", "").await;
    assert_eq!(callers.status(), 404);
    let admins = send(gateway.admin, "GET", "/v1/models", &local, "").await;
    assert_eq!(admins.headers()["content-type"], "application/problem+json");
    assert_eq!(admins.status(), 404);
    let rebound = [("host", "rebound.example")];
    let rebound = send(gateway.admin, "GET", "/admin/upstreams", &rebound, "").await;
    assert_eq!(rebound.status(), 403);

    let admin = gateway.admin;
    gateway.process.terminate().unwrap();
    let finished = gateway.process.wait(std::time::Duration::from_secs(30)).await;
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    assert!(tokio::net::TcpStream::connect(admin).await.is_err());
}

#[tokio::test]
async fn operators_elsewhere_need_the_token() {
    let gateway = Gateway::start("[server]\nadmin_token = \"operators-canary\"\n").await;
    for (token, status) in [("Bearer operators-canary", 200), ("Bearer operators-canard", 401)] {
        let headers = [("host", "gate.internal"), ("authorization", token)];
        let response = send(gateway.admin, "GET", "/admin/upstreams", &headers, "").await;
        assert_eq!(response.status(), status, "{token}");
    }
    assert!(!gateway.process.said(Pipe::Stderr).contains("canary"));
}
