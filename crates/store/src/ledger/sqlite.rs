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
use rusqlite::{Connection, TransactionBehavior, params, params_from_iter};
use std::path::{Path, PathBuf};
use tidegate_core::{Error, Kind, Origin, Result, UsageQuery, UsageRow};

/// "TGLG" in the header.
const SCHEMA: Schema = Schema { application_id: 0x5447_4c47, steps: &STEPS };

const STEPS: [&str; 3] = [
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
    // One tree in order of time, where there were a table and an index: half the work per entry.
    // Whatever is stored under one name has the same `at` each time, so each is there once still.
    "
    CREATE TABLE tidegate_ledger_by_time (
        at INTEGER NOT NULL,             -- sent, microseconds since 1970
        writer INTEGER NOT NULL,         -- drawn at random by each process
        sequence INTEGER NOT NULL,       -- counted up by each writer
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
        input INTEGER NOT NULL,          -- tokens, as the next four
        cached_input INTEGER NOT NULL,   -- part of the input, as the next
        cache_write INTEGER NOT NULL,
        output INTEGER NOT NULL,
        reasoning INTEGER NOT NULL,      -- part of the output
        told INTEGER NOT NULL,           -- 1: the upstream said so; 0: counted or estimated
        cost INTEGER,                    -- picodollars (10^-12 USD); NULL: no price is known
        PRIMARY KEY (at, writer, sequence)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO tidegate_ledger_by_time
        SELECT at, writer, sequence, took, call, attempt, cause, caller, team, operation, model,
            upstream, upstream_model, failure, input, cached_input, cache_write, output, reasoning,
            told, cost
        FROM tidegate_ledger ORDER BY at, writer, sequence;
    DROP TABLE tidegate_ledger;
    ALTER TABLE tidegate_ledger_by_time RENAME TO tidegate_ledger;
",
];

const DIALECT: Dialect = Dialect {
    parameter: '?',
    day: "strftime('%Y-%m-%d', at / 1000000, 'unixepoch')",
    instant: |micros| micros.to_string(),
};

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
        sqlite.reopen().map_err(|why| why.of(&path_in(data_dir)))?;
        Ok(sqlite)
    }

    /// The file, opened where it is not.
    fn reopen(&mut self) -> Result<&mut Connection, Unusable> {
        let path = path_in(&self.data_dir);
        // SQLite would go on with a file that has no name any more.
        self.opened.take_if(|(_, identity)| still_there(&path, *identity).is_err());
        if self.opened.is_none() {
            make_private(&self.data_dir, &path).map_err(Unusable::Private)?;
            let connection = SCHEMA.open(&path)?;
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
            let mut before: Option<&Row<'_>> = None;
            for row in rows {
                // What was bound stays bound, and most of a row is as it was in the one before.
                macro_rules! bind {
                    ($($parameter:literal $field:ident),*) => {$(
                        if before.is_none_or(|before| before.$field != row.$field) {
                            insert.raw_bind_parameter($parameter, row.$field)?;
                        }
                    )*};
                }
                if before.is_none() {
                    insert.raw_bind_parameter(1, writer)?;
                }
                bind!(2 sequence, 3 at, 4 took, 5 call, 6 attempt, 7 cause, 8 caller, 9 team);
                bind!(10 operation, 11 model, 12 upstream, 13 upstream_model, 14 failure);
                bind!(15 input, 16 cached_input, 17 cache_write, 18 output, 19 reasoning, 20 told);
                bind!(21 cost);
                insert.raw_execute()?;
                before = Some(row);
            }
            drop(insert);
            change.commit()
        })
    }

    fn forget(&mut self, before: i64, most: u32) -> Result<u64, Trouble> {
        self.with(|connection| {
            let deleted = connection.execute(
                "DELETE FROM tidegate_ledger WHERE (at, writer, sequence) IN
                    (SELECT at, writer, sequence FROM tidegate_ledger WHERE at < ?1 LIMIT ?2)",
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
        let connection = SCHEMA.open(path)?;
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

impl Unusable {
    fn of(self, path: &Path) -> Error {
        match self {
            Self::Schema(why) => why.into_error(path, "to begin a new one"),
            Self::Private(error) => error,
        }
    }
}
