//! A canary in every secret there is: none is ever seen where it does not belong, however things
//! go wrong, with the process's log at its most talkative.
//!
//! Looked through are standard output and error, the access log, every file of the data directory,
//! every answer with its headers, the output of a batch; for the canary as it is and as base64,
//! hexadecimal or a list of bytes would show it. (Percent-encoding and JSON leave letters and digits
//! as they are.) Panics are looked through where they can be made: `src/panics.rs`.

mod look;
mod misplaced;
mod parrot;
mod said;

use crate::web::{BIN, simulator};
use look::{Findings, ask, at_rest, files, private_keys};
use misplaced::{given_out, misplaced_keys, operators, wrong_keys};
use parrot::{parrot, parrot_database};
use std::{fmt::Write as _, fs, net::SocketAddr, path::Path, process::Command, time::Duration};
use tidegate_testkit::process::{Pipe, Tidegate};

/// In a key of an upstream that refuses it.
const LITERAL: &str = "kAnArYLiteral0aQ7";
/// In a key of an upstream that is not there.
const FROM_ENV: &str = "kAnArYEnvironment1bR8";
/// In a key of an upstream that repeats all it is told.
const FROM_FILE: &str = "kAnArYFile2cS9";
/// In a header the settings give every request.
const HEADER: &str = "kAnArYHeader3dT0";
const CLIENT: &str = "kAnArYClient4eU1";
/// What a token endpoint gives.
const TOKEN: &str = "kAnArYToken5fV2";
const ADMIN: &str = "kAnArYAdmin6gW3";
const PASSWORD: &str = "kAnArYPassword7hX4";
/// In what callers send as keys and is none.
const WRONG: &str = "kAnArYWrong8iY5";
const OURS: [&str; 9] =
    [LITERAL, FROM_ENV, FROM_FILE, HEADER, CLIENT, TOKEN, ADMIN, PASSWORD, WRONG];

const CHAT: &str =
    r#"{"model":"MODEL","messages":[{"role":"user","content":"hello"}],"max_tokens":4}"#;

