//! What attempts in flight may come to, in a file: `ledger-journal/WRITER.slots`.
//!
//! ```text
//! | head | slot | slot | slot | …       each of 4 KiB: empty, or a record as in the journal
//! ```
//!
//! *Why:* an entry is written when its attempt has ended. Of a process that is killed (`kill -9`)
//! nobody would know what was in flight, and after each such end a hard budget would have that much
//! again. So what a hard budget pays for lies here from before it is sent until its entry is in the
//! journal, at the most it can cost, under the name its entry will have: whatever is stored of the
//! two first, it is stored once.
//!
//! Each costs one write of a few hundred bytes into the system's memory, which outlives this
//! process. Nothing is synced, so it waits for the disk only where the system makes all writers wait
//! because too much is unwritten. A slot is a page, so no write is torn by a kill, and is made of
//! zeros before it is used: a disk that is full by then takes it all the same. The file grows with
//! what is in flight, and is deleted at the end when it is empty.

use super::{
    journal::{self, Batch},
    record::{self, FILE_HEAD, Form, Found},
};
use parking_lot::Mutex;
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tidegate_core::Entry;

pub(super) const EXTENSION: &str = "slots";

/// A page: what is written within one is there or not. The head has one too.
pub(super) const SLOT_BYTES: u64 = 4 << 10;
/// Attempts that can be in here at once, in 64 MiB. Those beyond are in flight without.
pub(super) const MAX_SLOTS: u32 = 16 << 10;
/// Slots that are made at once.
const GROWTH: u32 = 64;
/// How long after it could not be made longer that is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// What an empty slot begins with.
const EMPTY: [u8; 4] = [0; 4];

const _: () = assert!(record::MAX_WRITTEN as u64 <= SLOT_BYTES && FILE_HEAD as u64 <= SLOT_BYTES);

/// The slots of this process.
pub(super) struct Slots {
    path: PathBuf,
    writer: i64,
    /// How many there may be.
    most: u32,
    held: Mutex<Held>,
    /// Attempts that are in flight without a slot, or were.
    without: AtomicU64,
}

#[derive(Default)]
struct Held {
    /// Made with the first attempt that needs it.
    file: Option<Arc<File>>,
    /// How many there are.
    made: u32,
    /// Of these, those that are empty; the last one given back is the next one used.
    free: Vec<u32>,
    failed: Option<Instant>,
    closed: bool,
}

impl Slots {
    /// At most `most` of `writer`, in the journal's directory. Nothing is made yet.
    pub(super) fn new(dir: &Path, writer: i64, most: u32) -> Self {
        let path = dir.join(format!("{:016x}.{EXTENSION}", writer.cast_unsigned()));
        Self { path, writer, most, held: Mutex::default(), without: AtomicU64::new(0) }
    }

    /// Writes `most`, whose entry will be called `sequence`, into a slot of its own. `None` where
    /// there is none: that is said in the log, and holds up nothing.
    pub(super) fn put(&self, sequence: u64, most: &Entry) -> Option<u32> {
        let put = self.take().and_then(|(file, slot)| {
            let mut bytes = Vec::with_capacity(512);
            record::encode(0, sequence, most, &mut bytes);
            let written = journal::write_at(&file, &bytes, offset(slot));
            // Whatever was written of it is written over by the next one.
            written.inspect_err(|_| self.held.lock().free.push(slot))?;
            Ok(slot)
        });
        match put {
            Ok(slot) => Some(slot),
            Err(why) => {
                self.count(&why);
                None
            }
        }
    }

    /// Empties slots whose entries are in the journal or in the database.
    pub(super) fn give_back(&self, slots: &[u32]) {
        if slots.is_empty() {
            return;
        }
        let Some(file) = self.held.lock().file.clone() else { return };
        for slot in slots {
            // One that stays full is a duplicate: its entry has the same name.
            drop(journal::write_at(&file, &EMPTY, offset(*slot)));
        }
        self.held.lock().free.extend_from_slice(slots);
    }

    /// Ends it. The file is deleted, unless something is in it: the next start enters that.
    pub(super) fn close(&self) {
        let mut held = self.held.lock();
        held.closed = true;
        // Its lock goes with it: whoever starts next may take it over.
        let file = held.file.take();
        if file.is_some()
            && held.free.len() == held.made as usize
            && let Err(cause) = fs::remove_file(&self.path)
        {
            tracing::warn!("{} is empty and stays: {cause}", self.path.display());
        }
    }

    /// How many attempts were sent without a slot.
    pub(super) fn without(&self) -> u64 {
        self.without.load(Relaxed)
    }

    /// An empty slot.
    fn take(&self) -> io::Result<(Arc<File>, u32)> {
        let mut held = self.held.lock();
        if held.closed {
            return Err(io::Error::other("the ledger has ended"));
        }
        if held.free.is_empty() {
            self.grow(&mut held)?;
        }
        let slot = held.free.pop().expect("it has grown");
        let file = held.file.clone().expect("what has slots has a file");
        Ok((file, slot))
    }

    fn count(&self, why: &io::Error) {
        let without = self.without.fetch_add(1, Relaxed) + 1;
        if without.is_power_of_two() {
            let path = self.path.display();
            tracing::error!(
                "an attempt that a hard budget pays for was sent without being noted in {path} \
                 ({why}), {without} so far: if this process is killed meanwhile, nobody knows of it"
            );
        }
    }

    /// Makes more slots.
    fn grow(&self, held: &mut Held) -> io::Result<()> {
        if held.made >= self.most {
            return Err(io::Error::other(format!("{} others are in flight", self.most)));
        }
        if held.failed.is_some_and(|failed| failed.elapsed() < TRY_AGAIN) {
            return Err(io::Error::other("it cannot be written"));
        }
        let grown = held.grow(&self.path, self.writer);
        held.failed = grown.is_err().then(Instant::now);
        grown
    }
}

impl Held {
    fn grow(&mut self, path: &Path, writer: i64) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file.clone(),
            None => {
                let made = Arc::new(journal::create(path, Form::Slots, writer)?);
                self.file.insert(made).clone()
            }
        };
        let zeros = vec![0; GROWTH as usize * SLOT_BYTES as usize];
        journal::write_at(&file, &zeros, offset(self.made))?;
        self.free.extend((self.made..self.made + GROWTH).rev());
        self.made += GROWTH;
        Ok(())
    }
}

/// Where a slot begins: after the head's page.
fn offset(slot: u32) -> u64 {
    (u64::from(slot) + 1) * SLOT_BYTES
}

/// The rows of some slots. Those whose bytes are not what was written count as damaged.
pub(super) fn rows(window: &[u8]) -> Batch<'_> {
    let mut batch = Batch { rows: Vec::new(), len: window.len(), damaged: 0 };
    for slot in window.chunks(SLOT_BYTES as usize) {
        if slot.iter().zip(EMPTY).all(|(byte, empty)| *byte == empty) {
            continue;
        }
        match record::decode(slot) {
            Found::Row(row, _) => batch.rows.push(row),
            Found::Incomplete | Found::Damaged(_) => batch.damaged += slot.len(),
        }
    }
    batch
}

#[cfg(test)]
mod tests;
