//! The embedded default: one SQLite file in the data directory.
//!
//! *Why SQLite:* an administrator can look into it, a second process (`tidegate keys`) may write
//! it while the gateway runs, and a power cut loses nothing that was acknowledged: write-ahead
//! log with `synchronous=FULL` (`NORMAL` lost every acknowledged commit in a power-cut test).
//!
//! Statements run on the runtime's blocking threads, one at a time. After each change, ours or
//! another process's, the in-memory directory takes over the keys that changed: with 100,000 of
//! them, reading all took seconds, and a revoked key was good for as long.

mod file;
mod rows;
mod schema;

use crate::{
    directory::{self, Directory},
    key,
    schema::Unusable,
};
pub(crate) use file::{Identity, make_private, still_there};
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use schema::{NEVER, SCHEMA};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tidegate_core::{
    BoxFuture, Error, KeyChange, KeyRecord, Keys, Kind, Minted, Origin, Result, Store, Tenant,
};

/// Pages of the log that are there from the start; a change of a key takes five.
const ROOM_PAGES: u64 = 16;
const PAGE_BYTES: u64 = 4096;

/// Keys in `state.sqlite`, at most [`crate::MAX_KEYS`].
pub struct Sqlite(Arc<Shared>);

struct Shared {
    path: PathBuf,
    opened: Option<Identity>,
    writer: Mutex<Writer>,
    directory: Directory,
}

struct Writer {
    connection: Connection,
    /// `PRAGMA data_version` when it was last looked at: it changes when, and only when, another
    /// connection commits.
    seen_commit: i64,
    /// Version of the keys up to which the directory has them.
    seen_keys: i64,
}

impl Sqlite {
    /// The database file of a data directory.
    pub fn path_in(data_dir: &Path) -> PathBuf {
        data_dir.join("state.sqlite")
    }

    /// Opens the state in `data_dir`, making directory (mode 0700) and file (mode 0600) if they
    /// are not there, and bringing an older file up to date. A key whose row cannot be read opens
    /// nothing, and the next [`Store::refresh`] names it.
    ///
    /// Does I/O on the calling thread: call it at start, not from a task.
    ///
    /// # Errors
    ///
    /// [`Kind::Internal`], naming the path and what to do, when the directory cannot be written,
    /// or the file is damaged, not ours, or written by a newer Tidegate.
    pub fn open(data_dir: &Path) -> Result<Self> {
        let path = Self::path_in(data_dir);
        make_private(data_dir, &path)?;
        let connection = SCHEMA.open(&path).map_err(|why| unusable(&path, why))?;
        let room = keep_room(&connection, &path)
            .and_then(|()| connection.pragma_update(None, "wal_autocheckpoint", 1));
        room.map_err(|cause| unusable(&path, cause.into()))?;
        let writer = Mutex::new(Writer { connection, seen_commit: NEVER, seen_keys: NEVER });
        let mut shared = Shared { path, opened: None, writer, directory: Directory::default() };
        shared.with(|writer| but_for_unreadable(shared.catch_up(writer)))?;
        // Now that it was read, its write-ahead log is there too.
        shared.opened = Identity::of(&shared.path).ok().flatten();
        Ok(Self(Arc::new(shared)))
    }

    /// Whether it holds no key, not even a revoked one: nobody ever used this state.
    ///
    /// # Errors
    ///
    /// When the state cannot be read.
    pub async fn is_empty(&self) -> Result<bool> {
        let some = |writer: &mut Writer| Ok(rows::is_there_any(&writer.connection)?);
        Ok(!self.blocking(move |shared| shared.with(some)).await?)
    }

    /// Runs `work` where it may block.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let shared = self.0.clone();
        Box::pin(async move {
            let done = tokio::task::spawn_blocking(move || work(&shared)).await;
            done.unwrap_or_else(|cause| {
                Err(Error::new(Kind::Internal, Origin::Gateway, "the state task failed")
                    .caused_by(cause))
            })
        })
    }
}

impl Store for Sqlite {
    fn identify(&self, key: &str) -> Option<Arc<Tenant>> {
        self.0.directory.identify(key)
    }

    fn tenant(&self, id: &str) -> Option<Arc<Tenant>> {
        self.0.directory.tenant(id)
    }

    fn expires_at(&self, id: &str) -> Option<u64> {
        self.0.directory.expires_at(id)
    }

