//! What every ledger does, run over each of them.

use crate::postgres::Server;
use rusqlite::Connection;
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tidegate_core::{
    Cause, Class, Entry, Group, Ledger, Money, Operation, Secret, Usage, UsageQuery,
};
use tidegate_store::ledger::{Books, Database, Recorder};

/// Long enough that only what hangs does not get there.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `test` over each database, in a data directory of its own.
async fn each<F: Future<Output = ()>>(test: impl Fn(Arc<Recorder>) -> F) {
    let dir = tempfile::tempdir().unwrap();
    test(open(dir.path(), &Database::Sqlite)).await;
    let (dir, server) = (tempfile::tempdir().unwrap(), Server::start());
    test(open(dir.path(), &Database::Postgres(server.url()))).await;
}

pub(crate) fn open(dir: &Path, database: &Database) -> Arc<Recorder> {
    Arc::new(Recorder::open(dir, database, None).unwrap())
}

/// An entry that differs from others of other numbers.
pub(crate) fn entry(number: u64) -> Entry {
    Entry {
        call: format!("req-{number}").into(),
        attempt: 1,
        cause: Cause::First,
        at: UNIX_EPOCH + Duration::from_secs(1_790_000_000 + number),
        took: Duration::from_millis(250),
        caller: "c1".into(),
        team: Some("search".into()),
        operation: Operation::ChatCompletions,
        model: "chat".into(),
        upstream: "a".into(),
        upstream_model: "qwen3-8b".into(),
        failure: None,
        usage: Usage { input: number, cached_input: 1, cache_write: 4, output: 2, reasoning: 3 },
        told: true,
        cost: Some(Money::from_pico(number)),
    }
}

pub(crate) fn by(groups: &[Group]) -> UsageQuery {
    UsageQuery { group_by: groups.to_vec(), ..UsageQuery::default() }
}

/// Attempts and input tokens in all: each entry once, or they would not both be right.
pub(crate) async fn sums(ledger: &dyn Ledger) -> (u64, u64) {
    let rows = ledger.usage(&by(&[])).await.unwrap();
    (rows[0].attempts, rows[0].usage.input)
}

/// The same for entries 1 to `last`.
pub(crate) const fn sums_to(last: u64) -> (u64, u64) {
    (last, last * (last + 1) / 2)
}

#[test]
fn the_bundled_sqlite_is_recent() {
    // Earlier ones have errors in the write-ahead log that can damage a database.
    assert!(rusqlite::version_number() >= 3_051_003, "{}", rusqlite::version());
}

#[tokio::test]
async fn what_is_written_is_summed() {
    each(async |ledger: Arc<Recorder>| {
        assert_eq!(sums(&*ledger).await, (0, 0), "one row of zeros");
        assert_eq!(ledger.usage(&by(&[Group::Model])).await.unwrap(), [], "and no group");
        let odd = Entry {
            caller: "c\u{0}2".into(),
            team: None,
            model: "ä".repeat(1_000).into(),
            cause: Cause::Hedge,
            failure: Some(Class::Timeout),
            cost: None,
            ..entry(5)
        };
        for entry in [
            entry(1),
            Entry { cause: Cause::Retry, attempt: 2, ..entry(1) },
            Entry { caller: "B".into(), upstream: "b".into(), ..entry(3) },
            Entry { team: Some("Ops".into()), cause: Cause::Batch, ..entry(4) },
            odd,
            Entry { usage: Usage::default(), cost: None, ..entry(0) },
        ] {
            ledger.write(entry);
        }
        ledger.flush().await.unwrap();

        let all = ledger.usage(&by(&[])).await.unwrap().remove(0);
        assert_eq!((all.attempts, all.calls, all.failed, all.unpriced), (6, 4, 1, 1));
        assert_eq!(
            all.usage,
            Usage {
                input: 1 + 1 + 3 + 4 + 5,
                cached_input: 5,
                cache_write: 20,
                output: 10,
                reasoning: 15
            }
        );
        assert_eq!(all.cost.pico(), 1 + 1 + 3 + 4);

        let of = async |groups: &[Group]| {
            let rows = ledger.usage(&by(groups)).await.unwrap();
            rows.into_iter().map(|row| (row.of.join("/"), row.attempts)).collect::<Vec<_>>()
        };
        let named = |rows: &[(&str, u64)]| {
            rows.iter().map(|(of, attempts)| ((*of).to_owned(), *attempts)).collect::<Vec<_>>()
        };
        // Byte by byte: capitals first, whatever the database's own language.
        assert_eq!(of(&[Group::Team]).await, named(&[("", 1), ("Ops", 1), ("search", 4)]));
        assert_eq!(
            of(&[Group::Caller, Group::Upstream]).await,
            named(&[("B/b", 1), ("c 2/a", 1), ("c1/a", 4)])
        );
        assert_eq!(
            of(&[Group::Cause]).await,
            named(&[("batch", 1), ("first", 3), ("hedge", 1), ("retry", 1)])
        );
        assert_eq!(of(&[Group::Day]).await, named(&[("2026-09-21", 6)]));
        let models = of(&[Group::Model]).await;
        assert_eq!((models.len(), models[1].0.len()), (2, 512), "a long name is cut");
    })
    .await;
}

