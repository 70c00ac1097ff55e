//! A canary in every secret there is: none is ever seen where it does not belong, however things
//! go wrong, with the process's log at its most talkative.
//!
//! Looked through are standard output and error, the access log, every file of the data directory,
//! every answer with its headers; for the canary as it is and as base64 or hexadecimal would show
//! it. (Percent-encoding and JSON leave letters and digits as they are.)

use crate::web::{BIN, send, simulator};
use http_body_util::BodyExt as _;
use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tidegate_testkit::process::{Pipe, Tidegate};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

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

/// How a secret could be seen in `haystack`, if it can.
fn seen(haystack: &[u8], secret: &str) -> Option<&'static str> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let has = |needle: &[u8]| haystack.windows(needle.len()).any(|found| found == needle);
    let lower = haystack.to_ascii_lowercase();
    if lower.windows(secret.len()).any(|found| found == secret.to_ascii_lowercase().as_bytes()) {
        return Some("as it is");
    }
    let hex = secret.bytes().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    });
    if lower.windows(hex.len()).any(|found| found == hex.as_bytes()) {
        return Some("in hexadecimal");
    }
    // What stands before it shifts its base64 by none, one or two bytes; whole groups stay.
    for skipped in 0..3 {
        let groups = secret.as_bytes()[skipped..].chunks_exact(3).map(|group| {
            let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
            [18, 12, 6, 0].map(|shift| DIGITS[(bits >> shift) as usize & 63])
        });
        if has(&groups.flatten().collect::<Vec<u8>>()) {
            return Some("in base64");
        }
    }
    None
}

#[test]
fn a_canary_is_found_however_it_is_written() {
    assert_eq!(seen(b"x kAnArYFile2cS9 y", FROM_FILE), Some("as it is"));
    assert_eq!(seen(b"x canary y", FROM_FILE), None);
    // "us:kAnArYFile2cS9", as HTTP Basic has it.
    assert_eq!(seen(b"Basic dXM6a0FuQXJZRmlsZTJjUzk=", FROM_FILE), Some("in base64"));
    assert_eq!(seen(b"6b416e41725946696c65326353 39", FROM_FILE), None);
    assert_eq!(seen(b"6b416e41725946696c6532635339", FROM_FILE), Some("in hexadecimal"));
}

/// Repeats everything it was sent, in the form its path asks for: `/STATUS/…`, `/cut/…`, `/token`.
async fn parrot() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut asked = Vec::new();
                let mut piece = [0; 4096];
                loop {
                    let Ok(read) = stream.read(&mut piece).await else { return };
                    asked.extend_from_slice(&piece[..read]);
                    if read == 0 || is_whole(&asked) {
                        break;
                    }
                }
                let said = String::from_utf8_lossy(&asked).into_owned();
                let answer = repeated(&said);
                drop(stream.write_all(answer.as_bytes()).await);
                drop(stream.shutdown().await);
            });
        }
    });
    address
}

fn is_whole(asked: &[u8]) -> bool {
    let text = String::from_utf8_lossy(asked).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    length.is_none_or(|length| body.len() >= length.trim().parse().unwrap_or(0))
}

