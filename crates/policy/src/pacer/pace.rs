//! How fast attempts may go, what that rests on, and how it grows while nobody refuses.

use std::time::{Duration, Instant};

/// Beyond this a pace limits nothing any more.
pub(super) const MAX_PER_SECOND: f64 = 100_000.0;
/// The unknown pace doubles this often.
const DOUBLING: Duration = Duration::from_millis(250);
/// Growth per second of a measured pace, and after [`QUIET`] without a refusal.
const GROWTH: f64 = 0.10;
const QUIET_GROWTH: f64 = 0.30;
const QUIET: Duration = Duration::from_secs(5);
/// Growth per second of a guessed pace.
const GUESS_GROWTH: f64 = 1.0;

/// How fast attempts may go.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// No refusal yet.
    Unknown { per_second: f64, doubled_at: Instant },
    /// As measured at a refusal; grows from `at`, when the gate opens again.
    Found { per_second: f64, at: Instant, trust: Trust },
}

/// What a pace rests on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Trust {
    /// Two refusals with accepted attempts between them: the upstream's own rate.
    Measured,
    /// The first refusal, or an outage: a guess on the low side, to be left quickly.
    Guessed,
}

impl Pace {
    /// An attempt was accepted: a pace that was never refused doubles from time to time.
    pub(super) fn accepted(&mut self, now: Instant) {
        if let Self::Unknown { per_second, doubled_at } = self
            && now.saturating_duration_since(*doubled_at) >= DOUBLING
        {
            *per_second = (*per_second * 2.0).min(MAX_PER_SECOND);
            *doubled_at = now;
        }
    }

    /// Requests per second at `now`.
    pub(super) fn per_second(&self, now: Instant) -> f64 {
        match *self {
            Self::Unknown { per_second, .. } => per_second,
            Self::Found { per_second, at, trust } => {
                let since = now.saturating_duration_since(at);
                let (early, late) = (since.min(QUIET), since.saturating_sub(QUIET));
                let growth = if trust == Trust::Guessed { GUESS_GROWTH } else { GROWTH };
                per_second
                    * (1.0 + growth).powf(early.as_secs_f64())
                    * (1.0 + growth.max(QUIET_GROWTH)).powf(late.as_secs_f64())
            }
        }
    }
}