#[tokio::test]
async fn only_what_is_asked_for_is_summed() {
    each(async |ledger: Arc<Recorder>| {
        for day in 0..4 {
            let at = UNIX_EPOCH + Duration::from_secs(1_790_000_000 + day * 86_400);
            ledger.write(Entry { at, model: format!("m{day}").into(), ..entry(day) });
            ledger.write(Entry { at, upstream: "b".into(), team: None, ..entry(10) });
        }
        ledger.flush().await.unwrap();
        let attempts = async |query: UsageQuery| {
            let rows = ledger.usage(&query).await.unwrap();
            rows.iter().map(|row| row.attempts).collect::<Vec<_>>()
        };
        let day = |days: u64| Some(1_790_000_000 + days * 86_400);
        let none = UsageQuery::default();
        assert_eq!(attempts(UsageQuery { from: day(1), to: day(3), ..none.clone() }).await, [4]);
        assert_eq!(attempts(UsageQuery { from: Some(u64::MAX), ..none.clone() }).await, [0]);
        assert_eq!(attempts(UsageQuery { to: Some(0), ..none.clone() }).await, [0]);
        let before = |micros| {
            let moment = UNIX_EPOCH + Duration::from_secs(1_790_000_000 + 86_400);
            UsageQuery { before: Some(moment + Duration::from_micros(micros)), ..none.clone() }
        };
        assert_eq!(attempts(before(0)).await, [2], "those of the day before");
        assert_eq!(attempts(before(1)).await, [4]);
        let beginning = UsageQuery { before: Some(UNIX_EPOCH), ..none.clone() };
        assert_eq!(attempts(beginning).await, [0]);
        let only = |text: &str| Some(text.into());
        assert_eq!(attempts(UsageQuery { model: only("m2"), ..none.clone() }).await, [1]);
        assert_eq!(attempts(UsageQuery { team: only("search"), ..none.clone() }).await, [4]);
        assert_eq!(attempts(UsageQuery { caller: only("c1"), ..none.clone() }).await, [8]);
        let nobody = "x' OR 1 = 1 --";
        assert_eq!(attempts(UsageQuery { caller: only(nobody), ..none.clone() }).await, [0]);
        let two = UsageQuery { model: only("m2"), upstream: only("b"), ..none.clone() };
        assert_eq!(attempts(two).await, [0]);
        let days = UsageQuery { limit: 2, ..by(&[Group::Day]) };
        assert_eq!(attempts(days.clone()).await, [2, 2]);
        assert_eq!(ledger.usage(&days).await.unwrap()[0].of, ["2026-09-21"], "the oldest");
        ledger.write(Entry { cause: Cause::Mirror, ..entry(9) });
        ledger.flush().await.unwrap();
        assert_eq!(attempts(none.clone()).await, [9]);
        assert_eq!(attempts(UsageQuery { without_mirrors: true, ..none.clone() }).await, [8]);
    })
    .await;
}

