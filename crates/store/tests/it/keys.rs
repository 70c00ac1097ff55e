//! What administrators do with keys, over every store; and over a file that is old, shared,
//! locked or gone.

use crate::suite::each;
use std::{fs, path::Path, sync::Arc, time::Duration};
use tidegate_core::{
    Budgets, BudgetsChange, Change, KeyChange, Keys, Kind, Limits, LimitsChange, Money, Scope,
    Store,
};
use tidegate_store::{Sqlite, key};

/// A change of everything there is.
fn everything() -> KeyChange {
    KeyChange {
        name: Some("ci".into()),
        team: Change::Set("search".into()),
        models: Change::Set(vec!["chat".into(), "embed".into()]),
        limits: Change::Set(LimitsChange {
            requests_per_minute: Change::Set(60),
            tokens_per_minute: Change::Set(5_000_000_000),
            cost_per_minute: Change::Set(Money::from_pico(1)),
            concurrency: Change::Set(3),
        }),
        budgets: Change::Set(BudgetsChange {
            day: Change::Set(Money::from_usd(12.5).unwrap()),
            month: Change::Set(Money::ZERO),
            total: Change::Set(KeyChange::MOST_MONEY),
            hard: Some(true),
        }),
        expires_at: Change::Set(4_000_000_000),
    }
}

#[tokio::test]
async fn a_key_is_made_with_all_it_may_do() {
    each(async |store: Arc<dyn Keys>| {
        let (secret, made) = store.create_key(everything()).await.unwrap();
        let limits = Limits {
            requests_per_minute: Some(60),
            tokens_per_minute: Some(5_000_000_000),
            cost_per_minute: Some(Money::from_pico(1)),
            concurrency: Some(3),
        };
        let budgets = Budgets {
            day: Money::from_usd(12.5),
            month: Some(Money::ZERO),
            total: Some(KeyChange::MOST_MONEY),
            hard: true,
        };
        assert_eq!((made.limits, made.budgets), (Some(limits), budgets));
        assert_eq!(store.key(&made.id).await.unwrap().as_ref(), Some(&made));
        assert_eq!(store.keys().await.unwrap(), std::slice::from_ref(&made));
        let tenant = store.identify(secret.expose()).unwrap();
        assert_eq!((tenant.limits, tenant.budgets), (made.limits, made.budgets));
        assert_eq!((&tenant.id, &tenant.team), (&made.id, &made.team));
    })
    .await;
}

#[tokio::test]
async fn an_update_is_in_force_at_once_and_keeps_the_rest() {
    each(async |store: Arc<dyn Keys>| {
        let (secret, made) = store.create_key(everything()).await.unwrap();
        let change = KeyChange {
            team: Change::Remove,
            models: Change::Remove,
            budgets: Change::Set(BudgetsChange { day: Change::Remove, ..Default::default() }),
            ..KeyChange::default()
        };
        let updated = store.update_key(&made.id, change).await.unwrap().unwrap();
        assert_eq!((&updated.team, &updated.scope), (&None, &Scope::All));
        assert_eq!((updated.budgets.day, updated.budgets.month), (None, Some(Money::ZERO)));
        assert_eq!((updated.limits, updated.hash), (made.limits, made.hash));
        assert_eq!(store.key(&made.id).await.unwrap(), Some(updated));
        assert!(store.identify(secret.expose()).unwrap().may_use("anything"));
    })
    .await;
}

#[tokio::test]
async fn what_may_not_be_is_refused_and_nothing_is_written() {
    each(async |store: Arc<dyn Keys>| {
        let bad = KeyChange { name: Some("".into()), ..everything() };
        let error = store.create_key(bad.clone()).await.unwrap_err();
        assert_eq!((error.kind(), error.param()), (Kind::InvalidRequest, Some("name")));
        assert!(store.keys().await.unwrap().is_empty());

        let (_, made) = store.create_key(everything()).await.unwrap();
        store.update_key(&made.id, bad).await.unwrap_err();
        assert_eq!(store.keys().await.unwrap(), [made]);
    })
    .await;
}

