//! The second thread: from the journal into the database, and again until it is there.
//!
//! There is one way, whether the database is here, was away for a day, or the process was killed
//! in between: read what the journal has next, store it, remember how far that was. What was
//! stored without our hearing of it is stored again, and changes nothing.

use super::{
    database::{Database, Trouble},
    journal::{self, Segment},
    record::{self, FILE_HEAD},
    shared::{Shared, State},
};
use parking_lot::MutexGuard;
use std::{
    fs,
    hash::{BuildHasher, RandomState},
    io, mem,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Most entries of one transaction.
const BATCH: usize = 1_000;
/// About as many bytes: so many are not waited beyond.
const BATCH_BYTES: u64 = 128 << 10;
/// Shortest time between two transactions that are not full.
const INTERVAL: Duration = Duration::from_millis(50);
/// First and longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How often old entries are looked for, and how many are deleted at once.
const FORGET_EVERY: Duration = Duration::from_secs(600);
const FORGET_MOST: u32 = 5_000;
/// What may lie in the journal before it is said so, once.
const MUCH_BYTES: u64 = 1 << 30;

/// Runs until the ledger stops, and everything is stored or the database fails.
pub(super) fn run(shared: &Arc<Shared>, database: Box<dyn Database>, retention: Option<Duration>) {
    let forget_at = retention.map(|_| Instant::now());
    let mut storing = Storing {
        shared,
        database,
        retention,
        forget_at,
        backoff: BACKOFF.0,
        last: None,
        window: Vec::new(),
        told_much: false,
        over: false,
    };
    while let Some(next) = storing.next() {
        storing.advance(next);
    }
    let mut state = shared.state.lock();
    remove_stored(&mut state, true);
    // Their locks go with them: whoever starts next may take them over.
    state.segments.clear();
    let lost = mem::take(&mut state.waiting).len();
    if lost > 0 {
        state.lost += lost as u64;
        tracing::error!(
            "the ledger has lost {lost} entries: neither journal nor database took them"
        );
    }
    state.store_done = true;
    shared.finished.notify_all();
}

struct Storing<'a> {
    shared: &'a Shared,
    database: Box<dyn Database>,
    retention: Option<Duration>,
    forget_at: Option<Instant>,
    backoff: Duration,
    /// When the last transaction began.
    last: Option<Instant>,
    window: Vec<u8>,
    told_much: bool,
    /// Nothing more can be done before the next start.
    over: bool,
}

/// What is to be done.
enum Next {
    /// Store the beginning of what is left of this file.
    Store(Segment),
    /// Store these, which the journal does not take: encoded, and the last one's place.
    Direct(Vec<u8>, u64),
    /// Delete what is too old.
    Forget,
}

