//! Who may do what: every route of both ports, by every method, as everybody.
//!
//! A route that is in no table below fails the test: the routes are read from where they are
//! found.

use crate::web::{BIN, Gateway, json, send, text};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    time::Duration,
};
use tidegate_core::Operation;
use tokio::net::TcpSocket;

const METHODS: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];

/// `good` may use both models, `other` is another team's, `scoped` may use `sim-other` alone,
/// `token` was bought with `good`, `admin` is the operators' token.
const IDENTITIES: [&str; 9] =
    ["none", "bad", "good", "other", "expired", "revoked", "scoped", "token", "admin"];

/// The callers' port. Methods that are in no row of a path are 405 for everybody.
const CALLERS: &str = "
path                                     methods   none bad good other expired revoked scoped token admin
/v1/chat/completions                     POST      401 401 200 200 401 401 403 200 401
/v1/completions                          POST      401 401 200 200 401 401 403 200 401
/v1/embeddings                           POST      401 401 200 200 401 401 403 200 401
/v1/responses                            POST      401 401 200 200 401 401 403 200 401
/v1/models                               GET,HEAD  401 401 200 200 401 401 200 200 401
/v1/models/sim-small                     GET,HEAD  401 401 200 200 401 401 404 200 401
/v1/models/sim-other                     GET,HEAD  401 401 200 200 401 401 200 200 401
/v1/models/sim-none                      GET,HEAD  401 401 404 404 401 401 404 404 401
/oauth/token                             POST      401 401 401 401 401 401 401 401 401
/.well-known/jwks.json                   GET,HEAD  200 200 200 200 200 200 200 200 200
/.well-known/oauth-authorization-server  GET,HEAD  200 200 200 200 200 200 200 200 200
/livez                                   GET,HEAD  200 200 200 200 200 200 200 200 200
/readyz                                  GET,HEAD  200 200 200 200 200 200 200 200 200
/v1/models/                              *         404 404 404 404 404 404 404 404 404
/admin/keys                              *         404 404 404 404 404 404 404 404 404
/v1/nothing                              *         404 404 404 404 404 404 404 404 404
";

/// The operators' port: without the token not even whether there is such a path is told. `ID` is a
/// key's, `NO` nobody's, `AGAIN` that of a key which is rotated.
const OPERATORS: &str = "
path                      methods   none bad good other expired revoked scoped token admin
/livez                    GET,HEAD  200 200 200 200 200 200 200 200 200
/livez                    *         401 401 401 401 401 401 401 401 405
/readyz                   GET,HEAD  200 200 200 200 200 200 200 200 200
/readyz                   *         401 401 401 401 401 401 401 401 405
/admin/upstreams          GET,HEAD  401 401 401 401 401 401 401 401 200
/admin/upstreams          *         401 401 401 401 401 401 401 401 405
/admin/mirrors            GET,HEAD  401 401 401 401 401 401 401 401 200
/admin/mirrors            *         401 401 401 401 401 401 401 401 405
/admin/usage              GET,HEAD  401 401 401 401 401 401 401 401 200
/admin/usage              *         401 401 401 401 401 401 401 401 405
/admin/keys               GET,HEAD  401 401 401 401 401 401 401 401 200
/admin/keys               POST      401 401 401 401 401 401 401 401 201
/admin/keys               *         401 401 401 401 401 401 401 401 405
/admin/keys/ID            GET,HEAD  401 401 401 401 401 401 401 401 200
/admin/keys/ID            PATCH     401 401 401 401 401 401 401 401 200
/admin/keys/ID            DELETE    401 401 401 401 401 401 401 401 200
/admin/keys/ID            *         401 401 401 401 401 401 401 401 405
/admin/keys/NO            GET,HEAD  401 401 401 401 401 401 401 401 404
/admin/keys/NO            PATCH     401 401 401 401 401 401 401 401 404
/admin/keys/NO            DELETE    401 401 401 401 401 401 401 401 404
/admin/keys/NO            *         401 401 401 401 401 401 401 401 405
/admin/keys/AGAIN/rotate  POST      401 401 401 401 401 401 401 401 200
/admin/keys/AGAIN/rotate  *         401 401 401 401 401 401 401 401 405
/admin/keys/NO/rotate     POST      401 401 401 401 401 401 401 401 404
/admin/keys/NO/rotate     *         401 401 401 401 401 401 401 401 405
/admin/keys/              *         401 401 401 401 401 401 401 401 404
/admin/nothing            *         401 401 401 401 401 401 401 401 404
/v1/models                *         401 401 401 401 401 401 401 401 404
";

