//! An entry as it lies in the journal, and as a database takes it.
//!
//! ```text
//! file:    "TGJOURN2" | writer: u64 | CRC-32 of both: u32
//! record:  "TLE2" | length: u32 | CRC-32 of both and of the payload: u32 | payload
//! payload: place, sequence, at (us), took (us), input, cached, cache_write, output, reasoning,
//!          cost: u64 | attempt: u32 | flags: u8 | nine texts, each: length: u16 | UTF-8
//! ```
//!
//! All numbers are little-endian. What names an entry is its writer, a number drawn at random by
//! each process, and its sequence, which that writer counts up: a caller may send the id of a call
//! twice, so ids of calls name nothing. Its place says how many were written before it; a sequence
//! may have been given to an attempt when it began.
//!
//! What the first version wrote is read too: its head is "TGLEDGR1" and the writer, and its
//! records, "TLE1", have neither place nor `cache_write`, and no magic in their checksum.

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tidegate_core::Entry;

/// The length of what a file begins with.
pub(super) const FILE_HEAD: usize = 20;
/// The same in the first version.
const OLD_FILE_HEAD: usize = 16;
/// Longest text kept of a name; a caller may write a longer one.
const MAX_TEXT_BYTES: usize = 512;
/// Longest record that is read: nine texts, and the numbers.
const MAX_RECORD: usize = FRAME + NUMBERS + TEXTS * (2 + MAX_TEXT_BYTES);
/// Longest record that is written: three of the texts are words of ours.
pub(super) const MAX_WRITTEN: usize =
    FRAME + NUMBERS + (TEXTS - 3) * (2 + MAX_TEXT_BYTES) + 3 * (2 + MAX_WORD_BYTES);
/// No word of ours is longer: causes, operations, classes.
const MAX_WORD_BYTES: usize = 32;

const MAGIC: &[u8; 4] = b"TLE2";
const OLD_MAGIC: &[u8; 4] = b"TLE1";
const FRAME: usize = 12;
const NUMBERS: usize = LONG_NUMBERS * 8 + 4 + 1;
/// Of eight bytes each.
const LONG_NUMBERS: usize = 10;
const TEXTS: usize = 9;
/// The length that says that there is no text.
const NO_TEXT: u16 = u16::MAX;

const TOLD: u8 = 1;
const PRICED: u8 = 2;

/// A row of the table, borrowed from the journal.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row<'a> {
    /// Which one it was in its journal; in no table.
    pub(super) place: u64,
    pub(super) sequence: i64,
    /// Microseconds since 1970.
    pub(super) at: i64,
    /// Microseconds.
    pub(super) took: i64,
    pub(super) call: &'a str,
    pub(super) attempt: i32,
    pub(super) cause: &'a str,
    pub(super) caller: &'a str,
    pub(super) team: Option<&'a str>,
    pub(super) operation: &'a str,
    pub(super) model: &'a str,
    pub(super) upstream: &'a str,
    pub(super) upstream_model: &'a str,
    pub(super) failure: Option<&'a str>,
    pub(super) input: i64,
    pub(super) cached_input: i64,
    pub(super) cache_write: i64,
    pub(super) output: i64,
    pub(super) reasoning: i64,
    pub(super) told: bool,
    /// Picodollars.
    pub(super) cost: Option<i64>,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Records, one after the other.
    Journal,
    /// See [`slots`](super::slots).
    Slots,
}

impl Form {
    const fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Journal => b"TGJOURN2",
            Self::Slots => b"TGSLOTS2",
        }
    }
}

/// The head of a file of `writer`.
pub(super) fn file_head(form: Form, writer: i64) -> [u8; FILE_HEAD] {
    let mut head = [0; FILE_HEAD];
    head[..8].copy_from_slice(form.magic());
    head[8..16].copy_from_slice(&writer.to_le_bytes());
    let sum = crc32fast::hash(&head[..16]);
    head[16..].copy_from_slice(&sum.to_le_bytes());
    head
}

/// The writer of a file of this form that begins with `head`, and how long its head is; `None` when
/// it is none of ours, or damaged: rows of another writer would be stored twice.
pub(super) fn writer_of(form: Form, head: &[u8; FILE_HEAD]) -> Option<(i64, usize)> {
    let writer = i64::from_le_bytes(head[8..16].try_into().expect("eight bytes"));
    if *head == file_head(form, writer) {
        return Some((writer, FILE_HEAD));
    }
    let is_old = form == Form::Journal && head.starts_with(b"TGLEDGR1");
    is_old.then_some((writer, OLD_FILE_HEAD))
}