#[tokio::test]
async fn sums_are_exact_beyond_what_a_number_of_one_row_holds() {
    each(async |ledger: Arc<Recorder>| {
        // Six million dollars each: together more than a signed number of picodollars holds.
        for number in 0..3 {
            let cost = Some(Money::from_pico(6_000_000_000_000_000_001));
            ledger.write(Entry { cost, ..entry(number) });
        }
        ledger.flush().await.unwrap();
        let all = ledger.usage(&by(&[])).await.unwrap().remove(0);
        assert_eq!(all.cost.pico(), 18_000_000_000_000_000_003);
    })
    .await;
}

#[tokio::test]
async fn calls_of_one_id_are_two_calls() {
    each(async |ledger: Arc<Recorder>| {
        // Callers choose the id, and their clients send it again when they try again.
        ledger.write(entry(1));
        ledger.write(entry(1));
        ledger.flush().await.unwrap();
        assert_eq!(sums(&*ledger).await, (2, 2));
    })
    .await;
}

#[tokio::test]
async fn many_writers_lose_nothing() {
    each(async |ledger: Arc<Recorder>| {
        std::thread::scope(|threads| {
            for writer in 0..4 {
                let ledger = &ledger;
                threads.spawn(move || {
                    (1..=5_000).for_each(|number| ledger.write(entry(writer * 5_000 + number)));
                });
            }
        });
        ledger.flush().await.unwrap();
        assert_eq!(sums(&*ledger).await, sums_to(20_000));
        assert_eq!(ledger.health(), tidegate_store::ledger::Health::default());
    })
    .await;
}

#[tokio::test]
async fn old_entries_are_forgotten_when_told_so() {
    let server = Server::start();
    for database in [Database::Sqlite, Database::Postgres(server.url())] {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path(), &database);
        (1..=20).for_each(|number| ledger.write(Entry { at: SystemTime::now(), ..entry(number) }));
        (21..=6_000).for_each(|number| {
            ledger.write(Entry { at: UNIX_EPOCH + Duration::from_secs(number), ..entry(number) });
        });
        ledger.flush().await.unwrap();
        assert_eq!(ledger.finish(PATIENCE), 0);
        let kept = Some(Duration::from_secs(30 * 86_400));
        let ledger = Recorder::open(dir.path(), &database, kept).unwrap();
        // It deletes before it stores what comes after: until then it looks again and again.
        loop {
            ledger.flush().await.unwrap();
            let now = sums(&ledger).await;
            if now == sums_to(20) {
                break;
            }
            assert!(now.0 > 20, "the young ones stay: {now:?}");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn two_processes_keep_one_ledger_and_their_own_journals() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open(dir.path(), &Database::Sqlite), open(dir.path(), &Database::Sqlite));
    (1..=10).for_each(|number| one.write(entry(number)));
    (11..=20).for_each(|number| two.write(entry(number)));
    one.flush().await.unwrap();
    two.flush().await.unwrap();
    assert_eq!(sums(&*one).await, sums_to(20));
    // One that starts meanwhile takes nothing from those that live.
    let three = open(dir.path(), &Database::Sqlite);
    one.write(entry(21));
    assert_eq!((one.finish(PATIENCE), two.finish(PATIENCE), three.finish(PATIENCE)), (0, 0, 0));
    assert_eq!(sums(&*three).await, sums_to(21));
    assert_eq!(fs::read_dir(dir.path().join("ledger-journal")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_journal_that_cannot_be_written_is_gone_around() {
    let dir = tempfile::tempdir().unwrap();
    // Full, as far as this writer is concerned: a directory that was taken away.
    let ledger = open(dir.path(), &Database::Sqlite);
    fs::remove_dir(dir.path().join("ledger-journal")).unwrap();
    (1..=2_500).for_each(|number| ledger.write(entry(number)));
    ledger.flush().await.unwrap();
    assert_eq!(sums(&*ledger).await, sums_to(2_500));
    fs::create_dir(dir.path().join("ledger-journal")).unwrap();
    ledger.write(entry(2_501));
    assert_eq!(ledger.finish(PATIENCE), 0);
    assert_eq!(sums(&*ledger).await, sums_to(2_501));
}

#[tokio::test]
async fn what_neither_journal_nor_database_took_is_not_said_to_be_in_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), &Database::Sqlite);
    fs::remove_dir(dir.path().join("ledger-journal")).unwrap();
    fs::remove_file(dir.path().join("ledger.sqlite")).unwrap();
    fs::create_dir(dir.path().join("ledger.sqlite")).unwrap();
    (1..=10).for_each(|number| ledger.write(entry(number)));
    assert_eq!(ledger.finish(PATIENCE), 0, "nothing is left to be stored");
    assert_eq!(ledger.health().lost, 10);
}

