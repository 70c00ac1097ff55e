//! Prices and budgets from outside: what models cost, and what happens when the money is gone.

use crate::web::{BIN, json, send};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, Output},
    time::Duration,
};
use tidegate_testkit::process::{Pipe, Tidegate};

/// A tenth of a cent for each token; a call reserves its bytes and four tokens.
const CONFIG: &str = r#"
[upstreams.sim]
protocol = "sim"
[models.sim-small]
targets = [{ upstream = "sim" }]
price = { input = 1000, output = 1000 }
[models.listed]
targets = [{ upstream = "sim", model = "gpt-4o-mini" }]
[prices]
file = "prices.json"
[teams.search]
budget = { total = 0.2, hard = true }
"#;
const PRICES: &str = r#"{"gpt-4o-mini":
    {"input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07,
     "input_cost_per_token_above_200k_tokens": 3e-07,
     "output_cost_per_token_above_200k_tokens": 9e-07}}"#;
const CHAT: &str =
    r#"{"model":"sim-small","messages":[{"role":"user","content":"hi"}],"max_tokens":4}"#;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn command(dir: &Path, args: &[&str]) -> Command {
    std::fs::write(dir.join("tidegate.toml"), CONFIG).unwrap();
    std::fs::write(dir.join("prices.json"), PRICES).unwrap();
    let mut command = Command::new(BIN);
    command.args(args).current_dir(dir);
    command.env_remove("DATABASE_URL").env_remove("TIDEGATE_CONFIG");
    command
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned()
}

async fn serve(dir: &Path) -> (Tidegate, SocketAddr) {
    let args = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--access-log", "off"];
    let process = Tidegate::spawn_command(&mut command(dir, &args)).unwrap();
    let address = process.addr().await;
    (process, address)
}

async fn call(address: SocketAddr, key: &str) -> (u16, Value) {
    let auth = format!("Bearer {key}");
    let headers = [("authorization", &*auth)];
    let response = send(address, "POST", "/v1/chat/completions", &headers, CHAT).await;
    (response.status().as_u16(), json(response).await)
}

#[tokio::test]
async fn a_hard_budget_holds_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let create = ["keys", "create", "--name", "ci", "--team", "search"];
    let key = said(&command(dir, &create).output().unwrap());
    let (process, address) = serve(dir).await;
    let (mut spent_tokens, mut answered) = (0, 0);
    let refused = loop {
        let (status, body) = call(address, &key).await;
        if status != 200 {
            break (status, body);
        }
        answered += 1;
        spent_tokens += body["usage"]["total_tokens"].as_u64().unwrap();
        assert!(answered < 200, "the budget is never spent");
    };
    let (status, body) = refused;
    assert_eq!((status, &body["error"]["code"]), (402, &json!("budget_exceeded")), "{body}");
    assert_eq!(body["error"]["type"], "insufficient_quota");
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("the team `search`") && message.contains("$0.20 in all"), "{message}");
    assert!(answered > 3 && spent_tokens <= 200, "{answered} calls, {spent_tokens} tokens");
    let line = process.line(Pipe::Stderr, "budget of the team search").await;
    assert!(line.contains("50 % of $0.20 in all are spent"), "{line}");
    process.terminate().unwrap();
    assert!(process.wait(PATIENCE).await.status.success());

    let (_process, address) = serve(dir).await;
    assert_eq!(call(address, &key).await.0, 402, "the ledger knows what was spent");
}

#[test]
fn what_models_cost_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let ask = |args: &[&str]| command(dir.path(), args).output().unwrap();
    let all: Value = serde_json::from_str(&said(&ask(&["prices", "--json"]))).unwrap();
    assert_eq!(
        all[0],
        json!({
            "model": "listed", "upstream": "sim", "upstream_model": "gpt-4o-mini",
            "input": 0.15, "cached_input": 0.15, "cache_write": 0.15, "output": 0.6,
            "above": [{
                "tokens": 200_000, "input": 0.3, "cached_input": 0.3, "cache_write": 0.3,
                "output": 0.9,
            }],
            "from": "list",
        })
    );
    assert_eq!(all[1]["from"], "model");
    let one = said(&ask(&["prices", "sim-small"]));
    assert!(one.lines().count() == 2 && one.contains("1000"), "{one}");
    let unknown = ask(&["prices", "sim-smal"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("did you mean `sim-small`?"));
}