/// Appends `entry` to `out`.
pub(super) fn encode(place: u64, sequence: u64, entry: &Entry, out: &mut Vec<u8>) {
    let start = out.len();
    let mut head = [0; FRAME + NUMBERS];
    head[..MAGIC.len()].copy_from_slice(MAGIC);
    let usage = entry.usage;
    let numbers: [u64; LONG_NUMBERS] = [
        place,
        sequence,
        micros(entry.at.duration_since(UNIX_EPOCH).unwrap_or_default()),
        micros(entry.took),
        usage.input,
        usage.cached_input,
        usage.cache_write,
        usage.output,
        usage.reasoning,
        entry.cost.map_or(0, |cost| cost.pico()),
    ];
    let (long, short) = head[FRAME..].split_at_mut(LONG_NUMBERS * 8);
    for (to, number) in long.chunks_exact_mut(8).zip(numbers) {
        to.copy_from_slice(&number.to_le_bytes());
    }
    short[..4].copy_from_slice(&entry.attempt.to_le_bytes());
    let (told, priced) = (entry.told, entry.cost.is_some());
    short[4] = if told { TOLD } else { 0 } | if priced { PRICED } else { 0 };
    out.extend_from_slice(&head);
    for text in [
        Some(&*entry.call),
        Some(entry.cause.name()),
        Some(&entry.caller),
        entry.team.as_deref(),
        Some(entry.operation.name()),
        Some(&entry.model),
        Some(&entry.upstream),
        Some(&entry.upstream_model),
        entry.failure.map(|class| class.name()),
    ] {
        put_text(text, out);
    }
    let len = (out.len() - start - FRAME) as u32;
    out[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
    let sum = checksum(MAGIC, len, &out[start + FRAME..]);
    out[start + 8..start + FRAME].copy_from_slice(&sum.to_le_bytes());
}

/// Cut to what is kept, and without the one character PostgreSQL takes in no text.
fn put_text(text: Option<&str>, out: &mut Vec<u8>) {
    let Some(text) = text else { return out.extend_from_slice(&NO_TEXT.to_le_bytes()) };
    let text = &text[..text.floor_char_boundary(MAX_TEXT_BYTES)];
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend(text.bytes().map(|byte| if byte == 0 { b' ' } else { byte }));
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What is at the start of some bytes.
#[derive(Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "moved once, into the batch: a box costs more")]
pub(super) enum Found<'a> {
    /// A whole record, of so many bytes.
    Row(Row<'a>, usize),
    /// The beginning of one, or nothing at all.
    Incomplete,
    /// Something else: the next record is so many bytes further on at least.
    Damaged(usize),
}

/// Reads the record at the start of `bytes`.
pub(super) fn decode(bytes: &[u8]) -> Found<'_> {
    let Some(frame) = bytes.get(..FRAME) else {
        let fits = |magic: &[u8; 4]| bytes.iter().zip(magic).all(|(byte, magic)| byte == magic);
        let begins = fits(MAGIC) || fits(OLD_MAGIC);
        return if begins { Found::Incomplete } else { Found::Damaged(next_magic(bytes)) };
    };
    let magic: &[u8; 4] = frame[..4].try_into().expect("four bytes");
    let len = u32::from_le_bytes(frame[4..8].try_into().expect("four bytes"));
    if !is_magic(magic) || len as usize + FRAME > MAX_RECORD {
        return Found::Damaged(next_magic(bytes));
    }
    let Some(payload) = bytes.get(FRAME..FRAME + len as usize) else { return Found::Incomplete };
    let sum = u32::from_le_bytes(frame[8..].try_into().expect("four bytes"));
    let is_whole = sum == checksum(magic, len, payload);
    match is_whole.then(|| row(payload, magic == OLD_MAGIC)).flatten() {
        Some(row) => Found::Row(row, FRAME + payload.len()),
        None => Found::Damaged(next_magic(bytes)),
    }
}

fn is_magic(bytes: &[u8]) -> bool {
    bytes == MAGIC || bytes == OLD_MAGIC
}

/// Where, after its first byte, `bytes` may hold a record.
pub(super) fn next_magic(bytes: &[u8]) -> usize {
    let rest = bytes.get(1..).unwrap_or_default();
    let found = rest.windows(MAGIC.len()).position(is_magic);
    // The last three bytes may be the beginning of one that is not there as a whole.
    found.map_or_else(|| bytes.len().saturating_sub(MAGIC.len() - 1).max(1), |at| at + 1)
}

fn row(payload: &[u8], is_old: bool) -> Option<Row<'_>> {
    let mut rest = Rest(payload);
    let mut number = |is_there: bool| if is_there { rest.number() } else { Some(0) };
    let (place, sequence) = (number(!is_old)?, number(true)?);
    let [at, took, input, cached_input] = [(); 4].map(|()| number(true));
    let cache_write = number(!is_old)?;
    let [output, reasoning, cost] = [(); 3].map(|()| number(true));
    let attempt = u32::from_le_bytes(rest.take(4)?.try_into().ok()?);
    let flags = rest.take(1)?[0];
    let row = Row {
        // The first version gave both at once.
        place: if is_old { sequence } else { place }.unsigned_abs(),
        sequence,
        at: at?,
        took: took?,
        call: rest.text()??,
        attempt: i32::try_from(attempt).unwrap_or(i32::MAX),
        cause: rest.text()??,
        caller: rest.text()??,
        team: rest.text()?,
        operation: rest.text()??,
        model: rest.text()??,
        upstream: rest.text()??,
        upstream_model: rest.text()??,
        failure: rest.text()?,
        input: input?,
        cached_input: cached_input?,
        cache_write,
        output: output?,
        reasoning: reasoning?,
        told: flags & TOLD != 0,
        cost: if flags & PRICED != 0 { cost } else { None },
    };
    rest.0.is_empty().then_some(row)
}

/// What has not been read of a payload.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    /// Databases know no unsigned numbers; what is beyond theirs stays at the most there is.
    fn number(&mut self) -> Option<i64> {
        let number = u64::from_le_bytes(self.take(8)?.try_into().ok()?);
        Some(i64::try_from(number).unwrap_or(i64::MAX))
    }

    /// The outer `None` is damage, the inner one no text.
    #[expect(clippy::option_option, reason = "damage and absence are different things")]
    fn text(&mut self) -> Option<Option<&'a str>> {
        let len = u16::from_le_bytes(self.take(2)?.try_into().ok()?);
        if len == NO_TEXT {
            return Some(None);
        }
        std::str::from_utf8(self.take(len.into())?).ok().map(Some)
    }
}

/// Over the frame too: a flipped bit in it must not make another valid record.
fn checksum(magic: &[u8; 4], len: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    if magic != OLD_MAGIC {
        hasher.update(magic);
    }
    hasher.update(&len.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// The instant so many microseconds after 1970.
pub(super) fn instant(at: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(at.unsigned_abs())
}

#[cfg(test)]
pub(super) mod tests;
