//! What every store does, run over each of them.

use std::sync::Arc;
use tidegate_core::{Keys, Kind, Limits, Scope};
use tidegate_store::{Memory, Sqlite, key};

/// Runs `test` over each store.
pub(crate) async fn each<F: Future<Output = ()>>(test: impl Fn(Arc<dyn Keys>) -> F) {
    test(Arc::new(Memory::new())).await;
    let dir = tempfile::tempdir().unwrap();
    test(Arc::new(Sqlite::open(&dir.path().join("data")).unwrap())).await;
}

#[tokio::test]
async fn a_key_opens_what_its_record_says() {
    each(async |store: Arc<dyn Keys>| {
        let (secret, mut record) = key::mint("ci", 10).unwrap();
        record.team = Some("search".into());
        record.scope = Scope::Models(vec!["chat".into(), "a,b\"c".into()]);
        record.limits = Some(Limits {
            requests_per_minute: Some(60),
            tokens_per_minute: Some(5_000_000_000),
            ..Limits::default()
        });
        store.add_key(record.clone()).await.unwrap();

        let tenant = store.identify(secret.expose()).unwrap();
        assert_eq!((&*tenant.id, &*tenant.name), (&*record.id, "ci"));
        assert_eq!(tenant.team.as_deref(), Some("search"));
        assert_eq!(tenant.limits, record.limits);
        assert!(tenant.may_use("chat") && tenant.may_use("a,b\"c") && !tenant.may_use("other"));
        assert_eq!(store.keys().await.unwrap(), [record]);
    })
    .await;
}

#[tokio::test]
async fn nothing_else_opens_anything() {
    each(async |store: Arc<dyn Keys>| {
        let (secret, record) = key::mint("a", 0).unwrap();
        let (unknown, _) = key::mint("b", 0).unwrap();
        store.add_key(record).await.unwrap();
        let secret = secret.expose();
        let last = if secret.ends_with('x') { "y" } else { "x" };
        let forged = format!("{}{last}", &secret[..secret.len() - 1]);
        for key in ["", "tg-", "sk-1", &forged, unknown.expose(), &secret.to_uppercase()] {
            assert!(store.identify(key).is_none(), "{key}");
        }
    })
    .await;
}

#[tokio::test]
async fn limits_of_none_and_no_limits_differ() {
    each(async |store: Arc<dyn Keys>| {
        let (with, mut record) = key::mint("unlimited", 0).unwrap();
        record.limits = Some(Limits::default());
        store.add_key(record).await.unwrap();
        let (without, record) = key::mint("default", 0).unwrap();
        store.add_key(record).await.unwrap();
        assert_eq!(store.identify(with.expose()).unwrap().limits, Some(Limits::default()));
        assert_eq!(store.identify(without.expose()).unwrap().limits, None);
    })
    .await;
}

#[tokio::test]
async fn a_revoked_key_is_listed_and_opens_nothing() {
    each(async |store: Arc<dyn Keys>| {
        let (secret, record) = key::mint("a", 0).unwrap();
        let id = record.id.clone();
        store.add_key(record).await.unwrap();
        assert!(store.revoke_key(&id).await.unwrap());
        assert!(store.identify(secret.expose()).is_none());

        let first = store.keys().await.unwrap()[0].revoked_at;
        assert!(first.is_some());
        assert!(store.revoke_key(&id).await.unwrap(), "revoking again is no error");
        assert_eq!(store.keys().await.unwrap()[0].revoked_at, first, "and keeps the first time");
        assert!(!store.revoke_key("nobody").await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn an_expired_key_opens_nothing() {
    each(async |store: Arc<dyn Keys>| {
        let (secret, mut record) = key::mint("a", 0).unwrap();
        record.expires_at = Some(1);
        store.add_key(record).await.unwrap();
        assert!(store.identify(secret.expose()).is_none());
    })
    .await;
}

#[tokio::test]
async fn an_id_is_given_once() {
    each(async |store: Arc<dyn Keys>| {
        let (secret, record) = key::mint("first", 0).unwrap();
        store.add_key(record.clone()).await.unwrap();
        let error = store.add_key(record).await.unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidRequest);
        assert!(error.message().contains("already"), "{error}");
        assert_eq!(&*store.identify(secret.expose()).unwrap().name, "first");
        assert_eq!(store.keys().await.unwrap().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn keys_are_listed_oldest_first() {
    each(async |store: Arc<dyn Keys>| {
        for (name, created_at) in [("b", 20), ("a", 10), ("c", 20)] {
            let (_, record) = key::mint(name, created_at).unwrap();
            store.add_key(record).await.unwrap();
        }
        let keys = store.keys().await.unwrap();
        let names: Vec<&str> = keys.iter().map(|record| &*record.name).collect();
        assert_eq!(names, ["a", "b", "c"]);
    })
    .await;
}

#[tokio::test]
async fn a_refresh_without_a_change_changes_nothing() {
    each(async |store: Arc<dyn Keys>| {
        let (secret, record) = key::mint("a", 0).unwrap();
        store.add_key(record).await.unwrap();
        store.refresh().await.unwrap();
        assert!(store.identify(secret.expose()).is_some());
    })
    .await;
}
