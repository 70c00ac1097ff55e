//! Peak EWMA: what an attempt at one target costs, in seconds of its callers' time.
//!
//! A rise in latency is believed at once, a fall over ten seconds (Finagle, tower
//! `load::PeakEwma`). It goes on falling while nothing is sent, so that a target that was bad is
//! tried again some day.
//!
//! A failure is not cheap because it was quick: a server that answers 500 in a millisecond would
//! otherwise attract all traffic. It costs five seconds at least. What a caller cancelled is not
//! recorded: it says how patient the caller was.

use std::time::{Duration, Instant};

/// Time after which an old value counts for 1/e.
const DECAY_SECONDS: f64 = 10.0;
/// Cost of a target never tried.
const UNMEASURED_SECONDS: f64 = 1.0;
/// Least cost of a failure.
const PENALTY_SECONDS: f64 = 5.0;

/// The cost of one target.
#[derive(Clone, Debug)]
pub struct Ewma {
    seconds: f64,
    at: Instant,
    measured: bool,
}

impl Ewma {
    /// A target never tried.
    pub const fn new(now: Instant) -> Self {
        Self { seconds: UNMEASURED_SECONDS, at: now, measured: false }
    }

    /// An attempt showed its first token after `took`.
    pub fn record(&mut self, now: Instant, took: Duration) {
        let sample = took.as_secs_f64();
        let keep = self.keep(now);
        self.seconds = if !self.measured || sample > self.seconds * keep {
            sample
        } else {
            self.seconds * keep + sample * (1.0 - keep)
        };
        self.at = self.at.max(now);
        self.measured = true;
    }

    /// An attempt failed, or was timed out, after `took`.
    pub fn failed(&mut self, now: Instant, took: Duration) {
        self.seconds = took.as_secs_f64().max(self.cost(now)).max(PENALTY_SECONDS);
        self.at = self.at.max(now);
        self.measured = true;
    }

    /// Expected seconds at `now`.
    pub fn cost(&self, now: Instant) -> f64 {
        self.seconds * self.keep(now)
    }

    /// Whether any attempt has ended: before that, the cost is a presumption.
    pub const fn is_measured(&self) -> bool {
        self.measured
    }

    fn keep(&self, now: Instant) -> f64 {
        (-now.saturating_duration_since(self.at).as_secs_f64() / DECAY_SECONDS).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays `<ms> took|failed <ms>` and `<ms> costs <ms>` lines.
    #[track_caller]
    fn check(script: &str) {
        let start = Instant::now();
        let mut ewma = Ewma::new(start);
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<_> = line.split_whitespace().collect();
            let ms = |word: usize| Duration::from_millis(words[word].parse().unwrap());
            let now = start + ms(0);
            match words[1] {
                "took" => ewma.record(now, ms(2)),
                "failed" => ewma.failed(now, ms(2)),
                "costs" => {
                    let got = ewma.cost(now) * 1000.0;
                    assert_eq!(got.round().to_string(), words[2], "at: {line}");
                }
                other => panic!("unknown word {other}"),
            }
        }
    }

    #[test]
    fn rises_at_once_and_falls_slowly() {
        check(
            "
            0      costs 1000
            0      took 50
            0      costs 50
            100    took 500
            100    costs 500
            10100  took 50
            10100  costs 216
            ",
        );
    }

    #[test]
    fn a_quick_failure_is_dear() {
        check("0 took 50\n0 failed 1\n0 costs 5000\n0 failed 30000\n0 costs 30000");
    }

    #[test]
    fn what_is_left_alone_is_tried_again_some_day() {
        check("0 failed 1\n50000 costs 34");
    }
}
