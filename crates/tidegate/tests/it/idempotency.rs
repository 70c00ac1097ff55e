//! `Idempotency-Key` through the real binary: killed in the middle and after, two at once.

use crate::web::{BIN, Gateway, json, send, simulator, text};
use futures_util::future::join_all;
use http_body_util::BodyExt as _;
use hyper::{Response, body::Incoming};
use std::{net::SocketAddr, path::Path, process::Command, time::Duration};
use tidegate_testkit::process::Tidegate;

const CHAT: &str =
    r#"{"model":"sim-small","messages":[{"role":"user","content":"hello there"}],"max_tokens":8}"#;
const PATH: &str = "/v1/chat/completions";

fn streamed() -> String {
    CHAT.replace("\"max_tokens\"", "\"stream\":true,\"max_tokens\"")
}

fn config(upstream: SocketAddr) -> String {
    format!(
        "[upstreams.far]\nbase_url = \"http://{upstream}/v1\"\n\
         [models.sim-small]\ntargets = [{{ upstream = \"far\" }}]\n"
    )
}

/// Another process on the state of the one that was started in `dir`.
async fn successor(dir: &Path) -> (Tidegate, SocketAddr) {
    let mut command = Command::new(BIN);
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "off"]);
    command.args(["--data-dir", "state", "--access-log", "off", "--config", "tidegate.toml"]);
    let process = Tidegate::spawn_command(command.current_dir(dir)).unwrap();
    let address = process.addr().await;
    (process, address)
}

/// Sends a call under a key.
async fn ask(address: SocketAddr, caller: &str, key: &str, body: &str) -> Response<Incoming> {
    let auth = format!("Bearer {caller}");
    let headers = [("authorization", &*auth), ("idempotency-key", key)];
    send(address, "POST", PATH, &headers, body).await
}

fn is_replay(response: &Response<Incoming>) -> bool {
    response.headers().get("idempotency-replayed").is_some_and(|value| value == "true")
}

/// Requests that reached the simulator.
async fn executions(simulator: SocketAddr) -> u64 {
    let totals = json(send(simulator, "GET", "/sim/ledger/totals", &[], "").await).await;
    totals["requests"].as_u64().unwrap()
}

#[tokio::test]
async fn answers_outlive_a_kill() {
    let (_sim, upstream) = simulator(&["--ttft", "1ms", "--itl", "0ms"]).await;
    let mut gateway = Gateway::start(&config(upstream)).await;
    let mut first = Vec::new();
    for (key, body) in [("whole", CHAT), ("streamed", &streamed())] {
        let response = ask(gateway.address, &gateway.key, key, body).await;
        assert!(response.status() == 200 && !is_replay(&response));
        first.push(text(response).await);
    }
    assert!(first[1].ends_with("data: [DONE]\n\n"));
    gateway.process.kill().unwrap();

    let (_successor, address) = successor(gateway.dir.path()).await;
    for ((key, body), first) in [("whole", CHAT), ("streamed", &streamed())].into_iter().zip(first)
    {
        let response = ask(address, &gateway.key, key, body).await;
        assert!(response.status() == 200 && is_replay(&response), "{key}: {response:?}");
        assert_eq!(text(response).await, first, "{key}");
    }
    let other = ask(address, &gateway.key, "whole", &streamed()).await;
    assert_eq!(other.status(), 422);
    assert_eq!(json(other).await["error"]["code"], "idempotency_mismatch");
    assert_eq!(executions(upstream).await, 2);
}

#[tokio::test]
async fn what_a_kill_interrupted_is_not_carried_out_again() {
    let (_sim, upstream) = simulator(&["--ttft", "1ms", "--itl", "20s"]).await;
    let mut gateway = Gateway::start(&config(upstream)).await;
    let mut response = ask(gateway.address, &gateway.key, "k", &streamed()).await;
    response.body_mut().frame().await.unwrap().unwrap();
    let meanwhile = ask(gateway.address, &gateway.key, "k", &streamed()).await;
    assert_eq!(meanwhile.status(), 409);
    assert!(meanwhile.headers().contains_key("retry-after"));
    assert_eq!(json(meanwhile).await["error"]["code"], "idempotency_in_progress");
    // Another gateway on the same state knows that it runs, and that it no longer does.
    let (_successor, address) = successor(gateway.dir.path()).await;
    let elsewhere = ask(address, &gateway.key, "k", &streamed()).await;
    assert_eq!(json(elsewhere).await["error"]["code"], "idempotency_in_progress");
    gateway.process.kill().unwrap();
    for _ in 0..2 {
        let again = ask(address, &gateway.key, "k", &streamed()).await;
        assert_eq!(again.status(), 409);
        assert_eq!(again.headers()["x-should-retry"], "false");
        assert_eq!(json(again).await["error"]["code"], "idempotency_not_replayable");
    }
    assert_eq!(executions(upstream).await, 1);
}

#[tokio::test]
async fn of_many_at_once_one_reaches_the_upstream() {
    let (_sim, upstream) = simulator(&["--ttft", "50ms", "--itl", "0ms"]).await;
    let gateway = Gateway::start(&config(upstream)).await;
    let all = join_all((0..50).map(|_| ask(gateway.address, &gateway.key, "k", CHAT))).await;
    let (answered, refused): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|response| response.status() == 200);
    assert!(refused.iter().all(|response| response.status() == 409));
    assert_eq!(answered.iter().filter(|response| !is_replay(response)).count(), 1);
    let bodies = join_all(answered.into_iter().map(text)).await;
    assert!(bodies.iter().all(|body| *body == bodies[0]));
    assert_eq!(executions(upstream).await, 1);
}

#[tokio::test]
async fn a_caller_that_hung_up_finds_its_answer_and_the_drain_waits_for_it() {
    let (_sim, upstream) = simulator(&["--ttft", "1ms", "--itl", "40ms"]).await;
    let gateway = Gateway::start(&config(upstream)).await;
    let mut response = ask(gateway.address, &gateway.key, "k", &streamed()).await;
    response.body_mut().frame().await.unwrap().unwrap();
    drop(response);
    gateway.process.terminate().unwrap();
    let finished = gateway.process.wait(Duration::from_secs(30)).await;
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    let (_successor, address) = successor(gateway.dir.path()).await;
    let again = ask(address, &gateway.key, "k", &streamed()).await;
    assert!(again.status() == 200 && is_replay(&again));
    assert!(text(again).await.ends_with("data: [DONE]\n\n"));
    assert_eq!(executions(upstream).await, 1);
}

#[tokio::test]
async fn it_can_be_switched_off_and_bounded() {
    let (_sim, upstream) = simulator(&["--ttft", "1ms", "--itl", "0ms"]).await;
    let off = config(upstream) + "[idempotency]\nenabled = false\n";
    let gateway = Gateway::start(&off).await;
    for _ in 0..2 {
        let response = ask(gateway.address, &gateway.key, "k", CHAT).await;
        assert!(response.status() == 200 && !is_replay(&response));
    }
    assert!(!gateway.dir.path().join("state/idempotency.sqlite").exists());

    let short = config(upstream) + "[idempotency]\nmax_answer = \"16B\"\n";
    let gateway = Gateway::start(&short).await;
    assert_eq!(ask(gateway.address, &gateway.key, "k", CHAT).await.status(), 200);
    let again = ask(gateway.address, &gateway.key, "k", CHAT).await;
    assert_eq!(json(again).await["error"]["code"], "idempotency_not_replayable");
}
