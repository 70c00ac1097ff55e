//! How many rows may be in flight: as many as the engine can use, and few before anybody answers.

use super::dispatch::Dispatch;
use std::time::Duration;
use tokio::time::Instant;

/// Rows handed to the engine at once when its own limits decide.
pub(super) const MOST_IN_FLIGHT: usize = 1024;

/// Fewest rows handed to the engine when its own limits decide: enough for a limit to grow.
pub(super) const FEWEST_IN_FLIGHT: usize = 64;

/// Rows that find out whether anybody answers.
const FIRST_ROWS: usize = 2;

/// How long an attempt must be in flight to have reached somebody.
const COLD: Duration = Duration::from_millis(100);

/// How often it is looked whether one has.
pub(super) const LOOK: Duration = Duration::from_millis(5);

/// How often the engine is asked how much it can use.
const ASK_ENGINE_EVERY: Duration = Duration::from_millis(50);

impl Dispatch<'_> {
    /// Whether one more row may be in flight beside `in_flight` others.
    pub(super) fn has_room(&mut self, in_flight: usize) -> bool {
        self.state.stopping.is_none()
            && !self.writer.is_behind()
            && in_flight + self.state.unwritten.len() < self.target()
    }

    /// Rows that may be in flight now.
    pub(super) fn target(&mut self) -> usize {
        let told = self.job.concurrency.map_or_else(|| self.usable(), |n| n.max(1) as usize);
        if self.is_cold() { told.min(FIRST_ROWS) } else { told }
    }

    /// Whether it is still open that anybody answers at all.
    ///
    /// Where nobody does, a few rows find out within seconds; thousands would wait for each
    /// other's retries. A slow upstream does not stay cold: an attempt that is still in flight
    /// after [`COLD`] has reached somebody.
    pub(super) fn is_cold(&mut self) -> bool {
        if self.state.is_warm {
            return false;
        }
        let begun = *self.state.begun.get_or_insert_with(Instant::now);
        let upstreams = self.shared.answer.upstreams();
        let busy = upstreams.iter().any(|one| one.in_flight > 0);
        // An engine that has been called and shows no upstream does not tell.
        let silent = upstreams.is_empty() && begun.elapsed() >= LOOK;
        self.state.is_warm = silent || (busy && begun.elapsed() >= COLD);
        !self.state.is_warm
    }

    /// Rows the engine's own limits can use.
    fn usable(&mut self) -> usize {
        let now = Instant::now();
        if self.state.asked_at.is_none_or(|at| now - at >= ASK_ENGINE_EVERY) {
            self.state.asked_at = Some(now);
            let upstreams = self.shared.answer.upstreams();
            let usable: f64 = upstreams
                .iter()
                .map(|one| f64::from(one.concurrency) + one.requests_per_second.unwrap_or(0.0))
                .sum();
            self.state.target = if upstreams.is_empty() {
                MOST_IN_FLIGHT
            } else {
                ((usable * 2.0) as usize).clamp(FEWEST_IN_FLIGHT, MOST_IN_FLIGHT)
            };
        }
        self.state.target
    }
}
