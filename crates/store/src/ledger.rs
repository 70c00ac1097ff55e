//! The ledger: every attempt, stored once, without a call ever waiting for it.
//!
//! ```text
//! write --> memory --10 ms--> journal --500 ms--> SQLite or PostgreSQL
//!           (calls)    a thread of its own    another one
//! ```
//!
//! # Why a journal in front
//!
//! A database may be away for a day, and a call must neither wait for it nor go unaccounted. With
//! the journal between the two there is one way for an entry, whatever happens: a database that
//! is slow, hung or gone, and a process that was killed, only make it longer.
//!
//! # What survives what
//!
//! - The process killed: all but what was written in the last ten milliseconds.
//! - The power cut: what the database has committed and, while it is away or slow, all but the
//!   last second or so.
//! - The database away: everything, as long as the disk has room (about 200 bytes an entry). From
//!   1 GiB on it is said so.
//! - The disk full or failing: everything that fits into memory (some 260,000 entries) goes to
//!   the database from there. Beyond that, and only with the database away too, entries are
//!   lost; how many is said.
//!
//! # Exactly once
//!
//! An entry is named by its writer, a number drawn at random by each process, and its place in
//! that writer's sequence (and by when it was sent, where that comes first in the table: whatever
//! is stored under one name was sent at one moment). Storing it again changes nothing, so everything in doubt is stored
//! again: a commit whose acknowledgement was lost, a journal whose process died. The call's id
//! would not do: callers choose it, and may choose the same twice.
//!
//! # What is in flight
//!
//! What a hard budget pays for is noted in a [slot](slots) before it is sent, under the name its
//! entry will have. A process that is killed leaves it there, and the next start enters it.

mod database;
mod inherit;
mod journal;
mod journaling;
mod postgres;
mod query;
mod record;
mod shared;
mod slots;
mod sqlite;
mod storing;

use parking_lot::Mutex;
use postgres::{Address, Postgres};
use shared::{MAX_WAITING, Progress, Shared, State, Waiting};
use slots::{MAX_SLOTS, Slots};
use sqlite::Sqlite;
use std::{
    io, mem,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tidegate_core::{
    BoxFuture, Entry, Error, Kind, Ledger, Noted, Origin, Result, Secret, UsageQuery, UsageRow,
};
use tokio::sync::{Semaphore, watch};

/// Sums that are computed at once; more wait.
const QUERIES: usize = 2;

/// Which database keeps the entries.
#[derive(Clone, Debug)]
pub enum Database {
    /// The file `ledger.sqlite` in the data directory.
    Sqlite,
    /// A PostgreSQL database, by its address with everything in it.
    Postgres(Secret<String>),
}

/// Takes entries, and sees to it that they are stored.
pub struct Recorder {
    shared: Arc<Shared>,
    books: Books,
    journaling: Mutex<Option<JoinHandle<()>>>,
}

/// How a ledger is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The database cannot be written.
    pub away: bool,
    /// Bytes in the journal that the database does not have.
    pub journal_bytes: u64,
    /// Entries that were lost: see [the module](self).
    pub lost: u64,
    /// Attempts that a hard budget pays for and that could not be noted before they were sent.
    pub unnoted: u64,
}

