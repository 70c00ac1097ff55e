//! Room in the file of kept answers: how many keys and bytes there are, and what goes when there are
//! too many.
//!
//! *Whose go:* of keys the oldest of the caller that has most, so that nobody's flood has another's
//! request carried out twice. Of answers the oldest of all: their keys stay, and say that they were
//! carried out.

use super::{AT_ONCE, PUSHED_OUT, RUNNING, Table, Trouble};
use crate::replay::{full, owner::Owner};
use rusqlite::{Error as Sql, params};
use std::collections::hash_map::Entry;

impl Table {
    /// A row of `caller` is gone.
    pub(super) fn one_less(&mut self, caller: i64) {
        self.keys = self.keys.saturating_sub(1);
        if let Entry::Occupied(mut rows) = self.of_callers.entry(caller) {
            *rows.get_mut() -= 1;
            if *rows.get() == 0 {
                rows.remove();
            }
        }
    }

    /// Forgets the oldest ended rows of the caller that has most, when there are too many.
    pub(super) fn make_room(&mut self, owner: &Owner) -> Result<(), Trouble> {
        if self.keys < self.options.max_keys {
            return Ok(());
        }
        if self.is_off {
            self.count()?;
        }
        let most = self.of_callers.iter().max_by_key(|(_, rows)| **rows).map(|(caller, _)| *caller);
        // Some at once: the search is for them all.
        let at_once = (self.keys / 64).clamp(1, AT_ONCE.cast_unsigned()) as usize;
        let mut found = self.oldest_ended(owner, most, at_once)?;
        if found.is_empty() {
            found = self.oldest_ended(owner, None, 1)?;
        }
        if found.is_empty() {
            return Err(Trouble::Refused(full(self.options.max_keys)));
        }
        for id in found {
            self.remove(&id)?;
        }
        Ok(())
    }

    /// So many of one caller, or of all.
    fn oldest_ended(
        &self,
        owner: &Owner,
        caller: Option<i64>,
        count: usize,
    ) -> Result<Vec<[u8; 32]>, Sql> {
        let mut oldest = self.connection.prepare_cached(match caller {
            Some(_) => "SELECT id, stage, owner FROM replays WHERE caller = ?1 ORDER BY begun_at",
            None => "SELECT id, stage, owner FROM replays WHERE ?1 IS NULL ORDER BY begun_at",
        })?;
        let (mut rows, mut found) = (oldest.query([caller])?, Vec::new());
        while let Some(row) = rows.next()?
            && found.len() < count
        {
            // Of processes that ended too, so that their rows cannot fill the table for good.
            if row.get::<_, i64>(1)? != RUNNING || !owner.is_alive(row.get(2)?) {
                found.push(row.get(0)?);
            }
        }
        Ok(found)
    }

    /// Lets the oldest answers go while there are too many bytes of them.
    pub(super) fn push_out(&mut self) -> Result<(), Sql> {
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
    pub(super) fn count(&mut self) -> Result<(), Sql> {
        let mut of_callers = self
            .connection
            .prepare_cached("SELECT caller, count(*) FROM replays GROUP BY caller")?;
        self.of_callers = of_callers
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        self.keys = self.of_callers.values().sum();
        self.is_off = false;
        self.bytes = self.connection.query_row(
            "SELECT coalesce(sum(bytes), 0) FROM replays WHERE bytes > 0",
            [],
            |row| row.get(0),
        )?;
        Ok(())
    }
}