impl Storing<'_> {
    /// Waits for something to do; `None` at the end.
    fn next(&mut self) -> Option<Next> {
        let shared = self.shared;
        let mut state = shared.state.lock();
        loop {
            if self.over {
                return None;
            }
            remove_stored(&mut state, false);
            if let Some(segment) = state.segments.iter().find(|segment| segment.left() > 0) {
                let (left, sealed) = (segment.left(), segment.sealed);
                let pause = match self.last {
                    Some(last) if left < BATCH_BYTES && !sealed && !hurried(&state) => {
                        INTERVAL.saturating_sub(last.elapsed())
                    }
                    _ => Duration::ZERO,
                };
                if pause.is_zero() {
                    return Some(Next::Store(segment.clone()));
                }
                shared.journaled.wait_for(&mut state, pause);
                continue;
            }
            if state.journal_fails && !state.waiting.is_empty() {
                let (bytes, last) = encode(&state);
                return Some(Next::Direct(bytes, last));
            }
            if state.stopping && state.journal_done {
                return None;
            }
            match self.forget_at {
                Some(at) if at <= Instant::now() && !state.stopping => return Some(Next::Forget),
                Some(at) => drop(shared.journaled.wait_until(&mut state, at)),
                None => shared.journaled.wait(&mut state),
            }
        }
    }

    fn advance(&mut self, next: Next) {
        self.last = Some(Instant::now());
        let done = match next {
            Next::Store(segment) => self.store(&segment),
            Next::Direct(bytes, last) => self.store_directly(&bytes, last),
            Next::Forget => self.forget(),
        };
        match done {
            Ok(()) => self.is_here(),
            Err(Trouble { why }) => self.is_away(&why),
        }
    }

    fn store(&mut self, segment: &Segment) -> Result<(), Trouble> {
        segment.window(&mut self.window).map_err(|cause| unreadable(segment, &cause))?;
        let last = self.window.len() as u64 == segment.left();
        let batch = journal::rows(&self.window, BATCH, last);
        if batch.damaged > 0 {
            tracing::error!(
                "the ledger's journal {} is damaged: {} bytes of it are lost",
                segment.path.display(),
                batch.damaged
            );
        }
        if !batch.rows.is_empty() {
            self.database.insert(segment.writer, &batch.rows)?;
        }
        let highest = batch.rows.last().map(|row| row.sequence.unsigned_abs());
        let mut state = self.shared.state.lock();
        // It may have grown, and be sealed, since it was looked at.
        let theirs = state.segments.iter_mut().find(|other| other.path == segment.path);
        if let Some(theirs) = theirs {
            theirs.stored = segment.stored + batch.len as u64;
        }
        let inherited = state.segments.iter().any(|segment| self.is_inherited(segment));
        drop(state);
        self.shared.progress.send_modify(|progress| {
            progress.inherited = inherited;
            if let Some(highest) = highest.filter(|_| segment.writer == self.shared.writer) {
                progress.stored = progress.stored.max(highest);
            }
        });
        Ok(())
    }

    fn is_inherited(&self, segment: &Segment) -> bool {
        segment.writer != self.shared.writer && segment.left() > 0
    }

    fn store_directly(&mut self, bytes: &[u8], last: u64) -> Result<(), Trouble> {
        let batch = journal::rows(bytes, BATCH, true);
        self.database.insert(self.shared.writer, &batch.rows)?;
        self.shared.state.lock().waiting.retain(|(sequence, _)| *sequence > last);
        self.shared.progress.send_modify(|progress| progress.stored = progress.stored.max(last));
        Ok(())
    }

    fn forget(&mut self) -> Result<(), Trouble> {
        let Some(retention) = self.retention else { return Ok(()) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let before = i64::try_from(now.saturating_sub(retention).as_micros()).unwrap_or(i64::MAX);
        let forgotten = self.database.forget(before, FORGET_MOST)?;
        // The rest at once, but between two transactions that store.
        if forgotten < u64::from(FORGET_MOST) {
            self.forget_at = Some(Instant::now() + FORGET_EVERY);
        }
        Ok(())
    }

    fn is_here(&mut self) {
        self.backoff = BACKOFF.0;
        let mut state = self.shared.state.lock();
        if state.away {
            state.away = false;
            let left = state.left();
            drop(state);
            tracing::warn!(
                "the ledger's database is back: {left} bytes of journal are being stored"
            );
        }
    }

    fn is_away(&mut self, why: &str) {
        let shared = self.shared;
        let mut state = shared.state.lock();
        if !state.away {
            state.away = true;
            tracing::warn!(
                "the ledger's database is away ({why}): entries are kept in {} until it is back",
                shared.dir.display()
            );
        }
        let left = state.left();
        if left > MUCH_BYTES && !self.told_much {
            let dir = shared.dir.display();
            tracing::error!("the ledger's journal in {dir} holds {left} bytes by now");
        }
        self.told_much = left > MUCH_BYTES;
        shared.progress.send_modify(|progress| progress.failures += 1);
        if state.stopping && state.journal_done {
            // It is in the journal: the next start stores it.
            self.over = true;
            return;
        }
        let wait = self.backoff.mul_f64(0.5 + 0.5 * chance());
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
        shared.journaled.wait_while_for(&mut state, |state| !state.stopping, wait);
    }
}

/// Whether somebody waits for everything to be stored.
const fn hurried(state: &State) -> bool {
    state.stopping || state.flushing > 0
}

/// A batch of what waits in memory.
fn encode(state: &MutexGuard<'_, State>) -> (Vec<u8>, u64) {
    let mut bytes = Vec::new();
    let mut last = 0;
    for (sequence, entry) in state.waiting.iter().take(BATCH) {
        record::encode(*sequence, entry, &mut bytes);
        last = *sequence;
    }
    (bytes, last)
}

/// Deletes the files that the database has; those that may grow stay, until `all` is over.
fn remove_stored(state: &mut State, all: bool) {
    state.segments.retain(|segment| {
        let over = segment.left() == 0 && (segment.sealed || all);
        if over && let Err(cause) = fs::remove_file(&segment.path) {
            // Stored again at the next start, which changes nothing.
            tracing::warn!("{} is stored and stays: {cause}", segment.path.display());
        }
        !over
    });
}

fn unreadable(segment: &Segment, cause: &io::Error) -> Trouble {
    Trouble { why: format!("{} cannot be read: {cause}", segment.path.display()) }
}

/// From 0 to 1.
fn chance() -> f64 {
    (RandomState::new().hash_one(FILE_HEAD) >> 11) as f64 / (1u64 << 53) as f64
}
