//! Learned concurrency: how many attempts one upstream may have in flight.
//!
//! # Why
//!
//! Nobody knows the right number: it differs by provider, by account, by hour. Too low wastes
//! what is paid for, too high turns every call into a refusal. The limit finds itself as TCP's
//! window does: it grows while answers are good and the limit is used, and shrinks when the
//! upstream says it is too much (AIMD; Netflix `concurrency-limits`, `AIMDLimit`). Latency alone
//! never shrinks it: a long answer is not a sign of load.
//!
//! A server of one's own rather queues than refuses: for those there is `"gradient"`, which
//! listens to the time to the first token.
//!
//! # States
//!
//! ```text
//! start --(each success: +1, doubling per round trip)--> first refusal
//!   --(x 0.9, once per round trip)--> steady --(each success: +step/limit)--> steady
//! ```

mod gradient;

use gradient::Gradient;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Attempts in flight a learned limit starts from.
pub const START: u32 = 10;
/// A learned limit is never higher, unless [`Options`] says so.
pub const MAX: u32 = 1024;
/// What a refusal leaves of the limit.
const SHRINK: f64 = 0.9;
/// Share of the limit added per limit's worth of successes, at least one.
const GROW: f64 = 0.05;

/// How an upstream's concurrency is limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected \"auto\", \"gradient\" or a whole number")]
pub enum Options {
    /// `"auto"`: found from the upstream's answers. The default.
    #[default]
    #[serde(with = "auto")]
    #[schemars(with = "auto::Auto")]
    Auto,
    /// `"gradient"`: found from the time to the first token. For servers of your own, which
    /// queue rather than refuse. From 20 to 200; lower only if the server refuses.
    #[serde(with = "by_gradient")]
    #[schemars(with = "by_gradient::Gradient")]
    Gradient,
    /// Exactly this many.
    Fixed(u32),
}

/// A variant that is written as one word beside others that are not.
macro_rules! word {
    ($module:ident, $word:ident, $text:literal) => {
        mod $module {
            use serde::{Deserialize, Deserializer, Serializer};

            #[derive(Deserialize, schemars::JsonSchema)]
            #[serde(rename_all = "lowercase")]
            pub(super) enum $word {
                $word,
            }

            pub(super) fn serialize<S: Serializer>(to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str($text)
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<(), D::Error> {
                $word::deserialize(from).map(|$word::$word| ())
            }
        }
    };
}

word!(auto, Auto, "auto");
word!(by_gradient, Gradient, "gradient");

/// The limit of one upstream.
#[derive(Debug)]
pub struct Concurrency {
    options: Options,
    limit: f64,
    steady: bool,
    /// Attempts sent before this instant have been heard already.
    shrunk_at: Option<Instant>,
    gradient: Gradient,
}

impl Concurrency {
    /// A limit at its start.
    pub fn new(options: Options) -> Self {
        let limit = match options {
            Options::Auto => f64::from(START),
            Options::Gradient => gradient::START,
            Options::Fixed(limit) => f64::from(limit.max(1)),
        };
        Self { options, limit, steady: false, shrunk_at: None, gradient: Gradient::default() }
    }

    /// Attempts that may be in flight now, at least 1.
    pub const fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// An attempt succeeded while `in_flight` were out, itself included. `first_token` is how
    /// long a stream's first token took; `None` for a whole answer, whose time says nothing of
    /// load and counts as one more success.
    pub fn succeeded(&mut self, in_flight: u32, first_token: Option<Duration>) {
        match (self.options, first_token) {
            (Options::Fixed(_), _) => {}
            (Options::Gradient, Some(took)) => {
                let seconds = took.as_secs_f64();
                if let Some(limit) = self.gradient.observe(self.limit, in_flight, seconds) {
                    self.limit = limit;
                }
            }
            (Options::Gradient, None) if self.gradient.has_learned() => {}
            (Options::Auto | Options::Gradient, _) => self.grow(in_flight),
        }
    }

    fn grow(&mut self, in_flight: u32) {
        // A limit nobody uses has proved nothing.
        if f64::from(in_flight) * 2.0 < self.limit {
            return;
        }
        let step = if self.steady { (GROW * self.limit).max(1.0) / self.limit } else { 1.0 };
        self.limit = (self.limit + step).min(f64::from(MAX));
    }

    /// An attempt sent at `sent` was refused for capacity, or timed out, at `now`.
    pub fn refused(&mut self, sent: Instant, now: Instant) {
        // All that left before the last shrink hit the same wall: it counts once per round trip.
        let heard = self.shrunk_at.is_some_and(|shrunk| sent <= shrunk);
        if heard || matches!(self.options, Options::Fixed(_)) {
            return;
        }
        self.steady = true;
        self.shrunk_at = Some(now);
        self.limit = (self.limit * SHRINK).floor().max(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Plays `<n> ok in-flight <m>`, `refuse sent <ms> at <ms>` and `limit <n>` lines.
    #[track_caller]
    fn check(options: Options, script: &str) {
        let (mut limit, start) = (Concurrency::new(options), Instant::now());
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<_> = line.split_whitespace().collect();
            let at = |word: usize| start + Duration::from_millis(words[word].parse().unwrap());
            match words[0] {
                "limit" => assert_eq!(limit.limit().to_string(), words[1], "at: {line}"),
                "refuse" => limit.refused(at(2), at(4)),
                count => (0..count.parse::<u32>().unwrap())
                    .for_each(|_| limit.succeeded(words[3].parse().unwrap(), None)),
            }
        }
    }

    #[test]
    fn doubles_per_round_trip_until_the_first_refusal() {
        check(
            Options::Auto,
            "
            limit 10
            10 ok in-flight 10
            limit 20
            20 ok in-flight 20
            limit 40
            refuse sent 0 at 100
            limit 36
            36 ok in-flight 36
            limit 37
            ",
        );
    }

    #[test]
    fn shrinks_once_per_round_trip() {
        check(
            Options::Auto,
            "
            refuse sent 0 at 50
            refuse sent 20 at 60
            refuse sent 50 at 70
            limit 9
            refuse sent 51 at 100
            limit 8
            ",
        );
    }

    #[test]
    fn an_unused_limit_does_not_grow() {
        check(Options::Auto, "100 ok in-flight 4\nlimit 10\n1 ok in-flight 5\nlimit 11");
    }

    #[test]
    fn stays_between_one_and_its_bound() {
        check(Options::Auto, "5000 ok in-flight 2000\nlimit 1024");
        let script: String =
            (0..60).map(|n| format!("refuse sent {} at {}\n", n * 10 + 1, n * 10 + 5)).collect();
        check(Options::Auto, &(script + "limit 1"));
    }

    #[test]
    fn a_fixed_limit_stays() {
        check(Options::Fixed(7), "limit 7\n90 ok in-flight 7\nrefuse sent 0 at 1\nlimit 7");
    }

    #[test]
    fn options_are_auto_or_a_number() {
        let read = |text| serde_json::from_str::<Options>(text);
        assert_eq!(read("\"auto\"").unwrap(), Options::Auto);
        assert_eq!(read("\"gradient\"").unwrap(), Options::Gradient);
        assert_eq!(read("5").unwrap(), Options::Fixed(5));
        assert_eq!(
            read("\"fast\"").unwrap_err().to_string(),
            "expected \"auto\", \"gradient\" or a whole number"
        );
        assert_eq!(serde_json::to_string(&Options::Auto).unwrap(), "\"auto\"");
        assert_eq!(serde_json::to_string(&Options::Gradient).unwrap(), "\"gradient\"");
    }
}
