//! Hedge: whether and when a second attempt starts while the first still thinks.
//!
//! # Why
//!
//! The slowest few of a hundred answers are slow by bad luck: a busy server, a lost packet, a
//! pause. Asking a second server once the first is later than nearly all are cuts that tail for
//! a few per cent more requests (Dean and Barroso, "The Tail at Scale"). Without bounds it does
//! the opposite: under load everything is late, everything is asked twice, and the load doubles.
//! So at most one request in fifty is hedged, never one in twenty, and none while the upstream's
//! limiter is saturated or its breaker not closed. It is off unless configured, because a paid
//! provider bills both.
//!
//! The engine sends the second attempt to another target, pays for it from the retry budget and
//! cancels the loser. Once a byte has been passed on, it is too late to hedge.

use crate::{quantile::Quantile, setting};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Samples before the tracked percentile is trusted.
const ENOUGH: u32 = 100;
/// Samples of which the largest stands in for the percentile while it warms up.
const WARM_UP: u32 = 20;
const TAU: f64 = 0.95;
const ETA: f64 = 0.05;
/// The percentile never exceeds this, in seconds.
const MAX_SECONDS: f64 = 600.0;
/// No configuration hedges a larger share of requests.
const MAX_SHARE: f64 = 0.05;
/// Hedges that a long quiet time lets go at once.
const MAX_SAVED: f64 = 10.0;
/// Fifty times 0.02 is a little less than 1.
const ROUNDING: f64 = 1e-6;

/// Settings of a model's hedging.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Whether a late first token starts a second attempt at another target. Both are billed.
    /// Default false.
    pub enabled: bool,
    /// Share of requests that may be hedged, from 0 to 1; never more than 0.05. Default 0.02.
    #[serde(with = "setting::share")]
    #[schemars(with = "f64")]
    pub share: f64,
    /// How long to wait for the first token before the second attempt. Default: the tracked 95th
    /// percentile of first-token times, from a hundred requests on.
    #[serde(with = "setting::opt_duration", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub after: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self { enabled: false, share: 0.02, after: None }
    }
}

/// How the upstream of the first attempt is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Attempts wait for its concurrency or rate limit, or it lately refused one.
    pub limiter_saturated: bool,
    /// Its breaker is closed.
    pub breaker_closed: bool,
}

/// Decides the hedges of one model.
#[derive(Debug)]
pub struct Hedge {
    options: Options,
    p95: Quantile,
    samples: u32,
    /// Hedges earned by requests and not yet used.
    saved: f64,
}

impl Hedge {
    /// Nothing tracked, nothing earned.
    pub const fn new(options: Options) -> Self {
        Self { options, p95: Quantile::new(TAU, ETA, MAX_SECONDS), samples: 0, saved: 0.0 }
    }

    /// A request's first attempt left: if there is no first token after this long, ask
    /// [`Hedge::start`]. `None` when this request is not to be hedged.
    pub fn first_attempt(&mut self) -> Option<Duration> {
        if !self.options.enabled {
            return None;
        }
        self.saved = (self.saved + self.options.share.clamp(0.0, MAX_SHARE)).min(MAX_SAVED);
        match self.options.after {
            Some(after) => Some(after),
            None if self.samples < ENOUGH => None,
            None => Duration::try_from_secs_f64(self.p95.value()).ok(),
        }
    }

    /// The time has passed: whether the second attempt starts now. It has been counted then.
    pub fn start(&mut self, health: Health) -> bool {
        let Health { limiter_saturated, breaker_closed } = health;
        let starts = self.options.enabled
            && breaker_closed
            && !limiter_saturated
            && self.saved > 1.0 - ROUNDING;
        if starts {
            self.saved -= 1.0;
        }
        starts
    }

    /// A hedge that was granted did not leave: no other target, no budget.
    pub fn not_started(&mut self) {
        self.saved = (self.saved + 1.0).min(MAX_SAVED);
    }