fn repeated(said: &str) -> String {
    let way = said.split('/').nth(1).unwrap_or_default();
    let way = way.split(' ').next().unwrap_or_default();
    let echo = said.replace(['"', '\\'], "'").replace(['\r', '\n'], " ");
    let body = match way {
        "token" => {
            format!(r#"{{"access_token":"{TOKEN}","token_type":"Bearer","expires_in":3600}}"#)
        }
        "refuse" => format!(r#"{{"error":"invalid_client","error_description":"{echo}"}}"#),
        "cut" => format!(r#"{{"id":"{echo}","object":"#),
        "html" => format!("<html>{echo}"),
        _ => format!(
            r#"{{"error":{{"message":"Incorrect API key provided: {echo}","type":"{echo}","param":"{echo}","code":"{echo}"}}}}"#
        ),
    };
    let status = match way {
        "token" | "cut" | "html" => 200,
        "refuse" => 401,
        status => status.parse().unwrap_or(500),
    };
    let echo = echo.chars().filter(char::is_ascii_graphic).take(1500).collect::<String>();
    format!(
        "HTTP/1.1 {status} {echo}\r\ncontent-type: application/json\r\nx-echo: {echo}\r\n\
         www-authenticate: {echo}\r\nretry-after: {echo}\r\nx-request-id: {echo}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
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

/// What was seen where it does not belong.
#[derive(Default)]
struct Findings(String);

impl Findings {
    fn look(&mut self, place: &str, at: &[u8], secrets: &[&str]) {
        for secret in secrets {
            if let Some(how) = seen(at, secret) {
                writeln!(self.0, "{place}: {secret} {how}: {}", String::from_utf8_lossy(at))
                    .unwrap();
            }
        }
    }
}

/// Every file below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// Sends one request and looks through its answer.
async fn ask(
    findings: &mut Findings,
    secrets: &[&str],
    to: SocketAddr,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    body: &str,
) -> u16 {
    let response = send(to, method, path, headers, body).await;
    let (head, body) = response.into_parts();
    let mut said = format!("{:?}\n", head.headers).into_bytes();
    if let Ok(body) = body.collect().await {
        said.extend_from_slice(&body.to_bytes());
    }
    findings.look(&format!("{method} {path} {:?}", headers.first()), &said, secrets);
    head.status.as_u16()
}

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
    command.env("DATABASE_URL", format!("postgres://us:{PASSWORD}@127.0.0.1:1/books"));
    let process = Tidegate::spawn_command(&mut command).unwrap();
    let address = process.addr().await;
    let line = process.line(Pipe::Stderr, "admin   http://").await;
    let admin: SocketAddr = line.split('/').nth(2).unwrap().parse().unwrap();

    let mut findings = Findings::default();
    let bearer = format!("Bearer {key}");
    calls(&mut findings, &secrets, address, &bearer).await;
    wrong_keys(&mut findings, &secrets, address, key).await;
    operators(&mut findings, &secrets, admin).await;

    // What is at rest while it runs, journals included, and when it has ended.
    at_rest(&mut findings, &state, &secrets);
    process.terminate().unwrap();
    let ended = process.wait(Duration::from_secs(60)).await;
    at_rest(&mut findings, &state, &secrets);
    let private = private_keys(&state);
    secrets.extend(private.iter().map(String::as_str));
    assert!(ended.stderr.contains("DEBUG"), "the log is talkative: {}", ended.stderr);
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

/// Looks through the data directory. The signing keys are what their files are for.
fn at_rest(findings: &mut Findings, state: &Path, secrets: &[&str]) {
    for path in files(state).iter().filter(|path| !is_pem(path)) {
        findings.look(&path.display().to_string(), &fs::read(path).unwrap(), secrets);
    }
}

fn private_keys(state: &Path) -> Vec<String> {
    let files = files(state);
    let pems = files.iter().filter(|path| is_pem(path));
    let lines = pems.map(|path| fs::read_to_string(path).unwrap().lines().nth(1).unwrap().into());
    let keys: Vec<String> = lines.collect();
    assert!(!keys.is_empty());
    keys
}

fn is_pem(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind == "pem")
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

/// Wrong credentials, wherever one can be put.
async fn wrong_keys(findings: &mut Findings, secrets: &[&str], address: SocketAddr, key: &str) {
    let id = key.split('-').nth(1).unwrap();
    let forged = [
        format!("Bearer tg-{id}-{WRONG}"),
        format!("Bearer {WRONG}"),
        format!("Bearer eyJhbGciOiJFZERTQSJ9.{WRONG}.{WRONG}"),
        format!("Basic {WRONG}"),
        format!("{WRONG} {WRONG}"),
    ];
    for wrong in &forged {
        let headers = [("authorization", &**wrong)];
        let status = ask(findings, secrets, address, ("GET", "/v1/models"), &headers, "").await;
        assert_eq!(status, 401, "{wrong}");
    }
    for name in ["x-api-key", "api-key"] {
        ask(findings, secrets, address, ("GET", "/v1/models"), &[(name, WRONG)], "").await;
    }
    let path = format!("/v1/models?api_key={WRONG}&key={key}");
    ask(findings, secrets, address, ("GET", &path), &[], "").await;
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    for form in [
        format!("grant_type=client_credentials&client_id={id}&client_secret={WRONG}"),
        format!("grant_type={WRONG}&client_id={WRONG}&client_secret={key}"),
        format!("grant_type=client_credentials&client_id={id}&client_secret={key}&scope={WRONG}"),
    ] {
        ask(findings, secrets, address, ("POST", "/oauth/token"), &headers, &form).await;
    }
}

/// The operators' port, with the right token and with wrong ones.
async fn operators(findings: &mut Findings, secrets: &[&str], admin: SocketAddr) {
    let right = format!("Bearer {ADMIN}");
    for path in ["upstreams", "mirrors", "usage", "keys", "keys/nobody000000"] {
        let path = format!("/admin/{path}");
        let headers = [("authorization", &*right)];
        ask(findings, secrets, admin, ("GET", &path), &headers, "").await;
        let wrong = format!("Bearer {WRONG}");
        let headers = [("authorization", &*wrong)];
        ask(findings, secrets, admin, ("GET", &path), &headers, "").await;
    }
}

/// Secrets written where none belongs: `check` says what is wrong without repeating them.
#[test]
fn what_is_wrong_with_a_configuration_is_said_without_its_secrets() {
    let whole =
        |more: &str| format!("[upstreams.a]\nbase_url = \"http://127.0.0.1:1/v1\"\n{more}\n");
    for (config, is_good) in [
        (whole(&format!("api_key = \"{LITERAL}\"")), true),
        (whole(&format!("connection = {{ headers = {{ x-a = \"{LITERAL}\" }} }}")), true),
        (
            whole(&format!(
                "oauth = {{ token_url = \"http://a/t\", client_id = \"a\", client_secret = \"{LITERAL}\" }}"
            )),
            true,
        ),
        (format!("[server]\nadmin_token = \"{LITERAL}\""), true),
        (whole(&format!("api_key = {{ evn = \"{LITERAL}\" }}")), false),
        (whole(&format!("api_key = [\"{LITERAL}\"]")), false),
        (whole(&format!("api_key = \"{LITERAL}\\n\"")), false),
        (whole(&format!("api_kee = \"{LITERAL}\"")), false),
        (whole(&format!("api_key = \"{LITERAL}")), false),
        (whole(&format!("oauth = \"{LITERAL}\"")), false),
        (whole(&format!("connection = {{ headers = {{ x-a = \"{LITERAL}\\n\" }} }}")), false),
        (whole(&format!("connection = {{ headers = \"{LITERAL}\" }}")), false),
        (format!("[upstreams.a]\nbase_url = \"http://us:{LITERAL}@127.0.0.1:1/v1\""), false),
        (format!("[server]\nadmin_token = {{ file = [\"{LITERAL}\"] }}"), false),
        (format!("[ledger]\nurl = \"postgres://us:{LITERAL}@h:x/db\""), false),
        (format!("[ledger]\nurl = \"mysql://us:{LITERAL}@h/db\""), false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tidegate.toml");
        fs::write(&file, &config).unwrap();
        let mut command = Command::new(BIN);
        command.args(["check", "--config"]).arg(&file).current_dir(dir.path());
        let output = command.env_remove("DATABASE_URL").output().unwrap();
        assert_eq!(output.status.success(), is_good, "{config}: {output:?}");
        let mut findings = Findings::default();
        findings.look("check", &output.stdout, &[LITERAL]);
        findings.look("check", &output.stderr, &[LITERAL]);
        assert!(findings.0.is_empty(), "{config}: {}", findings.0);
    }
}
