//! Databases that are killed, hung, absent or wiped while the ledger writes: nothing is lost, and
//! nothing is there twice.

use crate::{
    ledger::{PATIENCE, by, entry, open, sums, sums_to},
    postgres::Server,
};
use rusqlite::Connection;
use std::{fs, path::Path, time::Duration};
use tidegate_core::Ledger as _;
use tidegate_store::ledger::{Books, Database};

/// Writes while the database is away, then waits until it is known to be, brings it back, and
/// expects everything there, once.
async fn survives(away: impl FnOnce(&mut Server), back: impl FnOnce(&mut Server)) {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), Server::start());
    let ledger = open(dir.path(), &Database::Postgres(server.url()));
    (1..=3_000).for_each(|number| ledger.write(entry(number)));
    ledger.flush().await.unwrap();

    // In the middle of writing: some of it is on its way.
    (3_001..=6_000).for_each(|number| ledger.write(entry(number)));
    away(&mut server);
    (6_001..=9_000).for_each(|number| ledger.write(entry(number)));
    let refused = ledger.flush().await.unwrap_err();
    assert!(refused.message().contains("away"), "{refused}");
    (9_001..=12_000).for_each(|number| ledger.write(entry(number)));
    ledger.flush().await.unwrap_err();
    assert!(ledger.health().away && ledger.health().journal_bytes > 0);

    back(&mut server);
    while ledger.flush().await.is_err() {}
    assert_eq!(sums(&*ledger).await, sums_to(12_000));
    assert!(!ledger.health().away);
    assert_eq!(ledger.finish(PATIENCE), 0);
    assert_eq!(fs::read_dir(dir.path().join("ledger-journal")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_killed_database_loses_and_doubles_nothing() {
    survives(Server::kill, Server::run).await;
}

#[tokio::test]
async fn a_hung_database_loses_and_doubles_nothing() {
    survives(|server| server.hang(), |server| server.go_on()).await;
}

#[tokio::test]
async fn a_database_that_is_absent_at_the_start_is_waited_for() {
    let (dir, mut server) = (tempfile::tempdir().unwrap(), Server::start());
    server.kill();
    let database = Database::Postgres(server.url());
    let ledger = open(dir.path(), &database);
    (1..=10).for_each(|number| ledger.write(entry(number)));
    ledger.flush().await.unwrap_err();
    assert_eq!(ledger.finish(PATIENCE), 10, "the end waits for no database that is away");
    drop(ledger);
    server.run();
    let ledger = open(dir.path(), &database);
    ledger.flush().await.unwrap();
    assert_eq!(sums(&*ledger).await, sums_to(10));
    let books = Books::of(dir.path(), &database).unwrap();
    assert_eq!(books.usage(&by(&[])).await.unwrap()[0].attempts, 10);
}

/// Leaves entries in the journal while the database is away, and finds them, several times over,
/// at the next start.
async fn stores_leftovers(database: &Database, away: impl FnOnce(&Path), back: impl FnOnce()) {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), database);
    ledger.flush().await.unwrap();
    away(dir.path());
    (1..=1_500).for_each(|number| ledger.write(entry(number)));
    assert_eq!(ledger.finish(Duration::ZERO), 1_500, "in the journal only");
    let journal = dir.path().join("ledger-journal");
    let left: Vec<_> = fs::read_dir(&journal).unwrap().map(|file| file.unwrap().path()).collect();
    let copy = left.iter().map(|path| fs::read(path).unwrap()).max_by_key(Vec::len).unwrap();
    back();
    drop(ledger);

    // Twice: as after a death between the commit and the deletion of the file.
    for name in ["0000000000000001-000000", "0000000000000002-000000"] {
        fs::write(journal.join(format!("{name}.journal")), &copy).unwrap();
    }
    // And with a tail torn by a power cut, and one that has nothing in it.
    let torn = &copy[..copy.len() - 7];
    fs::write(journal.join("0000000000000003-000000.journal"), torn).unwrap();
    fs::write(journal.join("0000000000000004-000000.journal"), &torn[..16]).unwrap();
    let ledger = open(dir.path(), database);
    while ledger.flush().await.is_err() {}
    assert_eq!(sums(&*ledger).await, sums_to(1_500));
    ledger.write(entry(1_501));
    assert_eq!(ledger.finish(PATIENCE), 0);
    assert_eq!(sums(&*ledger).await, sums_to(1_501));
}

#[tokio::test]
async fn what_is_left_in_the_journal_is_stored_in_sqlite_at_the_next_start_once() {
    let busy = std::cell::OnceCell::new();
    let away = |dir: &Path| {
        let other = Connection::open(dir.join("ledger.sqlite")).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        busy.set(other).unwrap();
    };
    let back = || busy.get().unwrap().execute_batch("COMMIT").unwrap();
    stores_leftovers(&Database::Sqlite, away, back).await;
}

#[tokio::test]
async fn what_is_left_in_the_journal_is_stored_in_postgresql_at_the_next_start_once() {
    let server = std::cell::RefCell::new(Server::start());
    let database = Database::Postgres(server.borrow().url());
    stores_leftovers(&database, |_| server.borrow_mut().kill(), || server.borrow_mut().run()).await;
}

#[tokio::test]
async fn a_ledger_that_is_taken_away_is_begun_anew() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), &Database::Sqlite);
    (1..=10).for_each(|number| ledger.write(entry(number)));
    ledger.flush().await.unwrap();
    for file in ["ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"] {
        fs::rename(dir.path().join(file), dir.path().join(format!("old-{file}"))).unwrap();
    }
    // What is written to a file without a name would be lost.
    (1..=5).for_each(|number| ledger.write(entry(number)));
    ledger.flush().await.unwrap();
    assert_eq!(sums(&*ledger).await, sums_to(5));
}
