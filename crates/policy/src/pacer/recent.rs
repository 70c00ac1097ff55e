//! How many attempts an upstream accepted of late.

use std::time::{Duration, Instant};

/// Accepted attempts of the last full second and of the present one.
#[derive(Debug)]
pub(super) struct Recent {
    start: Instant,
    present: u64,
    last: u64,
}

impl Recent {
    const SECOND: Duration = Duration::from_secs(1);

    pub(super) const fn new(start: Instant) -> Self {
        Self { start, present: 0, last: 0 }
    }

    pub(super) fn accepted(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.start);
        if passed >= Self::SECOND {
            self.last = if passed < 2 * Self::SECOND { self.present } else { 0 };
            (self.start, self.present) = (now, 0);
        }
        self.present += 1;
    }

    /// The more of the two seconds; zero once both are past.
    pub(super) fn per_second(&self, now: Instant) -> f64 {
        let fresh = now.saturating_duration_since(self.start) < 2 * Self::SECOND;
        if fresh { self.last.max(self.present) as f64 } else { 0.0 }
    }
}
