//! Tokens over real HTTP: had for a key, used, refused, gone with their key.

use crate::web::{BIN, Gateway, json, send, text};
use serde_json::{Value, json as value};
use std::{net::SocketAddr, time::Duration};
use tidegate_testkit::{
    forge::Forge,
    process::{Pipe, Tidegate},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

const ISSUER: &str = "http://gate.test";
const CHAT: &str =
    r#"{"model":"sim-small","messages":[{"role":"user","content":"hello"}],"max_tokens":8}"#;

/// Two models, and no bound on wrong tokens.
fn config(more: &str) -> String {
    format!(
        r#"
        [server.limits]
        max_wrong_keys = 0
        [oauth]
        issuer = "{ISSUER}"
        [upstreams.sim]
        protocol = "sim"
        [models.sim-small]
        targets = [{{ upstream = "sim" }}]
        [models.sim-other]
        targets = [{{ upstream = "sim" }}]
        {more}"#
    )
}

fn id_of(gateway: &Gateway) -> String {
    gateway.key.split('-').nth(1).unwrap().to_owned()
}

async fn ask(address: SocketAddr, form: &str) -> (u16, Value) {
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    let response = send(address, "POST", "/oauth/token", &headers, form).await;
    assert_eq!(response.headers()["cache-control"], "no-store");
    (response.status().as_u16(), json(response).await)
}

async fn token(gateway: &Gateway, more: &str) -> String {
    let form = format!(
        "grant_type=client_credentials&client_id={}&client_secret={}{more}",
        id_of(gateway),
        gateway.key
    );
    let (status, said) = ask(gateway.address, &form).await;
    assert_eq!(
        (status, &said["token_type"], &said["expires_in"]),
        (200, &"Bearer".into(), &3600.into())
    );
    said["access_token"].as_str().unwrap().to_owned()
}

async fn status(address: SocketAddr, token: &str) -> u16 {
    let auth = format!("Bearer {token}");
    send(address, "GET", "/v1/models", &[("authorization", &auth)], "").await.status().as_u16()
}

#[tokio::test]
async fn a_key_buys_a_token_that_is_good_for_its_models() {
    let gateway = Gateway::start(&config("")).await;
    let whole = token(&gateway, "").await;
    let narrow = token(&gateway, "&scope=sim-other").await;
    for (token, model, expected) in
        [(&whole, "sim-small", 200), (&narrow, "sim-small", 403), (&narrow, "sim-other", 200)]
    {
        let auth = format!("Bearer {token}");
        let body = CHAT.replace("sim-small", model);
        let headers = [("authorization", &*auth)];
        let path = "/v1/chat/completions";
        let response = send(gateway.address, "POST", path, &headers, &body).await;
        assert_eq!(response.status(), expected, "{model}: {}", text(response).await);
    }
    let auth = format!("Bearer {narrow}");
    let list = send(gateway.address, "GET", "/v1/models", &[("authorization", &auth)], "").await;
    let list = json(list).await;
    assert_eq!(
        (list["data"].as_array().unwrap().len(), &list["data"][0]["id"]),
        (1, &"sim-other".into())
    );
    // A token is no client's secret: it buys no other token.
    let form = format!(
        "grant_type=client_credentials&client_id={}&client_secret={narrow}",
        id_of(&gateway)
    );
    let (status, said) = ask(gateway.address, &form).await;
    assert_eq!((status, said["error"].as_str()), (401, Some("invalid_client")));

    let set = send(gateway.address, "GET", "/.well-known/jwks.json", &[], "").await;
    assert_eq!(json(set).await["keys"][0]["crv"], "Ed25519");
    let path = "/.well-known/oauth-authorization-server";
    let said = json(send(gateway.address, "GET", path, &[], "").await).await;
    assert_eq!(said["token_endpoint"], format!("{ISSUER}/oauth/token"));
}

#[tokio::test]
async fn every_hostile_token_gets_a_401_that_says_why() {
    let gateway = Gateway::start(&config("")).await;
    let forge = Forge::of(&gateway.dir.path().join("state"), ISSUER, &id_of(&gateway));
    assert_eq!(status(gateway.address, &forge.good()).await, 200);
    let table = forge.hostile();
    assert!(table.len() >= 60);
    for row in table {
        let auth = format!("Bearer {}", row.token);
        let headers = [("authorization", &*auth)];
        let response = send(gateway.address, "GET", "/v1/models", &headers, "").await;
        assert_eq!(response.status(), 401, "{}", row.name);
        let challenge = response.headers()["www-authenticate"].to_str().unwrap().to_owned();
        assert!(challenge.starts_with(r#"Bearer error="invalid_token""#), "{}", row.name);
        let code = if row.expired { "token_expired" } else { "invalid_api_key" };
        assert_eq!(json(response).await["error"]["code"], code, "{}", row.name);
    }
    assert_eq!(status(gateway.address, &forge.good()).await, 200);
}

#[tokio::test]
async fn tokens_outlive_a_restart_and_are_taken_by_whoever_shares_the_state_but_not_their_key() {
    let gateway = Gateway::start(&config("")).await;
    let token = token(&gateway, "").await;
    let state = gateway.dir.path().join("state");
    let start = || {
        let mut command = std::process::Command::new(BIN);
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "off"]);
        command
            .args(["--access-log", "off", "--config"])
            .arg(gateway.dir.path().join("tidegate.toml"));
        command.arg("--data-dir").arg(&state).current_dir(gateway.dir.path());
        Tidegate::spawn_command(&mut command).unwrap()
    };
    let second = start();
    let address = second.addr().await;
    second.line(Pipe::Stderr, "ready ").await;
    assert_eq!(status(address, &token).await, 200);

    let revoke = ["keys", "revoke", &id_of(&gateway), "--data-dir"];
    let revoked = std::process::Command::new(BIN).args(revoke).arg(&state).output().unwrap();
    assert!(revoked.status.success(), "{revoked:?}");
    let refused = async {
        for address in [gateway.address, address] {
            while status(address, &token).await != 401 {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refused).await.unwrap();
}

/// Serves one document to whoever asks; its address.
async fn document(body: Value) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let body = body.to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 2048];
            let _ = stream.read(&mut head).await;
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
                 connection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address
}

#[tokio::test]
async fn tokens_of_a_trusted_issuer_are_taken() {
    // Another gateway is an issuer like any other: its keys are where its tokens' are.
    let issuer = Gateway::start(&config("")).await;
    let set = send(issuer.address, "GET", "/.well-known/jwks.json", &[], "").await;
    let keys = document(json(set).await).await;
    let gateway = Gateway::start(&config(
        &format!(
            r#"
        [oauth.issuers.corp]
        issuer = "https://corp.test"
        audience = "https://corp.test"
        jwks_url = "http://{keys}/keys"
        models_claim = "scope"
        "#
        )
        .replace(ISSUER, "http://other.test"),
    ))
    .await;
    let forge = Forge::of(&issuer.dir.path().join("state"), "https://corp.test", "ada");
    let good = forge.sign(&forge.header().to_string(), &{
        let mut claims = forge.claims();
        claims["scope"] = value!("sim-other");
        claims.to_string()
    });
    // The first fetch may still be under way.
    let taken = async {
        while status(gateway.address, &good).await != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), taken).await.unwrap();
    let auth = format!("Bearer {good}");
    let list = send(gateway.address, "GET", "/v1/models", &[("authorization", &auth)], "").await;
    assert_eq!(json(list).await["data"][0]["id"], "sim-other");
    // Where nobody trusts that issuer it opens nothing.
    assert_eq!(status(issuer.address, &good).await, 401);
}

