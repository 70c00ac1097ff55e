//! An entry as it lies in the journal, and as a database takes it.
//!
//! ```text
//! file:    "TGLEDGR1" | writer: u64
//! record:  "TLE1" | length: u32 | CRC-32 of length and payload: u32 | payload
//! payload: sequence, at (us), took (us), input, cached, output, reasoning, cost: u64
//!          attempt: u32 | flags: u8 | nine texts, each: length: u16 | UTF-8
//! ```
//!
//! All numbers are little-endian. What names an entry is its writer, a number drawn at random by
//! each process, and its place in that writer's sequence: a caller may send the id of a call
//! twice, so ids of calls name nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tidegate_core::Entry;

/// What a journal begins with.
pub(super) const FILE_MAGIC: &[u8; 8] = b"TGLEDGR1";
/// The magic, and the writer.
pub(super) const FILE_HEAD: usize = 16;
/// Longest text kept of a name; a caller may write a longer one.
const MAX_TEXT_BYTES: usize = 512;
/// Longest record: nine texts, and the numbers.
pub(super) const MAX_RECORD: usize = FRAME + NUMBERS + TEXTS * (2 + MAX_TEXT_BYTES);

const MAGIC: &[u8; 4] = b"TLE1";
const FRAME: usize = 12;
const NUMBERS: usize = 8 * 8 + 4 + 1;
const TEXTS: usize = 9;
/// The length that says that there is no text.
const NO_TEXT: u16 = u16::MAX;

const TOLD: u8 = 1;
const PRICED: u8 = 2;

/// A row of the table, borrowed from the journal.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row<'a> {
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
    pub(super) output: i64,
    pub(super) reasoning: i64,
    pub(super) told: bool,
    /// Picodollars.
    pub(super) cost: Option<i64>,
}

/// The head of a file of `writer`.
pub(super) fn file_head(writer: i64) -> [u8; FILE_HEAD] {
    let mut head = [0; FILE_HEAD];
    head[..8].copy_from_slice(FILE_MAGIC);
    head[8..].copy_from_slice(&writer.to_le_bytes());
    head
}

/// The writer of a file that begins with `head`; `None` when it is no journal of ours.
pub(super) fn writer_of(head: &[u8]) -> Option<i64> {
    let writer = head.get(8..FILE_HEAD)?;
    (&head[..8] == FILE_MAGIC).then(|| i64::from_le_bytes(writer.try_into().expect("eight bytes")))
}

/// Appends `entry` to `out`.
pub(super) fn encode(sequence: u64, entry: &Entry, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[0; FRAME - MAGIC.len()]);
    let usage = entry.usage;
    for number in [
        sequence,
        micros(entry.at.duration_since(UNIX_EPOCH).unwrap_or_default()),
        micros(entry.took),
        usage.input,
        usage.cached_input,
        usage.output,
        usage.reasoning,
        entry.cost.map_or(0, |cost| cost.pico()),
    ] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&entry.attempt.to_le_bytes());
    let (told, priced) = (entry.told, entry.cost.is_some());
    out.push(if told { TOLD } else { 0 } | if priced { PRICED } else { 0 });
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
    let sum = checksum(len, &out[start + FRAME..]);
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
        let fits = bytes.iter().zip(MAGIC).all(|(byte, magic)| byte == magic);
        return if fits { Found::Incomplete } else { Found::Damaged(next_magic(bytes)) };
    };
    let len = u32::from_le_bytes(frame[4..8].try_into().expect("four bytes"));
    if &frame[..4] != MAGIC || len as usize + FRAME > MAX_RECORD {
        return Found::Damaged(next_magic(bytes));
    }
    let Some(payload) = bytes.get(FRAME..FRAME + len as usize) else { return Found::Incomplete };
    let sum = u32::from_le_bytes(frame[8..].try_into().expect("four bytes"));
    match (sum == checksum(len, payload)).then(|| row(payload)).flatten() {
        Some(row) => Found::Row(row, FRAME + payload.len()),
        None => Found::Damaged(next_magic(bytes)),
    }
}

/// Where, after its first byte, `bytes` may hold a record.
pub(super) fn next_magic(bytes: &[u8]) -> usize {
    let rest = bytes.get(1..).unwrap_or_default();
    let found = rest.windows(MAGIC.len()).position(|window| window == MAGIC);
    // The last three bytes may be the beginning of one that is not there as a whole.
    found.map_or_else(|| bytes.len().saturating_sub(MAGIC.len() - 1).max(1), |at| at + 1)
}