#[tokio::test]
async fn a_rotated_key_is_the_same_caller_with_another_secret() {
    each(async |store: Arc<dyn Keys>| {
        let (old, made) = store.create_key(everything()).await.unwrap();
        let hour = Duration::from_secs(3600);
        let (new, rotated) = store.rotate_key(&made.id, hour).await.unwrap().unwrap();
        assert_eq!((&rotated.id, rotated.budgets), (&made.id, made.budgets));
        for secret in [&old, &new] {
            assert_eq!(store.identify(secret.expose()).unwrap().id, made.id, "both for an hour");
        }
        let (newest, _) = store.rotate_key(&made.id, Duration::ZERO).await.unwrap().unwrap();
        let good = [&old, &new, &newest].map(|key| store.identify(key.expose()).is_some());
        assert_eq!(good, [false, false, true], "without a grace the old one ends at once");
        assert_eq!(store.keys().await.unwrap().len(), 1);

        let year = Duration::from_secs(365 * 86_400);
        let error = store.rotate_key(&made.id, year).await.unwrap_err();
        assert_eq!(error.param(), Some("grace"));
        assert!(store.revoke_key(&made.id).await.unwrap());
        assert!(store.identify(newest.expose()).is_none());
    })
    .await;
}

#[tokio::test]
async fn what_is_revoked_expired_or_not_there_is_not_changed() {
    each(async |store: Arc<dyn Keys>| {
        assert!(store.key("nobody").await.unwrap().is_none());
        assert!(store.update_key("nobody", everything()).await.unwrap().is_none());
        assert!(store.rotate_key("nobody", Duration::ZERO).await.unwrap().is_none());

        let (_, mut expired) = key::mint("expired", 0).unwrap();
        expired.expires_at = Some(1);
        store.add_key(expired.clone()).await.unwrap();
        let error = store.rotate_key(&expired.id, Duration::ZERO).await.unwrap_err();
        assert!(error.message().contains("has expired"), "{error}");
        let again = store.update_key(&expired.id, everything()).await.unwrap();
        assert!(again.is_some(), "an expired key can be given more time");

        store.revoke_key(&expired.id).await.unwrap();
        let update = store.update_key(&expired.id, everything()).await.unwrap_err();
        let rotate = store.rotate_key(&expired.id, Duration::ZERO).await.unwrap_err();
        for error in [update, rotate] {
            assert_eq!(error.kind(), Kind::InvalidRequest);
            assert!(error.message().contains("revoked"), "{error}");
        }
    })
    .await;
}

/// The file as the first released schema made it, with one key that has limits.
fn old_state(path: &Path, hash: [u8; 32], id: &str) {
    let old = rusqlite::Connection::open(path).unwrap();
    old.execute_batch(
        "PRAGMA journal_mode = wal;
         CREATE TABLE keys (
            id TEXT PRIMARY KEY NOT NULL,
            hash BLOB NOT NULL CHECK (length(hash) = 32),
            name TEXT NOT NULL, team TEXT, models TEXT, has_limits INTEGER NOT NULL,
            requests_per_minute INTEGER, tokens_per_minute INTEGER, concurrency INTEGER,
            created_at INTEGER NOT NULL, expires_at INTEGER, revoked_at INTEGER
         ) STRICT;
         PRAGMA application_id = 1413955924;
         PRAGMA user_version = 1;",
    )
    .unwrap();
    old.execute(
        "INSERT INTO keys VALUES (?1, ?2, 'old', 'search', '[\"chat\"]', 1, 60, NULL, 2, 7, NULL, NULL)",
        rusqlite::params![id, hash],
    )
    .unwrap();
}

#[tokio::test]
async fn a_state_of_the_first_schema_opens_and_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let (secret, record) = key::mint("old", 7).unwrap();
    old_state(&Sqlite::path_in(dir.path()), record.hash, &record.id);

    let store = Sqlite::open(dir.path()).unwrap();
    let kept = store.key(&record.id).await.unwrap().unwrap();
    let limits =
        Limits { requests_per_minute: Some(60), concurrency: Some(2), ..Limits::default() };
    assert_eq!((&*kept.name, kept.team.as_deref(), kept.created_at), ("old", Some("search"), 7));
    assert_eq!((kept.limits, kept.budgets), (Some(limits), Budgets::default()));
    assert!(store.identify(secret.expose()).unwrap().may_use("chat"));
    store.update_key(&record.id, everything()).await.unwrap();
    drop(store);
    let again = Sqlite::open(dir.path()).unwrap();
    assert!(again.key(&record.id).await.unwrap().unwrap().budgets.hard);
}