#[tokio::test]
async fn signing_keys_that_cannot_be_used_stop_the_start_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("oauth")).unwrap();
    std::fs::write(dir.path().join("oauth/eddsa-1-x.pem"), "nothing").unwrap();
    let output = std::process::Command::new(BIN)
        .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", "--data-dir"])
        .arg(dir.path())
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("eddsa-1-x.pem") && said.contains("chmod 600"), "{said}");
}

/// A gateway is the upstream of another, which buys its tokens there.
#[tokio::test]
async fn the_gateway_is_a_client_of_an_upstream_that_asks_for_tokens() {
    let far = Gateway::start(&config("")).await;
    let near = Gateway::start(&format!(
        r#"
        [upstreams.far]
        base_url = "http://{address}/v1"
        oauth = {{ token_url = "http://{address}/oauth/token", client_id = "{id}", client_secret = "{key}", scope = "sim-other" }}
        [models.chat]
        targets = [{{ upstream = "far", model = "sim-other" }}]
        [models.forbidden]
        targets = [{{ upstream = "far", model = "sim-small" }}]
        "#,
        address = far.address,
        id = id_of(&far),
        key = far.key,
    ))
    .await;
    for _ in 0..3 {
        let body = CHAT.replace("sim-small", "chat");
        let response = near.send("POST", "/v1/chat/completions", &body).await;
        assert_eq!(response.status(), 200, "{}", text(response).await);
    }
    // The token is for one model only, so this one shows that it is the token that is sent.
    let body = CHAT.replace("sim-small", "forbidden");
    assert_eq!(near.send("POST", "/v1/chat/completions", &body).await.status(), 502);
}
