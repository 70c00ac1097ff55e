//! How to tell a database of ours from another program's, and which steps its tables have had.
//!
//! `application_id` says that a file is ours and of which kind, `user_version` how many steps it
//! has had.

use rusqlite::{Connection, ErrorCode, TransactionBehavior};

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
    pub(crate) fn is_busy(&self) -> bool {
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

impl Schema {
    /// Refuses what is not ours before anything is written to it.
    pub(crate) fn recognise(&self, connection: &Connection) -> Result<(), Unusable> {
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
    pub(crate) fn migrate(&self, connection: &mut Connection) -> Result<(), Unusable> {
        if version(connection)? == self.steps.len() as i64 {
            return Ok(());
        }
        let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = usize::try_from(version(&change)?).unwrap_or(usize::MAX);
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
