//! A gateway that is killed again and again, with calls in flight: what they may have cost counts.

use crate::web::{BIN, json, send, simulator};
use serde_json::Value;
use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, Output},
    time::Duration,
};
use tidegate_testkit::process::Tidegate;
use tokio::sync::mpsc;

const CHAT: &str = r#"{"model":"chat","messages":[{"role":"user","content":"hi"}],"max_tokens":4}"#;
/// At a dollar for a thousand tokens, in thousandths of a dollar.
const MOST: usize = CHAT.len() + 4;
/// Calls that a budget has room for, and calls of each process.
const ROOM: usize = 12;
const EACH: usize = 5;
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn config(upstream: SocketAddr) -> String {
    // Half of a call too much: it must not be rounded up to one.
    let total = (MOST * ROOM + MOST / 2) as f64 / 1_000.0;
    format!(
        "[upstreams.far]\nbase_url = \"http://{upstream}/v1\"\nmax_concurrency = 100\n\
         [models.chat]\ntargets = [{{ upstream = \"far\", model = \"sim-small\" }}]\n\
         price = {{ input = 1000, output = 1000 }}\n\
         [teams.search]\nbudget = {{ total = {total}, hard = true }}\n"
    )
}

fn tidegate(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(BIN);
    command.args(args).current_dir(dir);
    command.env_remove("DATABASE_URL").env_remove("TIDEGATE_CONFIG");
    command
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned()
}

/// Requests that reached the simulator.
async fn requests(simulator: SocketAddr) -> usize {
    let totals = json(send(simulator, "GET", "/sim/ledger/totals", &[], "").await).await;
    usize::try_from(totals["requests"].as_u64().unwrap()).unwrap()
}

/// Starts a gateway, makes calls that are not answered, and kills it once `sent` of them are with
/// the upstream and the others refused.
async fn killed(dir: &Path, key: &str, upstream: SocketAddr, sent: usize) {
    let args = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--access-log", "off"];
    let mut process = Tidegate::spawn_command(&mut tidegate(dir, &args)).unwrap();
    let address = process.addr().await;
    let before = requests(upstream).await;
    let (ended, mut endings) = mpsc::channel(EACH);
    for _ in 0..EACH {
        let (ended, auth) = (ended.clone(), format!("Bearer {key}"));
        tokio::spawn(async move {
            let headers = [("authorization", &*auth)];
            let answer = send(address, "POST", "/v1/chat/completions", &headers, CHAT).await;
            ended.send((answer.status().as_u16(), json(answer).await)).await.unwrap();
        });
    }
    let settled = async {
        for _ in sent..EACH {
            let (status, body) = endings.recv().await.unwrap();
            assert_eq!((status, &body["error"]["code"]), (402, &Value::from("budget_exceeded")));
        }
        while requests(upstream).await < before + sent {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.unwrap();
    process.kill().unwrap();
}

#[tokio::test]
async fn a_killed_gateway_does_not_give_a_hard_budget_its_money_back() {
    let (_sim, upstream) = simulator(&["--ttft", "600s"]).await;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("tidegate.toml"), config(upstream)).unwrap();
    let create = ["keys", "create", "--name", "ci", "--team", "search"];
    let key = said(&tidegate(dir, &create).output().unwrap());
    for sent in [5, 5, 2, 0, 0] {
        killed(dir, &key, upstream, sent).await;
    }
    assert_eq!(requests(upstream).await, ROOM, "the budget has paid for so many, once");
    let usage = ["usage", "--format", "json", "--team", "search"];
    let sums: Value =
        serde_json::from_str(&said(&tidegate(dir, &usage).output().unwrap())).unwrap();
    let sums = &sums["data"][0];
    assert_eq!((&sums["attempts"], &sums["failed"]), (&ROOM.into(), &ROOM.into()), "{sums}");
    let cost = (MOST * ROOM) as u64 * 1_000_000_000;
    assert_eq!(sums["cost_picodollars"], cost, "at the most they can have cost: {sums}");
}
