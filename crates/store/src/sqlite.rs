//! The embedded default: one SQLite file in the data directory.
//!
//! *Why SQLite:* an administrator can look into it, a second process (`tidegate keys`) may write
//! it while the gateway runs, and a power cut loses nothing that was acknowledged: write-ahead
//! log with `synchronous=FULL` (`NORMAL` lost every acknowledged commit in a power-cut test).
//!
//! Statements run on the runtime's blocking threads, one at a time. After each change, ours or
//! another process's, the in-memory directory is rebuilt from the file.

mod schema;

use crate::directory::{self, Directory};
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tidegate_core::{Budgets, 
    BoxFuture, Error, KeyRecord, Kind, Limits, Origin, Result, Scope, Store, Tenant,
};

/// How long a statement waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Keys in `state.sqlite`, at most [`crate::MAX_KEYS`].
pub struct Sqlite(Arc<Shared>);

struct Shared {
    path: PathBuf,
    writer: Mutex<Writer>,
    directory: Directory,
}

struct Writer {
    connection: Connection,
    /// `PRAGMA data_version` when the directory was last rebuilt: it changes when, and only
    /// when, another connection commits.
    seen_version: i64,
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
        let writer = Mutex::new(Writer { connection, seen_version: 0 });
        let shared = Shared { path, writer, directory: Directory::default() };
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

impl Shared {
    fn load(&self) -> Result<()> {
        self.with(|writer| self.rebuild(writer))
    }

    fn refresh(&self) -> Result<()> {
        self.with(|writer| {
            if data_version(&writer.connection)? == writer.seen_version {
                return Ok(());
            }
            self.rebuild(writer)
        })
    }

    fn keys(&self) -> Result<Vec<KeyRecord>> {
        self.with(|writer| Ok(read_keys(&writer.connection)?))
    }

    fn add(&self, record: &KeyRecord) -> Result<()> {
        self.with(|writer| {
            let behavior = TransactionBehavior::Immediate;
            let change = writer.connection.transaction_with_behavior(behavior)?;
            let kept = change.query_row("SELECT count(*) FROM keys", [], |row| row.get(0))?;
            directory::room_for_one_more(kept)?;
            let taken = change
                .query_row("SELECT 1 FROM keys WHERE id = ?1", [&*record.id], |_| Ok(()))
                .optional()?;
            if taken.is_some() {
                return Err(directory::id_taken(&record.id).into());
            }
            insert(&change, record)?;
            change.commit()?;
            self.rebuild(writer)
        })
    }

    fn revoke(&self, id: &str) -> Result<bool> {
        self.with(|writer| {
            let found = writer.connection.execute(
                "UPDATE keys SET revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1",
                params![id, directory::unix_now()],
            )?;
            self.rebuild(writer)?;
            Ok(found > 0)
        })
    }