    /// A request showed its first token `took` after its first attempt left, whichever of its
    /// attempts it came from: a hedge that won was late as well, and its lateness counts.
    pub fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64().max(1e-6);
        self.samples = self.samples.saturating_add(1);
        if self.samples <= WARM_UP {
            self.p95.set(self.p95.value().max(seconds));
        } else {
            self.p95.observe(seconds);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Health = Health { limiter_saturated: false, breaker_closed: true };

    fn on() -> Options {
        Options { enabled: true, ..Options::default() }
    }

    /// Plays `seen <n> of <ms>`, `first <n> -> never|<ms>` and
    /// `late <n> [saturated|open] -> <started>` lines.
    #[track_caller]
    fn check(options: Options, script: &str) {
        let mut hedge = Hedge::new(options);
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<_> = line.split_whitespace().collect();
            let count: u32 = words[1].parse().unwrap();
            let last = words[words.len() - 1];
            match words[0] {
                "seen" => {
                    let took = Duration::from_millis(last.parse().unwrap());
                    (0..count).for_each(|_| hedge.observe(took));
                }
                "first" => {
                    let after = (0..count).map(|_| hedge.first_attempt()).last().unwrap();
                    let after = after.map_or("never".into(), |after| after.as_millis().to_string());
                    assert_eq!(after, last, "at: {line}");
                }
                "late" => {
                    let health = match words[2] {
                        "saturated" => Health { limiter_saturated: true, ..WELL },
                        "open" => Health { breaker_closed: false, ..WELL },
                        _ => WELL,
                    };
                    let started = (0..count).filter(|_| hedge.start(health)).count();
                    assert_eq!(started.to_string(), last, "at: {line}");
                }
                other => panic!("unknown word {other}"),
            }
        }
    }

    #[test]
    fn is_off_unless_configured() {
        check(Options::default(), "seen 500 of 50\nfirst 500 -> never\nlate 500 -> 0");
    }

    #[test]
    fn at_most_one_request_in_fifty() {
        check(
            Options { after: Some(Duration::from_millis(80)), ..on() },
            "
            first 1 -> 80
            late 1 -> 0
            first 99 -> 80
            late 50 -> 2
            first 10000 -> 80
            late 5000 -> 10
            ",
        );
    }

    #[test]
    fn never_more_than_one_in_twenty_however_configured() {
        let options = Options { share: 1.0, after: Some(Duration::ZERO), ..on() };
        let mut hedge = Hedge::new(options);
        let hedged = (0..10_000).filter(|_| {
            hedge.first_attempt();
            hedge.start(WELL)
        });
        assert!((499..=500).contains(&hedged.count()));
    }

    #[test]
    fn waits_until_it_has_seen_enough() {
        check(on(), "seen 99 of 50\nfirst 1 -> never\nseen 1 of 50\nfirst 1 -> 50");
    }

    #[test]
    fn a_strained_upstream_is_not_asked_twice() {
        check(
            Options { after: Some(Duration::from_millis(80)), ..on() },
            "first 500 -> 80\nlate 9 saturated -> 0\nlate 9 open -> 0\nlate 20 -> 10",
        );
    }

    #[test]
    fn about_one_in_twenty_is_later_than_the_tracked_delay() {
        let mut hedge = Hedge::new(on());
        let mut late = 0;
        for n in 0..20_000u32 {
            // Even from 0 to 100 ms, and a third of them twice as slow.
            let took = (f64::from(n) * 0.618_034).fract() * if n % 3 == 0 { 0.2 } else { 0.1 };
            let took = Duration::from_secs_f64(took);
            if let Some(after) = hedge.first_attempt() {
                late += u32::from(took > after);
            }
            hedge.observe(took);
        }
        assert!((800..=1200).contains(&late), "{late}");
    }

    #[test]
    fn options_read_from_config() {
        let read = |text| serde_json::from_str::<Options>(text);
        let after = Some(Duration::from_millis(400));
        assert_eq!(
            read(r#"{"enabled": true, "after": "400ms"}"#).unwrap(),
            Options { after, ..on() }
        );
        assert!(read(r#"{"share": 2}"#).is_err());
        assert!(read(r#"{"delay": "1s"}"#).is_err());
    }
}
