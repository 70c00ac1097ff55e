//! What every keeper of answers does, run over each of them; then what only a file can get wrong.

use std::{fs, path::Path, sync::Arc, time::Duration};
use tempfile::TempDir;
use tidegate_core::{
    Begun, Ended, Execution, KeptAnswer, Kind, ReplayKey, Replays, Result, Unkept,
};
use tidegate_store::replay::{Memory, Options, Sqlite};

/// Runs `test` over each keeper.
async fn each<F: Future<Output = ()>>(options: Options, test: impl Fn(Arc<dyn Replays>) -> F) {
    test(Arc::new(Memory::new(options))).await;
    let dir = tempfile::tempdir().unwrap();
    test(Arc::new(open(dir.path(), options))).await;
}

fn open(dir: &Path, options: Options) -> Sqlite {
    Sqlite::open(&dir.join("data"), options).unwrap()
}

const fn key(id: u8) -> ReplayKey {
    ReplayKey { caller: 1, id: [id; 32], request: [7; 32] }
}

fn answer(body: &'static str) -> KeptAnswer {
    KeptAnswer { status: 200, content_type: "text/event-stream".into(), body: body.into() }
}

/// What a begin comes to, in words.
fn word(begun: Result<Begun>) -> String {
    match begun {
        Ok(Begun::Fresh(_)) => "fresh".into(),
        Ok(Begun::Running(_)) => "running".into(),
        Ok(Begun::Done(answer)) => format!("done {}", String::from_utf8_lossy(&answer.body)),
        Ok(Begun::Busy) => "busy".into(),
        Ok(Begun::Mismatch) => "mismatch".into(),
        Ok(Begun::Unkept(why)) => format!("{why:?}"),
        Err(error) => format!("{:?}", error.kind()),
    }
}

async fn begin(replays: &dyn Replays, id: u8) -> Box<dyn Execution> {
    match replays.begin(key(id)).await {
        Ok(Begun::Fresh(execution)) => execution,
        other => panic!("{}", word(other)),
    }
}

async fn keep(replays: &dyn Replays, id: u8, body: &'static str) {
    begin(replays, id).await.finish(Ended::Answered(answer(body))).await.unwrap();
}

#[tokio::test]
async fn a_request_is_carried_out_once_and_answered_again() {
    each(Options::default(), async |replays: Arc<dyn Replays>| {
        let execution = begin(&*replays, 1).await;
        assert_eq!(word(replays.begin(key(1)).await), "running");
        let kept = answer("data: 1\n\ndata: \u{e4}\n\n");
        execution.finish(Ended::Answered(kept.clone())).await.unwrap();
        for _ in 0..2 {
            let Ok(Begun::Done(found)) = replays.begin(key(1)).await else { panic!("not kept") };
            assert_eq!(found, kept);
        }
        assert_eq!(word(replays.begin(key(2)).await), "fresh");
    })
    .await;
}

#[tokio::test]
async fn another_request_under_the_key_is_a_mismatch() {
    each(Options::default(), async |replays: Arc<dyn Replays>| {
        let other = ReplayKey { request: [8; 32], ..key(1) };
        let execution = begin(&*replays, 1).await;
        assert_eq!(word(replays.begin(other).await), "mismatch");
        execution.finish(Ended::Answered(answer("a"))).await.unwrap();
        assert_eq!(word(replays.begin(other).await), "mismatch");
        assert_eq!(word(replays.begin(key(1)).await), "done a");
    })
    .await;
}