const CONFIG: &str = r#"
[server]
admin_token = "operators-token"
[server.limits]
max_wrong_keys = 0
[upstreams.sim]
protocol = "sim"
[models.sim-small]
targets = [{ upstream = "sim" }]
[models.sim-other]
targets = [{ upstream = "sim" }]
"#;

/// One row of a table.
struct Row<'a> {
    path: &'a str,
    methods: Vec<&'a str>,
    statuses: Vec<u16>,
}

/// The rows of a table, and a last one for the methods of each path that are in none.
fn rows(table: &str) -> Vec<Row<'_>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    let lines = table.lines().filter(|line| !line.is_empty());
    for line in lines.skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [path, methods, statuses @ ..] = &words[..] else { panic!("{line}") };
        assert_eq!(statuses.len(), IDENTITIES.len(), "{line}");
        let earlier = rows.iter().filter(|row| row.path == *path);
        let taken: BTreeSet<&str> = earlier.flat_map(|row| row.methods.clone()).collect();
        let methods = match *methods {
            "*" => METHODS.into_iter().filter(|method| !taken.contains(method)).collect(),
            some => some.split(',').collect(),
        };
        let statuses = statuses.iter().map(|status| status.parse().unwrap()).collect();
        rows.push(Row { path, methods, statuses });
    }
    let paths: BTreeSet<&str> = rows.iter().map(|row| row.path).collect();
    for path in paths {
        let said = rows.iter().filter(|row| row.path == path);
        let said: BTreeSet<&str> = said.flat_map(|row| row.methods.clone()).collect();
        let methods: Vec<_> = METHODS.into_iter().filter(|method| !said.contains(method)).collect();
        if !methods.is_empty() {
            rows.push(Row { path, methods, statuses: vec![405; IDENTITIES.len()] });
        }
    }
    rows
}

