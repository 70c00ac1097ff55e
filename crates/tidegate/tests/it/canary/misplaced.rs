//! Keys that are wrong, and keys where none belongs, on both ports.

use super::{ADMIN, CHAT, Findings, WRONG, ask};
use crate::web::{json, send, text};
use std::net::SocketAddr;

/// Wrong credentials, wherever one can be put.
pub(super) async fn wrong_keys(
    findings: &mut Findings,
    secrets: &[&str],
    address: SocketAddr,
    key: &str,
) {
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

/// A key where none belongs: in the path, the query, the method, headers, the body.
pub(super) async fn misplaced_keys(
    findings: &mut Findings,
    secrets: &[&str],
    address: SocketAddr,
    key: &str,
) {
    let bearer = format!("Bearer {key}");
    let id = key.split('-').nth(1).unwrap();
    let forged = format!("tg-{id}-{WRONG}");
    for auth in [vec![], vec![("authorization", &*bearer)]] {
        for path in [
            format!("/v1/models/{key}"),
            format!("/v1/models/{forged}"),
            format!("/v1/models/{WRONG}"),
            format!("/v1/models/org%2F{WRONG}"),
            format!("/{key}/v1/chat/completions"),
            format!("/v1/{WRONG}/chat/completions"),
            format!("/v1/chat/completions/{WRONG}"),
            format!("/v1//{WRONG}"),
            format!("/v1/models?{WRONG}={WRONG}&key={key}"),
            format!("/nothing?{WRONG}={WRONG}&key={key}"),
        ] {
            for method in ["GET", "POST", "DELETE"] {
                ask(findings, secrets, address, (method, &path), &auth, "").await;
            }
        }
        for method in [key, &forged] {
            ask(findings, secrets, address, (method, "/v1/models"), &auth, "").await;
        }
    }
    for (name, value) in [
        ("x-request-id", key),
        ("x-request-id", &forged),
        ("idempotency-key", key),
        ("idempotency-key", WRONG),
        ("x-tidegate-priority", WRONG),
        ("x-tidegate-timeout", WRONG),
        ("content-type", WRONG),
        ("content-encoding", WRONG),
        ("accept-encoding", WRONG),
        ("traceparent", WRONG),
        ("user-agent", WRONG),
        ("cookie", WRONG),
        ("host", WRONG),
    ] {
        let headers = [("authorization", &*bearer), (name, value)];
        for model in ["fine", "s400"] {
            let route = ("POST", "/v1/chat/completions");
            ask(findings, secrets, address, route, &headers, &CHAT.replace("MODEL", model)).await;
        }
    }
    let auth = [("authorization", &*bearer)];
    for body in [
        format!("\"{WRONG}\""),
        WRONG.to_owned(),
        format!("{{\"{WRONG}"),
        format!(r#"{{"model":["{WRONG}"]}}"#),
        format!(r#"{{"model":"{key}","messages":[]}}"#),
        format!(r#"{{"model":"{forged}","stream":true,"messages":[]}}"#),
        format!(r#"{{"{WRONG}":1,"model":"fine","messages":"{WRONG}"}}"#),
        format!(r#"{{"model":"fine","{WRONG}":1,"{WRONG}":1,"messages":[]}}"#),
        format!(r#"{{"model":"fine","messages":[],"stream":"{WRONG}"}}"#),
        format!(r#"{{"model":"fine","messages":[],"max_tokens":"{WRONG}"}}"#),
        format!(r#"{{"model":"fine","messages":[],"n":["{WRONG}"]}}"#),
        format!(r#"{{"model":"fine","messages":[],"stream_options":"{WRONG}"}}"#),
        format!(r#"{{"model":"{key}","model":"{key}","messages":[]}}"#),
    ] {
        let route = ("POST", "/v1/chat/completions");
        if body.contains("fine") {
            // The upstream may tell the caller what it sent; nobody may keep it.
            text(send(address, route.0, route.1, &auth, &body).await).await;
        } else {
            ask(findings, secrets, address, route, &auth, &body).await;
        }
    }
}

/// A key and a token that the gateway gives out, used once each.
pub(super) async fn given_out(address: SocketAddr, admin: SocketAddr, key: &str) -> Vec<String> {
    let right = format!("Bearer {ADMIN}");
    let auth = [("authorization", &*right)];
    let made = json(send(admin, "POST", "/admin/keys", &auth, "").await).await;
    let path = format!("/admin/keys/{}/rotate", made["id"].as_str().unwrap());
    let rotated = json(send(admin, "POST", &path, &auth, "").await).await;
    let id = key.split('-').nth(1).unwrap();
    let form = format!("grant_type=client_credentials&client_id={id}&client_secret={key}");
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    let bought = json(send(address, "POST", "/oauth/token", &headers, &form).await).await;
    let token = bought["access_token"].as_str().unwrap();
    for (credential, status) in [
        (made["key"].as_str().unwrap(), 401),
        (rotated["key"].as_str().unwrap(), 200),
        (token, 200),
    ] {
        let auth = format!("Bearer {credential}");
        let auth = [("authorization", &*auth)];
        for model in ["fine", "s400", "none"] {
            let body = CHAT.replace("MODEL", model);
            let answer = send(address, "POST", "/v1/chat/completions", &auth, &body).await;
            assert!(model != "fine" || answer.status() == status, "{}", answer.status());
        }
    }
    let secret = |key: &serde_json::Value| {
        key["key"].as_str().unwrap().rsplit('-').next().unwrap().to_owned()
    };
    let signature = token.rsplit('.').next().unwrap().to_owned();
    vec![secret(&made), secret(&rotated), signature]
}

/// The operators' port, with the right token and with wrong ones.
pub(super) async fn operators(
    findings: &mut Findings,
    secrets: &[&str],
    admin: SocketAddr,
    key: &str,
) {
    let id = key.split('-').nth(1).unwrap();
    let forged = format!("tg-{id}-{WRONG}");
    let paths = [
        "/admin/upstreams".to_owned(),
        "/admin/mirrors".into(),
        "/admin/usage".into(),
        "/admin/keys".into(),
        "/admin/keys/nobody000000".into(),
        format!("/admin/keys/{id}"),
        format!("/admin/keys/{key}"),
        format!("/admin/keys/{forged}"),
        format!("/admin/keys/{WRONG}"),
        format!("/admin/keys/{key}/rotate"),
        format!("/admin/keys/{WRONG}/rotate"),
        format!("/admin/keys/{id}/{WRONG}"),
        format!("/admin/{WRONG}"),
        format!("/{key}"),
        format!("/admin/keys?token={ADMIN}&{WRONG}"),
        format!("/admin/nothing?token={ADMIN}"),
        format!("/admin/usage?{WRONG}=1"),
        format!("/admin/usage?group_by={WRONG}"),
        format!("/admin/usage?from={WRONG}"),
        format!("/admin/usage?limit={WRONG}"),
        format!("/admin/usage?format={WRONG}"),
    ];
    let bodies = [
        String::new(),
        format!("\"{WRONG}\""),
        format!("{{\"{WRONG}"),
        format!(r#"{{"{WRONG}":1}}"#),
        format!(r#"{{"{key}":1}}"#),
        format!(r#"{{"{WRONG}":1,"{WRONG}":2}}"#),
        format!(r#"{{"limits":{{"{WRONG}":1}}}}"#),
        format!(r#"{{"limits":"{WRONG}"}}"#),
        format!(r#"{{"budgets":{{"{forged}":1}}}}"#),
        format!(r#"{{"budgets":{{"day_usd":"{WRONG}"}}}}"#),
        format!(r#"{{"expires_in":"{WRONG}"}}"#),
        format!(r#"{{"expires_at":"{WRONG}"}}"#),
        format!(r#"{{"name":["{WRONG}"]}}"#),
        format!(r#"{{"grace":"{WRONG}"}}"#),
    ];
    for token in [ADMIN, WRONG, key] {
        let auth = format!("Bearer {token}");
        let headers = [("authorization", &*auth)];
        for path in &paths {
            ask(findings, secrets, admin, ("GET", path), &headers, "").await;
            if token == ADMIN {
                ask(findings, secrets, admin, (&forged, path), &headers, "").await;
            }
        }
        // Not with an empty one, which makes or rotates a key and says it.
        for body in &bodies[1..] {
            for (method, path) in [
                ("POST", "/admin/keys".to_owned()),
                ("PATCH", format!("/admin/keys/{id}")),
                ("PATCH", format!("/admin/keys/{forged}")),
                ("POST", format!("/admin/keys/{forged}/rotate")),
            ] {
                ask(findings, secrets, admin, (method, &path), &headers, body).await;
            }
        }
        for method in ["PATCH", "DELETE", "PUT"] {
            for path in [&*forged, WRONG, key] {
                let path = format!("/admin/keys/{path}");
                ask(findings, secrets, admin, (method, &path), &headers, &bodies[0]).await;
            }
        }
    }
}