#[tokio::test]
async fn what_ends_without_an_answer_can_be_carried_out_again() {
    each(Options::default(), async |replays: Arc<dyn Replays>| {
        for _ in 0..3 {
            drop(begin(&*replays, 1).await);
        }
        keep(&*replays, 1, "a").await;
        assert_eq!(word(replays.begin(key(1)).await), "done a");
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_is_not_kept_is_not_paid_for_twice() {
    each(Options::default(), async |replays: Arc<dyn Replays>| {
        let ended = Ended::Unkept(Unkept::TooLong);
        begin(&*replays, 1).await.finish(ended).await.unwrap();
        assert_eq!(word(replays.begin(key(1)).await), "TooLong");
    })
    .await;
}

#[tokio::test]
async fn of_many_at_once_one_is_fresh() {
    each(Options::default(), async |replays: Arc<dyn Replays>| {
        let all = futures_util::future::join_all((0..50).map(|_| replays.begin(key(1)))).await;
        let words: Vec<_> = all.iter().map(|begun| matches!(begun, Ok(Begun::Fresh(_)))).collect();
        assert_eq!(words.iter().filter(|fresh| **fresh).count(), 1);
        assert!(all.iter().all(|begun| matches!(begun, Ok(Begun::Fresh(_) | Begun::Running(_)))));
    })
    .await;
}

#[tokio::test]
async fn what_has_expired_is_unknown_and_is_swept_but_never_while_it_runs() {
    let options = Options { ttl: Duration::ZERO, ..Options::default() };
    each(options, async |replays: Arc<dyn Replays>| {
        let running = begin(&*replays, 1).await;
        keep(&*replays, 2, "a").await;
        replays.sweep().await.unwrap();
        assert_eq!(word(replays.begin(key(1)).await), "running");
        assert_eq!(word(replays.begin(key(2)).await), "fresh");
        running.finish(Ended::Answered(answer("b"))).await.unwrap();
        assert_eq!(word(replays.begin(key(1)).await), "fresh");
    })
    .await;
}

#[tokio::test]
async fn the_oldest_answers_make_room_and_say_so() {
    let options = Options { max_bytes: 10, ..Options::default() };
    each(options, async |replays: Arc<dyn Replays>| {
        for id in 1..=3 {
            keep(&*replays, id, "1234").await;
        }
        replays.sweep().await.unwrap();
        assert_eq!(word(replays.begin(key(1)).await), "PushedOut");
        assert_eq!(word(replays.begin(key(2)).await), "done 1234");
        assert_eq!(word(replays.begin(key(3)).await), "done 1234");
        keep(&*replays, 4, "longer than all of it").await;
        for id in 1..=4 {
            assert_eq!(word(replays.begin(key(id)).await), "PushedOut");
        }
    })
    .await;
}

#[tokio::test]
async fn repeats_that_nobody_read_held_a_copy_of_the_answer_each() {
    let dir = tempfile::tempdir().unwrap();
    let replays = open(dir.path(), Options::default());
    let long = |id: u8| KeptAnswer { body: vec![id; 4 << 20].into(), ..answer("") };
    for id in 1..=17 {
        begin(&replays, id).await.finish(Ended::Answered(long(id))).await.unwrap();
    }
    let repeat = async |id| match replays.begin(key(id)).await {
        Ok(Begun::Done(found)) => Some(found),
        other => {
            assert_eq!(word(other), "busy");
            None
        }
    };
    let first = repeat(1).await.unwrap();
    let second = repeat(1).await.unwrap();
    assert_eq!(first, long(1));
    assert_eq!(first.body.as_ptr(), second.body.as_ptr(), "one copy for both");
    let mut held: Vec<KeptAnswer> = Vec::new();
    for id in 2..=16 {
        held.push(repeat(id).await.unwrap());
    }
    assert_eq!(repeat(17).await, None, "64 MiB are being read");
    assert_eq!(repeat(1).await, Some(long(1)), "which needs no more");
    held.pop();
    assert_eq!(repeat(17).await, Some(long(17)));
}

#[tokio::test]
async fn a_flood_of_one_callers_keys_had_anothers_request_carried_out_twice() {
    each(Options { max_keys: 10, ..Options::default() }, async |replays: Arc<dyn Replays>| {
        keep(&*replays, 1, "precious").await;
        for id in 100..200 {
            let flood = ReplayKey { caller: u64::MAX, ..key(id) };
            let Ok(Begun::Fresh(execution)) = replays.begin(flood).await else { panic!("known") };
            execution.finish(Ended::Answered(answer("no such model"))).await.unwrap();
        }
        assert_eq!(word(replays.begin(key(1)).await), "done precious");
        let last = ReplayKey { caller: u64::MAX, ..key(199) };
        assert_eq!(word(replays.begin(last).await), "done no such model");
    })
    .await;
}

#[tokio::test]
async fn at_most_so_many_keys_are_known() {
    let options = Options { max_keys: 3, ..Options::default() };
    each(options, async |replays: Arc<dyn Replays>| {
        let running = begin(&*replays, 1).await;
        keep(&*replays, 2, "b").await;
        keep(&*replays, 3, "c").await;
        keep(&*replays, 4, "d").await;
        for (id, expected) in [(1, "running"), (3, "done c"), (4, "done d")] {
            assert_eq!(word(replays.begin(key(id)).await), expected);
        }
        let others = [begin(&*replays, 5).await, begin(&*replays, 6).await];
        assert_eq!(word(replays.begin(key(7)).await), "Overloaded");
        drop((running, others));
        assert_eq!(word(replays.begin(key(7)).await), "fresh");
    })
    .await;
}

/// The files as they are now, in another directory: what a successor finds after `kill -9`.
fn crashed(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    let data = copy.path().join("data");
    fs::create_dir(&data).unwrap();
    for file in fs::read_dir(dir.join("data")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), data.join(file.file_name())).unwrap();
    }
    copy
}

#[tokio::test]
async fn after_a_crash_answers_are_there_and_what_ran_is_not_carried_out_again() {
    let dir = tempfile::tempdir().unwrap();
    let replays = open(dir.path(), Options::default());
    keep(&replays, 1, "a").await;
    let running = begin(&replays, 2).await;
    let copy = crashed(dir.path());
    let successor = open(copy.path(), Options::default());
    assert_eq!(word(successor.begin(key(1)).await), "done a");
    for _ in 0..2 {
        assert_eq!(word(successor.begin(key(2)).await), "Interrupted");
    }
    assert_eq!(word(successor.begin(ReplayKey { request: [8; 32], ..key(2) }).await), "mismatch");
    drop(running);
}

#[tokio::test]
async fn after_a_crash_what_has_expired_is_carried_out_again() {
    let dir = tempfile::tempdir().unwrap();
    let replays = open(dir.path(), Options::default());
    let running = [begin(&replays, 1).await, begin(&replays, 2).await];
    let copy = crashed(dir.path());
    let successor = open(copy.path(), Options { ttl: Duration::ZERO, ..Options::default() });
    assert_eq!(word(successor.begin(key(1)).await), "fresh");
    successor.sweep().await.unwrap();
    drop(successor);
    let rows = |dir: &Path| -> i64 {
        let file = rusqlite::Connection::open(Sqlite::path_in(&dir.join("data"))).unwrap();
        file.query_row("SELECT count(*) FROM replays", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(rows(copy.path()), 0);
    drop(running);
}

#[tokio::test]
async fn two_processes_on_one_file_carry_a_request_out_once() {
    let dir = tempfile::tempdir().unwrap();
    let one = open(dir.path(), Options::default());
    let two = open(dir.path(), Options::default());
    let execution = begin(&one, 1).await;
    assert_eq!(word(two.begin(key(1)).await), "running");
    execution.finish(Ended::Answered(answer("a"))).await.unwrap();
    assert_eq!(word(two.begin(key(1)).await), "done a");
    // One of them ends without having ended what it began.
    let orphan = begin(&one, 2).await;
    assert_eq!(word(two.begin(key(2)).await), "running");
    drop(one);
    assert_eq!(word(two.begin(key(2)).await), "running", "its execution still holds the lock");
    drop(orphan);
    assert_eq!(word(two.begin(key(2)).await), "Interrupted");
}

#[tokio::test]
async fn what_was_given_up_before_the_end_is_forgotten_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let replays = open(dir.path(), Options::default());
    drop(begin(&replays, 1).await);
    drop(replays);
    let replays = open(dir.path(), Options::default());
    assert_eq!(word(replays.begin(key(1)).await), "fresh");
    drop(replays);
    let left: Vec<_> = fs::read_dir(dir.path().join("data"))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".alive") || name.ends_with(".new"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn expired_answers_are_gone_from_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let replays = open(dir.path(), Options { ttl: Duration::ZERO, ..Options::default() });
    keep(&replays, 1, "an answer nobody else may read").await;
    replays.sweep().await.unwrap();
    drop(replays);
    for file in fs::read_dir(dir.path().join("data")).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(9).any(|window| window == b"an answer"));
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_written_refuses_the_execution() {
    let dir = tempfile::tempdir().unwrap();
    let replays = open(dir.path(), Options::default());
    let running = begin(&replays, 1).await;
    let path = Sqlite::path_in(&dir.path().join("data"));
    let breaker = rusqlite::Connection::open(path).unwrap();
    breaker.execute_batch("ALTER TABLE replays RENAME TO away").unwrap();
    assert_eq!(word(replays.begin(key(2)).await), "Internal");
    let error = running.finish(Ended::Answered(answer("a"))).await.unwrap_err();
    assert!(error.message().contains("idempotency.sqlite"), "{error}");
    breaker.execute_batch("ALTER TABLE away RENAME TO replays").unwrap();
    assert_eq!(word(replays.begin(key(2)).await), "fresh", "and goes on when it can be");
    assert_eq!(word(replays.begin(key(1)).await), "Interrupted", "its end is owed, and told");
}

#[tokio::test]
async fn a_file_that_was_deleted_refuses_the_execution() {
    let dir = tempfile::tempdir().unwrap();
    let replays = open(dir.path(), Options::default());
    let (path, away) = (Sqlite::path_in(&dir.path().join("data")), dir.path().join("away"));
    fs::rename(&path, &away).unwrap();
    assert_eq!(word(replays.begin(key(1)).await), "Internal");
    fs::rename(&away, &path).unwrap();
    assert_eq!(word(replays.begin(key(1)).await), "fresh");
}

#[cfg(unix)]
#[tokio::test]
async fn a_deleted_write_ahead_log_let_a_request_be_carried_out_twice() {
    let dir = tempfile::tempdir().unwrap();
    let replays = open(dir.path(), Options::default());
    keep(&replays, 1, "a").await;
    let path = Sqlite::path_in(&dir.path().join("data"));
    fs::remove_file(path.with_extension("sqlite-wal")).unwrap();
    // What is begun now would be forgotten when the process is killed.
    assert_eq!(word(replays.begin(key(2)).await), "Internal");
}

#[test]
fn what_is_no_file_of_ours_is_refused() {
    type Spoil = fn(&Path);
    let spoilt: [(&str, Spoil); 3] = [
        ("not a SQLite database", |path| fs::write(path, "no database, ".repeat(100)).unwrap()),
        ("of another program", |path| {
            let other = rusqlite::Connection::open(path).unwrap();
            other.execute_batch("CREATE TABLE bookmarks (url TEXT)").unwrap();
        }),
        ("newer Tidegate (schema 99", |path| {
            let newer = rusqlite::Connection::open(path).unwrap();
            newer.pragma_update(None, "application_id", 0x5447_494b).unwrap();
            newer.pragma_update(None, "user_version", 99).unwrap();
        }),
    ];
    for (words, spoil) in spoilt {
        let dir = tempfile::tempdir().unwrap();
        let path = Sqlite::path_in(dir.path());
        spoil(&path);
        let Err(error) = Sqlite::open(dir.path(), Options::default()) else { panic!("opened") };
        assert_eq!(error.kind(), Kind::Internal);
        assert!(error.message().contains(&*path.to_string_lossy()), "{error}");
        assert!(error.message().contains(words), "{error}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn the_files_are_for_our_eyes_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let replays = open(dir.path(), Options::default());
    keep(&replays, 1, "a").await;
    for file in fs::read_dir(dir.path().join("data")).unwrap() {
        let path = file.unwrap().path();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
    }
}
