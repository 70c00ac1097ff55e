//! Order of work: which row goes first.
//!
//! # Why
//!
//! Rows of like size keep a server's batches even; rows that begin alike find their prefix in its
//! KV cache; and some rows are wanted before others. The output keeps the input's order anyway.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
};

/// What a row is sorted by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rank {
    /// Higher goes first.
    pub(crate) priority: f64,
    /// Equal keys go together, lower first.
    pub(crate) group: u64,
}

/// Positions `0..ranks.len()` in working order: by priority, then group, then input order.
pub(crate) fn sorted(ranks: &[Rank]) -> Vec<u64> {
    let mut order: Vec<u64> = (0..ranks.len() as u64).collect();
    order.sort_unstable_by(|&a, &b| {
        let (left, right) = (ranks[a as usize], ranks[b as usize]);
        right.priority.total_cmp(&left.priority).then(left.group.cmp(&right.group)).then(a.cmp(&b))
    });
    order
}

/// Bucket of a body's length: four to each doubling, so that rows in one differ by a fifth at most.
pub(crate) fn size_key(body_bytes: usize) -> u64 {
    let bytes = (body_bytes as u64).max(4);
    let octave = u64::from(bytes.ilog2());
    octave * 4 + ((bytes >> (octave - 2)) & 3)
}

/// A key that brings prompts together whose first 64 bytes are equal, and among them those whose
/// first 256 are.
pub(crate) fn prefix_key(prompt: &str) -> u64 {
    let bytes = prompt.as_bytes();
    let hash = |length: usize| {
        let mut hasher = DefaultHasher::new();
        bytes[..length.min(bytes.len())].hash(&mut hasher);
        hasher.finish()
    };
    hash(64) & !0xffff_ffff | hash(256) >> 32
}

/// `wanted` of the indexes `0..total`, picked evenly by `seed`, in ascending order.
///
/// The same seed picks the same rows on any machine and in any version: a resumed job must.
pub(crate) fn sample(total: u64, wanted: u64, seed: u64) -> Vec<u64> {
    // Selection sampling (Knuth, TAOCP 3.4.2, algorithm S) over splitmix64.
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut needed = wanted.min(total);
    let mut picked = Vec::with_capacity(needed as usize);
    for index in 0..total {
        if needed == 0 {
            break;
        }
        let left = u128::from(total - index);
        if (u128::from(next()) * left) >> 64 < u128::from(needed) {
            picked.push(index);
            needed -= 1;
        }
    }
    picked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ranks: &[(f64, u64)], expected: &[u64]) {
        let ranks: Vec<_> =
            ranks.iter().map(|&(priority, group)| Rank { priority, group }).collect();
        assert_eq!(sorted(&ranks), expected);
    }

    #[test]
    fn priority_then_group_then_input() {
        check(&[(0.0, 0), (0.0, 0)], &[0, 1]);
        check(&[(0.0, 2), (1.0, 9), (0.0, 1), (1.0, 9)], &[1, 3, 2, 0]);
        check(&[(-1.0, 0), (0.0, 0), (-0.5, 0)], &[1, 2, 0]);
    }

    #[test]
    fn sizes_fall_into_rising_buckets() {
        let keys: Vec<_> = [0, 100, 110, 130, 200, 1000, 1_000_000].map(size_key).into();
        assert!(keys.is_sorted(), "{keys:?}");
        assert_eq!(size_key(100), size_key(110));
        assert_ne!(size_key(100), size_key(130));
    }

    #[test]
    fn equal_beginnings_have_near_keys() {
        let long = |end: &str| format!("{}{end}", "x".repeat(100));
        assert_eq!(prefix_key("abc"), prefix_key("abc"));
        assert_eq!(prefix_key(&long("a")) >> 32, prefix_key(&long("b")) >> 32);
        assert_ne!(prefix_key(&long("a")), prefix_key(&long("b")));
        prefix_key(&"é".repeat(200));
    }

    #[test]
    fn samples_are_even_and_repeatable() {
        assert_eq!(sample(10, 10, 1), (0..10).collect::<Vec<_>>());
        assert_eq!(sample(3, 9, 1), [0, 1, 2]);
        assert_eq!(sample(0, 9, 1), [0_u64; 0]);
        assert_eq!(sample(1000, 5, 7), sample(1000, 5, 7));
        assert_ne!(sample(1000, 5, 7), sample(1000, 5, 8));
        let mut hits = [0; 10];
        for seed in 0..1000 {
            let picked = sample(10, 3, seed);
            assert!(picked.len() == 3 && picked.is_sorted());
            picked.iter().for_each(|&index| hits[index as usize] += 1);
        }
        assert!(hits.iter().all(|&hits| (230..370).contains(&hits)), "{hits:?}");
    }
}
