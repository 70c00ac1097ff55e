//! Callers' keys on the operators' port.

use crate::{
    admin::{Admin, TOKEN, is_problem},
    stub::{Said, Stub},
};
use serde_json::{Value, json};
use std::sync::Arc;
use tidegate_core::{Money, Store as _};
use tidegate_store::Memory;

const HOST: &str = "Host: localhost\r\nContent-Type: application/json\r\n";

struct Desk {
    store: Arc<Memory>,
    admin: Admin,
}

impl Desk {
    async fn open() -> Self {
        let store = Arc::new(Memory::new());
        let admin = Admin::start_with(&Stub::fine(), None, Some(store.clone())).await;
        Self { store, admin }
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> Said {
        self.admin.send(method, path, HOST, body).await
    }

    /// Makes a key; its id and the whole key.
    async fn make(&self, body: &str) -> (String, String) {
        let said = self.ask("POST", "/admin/keys", body).await;
        assert_eq!(said.status, 201, "{said:?}");
        let text = |field: &str| said.json()[field].as_str().unwrap().to_owned();
        (text("id"), text("key"))
    }
}

#[tokio::test]
async fn a_key_is_made_shown_changed_and_revoked() {
    let desk = Desk::open().await;
    let body = r#"{"name":"ci","team":"search","models":["chat"],
        "limits":{"requests_per_minute":60,"cost_per_minute_usd":0.5},
        "budgets":{"day_usd":12.50,"hard":true},"expires_at":"2999-01-01T00:00:00Z"}"#;
    let said = desk.ask("POST", "/admin/keys", body).await;
    assert_eq!((said.status, said.header("cache-control")), (201, Some("no-store")));
    let mut made = said.json();
    let secret = made["key"].take();
    let secret = secret.as_str().unwrap();
    made.as_object_mut().unwrap().remove("key");
    let id = made["id"].as_str().unwrap().to_owned();
    let expected = json!({
        "id": id, "name": "ci", "team": "search", "models": ["chat"],
        "limits": {"requests_per_minute": 60, "tokens_per_minute": null,
                   "cost_per_minute_usd": 0.5, "concurrency": null},
        "budgets": {"day_usd": 12.5, "month_usd": null, "total_usd": null, "hard": true},
        "created_at": made["created_at"], "expires_at": "2999-01-01T00:00:00Z",
        "revoked_at": null, "former_until": null, "state": "valid",
    });
    assert_eq!(made, expected);
    let tenant = desk.store.identify(secret).unwrap();
    assert_eq!((tenant.budgets.day, tenant.budgets.hard), (Money::from_usd(12.5), true));

    let path = format!("/admin/keys/{id}");
    assert_eq!(desk.ask("GET", &path, "").await.json(), made);
    assert_eq!(desk.ask("GET", "/admin/keys", "").await.json(), json!([made]));
    assert_eq!(desk.ask("HEAD", &path, "").await.status, 200);

    let change = r#"{"team":null,"limits":{"requests_per_minute":null,"concurrency":4},
        "budgets":{"month_usd":100},"expires_at":null}"#;
    let changed = desk.ask("PATCH", &path, change).await;
    assert_eq!(changed.status, 200, "{changed:?}");
    let changed = changed.json();
    assert_eq!((&changed["team"], &changed["expires_at"]), (&Value::Null, &Value::Null));
    assert_eq!(changed["limits"]["requests_per_minute"], Value::Null);
    assert_eq!(changed["limits"]["cost_per_minute_usd"], 0.5);
    assert_eq!(changed["limits"]["concurrency"], 4);
    assert_eq!(
        (&changed["budgets"]["day_usd"], &changed["budgets"]["month_usd"]),
        (&json!(12.5), &json!(100.0))
    );
    let tenant = desk.store.identify(secret).unwrap();
    assert_eq!(tenant.limits.unwrap().concurrency, Some(4), "in force at once");

    let revoked = desk.ask("DELETE", &path, "").await;
    assert_eq!((revoked.status, &revoked.json()["state"]), (200, &json!("revoked")));
    assert!(desk.store.identify(secret).is_none());
    let again = desk.ask("DELETE", &path, "").await;
    assert_eq!(again.json(), revoked.json(), "twice is as good as once");
    let late = desk.ask("PATCH", &path, r#"{"name":"b"}"#).await;
    is_problem(&late, 400, "invalid_request_error");
    desk.admin.stop().await;
}

