//! Tokens for keys: what a client may say, and how it is refused.

use crate::stub::{BODY, KEY, Said, Stub, exchange, post};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};
use tidegate_core::{Grant, Identity, Result, Tenant, Tokens};

const TOKEN: &str = "/oauth/token";

/// Issues words about what it was asked for.
pub(crate) struct Issuer;

impl Tokens for Issuer {
    fn identify<'a>(&'a self, _: &'a str) -> Identity<'a> {
        unreachable!("the stub answers for itself")
    }

    fn client(&self, id: &str, secret: &str) -> Option<Arc<Tenant>> {
        (id == "good" && (secret == KEY || secret == "s p%c:é")).then(|| Arc::new(Tenant::local()))
    }

    fn grant(&self, _: &Tenant, models: Option<&[&str]>) -> Result<Grant> {
        let scope = models.map_or("*".to_owned(), |models| models.join(" "));
        let token = "a.b.c".to_owned().into();
        Ok(Grant { token, expires_in: Duration::from_secs(3600), scope })
    }

    fn key_set(&self) -> Bytes {
        Bytes::from_static(br#"{"keys":[]}"#)
    }

    fn metadata(&self) -> Bytes {
        Bytes::from_static(br#"{"issuer":"x"}"#)
    }
}

fn request(path: &str, headers: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: gate\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         {headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn basic(said: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(said))
}

async fn say(request: String) -> Said {
    exchange(&Stub::issuing(Issuer), request).await
}

#[tokio::test(start_paused = true)]
async fn a_client_gets_a_token_in_either_way() {
    let grant = "grant_type=client_credentials";
    let in_body = format!("{grant}&client_id=good&client_secret={KEY}");
    for (headers, body, scope) in [
        ("", in_body.clone(), "*"),
        ("", in_body.replace("=good", "=tg-good"), "*"),
        ("", format!("{in_body}&scope="), "*"),
        ("", format!("{in_body}&scope=*"), "*"),
        ("", format!("{in_body}&scope=small+org%2Flarge+small"), "org/large small"),
        ("", format!("{in_body}&resource=x&resource=y"), "*"),
        (&basic(&format!("good:{KEY}")), grant.into(), "*"),
        (&basic("good:s+p%25c%3A%C3%A9"), grant.into(), "*"),
        (&basic(&format!("good:{KEY}")), format!("{grant}&client_id=good&scope=small"), "small"),
    ] {
        let said = say(request(TOKEN, headers, &body)).await;
        assert_eq!(said.status, 200, "{headers}{body}: {said:?}");
        assert_eq!(
            said.json(),
            serde_json::json!({
                "access_token": "a.b.c", "token_type": "Bearer", "expires_in": 3600, "scope": scope
            })
        );
        assert_eq!(said.header("cache-control"), Some("no-store"));
        assert_eq!(said.header("pragma"), Some("no-cache"));
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_wrongly_is_told_in_oauths_words() {
    let grant = "grant_type=client_credentials";
    let good = format!("{grant}&client_id=good&client_secret={KEY}");
    let by_basic = basic(&format!("good:{KEY}"));
    for (headers, body, status, error) in [
        ("", "", 400, "invalid_request"),
        ("", "grant_type=", 400, "invalid_request"),
        ("", &good.replace(grant, "grant_type=password"), 400, "unsupported_grant_type"),
        ("", &format!("{good}&{grant}"), 400, "invalid_request"),
        ("", &format!("{good}&client_id=good"), 400, "invalid_request"),
        ("", &format!("{good}&scope=small&scope=small"), 400, "invalid_request"),
        ("", &format!("{good}&x=%zz"), 400, "invalid_request"),
        ("", grant, 401, "invalid_client"),
        ("", &format!("{grant}&client_id=good"), 401, "invalid_client"),
        ("", &good.replace("=good", "=other"), 401, "invalid_client"),
        ("", &format!("{good}x"), 401, "invalid_client"),
        ("", &format!("{good}&scope=huge"), 400, "invalid_scope"),
        ("", &format!("{good}&scope=small++small"), 400, "invalid_scope"),
        ("", &format!("{good}&scope=small+*"), 400, "invalid_scope"),
        (&by_basic, &good, 400, "invalid_request"),
        (&by_basic, &format!("{grant}&client_id=other"), 400, "invalid_request"),
        (&format!("{by_basic}{by_basic}"), grant, 400, "invalid_request"),
        (&basic("good:wrong"), grant, 401, "invalid_client"),
        (&basic("nothing"), grant, 401, "invalid_client"),
        ("Authorization: Basic ???\r\n", grant, 401, "invalid_client"),
        (&format!("Authorization: Bearer {KEY}\r\n"), grant, 401, "invalid_client"),
    ] {
        let said = say(request(TOKEN, headers, body)).await;
        assert_eq!(said.status, status, "{headers}{body}: {said:?}");
        let json = said.json();
        assert_eq!(json["error"], error, "{headers}{body}");
        let words = json["error_description"].as_str().unwrap();
        assert!(words.bytes().all(|c| matches!(c, b' '..=b'~') && !matches!(c, b'"' | b'\\')));
        assert_eq!(said.header("cache-control"), Some("no-store"));
        let challenge = (status == 401).then_some(r#"Basic realm="tidegate""#);
        assert_eq!(said.header("www-authenticate"), challenge);
        assert!(!said.body.contains(KEY));
    }
}

#[tokio::test(start_paused = true)]
async fn other_bodies_and_methods_are_refused() {
    let good = format!("grant_type=client_credentials&client_id=good&client_secret={KEY}");
    let form = "application/x-www-form-urlencoded";
    for other in ["application/json", "text/plain", "", "multipart/form-data"] {
        let said = say(request(TOKEN, "", &good).replace(form, other)).await;
        assert_eq!((said.status, said.json()["error"].as_str()), (400, Some("invalid_request")));
    }
    let charset = format!("{form}; charset=UTF-8");
    assert_eq!(say(request(TOKEN, "", &good).replace(form, &charset)).await.status, 200);
    let in_url = request(&format!("{TOKEN}?{good}"), "", "");
    assert_eq!(say(in_url).await.json()["error"], "invalid_request");
    let long = format!("{good}&x={}", "x".repeat(70_000));
    assert_eq!(say(request(TOKEN, "", &long)).await.status, 413);
    let got = say(format!("GET {TOKEN} HTTP/1.1\r\nHost: gate\r\n\r\n")).await;
    assert_eq!((got.status, got.header("allow")), (405, Some("POST")));
}

#[tokio::test(start_paused = true)]
async fn the_documents_are_public_and_not_for_ever() {
    for path in ["/.well-known/jwks.json", "/.well-known/oauth-authorization-server"] {
        let get = format!("GET {path} HTTP/1.1\r\nHost: gate\r\n\r\n");
        let said = say(get.clone()).await;
        assert_eq!(said.status, 200);
        assert_eq!(said.header("content-type"), Some("application/json"));
        assert_eq!(said.header("cache-control"), Some("public, max-age=300"));
        // Nobody issues tokens here.
        assert_eq!(exchange(&Stub::fine(), get).await.status, 404);
    }
    let body = format!("grant_type=client_credentials&client_id=good&client_secret={KEY}");
    assert_eq!(exchange(&Stub::fine(), request(TOKEN, "", &body)).await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn a_bad_token_is_told_from_none() {
    let chat = |credential: &str| {
        post("/v1/chat/completions", "", BODY)
            .replace(&format!("Authorization: Bearer {KEY}\r\n"), credential)
    };
    let invalid = r#"Bearer error="invalid_token""#;
    let expired = r#"Bearer error="invalid_token", error_description="the token has expired""#;
    for (credential, challenge, code) in [
        ("", "Bearer", "invalid_api_key"),
        ("Authorization: Bearer tg-unknown\r\n", invalid, "invalid_api_key"),
        ("x-api-key: tg-unknown\r\n", invalid, "invalid_api_key"),
        ("Authorization: Bearer asks.once.bad\r\n", invalid, "invalid_api_key"),
        ("Authorization: Bearer a.past.token\r\n", expired, "token_expired"),
    ] {
        let said = exchange(&Stub::fine(), chat(credential)).await;
        assert_eq!((said.status, said.code().as_str()), (401, code), "{credential}");
        assert_eq!(said.header("www-authenticate"), Some(challenge));
    }
    let asked = exchange(&Stub::fine(), chat("Authorization: Bearer asks.once.good\r\n")).await;
    assert_eq!(asked.status, 200);
}
