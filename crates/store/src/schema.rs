//! How a database of ours is opened, told from another program's, and brought up to date.
//!
//! `application_id` says that a file is ours and of which kind, `user_version` how many steps its
//! tables have had.

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};
use tidegate_core::{Error, Kind, Origin};

/// How long a statement waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// One kind of file.
pub(crate) struct Schema {
    /// In the header of every file of this kind.
    pub(crate) application_id: i32,
    /// What each version added. A step that was released is never changed: a new one is added.
    pub(crate) steps: &'static [&'static str],
}

/// Why a file cannot be used.
#[derive(Debug)]
pub(crate) enum Unusable {
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
    fn is_busy(&self) -> bool {
        matches!(self, Self::Sqlite(cause) if matches!(
            cause.sqlite_error_code(),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
        ))
    }

    /// What is wrong with the file at `path`, and what to do; `without` says what happens without
    /// it, as in "and make new keys".
    pub(crate) fn into_error(self, path: &Path, without: &str) -> Error {
        let path = path.display();
        let internal = |what| Error::new(Kind::Internal, Origin::Gateway, format!("{path} {what}"));
        let cause = match self {
            Self::Foreign => {
                return internal(
                    "is a database of another program: move it away, or choose another data_dir"
                        .to_owned(),
                );
            }
            Self::Newer { found, known } => {
                return internal(format!(
                    "was written by a newer Tidegate (schema {found}, this one knows {known}): use \
                     that version, or another data_dir"
                ));
            }
            Self::Sqlite(cause) => cause,
        };
        let what = match cause.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => {
                "is not a SQLite database: move it away, or choose another data_dir".to_owned()
            }
            Some(ErrorCode::DatabaseCorrupt) => {
                format!("is damaged: restore it from a backup, or move it away {without}")
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                "is locked by another process for more than 5 s: find it and try again".to_owned()
            }
            Some(ErrorCode::DiskFull) => "cannot grow: the disk is full".to_owned(),
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
                "cannot be written: check what it is and who may write it, or choose another \
                 data_dir"
                    .to_owned()
            }
            _ => format!("cannot be used: {cause}"),
        };
        internal(what).caused_by(cause)
    }
}

impl From<rusqlite::Error> for Unusable {
    fn from(cause: rusqlite::Error) -> Self {
        Self::Sqlite(cause)
    }
}

impl Schema {
    /// Opens a file that is there, if only as an empty one: write-ahead log, every commit flushed.
    ///
    /// Tries again while others are opening the same new file: SQLite answers "busy" at once,
    /// whatever the timeout, where waiting could deadlock, and two connections that both switch to
    /// the write-ahead log do.
    pub(crate) fn open(&self, path: &Path) -> Result<Connection, Unusable> {
        let give_up = Instant::now() + BUSY_TIMEOUT;
        loop {
            match self.connect(path) {
                Err(cause) if cause.is_busy() && Instant::now() < give_up => {
                    thread::sleep(Duration::from_millis(10));
                }
                done => return done,
            }
        }
    }

    fn connect(&self, path: &Path) -> Result<Connection, Unusable> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        self.recognise(&connection)?;
        // Only when it is not so yet: switching needs the file for oneself.
        let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        if mode != "wal" {
            connection.pragma_update(None, "journal_mode", "wal")?;
        }
        connection.pragma_update(None, "synchronous", "full")?;
        self.migrate(&mut connection, path)?;
        Ok(connection)
    }

    /// Refuses what is not ours before anything is written to it.
    fn recognise(&self, connection: &Connection) -> Result<(), Unusable> {
        // One transaction: another process may be making the file at this moment.
        let moment = connection.unchecked_transaction()?;
        let tables: i64 =
            moment.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        let id: i32 = moment.pragma_query_value(None, "application_id", |row| row.get(0))?;
        if id != self.application_id && (id != 0 || tables > 0) {
            return Err(Unusable::Foreign);
        }
        let found = version(&moment)?;
        if usize::try_from(found).is_ok_and(|found| found <= self.steps.len()) {
            return Ok(());
        }
        Err(Unusable::Newer { found, known: self.steps.len() })
    }

    /// Takes the steps that are missing, all or none; another process may be doing the same.
    fn migrate(&self, connection: &mut Connection, path: &Path) -> Result<(), Unusable> {
        if version(connection)? == self.steps.len() as i64 {
            return Ok(());
        }
        let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = usize::try_from(version(&change)?).unwrap_or(usize::MAX);
        if (1..self.steps.len()).contains(&done) {
            let (path, known) = (path.display(), self.steps.len());
            tracing::warn!(
                "bringing {path} from schema {done} to {known}: a large file takes a while"
            );
        }
        for step in self.steps.iter().skip(done) {
            change.execute_batch(step)?;
        }
        change.pragma_update(None, "application_id", self.application_id)?;
        change.pragma_update(None, "user_version", done.max(self.steps.len()) as i64)?;
        change.commit()?;
        Ok(())
    }
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}