#[test]
fn two_that_bring_an_old_state_up_to_date_at_once_are_no_error() {
    for _ in 0..10 {
        let dir = tempfile::tempdir().unwrap();
        let (_, record) = key::mint("old", 7).unwrap();
        old_state(&Sqlite::path_in(dir.path()), record.hash, &record.id);
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| Sqlite::open(dir.path()).map(drop).unwrap());
            }
        });
    }
}

#[tokio::test]
async fn several_processes_see_what_each_of_them_changes() {
    let dir = tempfile::tempdir().unwrap();
    let stores: Vec<Sqlite> = (0..3).map(|_| Sqlite::open(dir.path()).unwrap()).collect();
    let (secret, made) = stores[0].create_key(everything()).await.unwrap();
    let known = async |secret: &str| {
        let mut known = Vec::new();
        for store in &stores {
            store.refresh().await.unwrap();
            known.push(store.identify(secret).is_some());
        }
        known
    };
    assert_eq!(known(secret.expose()).await, [true; 3]);
    let (new, _) = stores[1].rotate_key(&made.id, Duration::ZERO).await.unwrap().unwrap();
    assert_eq!(known(secret.expose()).await, [false; 3]);
    assert_eq!(known(new.expose()).await, [true; 3]);
    stores[2].revoke_key(&made.id).await.unwrap();
    assert_eq!(known(new.expose()).await, [false; 3]);
}

#[tokio::test]
async fn a_key_changed_by_hand_is_noticed_and_other_tables_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(dir.path()).unwrap();
    let (secret, _) = store.create_key(KeyChange::default()).await.unwrap();
    let tenant = || store.identify(secret.expose());
    store.refresh().await.unwrap();
    let before = tenant().unwrap();

    let other = rusqlite::Connection::open(Sqlite::path_in(dir.path())).unwrap();
    other.execute_batch("CREATE TABLE other (a); INSERT INTO other VALUES (1)").unwrap();
    store.refresh().await.unwrap();
    assert!(Arc::ptr_eq(&before, &tenant().unwrap()), "the directory was not built anew");
    other.execute_batch("UPDATE keys SET name = 'by hand'").unwrap();
    store.refresh().await.unwrap();
    assert_eq!(&*tenant().unwrap().name, "by hand");
    other.execute_batch("DELETE FROM keys").unwrap();
    store.refresh().await.unwrap();
    assert!(tenant().is_none());
}

/// A gateway on `dir` whose file `spoil` takes away still knows its keys, and says what is wrong.
async fn survives(spoil: impl FnOnce(&Path), words: &str) {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(dir.path()).unwrap();
    let (secret, made) = store.create_key(KeyChange::default()).await.unwrap();
    spoil(&Sqlite::path_in(dir.path()));
    let error = store.refresh().await.unwrap_err();
    assert!(error.message().contains(words), "{error}");
    assert!(store.identify(secret.expose()).is_some(), "{words}");
    let error = store.revoke_key(&made.id).await.unwrap_err();
    assert!(error.message().contains(words), "nothing is written where it is lost: {error}");
    assert!(store.identify(secret.expose()).is_some());
}

#[cfg(unix)]
#[tokio::test]
async fn a_state_that_is_deleted_or_replaced_locks_nobody_out() {
    let words = "was deleted or replaced";
    survives(|path| fs::remove_file(path).unwrap(), words).await;
    survives(|path| fs::remove_dir_all(path.parent().unwrap()).unwrap(), words).await;
    let replace = |path: &Path| {
        fs::remove_file(path).unwrap();
        drop(Sqlite::open(path.parent().unwrap()).unwrap());
    };
    survives(replace, words).await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_deleted_write_ahead_log_parted_gateways_and_said_nothing() {
    let log = |path: &Path| fs::remove_file(path.with_extension("sqlite-wal")).unwrap();
    survives(log, "was deleted or replaced").await;
}

#[tokio::test]
async fn a_damaged_row_locks_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(dir.path()).unwrap();
    let (secret, made) = store.create_key(KeyChange::default()).await.unwrap();
    let other = rusqlite::Connection::open(Sqlite::path_in(dir.path())).unwrap();
    other.execute_batch("UPDATE keys SET models = 'no list'").unwrap();
    store.refresh().await.unwrap_err();
    assert!(store.identify(secret.expose()).is_some());
    store.refresh().await.expect_err("it is not forgotten");
    other
        .execute("UPDATE keys SET models = NULL, revoked_at = 1 WHERE id = ?1", [&*made.id])
        .unwrap();
    store.refresh().await.unwrap();
    assert!(store.identify(secret.expose()).is_none(), "and mended as soon as it can be read");
}