    fn keys(&self) -> BoxFuture<'_, Result<Vec<KeyRecord>>> {
        self.blocking(Shared::keys)
    }

    fn add_key(&self, record: KeyRecord) -> BoxFuture<'_, Result<()>> {
        self.blocking(move |shared| shared.add(&record))
    }

    fn revoke_key<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<bool>> {
        let id: Arc<str> = id.into();
        self.blocking(move |shared| shared.revoke(&id))
    }

    fn refresh(&self) -> BoxFuture<'_, Result<()>> {
        self.blocking(Shared::refresh)
    }
}

impl Keys for Sqlite {
    fn key<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<KeyRecord>>> {
        let id: Arc<str> = id.into();
        self.blocking(move |shared| shared.with(|writer| Ok(rows::one(&writer.connection, &id)?)))
    }

    fn create_key(&self, change: KeyChange) -> BoxFuture<'_, Result<Minted>> {
        self.blocking(move |shared| {
            let (secret, record) = key::create(change, directory::unix_now())?;
            shared.add(&record)?;
            Ok((secret, record))
        })
    }

    fn update_key<'a>(
        &'a self,
        id: &'a str,
        change: KeyChange,
    ) -> BoxFuture<'a, Result<Option<KeyRecord>>> {
        let id: Arc<str> = id.into();
        self.blocking(move |shared| {
            let now = directory::unix_now();
            let changed = shared.change(&id, |record| key::update(record, change.clone(), now))?;
            Ok(changed.map(|((), record)| record))
        })
    }

    fn rotate_key<'a>(
        &'a self,
        id: &'a str,
        grace: Duration,
    ) -> BoxFuture<'a, Result<Option<Minted>>> {
        let id: Arc<str> = id.into();
        self.blocking(move |shared| {
            let now = directory::unix_now();
            shared.change(&id, |record| key::rotate(record, grace, now))
        })
    }
}

impl Shared {
    fn refresh(&self) -> Result<()> {
        still_there(&self.path, self.opened)?;
        self.with(|writer| {
            // The version is read first: a commit in between is then seen by the next refresh.
            let commit = data_version(&writer.connection)?;
            if commit == writer.seen_commit {
                return Ok(());
            }
            self.catch_up(writer)?;
            writer.seen_commit = commit;
            Ok(())
        })
    }

    fn keys(&self) -> Result<Vec<KeyRecord>> {
        self.with(|writer| {
            let read = rows::changed_since(&writer.connection, NEVER)?;
            read.why.map_or(Ok(read.records), |why| Err(Trouble::Unreadable(why)))
        })
    }

    fn add(&self, record: &KeyRecord) -> Result<()> {
        self.write(|change| {
            let kept = change.query_row("SELECT count(*) FROM keys", [], |row| row.get(0))?;
            directory::room_for_one_more(kept)?;
            if rows::one(change, &record.id)?.is_some() {
                return Err(directory::id_taken(&record.id).into());
            }
            Ok(rows::insert(change, record)?)
        })
    }

    /// Changes the key of this id, all or nothing.
    fn change<T>(
        &self,
        id: &str,
        change: impl Fn(&mut KeyRecord) -> Result<T>,
    ) -> Result<Option<(T, KeyRecord)>> {
        self.write(|transaction| {
            let Some(mut record) = rows::one(transaction, id)? else { return Ok(None) };
            let done = change(&mut record)?;
            rows::update(transaction, &record)?;
            Ok(Some((done, record)))
        })
    }

    fn revoke(&self, id: &str) -> Result<bool> {
        let changed = self.change(id, |record| {
            record.revoked_at.get_or_insert_with(directory::unix_now);
            Ok(())
        });
        changed.map(|changed| changed.is_some())
    }