fn row(payload: &[u8]) -> Option<Row<'_>> {
    let mut rest = Rest(payload);
    let [sequence, at, took, input, cached_input, output, reasoning, cost] =
        [(); 8].map(|()| rest.number());
    let attempt = u32::from_le_bytes(rest.take(4)?.try_into().ok()?);
    let flags = rest.take(1)?[0];
    let row = Row {
        sequence: sequence?,
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

/// Over the length too: a flipped bit in it must not make another valid record.
fn checksum(len: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&len.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

/// The instant so many microseconds after 1970.
pub(super) fn instant(at: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(at.unsigned_abs())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use tidegate_core::{Cause, Class, Money, Operation, Usage};

    pub(in crate::ledger) fn entry(index: u64) -> Entry {
        Entry {
            call: format!("req-{index}").into(),
            attempt: 2,
            cause: Cause::Retry,
            at: UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456),
            took: Duration::from_micros(250),
            caller: "c".into(),
            team: index.is_multiple_of(2).then(|| "t".into()),
            operation: Operation::ChatCompletions,
            model: "m".into(),
            upstream: "u".into(),
            upstream_model: "um".into(),
            failure: (!index.is_multiple_of(2)).then_some(Class::Fault),
            usage: Usage { input: 1, cached_input: 2, cache_write: 0, output: 3, reasoning: 4 },
            told: true,
            cost: (index != 3).then(|| Money::from_pico(7)),
        }
    }

    fn written() -> Vec<u8> {
        let mut bytes = Vec::new();
        (0..4).for_each(|index| encode(index, &entry(index), &mut bytes));
        bytes
    }

    /// The sequences of every row that can be read, and the bytes that could not.
    fn read(mut bytes: &[u8]) -> (Vec<i64>, usize) {
        let (mut seen, mut damaged) = (Vec::new(), 0);
        loop {
            match decode(bytes) {
                Found::Row(row, len) => {
                    seen.push(row.sequence);
                    bytes = &bytes[len..];
                }
                Found::Damaged(len) if len < bytes.len() => {
                    damaged += len;
                    bytes = &bytes[len..];
                }
                // The end of the file: a damaged length reaches beyond it.
                Found::Incomplete if next_magic(bytes) + FRAME < bytes.len() => {
                    damaged += next_magic(bytes);
                    bytes = &bytes[next_magic(bytes)..];
                }
                Found::Damaged(_) | Found::Incomplete => return (seen, damaged),
            }
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let bytes = written();
        let Found::Row(row, _) = decode(&bytes) else { panic!("no row") };
        assert_eq!(
            (row.call, row.cause, row.team, row.failure),
            ("req-0", "retry", Some("t"), None)
        );
        assert_eq!((row.at, row.took, row.attempt), (1_700_000_000_123_456, 250, 2));
        assert_eq!((row.input, row.cached_input, row.output, row.reasoning), (1, 2, 3, 4));
        assert_eq!((row.told, row.cost, row.operation), (true, Some(7), "chat"));
        assert_eq!(read(&bytes), (vec![0, 1, 2, 3], 0));
    }

    #[test]
    fn a_tail_torn_at_any_byte_loses_only_its_own_record() {
        let bytes = written();
        let ends: Vec<usize> = (0..4)
            .scan(0, |end, _| {
                let Found::Row(_, len) = decode(&bytes[*end..]) else { panic!("no row") };
                *end += len;
                Some(*end)
            })
            .collect();
        for cut in 0..bytes.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count() as i64;
            assert_eq!(read(&bytes[..cut]), ((0..whole).collect(), 0), "cut at {cut}");
        }
    }

    #[test]
    fn a_byte_flipped_anywhere_loses_one_record() {
        let bytes = written();
        for at in 0..bytes.len() {
            let mut spoilt = bytes.clone();
            spoilt[at] ^= 0x10;
            let (seen, _) = read(&spoilt);
            assert_eq!(seen.len(), 3, "flipped at {at}: {seen:?}");
        }
    }

    #[test]
    fn what_no_database_takes_is_made_to_fit() {
        let long = Entry {
            model: "ä".repeat(1_000).into(),
            caller: "a\0b".into(),
            usage: Usage { input: u64::MAX, ..Usage::default() },
            cost: Some(Money::from_pico(u64::MAX)),
            ..entry(0)
        };
        let mut bytes = Vec::new();
        encode(0, &long, &mut bytes);
        let Found::Row(row, _) = decode(&bytes) else { panic!("no row") };
        assert_eq!((row.model.len(), row.caller), (512, "a b"));
        assert_eq!((row.input, row.cost), (i64::MAX, Some(i64::MAX)));
    }
}