    /// Brings the directory to what the file says.
    fn rebuild(&self, writer: &mut Writer) -> Result<(), Trouble> {
        // The version is read first: a commit between the two is then seen by the next refresh.
        writer.seen_version = data_version(&writer.connection)?;
        self.directory.replace(&read_keys(&writer.connection)?);
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
fn connect_patiently(path: &Path) -> Result<Connection, schema::Unusable> {
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

fn connect(path: &Path) -> Result<Connection, schema::Unusable> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    schema::recognise(&connection)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    schema::migrate(&mut connection)?;
    Ok(connection)
}

fn data_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "data_version", |row| row.get(0))
}

fn insert(connection: &Connection, record: &KeyRecord) -> Result<(), Trouble> {
    let models = match &record.scope {
        Scope::All => None,
        Scope::Models(models) => Some(
            serde_json::to_string(&models.iter().map(|name| &**name).collect::<Vec<_>>())
                .expect("a list of strings is JSON"),
        ),
    };
    let limits = record.limits.unwrap_or_default();
    connection
        .prepare_cached(
            "INSERT INTO keys (id, hash, name, team, models, has_limits, requests_per_minute,
            tokens_per_minute, concurrency, created_at, expires_at, revoked_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute(params![
            &*record.id,
            record.hash,
            &*record.name,
            record.team.as_deref(),
            models,
            record.limits.is_some(),
            limits.requests_per_minute,
            limits.tokens_per_minute,
            limits.concurrency,
            record.created_at,
            record.expires_at,
            record.revoked_at,
        ])?;
    Ok(())
}

fn read_keys(connection: &Connection) -> rusqlite::Result<Vec<KeyRecord>> {
    let mut select = connection.prepare_cached(
        "SELECT id, hash, name, team, models, has_limits, requests_per_minute,
            tokens_per_minute, concurrency, created_at, expires_at, revoked_at
         FROM keys ORDER BY created_at, rowid",
    )?;
    select.query_map([], read_key)?.collect()
}

fn read_key(row: &rusqlite::Row<'_>) -> rusqlite::Result<KeyRecord> {
    let limits = Limits {
        requests_per_minute: row.get("requests_per_minute")?,
        tokens_per_minute: row.get("tokens_per_minute")?,
        concurrency: row.get("concurrency")?,
        ..Limits::default()
    };
    Ok(KeyRecord {
        id: row.get("id")?,
        hash: row.get("hash")?,
        name: row.get("name")?,
        team: row.get("team")?,
        scope: match row.get::<_, Option<String>>("models")? {
            None => Scope::All,
            Some(models) => Scope::Models(read_models(&models)?),
        },
        limits: row.get::<_, bool>("has_limits")?.then_some(limits),
        budgets: Budgets::default(),
        created_at: row.get("created_at")?,
        expires_at: row.get("expires_at")?,
        revoked_at: row.get("revoked_at")?,
    })
}

fn read_models(text: &str) -> rusqlite::Result<Vec<Arc<str>>> {
    let models: Vec<String> = serde_json::from_str(text).map_err(|cause| {
        let column = 4;
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, cause.into())
    })?;
    Ok(models.into_iter().map(Into::into).collect())
}

/// Makes the directory and the file for our eyes only; what is there already stays as it is.
///
/// SQLite gives its `-wal` and `-shm` files the mode of the database.
fn make_private(data_dir: &Path, path: &Path) -> Result<()> {
    let mut dir = fs::DirBuilder::new();
    dir.recursive(true);
    let mut file = fs::OpenOptions::new();
    // Never opened when it is there: closing it again would end the locks that another
    // connection of this process holds on it.
    file.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        dir.mode(0o700);
        file.mode(0o600);
    }
    dir.create(data_dir).map_err(|cause| not_writable(data_dir, cause))?;
    match file.open(path) {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
            Err(not_writable(path, cause))
        }
        _ => Ok(()),
    }
}

fn not_writable(path: &Path, cause: io::Error) -> Error {
    internal(
        format!(
            "cannot write {} ({cause}): choose a data_dir that this user may write",
            path.display()
        ),
        cause,
    )
}

fn unusable(path: &Path, cause: schema::Unusable) -> Error {
    use schema::Unusable;
    let path = path.display();
    match cause {
        Unusable::Foreign => Error::new(
            Kind::Internal,
            Origin::Gateway,
            format!("{path} is a database of another program: choose another data_dir"),
        ),
        Unusable::Newer { found, known } => Error::new(
            Kind::Internal,
            Origin::Gateway,
            format!(
                "{path} was written by a newer Tidegate (schema {found}, this one knows {known}): \
                 use that version, or another data_dir"
            ),
        ),
        Unusable::Sqlite(cause) => {
            let what = match cause.sqlite_error_code() {
                Some(ErrorCode::NotADatabase) => {
                    "is not a SQLite database: choose another data_dir, or move the file away"
                }
                Some(ErrorCode::DatabaseCorrupt) => {
                    "is damaged: restore it from a backup, or move it away and make new keys"
                }
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                    "is locked by another process for more than 5 s: find it and try again"
                }
                Some(ErrorCode::DiskFull) => "cannot grow: the disk is full",
                Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
                    "cannot be written: check what it is and who may write it, or choose another \
                     data_dir"
                }
                _ => return internal(format!("{path} cannot be used: {cause}"), cause),
            };
            internal(format!("{path} {what}"), cause)
        }
    }
}

fn internal(message: String, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(Kind::Internal, Origin::Gateway, message).caused_by(cause)
}
