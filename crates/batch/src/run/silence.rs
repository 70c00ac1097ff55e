//! Whether the upstream has fallen silent: attempts go out, and nothing comes back.
//!
//! # Why
//!
//! A server that dies in the middle of a job does not fail rows at once: the engine retries each of
//! them within its budget, for minutes. A job that goes on meanwhile burns attempts and, in the
//! end, rows. An upstream that is only slow has attempts in flight, one that refuses says so, and
//! one behind a told limit is sent nothing: none of them is silent.

use std::time::Duration;
use tidegate_core::UpstreamState;
use tokio::time::Instant;

/// How often it is looked.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// How long nothing may come back.
const SILENT: Duration = Duration::from_secs(30);

/// Attempts that must have come to nothing meanwhile.
const ENOUGH_ATTEMPTS: u64 = 3;

/// Since when nothing has come back.
pub(super) struct Silence {
    since: Instant,
    /// Attempts and refusals so far when it began; `None` until the next look.
    begun: Option<(u64, u64)>,
    /// Attempts so far at the last look.
    attempts: u64,
}

impl Silence {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), begun: None, attempts: 0 }
    }

    /// Something came back.
    pub(super) fn end(&mut self) {
        self.since = Instant::now();
        self.begun = None;
    }

    /// Looks at the upstreams; `true` when they are silent.
    pub(super) fn look(&mut self, upstreams: &[UpstreamState]) -> bool {
        let attempts = upstreams.iter().map(|one| one.attempts).sum();
        let refusals = upstreams.iter().map(|one| one.refusals).sum();
        // In flight all the time since the last look: somebody has taken it and thinks.
        let stays = attempts == std::mem::replace(&mut self.attempts, attempts)
            && upstreams.iter().any(|one| one.in_flight > 0);
        let begun = *self.begun.get_or_insert((attempts, refusals));
        if stays || refusals != begun.1 {
            self.end();
            return false;
        }
        attempts - begun.0 >= ENOUGH_ATTEMPTS && self.since.elapsed() >= SILENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::{BoundBy, BreakerState};

    fn upstream(attempts: u64, refusals: u64, in_flight: u32) -> [UpstreamState; 1] {
        [UpstreamState {
            upstream: "u".into(),
            model: "m".into(),
            concurrency: 10,
            in_flight,
            waiting: 5,
            requests_per_second: None,
            shut_for: Duration::ZERO,
            bound_by: BoundBy::Nothing,
            breaker: BreakerState::Closed,
            share: 1.0,
            latency: None,
            attempts,
            refusals,
        }]
    }

    /// Whether an upstream is found silent within two minutes of being seen like this.
    async fn check(at: impl Fn(u64) -> [UpstreamState; 1], expected: Option<u64>) {
        let mut silence = Silence::new();
        let mut found = None;
        for second in 0..120 {
            if silence.look(&at(second)) {
                found = Some(second);
                break;
            }
            tokio::time::advance(LOOK).await;
        }
        assert_eq!(found, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_that_come_to_nothing_are_silence() {
        check(|second| upstream(second, 0, 0), Some(30)).await;
        // Now and then one is seen in flight.
        check(|second| upstream(second / 2, 0, (second % 2 == 0).into()), Some(30)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn slow_told_and_refusing_upstreams_are_not_silent() {
        check(|second| upstream(4 + second / 10, 0, 4), None).await;
        check(|second| upstream(second / 60, 0, 0), None).await;
        check(|second| upstream(second, second / 20, 0), None).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_ends_it() {
        let mut silence = Silence::new();
        for second in 0..200 {
            assert!(!silence.look(&upstream(second, 0, 0)), "{second}");
            if second % 29 == 0 {
                silence.end();
            }
            tokio::time::advance(LOOK).await;
        }
    }
}
