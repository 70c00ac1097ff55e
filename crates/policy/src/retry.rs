//! Retry: what to do after a failed attempt.
//!
//! # Why
//!
//! Most failures of a model server are gone a moment later, and most callers retry them badly:
//! at once, in step with everybody else, after the answer has begun, or five layers deep. One
//! layer retries, few times, with *full jitter* (a wait drawn evenly from zero to a doubling
//! bound: AWS Architecture Blog, "Exponential backoff and jitter"), never sooner than the server
//! asked, and never when the wait would outlast the call's deadline.

use crate::setting;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tidegate_core::{Class, Error, Retry};

/// Settings of the retry decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Attempts per call, the first one included. Default 3.
    pub max_attempts: u32,
    /// Bound of the first wait after a fault; doubles with each attempt. Default "50ms".
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub base: Duration,
    /// Bound of the first wait after a capacity refusal (429, 503). Default "1s".
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub base_refused: Duration,
    /// No wait of our own is longer than this; a server may ask for more. Default "20s".
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub cap: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_attempts: 3,
            base: Duration::from_millis(50),
            base_refused: Duration::from_secs(1),
            cap: Duration::from_secs(20),
        }
    }
}

/// Waits asked for that are longer are not spread any wider.
const MAX_JITTERED: Duration = Duration::from_secs(24 * 60 * 60);

/// Where the next attempt would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// To a target that has failed this call already: what it asked for binds.
    Same,
    /// To a target not tried yet, which asked for nothing.
    Elsewhere,
}

/// What to do after a failed attempt.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// Return this error to the caller.
    Stop,
    /// Attempt again after this long.
    Again(Duration),
}

impl Options {
    /// Decides after the `counted`th counted attempt (from 1) failed with `error`, with `left`
    /// until the deadline and `roll` drawn evenly from `[0, 1)`.
    pub fn next(
        &self,
        counted: u32,
        error: &Error,
        place: Place,
        left: Duration,
        roll: f64,
    ) -> Next {
        if counted >= self.max_attempts {
            return Next::Stop;
        }
        let wait = match error.retry() {
            Retry::Never => return Next::Stop,
            Retry::Unsent => self.backoff(self.base, counted, roll),
            Retry::After(_) if place == Place::Elsewhere => self.backoff(self.base, counted, roll),
            Retry::After(asked) => {
                let base = match error.class() {
                    Class::Capacity => self.base_refused,
                    _ => self.base,
                };
                // A tenth of jitter on what was asked: all who were refused together would
                // otherwise come back together.
                self.backoff(base, counted, roll)
                    .max(asked.saturating_add(asked.min(MAX_JITTERED).mul_f64(roll / 10.0)))
            }
        };
        if wait < left { Next::Again(wait) } else { Next::Stop }
    }

    fn backoff(&self, base: Duration, counted: u32, roll: f64) -> Duration {
        let bound = base.saturating_mul(2u32.saturating_pow(counted.saturating_sub(1)));
        bound.min(self.cap).mul_f64(roll)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::{Kind, Origin};

    fn fault(retry: Retry) -> Error {
        Error::new(Kind::Upstream, Origin::Upstream, "x").with_retry(retry)
    }

    fn refusal(asked_ms: u64) -> Error {
        Error::new(Kind::UpstreamCapacity, Origin::Upstream, "x")
            .with_retry(Retry::After(Duration::from_millis(asked_ms)))
    }

    /// Waits in milliseconds after attempts 1, 2, … with `roll`, until it stops.
    #[track_caller]
    fn check(options: &Options, error: &Error, left_ms: u64, roll: f64, expected: &[u128]) {
        check_at(Place::Same, options, error, left_ms, roll, expected);
    }

    #[track_caller]
    fn check_at(
        place: Place,
        options: &Options,
        error: &Error,
        left_ms: u64,
        roll: f64,
        expected: &[u128],
    ) {
        let waits: Vec<_> = (1..)
            .map_while(|n| {
                match options.next(n, error, place, Duration::from_millis(left_ms), roll) {
                    Next::Again(wait) => Some(wait.as_millis()),
                    Next::Stop => None,
                }
            })
            .collect();
        assert_eq!(waits, expected);
    }

    fn six() -> Options {
        Options { max_attempts: 6, ..Options::default() }
    }

    #[test]
    fn waits_double_up_to_the_cap() {
        check(&six(), &fault(Retry::After(Duration::ZERO)), 90_000, 0.5, &[25, 50, 100, 200, 400]);
        check(&six(), &refusal(0), 90_000, 0.5, &[500, 1000, 2000, 4000, 8000]);
        let short = Options { cap: Duration::from_millis(80), ..six() };
        check(&short, &fault(Retry::Unsent), 90_000, 0.5, &[25, 40, 40, 40, 40]);
    }

    #[test]
    fn never_sooner_than_asked() {
        check(&six(), &refusal(3000), 90_000, 0.0, &[3000; 5]);
        check(&six(), &refusal(3000), 90_000, 0.5, &[3150, 3150, 3150, 4000, 8000]);
    }

    #[test]
    fn a_wait_without_end_is_beyond_every_deadline() {
        let asked = fault(Retry::After(Duration::MAX));
        check(&six(), &asked, 90_000, 0.9, &[]);
    }

    #[test]
    fn what_one_target_asked_does_not_bind_another() {
        check_at(Place::Elsewhere, &six(), &refusal(60_000), 5_000, 0.5, &[25, 50, 100, 200, 400]);
    }

    #[test]
    fn stops_when_it_cannot_help() {
        check(&six(), &fault(Retry::Never), 90_000, 0.5, &[]);
        check(&six(), &refusal(3000), 2_000, 0.5, &[]);
        check(&Options { max_attempts: 1, ..six() }, &refusal(0), 90_000, 0.5, &[]);
    }
}
