//! The first thread: from memory into the journal, every ten milliseconds.
//!
//! Writing a file hands the bytes to the system, which keeps them when this process is killed.
//! Bringing them to the disk itself takes long, and is done only when the database has not taken
//! them for a second: it syncs what it commits.

use super::{
    journal::Segment,
    record,
    shared::{Shared, State, Waiting},
};
use parking_lot::MutexGuard;
use std::{
    io, mem,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long entries are gathered before they are written together.
const GATHER: Duration = Duration::from_millis(10);
/// Longest time an entry that no database has is not on the disk itself.
const SYNC_EVERY: Duration = Duration::from_secs(1);
/// How long after it could not be written the journal is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Runs until the ledger stops and everything is written.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut journaling = Journaling::new(shared);
    while journaling.step() {}
    let mut state = shared.state.lock();
    state.journal_done = true;
    shared.journaled.notify_one();
}

struct Journaling<'a> {
    shared: &'a Shared,
    /// Number of the next file.
    number: u64,
    batch: Vec<Waiting>,
    /// The last batch had entries: there will be more.
    is_busy: bool,
    bytes: Vec<u8>,
    /// When the oldest of what was not synced was written.
    unsynced_since: Option<Instant>,
}

impl<'a> Journaling<'a> {
    const fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            number: 0,
            batch: Vec::new(),
            is_busy: false,
            bytes: Vec::new(),
            unsynced_since: None,
        }
    }

    /// Waits for entries and writes them; `false` at the end.
    fn step(&mut self) -> bool {
        let stopping = self.gather();
        if self.batch.is_empty() {
            // Whether the journal can be written is not known before there is something to write.
            self.sync_if_due(&mut self.shared.state.lock());
            return !stopping;
        }
        let written = self.append();
        let failed = written.is_err();
        let shared = self.shared;
        let (did_fail, wakes_store) = {
            let mut state = shared.state.lock();
            if failed {
                // In front of those that came meanwhile.
                self.batch.append(&mut state.waiting);
                mem::swap(&mut self.batch, &mut state.waiting);
            }
            (mem::replace(&mut state.journal_fails, failed), state.wakes_store())
        };
        if wakes_store {
            shared.journaled.notify_one();
        }
        match written {
            Err(cause) if !did_fail => tracing::error!(
                "the ledger's journal in {} cannot be written ({cause}): entries wait in memory \
                 until it can, and go to the database from there",
                shared.dir.display()
            ),
            Ok(()) if did_fail => tracing::warn!("the ledger's journal can be written again"),
            _ => {}
        }
        if failed && !stopping {
            let mut state = shared.state.lock();
            shared.arrived.wait_while_for(&mut state, |state| !state.stopping, TRY_AGAIN);
        }
        !stopping
    }

    /// Takes what came in; whether the end has come.
    ///
    /// While there is much to do nobody wakes it: it looks again by itself.
    fn gather(&mut self) -> bool {
        let shared = self.shared;
        let mut state = shared.state.lock();
        while state.waiting.is_empty() && !state.stopping && !self.is_busy {
            state.journal_sleeps = true;
            match self.unsynced_since {
                None => shared.arrived.wait(&mut state),
                Some(since) => {
                    shared.arrived.wait_until(&mut state, since + SYNC_EVERY);
                    self.sync_if_due(&mut state);
                }
            }
            state.journal_sleeps = false;
        }
        shared.arrived.wait_while_for(&mut state, |state| !state.stopping, GATHER);
        self.batch.clear();
        mem::swap(&mut self.batch, &mut state.waiting);
        self.is_busy = !self.batch.is_empty();
        state.stopping
    }

    /// Writes the batch and, when it is time, brings it to the disk.
    fn append(&mut self) -> io::Result<()> {
        let shared = self.shared;
        self.bytes.clear();
        for Waiting { place, sequence, entry, .. } in &self.batch {
            record::encode(*place, *sequence, entry, &mut self.bytes);
        }
        let segment = self.segment()?;
        segment.write(&self.bytes)?;
        let mut state = shared.state.lock();
        let current = state.segments.back_mut().expect("what is not sealed is not taken away");
        current.len += self.bytes.len() as u64;
        drop(state);
        self.unsynced_since.get_or_insert_with(Instant::now);
        let slots: Vec<u32> = self.batch.drain(..).filter_map(|waiting| waiting.slot).collect();
        shared.slots.give_back(&slots);
        self.sync_if_due(&mut shared.state.lock());
        Ok(())
    }

    /// The file the batch goes into.
    fn segment(&mut self) -> io::Result<Segment> {
        let shared = self.shared;
        {
            let mut state = shared.state.lock();
            match state.segments.back_mut() {
                Some(current) if !current.sealed && !current.is_full() => {
                    return Ok(current.clone());
                }
                Some(full) => full.sealed = true,
                None => {}
            }
        }
        let made = Segment::create(&shared.dir, shared.writer, self.number)?;
        self.number += 1;
        shared.state.lock().segments.push_back(made.clone());
        Ok(made)
    }

    /// Syncs what has lain unstored for too long, and at the end. The lock is not held meanwhile.
    fn sync_if_due(&mut self, state: &mut MutexGuard<'_, State>) {
        let due = |since: Instant| state.stopping || since.elapsed() >= SYNC_EVERY;
        if !self.unsynced_since.is_some_and(due) {
            return;
        }
        self.unsynced_since = None;
        let unstored: Vec<Segment> =
            state.segments.iter().filter(|segment| segment.left() > 0).cloned().collect();
        if unstored.is_empty() {
            return;
        }
        MutexGuard::unlocked(state, || {
            // The last two at most: a file is as long as a second's entries.
            for segment in unstored.iter().rev().take(2) {
                if let Err(cause) = segment.sync() {
                    let path = segment.path.display();
                    tracing::error!("the ledger's journal {path} cannot be synced: {cause}");
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{super::record::tests::entry, *};

    #[test]
    fn a_journal_was_said_to_be_writable_when_there_was_nothing_to_write() {
        let waiting = vec![Waiting { place: 1, sequence: 1, slot: None, entry: entry(1) }];
        let shared = Shared::nowhere(State { waiting, stopping: true, ..State::default() });
        let mut journaling = Journaling::new(&shared);
        for left in [1, 0] {
            journaling.step();
            let mut state = shared.state.lock();
            assert!(state.journal_fails);
            assert_eq!(state.waiting.len(), left);
            // As when the database's thread has stored it.
            state.waiting.clear();
        }
    }
}