impl Recorder {
    /// Opens the ledger of `data_dir`, which is there. What earlier processes left in the journal
    /// is stored first. Entries older than `retention` are deleted.
    ///
    /// Does I/O on the calling thread, but waits for no PostgreSQL: one that is away is no error.
    ///
    /// # Errors
    ///
    /// When the address of the database is none, or `data_dir` cannot be written; names what to
    /// change.
    pub fn open(data_dir: &Path, database: &Database, retention: Option<Duration>) -> Result<Self> {
        let books = Books::of(data_dir, database)?;
        let store: Box<dyn database::Database> = match &books.kept {
            Kept::Sqlite(_) => Box::new(Sqlite::open(data_dir)?),
            Kept::Postgres(address) => {
                Box::new(Postgres::new(Arc::clone(address)).map_err(|cause| no_thread(&cause))?)
            }
        };
        let dir = journal::directory(data_dir).map_err(|cause| not_writable(data_dir, cause))?;
        let left_behind = inherit::left_behind(&dir).map_err(|cause| not_writable(&dir, cause))?;
        let inherited = !left_behind.is_empty();
        let (progress, _) = watch::channel(Progress { inherited, ..Progress::default() });
        let writer = random()?;
        let shared = Arc::new(Shared {
            writer,
            sequence: AtomicU64::new(0),
            slots: Slots::new(&dir, writer, MAX_SLOTS),
            dir,
            state: Mutex::new(State { segments: left_behind.into(), ..State::default() }),
            arrived: parking_lot::Condvar::new(),
            journaled: parking_lot::Condvar::new(),
            finished: parking_lot::Condvar::new(),
            progress,
        });
        let its = Arc::clone(&shared);
        spawn("ledger-store", move || storing::run(&its, store, retention))?;
        let its = Arc::clone(&shared);
        let journaling = spawn("ledger-journal", move || journaling::run(&its))?;
        Ok(Self { shared, books, journaling: Mutex::new(Some(journaling)) })
    }

    /// How it is now.
    pub fn health(&self) -> Health {
        let unnoted = self.shared.slots.without();
        let state = self.shared.state.lock();
        Health { away: state.away, journal_bytes: state.left(), lost: state.lost, unnoted }
    }

    /// Where entries are kept, as it may be shown.
    pub fn place(&self) -> String {
        self.books.place()
    }

    /// Stops: everything written so far goes into the journal, and from there into the database
    /// as far as it gets within `patience`. Returns how many of this process's entries are in the
    /// journal only; the next start stores them. Blocks.
    pub fn finish(&self, patience: Duration) -> u64 {
        let deadline = Instant::now() + patience;
        self.stop();
        let mut state = self.shared.state.lock();
        while !state.store_done {
            if self.shared.finished.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        let kept = state.last.saturating_sub(state.given_up);
        kept.saturating_sub(self.shared.progress.borrow().stored)
    }

    /// Everything written so far is in the journal on return.
    fn stop(&self) {
        self.shared.state.lock().stopping = true;
        self.shared.arrived.notify_all();
        self.shared.journaled.notify_all();
        if let Some(thread) = self.journaling.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the ledger's journal failed");
        }
    }

    /// Hands `entry` to the journal's thread; the slot it has is given back when it is written. Of
    /// one that is lost it stays full, and the next start enters what is in it.
    fn take(&self, sequence: u64, slot: Option<u32>, entry: Entry) {
        let mut state = self.shared.state.lock();
        if state.waiting.len() >= MAX_WAITING || state.journal_done {
            state.lost += 1;
            let lost = state.lost;
            drop(state);
            if lost.is_power_of_two() {
                tracing::error!("the ledger has lost {lost} entries: nothing takes them any more");
            }
            return;
        }
        state.last += 1;
        let place = state.last;
        state.waiting.push(Waiting { place, sequence, slot, entry });
        if mem::take(&mut state.journal_sleeps) {
            drop(state);
            self.shared.arrived.notify_one();
        }
    }

    async fn flushed(&self) -> Result<()> {
        let mut progress = self.shared.progress.subscribe();
        let failures = progress.borrow_and_update().failures;
        let _hurry = Hurry::new(&self.shared);
        let wanted = self.shared.state.lock().last;
        loop {
            let now = *progress.borrow_and_update();
            if now.stored >= wanted && !now.inherited {
                return Ok(());
            }
            if now.failures > failures || self.shared.state.lock().store_done {
                return Err(Error::new(
                    Kind::Unavailable,
                    Origin::Gateway,
                    "the ledger's database is away: entries are kept in its journal",
                ));
            }
            if progress.changed().await.is_err() {
                return Err(Error::new(Kind::Internal, Origin::Gateway, "the ledger has stopped"));
            }
        }
    }
}