#[tokio::test]
async fn postgresql_is_spoken_to_over_tls_only_with_a_certificate_that_fits() {
    let (port, certificate) =
        (free_port(), rcgen::generate_simple_self_signed(["localhost".into()]));
    let certificate = certificate.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("ca.pem");
    fs::write(&ours, certificate.cert.pem()).unwrap();
    let settings = ["ssl=on", "listen_addresses=127.0.0.1", &format!("port={port}")];
    let _server = Server::start_with(&settings, |dir| {
        use std::os::unix::fs::PermissionsExt;
        let key = dir.join("data/server.key");
        fs::write(&key, certificate.signing_key.serialize_pem()).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(dir.join("data/server.crt"), certificate.cert.pem()).unwrap();
    });
    let books = |host: &str, words: &str| {
        let url = format!("postgres://tidegate@{host}:{port}/postgres?{words}");
        Books::of(dir.path(), &Database::Postgres(Secret::new(url))).unwrap()
    };
    let trusted = format!("sslmode=verify-full&sslrootcert={}", ours.display());
    assert!(books("localhost", &trusted).usage(&by(&[])).await.is_ok());
    assert!(books("localhost", "").usage(&by(&[])).await.is_ok(), "this machine needs none");
    for (host, words) in [("localhost", "sslmode=require"), ("127.0.0.1", &*trusted)] {
        let error = books(host, words).usage(&by(&[])).await.unwrap_err();
        assert!(error.message().contains("TLS"), "{error}");
    }
}

/// A port nobody listens on now; another test may take it, PostgreSQL then says so and ends.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_file_that_is_no_ledger_is_refused_and_left_alone() {
    let refuses = |spoil: &dyn Fn(&Path), words: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        spoil(&path);
        let before = fs::read(&path).unwrap();
        let Err(error) = Recorder::open(dir.path(), &Database::Sqlite, None) else {
            panic!("opened")
        };
        let message = error.message();
        assert!(message.contains(words) && message.contains(&*path.to_string_lossy()), "{message}");
        assert_eq!(fs::read(&path).unwrap(), before);
    };
    refuses(&|path| fs::write(path, "no database, ".repeat(100)).unwrap(), "not a SQLite database");
    refuses(
        &|path| {
            let other = Connection::open(path).unwrap();
            other.execute_batch("CREATE TABLE bookmarks (url TEXT)").unwrap();
        },
        "another program",
    );
    refuses(
        &|path| {
            drop(Recorder::open(path.parent().unwrap(), &Database::Sqlite, None).unwrap());
            let newer = Connection::open(path).unwrap();
            newer.pragma_update(None, "user_version", 99).unwrap();
        },
        "newer Tidegate (schema 99",
    );
}

#[tokio::test]
async fn files_are_for_our_eyes_only_and_hold_no_gaps() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), &Database::Sqlite);
    (1..=100).for_each(|number| ledger.write(entry(number)));
    ledger.flush().await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let journal = dir.path().join("ledger-journal");
    assert_eq!((mode(&journal), mode(&dir.path().join("ledger.sqlite"))), (0o700, 0o600));
    let files: Vec<_> = fs::read_dir(&journal).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(!files.is_empty() && files.iter().all(|file| mode(file) == 0o600));
    let calls = Connection::open(dir.path().join("ledger.sqlite")).unwrap();
    let mut select = calls.prepare("SELECT sequence FROM tidegate_ledger").unwrap();
    let places: BTreeSet<i64> =
        select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert!(places.into_iter().eq(1..=100));
}
