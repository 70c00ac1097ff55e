//! Callers' keys from outside: the command line, the admin port, and gateways that run meanwhile.

use crate::web::{BIN, Gateway, json, send, simulator, text};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};
use tidegate_testkit::process::{Pipe, Tidegate};

const CHAT: &str =
    r#"{"model":"sim-small","messages":[{"role":"user","content":"hi"}],"max_tokens":4}"#;
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn keys(state: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(BIN);
    command.arg("keys").args(args).arg("--data-dir").arg(state);
    command.env_remove("TIDEGATE_CONFIG").output().unwrap()
}

/// What a command that went well wrote on standard output.
#[track_caller]
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned()
}

#[track_caller]
fn refuses(output: &Output, words: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(stderr.contains(words), "{stderr}");
    assert!(output.stdout.is_empty());
}

fn id_of(key: &str) -> &str {
    key.split('-').nth(1).unwrap()
}

fn state_of(gateway: &Gateway) -> PathBuf {
    gateway.dir.path().join("state")
}

async fn status(address: SocketAddr, key: &str) -> u16 {
    let auth = format!("Bearer {key}");
    let headers = [("authorization", &*auth)];
    send(address, "GET", "/v1/models", &headers, "").await.status().as_u16()
}

/// Waits until the gateway takes `key`, or no longer does: at most a second after a change
/// elsewhere. Asked often enough, it answers a key it does not know 429 instead of 401.
async fn becomes(address: SocketAddr, key: &str, good: bool) {
    let changed = async {
        loop {
            match (status(address, key).await, good) {
                (200, true) | (401 | 429, false) => return,
                (200 | 401 | 429, _) => tokio::time::sleep(Duration::from_millis(20)).await,
                (other, _) => panic!("{other}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, changed).await.unwrap();
}

async fn operate(gateway: &Gateway, method: &str, path: &str, body: &str) -> (u16, Value) {
    let response = send(gateway.admin, method, path, &[("host", "localhost")], body).await;
    (response.status().as_u16(), json(response).await)
}

#[test]
fn keys_are_made_shown_changed_rotated_and_revoked_by_command() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let flags = "create --name ci --team search --models chat,embed --expires 30d --rpm 600 --tpm \
                 1000 --cost-per-minute 0.5 --concurrency 4 --budget-day 12.50 --budget-month 100 \
                 --budget-total 1000 --hard";
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let key = said(&keys(&state, &flags));
    let id = id_of(&key).to_owned();

    let mut shown: Value =
        serde_json::from_str(&said(&keys(&state, &["show", &id, "--json"]))).unwrap();
    for time in ["created_at", "expires_at"] {
        assert!(shown.as_object_mut().unwrap().remove(time).unwrap().is_string());
    }
    let expected = json!({
        "id": id, "name": "ci", "team": "search", "models": ["chat", "embed"],
        "limits": {"requests_per_minute": 600, "tokens_per_minute": 1000,
                   "cost_per_minute_usd": 0.5, "concurrency": 4},
        "budgets": {"day_usd": 12.5, "month_usd": 100.0, "total_usd": 1000.0, "hard": true},
        "revoked_at": null, "former_until": null, "state": "valid",
    });
    assert_eq!(shown, expected);

    let update =
        ["update", &id, "--rpm", "60", "--clear", "team,models,budget-day", "--hard=false"];
    let sheet = said(&keys(&state, &update));
    for words in ["60 rpm", "$100.00/month", "models      all", "team        -"] {
        assert!(sheet.contains(words), "{words} in {sheet}");
    }
    assert!(!sheet.contains("hard") && !sheet.contains("12.50"), "{sheet}");

    let rotated = said(&keys(&state, &["rotate", &id, "--grace", "24h", "--json"]));
    let rotated: Value = serde_json::from_str(&rotated).unwrap();
    assert_eq!(rotated["id"], *id);
    assert!(rotated["former_until"].is_string());
    let second = rotated["key"].as_str().unwrap().to_owned();
    let third = said(&keys(&state, &["rotate", &key]));
    assert_eq!(id_of(&third), id, "a pasted key is as good as its id");

    said(&keys(&state, &["revoke", &id]));
    let list = said(&keys(&state, &["list"]));
    assert!(list.contains("revoked") && list.lines().count() == 2, "{list}");
    let listed: Value = serde_json::from_str(&said(&keys(&state, &["list", "--json"]))).unwrap();
    assert_eq!(listed[0]["state"], "revoked");
    for secret in [&key, &second, &third] {
        let all = format!("{list}{sheet}{listed}");
        assert!(!all.contains(&secret[16..]));
    }
}

#[test]
fn what_cannot_be_done_exits_with_2_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    refuses(&keys(&state, &["show", "nobody"]), "holds no state yet");
    assert_eq!(said(&keys(&state, &["list", "--json"])), "[]");
    let key = said(&keys(&state, &["create"]));
    let id = id_of(&key);
    for action in ["show", "revoke", "rotate"] {
        refuses(&keys(&state, &[action, "nobody"]), "no key of the id `nobody`");
    }
    refuses(&keys(&state, &["update", "nobody", "--rpm", "1"]), "no key of the id `nobody`");
    refuses(&keys(&state, &["update", id]), "nothing to change");
    for (flags, words) in [
        (["--rpm", "0"], "--rpm"),
        (["--budget-day", "much"], "12.50"),
        (["--budget-day", "1e12"], "9000000"),
        (["--cost-per-minute", "0"], "limits.cost_per_minute_usd"),
        (["--tpm", "9999999999999999999"], "limits.tokens_per_minute"),
        (["--models", ""], "models"),
        (["--expires", "0s"], "expires_at"),
        (["--clear", "everything"], "--clear"),
        (["--name", " "], "--name"),
    ] {
        refuses(&keys(&state, &[&["update", id][..], &flags].concat()), words);
    }
    refuses(&keys(&state, &["rotate", id, "--grace", "91d"]), "90 days");
    said(&keys(&state, &["revoke", id]));
    refuses(&keys(&state, &["rotate", id]), "revoked for good");
    refuses(&keys(&state, &["update", id, "--rpm", "1"]), "revoked for good");

    std::fs::write(state.join("state.sqlite"), "no database, ".repeat(100)).unwrap();
    let broken = keys(&state, &["list"]);
    assert_eq!(broken.status.code(), Some(1), "the state's fault, not the command's: {broken:?}");
}

#[tokio::test]
async fn the_admin_port_makes_changes_rotates_and_revokes_while_calls_go_on() {
    let gateway = Gateway::start("").await;
    let (made, body) = operate(&gateway, "POST", "/admin/keys", r#"{"name":"ci"}"#).await;
    assert_eq!(made, 201, "{body}");
    let (id, key) = (body["id"].as_str().unwrap(), body["key"].as_str().unwrap());
    assert_eq!(status(gateway.address, key).await, 200, "good at once");
    let path = format!("/admin/keys/{id}");
    let call = async || {
        let auth = format!("Bearer {key}");
        let headers = [("authorization", &*auth)];
        send(gateway.address, "POST", "/v1/chat/completions", &headers, CHAT).await.status()
    };
    assert_eq!(call().await, 200);

    operate(&gateway, "PATCH", &path, r#"{"models":["other"]}"#).await;
    assert_eq!(call().await, 403, "a narrower scope is in force with the answer");
    let change = r#"{"models":null,"limits":{"requests_per_minute":1}}"#;
    operate(&gateway, "PATCH", &path, change).await;
    let answers = [call().await, call().await];
    assert_eq!(answers.map(|status| status.as_u16()), [200, 429], "and so is a lower limit");

    let (rotated, body) = operate(&gateway, "POST", &format!("{path}/rotate"), "").await;
    assert_eq!(rotated, 200);
    let new = body["key"].as_str().unwrap();
    assert_eq!(status(gateway.address, key).await, 401);
    assert_eq!(status(gateway.address, new).await, 200);
    let listed = said(&keys(&state_of(&gateway), &["list", "--json"]));
    assert!(listed.contains(id) && !listed.contains(&new[16..]), "the same keys, by command");
    operate(&gateway, "DELETE", &path, "").await;
    assert_eq!(status(gateway.address, new).await, 401);
    assert_eq!(status(gateway.address, &gateway.key).await, 200);

    gateway.process.terminate().unwrap();
    let log = gateway.process.wait(PATIENCE).await.stderr;
    for secret in [key, new] {
        assert!(!log.contains(&secret[16..]), "{log}");
    }
}

#[tokio::test]
async fn what_a_command_does_to_keys_reaches_running_gateways() {
    let gateway = Gateway::start("").await;
    let state = state_of(&gateway);
    let key = said(&keys(&state, &["create", "--name", "later"]));
    becomes(gateway.address, &key, true).await;
    let new = said(&keys(&state, &["rotate", id_of(&key)]));
    becomes(gateway.address, &key, false).await;
    becomes(gateway.address, &new, true).await;
    said(&keys(&state, &["revoke", id_of(&key)]));
    becomes(gateway.address, &new, false).await;
}

#[tokio::test]
async fn a_call_in_flight_outlives_its_key() {
    let (_sim, address) = simulator(&["--ttft", "1ms", "--itl", "50ms"]).await;
    let gateway = Gateway::start(&format!(
        "[upstreams.far]\nbase_url = \"http://{address}/v1\"\n\
         [models.sim-small]\ntargets = [{{ upstream = \"far\" }}]\n"
    ))
    .await;
    let body = CHAT.replace("\"max_tokens\":4", "\"stream\":true,\"max_tokens\":40");
    let mut response = gateway.send("POST", "/v1/chat/completions", &body).await;
    assert_eq!(response.status(), 200);
    response.body_mut().frame().await.unwrap().unwrap();
    said(&keys(&state_of(&gateway), &["revoke", id_of(&gateway.key)]));
    becomes(gateway.address, &gateway.key, false).await;
    let rest = text(response).await;
    assert!(rest.ends_with("data: [DONE]\n\n"), "{rest}");
}

#[tokio::test]
async fn several_gateways_share_one_state() {
    let one = Gateway::start("").await;
    let state = state_of(&one);
    let mut command = Command::new(BIN);
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "off"]);
    command.args(["--access-log", "off", "--data-dir"]).arg(&state).current_dir(one.dir.path());
    let two = Tidegate::spawn_command(&mut command).unwrap();
    let second = two.addr().await;
    assert_eq!(status(second, &one.key).await, 200);

    let (_, made) = operate(&one, "POST", "/admin/keys", "").await;
    let key = made["key"].as_str().unwrap();
    becomes(second, key, true).await;
    let path = format!("/admin/keys/{}", made["id"].as_str().unwrap());
    operate(&one, "DELETE", &path, "").await;
    assert_eq!(status(one.address, key).await, 401);
    becomes(second, key, false).await;
    assert_eq!(status(second, &one.key).await, 200);
}

#[cfg(unix)]
#[tokio::test]
async fn a_state_that_is_gone_locks_nobody_out() {
    let gateway = Gateway::start("").await;
    std::fs::remove_dir_all(state_of(&gateway)).unwrap();
    gateway.process.line(Pipe::Stderr, "was deleted or replaced").await;
    assert_eq!(gateway.send("POST", "/v1/chat/completions", CHAT).await.status(), 200);
    let (status, problem) = operate(&gateway, "POST", "/admin/keys", "").await;
    assert_eq!((status, &problem["code"]), (500, &json!("internal_error")));
    assert!(problem["detail"].as_str().unwrap().contains("put it back"), "{problem}");
    assert_eq!(gateway.send("POST", "/v1/chat/completions", CHAT).await.status(), 200);
}