impl Ledger for Recorder {
    fn write(&self, entry: Entry) {
        self.take(self.shared.next_sequence(), None, entry);
    }

    fn begin(&self, most: &Entry) -> Option<Noted> {
        let sequence = self.shared.next_sequence();
        let slot = self.shared.slots.put(sequence, most)?;
        Some(Noted { sequence, at: most.at, slot })
    }

    fn end(&self, noted: Noted, entry: Entry) {
        self.take(noted.sequence, Some(noted.slot), Entry { at: noted.at, ..entry });
    }

    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(self.flushed())
    }

    fn usage<'a>(&'a self, query: &'a UsageQuery) -> BoxFuture<'a, Result<Vec<UsageRow>>> {
        Box::pin(self.books.usage(query))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop();
    }
}

/// While it lives, entries are stored as soon as they can be.
struct Hurry<'a>(&'a Shared);

impl<'a> Hurry<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.state.lock().flushing += 1;
        shared.journaled.notify_one();
        Self(shared)
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.state.lock().flushing -= 1;
    }
}

/// Reads a ledger that another process may be writing.
pub struct Books {
    kept: Kept,
    queries: Arc<Semaphore>,
}

enum Kept {
    Sqlite(PathBuf),
    Postgres(Arc<Address>),
}

impl Books {
    /// The ledger of `data_dir` in `database`. Nothing is opened yet.
    ///
    /// # Errors
    ///
    /// When the address of the database is none.
    pub fn of(data_dir: &Path, database: &Database) -> Result<Self> {
        let kept = match database {
            Database::Sqlite => Kept::Sqlite(sqlite::path_in(data_dir)),
            Database::Postgres(url) => Kept::Postgres(Arc::new(Address::parse(url)?)),
        };
        Ok(Self { kept, queries: Arc::new(Semaphore::new(QUERIES)) })
    }

    /// Where entries are kept, as it may be shown.
    pub fn place(&self) -> String {
        match &self.kept {
            Kept::Sqlite(path) => path.display().to_string(),
            Kept::Postgres(address) => format!("PostgreSQL at {}", address.shown()),
        }
    }

    /// Sums over the entries `query` asks for, ordered by their groups. Entries of the last
    /// second may not be in them.
    ///
    /// # Errors
    ///
    /// When there is no ledger, or the database does not answer.
    pub async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageRow>> {
        let turn = Arc::clone(&self.queries).acquire_owned().await.expect("it is never closed");
        match &self.kept {
            Kept::Postgres(address) => postgres::usage(address, query).await,
            Kept::Sqlite(path) => {
                let (path, query) = (path.clone(), query.clone());
                // Whoever asked may leave; the thread goes on, and holds its turn until it is over.
                let summing = move || {
                    let _turn = turn;
                    sqlite::usage(&path, &query)
                };
                let summed = tokio::task::spawn_blocking(summing).await;
                summed.unwrap_or_else(|cause| {
                    Err(Error::new(Kind::Internal, Origin::Gateway, "the ledger's query failed")
                        .caused_by(cause))
                })
            }
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    thread::Builder::new().name(name.into()).spawn(work).map_err(|cause| no_thread(&cause))
}

fn no_thread(cause: &io::Error) -> Error {
    let message = format!("the system gives the ledger no thread or event queue: {cause}");
    Error::new(Kind::Internal, Origin::Gateway, message)
}

fn not_writable(path: &Path, cause: io::Error) -> Error {
    let message = format!("cannot write {} ({cause}): choose another data_dir", path.display());
    Error::new(Kind::Internal, Origin::Gateway, message).caused_by(cause)
}

/// A number no other writer has.
fn random() -> Result<i64> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| {
        let message = "the operating system gave no randomness to name the ledger's writer with";
        Error::new(Kind::Internal, Origin::Gateway, message)
    })?;
    Ok(i64::from_le_bytes(bytes))
}
