//! Streams whose callers do not ask for their usage, whole and cut: the gateway's ledger holds what
//! the simulator's does.

use crate::web::{Gateway, json, send, simulator};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Duration};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Its simulated answers end in the middle of so many tokens.
const TOKENS: u64 = 6;

fn config(simulator: SocketAddr, stream_usage: &str) -> String {
    let model =
        |name| format!("[models.{name}]\ntargets = [{{ upstream = \"up\", model = \"m\" }}]");
    format!(
        "[upstreams.up]\nbase_url = \"http://{simulator}/v1\"\n\
         [upstreams.up.connection]\nstream_usage = \"{stream_usage}\"\n{}\n{}\n{}",
        model("whole"),
        model("cut-by-caller"),
        model("cut-by-upstream"),
    )
}

/// Streams a chat with `model` and reads it until so many of its events carried text, then hangs
/// up; to its end where it ends before. What was read of it.
async fn stream(gateway: &Gateway, model: &str, most: u64) -> String {
    let body = json!({"model": model, "stream": true, "max_tokens": TOKENS,
        "messages": [{"role": "user", "content": "Tell of the tide, and of the gate"}]});
    let response = gateway.send("POST", "/v1/chat/completions", &body.to_string()).await;
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let mut read = String::new();
    while contents(&read) < most {
        let Some(Ok(frame)) = body.frame().await else { break };
        read.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    read
}

fn contents(stream: &str) -> u64 {
    let events = stream.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    let events = events.filter_map(|data| serde_json::from_str::<Value>(data).ok());
    let text = |event: &Value| event["choices"][0]["delta"]["content"].as_str().map(str::len);
    events.filter(|event| text(event).is_some_and(|bytes| bytes > 0)).count() as u64
}

/// The first of `path`'s answers that `holds`.
async fn until(address: SocketAddr, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let asking = async {
        loop {
            let answer = json(send(address, "GET", path, &[("host", "localhost")], "").await).await;
            if holds(&answer) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap()
}

/// The prompt's and the answer's tokens of call number `number`, to `model`, as the gateway and as
/// the simulator have them.
async fn books(gateway: &Gateway, sim: SocketAddr, model: &str, number: usize) -> [[u64; 2]; 2] {
    let path = format!("/admin/usage?model={model}");
    let ours = until(gateway.admin, &path, |sums| sums["data"][0]["attempts"] == 1).await;
    let theirs = until(sim, "/sim/ledger", |all| all.as_array().unwrap().len() == number).await;
    let of = |row: &Value, names: [&str; 2]| names.map(|name| row[name].as_u64().unwrap());
    [
        of(&ours["data"][0], ["input_tokens", "output_tokens"]),
        of(&theirs[number - 1], ["prompt_tokens", "completion_tokens"]),
    ]
}

async fn faults(sim: SocketAddr, faults: Value) {
    let response = send(sim, "POST", "/sim/faults", &[], &faults.to_string()).await;
    assert_eq!(response.status(), 200);
}

async fn check(stream_usage: &str) {
    let (_process, sim) = simulator(&["--ttft", "0", "--itl", "0"]).await;
    let gateway = Gateway::start(&config(sim, stream_usage)).await;
    // A prompt that was not told is estimated.
    let cut_is_told = stream_usage == "continuous";

    let whole = stream(&gateway, "whole", u64::MAX).await;
    assert!(whole.ends_with("data: [DONE]\n\n") && contents(&whole) == TOKENS, "{whole}");
    assert!(!whole.contains("\"choices\":[]"), "the caller did not ask: {whole}");
    let [ours, theirs] = books(&gateway, sim, "whole", 1).await;
    assert_eq!((ours, theirs[1]), (theirs, TOKENS));

    // It stops in the middle, and never sends more: the caller hangs up.
    faults(sim, json!({"stall_mid_rate": 1.0})).await;
    let cut = stream(&gateway, "cut-by-caller", TOKENS / 2).await;
    assert_eq!(contents(&cut), TOKENS / 2);
    let [ours, theirs] = books(&gateway, sim, "cut-by-caller", 2).await;
    assert_eq!((ours[1], theirs[1]), (TOKENS / 2, TOKENS / 2));
    assert_eq!(ours[0] == theirs[0], cut_is_told, "{ours:?}, {theirs:?}");

    faults(sim, json!({"stall_mid_rate": 0.0, "truncate_rate": 1.0})).await;
    let cut = stream(&gateway, "cut-by-upstream", u64::MAX).await;
    assert_eq!(contents(&cut), TOKENS / 2);
    let [ours, theirs] = books(&gateway, sim, "cut-by-upstream", 3).await;
    assert_eq!((ours[1], theirs[1]), (TOKENS / 2, TOKENS / 2));
    assert_eq!(ours[0] == theirs[0], cut_is_told, "{ours:?}, {theirs:?}");
}

#[tokio::test]
async fn asked_for_at_the_end_a_whole_stream_is_exact_and_a_cut_one_counted() {
    check("ask").await;
}

#[tokio::test]
async fn asked_for_in_every_event_all_are_exact() {
    check("continuous").await;
}
