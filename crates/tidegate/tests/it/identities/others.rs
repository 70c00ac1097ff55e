//! What one sees of others, and where which credential counts.

use super::{
    CONFIG,
    asking::{body_of, credentials},
};
use crate::web::{Gateway, send, text};
use std::collections::BTreeSet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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

/// A key, a token or the operators' token is one nowhere but where it belongs.
#[tokio::test]
async fn credentials_count_only_where_they_belong() {
    let gateway = Gateway::start(CONFIG).await;
    let [_, _, good, .., token, admin] = credentials(&gateway).await;
    let [good, token, admin] = [good, token, admin].map(Option::unwrap);
    let basic = |user: &str, password: &str| {
        let pair = format!("{user}:{password}");
        format!("Basic {}", base64(pair.as_bytes()))
    };
    let id = good.split('-').nth(1).unwrap();
    let callers = [
        ("x-api-key", good.clone(), "", 200),
        ("api-key", good.clone(), "", 200),
        ("authorization", format!("bearer {good}"), "", 200),
        ("x-api-key", token.clone(), "", 200),
        ("x-api-key", admin.clone(), "", 401),
        ("api-key", admin.clone(), "", 401),
        ("authorization", good.clone(), "", 401),
        ("authorization", basic(id, &good), "", 401),
        ("authorization", basic("admin", &admin), "", 401),
        ("cookie", format!("api_key={good}; authorization=Bearer {good}"), "", 401),
        ("x-nothing", good.clone(), "api_key", 401),
        ("x-nothing", token.clone(), "access_token", 401),
    ];
    let operators = [
        ("authorization", format!("bearer {admin}"), "", 200),
        ("authorization", admin.clone(), "", 401),
        ("authorization", basic("admin", &admin), "", 401),
        ("x-api-key", admin.clone(), "", 401),
        ("api-key", admin.clone(), "", 401),
        ("cookie", format!("token={admin}"), "", 401),
        ("x-nothing", admin.clone(), "token", 401),
        ("x-nothing", admin.clone(), "access_token", 401),
    ];
    for (to, path, all) in [
        (gateway.address, "/v1/models", &callers[..]),
        (gateway.admin, "/admin/keys", &operators[..]),
    ] {
        for (name, value, parameter, status) in all {
            let path = match *parameter {
                "" => path.to_owned(),
                parameter => format!("{path}?{parameter}={value}"),
            };
            let answer = send(to, "GET", &path, &[(name, value)], "").await;
            assert_eq!(answer.status(), *status, "{name} {parameter} on {path}");
        }
    }
}

/// Who is no client is told the same, whatever else they are.
#[tokio::test]
async fn a_token_is_given_for_a_good_key_of_its_id_alone() {
    let gateway = Gateway::start(CONFIG).await;
    let [_, bad, good, other, expired, revoked, scoped, token, admin] =
        credentials(&gateway).await.map(Option::unwrap_or_default);
    let id = |key: &str| key.split('-').nth(1).unwrap().to_owned();
    let mut refusals = BTreeSet::new();
    for (client, secret, is_given) in [
        (id(&good), &good, true),
        (id(&other), &other, true),
        (id(&scoped), &scoped, true),
        (id(&good), &bad, false),
        (id(&good), &other, false),
        (id(&other), &good, false),
        (id(&expired), &expired, false),
        (id(&revoked), &revoked, false),
        (id(&good), &token, false),
        (id(&good), &admin, false),
        ("nobody000000".to_owned(), &good, false),
    ] {
        let basic = format!("Basic {}", base64(format!("{client}:{secret}").as_bytes()));
        let form = "grant_type=client_credentials";
        let in_body = format!("{form}&client_id={client}&client_secret={secret}");
        let kind = ("content-type", "application/x-www-form-urlencoded");
        for (headers, form) in
            [(vec![kind], &*in_body), (vec![kind, ("authorization", &*basic)], form)]
        {
            let answer = send(gateway.address, "POST", "/oauth/token", &headers, form).await;
            assert_eq!(answer.status(), if is_given { 200 } else { 401 }, "{client} {secret}");
            if !is_given {
                let mut head = answer.headers().clone();
                head.remove("date");
                head.remove("x-request-id");
                refusals.insert(format!("{head:?} {}", text(answer).await));
            }
        }
    }
    assert_eq!(refusals.len(), 1, "{refusals:?}");
}

/// The same `Idempotency-Key` of two tenants is two keys, whatever the one has done with it.
#[tokio::test]
async fn another_tenants_idempotency_key_is_as_unused() {
    let gateway = Gateway::start(CONFIG).await;
    let [_, _, good, other, ..] = credentials(&gateway).await;
    let mut answers = Vec::new();
    for (key, key_used) in [(&good, "k"), (&other, "k"), (&other, "unused")] {
        let auth = format!("Bearer {}", key.as_deref().unwrap());
        let headers = [("authorization", &*auth), ("idempotency-key", key_used)];
        // A body of its own each: of the same tenant the second would be refused with 422.
        let body = body_of("POST", "/v1/completions").1;
        let body = body.replace("\"a\"", &format!("\"{}\"", answers.len()));
        let response = send(gateway.address, "POST", "/v1/completions", &headers, &body).await;
        let names = response.headers().keys().map(|name| name.as_str().to_owned());
        answers.push((response.status(), names.collect::<BTreeSet<_>>()));
    }
    assert_eq!(answers[0].0, 200);
    assert_eq!(answers[1], answers[2]);
    assert!(!answers[1].1.contains("idempotency-replayed"));
}

/// Requests whose target is no path say nothing and do nothing.
#[tokio::test]
async fn targets_that_are_no_path_lead_nowhere() {
    let gateway = Gateway::start(CONFIG).await;
    for (to, token) in [(gateway.address, &*gateway.key), (gateway.admin, "operators-token")] {
        for (line, host) in [
            ("CONNECT gateway:80", "gateway:80"),
            ("OPTIONS *", "gateway"),
            ("GET *", "gateway"),
            ("GET http://other/livez", "gateway"),
        ] {
            let mut stream = tokio::net::TcpStream::connect(to).await.unwrap();
            let request = format!(
                "{line} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\
                 Connection: close\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).await.unwrap();
            let status = said.split(' ').nth(1).unwrap_or_default();
            assert!(["400", "404", "405"].contains(&status), "{line} to {to}: {said}");
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for (place, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let digit = DIGITS[(bits >> shift) as usize & 63];
            text.push(if place > group.len() { '=' } else { digit.into() });
        }
    }
    text
}
