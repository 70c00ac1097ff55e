//! What was in flight when a process was killed is entered by the next one, once.

use crate::{
    ledger::{PATIENCE, by, entry, open, sums},
    postgres::Server,
};
use rusqlite::Connection;
use std::{fs, path::Path, time::Duration};
use tidegate_core::{Class, Entry, Ledger as _, Money, Usage};
use tidegate_store::ledger::Database;

/// What entry `number` may come to: a thousand tokens more than it will have.
fn most(number: u64) -> Entry {
    Entry {
        failure: Some(Class::Fault),
        usage: Usage { input: 1_000 + number, ..Usage::default() },
        told: false,
        cost: Some(Money::from_pico(1_000 + number)),
        ..entry(number)
    }
}

/// What a kill would leave now: the slots, or the journal.
fn left(dir: &Path, extension: &str) -> Vec<u8> {
    let journal = fs::read_dir(dir.join("ledger-journal")).unwrap();
    let mut paths = journal.map(|file| file.unwrap().path());
    let path = paths.find(|path| path.extension().is_some_and(|is| is == extension)).unwrap();
    fs::read(path).unwrap()
}

/// Puts files of slots back, as processes that are dead.
fn leave(dir: &Path, files: &[&[u8]]) {
    for (index, bytes) in files.iter().enumerate() {
        let name = format!("ledger-journal/000000000000000{index}.slots");
        fs::write(dir.join(name), bytes).unwrap();
    }
}

fn journal_files(dir: &Path) -> usize {
    fs::read_dir(dir.join("ledger-journal")).unwrap().count()
}

async fn is_entered_once(database: &Database) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let ledger = open(dir, database);
    let mut noted: Vec<_> = (1..=3).map(|n| ledger.begin(&most(n)).unwrap()).collect();
    let killed = left(dir, "slots");
    ledger.end(noted.remove(1), entry(2));
    ledger.write(entry(10));
    ledger.flush().await.unwrap();
    assert_eq!(sums(&*ledger).await, (2, 2 + 10), "what is in flight is not in the books");
    assert_eq!(ledger.finish(PATIENCE), 0);
    drop((ledger, noted));

    // As the kill found it before the second had ended, twice, and as it is at the end.
    leave(dir, &[&killed, &killed]);
    let ledger = open(dir, database);
    while ledger.flush().await.is_err() {}
    let expected = (4, 1_001 + 2 + 1_003 + 10);
    assert_eq!(sums(&*ledger).await, expected);
    let all = ledger.usage(&by(&[])).await.unwrap().remove(0);
    assert_eq!((all.failed, all.cost.pico()), (2, 1_001 + 2 + 1_003 + 10));
    assert_eq!(ledger.finish(PATIENCE), 0);
    assert_eq!(journal_files(dir), 0, "and no more than once");
    drop(ledger);
    let ledger = open(dir, database);
    ledger.flush().await.unwrap();
    assert_eq!(sums(&*ledger).await, expected);
}

#[tokio::test]
async fn what_was_in_flight_at_a_kill_is_entered_once() {
    is_entered_once(&Database::Sqlite).await;
    let server = Server::start();
    is_entered_once(&Database::Postgres(server.url())).await;
}

#[tokio::test]
async fn what_ended_while_the_database_was_away_is_entered_as_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let ledger = open(dir, &Database::Sqlite);
    ledger.flush().await.unwrap();
    let other = Connection::open(dir.join("ledger.sqlite")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut noted: Vec<_> = (1..=2).map(|n| ledger.begin(&most(n)).unwrap()).collect();
    let killed = left(dir, "slots");
    ledger.end(noted.remove(0), entry(1));
    assert_eq!(ledger.finish(Duration::ZERO), 1, "in the journal only");
    let journal = left(dir, "journal");

    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir(dir.join("ledger-journal")).unwrap();
    leave(dir, &[&killed]);
    fs::write(dir.join("ledger-journal/0000000000000000-000000.journal"), journal).unwrap();
    let ledger = open(dir, &Database::Sqlite);
    while ledger.flush().await.is_err() {}
    assert_eq!(sums(&*ledger).await, (2, 1 + 1_002));
}

#[tokio::test]
async fn what_another_process_has_in_flight_is_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let one = open(dir, &Database::Sqlite);
    let noted = one.begin(&most(1)).unwrap();
    let two = open(dir, &Database::Sqlite);
    two.write(entry(2));
    two.flush().await.unwrap();
    assert_eq!(two.finish(PATIENCE), 0);
    assert_eq!(sums(&*two).await, (1, 2));
    one.end(noted, entry(1));
    one.flush().await.unwrap();
    assert_eq!(one.finish(PATIENCE), 0);
    assert_eq!((sums(&*one).await, journal_files(dir)), ((2, 1 + 2), 0));
}

