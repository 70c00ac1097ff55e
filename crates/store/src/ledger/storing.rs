//! The second thread: from the journal into the database, and again until it is there.
//!
//! There is one way, whether the database is here, was away for a day, or the process was killed
//! in between: read what the journal has next, store it, remember how far that was. What was
//! stored without our hearing of it is stored again, and changes nothing.

use super::{
    database::{Database, Trouble},
    journal::{self, Segment, WINDOW_BYTES},
    record::{self, Form},
    shared::{Shared, State, Waiting},
    slots,
};
use parking_lot::MutexGuard;
use std::{
    collections::VecDeque,
    fs,
    hash::{BuildHasher, RandomState},
    io, mem,
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Most entries of one transaction: about as many as are read at once.
const BATCH: usize = 2_500;
/// Shortest time between two transactions that are not full.
const INTERVAL: Duration = Duration::from_millis(500);
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
    let stored = take_stored(&mut state, true);
    // Their locks go with them: whoever starts next may take them over.
    let left = mem::take(&mut state.segments);
    let lost = mem::take(&mut state.waiting).len();
    state.lost += lost as u64;
    state.given_up = lost as u64;
    drop(state);
    delete(stored);
    drop(left);
    shared.slots.close();
    if lost > 0 {
        tracing::error!(
            "the ledger has lost {lost} entries: neither journal nor database took them"
        );
    }
    shared.state.lock().store_done = true;
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
    /// Store these, which the journal does not take: encoded, and the places they have.
    Direct(Vec<u8>, RangeInclusive<u64>),
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
            if state.segments.iter().any(|segment| segment.sealed && segment.left() == 0) {
                let stored = take_stored(&mut state, false);
                MutexGuard::unlocked(&mut state, || delete(stored));
            }
            if let Some(segment) = state.segments.iter().find(|segment| segment.left() > 0) {
                let (left, sealed) = (segment.left(), segment.sealed);
                let pause = match self.last {
                    Some(last) if left < WINDOW_BYTES && !sealed && !state.hurried() => {
                        INTERVAL.saturating_sub(last.elapsed())
                    }
                    _ => Duration::ZERO,
                };
                if pause.is_zero() {
                    return Some(Next::Store(segment.clone()));
                }
                if self.is_to_forget(&state) {
                    return Some(Next::Forget);
                }
                state.store_sleeps = Some(WINDOW_BYTES);
                shared.journaled.wait_for(&mut state, pause);
                state.store_sleeps = None;
                continue;
            }
            if state.journal_fails && !state.waiting.is_empty() {
                let (bytes, places) = encode(&state);
                return Some(Next::Direct(bytes, places));
            }
            if state.stopping && state.journal_done {
                return None;
            }
            if self.is_to_forget(&state) {
                return Some(Next::Forget);
            }
            state.store_sleeps = Some(1);
            match self.forget_at {
                Some(at) if !state.stopping => drop(shared.journaled.wait_until(&mut state, at)),
                _ => shared.journaled.wait(&mut state),
            }
            state.store_sleeps = None;
        }
    }

    fn is_to_forget(&self, state: &State) -> bool {
        self.forget_at.is_some_and(|at| at <= Instant::now()) && !state.stopping
    }

    fn advance(&mut self, next: Next) {
        let now = Instant::now();
        let done = match next {
            Next::Store(segment) => self.store(&segment),
            Next::Direct(bytes, places) => self.store_directly(&bytes, &places),
            Next::Forget => return self.forget(),
        };
        self.last = Some(now);
        match done {
            Ok(()) => self.is_here(),
            Err(Trouble { why }) => self.is_away(&why),
        }
    }

    fn store(&mut self, segment: &Segment) -> Result<(), Trouble> {
        if let Err(cause) = segment.window(&mut self.window) {
            return self.pass_over(segment, &cause);
        }
        let last = self.window.len() as u64 == segment.left();
        let batch = match segment.form {
            Form::Journal => journal::rows(&self.window, BATCH, last),
            Form::Slots => slots::rows(&self.window),
        };
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
        if segment.form == Form::Slots && !batch.rows.is_empty() {
            tracing::warn!(
                "attempts that hard budgets pay for were in flight when an earlier process was \
                 killed, and are entered at the most they can cost: {}",
                batch.rows.len()
            );
        }
        let highest = batch.rows.last().map(|row| row.place);
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

    /// What cannot be read must not hold up what comes after it; the next start tries again.
    fn pass_over(&self, segment: &Segment, cause: &io::Error) -> Result<(), Trouble> {
        let path = segment.path.display();
        let why = format!("the ledger's journal {path} cannot be read: {cause}");
        if !segment.sealed {
            return Err(Trouble { why });
        }
        tracing::error!("{why}; the next start tries again");
        let mut state = self.shared.state.lock();
        state.segments.retain(|other| other.path != segment.path);
        let inherited = state.segments.iter().any(|segment| self.is_inherited(segment));
        drop(state);
        self.shared.progress.send_modify(|progress| progress.inherited = inherited);
        Ok(())
    }

    fn is_inherited(&self, segment: &Segment) -> bool {
        segment.writer != self.shared.writer && segment.left() > 0
    }

    fn store_directly(
        &mut self,
        bytes: &[u8],
        places: &RangeInclusive<u64>,
    ) -> Result<(), Trouble> {
        let batch = journal::rows(bytes, BATCH, true);
        self.database.insert(self.shared.writer, &batch.rows)?;
        // The journal may have put earlier ones back in front meanwhile, which nobody has yet.
        let mut slots = Vec::new();
        let first_left = {
            let mut state = self.shared.state.lock();
            let stored = |waiting: &mut Waiting| places.contains(&waiting.place);
            slots.extend(state.waiting.extract_if(.., stored).filter_map(|waiting| waiting.slot));
            state.waiting.first().map(|waiting| waiting.place)
        };
        self.shared.slots.give_back(&slots);
        let stored = first_left.map_or(*places.end(), |left| (left - 1).min(*places.end()));
        self.shared.progress.send_modify(|progress| progress.stored = progress.stored.max(stored));
        Ok(())
    }

    /// Deletes some of what is too old. Where that cannot be done it is tried again later: nothing
    /// else depends on it.
    fn forget(&mut self) {
        let Some(retention) = self.retention else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let before = i64::try_from(now.saturating_sub(retention).as_micros()).unwrap_or(i64::MAX);
        match self.database.forget(before, FORGET_MOST) {
            // The rest at once, but between two transactions that store.
            Ok(forgotten) if forgotten == u64::from(FORGET_MOST) => return,
            Ok(_) => {}
            Err(Trouble { why }) => {
                tracing::warn!("old entries of the ledger cannot be deleted: {why}");
            }
        }
        self.forget_at = Some(Instant::now() + FORGET_EVERY);
    }

    fn is_here(&mut self) {
        self.backoff = BACKOFF.0;
        let (was_away, left) = {
            let mut state = self.shared.state.lock();
            (mem::take(&mut state.away), state.left())
        };
        if was_away {
            tracing::warn!(
                "the ledger's database is back: {left} bytes of journal are being stored"
            );
        }
    }

    fn is_away(&mut self, why: &str) {
        let shared = self.shared;
        let (was_away, left) = {
            let mut state = shared.state.lock();
            (mem::replace(&mut state.away, true), state.left())
        };
        let dir = shared.dir.display();
        if !was_away {
            tracing::warn!(
                "the ledger's database is away ({why}): entries are kept in {dir} until it is back"
            );
        }
        if left > MUCH_BYTES && !self.told_much {
            tracing::error!("the ledger's journal in {dir} holds {left} bytes by now");
        }
        self.told_much = left > MUCH_BYTES;
        shared.progress.send_modify(|progress| progress.failures += 1);
        let mut state = shared.state.lock();
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

/// A batch of what waits in memory.
fn encode(state: &MutexGuard<'_, State>) -> (Vec<u8>, RangeInclusive<u64>) {
    let mut bytes = Vec::new();
    let first = state.waiting.first().map_or(0, |waiting| waiting.place);
    let mut last = first;
    for Waiting { place, sequence, entry, .. } in state.waiting.iter().take(BATCH) {
        record::encode(*place, *sequence, entry, &mut bytes);
        last = *place;
    }
    (bytes, first..=last)
}

/// Takes out the files that the database has; those that may grow stay, until `all` is over.
fn take_stored(state: &mut State, all: bool) -> Vec<Segment> {
    let is_over = |segment: &Segment| segment.left() == 0 && (segment.sealed || all);
    let (over, kept) = state.segments.drain(..).partition(is_over);
    state.segments = VecDeque::from(kept as Vec<Segment>);
    over
}

/// Deletes files. Takes its time with long ones: nobody may hold the lock meanwhile.
fn delete(stored: Vec<Segment>) {
    for segment in stored {
        if let Err(cause) = fs::remove_file(&segment.path) {
            // Stored again at the next start, which changes nothing.
            tracing::warn!("{} is stored and stays: {cause}", segment.path.display());
        }
    }
}

/// From 0 to 1.
fn chance() -> f64 {
    (RandomState::new().hash_one(BATCH) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::{super::record::tests::entry, *};

    /// A database during whose insert the journal gives its failed batch back.
    struct Interrupted(Arc<Shared>);

    impl Database for Interrupted {
        fn insert(&mut self, _: i64, rows: &[record::Row<'_>]) -> Result<(), Trouble> {
            let mut state = self.0.state.lock();
            if rows[0].sequence == 3 {
                state.waiting.splice(0..0, [waiting(1), waiting(2)]);
            }
            Ok(())
        }

        fn forget(&mut self, _: i64, _: u32) -> Result<u64, Trouble> {
            Ok(0)
        }
    }

    fn waiting(place: u64) -> Waiting {
        Waiting { place, sequence: place, slot: None, entry: entry(place) }
    }

    fn storing(shared: &Arc<Shared>) -> Storing<'_> {
        Storing {
            shared,
            database: Box::new(Interrupted(shared.clone())),
            retention: None,
            forget_at: None,
            backoff: BACKOFF.0,
            last: None,
            window: Vec::new(),
            told_much: false,
            over: false,
        }
    }

    #[test]
    fn old_entries_stayed_while_there_was_always_something_to_store() {
        let dir = tempfile::tempdir().unwrap();
        let mut segment = Segment::create(dir.path(), 7, 0).unwrap();
        segment.len += 1;
        let shared = Shared::nowhere(State { segments: [segment].into(), ..State::default() });
        let mut storing = storing(&shared);
        storing.forget_at = Some(Instant::now());
        // Far ahead, so that the pause is not over before it is looked at.
        storing.last = Some(Instant::now() + Duration::from_secs(3600));
        assert!(matches!(storing.next(), Some(Next::Forget)));
    }

    #[test]
    fn a_batch_that_the_journal_gives_back_meanwhile_is_not_taken_for_stored() {
        let waiting = vec![waiting(3), waiting(4)];
        let shared = Shared::nowhere(State { waiting, journal_fails: true, ..State::default() });
        let mut storing = storing(&shared);
        let left = || shared.state.lock().waiting.iter().map(|waiting| waiting.place).collect();
        for (expected_left, expected_stored) in [(vec![1, 2], 0), (vec![], 2)] {
            let next = storing.next().unwrap();
            storing.advance(next);
            let left: Vec<u64> = left();
            assert_eq!(left, expected_left);
            assert_eq!(shared.progress.borrow().stored, expected_stored);
        }
    }
}