/// What is sent as which identity.
async fn credentials(gateway: &Gateway) -> [Option<String>; 9] {
    let state = gateway.dir.path().join("state");
    let keys = |args: &[&str]| {
        let mut command = Command::new(BIN);
        command.arg("keys").args(args).arg("--data-dir").arg(&state);
        let output = command.env_remove("TIDEGATE_CONFIG").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let good = keys(&["create", "--name", "good", "--team", "one"]);
    let other = keys(&["create", "--name", "other", "--team", "two"]);
    let expired = keys(&["create", "--name", "expired", "--expires", "1s"]);
    let revoked = keys(&["create", "--name", "revoked"]);
    keys(&["revoke", revoked.split('-').nth(1).unwrap()]);
    let scoped = keys(&["create", "--name", "scoped", "--models", "sim-other"]);
    for (key, status) in
        [(&good, 200), (&other, 200), (&scoped, 200), (&revoked, 401), (&expired, 401)]
    {
        becomes(gateway.address, key, status).await;
    }
    let id = good.split('-').nth(1).unwrap();
    let form = format!("grant_type=client_credentials&client_id={id}&client_secret={good}");
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    let bought = json(send(gateway.address, "POST", "/oauth/token", &headers, &form).await).await;
    let token = bought["access_token"].as_str().unwrap().to_owned();
    let bad = format!("{}x", &good[..good.len() - 1]);
    let all = [bad, good, other, expired, revoked, scoped, token, "operators-token".to_owned()];
    let [bad, good, other, expired, revoked, scoped, token, admin] = all.map(Some);
    [None, bad, good, other, expired, revoked, scoped, token, admin]
}

/// Waits until `key` is known, expired or revoked.
async fn becomes(address: SocketAddr, key: &str, status: u16) {
    let auth = format!("Bearer {key}");
    let known = async {
        let headers = [("authorization", &*auth)];
        while send(address, "GET", "/v1/models", &headers, "").await.status() != status {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), known).await.unwrap();
}

fn body_of(method: &str, path: &str) -> (&'static str, &'static str) {
    const JSON: &str = "application/json";
    match (method, path) {
        ("POST", "/v1/completions") => {
            (JSON, r#"{"model":"sim-small","prompt":"a","max_tokens":2}"#)
        }
        ("POST", "/v1/embeddings" | "/v1/responses") => {
            (JSON, r#"{"model":"sim-small","input":"a"}"#)
        }
        ("POST", "/oauth/token") => {
            ("application/x-www-form-urlencoded", "grant_type=client_credentials")
        }
        ("POST", "/v1/chat/completions") => (
            JSON,
            r#"{"model":"sim-small","messages":[{"role":"user","content":"a"}],"max_tokens":2}"#,
        ),
        ("PATCH", path) if path.starts_with("/admin/") => (JSON, r#"{"name":"renamed"}"#),
        _ => (JSON, ""),
    }
}

/// One answer.
struct Answer {
    status: u16,
    challenge: bool,
    allow: Option<String>,
    body: String,
}

/// Sends it from a loopback address of its own where there are several, because the operators'
/// port slows addresses that send many wrong tokens.
async fn ask(
    to: SocketAddr,
    number: u32,
    (method, path): (&str, &str),
    credential: Option<&str>,
) -> Answer {
    let socket = TcpSocket::new_v4().unwrap();
    if cfg!(target_os = "linux") {
        let source = Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 1).to_bits() + number);
        socket.bind((source, 0).into()).unwrap();
    }
    let stream = socket.connect(to).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (kind, body) = body_of(method, path);
    let mut request = Request::builder().method(method).uri(path).header("host", "gateway");
    if !body.is_empty() {
        request = request.header("content-type", kind);
    }
    if let Some(credential) = credential {
        request = request.header("authorization", format!("Bearer {credential}"));
    }
    let body = Full::new(Bytes::from_static(body.as_bytes()));
    let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let allow = head.headers.get("allow").map(|value| value.to_str().unwrap().to_owned());
    let challenge = head.headers.contains_key("www-authenticate");
    let body = body.collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    Answer { status: head.status.as_u16(), challenge, allow, body }
}

/// Asks everything the table has and says what is not as it says.
async fn check(
    to: SocketAddr,
    table: &str,
    credentials: &[Option<String>; 9],
    ids: &[(&str, &str)],
) -> String {
    let (mut wrong, mut number) = (String::new(), 0);
    let rows = rows(table);
    for row in &rows {
        let path = row
            .path
            .split('/')
            .map(|part| ids.iter().find(|(name, _)| *name == part).map_or(part, |(_, id)| *id));
        let path = path.collect::<Vec<_>>().join("/");
        let there = rows.iter().filter(|other| other.path == row.path);
        let takes: BTreeSet<&str> = there
            .filter(|row| !row.statuses.contains(&405))
            .flat_map(|row| row.methods.clone())
            .collect();
        for method in &row.methods {
            for (index, credential) in credentials.iter().enumerate() {
                number += 1;
                let asked = (*method, &*path);
                let answer = ask(to, number, asked, credential.as_deref()).await;
                let (who, expected) = (IDENTITIES[index], row.statuses[index]);
                let mut say =
                    |what: &str| writeln!(wrong, "{method} {} as {who}: {what}", row.path);
                if !cfg!(target_os = "linux") && (answer.status, expected) == (429, 401) {
                    continue;
                }
                if answer.status != expected {
                    say(&format!("{} and not {expected}: {}", answer.status, answer.body)).unwrap();
                }
                if answer.challenge != (answer.status == 401) {
                    say("WWW-Authenticate goes with 401").unwrap();
                }
                let allowed = answer.allow.as_deref();
                let allowed = allowed.map(|allow| allow.split(", ").collect::<BTreeSet<_>>());
                if allowed.as_ref() != (answer.status == 405).then_some(&takes) {
                    say(&format!("Allow {allowed:?}")).unwrap();
                }
                if (*method == "HEAD") != answer.body.is_empty() {
                    say(&format!("body {:?}", answer.body)).unwrap();
                }
            }
        }
    }
    wrong
}

#[tokio::test]
async fn everybody_may_do_on_every_route_what_the_table_says() {
    let gateway = Gateway::start(CONFIG).await;
    let credentials = credentials(&gateway).await;
    let wrong = check(gateway.address, CALLERS, &credentials, &[]).await;
    assert!(wrong.is_empty(), "the callers' port:\n{wrong}");

    let auth = [("authorization", "Bearer operators-token")];
    let mut made = Vec::new();
    for _ in 0..2 {
        let key = json(send(gateway.admin, "POST", "/admin/keys", &auth, "").await).await;
        made.push(key["id"].as_str().unwrap().to_owned());
    }
    let ids = [("ID", &*made[0]), ("AGAIN", &*made[1]), ("NO", "nobody000000")];
    let wrong = check(gateway.admin, OPERATORS, &credentials, &ids).await;
    assert!(wrong.is_empty(), "the operators' port:\n{wrong}");
}

#[tokio::test]
async fn what_one_may_not_see_is_answered_as_what_is_not_there() {
    let gateway = Gateway::start(CONFIG).await;
    let credentials = credentials(&gateway).await;
    let [.., Some(scoped), _, _] = &credentials else { panic!("there is a scoped key") };
    let auth = format!("Bearer {scoped}");
    let headers = [("authorization", &*auth), ("x-request-id", "same")];
    let mut answers = Vec::new();
    for model in ["sim-small", "sim-none"] {
        let path = format!("/v1/models/{model}");
        let response = send(gateway.address, "GET", &path, &headers, "").await;
        let mut head = response.headers().clone();
        head.remove("date");
        head.remove("content-length");
        let status = response.status();
        answers.push((status, head, text(response).await.replace(model, "MODEL")));
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0].0, 404);
    // Nor does the list name it.
    let list = send(gateway.address, "GET", "/v1/models", &headers, "").await;
    assert!(!text(list).await.contains("sim-small"));
}

/// Paths as they are written in the source that finds them.
fn written(source: &str) -> impl Iterator<Item = &str> {
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    source.split('"').skip(1).step_by(2).filter(|text| text.starts_with('/'))
}

#[test]
fn every_route_there_is_is_in_a_table() {
    let routes = include_str!("../../../http/src/routes.rs");
    let operations = Operation::ALL.map(|operation| format!("/v1{}", operation.path()));
    let callers = written(routes).chain(operations.iter().map(String::as_str)).collect::<Vec<_>>();
    let admin = include_str!("../../../http/src/admin.rs");
    let keys = include_str!("../../../http/src/admin/keys.rs");
    let operators: Vec<&str> = written(admin).chain(written(keys)).collect();
    assert!(callers.len() >= 10 && operators.len() >= 7, "{callers:?} {operators:?}");
    for (table, paths) in [(CALLERS, callers), (OPERATORS, operators)] {
        let rows = rows(table);
        for path in paths {
            // What ends in a slash is what things are found below.
            let below = path.ends_with('/');
            let is_in = rows.iter().any(|row| {
                row.path == path
                    || below && row.path.len() > path.len() && row.path.starts_with(path)
            });
            assert!(is_in, "{path} is in no table: add who may do what there");
        }
    }
}