#[tokio::test]
async fn a_damaged_slot_costs_no_other_one() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let ledger = open(dir, &Database::Sqlite);
    let noted: Vec<_> = (1..=3).map(|n| ledger.begin(&most(n)).unwrap()).collect();
    let mut killed = left(dir, "slots");
    for noted in noted {
        ledger.end(noted, entry(0));
    }
    assert_eq!(ledger.finish(PATIENCE), 0);
    drop(ledger);
    let second = killed.windows(5).position(|text| text == b"req-2").unwrap();
    killed[second] ^= 1;
    let (killed, headless) = (killed.clone(), {
        killed[8] ^= 1;
        killed
    });

    fs::remove_file(dir.join("ledger.sqlite")).unwrap();
    leave(dir, &[&killed, &headless]);
    let ledger = open(dir, &Database::Sqlite);
    while ledger.flush().await.is_err() {}
    assert_eq!(sums(&*ledger).await, (2, 1_001 + 1_003));
    assert_eq!(ledger.finish(PATIENCE), 0);
    assert_eq!(journal_files(dir), 1, "whose slots they are nobody knows: they stay");
}

#[tokio::test]
async fn attempts_are_sent_and_entered_where_nothing_can_be_noted() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), &Database::Sqlite);
    fs::remove_dir(dir.path().join("ledger-journal")).unwrap();
    assert_eq!(ledger.begin(&most(1)), None);
    assert_eq!(ledger.health().unnoted, 1);
    ledger.write(entry(1));
    ledger.flush().await.unwrap();
    assert_eq!(sums(&*ledger).await, (1, 1));
}

#[tokio::test]
async fn what_is_stored_past_a_journal_that_fails_gives_its_slot_back() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("ledger-journal");
    let ledger = open(dir.path(), &Database::Sqlite);
    let noted = ledger.begin(&most(1)).unwrap();
    // The slots go on without their name; the journal cannot be begun.
    fs::remove_dir_all(&journal).unwrap();
    ledger.end(noted, entry(1));
    ledger.flush().await.unwrap();
    assert_eq!(sums(&*ledger).await, (1, 1));
    let all: Vec<_> = (0..64).map(|n| ledger.begin(&most(n))).collect();
    assert!(all.iter().all(Option::is_some), "there are 64 of them: the first is free again");
}

/// Makes a ledger what the first version made, with what is in it.
const FIRST_SQLITE: &str = "
    ALTER TABLE tidegate_ledger RENAME TO today;
    CREATE TABLE tidegate_ledger (
        writer INTEGER NOT NULL, sequence INTEGER NOT NULL, at INTEGER NOT NULL,
        took INTEGER NOT NULL, call TEXT NOT NULL, attempt INTEGER NOT NULL, cause TEXT NOT NULL,
        caller TEXT NOT NULL, team TEXT, operation TEXT NOT NULL, model TEXT NOT NULL,
        upstream TEXT NOT NULL, upstream_model TEXT NOT NULL, failure TEXT, input INTEGER NOT NULL,
        cached_input INTEGER NOT NULL, output INTEGER NOT NULL, reasoning INTEGER NOT NULL,
        told INTEGER NOT NULL, cost INTEGER, PRIMARY KEY (writer, sequence)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX tidegate_ledger_at ON tidegate_ledger (at);
    INSERT INTO tidegate_ledger SELECT writer, sequence, at, took, call, attempt, cause, caller,
        team, operation, model, upstream, upstream_model, failure, input, cached_input, output,
        reasoning, told, cost FROM today;
    DROP TABLE today";

#[tokio::test]
async fn an_older_ledger_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let is_up_to_date = async |database: &Database| {
        let ledger = open(dir.path(), database);
        ledger.write(entry(1));
        ledger.flush().await.unwrap();
        let all = ledger.usage(&by(&[])).await.unwrap().remove(0);
        assert_eq!(ledger.finish(PATIENCE), 0);
        (all.attempts, all.usage.cache_write)
    };
    assert_eq!(is_up_to_date(&Database::Sqlite).await, (1, 4));
    let older = Connection::open(dir.path().join("ledger.sqlite")).unwrap();
    older.execute_batch(FIRST_SQLITE).unwrap();
    older.pragma_update(None, "user_version", 1).unwrap();
    drop(older);
    assert_eq!(is_up_to_date(&Database::Sqlite).await, (2, 4));

    let server = Server::start();
    let database = Database::Postgres(server.url());
    assert_eq!(is_up_to_date(&database).await, (1, 4));
    let connected = tokio_postgres::connect(server.url().expose(), tokio_postgres::NoTls).await;
    let (older, connection) = connected.unwrap();
    tokio::spawn(connection);
    let changes = "ALTER TABLE tidegate_ledger DROP COLUMN cache_write;
        UPDATE tidegate_schema SET version = 1";
    older.batch_execute(changes).await.unwrap();
    assert_eq!(is_up_to_date(&database).await, (2, 4));
}