#[tokio::test]
async fn a_damaged_row_held_up_every_other_keys_revocation_and_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (gateway, admin) = (Sqlite::open(dir.path()).unwrap(), Sqlite::open(dir.path()).unwrap());
    let (secret, made) = admin.create_key(KeyChange::default()).await.unwrap();
    let (spoilt, its) = admin.create_key(KeyChange::default()).await.unwrap();
    gateway.refresh().await.unwrap();
    let other = rusqlite::Connection::open(Sqlite::path_in(dir.path())).unwrap();
    other.execute("UPDATE keys SET models = 'no list' WHERE id = ?1", [&*its.id]).unwrap();
    let error = gateway.refresh().await.unwrap_err();
    assert!(error.message().contains(&*its.id), "names the row: {error}");

    assert!(admin.revoke_key(&made.id).await.unwrap());
    gateway.refresh().await.unwrap_err();
    for store in [&gateway, &admin] {
        assert!(store.identify(secret.expose()).is_none());
        assert!(store.identify(spoilt.expose()).is_some(), "known from before");
    }
    let (good, _) = admin.create_key(KeyChange::default()).await.unwrap();
    // All are read anew, and what is known of the damaged one stays.
    other.execute("DELETE FROM keys WHERE id = ?1", [&*made.id]).unwrap();
    gateway.refresh().await.unwrap_err();
    assert!(gateway.identify(spoilt.expose()).is_some());

    let started = Sqlite::open(dir.path()).unwrap();
    assert!(!started.is_empty().await.unwrap(), "no first key is made");
    assert!(started.identify(good.expose()).is_some());
    assert!(started.identify(spoilt.expose()).is_none(), "nobody knows what it may do");
    let error = started.refresh().await.unwrap_err();
    assert!(error.message().contains(&*its.id), "{error}");
}

#[tokio::test]
async fn a_change_of_one_key_read_all_the_others_again() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (Sqlite::open(dir.path()).unwrap(), Sqlite::open(dir.path()).unwrap());
    let (secret, _) = one.create_key(everything()).await.unwrap();
    two.refresh().await.unwrap();
    let holders = || [&one, &two].map(|store| store.identify(secret.expose()).unwrap());
    let before = holders();
    let (other, made) = one.create_key(KeyChange::default()).await.unwrap();
    two.refresh().await.unwrap();
    assert!(two.identify(other.expose()).is_some());
    two.revoke_key(&made.id).await.unwrap();
    one.refresh().await.unwrap();
    assert!(one.identify(other.expose()).is_none());
    for (before, after) in before.iter().zip(holders()) {
        assert!(Arc::ptr_eq(before, &after));
    }
}

#[tokio::test]
async fn an_id_that_was_changed_by_hand_opens_nothing_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(dir.path()).unwrap();
    let (secret, made) = store.create_key(KeyChange::default()).await.unwrap();
    let other = rusqlite::Connection::open(Sqlite::path_in(dir.path())).unwrap();
    other.execute_batch("UPDATE keys SET id = 'another'").unwrap();
    store.refresh().await.unwrap();
    assert!(store.identify(secret.expose()).is_none());
    assert!(store.tenant(&made.id).is_none() && store.tenant("another").is_some());
}

#[tokio::test]
async fn a_write_lock_held_by_another_stops_no_reader() {
    let dir = tempfile::tempdir().unwrap();
    let store = Sqlite::open(dir.path()).unwrap();
    let (secret, _) = store.create_key(KeyChange::default()).await.unwrap();
    let other = rusqlite::Connection::open(Sqlite::path_in(dir.path())).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    store.refresh().await.unwrap();
    assert_eq!(store.keys().await.unwrap().len(), 1);
    assert!(store.identify(secret.expose()).is_some());
}
