//! What is written is read back, whatever befalls it on the way.

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
        usage: Usage { input: 1, cached_input: 2, cache_write: 5, output: 3, reasoning: 4 },
        told: true,
        cost: (index != 3).then(|| Money::from_pico(7)),
    }
}

fn written() -> Vec<u8> {
    let mut bytes = Vec::new();
    (0..4).for_each(|index| encode(index + 10, index, &entry(index), &mut bytes));
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
    assert_eq!((row.call, row.cause, row.team, row.failure), ("req-0", "retry", Some("t"), None));
    assert_eq!((row.at, row.took, row.attempt), (1_700_000_000_123_456, 250, 2));
    assert_eq!((row.input, row.cached_input, row.output, row.reasoning), (1, 2, 3, 4));
    assert_eq!((row.place, row.sequence, row.cache_write), (10, 0, 5));
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
    encode(0, 0, &long, &mut bytes);
    let Found::Row(row, _) = decode(&bytes) else { panic!("no row") };
    assert_eq!((row.model.len(), row.caller), (512, "a b"));
    assert_eq!((row.input, row.cost), (i64::MAX, Some(i64::MAX)));
}

#[test]
fn no_record_that_is_written_is_longer_than_was_said() {
    let name = || "n".repeat(1_000);
    let causes = Cause::ALL.map(Cause::name).into_iter();
    let mut words = causes.chain(Operation::ALL.map(Operation::name));
    assert!(words.all(|word| word.len() <= MAX_WORD_BYTES));
    let long = Entry {
        call: name().into(),
        caller: name().into(),
        team: Some(name().into()),
        model: name().into(),
        upstream: name().into(),
        upstream_model: name().into(),
        failure: Some(Class::Credential),
        ..entry(0)
    };
    let mut bytes = Vec::new();
    encode(u64::MAX, u64::MAX, &long, &mut bytes);
    assert!(bytes.len() <= MAX_WRITTEN, "{}", bytes.len());
    assert!(matches!(decode(&bytes), Found::Row(..)));
}

/// A record as the first version wrote it.
pub(in crate::ledger) fn old(sequence: u64, entry: &Entry) -> Vec<u8> {
    let mut new = Vec::new();
    encode(0, sequence, entry, &mut new);
    let mut payload = new[FRAME + 8..].to_vec();
    payload.drain(5 * 8..6 * 8);
    let len = payload.len() as u32;
    let mut bytes = OLD_MAGIC.to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(checksum(OLD_MAGIC, len, &payload).to_le_bytes());
    bytes.extend(payload);
    bytes
}

#[test]
fn what_the_first_version_wrote_is_read() {
    let bytes = [old(1, &entry(1)), old(2, &entry(2))].concat();
    assert_eq!(read(&bytes), (vec![1, 2], 0));
    let Found::Row(row, _) = decode(&bytes) else { panic!("no row") };
    assert_eq!((row.place, row.cached_input, row.cache_write, row.output), (1, 2, 0, 3));
    assert_eq!((row.reasoning, row.cost, row.call), (4, Some(7), "req-1"));
}

#[test]
fn a_head_with_a_flipped_bit_is_nobodys() {
    for form in [Form::Journal, Form::Slots] {
        let head = file_head(form, -7);
        assert_eq!(writer_of(form, &head), Some((-7, FILE_HEAD)));
        for bit in 0..FILE_HEAD * 8 {
            let mut spoilt = head;
            spoilt[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(writer_of(form, &spoilt), None, "flipped at {bit}");
        }
    }
    let mut old = [0; FILE_HEAD];
    old[..8].copy_from_slice(b"TGLEDGR1");
    old[8] = 7;
    assert_eq!(writer_of(Form::Journal, &old), Some((7, OLD_FILE_HEAD)));
    assert_eq!(writer_of(Form::Slots, &old), None);
}
