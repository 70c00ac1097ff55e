//! Secrets in files are followed as they are rotated, with the gateway running.

use crate::web::{Gateway, json, send, simulator, text};
use http_body_util::BodyExt as _;
use std::{fs, net::SocketAddr, path::Path};
use tidegate_testkit::process::Pipe;

const CHAT: &str =
    r#"{"model":"chat","messages":[{"role":"user","content":"hello"}],"max_tokens":8}"#;

/// Has the simulator take this key alone.
async fn takes(sim: SocketAddr, key: &str) {
    let body = format!(r#"{{"api_key":"{key}"}}"#);
    assert_eq!(send(sim, "POST", "/sim/faults", &[], &body).await.status(), 200);
}

/// Puts a secret where Kubernetes does: a directory of its own, and one link that is swapped.
fn mount(dir: &Path, version: &str, secret: &str) {
    fs::create_dir_all(dir.join(version)).unwrap();
    fs::write(dir.join(version).join("key"), secret).unwrap();
    let next = dir.join("..next");
    link(Path::new(version), &next);
    fs::rename(next, dir.join("..data")).unwrap();
}

fn link(to: &Path, at: &Path) {
    std::os::unix::fs::symlink(to, at).unwrap();
}

async fn chat(gateway: &Gateway) -> u16 {
    let response = gateway.send("POST", "/v1/chat/completions", CHAT).await;
    let status = response.status().as_u16();
    text(response).await;
    status
}

#[tokio::test]
async fn a_key_that_is_rotated_is_sent_from_the_next_attempt_on_and_one_that_vanishes_stays() {
    let times = ["--ttft", "1ms", "--itl", "20ms", "--api-key", "first"];
    let (_sim, sim) = simulator(&times).await;
    let secrets = tempfile::tempdir().unwrap();
    mount(secrets.path(), "v1", "first\n");
    let file = secrets.path().join("key");
    link(Path::new("..data/key"), &file);
    let gateway = Gateway::start(&format!(
        r#"
        [upstreams.far]
        base_url = "http://{sim}/v1"
        api_key = {{ file = "{}" }}
        [models.chat]
        targets = [{{ upstream = "far", model = "m" }}]
        "#,
        file.display()
    ))
    .await;
    assert_eq!(chat(&gateway).await, 200);
    // A stream that is under way the whole time.
    let long = CHAT.replace("8}", "200,\"min_tokens\":200,\"stream\":true}");
    let mut stream = gateway.send("POST", "/v1/chat/completions", &long).await.into_body();
    stream.frame().await.unwrap().unwrap();

    takes(sim, "second").await;
    assert_eq!(chat(&gateway).await, 502);
    mount(secrets.path(), "v2", "second\n");
    let said = |words: &'static str| gateway.process.line(Pipe::Stderr, words);
    said("upstreams.far.api_key: the new secret in").await;
    assert_eq!(chat(&gateway).await, 200);

    fs::remove_file(secrets.path().join("..data")).unwrap();
    said("warning: upstreams.far.api_key: cannot read").await;
    assert_eq!(chat(&gateway).await, 200);
    mount(secrets.path(), "v3", "");
    assert_eq!(chat(&gateway).await, 200);
    mount(secrets.path(), "v2", "second");
    said("can be read again").await;
    mount(secrets.path(), "v4", "");
    said("is empty").await;
    assert_eq!(chat(&gateway).await, 200);

    // It was not cut for any of this.
    let rest = stream.collect().await.unwrap().to_bytes();
    assert!(rest.ends_with(b"data: [DONE]\n\n"), "{rest:?}");
    let stderr = gateway.process.said(Pipe::Stderr);
    assert!(!stderr.contains("first\n") && !stderr.contains("second"), "{stderr}");
}

#[tokio::test]
async fn the_operators_token_and_our_secret_at_a_token_endpoint_are_followed_too() {
    let far = Gateway::start(
        "[upstreams.sim]\nprotocol = \"sim\"\n[models.chat]\ntargets = [{ upstream = \"sim\" }]\n",
    )
    .await;
    let secrets = tempfile::tempdir().unwrap();
    let [token, secret] = ["token", "secret"].map(|name| secrets.path().join(name));
    fs::write(&token, "old-token").unwrap();
    fs::write(&secret, "wrong").unwrap();
    let near = Gateway::start(&format!(
        r#"
        [server]
        admin_token = {{ file = "{token}" }}
        [upstreams.far]
        base_url = "http://{far}/v1"
        oauth = {{ token_url = "http://{far}/oauth/token", client_id = "{id}", client_secret = {{ file = "{secret}" }} }}
        [models.chat]
        targets = [{{ upstream = "far" }}]
        "#,
        token = token.display(),
        secret = secret.display(),
        far = far.address,
        id = far.key.split('-').nth(1).unwrap(),
    ))
    .await;
    let operate = async |token: &str| {
        let auth = format!("Bearer {token}");
        let headers = [("authorization", &*auth)];
        send(near.admin, "GET", "/admin/keys", &headers, "").await.status().as_u16()
    };
    assert_eq!((operate("old-token").await, operate("new-token").await), (200, 401));
    assert_eq!(chat(&near).await, 502);

    fs::write(&token, "new-token").unwrap();
    fs::write(&secret, &far.key).unwrap();
    for owner in ["server.admin_token", "upstreams.far.oauth.client_secret"] {
        let line = format!("{owner}: the new secret in");
        near.process.line(Pipe::Stderr, &line).await;
    }
    assert_eq!((operate("old-token").await, operate("new-token").await), (401, 200));
    assert_eq!(chat(&near).await, 200);
    let list = near.send("GET", "/v1/models", "").await;
    assert_eq!(json(list).await["data"][0]["id"], "chat");
}
