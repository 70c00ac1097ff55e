//! The tables, their versions, and how to tell our file from another program's.
//!
//! `application_id` says that a file is ours, `user_version` how many of [`STEPS`] it has had.
//! A step that was released is never changed: a new one is added.

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

/// "TGAT", in the header of every file of ours.
const APPLICATION_ID: i32 = 0x5447_4154;

/// What each schema version added.
const STEPS: [&str; 2] = [
    "
    CREATE TABLE keys (
        id TEXT PRIMARY KEY NOT NULL,
        hash BLOB NOT NULL CHECK (length(hash) = 32), -- SHA-256 of the whole key
        name TEXT NOT NULL,
        team TEXT,
        models TEXT,                     -- JSON list of names; NULL: every model
        has_limits INTEGER NOT NULL,     -- 0: the configuration's default limits
        requests_per_minute INTEGER,
        tokens_per_minute INTEGER,
        concurrency INTEGER,
        created_at INTEGER NOT NULL,     -- Unix seconds, as the next two
        expires_at INTEGER,
        revoked_at INTEGER
    ) STRICT;
",
    // Money is in picodollars. Whoever writes a key, by whatever means, moves the version.
    "
    ALTER TABLE keys ADD COLUMN cost_per_minute INTEGER;
    ALTER TABLE keys ADD COLUMN budget_day INTEGER;
    ALTER TABLE keys ADD COLUMN budget_month INTEGER;
    ALTER TABLE keys ADD COLUMN budget_total INTEGER;
    ALTER TABLE keys ADD COLUMN budget_hard INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE keys ADD COLUMN former_hash BLOB CHECK (length(former_hash) = 32);
    ALTER TABLE keys ADD COLUMN former_until INTEGER;
    CREATE TABLE keys_version (version INTEGER NOT NULL) STRICT;
    INSERT INTO keys_version VALUES (1);
    CREATE TRIGGER key_inserted AFTER INSERT ON keys
        BEGIN UPDATE keys_version SET version = version + 1; END;
    CREATE TRIGGER key_updated AFTER UPDATE ON keys
        BEGIN UPDATE keys_version SET version = version + 1; END;
    CREATE TRIGGER key_deleted AFTER DELETE ON keys
        BEGIN UPDATE keys_version SET version = version + 1; END;
",
];

/// Why a file cannot be used.
#[derive(Debug)]
pub(super) enum Unusable {
    /// A database, but not one of ours.
    Foreign,
    /// Ours, with steps we do not know.
    Newer {
        found: i64,
        known: usize,
    },
    Sqlite(rusqlite::Error),
}

impl Unusable {
    /// Whether trying again soon can help.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Self::Sqlite(cause) if matches!(
            cause.sqlite_error_code(),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
        ))
    }
}

impl From<rusqlite::Error> for Unusable {
    fn from(cause: rusqlite::Error) -> Self {
        Self::Sqlite(cause)
    }
}

/// Refuses what is not ours before anything is written to it.
pub(super) fn recognise(connection: &Connection) -> Result<(), Unusable> {
    // One transaction: another process may be making the file at this moment.
    let moment = connection.unchecked_transaction()?;
    let tables: i64 =
        moment.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let id: i32 = moment.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if id != APPLICATION_ID && (id != 0 || tables > 0) {
        return Err(Unusable::Foreign);
    }
    let found = version(&moment)?;
    if usize::try_from(found).is_ok_and(|found| found <= STEPS.len()) {
        return Ok(());
    }
    Err(Unusable::Newer { found, known: STEPS.len() })
}

/// Takes the steps that are missing, all or none; another process may be doing the same.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), Unusable> {
    if version(connection)? == STEPS.len() as i64 {
        return Ok(());
    }
    let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = usize::try_from(version(&change)?).unwrap_or(usize::MAX);
    for step in STEPS.iter().skip(done) {
        change.execute_batch(step)?;
    }
    change.pragma_update(None, "application_id", APPLICATION_ID)?;
    change.pragma_update(None, "user_version", done.max(STEPS.len()) as i64)?;
    change.commit()?;
    Ok(())
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// A number that moves with every change of a key.
pub(super) fn keys_version(connection: &Connection) -> rusqlite::Result<i64> {
    let mut select = connection.prepare_cached("SELECT version FROM keys_version")?;
    select.query_row([], |row| row.get(0))
}