    /// Does `work` in one transaction, then brings the directory to what the file says.
    ///
    /// On a full disk it is tried once more with the log emptied into the file: what takes a right
    /// from a key fits into the room that is kept, and must not wait for a larger disk.
    fn write<T>(&self, work: impl Fn(&Transaction<'_>) -> Result<T, Trouble>) -> Result<T> {
        still_there(&self.path, self.opened)?;
        self.with(|writer| {
            let mut done = writer.transact(&work);
            if matches!(&done, Err(Trouble::Sqlite(cause)) if is_full(cause)) {
                // When this fails, so does the second try, which says why.
                let _ =
                    writer.connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
                done = writer.transact(&work);
            }
            let done = done?;
            // Our own commits move no `data_version`: should this fail, the next refresh mends it.
            writer.seen_commit = NEVER;
            but_for_unreadable(self.catch_up(writer))?;
            Ok(done)
        })
    }

    /// Brings the directory to what the file says.
    fn catch_up(&self, writer: &mut Writer) -> Result<(), Trouble> {
        // The version and the keys as they were at one moment.
        let moment = writer.connection.unchecked_transaction()?;
        let found = schema::versions(&moment)?;
        let seen = writer.seen_keys;
        if found.version == seen {
            return Ok(());
        }
        // What is no longer there cannot be read; nor can what changed in an older file that was
        // put in place of this one.
        let anew = seen == NEVER || found.gone > seen || found.version < seen;
        let read = rows::changed_since(&moment, if anew { NEVER } else { seen })?;
        moment.finish()?;
        if anew {
            self.directory.replace(&read.records, &read.unreadable);
        } else {
            self.directory.take_over(&read.records);
        }
        match read.why {
            Some(why) => Err(Trouble::Unreadable(why)),
            None => {
                writer.seen_keys = found.version;
                Ok(())
            }
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Writer) -> Result<T, Trouble>) -> Result<T> {
        work(&mut self.writer.lock()).map_err(|trouble| match trouble {
            Trouble::Ours(error) => error,
            Trouble::Unreadable(why) => file::unreadable(&self.path, &why),
            Trouble::Sqlite(cause) => unusable(&self.path, cause.into()),
        })
    }
}

fn unusable(path: &Path, why: Unusable) -> Error {
    why.into_error(path, "and make new keys")
}

impl Writer {
    fn transact<T>(
        &mut self,
        work: impl Fn(&Transaction<'_>) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let change = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = work(&change)?;
        change.commit()?;
        Ok(done)
    }
}

/// Makes room in a new write-ahead log for changes of a few keys, by writing it full once.
///
/// *Why:* on a full disk neither log nor file can grow, and a key that leaked must be revoked all
/// the same. A checkpoint after each change empties the log into the file, so that the room is
/// there for the next one.
fn keep_room(connection: &Connection, path: &Path) -> rusqlite::Result<()> {
    let log = fs::metadata(path.with_extension("sqlite-wal"));
    if log.is_ok_and(|log| log.len() > ROOM_PAGES * PAGE_BYTES) {
        return Ok(());
    }
    // No key is changed, so nothing has to be flushed.
    connection.pragma_update(None, "synchronous", "off")?;
    // SQLite writes no page that stays as it was.
    let sql = "UPDATE keys_version SET version = version + 1";
    let touch = |_| connection.execute(sql, []).map(drop);
    // Without a byte of room, or while another writes, it goes without.
    let _ = (0..ROOM_PAGES).try_for_each(touch);
    connection.pragma_update(None, "synchronous", "full")
}

fn is_full(cause: &rusqlite::Error) -> bool {
    cause.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

/// Why a piece of work on the database failed.
enum Trouble {
    /// Our own refusal, already in words.
    Ours(Error),
    /// The row of a key is damaged; all others were read.
    Unreadable(String),
    Sqlite(rusqlite::Error),
}

/// A damaged row of one key stands in nobody else's way.
fn but_for_unreadable(done: Result<(), Trouble>) -> Result<(), Trouble> {
    match done {
        Err(Trouble::Unreadable(_)) => Ok(()),
        done => done,
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

impl From<rusqlite::Error> for Trouble {
    fn from(cause: rusqlite::Error) -> Self {
        Self::Sqlite(cause)
    }
}

fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "data_version", |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_full_disk_refused_a_revocation_that_had_room_in_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let store = Sqlite::open(dir.path()).unwrap();
        let log = dir.path().join("state.sqlite-wal");
        let length = || fs::metadata(&log).unwrap().len();
        let (_, record) = key::mint("a", 0).unwrap();
        store.0.add(&record).unwrap();
        let (before, tries) = (length(), Cell::new(0));
        let full = || rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(13), None);
        let revoked = store.0.write(|change| {
            tries.set(tries.get() + 1);
            if tries.get() == 1 {
                return Err(full().into());
            }
            let sql = "UPDATE keys SET revoked_at = 1";
            Ok(change.execute(sql, [])?)
        });
        assert_eq!((revoked.unwrap(), tries.get()), (1, 2));
        assert!(before > ROOM_PAGES * PAGE_BYTES, "there is room");
        assert_eq!(length(), before, "and the log did not grow");
        assert!(store.tenant(&record.id).is_none());

        let refused = store.0.write(|_| Err::<(), _>(full().into())).unwrap_err();
        assert!(refused.message().contains("the disk is full"), "{refused}");
    }
}