fn run(args: &[&str], state: &Path) -> Vec<u8> {
    let mut command = Command::new(BIN);
    let output = command.args(args).arg("--data-dir").arg(state).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

#[tokio::test]
async fn no_secret_is_seen_anywhere_whatever_goes_wrong() {
    let (_sim, sim) = simulator(&["--api-key", "another", "--ttft", "1ms"]).await;
    let (_good, good) = simulator(&["--api-key", FROM_ENV, "--ttft", "1ms"]).await;
    let parrot = parrot().await;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fs::write(dir.path().join("admin"), ADMIN).unwrap();
    fs::write(dir.path().join("key"), FROM_FILE).unwrap();
    let file = dir.path().join("tidegate.toml");
    fs::write(&file, config(sim, good, parrot, dir.path())).unwrap();
    let key = String::from_utf8(run(&["keys", "create", "--name", "app"], &state)).unwrap();
    let key = key.trim();
    // The whole key, and the part of it that is secret.
    let mut secrets = OURS.to_vec();
    secrets.push(key.rsplit('-').next().unwrap());

    let mut command = Command::new(BIN);
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    command.arg("--config").arg(&file).arg("--data-dir").arg(&state).current_dir(dir.path());
    command.arg("--access-log").arg(dir.path().join("access.log"));
    command.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full").env("CANARY_KEY", FROM_ENV);
    let database = parrot_database().await;
    command.env("DATABASE_URL", format!("postgres://us:{PASSWORD}@{database}/books"));
    let process = Tidegate::spawn_command(&mut command).unwrap();
    let address = process.addr().await;
    let line = process.line(Pipe::Stderr, "admin   http://").await;
    let admin: SocketAddr = line.split('/').nth(2).unwrap().parse().unwrap();

    let mut findings = Findings::default();
    let bearer = format!("Bearer {key}");
    calls(&mut findings, &secrets, address, &bearer).await;
    wrong_keys(&mut findings, &secrets, address, key).await;
    misplaced_keys(&mut findings, &secrets, address, key).await;
    operators(&mut findings, &secrets, admin, key).await;
    // What was given out meanwhile is as secret.
    let given = given_out(address, admin, key).await;
    secrets.extend(given.iter().map(String::as_str));
    process.line(Pipe::Stderr, "the ledger").await;

    // What is at rest while it runs, journals included, and when it has ended.
    at_rest(&mut findings, &state, &secrets);
    process.terminate().unwrap();
    let ended = process.wait(Duration::from_secs(60)).await;
    at_rest(&mut findings, &state, &secrets);
    let private = private_keys(&state);
    secrets.extend(private.iter().map(String::as_str));
    assert!(ended.stderr.contains("DEBUG"), "the log is talkative: {}", ended.stderr);
    assert!(ended.stderr.contains("who is"), "the database was heard: {}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    let access = fs::read(dir.path().join("access.log")).unwrap();
    assert!(access.len() > 1000);
    for (place, said) in [
        ("standard output", ended.stdout.as_bytes()),
        ("standard error", ended.stderr.as_bytes()),
        ("the access log", &access),
    ] {
        findings.look(place, said, &secrets);
    }
    assert!(findings.0.is_empty(), "{}", findings.0);
}

/// Every way for a call to end, as one answer and as a stream.
async fn calls(findings: &mut Findings, secrets: &[&str], address: SocketAddr, bearer: &str) {
    let auth = [("authorization", bearer)];
    let mut statuses = Vec::new();
    for model in MODELS.into_iter().chain(["token"]) {
        for stream in ["", r#""stream":true,"#] {
            let body = CHAT.replace("MODEL", model);
            let body = body.replacen('{', &format!("{{{stream}"), 1);
            let route = ("POST", "/v1/chat/completions");
            statuses.push((model, ask(findings, secrets, address, route, &auth, &body).await));
        }
    }
    assert_eq!(statuses[0], ("fine", 200), "{statuses:?}");
    assert!(statuses[2..].iter().filter(|(_, status)| *status >= 400).count() > 15, "{statuses:?}");
    for body in ["{", r#"{"model":5}"#, "[]", "\u{0}", r#"{"model":"fine","messages":7}"#] {
        ask(findings, secrets, address, ("POST", "/v1/chat/completions"), &auth, body).await;
    }
    ask(findings, secrets, address, ("GET", "/v1/models"), &auth, "").await;
    ask(findings, secrets, address, ("GET", "/.well-known/jwks.json"), &auth, "").await;
}

/// The models, each a way to fail.
const MODELS: [&str; 13] = [
    "fine", "refusing", "dead", "s400", "s401", "s403", "s404", "s422", "s429", "s500", "cut",
    "html", "untoken",
];

fn config(sim: SocketAddr, good: SocketAddr, parrot: SocketAddr, dir: &Path) -> String {
    let mut config = format!(
        r#"
        [server]
        admin_token = {{ file = "{dir}/admin" }}
        [log]
        level = "trace"
        [retry]
        max_attempts = 2
        [upstreams.good]
        base_url = "http://{good}/v1"
        api_key = {{ env = "CANARY_KEY" }}
        [upstreams.refusing]
        base_url = "http://{sim}/v1"
        api_key = "{LITERAL}"
        [upstreams.dead]
        base_url = "http://127.0.0.1:1/v1"
        api_key = {{ env = "CANARY_KEY" }}
        connection = {{ headers = {{ x-secret = "{HEADER}" }} }}
        [upstreams.untoken]
        base_url = "http://{parrot}/500"
        oauth = {{ token_url = "http://{parrot}/refuse", client_id = "us", client_secret = "{CLIENT}" }}
        [upstreams.token]
        base_url = "http://{parrot}/401"
        oauth = {{ token_url = "http://{parrot}/token", client_id = "us", client_secret = "{CLIENT}", auth = "body" }}
        [models.fine]
        targets = [{{ upstream = "good", model = "m" }}]
        [models.token]
        targets = [{{ upstream = "token", model = "m" }}]
        "#,
        dir = dir.display(),
    );
    for model in MODELS {
        if ["fine"].contains(&model) {
            continue;
        }
        if !["refusing", "dead", "untoken"].contains(&model) {
            let way = model.trim_start_matches('s');
            write!(
                config,
                "[upstreams.{model}]\nbase_url = \"http://{parrot}/{way}\"\n\
                 api_key = {{ file = \"{}/key\" }}\n\
                 connection = {{ headers = {{ x-secret = \"{HEADER}\" }} }}\n",
                dir.display()
            )
            .unwrap();
        }
        write!(
            config,
            "[models.{model}]\ntargets = [{{ upstream = \"{model}\", model = \"m\" }}]\n"
        )
        .unwrap();
    }
    config
}

/// A batch and a load test against a server that repeats the key, and the files they leave.
#[tokio::test]
async fn a_batch_and_a_bench_leave_no_key_behind() {
    let parrot = parrot().await;
    let secrets = [FROM_ENV, WRONG];
    // (A 429 is waited for as long as it comes.)
    for way in ["400", "401", "404", "500", "cut", "html"] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("rows.jsonl"), "{\"prompt\":\"one\"}\n").unwrap();
        let url = format!("http://{parrot}/{way}");
        for args in [
            &["batch", "rows.jsonl", "--base-url", &url, "--model", "m", "--max-attempts", "1"][..],
            &["batch", "status", "rows.jsonl"],
            &["bench", &url, "--model", "m", "--concurrency", "1", "--requests", "2"],
            &["bench", &url, "--model", "m", "--api-key-env", WRONG],
        ] {
            let dir = dir.path().to_owned();
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            let run = move || {
                let mut command = Command::new(BIN);
                command.args(&args).current_dir(&dir).env("OPENAI_API_KEY", FROM_ENV);
                let output = command.env("RUST_LOG", "trace").output().unwrap();
                (args, output)
            };
            let (args, output) = tokio::task::spawn_blocking(run).await.unwrap();
            let mut findings = Findings::default();
            findings.look("standard output", &output.stdout, &secrets);
            findings.look("standard error", &output.stderr, &secrets);
            assert!(findings.0.is_empty(), "{args:?}: {}", findings.0);
        }
        let files = files(dir.path());
        assert!(files.len() > 2, "{files:?}");
        let mut findings = Findings::default();
        for path in files {
            findings.look(&path.display().to_string(), &fs::read(&path).unwrap(), &secrets);
        }
        assert!(findings.0.is_empty(), "{way}: {}", findings.0);
    }
}
