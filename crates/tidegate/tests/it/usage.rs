//! What calls used and cost, from the ledger of a real gateway.

use crate::web::{BIN, Gateway, json, send};
use serde_json::Value;
use std::{fs, path::Path, process::Command};
use tidegate_testkit::process::{Pipe, Tidegate};

const CHAT: &str = r#"{"model":"chat","messages":[{"role":"user","content":"hello there"}],
    "max_tokens":8}"#;

const PRICED: &str = r#"
    [upstreams.near]
    protocol = "sim"
    [models.chat]
    targets = [{ upstream = "near", model = "sim-small" }]
    price = { input = 0.15, output = 0.60 }
"#;

/// The sums of a gateway, once `attempts` are in them.
async fn sums(admin: std::net::SocketAddr, query: &str, attempts: u64) -> Value {
    let host = [("host", "localhost")];
    let asking = async {
        loop {
            let path = format!("/admin/usage?{query}");
            let sums = json(send(admin, "GET", &path, &host, "").await).await;
            if sums["data"][0]["attempts"] == attempts {
                return sums["data"][0].clone();
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), asking).await.unwrap()
}

/// `tidegate usage` over the state in `dir`.
fn usage(dir: &Path, args: &[&str]) -> (Option<i32>, Vec<u8>, String) {
    let mut command = Command::new(BIN);
    command.args(["usage", "--data-dir"]).arg(dir.join("state")).args(args);
    let output = command.current_dir(dir).env_remove("DATABASE_URL").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), output.stdout, said)
}

#[tokio::test]
async fn port_and_command_tell_what_the_answers_said() {
    let gateway = Gateway::start(PRICED).await;
    let (mut input, mut output) = (0, 0);
    for _ in 0..3 {
        let answer = json(gateway.send("POST", "/v1/chat/completions", CHAT).await).await;
        input += answer["usage"]["prompt_tokens"].as_u64().unwrap();
        output += answer["usage"]["completion_tokens"].as_u64().unwrap();
    }
    let cost = input * 150_000 + output * 600_000;
    let sums = sums(gateway.admin, "group_by=model,cause", 3).await;
    for (name, value) in [
        ("calls", 3),
        ("failed", 0),
        ("input_tokens", input),
        ("output_tokens", output),
        ("unpriced_attempts", 0),
        ("cost_picodollars", cost),
    ] {
        assert_eq!(sums[name], value, "{name} of {sums}");
    }
    assert_eq!((&sums["model"], &sums["cause"]), (&"chat".into(), &"first".into()));

    let dir = gateway.dir.path();
    let (code, said, _) = usage(dir, &["--group-by", "model,cause", "--format", "json"]);
    let said: Value = serde_json::from_slice(&said).unwrap();
    assert_eq!((code, &said["data"][0]), (Some(0), &sums));
    let (code, table, _) = usage(dir, &["--group-by", "upstream"]);
    let table = String::from_utf8(table).unwrap();
    assert!(code == Some(0) && table.starts_with("UPSTREAM  ATTEMPTS"), "{table}");
    assert!(table.lines().nth(1).unwrap().starts_with("near"), "{table}");
    let (_, csv, note) = usage(dir, &["--group-by", "caller", "--format", "csv", "--limit", "1"]);
    assert!(csv.starts_with(b"caller,attempts,calls,"), "{csv:?}");
    assert!(note.contains("--limit asks for more"), "{note}");
    let (code, ..) = usage(dir, &["--format", "parquet", "--output", "usage.parquet"]);
    let parquet = fs::read(dir.join("usage.parquet")).unwrap();
    assert!(code == Some(0) && parquet.starts_with(b"PAR1") && parquet.ends_with(b"PAR1"));

    for (args, words) in
        [(&["--group-by", "modle"][..], "no group"), (&["--from", "yesterday"], "2026-11-01")]
    {
        let (code, _, said) = usage(dir, args);
        assert!(code == Some(2) && said.contains(words), "{args:?}: {code:?} {said}");
    }
    let empty = tempfile::tempdir().unwrap();
    let (code, _, said) = usage(empty.path(), &[]);
    assert!(code == Some(2) && said.contains("there is no ledger"), "{code:?} {said}");
    fs::write(empty.path().join("tidegate.toml"), "[ledger]\nenabled = false").unwrap();
    let (code, _, said) = usage(empty.path(), &[]);
    assert!(code == Some(2) && said.contains("ledger.enabled"), "{code:?} {said}");
}

#[tokio::test]
async fn a_killed_gateway_whose_database_is_away_loses_no_entry() {
    let away = format!("{PRICED}\n[ledger]\nurl = \"postgres://tidegate@127.0.0.1:1/none\"");
    let mut gateway = Gateway::start(&away).await;
    assert!(gateway.process.said(Pipe::Stderr).contains("counts as soon as it answers"));
    for _ in 0..3 {
        let answer = gateway.send("POST", "/v1/chat/completions", CHAT).await;
        assert_eq!(answer.status(), 200);
        json(answer).await;
    }
    let state = gateway.dir.path().join("state");
    let journaled = || {
        let files = fs::read_dir(state.join("ledger-journal")).unwrap();
        let bytes = files.map(|file| fs::read(file.unwrap().path()).unwrap());
        let records = |bytes: Vec<u8>| bytes.windows(4).filter(|four| four == b"TLE2").count();
        bytes.map(records).sum::<usize>()
    };
    let waiting = async {
        while journaled() < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), waiting).await.unwrap();
    gateway.process.kill().unwrap();

    let config = gateway.dir.path().join("tidegate.toml");
    fs::write(&config, PRICED).unwrap();
    let mut command = Command::new(BIN);
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    command.arg("--data-dir").arg(&state).arg("--config").arg(&config);
    command.env_remove("DATABASE_URL").current_dir(gateway.dir.path());
    let again = Tidegate::spawn_command(&mut command).unwrap();
    let line = again.line(Pipe::Stderr, "admin   http://").await;
    let admin = line.split('/').nth(2).unwrap().parse().unwrap();
    let sums = sums(admin, "", 3).await;
    assert_eq!((&sums["calls"], &sums["failed"]), (&3.into(), &0.into()));
}
