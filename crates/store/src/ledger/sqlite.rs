//! The ledger in a file of its own beside the keys: `ledger.sqlite`.
//!
//! *Why its own:* it grows with every call, and a backup, a copy or a deletion of one should not
//! touch the other. Write-ahead log with `synchronous=FULL`, as for the keys: what was committed
//! survives a power cut.

use super::{
    database::{Database, Trouble},
    query::{self, Dialect},
    record::Row,
};
use crate::schema::{self, Schema};
use crate::sqlite::{Identity, make_private, still_there};
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, params, params_from_iter};
use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};
use tidegate_core::{Error, Kind, Origin, Result, UsageQuery, UsageRow};

/// "TGLG" in the header.
const SCHEMA: Schema = Schema { application_id: 0x5447_4c47, steps: &STEPS };

const STEPS: [&str; 2] = [
    "
    CREATE TABLE tidegate_ledger (
        writer INTEGER NOT NULL,         -- drawn at random by each process
        sequence INTEGER NOT NULL,       -- counted up by each writer
        at INTEGER NOT NULL,             -- sent, microseconds since 1970
        took INTEGER NOT NULL,           -- microseconds
        call TEXT NOT NULL,              -- x-request-id, which a caller may use twice
        attempt INTEGER NOT NULL,        -- from 1
        cause TEXT NOT NULL,             -- first, batch, retry, hedge, fallback, mirror
        caller TEXT NOT NULL,
        team TEXT,
        operation TEXT NOT NULL,
        model TEXT NOT NULL,             -- as the caller named it
        upstream TEXT NOT NULL,
        upstream_model TEXT NOT NULL,
        failure TEXT,                    -- NULL: answered
        input INTEGER NOT NULL,          -- tokens, as the next three
        cached_input INTEGER NOT NULL,
        output INTEGER NOT NULL,
        reasoning INTEGER NOT NULL,
        told INTEGER NOT NULL,           -- 1: the upstream said so; 0: counted or estimated
        cost INTEGER,                    -- picodollars (10^-12 USD); NULL: no price is known
        PRIMARY KEY (writer, sequence)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX tidegate_ledger_at ON tidegate_ledger (at);
",
    // Part of the input, as cached_input is.
    "ALTER TABLE tidegate_ledger ADD COLUMN cache_write INTEGER NOT NULL DEFAULT 0",
];

const DIALECT: Dialect = Dialect {
    parameter: '?',
    day: "strftime('%Y-%m-%d', at / 1000000, 'unixepoch')",
    instant: |micros| micros.to_string(),
};

/// How long a statement waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The file, opened when it is needed.
pub(super) struct Sqlite {
    data_dir: PathBuf,
    opened: Option<(Connection, Option<Identity>)>,
}

/// The database file of a data directory.
pub(super) fn path_in(data_dir: &Path) -> PathBuf {
    data_dir.join("ledger.sqlite")
}

impl Sqlite {
    /// Opens the file in `data_dir`, which is there, or makes it.
    ///
    /// # Errors
    ///
    /// Names the path and what to do.
    pub(super) fn open(data_dir: &Path) -> Result<Self> {
        let mut sqlite = Self { data_dir: data_dir.to_owned(), opened: None };
        let give_up = Instant::now() + BUSY_TIMEOUT;
        loop {
            match sqlite.reopen() {
                // SQLite answers "busy" at once where two switch a new file to the write-ahead
                // log, whatever the timeout.
                Err(Unusable::Schema(why)) if why.is_busy() && Instant::now() < give_up => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(why) => return Err(why.of(&path_in(data_dir))),
                Ok(_) => return Ok(sqlite),
            }
        }
    }

    /// The file, opened where it is not.
    fn reopen(&mut self) -> Result<&mut Connection, Unusable> {
        let path = path_in(&self.data_dir);
        // SQLite would go on with a file that has no name any more.
        self.opened.take_if(|(_, identity)| still_there(&path, *identity).is_err());
        if self.opened.is_none() {
            make_private(&self.data_dir, &path).map_err(Unusable::Private)?;
            let connection = connect(&path)?;
            let identity = Identity::of(&path).ok().flatten();
            self.opened = Some((connection, identity));
        }
        Ok(&mut self.opened.as_mut().expect("opened above").0)
    }

    fn with<T>(
        &mut self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Trouble> {
        let done = self.reopen().and_then(|connection| work(connection).map_err(Into::into));
        done.map_err(|why| {
            // Whatever state it is in, a new one is in none.
            self.opened = None;
            Trouble { why: why.of(&path_in(&self.data_dir)).message().to_owned() }
        })
    }
}

impl Database for Sqlite {
    fn insert(&mut self, writer: i64, rows: &[Row<'_>]) -> Result<(), Trouble> {
        self.with(|connection| {
            let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut insert = change.prepare_cached(
                "INSERT INTO tidegate_ledger (writer, sequence, at, took, call, attempt, cause,
                    caller, team, operation, model, upstream, upstream_model, failure, input,
                    cached_input, cache_write, output, reasoning, told, cost)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16,
                    ?17, ?18, ?19, ?20, ?21)
                 ON CONFLICT DO NOTHING",
            )?;
            for row in rows {
                insert.execute(params![
                    writer,
                    row.sequence,
                    row.at,
                    row.took,
                    row.call,
                    row.attempt,
                    row.cause,
                    row.caller,
                    row.team,
                    row.operation,
                    row.model,
                    row.upstream,
                    row.upstream_model,
                    row.failure,
                    row.input,
                    row.cached_input,
                    row.cache_write,
                    row.output,
                    row.reasoning,
                    row.told,
                    row.cost,
                ])?;
            }
            drop(insert);
            change.commit()
        })
    }

    fn forget(&mut self, before: i64, most: u32) -> Result<u64, Trouble> {
        self.with(|connection| {
            let deleted = connection.execute(
                "DELETE FROM tidegate_ledger WHERE (writer, sequence) IN
                    (SELECT writer, sequence FROM tidegate_ledger WHERE at < ?1 LIMIT ?2)",
                params![before, most],
            )?;
            Ok(deleted as u64)
        })
    }
}

/// Sums over the file at `path`, on a connection of their own: they wait for no writer.
///
/// # Errors
///
/// When the file is not there, or cannot be read.
pub(super) fn usage(path: &Path, query: &UsageQuery) -> Result<Vec<UsageRow>> {
    if !path.exists() {
        let message = format!("there is no ledger at {} yet", path.display());
        return Err(Error::new(Kind::NotFound, Origin::Caller, message));
    }
    let read = || -> Result<_, Unusable> {
        let connection = connect(path)?;
        let (sql, parameters) = query::statement(query, &DIALECT);
        let mut select = connection.prepare(&sql)?;
        let groups = query.group_by.len();
        let rows = select.query_map(params_from_iter(parameters), |row| {
            let of = (0..groups).map(|index| row.get(index)).collect::<rusqlite::Result<_>>()?;
            let mut numbers = [0; query::NUMBERS];
            for (index, number) in numbers.iter_mut().enumerate() {
                *number = row.get(groups + index)?;
            }
            Ok(query::row(of, numbers))
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    };
    read().map_err(|why| why.of(path))
}

fn connect(path: &Path) -> Result<Connection, Unusable> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    SCHEMA.recognise(&connection)?;
    // Only when it is not so yet: switching needs the file for oneself.
    let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    if mode != "wal" {
        connection.pragma_update(None, "journal_mode", "wal")?;
    }
    connection.pragma_update(None, "synchronous", "full")?;
    SCHEMA.migrate(&mut connection)?;
    Ok(connection)
}

/// Why the file cannot be used.
enum Unusable {
    Schema(schema::Unusable),
    /// It is not there and cannot be made.
    Private(Error),
}

impl From<schema::Unusable> for Unusable {
    fn from(why: schema::Unusable) -> Self {
        Self::Schema(why)
    }
}

impl From<rusqlite::Error> for Unusable {
    fn from(cause: rusqlite::Error) -> Self {
        Self::Schema(cause.into())
    }
}

fn is_busy(cause: &rusqlite::Error) -> bool {
    let code = cause.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

impl Unusable {
    fn of(self, path: &Path) -> Error {
        let path = path.display();
        let internal = |message| Error::new(Kind::Internal, Origin::Gateway, message);
        let cause = match self {
            Self::Schema(schema::Unusable::Foreign) => {
                return internal(format!(
                    "{path} is a database of another program: move it away, or choose another \
                     data_dir"
                ));
            }
            Self::Schema(schema::Unusable::Newer { found, known }) => {
                return internal(format!(
                    "{path} was written by a newer Tidegate (schema {found}, this one knows \
                     {known}): use that version, or another data_dir"
                ));
            }
            Self::Private(error) => return error,
            Self::Schema(schema::Unusable::Sqlite(cause)) => cause,
        };
        let what = match cause.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => "is not a SQLite database: move it away",
            Some(ErrorCode::DatabaseCorrupt) => {
                "is damaged: restore it from a backup, or move it away to begin a new one"
            }
            _ if is_busy(&cause) => "is locked by another process for more than 5 s",
            Some(ErrorCode::DiskFull) => "cannot grow: the disk is full",
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
                "cannot be written: check what it is and who may write it"
            }
            _ => return internal(format!("{path} cannot be used: {cause}")).caused_by(cause),
        };
        internal(format!("{path} {what}")).caused_by(cause)
    }
}
