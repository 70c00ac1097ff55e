//! Seeded chance, in the words the plans are drawn with.

use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{ops::Range, time::Duration};

pub(super) struct Dice(StdRng);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// True in `share` of the cases.
    pub(super) fn chance(&mut self, share: f64) -> bool {
        self.0.random_bool(share)
    }

    /// `some` in `share` of the cases, and otherwise `other`.
    pub(super) fn either<T>(&mut self, share: f64, some: T, other: T) -> T {
        if self.chance(share) { some } else { other }
    }

    pub(super) fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.0.random_range(0..of.len())].clone()
    }

    pub(super) fn number(&mut self, from: Range<u32>) -> u32 {
        self.0.random_range(from)
    }

    pub(super) fn millis(&mut self, from: Range<u64>) -> Duration {
        Duration::from_millis(self.0.random_range(from))
    }
}
