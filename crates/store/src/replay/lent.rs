//! Answers that are being given again, held in memory while their callers read.
//!
//! *Why bounded:* a repeat costs its caller nothing and no limit counts it. Four hundred repeats of
//! one answer of 4 MB, none of them read, held 1.7 GB. So repeats of one answer share one copy, and
//! long ones together have a bound, beyond which they are told to come back.

use bytes::Bytes;
use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

/// Answers up to this length, which most have, are always lent: together they are no more than
/// all that are kept.
const SHORT: u64 = 64 << 10;
/// Longer answers that are lent at one time, in bytes together.
const MAX_LONG: u64 = 64 << 20;
/// Entries of copies that nobody reads any more are first looked for when there are so many
/// entries, and then each time they have doubled.
const FIRST_SWEEP: usize = 64;

/// One execution of a key: when it is carried out anew, it has another answer.
type Which = ([u8; 32], i64);

/// The copies there are, by the execution whose answer they are.
#[derive(Default)]
pub(super) struct Lending {
    copies: HashMap<Which, Weak<Held>>,
    sweep_at: usize,
    /// Bytes of the long answers that somebody reads.
    long: Arc<AtomicU64>,
}

struct Held {
    bytes: Vec<u8>,
    /// Where its bytes are counted while it is held, when it is a long one.
    counted: Option<Arc<AtomicU64>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(long) = &self.counted {
            long.fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
        }
    }
}

/// One reader's share of a copy.
struct Share(Arc<Held>);

impl AsRef<[u8]> for Share {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl Lending {
    /// The answer of `which`, read unless somebody has it; `None` when there is no room for it now.
    pub(super) fn lend<E>(
        &mut self,
        which: Which,
        length: u64,
        read: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Option<Bytes>, E> {
        if let Some(copy) = self.copies.get(&which).and_then(Weak::upgrade) {
            return Ok(Some(Bytes::from_owner(Share(copy))));
        }
        let is_long = length > SHORT;
        // This thread alone adds, so there is no less room when it does.
        if is_long && self.long.load(Ordering::Relaxed).saturating_add(length) > MAX_LONG {
            return Ok(None);
        }
        let bytes = read()?;
        let counted = is_long.then(|| Arc::clone(&self.long));
        if let Some(long) = &counted {
            long.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        let copy = Arc::new(Held { bytes, counted });
        if self.copies.len() >= self.sweep_at.max(FIRST_SWEEP) {
            self.copies.retain(|_, copy| copy.strong_count() > 0);
            self.sweep_at = 2 * self.copies.len();
        }
        self.copies.insert(which, Arc::downgrade(&copy));
        Ok(Some(Bytes::from_owner(Share(copy))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lend(lending: &mut Lending, id: u8, length: u64) -> Option<Bytes> {
        let read = || Ok::<_, ()>(vec![id; usize::try_from(length).unwrap()]);
        lending.lend(([id; 32], 1), length, read).unwrap()
    }

    #[test]
    fn repeats_of_one_answer_share_a_copy_and_long_ones_have_a_bound() {
        let (mut lending, most) = (Lending::default(), MAX_LONG / 4);
        let held: Vec<Bytes> = (0..4).map(|id| lend(&mut lending, id, most).unwrap()).collect();
        for (id, held) in held.iter().enumerate() {
            let again = lend(&mut lending, id as u8, most).unwrap();
            assert_eq!(again.as_ptr(), held.as_ptr());
        }
        assert!(lend(&mut lending, 4, SHORT + 1).is_none(), "the room is taken");
        assert!(lend(&mut lending, 5, SHORT).is_some(), "short ones need none");
        assert!(lending.lend(([0; 32], 2), most, || Err(())).unwrap().is_none(), "another answer");
        drop(held);
        assert_eq!(lending.long.load(Ordering::Relaxed), 0);
        assert!(lend(&mut lending, 4, MAX_LONG).is_some());
        assert_eq!(lending.lend(([6; 32], 1), SHORT + 1, || Err("gone")), Err("gone"));
        assert_eq!(lending.long.load(Ordering::Relaxed), 0, "nothing is held for what failed");
    }

    #[test]
    fn copies_that_nobody_reads_are_forgotten() {
        let mut lending = Lending::default();
        for number in 0..10_000_i64 {
            lending.lend(([0; 32], number), 1, || Ok::<_, ()>(vec![0])).unwrap();
        }
        assert!(lending.copies.len() <= FIRST_SWEEP, "{}", lending.copies.len());
    }
}
