//! One record of the journal: `magic, length, CRC-32, payload`, little endian.
//!
//! The payload is a fixed head, the row's custom_id and its output line. The magic holds bytes
//! that no JSON text contains, so that the reader can find the next record behind a damaged one.

use crate::request::RequestHash;
use tidegate_core::Usage;

/// First bytes of a journal: name and version.
pub(crate) const FILE_HEAD: &[u8] = b"TGJRNL\x01\n";

/// First bytes of every record.
pub(super) const MAGIC: [u8; 4] = [0x01, b'T', b'G', 0x02];

/// Magic, length, CRC.
pub(super) const FRAME: usize = 12;

/// Longest payload believed: an answer and its row's columns are far below it.
pub(super) const MAX_PAYLOAD: usize = 1 << 30;

/// Index, hash, five numbers, cost, attempts, status, cached, length of the custom_id.
const HEAD: usize = 8 + 16 + 4 * 8 + 8 + 4 + 1 + 1 + 4;

/// Where a record lies in the file, its frame included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// First byte.
    pub(crate) offset: u64,
    /// Length, in bytes.
    pub(crate) len: u32,
}

/// How a row ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Answered.
    Ok,
    /// Failed after all its attempts.
    Failed,
}

/// Everything of a record but its line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Head {
    /// Position in the input.
    pub(crate) index: u64,
    /// What was asked.
    pub(crate) hash: RequestHash,
    /// Fingerprint of the custom_id; see [`identity`].
    pub(crate) custom_id: u32,
    /// How it ended.
    pub(crate) status: Status,
    /// Whether an equal row's answer was used.
    pub(crate) cached: bool,
    /// Attempts made.
    pub(crate) attempts: u32,
    /// Tokens used, all attempts together.
    pub(crate) usage: Usage,
    /// US dollars; `None` when the price is not known.
    pub(crate) cost: Option<f64>,
}

/// Fingerprint of a custom_id; a row without one differs from a row with an empty one.
pub(crate) fn identity(custom_id: Option<&str>) -> u32 {
    match custom_id {
        None => 0,
        Some(id) => crc32fast::hash(id.as_bytes()).max(1),
    }
}

/// Appends a record to `out`; `line` writes the row's output line, newline included.
pub(super) fn encode(out: &mut Vec<u8>, head: &Head, line: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&head.index.to_le_bytes());
    out.extend_from_slice(&head.hash.0);
    let usage = head.usage;
    for number in [usage.input, usage.cached_input, usage.output, usage.reasoning] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&head.cost.unwrap_or(f64::NAN).to_le_bytes());
    out.extend_from_slice(&head.attempts.to_le_bytes());
    out.push(match head.status {
        Status::Ok => 1,
        Status::Failed => 2,
    });
    out.push(u8::from(head.cached));
    out.extend_from_slice(&head.custom_id.to_le_bytes());
    line(out);
    let len = (out.len() - start - FRAME) as u32;
    out[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
    let crc = checksum(len, &out[start + FRAME..]);
    out[start + 8..start + FRAME].copy_from_slice(&crc.to_le_bytes());
}

/// Length of the payload, when `frame` can be the start of a record.
pub(super) fn payload_len(frame: &[u8]) -> Option<usize> {
    if frame.len() < FRAME || frame[..4] != MAGIC {
        return None;
    }
    let len = u32_at(frame, 4) as usize;
    (HEAD..=MAX_PAYLOAD).contains(&len).then_some(len)
}

/// The head and the line of a whole record; `None` when it is damaged.
pub(super) fn decode(record: &[u8]) -> Option<(Head, &[u8])> {
    let len = payload_len(record)?;
    let payload = record.get(FRAME..FRAME + len)?;
    if u32_at(record, 8) != checksum(len as u32, payload) {
        return None;
    }
    let cost = f64::from_bits(u64_at(payload, 56));
    let head = Head {
        index: u64_at(payload, 0),
        hash: RequestHash(payload[8..24].try_into().ok()?),
        usage: Usage {
            input: u64_at(payload, 24),
            cached_input: u64_at(payload, 32),
            output: u64_at(payload, 40),
            reasoning: u64_at(payload, 48),
            // Not kept: what it cost is in the cost.
            cache_write: 0,
        },
        cost: (!cost.is_nan()).then_some(cost),
        attempts: u32_at(payload, 64),
        status: match payload[68] {
            1 => Status::Ok,
            2 => Status::Failed,
            _ => return None,
        },
        cached: payload[69] != 0,
        custom_id: u32_at(payload, 70),
    };
    Some((head, &payload[HEAD..]))
}

/// Over the length too: a flipped bit in it must not make another valid record.
fn checksum(len: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&len.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
