//! The file of kept answers: its table, and what is asked of it. On the writer's thread only.

use super::{Options, full, now, owner::Owner, ran};
use crate::sqlite::{Identity, still_there};
use rusqlite::{
    Connection, Error as Sql, OpenFlags, OptionalExtension as _, TransactionBehavior, params,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tidegate_core::{Begun, Ended, Error, KeptAnswer, ReplayKey, Unkept};

/// "TGIK", in the header of every such file.
const APPLICATION_ID: i32 = 0x5447_494b;
const VERSION: i64 = 1;
/// How long a statement waits for another process that writes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Rows deleted, or answers pushed out, in one transaction at most.
const AT_ONCE: i64 = 256;

const SCHEMA: &str = "
    CREATE TABLE replays (
        id           BLOB    PRIMARY KEY NOT NULL,
        request      BLOB    NOT NULL,
        stage        INTEGER NOT NULL,
        owner        INTEGER NOT NULL,
        begun_at     INTEGER NOT NULL,
        status       INTEGER,
        content_type TEXT,
        bytes        INTEGER NOT NULL DEFAULT 0,
        body         BLOB
    ) STRICT;
    CREATE INDEX replays_by_age ON replays (begun_at);
    CREATE INDEX replays_with_answer ON replays (begun_at, bytes) WHERE bytes > 0;
";

/// `stage` of a row.
const RUNNING: i64 = 0;
const DONE: i64 = 1;
const INTERRUPTED: i64 = 2;
const TOO_LONG: i64 = 3;
const PUSHED_OUT: i64 = 4;

/// Why a piece of work was not done.
pub(super) enum Trouble {
    /// The file cannot be used.
    Sql(Sql),
    /// Something else than one of our databases is there.
    Foreign,
    /// Our own refusal; nothing was written for it.
    Refused(Error),
}

impl From<Sql> for Trouble {
    fn from(cause: Sql) -> Self {
        Self::Sql(cause)
    }
}

/// The open file.
pub(super) struct Table {
    connection: Connection,
    path: PathBuf,
    opened: Option<Identity>,
    options: Options,
    /// Rows and bytes of answers, as this process knows them: brought up to date by each sweep.
    keys: u64,
    bytes: u64,
}

impl Table {
    /// Opens the file, which is there already, if only as an empty one.
    pub(super) fn open(path: &Path, options: Options) -> Result<Self, Trouble> {
        let give_up = Instant::now() + BUSY_TIMEOUT;
        let connection = loop {
            match connect(path) {
                // Two that switch to the write-ahead log at once are told so without a wait.
                Err(Trouble::Sql(cause)) if is_busy(&cause) && Instant::now() < give_up => {
                    thread::sleep(Duration::from_millis(10));
                }
                done => break done?,
            }
        };
        let opened = Identity::of(path).ok().flatten();
        let path = path.to_owned();
        let mut table = Self { connection, path, opened, options, keys: 0, bytes: 0 };
        table.count()?;
        Ok(table)
    }

    /// Does `work` and makes it durable, or does nothing.
    pub(super) fn durably<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        // What is written to a file that has lost its name is gone after a restart.
        still_there(&self.path, self.opened).map_err(Trouble::Refused)?;
        let counts = (self.keys, self.bytes);
        let done = self.transaction(work);
        if done.is_err() {
            (self.keys, self.bytes) = counts;
        }
        done
    }

    fn transaction<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        let done = work(self).and_then(|done| {
            self.connection.execute_batch("COMMIT")?;
            Ok(done)
        });
        if done.is_err() && !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK")?;
        }
        done
    }

    /// What is known of `key`; `None` after it was begun.
    pub(super) fn begin(
        &mut self,
        key: &ReplayKey,
        owner: &Owner,
    ) -> Result<Option<Begun>, Trouble> {
        let now = now();
        let is_expired = |row: &Row| row.begun_at <= self.options.cutoff(now);
        match self.row(key)? {
            Some(row) if row.stage == RUNNING && owner.is_alive(row.owner) => {
                let running = Begun::Running(ran(row.begun_at, now));
                return Ok(Some(if row.is_same { running } else { Begun::Mismatch }));
            }
            Some(row) if is_expired(&row) => self.remove(&key.id)?,
            Some(row) if !row.is_same => return Ok(Some(Begun::Mismatch)),
            Some(row) => return self.says(&key.id, row.stage).map(Some),
            None => {}
        }
        self.make_room(owner)?;
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO replays (id, request, stage, owner, begun_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        insert.execute(params![key.id, key.request, RUNNING, owner.id, now])?;
        drop(insert);
        self.keys += 1;
        Ok(None)
    }

    /// How the execution that `owner` began ended.
    pub(super) fn finish(
        &mut self,
        id: &[u8; 32],
        owner: &Owner,
        ended: &Ended,
    ) -> Result<(), Trouble> {
        let (stage, answer) = match ended {
            Ended::Answered(answer) => (DONE, Some(answer)),
            Ended::Unkept(why) => (stage_of(*why), None),
        };
        let bytes = answer.map_or(0, |answer| answer.body.len() as u64);
        let mut update = self.connection.prepare_cached(
            "UPDATE replays SET stage = ?2, status = ?3, content_type = ?4, bytes = ?5, body = ?6
             WHERE id = ?1 AND stage = ?7 AND owner = ?8",
        )?;
        let changed = update.execute(params![
            id,
            stage,
            answer.map(|answer| answer.status),
            answer.map(|answer| &*answer.content_type),
            bytes,
            answer.map(|answer| &*answer.body),
            RUNNING,
            owner.id,
        ])?;
        drop(update);
        if changed > 0 {
            self.bytes += bytes;
            self.push_out()?;
        }
        Ok(())
    }

    /// Nothing is kept of the execution that `owner` began.
    pub(super) fn abandon(&mut self, id: &[u8; 32], owner: &Owner) -> Result<(), Trouble> {
        let mut delete = self
            .connection
            .prepare_cached("DELETE FROM replays WHERE id = ?1 AND stage = ?2 AND owner = ?3")?;
        let gone = delete.execute(params![id, RUNNING, owner.id])?;
        drop(delete);
        self.keys = self.keys.saturating_sub(gone as u64);
        Ok(())
    }

    /// Deletes some of what has expired; whether there may be more.
    pub(super) fn sweep(&mut self, owner: &Owner) -> Result<bool, Trouble> {
        let cutoff = self.options.cutoff(now());
        let ended = self.connection.execute(
            "DELETE FROM replays WHERE rowid IN (SELECT rowid FROM replays
                WHERE begun_at <= ?1 AND stage != ?2 ORDER BY begun_at LIMIT ?3)",
            params![cutoff, RUNNING, AT_ONCE],
        )?;
        let owners: Vec<i64> = {
            let mut select = self.connection.prepare_cached(
                "SELECT DISTINCT owner FROM replays WHERE begun_at <= ?1 AND stage = ?2",
            )?;
            select
                .query_map(params![cutoff, RUNNING], |row| row.get(0))?
                .collect::<Result<_, _>>()?
        };
        for dead in owners.into_iter().filter(|id| !owner.is_alive(*id)) {
            self.connection.execute(
                "DELETE FROM replays WHERE begun_at <= ?1 AND stage = ?2 AND owner = ?3",
                params![cutoff, RUNNING, dead],
            )?;
        }
        self.count()?;
        self.push_out()?;
        Ok(ended as i64 == AT_ONCE)
    }

    fn row(&self, key: &ReplayKey) -> Result<Option<Row>, Sql> {
        let mut select = self
            .connection
            .prepare_cached("SELECT request, stage, owner, begun_at FROM replays WHERE id = ?1")?;
        let read = |row: &rusqlite::Row<'_>| {
            Ok(Row {
                is_same: row.get::<_, [u8; 32]>(0)? == key.request,
                stage: row.get(1)?,
                owner: row.get(2)?,
                begun_at: row.get(3)?,
            })
        };
        select.query_row([key.id], read).optional()
    }

    /// What a row that has ended, or whose process has, says.
    fn says(&mut self, id: &[u8; 32], stage: i64) -> Result<Begun, Trouble> {
        Ok(match stage {
            DONE => Begun::Done(self.answer(id)?),
            TOO_LONG => Begun::Unkept(Unkept::TooLong),
            PUSHED_OUT => Begun::Unkept(Unkept::PushedOut),
            _ => Begun::Unkept(Unkept::Interrupted),
        })
    }

    fn answer(&self, id: &[u8; 32]) -> Result<KeptAnswer, Sql> {
        let mut select = self
            .connection
            .prepare_cached("SELECT status, content_type, body FROM replays WHERE id = ?1")?;
        select.query_row([id], |row| {
            Ok(KeptAnswer {
                status: row.get(0)?,
                content_type: Arc::from(row.get_ref(1)?.as_str()?),
                body: row.get::<_, Vec<u8>>(2)?.into(),
            })
        })
    }

    fn remove(&mut self, id: &[u8; 32]) -> Result<(), Sql> {
        let mut delete =
            self.connection.prepare_cached("DELETE FROM replays WHERE id = ?1 RETURNING bytes")?;
        let bytes: Option<u64> = delete.query_row([id], |row| row.get(0)).optional()?;
        drop(delete);
        self.keys = self.keys.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes.unwrap_or(0));
        Ok(())
    }

    /// Forgets the oldest ended row when there are too many.
    fn make_room(&mut self, owner: &Owner) -> Result<(), Trouble> {
        if self.keys < self.options.max_keys {
            return Ok(());
        }
        // Of processes that ended too, so that their rows cannot fill the table for good.
        let mut oldest = self
            .connection
            .prepare_cached("SELECT id, stage, owner FROM replays ORDER BY begun_at")?;
        let mut rows = oldest.query([])?;
        let mut found = None;
        while let Some(row) = rows.next()? {
            if row.get::<_, i64>(1)? != RUNNING || !owner.is_alive(row.get(2)?) {
                found = Some(row.get::<_, [u8; 32]>(0)?);
                break;
            }
        }
        drop(rows);
        drop(oldest);
        match found {
            Some(id) => Ok(self.remove(&id)?),
            None => Err(Trouble::Refused(full(self.options.max_keys))),
        }
    }

    /// Lets the oldest answers go while there are too many bytes of them.
    fn push_out(&mut self) -> Result<(), Sql> {
        while self.bytes > self.options.max_bytes {
            let mut oldest = self.connection.prepare_cached(
                "SELECT rowid, bytes FROM replays WHERE bytes > 0 ORDER BY begun_at LIMIT ?1",
            )?;
            let oldest: Vec<(i64, u64)> = oldest
                .query_map([AT_ONCE], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<Result<_, _>>()?;
            if oldest.is_empty() {
                self.bytes = 0;
            }
            let mut update = self.connection.prepare_cached(
                "UPDATE replays SET stage = ?2, body = NULL, bytes = 0 WHERE rowid = ?1",
            )?;
            for (row, bytes) in oldest {
                if self.bytes <= self.options.max_bytes {
                    break;
                }
                update.execute(params![row, PUSHED_OUT])?;
                self.bytes = self.bytes.saturating_sub(bytes);
            }
        }
        Ok(())
    }

    /// Counts what is there, other processes' rows too.
    fn count(&mut self) -> Result<(), Sql> {
        self.keys =
            self.connection.query_row("SELECT count(*) FROM replays", [], |row| row.get(0))?;
        self.bytes = self.connection.query_row(
            "SELECT coalesce(sum(bytes), 0) FROM replays WHERE bytes > 0",
            [],
            |row| row.get(0),
        )?;
        Ok(())
    }
}

