//! The file of kept answers: its table, and what is asked of it. On the writer's thread only.

mod room;

use super::{Options, lent::Lending, now, owner::Owner, ran};
use crate::{
    schema::{Schema, Unusable},
    sqlite::{Identity, still_there},
};
use rusqlite::{Connection, Error as Sql, OptionalExtension as _, params};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};
use tidegate_core::{Begun, Ended, Error, KeptAnswer, ReplayKey, Unkept};

/// Rows deleted, or answers pushed out, in one transaction at most.
const AT_ONCE: i64 = 256;

/// "TGIK" in the header.
const SCHEMA: Schema = Schema { application_id: 0x5447_494b, steps: &STEPS };

const STEPS: [&str; 2] = [
    "
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
",
    // Whose key it is, as a hash; 0 for those from before.
    "
    ALTER TABLE replays ADD COLUMN caller INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX replays_by_caller ON replays (caller, begun_at);
",
];

/// `stage` of a row.
const RUNNING: i64 = 0;
const DONE: i64 = 1;
const INTERRUPTED: i64 = 2;
const TOO_LONG: i64 = 3;
const PUSHED_OUT: i64 = 4;

/// Why a piece of work was not done.
pub(super) enum Trouble {
    /// The file cannot be used.
    File(Unusable),
    /// Our own refusal; nothing was written for it.
    Refused(Error),
}

impl From<Unusable> for Trouble {
    fn from(why: Unusable) -> Self {
        Self::File(why)
    }
}

impl From<Sql> for Trouble {
    fn from(cause: Sql) -> Self {
        Self::File(cause.into())
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
    /// Rows of each caller, likewise; after a failure they may be off until they are counted again.
    of_callers: HashMap<i64, u64>,
    is_off: bool,
    lending: Lending,
}

impl Table {
    /// Opens the file, which is there already, if only as an empty one.
    pub(super) fn open(path: &Path, options: Options) -> Result<Self, Trouble> {
        let connection = SCHEMA.open(path)?;
        // What was deleted is an answer somebody got: it is to be gone from the file too.
        connection.pragma_update(None, "secure_delete", true)?;
        let opened = Identity::of(path).ok().flatten();
        let path = path.to_owned();
        let mut table = Self {
            connection,
            path,
            opened,
            options,
            keys: 0,
            bytes: 0,
            of_callers: HashMap::new(),
            is_off: false,
            lending: Lending::default(),
        };
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
            self.is_off = true;
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
            Some(row) => return Ok(Some(self.says(&key.id, &row)?)),
            None => {}
        }
        self.make_room(owner)?;
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO replays (id, request, stage, owner, begun_at, caller)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?;
        let caller = key.caller.cast_signed();
        insert.execute(params![key.id, key.request, RUNNING, owner.id, now, caller])?;
        drop(insert);
        self.keys += 1;
        *self.of_callers.entry(caller).or_default() += 1;
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
        let mut delete = self.connection.prepare_cached(
            "DELETE FROM replays WHERE id = ?1 AND stage = ?2 AND owner = ?3 RETURNING caller",
        )?;
        let gone = delete.query_row(params![id, RUNNING, owner.id], |row| row.get(0)).optional()?;
        drop(delete);
        if let Some(caller) = gone {
            self.one_less(caller);
        }
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
    fn says(&mut self, id: &[u8; 32], row: &Row) -> Result<Begun, Sql> {
        Ok(match row.stage {
            DONE => self.answer(id, row)?.map_or(Begun::Busy, Begun::Done),
            TOO_LONG => Begun::Unkept(Unkept::TooLong),
            PUSHED_OUT => Begun::Unkept(Unkept::PushedOut),
            _ => Begun::Unkept(Unkept::Interrupted),
        })
    }

    /// `None` while too many others are being given.
    fn answer(&mut self, id: &[u8; 32], row: &Row) -> Result<Option<KeptAnswer>, Sql> {
        let mut head = self
            .connection
            .prepare_cached("SELECT status, content_type, bytes FROM replays WHERE id = ?1")?;
        let (status, content_type, length) = head.query_row([id], |row| {
            Ok((row.get(0)?, Arc::from(row.get_ref(1)?.as_str()?), row.get(2)?))
        })?;
        let read = || {
            let mut body =
                self.connection.prepare_cached("SELECT body FROM replays WHERE id = ?1")?;
            body.query_row([id], |row| row.get(0))
        };
        let body = self.lending.lend((*id, row.begun_at), length, read)?;
        Ok(body.map(|body| KeptAnswer { status, content_type, body }))
    }

    fn remove(&mut self, id: &[u8; 32]) -> Result<(), Sql> {
        let mut delete = self
            .connection
            .prepare_cached("DELETE FROM replays WHERE id = ?1 RETURNING bytes, caller")?;
        let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, u64>(0)?, row.get(1)?));
        let gone = delete.query_row([id], read).optional()?;
        drop(delete);
        if let Some((bytes, caller)) = gone {
            self.bytes = self.bytes.saturating_sub(bytes);
            self.one_less(caller);
        }
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
