//! What is put is found, as long as it was not given back.

use super::{super::record::tests::entry, *};

fn slots(dir: &Path, most: u32) -> Slots {
    Slots::new(dir, 7, most)
}

/// The sequences in the file, and how many bytes of it are damaged.
fn found(dir: &Path) -> (Vec<i64>, usize) {
    let file = fs::read(dir.join("0000000000000007.slots")).unwrap();
    let batch = rows(&file[SLOT_BYTES as usize..]);
    let mut sequences: Vec<i64> = batch.rows.iter().map(|row| row.sequence).collect();
    sequences.sort_unstable();
    (sequences, batch.damaged)
}

#[test]
fn what_is_in_flight_is_in_the_file_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let slots = slots(dir.path(), MAX_SLOTS);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nobody needs it yet");
    let put: Vec<u32> = (0..200).map(|n| slots.put(n, &entry(n)).unwrap()).collect();
    assert_eq!(found(dir.path()), ((0..200).collect(), 0));
    slots.give_back(&put[1..]);
    assert_eq!(found(dir.path()), (vec![0], 0));
    // The same places again: the file does not grow by what has passed.
    let len = || fs::metadata(&slots.path).unwrap().len();
    let before = len();
    for n in 200..2_000 {
        let slot = slots.put(n, &entry(n)).unwrap();
        slots.give_back(&[slot]);
    }
    assert_eq!((len(), slots.without()), (before, 0));
    slots.close();
    assert!(slots.path.exists(), "one is in flight: the next start needs it");
}

#[test]
fn an_empty_file_does_not_outlive_its_process() {
    let dir = tempfile::tempdir().unwrap();
    let slots = slots(dir.path(), MAX_SLOTS);
    let slot = slots.put(1, &entry(1)).unwrap();
    slots.give_back(&[slot]);
    slots.close();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!((slots.put(2, &entry(2)), slots.without()), (None, 1));
}

#[test]
fn more_attempts_than_slots_go_without_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let slots = slots(dir.path(), GROWTH);
    let put: Vec<u32> = (0..GROWTH).map(|n| slots.put(n.into(), &entry(0)).unwrap()).collect();
    assert_eq!((slots.put(100, &entry(0)), slots.put(101, &entry(0))), (None, None));
    assert_eq!(slots.without(), 2);
    slots.give_back(&put[..1]);
    assert_eq!(slots.put(102, &entry(0)), Some(put[0]));
}

#[test]
fn a_directory_that_cannot_be_written_holds_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let slots = slots(&dir.path().join("gone"), MAX_SLOTS);
    assert_eq!((slots.put(1, &entry(1)), slots.put(2, &entry(2))), (None, None));
    assert_eq!(slots.without(), 2);
}

#[test]
fn a_bit_flipped_anywhere_loses_one_slot_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let slots = slots(dir.path(), MAX_SLOTS);
    let _: Vec<_> = (1..=3).map(|n| slots.put(n, &entry(n)).unwrap()).collect();
    let file = fs::read(&slots.path).unwrap();
    let len = {
        let mut bytes = Vec::new();
        record::encode(0, 2, &entry(2), &mut bytes);
        bytes.len()
    };
    let second = 2 * SLOT_BYTES as usize;
    for at in 0..len {
        let mut spoilt = file.clone();
        spoilt[second + at] ^= 0x10;
        let batch = rows(&spoilt[SLOT_BYTES as usize..]);
        let left: Vec<i64> = batch.rows.iter().map(|row| row.sequence).collect();
        assert_eq!((left, batch.damaged), (vec![1, 3], SLOT_BYTES as usize), "flipped at {at}");
    }
    // A file that ends in the middle of a slot, as after a power cut.
    let batch = rows(&file[SLOT_BYTES as usize..second + 20]);
    assert_eq!((batch.rows.len(), batch.damaged), (1, 20));
}

#[test]
fn a_short_record_over_a_long_one_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let slots = slots(dir.path(), GROWTH);
    let long = Entry { model: "m".repeat(500).into(), ..entry(1) };
    let slot = slots.put(1, &long).unwrap();
    slots.give_back(&[slot]);
    assert_eq!(slots.put(2, &entry(2)), Some(slot));
    assert_eq!(found(dir.path()), (vec![2], 0));
}