/// A row without its answer.
struct Row {
    is_same: bool,
    stage: i64,
    owner: i64,
    begun_at: i64,
}

const fn stage_of(why: Unkept) -> i64 {
    match why {
        Unkept::Interrupted => INTERRUPTED,
        Unkept::TooLong => TOO_LONG,
        Unkept::PushedOut => PUSHED_OUT,
    }
}

fn connect(path: &Path) -> Result<Connection, Trouble> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let moment = connection.unchecked_transaction()?;
    let tables: i64 =
        moment.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let id: i32 = moment.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i64 = moment.pragma_query_value(None, "user_version", |row| row.get(0))?;
    drop(moment);
    let is_new = id == 0 && tables == 0;
    if !is_new && (id != APPLICATION_ID || version != VERSION) {
        return Err(Trouble::Foreign);
    }
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    // What was deleted is an answer somebody got: it is to be gone from the file too.
    connection.pragma_update(None, "secure_delete", true)?;
    make(&mut connection)?;
    Ok(connection)
}

/// Makes the table; another process may be doing the same.
fn make(connection: &mut Connection) -> Result<(), Sql> {
    let change = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = change.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version != VERSION {
        change.execute_batch(SCHEMA)?;
        change.pragma_update(None, "application_id", APPLICATION_ID)?;
        change.pragma_update(None, "user_version", VERSION)?;
    }
    change.commit()
}

fn is_busy(cause: &Sql) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
    matches!(cause.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked))
}