#[tokio::test]
async fn a_secret_is_shown_where_it_is_made_and_nowhere_else() {
    let desk = Desk::open().await;
    let (id, first) = desk.make("").await;
    let path = format!("/admin/keys/{id}/rotate");
    let rotated = desk.ask("POST", &path, r#"{"grace":"1h"}"#).await;
    assert_eq!(rotated.status, 200);
    let second = rotated.json()["key"].as_str().unwrap().to_owned();
    assert_eq!(rotated.json()["id"], *id, "the caller stays the same");
    assert!(rotated.json()["former_until"].is_string());
    for key in [&first, &second] {
        assert!(desk.store.identify(key).is_some(), "both during the grace");
    }
    let third = desk.ask("POST", &path, "").await.json()["key"].as_str().unwrap().to_owned();
    assert!(desk.store.identify(&second).is_none() && desk.store.identify(&third).is_some());

    let hidden = [&first, &second, &third].map(|key| key[16..].to_owned());
    for (method, path, body) in [
        ("GET", "/admin/keys", ""),
        ("GET", &*format!("/admin/keys/{id}"), ""),
        ("PATCH", &format!("/admin/keys/{id}"), r#"{"name":"b"}"#),
        ("DELETE", &format!("/admin/keys/{id}"), ""),
        ("GET", &format!("/admin/keys/{third}"), ""),
    ] {
        let said = desk.ask(method, path, body).await;
        let text = format!("{}{}", said.head, said.body);
        assert!(!hidden.iter().any(|secret| text.contains(secret)), "{method} {path}: {text}");
        assert!(!text.contains("hash"), "{text}");
    }
    desk.admin.stop().await;
}

#[tokio::test]
async fn a_bad_body_is_refused_with_the_field_and_changes_nothing() {
    let desk = Desk::open().await;
    let (id, _) = desk.make("").await;
    let before = desk.ask("GET", "/admin/keys", "").await.json();
    let key = format!("/admin/keys/{id}");
    let rotate = format!("{key}/rotate");
    for (method, path, body, field) in [
        (
            "POST",
            "/admin/keys",
            r#"{"limits":{"requests_per_minute":0}}"#,
            Some("limits.requests_per_minute"),
        ),
        ("POST", "/admin/keys", r#"{"name":""}"#, Some("name")),
        ("POST", "/admin/keys", r#"{"expires_at":"1999-01-01T00:00:00Z"}"#, Some("expires_at")),
        ("POST", "/admin/keys", r#"{"id":"chosen"}"#, None),
        ("PATCH", &*key, r#"{"budgets":{"day_usd":"much"}}"#, Some("budgets.day_usd")),
        ("PATCH", &*key, r#"{"hash":"00"}"#, None),
        ("PATCH", &*key, r#"{"revoked_at":null}"#, None),
        ("POST", &*rotate, r#"{"grace":"400d"}"#, Some("grace")),
        ("POST", &*rotate, r#"{"grace":3}"#, Some("grace")),
    ] {
        let said = desk.ask(method, path, body).await;
        is_problem(&said, 400, "invalid_request_error");
        let problem = said.json();
        assert_eq!(problem.get("field").and_then(Value::as_str), field, "{body}");
        let named = field.unwrap_or("is no field of");
        assert!(problem["detail"].as_str().unwrap().contains(named), "{problem}");
    }
    is_problem(&desk.ask("POST", "/admin/keys", "{").await, 400, "invalid_json");
    let long = format!(r#"{{"name":"{}"}}"#, "a".repeat(70_000));
    is_problem(&desk.ask("POST", "/admin/keys", &long).await, 413, "request_too_large");
    let form = "Host: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n";
    let said = desk.admin.send("POST", "/admin/keys", form, "name=a").await;
    is_problem(&said, 415, "unsupported_media_type");
    for (method, path) in [
        ("GET", "/admin/keys/nobody"),
        ("PATCH", "/admin/keys/nobody"),
        ("DELETE", "/admin/keys/nobody"),
        ("POST", "/admin/keys/nobody/rotate"),
    ] {
        is_problem(&desk.ask(method, path, "").await, 404, "not_found");
    }
    let said = desk.ask("PUT", "/admin/keys", "{}").await;
    is_problem(&said, 405, "method_not_allowed");
    assert_eq!(said.header("allow"), Some("GET, HEAD, POST"));
    assert_eq!(desk.ask("GET", "/admin/keys", "").await.json(), before);
    desk.admin.stop().await;
}

#[tokio::test]
async fn only_operators_touch_keys() {
    let store = Arc::new(Memory::new());
    let admin = Admin::start_with(&Stub::fine(), Some(TOKEN), Some(store.clone())).await;
    let host = "Host: gate\r\n";
    let (token, origin) =
        (format!("Authorization: Bearer {TOKEN}\r\n"), "Origin: http://evil.example\r\n");
    for (method, path) in [
        ("GET", "/admin/keys"),
        ("POST", "/admin/keys"),
        ("GET", "/admin/keys/a"),
        ("PATCH", "/admin/keys/a"),
        ("DELETE", "/admin/keys/a"),
        ("POST", "/admin/keys/a/rotate"),
    ] {
        let said = admin.ask(method, path, host).await;
        is_problem(&said, 401, "invalid_admin_token");
        assert_eq!(said.header("www-authenticate"), Some("Bearer"));
        let said = admin.ask(method, path, &format!("{host}{token}{origin}")).await;
        is_problem(&said, 403, "origin_not_allowed");
    }
    assert!(store.keys().await.unwrap().is_empty());
    let said = admin.ask("POST", "/admin/keys", &format!("{host}{token}")).await;
    assert_eq!(said.status, 201);
    admin.stop().await;

    // Without a token it is the Host that counts; and where there are no keys, there is no path.
    let admin = Admin::start_with(&Stub::fine(), None, Some(store)).await;
    is_problem(
        &admin.ask("GET", "/admin/keys", "Host: rebound.example\r\n").await,
        403,
        "host_not_allowed",
    );
    admin.stop().await;
    let admin = Admin::start(&Stub::fine(), None).await;
    is_problem(&admin.ask("GET", "/admin/keys", "Host: localhost\r\n").await, 404, "not_found");
    admin.stop().await;
}
