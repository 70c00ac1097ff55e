//! What only a file can get wrong: other processes, damage, foreign files, modes, the future.

use std::{fs, path::Path};
use tidegate_core::{Kind, Store};
use tidegate_store::{Sqlite, key};

#[tokio::test]
async fn keys_outlive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let (secret, record) = key::mint("a", 0).unwrap();
    let store = Sqlite::open(dir.path()).unwrap();
    store.add_key(record).await.unwrap();
    drop(store);
    assert!(Sqlite::open(dir.path()).unwrap().identify(secret.expose()).is_some());
}

#[tokio::test]
async fn a_refresh_takes_over_what_another_process_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let (gateway, admin) = (Sqlite::open(dir.path()).unwrap(), Sqlite::open(dir.path()).unwrap());
    let (secret, record) = key::mint("a", 0).unwrap();
    let id = record.id.clone();

    admin.add_key(record).await.unwrap();
    assert!(gateway.identify(secret.expose()).is_none());
    gateway.refresh().await.unwrap();
    assert!(gateway.identify(secret.expose()).is_some());

    admin.revoke_key(&id).await.unwrap();
    gateway.refresh().await.unwrap();
    assert!(gateway.identify(secret.expose()).is_none());
}

#[tokio::test]
async fn a_change_of_ours_takes_over_theirs_too() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (Sqlite::open(dir.path()).unwrap(), Sqlite::open(dir.path()).unwrap());
    let (theirs, record) = key::mint("theirs", 0).unwrap();
    two.add_key(record).await.unwrap();
    let (ours, record) = key::mint("ours", 0).unwrap();
    one.add_key(record).await.unwrap();
    assert!(one.identify(theirs.expose()).is_some() && one.identify(ours.expose()).is_some());
}

#[test]
fn a_second_opener_at_the_same_time_is_no_error() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| Sqlite::open(dir.path()).map(drop).unwrap());
            }
        });
    }
}

#[tokio::test]
async fn the_secret_is_nowhere_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (secret, record) = key::mint("a", 0).unwrap();
    let store = Sqlite::open(dir.path()).unwrap();
    store.add_key(record).await.unwrap();
    let secret = &secret.expose().as_bytes()[16..];
    for file in fs::read_dir(dir.path()).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn directory_and_files_are_for_our_eyes_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("deep/data");
    let store = Sqlite::open(&data).unwrap();
    let (_, record) = key::mint("a", 0).unwrap();
    store.add_key(record).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    let files: Vec<_> = fs::read_dir(&data).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(files.len() > 1, "the write-ahead log is there too");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

/// Opens a directory whose state file was made by `spoil`, and expects a refusal in these words.
fn refuses(spoil: impl Fn(&Path), words: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = Sqlite::path_in(dir.path());
    spoil(&path);
    let before = fs::read(&path).ok();
    let Err(error) = Sqlite::open(dir.path()) else { panic!("opened") };
    assert_eq!(error.kind(), Kind::Internal);
    let message = error.message();
    assert!(message.contains(words), "{message}");
    assert!(message.contains(&*path.to_string_lossy()), "names the path: {message}");
    assert_eq!(fs::read(&path).ok(), before, "and leaves the file as it was");
}

#[test]
fn a_file_that_is_no_database_is_refused() {
    refuses(|path| fs::write(path, "no database, ".repeat(100)).unwrap(), "not a SQLite database");
}

#[test]
fn a_damaged_database_is_refused() {
    let spoil = |path: &Path| {
        drop(Sqlite::open(path.parent().unwrap()).unwrap());
        let mut bytes = fs::read(path).unwrap();
        for byte in &mut bytes[100..] {
            *byte = 0xA5;
        }
        fs::write(path, bytes).unwrap();
    };
    refuses(spoil, "is damaged");
}

#[test]
fn a_database_of_another_program_is_refused() {
    let spoil = |path: &Path| {
        let other = rusqlite::Connection::open(path).unwrap();
        other.execute_batch("CREATE TABLE bookmarks (url TEXT)").unwrap();
    };
    refuses(spoil, "another program");
}

#[test]
fn a_database_of_a_newer_version_is_refused() {
    let spoil = |path: &Path| {
        drop(Sqlite::open(path.parent().unwrap()).unwrap());
        let newer = rusqlite::Connection::open(path).unwrap();
        newer.pragma_update(None, "user_version", 99).unwrap();
    };
    refuses(spoil, "newer Tidegate (schema 99");
}

#[test]
fn a_directory_where_the_file_should_be_is_refused() {
    refuses(|path| fs::create_dir(path).unwrap(), "cannot be written");
}

#[test]
fn a_data_dir_that_is_a_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("data");
    fs::write(&file, "").unwrap();
    let Err(error) = Sqlite::open(&file) else { panic!("opened") };
    assert!(error.message().contains("choose a data_dir"), "{error}");
}
