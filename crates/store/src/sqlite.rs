//! The embedded default: one SQLite file in the data directory.
//!
//! *Why SQLite:* an administrator can look into it, a second process (`tidegate keys`) may write
//! it while the gateway runs, and a power cut loses nothing that was acknowledged: write-ahead
//! log with `synchronous=FULL` (`NORMAL` lost every acknowledged commit in a power-cut test).
//!
//! Statements run on the runtime's blocking threads, one at a time. After each change, ours or
//! another process's, the in-memory directory is rebuilt from the file.

mod file;
mod rows;
mod schema;

use crate::{
    directory::{self, Directory},
    key,
};
use file::unusable;
pub(crate) use file::{Identity, make_private, still_there};
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tidegate_core::{
    BoxFuture, Error, KeyChange, KeyRecord, Keys, Kind, Minted, Origin, Result, Store, Tenant,
};

/// How long a statement waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// No version is this one.
const NEVER: i64 = -1;

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
    /// Version of the keys when the directory was last rebuilt. The file holds more than keys,
    /// and rebuilding the directory of 100,000 for every row of something else would not do.
    seen_keys: i64,
}

impl Sqlite {
    /// The database file of a data directory.
    pub fn path_in(data_dir: &Path) -> PathBuf {
        data_dir.join("state.sqlite")
    }

    /// Opens the state in `data_dir`, making directory (mode 0700) and file (mode 0600) if they
    /// are not there, and bringing an older file up to date.
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
        let connection = connect_patiently(&path).map_err(|cause| unusable(&path, cause))?;
        let opened = Identity::of(&path).ok().flatten();
        let writer = Mutex::new(Writer { connection, seen_commit: NEVER, seen_keys: NEVER });
        let shared = Shared { path, opened, writer, directory: Directory::default() };
        shared.load()?;
        Ok(Self(Arc::new(shared)))
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
            let changed = shared.change(&id, |record| key::update(record, change, now))?;
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
    fn load(&self) -> Result<()> {
        self.with(|writer| self.rebuild(writer))
    }

    fn refresh(&self) -> Result<()> {
        still_there(&self.path, self.opened)?;
        self.with(|writer| {
            // The version is read first: a commit in between is then seen by the next refresh.
            let commit = data_version(&writer.connection)?;
            if commit == writer.seen_commit {
                return Ok(());
            }
            if schema::keys_version(&writer.connection)? != writer.seen_keys {
                self.rebuild(writer)?;
            }
            writer.seen_commit = commit;
            Ok(())
        })
    }

    fn keys(&self) -> Result<Vec<KeyRecord>> {
        self.with(|writer| Ok(rows::all(&writer.connection)?))
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
        change: impl FnOnce(&mut KeyRecord) -> Result<T>,
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
    fn write<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T, Trouble>) -> Result<T> {
        still_there(&self.path, self.opened)?;
        self.with(|writer| {
            let behavior = TransactionBehavior::Immediate;
            let change = writer.connection.transaction_with_behavior(behavior)?;
            let done = work(&change)?;
            change.commit()?;
            // Our own commits move no `data_version`: should this fail, the next refresh mends it.
            writer.seen_commit = NEVER;
            self.rebuild(writer)?;
            Ok(done)
        })
    }

    /// Brings the directory to what the file says.
    fn rebuild(&self, writer: &mut Writer) -> Result<(), Trouble> {
        // The version and the keys as they were at one moment.
        let moment = writer.connection.unchecked_transaction()?;
        let (version, keys) = (schema::keys_version(&moment)?, rows::all(&moment)?);
        moment.finish()?;
        self.directory.replace(&keys);
        writer.seen_keys = version;
        Ok(())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Writer) -> Result<T, Trouble>) -> Result<T> {
        work(&mut self.writer.lock()).map_err(|trouble| match trouble {
            Trouble::Ours(error) => error,
            Trouble::Sqlite(cause) => unusable(&self.path, cause.into()),
        })
    }
}

/// Why a piece of work on the database failed.
enum Trouble {
    /// Our own refusal, already in words.
    Ours(Error),
    Sqlite(rusqlite::Error),
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

/// Tries again while others are opening the same new file.
///
/// SQLite answers "busy" at once, whatever the timeout, where waiting could deadlock: two
/// connections that both switch to the write-ahead log do.
fn connect_patiently(path: &Path) -> Result<Connection, crate::schema::Unusable> {
    let give_up = Instant::now() + BUSY_TIMEOUT;
    loop {
        match connect(path) {
            Err(cause) if cause.is_busy() && Instant::now() < give_up => {
                thread::sleep(Duration::from_millis(10));
            }
            done => return done,
        }
    }
}

fn connect(path: &Path) -> Result<Connection, crate::schema::Unusable> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    schema::SCHEMA.recognise(&connection)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    schema::SCHEMA.migrate(&mut connection)?;
    Ok(connection)
}

fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "data_version", |row| row.get(0))
}
