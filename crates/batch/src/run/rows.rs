//! What is known of every row: where its record lies, and whether it stands.
//!
//! 24 bytes a row, so a million rows resume in 24 MB.

use crate::{
    Failure,
    job::Only,
    journal::{self, Head, Place, Repaired, Status, Window},
    output,
    request::RequestHash,
};
use std::{collections::BTreeMap, fs::File, path::Path};
use tidegate_core::Usage;

/// The journal in memory.
pub(super) struct Rows {
    entries: Vec<Entry>,
    /// Rows in the journal that the input no longer has.
    pub(super) removed: u64,
    pub(super) repaired: Repaired,
    /// All that was paid, for rows called again too.
    pub(super) paid: Paid,
    pub(super) tally: Tally,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    offset: u64,
    hash: u64,
    len: u32,
    custom_id: u32,
}

/// The top two bits of an offset say how the row ended and whether that stands.
const FAILED: u64 = 1 << 63;
const STANDS: u64 = 1 << 62;
const CACHED: u64 = 1 << 61;
const OFFSET: u64 = CACHED - 1;

/// What the attempts of all records cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paid {
    pub(super) attempts: u64,
    pub(super) usage: Usage,
    /// `None` when the price of some record is unknown.
    pub(super) cost: Option<f64>,
}

impl Default for Paid {
    fn default() -> Self {
        Self { attempts: 0, usage: Usage::default(), cost: Some(0.0) }
    }
}

/// Rows that stand, by how they ended.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) ok: u64,
    pub(super) failed: u64,
    pub(super) cached: u64,
    pub(super) failed_by_class: BTreeMap<String, u64>,
}

/// What the journal says of a row as it is in the input now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing.
    New,
    /// It ended so.
    Done(Status),
    /// The row has another request or id now.
    Changed(Status),
}

impl Rows {
    /// Reads the journal at `path` for an input of `rows` rows.
    ///
    /// # Errors
    ///
    /// When it cannot be read or repaired.
    pub(super) fn open(path: &Path, rows: u64) -> Result<(Self, File, u64), Failure> {
        let mut this = Self {
            entries: vec![Entry::default(); rows as usize],
            removed: 0,
            repaired: Repaired::default(),
            paid: Paid::default(),
            tally: Tally::default(),
        };
        let mut foreign = Vec::new();
        let (file, end, repaired) = journal::open(path, |place, head, _| {
            this.paid.add(&head);
            match this.entries.get_mut(head.index as usize) {
                Some(entry) => *entry = Entry::of(place, &head),
                None => foreign.push(head.index),
            }
        })
        .map_err(|error| Failure::io("open the journal", path, error))?;
        foreign.sort_unstable();
        foreign.dedup();
        this.removed = foreign.len() as u64;
        this.repaired = repaired;
        Ok((this, file, end))
    }

    /// What is known of a row whose request is `hash` now.
    pub(super) fn known(
        &self,
        row: u32,
        hash: RequestHash,
        custom_id: impl FnOnce() -> u32,
    ) -> Known {
        let entry = &self.entries[row as usize];
        if entry.len == 0 {
            return Known::New;
        }
        if entry.hash == prefix(hash) && entry.custom_id == custom_id() {
            Known::Done(entry.status())
        } else {
            Known::Changed(entry.status())
        }
    }

    /// Lets a row's record stand.
    pub(super) fn accept(&mut self, row: u32) {
        let entry = &mut self.entries[row as usize];
        entry.offset |= STANDS;
        match entry.status() {
            Status::Ok => self.tally.ok += 1,
            Status::Failed => self.tally.failed += 1,
        }
        self.tally.cached += u64::from(entry.offset & CACHED != 0);
    }

    /// Takes the record just appended for a row; `class` is that of its error.
    pub(super) fn record(&mut self, row: u32, place: Place, head: &Head, class: Option<&str>) {
        self.paid.add(head);
        self.entries[row as usize] = Entry::of(place, head);
        self.accept(row);
        if let Some(class) = class {
            self.tally.count(class);
        }
    }

    /// Where the record of a row lies, when it stands.
    pub(super) fn place(&self, row: u32) -> Option<Place> {
        let entry = &self.entries[row as usize];
        (entry.offset & STANDS != 0)
            .then_some(Place { offset: entry.offset & OFFSET, len: entry.len })
    }

    /// How a row that stands ended.
    pub(super) fn ended(&self, row: u32) -> Option<Status> {
        self.place(row).map(|_| self.entries[row as usize].status())
    }

    /// Counts the classes of failed `rows`, and takes back those that `only` wants to run again.
    ///
    /// # Errors
    ///
    /// When the journal cannot be read.
    pub(super) fn classify(
        &mut self,
        journal: &Path,
        rows: &[u32],
        only: Option<&Only>,
    ) -> Result<u64, Failure> {
        let failed = |error| Failure::io("read the journal", journal, error);
        let mut again = 0;
        let mut window = None;
        for &row in rows {
            let Some(place) = self.place(row) else { continue };
            if self.entries[row as usize].status() == Status::Ok {
                continue;
            }
            let window = match &mut window {
                Some(window) => window,
                none => none.insert(Window::new(File::open(journal).map_err(failed)?)),
            };
            let (_, line) = window.record(place).map_err(failed)?;
            let line = output::read(line).map_err(failed)?;
            let Some(error) = line.error else { continue };
            let wanted = match only {
                None => false,
                Some(Only::All) => true,
                Some(Only::Class(class)) => *class == error.class,
                Some(Only::Code(code)) => *code == error.code,
            };
            if wanted {
                self.entries[row as usize].offset &= !STANDS;
                self.tally.failed -= 1;
                again += 1;
            } else {
                self.tally.count(&error.class);
            }
        }
        Ok(again)
    }
}

impl Entry {
    fn of(place: Place, head: &Head) -> Self {
        let failed = if head.status == Status::Failed { FAILED } else { 0 };
        let cached = if head.cached { CACHED } else { 0 };
        Self {
            offset: place.offset | failed | cached,
            hash: prefix(head.hash),
            len: place.len,
            custom_id: head.custom_id,
        }
    }

    const fn status(&self) -> Status {
        if self.offset & FAILED == 0 { Status::Ok } else { Status::Failed }
    }
}

impl Paid {
    fn add(&mut self, head: &Head) {
        self.attempts += u64::from(head.attempts);
        self.usage.input += head.usage.input;
        self.usage.cached_input += head.usage.cached_input;
        self.usage.output += head.usage.output;
        self.usage.reasoning += head.usage.reasoning;
        self.cost = self.cost.zip(head.cost).map(|(sum, cost)| sum + cost);
    }
}

impl Tally {
    /// Rows that stand.
    pub(super) const fn done(&self) -> u64 {
        self.ok + self.failed
    }

    fn count(&mut self, class: &str) {
        match self.failed_by_class.get_mut(class) {
            Some(rows) => *rows += 1,
            None => {
                self.failed_by_class.insert(class.to_owned(), 1);
            }
        }
    }
}

fn prefix(hash: RequestHash) -> u64 {
    u64::from_le_bytes(hash.0[..8].try_into().expect("eight bytes"))
}
