//! Reading a journal: every record in file order, or one record by its place.

use super::record::{self, FILE_HEAD, FRAME, Head, MAGIC, Place};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

/// What a scan found beside the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// End of the last whole record: what follows is a torn tail.
    pub(crate) end: u64,
    /// Bytes skipped before that end.
    pub(crate) damaged_bytes: u64,
}

/// Shows every whole record of the journal, in the order they were written.
///
/// # Errors
///
/// When the file cannot be read, or is no journal of this version.
pub(crate) fn scan(file: &File, mut each: impl FnMut(Place, Head, &[u8])) -> io::Result<Found> {
    let mut window = Window::sequential(file.try_clone()?);
    match window.at(0, FILE_HEAD.len())? {
        Some(head) if head == FILE_HEAD => {}
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, NOT_OURS)),
    }
    let mut offset = FILE_HEAD.len() as u64;
    let mut found = Found { end: offset, damaged_bytes: 0 };
    loop {
        if let Some(len) = show(&mut window, offset, &mut each)? {
            // What lay between the last whole record and this one was damaged.
            found.damaged_bytes += offset - found.end;
            offset += len;
            found.end = offset;
        } else if let Some(next) = next_magic(&mut window, offset + 1)? {
            offset = next;
        } else {
            return Ok(found);
        }
    }
}

const NOT_OURS: &str = "this is not a journal of this version of tidegate; \
     move the run directory away to start over";

/// Shows the record at `offset` and returns its length, when there is a whole one.
fn show(
    window: &mut Window,
    offset: u64,
    each: &mut impl FnMut(Place, Head, &[u8]),
) -> io::Result<Option<u64>> {
    let Some(payload) = window.at(offset, FRAME)?.and_then(record::payload_len) else {
        return Ok(None);
    };
    let len = FRAME + payload;
    let Some((head, line)) = window.at(offset, len)?.and_then(record::decode) else {
        return Ok(None);
    };
    each(Place { offset, len: len as u32 }, head, line);
    Ok(Some(len as u64))
}

/// The next place at or after `offset` that looks like the start of a record.
fn next_magic(window: &mut Window, mut offset: u64) -> io::Result<Option<u64>> {
    loop {
        let bytes = window.from(offset)?;
        if bytes.len() < MAGIC.len() {
            return Ok(None);
        }
        if let Some(at) = memchr::memmem::find(bytes, &MAGIC) {
            return Ok(Some(offset + at as u64));
        }
        offset += (bytes.len() - MAGIC.len() + 1) as u64;
    }
}

/// Reads a file by place, keeping what it read last.
///
/// Rows are journaled nearly in input order, so reading them back in input order mostly moves
/// forward: while it does, more is read at once; a jump reads no more than was asked for.
pub(crate) struct Window {
    file: File,
    start: u64,
    bytes: Vec<u8>,
    ahead: usize,
}

const AHEAD_MIN: usize = 4 << 10;
const AHEAD_MAX: usize = 1 << 20;

impl Window {
    /// For reading from front to back.
    fn sequential(file: File) -> Self {
        Self { file, start: 0, bytes: Vec::new(), ahead: AHEAD_MAX }
    }

    /// For reading by place.
    pub(crate) fn new(file: File) -> Self {
        Self { file, start: 0, bytes: Vec::new(), ahead: AHEAD_MIN }
    }

    /// The head and the line of the record at `place`.
    ///
    /// # Errors
    ///
    /// When it cannot be read or is damaged.
    pub(crate) fn record(&mut self, place: Place) -> io::Result<(Head, &[u8])> {
        self.at(place.offset, place.len as usize)?.and_then(record::decode).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the journal is damaged at byte {}; run the same command again: the row \
                     there is called once more",
                    place.offset
                ),
            )
        })
    }

    /// `len` bytes at `offset`; `None` when the file ends before.
    fn at(&mut self, offset: u64, len: usize) -> io::Result<Option<&[u8]>> {
        if offset < self.start || offset + len as u64 > self.end() {
            self.fill(offset, len)?;
        }
        let from = (offset - self.start) as usize;
        Ok(self.bytes.get(from..from + len))
    }

    /// All that is at hand from `offset` on; empty at the end of the file.
    fn from(&mut self, offset: u64) -> io::Result<&[u8]> {
        if offset < self.start || offset + MAGIC.len() as u64 > self.end() {
            self.fill(offset, MAGIC.len())?;
        }
        Ok(&self.bytes[(offset - self.start) as usize..])
    }

    fn fill(&mut self, offset: u64, len: usize) -> io::Result<()> {
        let forward = offset >= self.start && offset < self.end() + self.ahead as u64;
        self.ahead = if forward { (self.ahead * 2).min(AHEAD_MAX) } else { AHEAD_MIN };
        self.start = offset;
        self.bytes.clear();
        self.file.seek(SeekFrom::Start(offset))?;
        let mut part = (&self.file).take(len.max(self.ahead) as u64);
        part.read_to_end(&mut self.bytes)?;
        Ok(())
    }

    const fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}
