//! What the callers of a ledger and its two threads have in common.

use super::{journal::Segment, slots::Slots};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use tidegate_core::Entry;
use tokio::sync::watch;

/// Entries that may wait in memory: some 100 MiB. They wait there for ten milliseconds, and longer
/// only while the journal cannot be written.
pub(super) const MAX_WAITING: usize = 1 << 18;

pub(super) struct Shared {
    pub(super) dir: PathBuf,
    /// Names the entries of this process, with their sequence.
    pub(super) writer: i64,
    /// The last sequence given.
    pub(super) sequence: AtomicU64,
    /// What attempts in flight may come to.
    pub(super) slots: Slots,
    pub(super) state: Mutex<State>,
    /// For the journal's thread: there is an entry, or the end has come.
    pub(super) arrived: Condvar,
    /// For the database's thread: there is something to store, or the end has come.
    pub(super) journaled: Condvar,
    /// For whoever waits for the end.
    pub(super) finished: Condvar,
    pub(super) progress: watch::Sender<Progress>,
}

impl Shared {
    /// Names another entry.
    pub(super) fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Relaxed) + 1
    }
}

/// An entry on its way into the journal.
pub(super) struct Waiting {
    /// How many were written before it, and one.
    pub(super) place: u64,
    /// Its name.
    pub(super) sequence: u64,
    /// Where it is until it is in the journal.
    pub(super) slot: Option<u32>,
    pub(super) entry: Entry,
}

/// How far the database is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Every entry of this process up to this place is stored.
    pub(super) stored: u64,
    /// What other processes left behind is not stored yet.
    pub(super) inherited: bool,
    /// How often the database failed.
    pub(super) failures: u64,
}

#[derive(Default)]
pub(super) struct State {
    /// What the journal does not have yet, by its place; at most [`MAX_WAITING`].
    pub(super) waiting: Vec<Waiting>,
    /// The last place given.
    pub(super) last: u64,
    /// Entries for which there was no room.
    pub(super) lost: u64,
    /// Of those that were given a place, lost at the end.
    pub(super) given_up: u64,
    /// What lies in files, oldest first; those of other processes before our own.
    pub(super) segments: VecDeque<Segment>,
    /// The journal cannot be written.
    pub(super) journal_fails: bool,
    /// The journal's thread sleeps until something comes.
    pub(super) journal_sleeps: bool,
    /// The database's thread sleeps until files hold so many bytes that it has not stored.
    pub(super) store_sleeps: Option<u64>,
    /// The database cannot be written.
    pub(super) away: bool,
    /// Somebody waits for everything to be stored.
    pub(super) flushing: usize,
    /// Nothing more will be written.
    pub(super) stopping: bool,
    /// The journal's thread has ended.
    pub(super) journal_done: bool,
    /// The database's thread has ended.
    pub(super) store_done: bool,
}

impl State {
    /// Bytes in files that the database does not have.
    pub(super) fn left(&self) -> u64 {
        self.segments.iter().map(Segment::left).sum()
    }

    /// Whether somebody waits for everything to be stored.
    pub(super) const fn hurried(&self) -> bool {
        self.stopping || self.flushing > 0
    }

    /// Whether the database's thread is to be woken, now that the journal was written or was not.
    /// Waking it each time would cost as much as storing.
    pub(super) fn wakes_store(&self) -> bool {
        let enough = self.store_sleeps.is_some_and(|bytes| self.left() >= bytes);
        enough || self.hurried() || self.journal_fails
    }
}

#[cfg(test)]
impl Shared {
    /// Of a ledger whose journal cannot be written.
    pub(super) fn nowhere(state: State) -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self {
            dir: "nowhere".into(),
            writer: 7,
            sequence: AtomicU64::new(state.last),
            slots: Slots::new("nowhere".as_ref(), 7, 0),
            state: Mutex::new(state),
            arrived: Condvar::new(),
            journaled: Condvar::new(),
            finished: Condvar::new(),
            progress: watch::Sender::new(Progress::default()),
        })
    }
}
