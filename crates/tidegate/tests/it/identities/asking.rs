//! As whom and how both ports are asked.

use crate::web::{BIN, Gateway, json, send};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    time::Duration,
};
use tokio::net::TcpSocket;

/// What is sent as which identity.
pub(super) async fn credentials(gateway: &Gateway) -> [Option<String>; 9] {
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

pub(super) fn body_of(method: &str, path: &str) -> (&'static str, &'static str) {
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
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) challenge: bool,
    pub(super) allow: Option<String>,
    pub(super) body: String,
}

/// Sends it from a loopback address of its own where there are several, because the operators'
/// port slows addresses that send many wrong tokens.
pub(super) async fn ask(
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
