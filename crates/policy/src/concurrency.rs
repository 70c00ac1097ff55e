//! Learned concurrency: how many attempts one upstream may have in flight.
//!
//! # Why
//!
//! Nobody knows the right number: it differs by provider, by account, by hour. Too low wastes
//! what is paid for, too high turns every call into a refusal. The limit finds itself as TCP's
//! window does: it grows while answers are good and the limit is used, and shrinks by a tenth
//! when the upstream says it is too much (AIMD; Netflix `concurrency-limits`, `AIMDLimit`).
//! Latency alone never shrinks it: a long answer is not a sign of load.
//!
//! It grows along CUBIC's curve (Ha, Rhee and Xu 2008; RFC 9438) rather than one step per round
//! trip: quickly back to where it was not refused, long on that plateau, and faster and faster
//! beyond. So a limit that stays the same is touched every few seconds, by one attempt, however
//! short the round trip is, and one that is lifted is found within seconds, however far up.
//!
//! A server that is down refuses all, as quickly as it can, and would leave nothing of the limit. When
//! it refuses even a probe that is alone, their number was not the reason: then all refusals count as
//! one, back to the last that was followed by a success.
//!
//! A server of one's own rather queues than refuses: for those there is `"gradient"`, which
//! listens to the time to the first token.
//!
//! # States
//!
//! ```text
//! start --(each success: +1, doubling per round trip)--> first refusal
//!   --(x 0.9, once per round trip)--> steady --(each success: up to the curve, +1 at most)--> steady
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
/// Steepness of the curve, per second cubed: attempts in flight, and share of the limit. A limit
/// of 20 is back on its plateau after 2 s and one above it 1.6 s later; from a quarter of what is
/// there it takes 4 s, and 8 s where the limit is large.
const STEEP: f64 = 0.25;
const STEEP_SHARE: f64 = 0.0125;
/// A silence teaches no more than this, in seconds.
const SILENCE: f64 = 1.0;

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
    /// `None` until the first refusal.
    curve: Option<Curve>,
    /// The limit at the first refusal after which nothing succeeded that was sent later, and when
    /// that was.
    before_the_row: Option<(f64, Instant)>,
    gradient: Gradient,
}

/// Where the limit is on its way back from a refusal.
#[derive(Debug)]
struct Curve {
    /// Attempts sent before this instant have been heard already.
    shrunk_at: Instant,
    /// One below what was refused.
    plateau: f64,
    /// Seconds since in which the limit was used, and the last such moment.
    used: f64,
    used_at: Instant,
}

impl Curve {
    fn from(limit: f64, now: Instant) -> Self {
        Self { shrunk_at: now, plateau: (limit - 1.0).max(1.0), used: 0.0, used_at: now }
    }

    /// The limit it allows at `now`, while the limit is being used.
    fn rise(&mut self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.used_at).as_secs_f64();
        (self.used, self.used_at) = (self.used + passed.min(SILENCE), now);
        let steep = (STEEP_SHARE * self.plateau).max(STEEP);
        let back = ((1.0 - SHRINK) * self.plateau / steep).cbrt();
        self.plateau + steep * (self.used - back).powi(3)
    }
}

impl Concurrency {
    /// A limit at its start.
    pub fn new(options: Options) -> Self {
        let limit = match options {
            Options::Auto => f64::from(START),
            Options::Gradient => gradient::START,
            Options::Fixed(limit) => f64::from(limit.max(1)),
        };
        Self { options, limit, curve: None, before_the_row: None, gradient: Gradient::default() }
    }

    /// Attempts that may be in flight now, at least 1.
    pub const fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// An attempt sent at `sent` succeeded at `now` while `in_flight` were out, itself included.
    /// `first_token` is how long a stream's first token took; `None` for a whole answer, whose time
    /// says nothing of load and counts as one more success.
    pub fn succeeded(
        &mut self,
        sent: Instant,
        now: Instant,
        in_flight: u32,
        first_token: Option<Duration>,
    ) {
        self.before_the_row.take_if(|(_, since)| sent >= *since);
        match (self.options, first_token) {
            (Options::Fixed(_), _) => {}
            (Options::Gradient, Some(took)) => {
                let seconds = took.as_secs_f64();
                if let Some(limit) = self.gradient.observe(self.limit, in_flight, seconds) {
                    self.limit = limit;
                }
            }
            (Options::Gradient, None) if self.gradient.has_learned() => {}
            (Options::Auto | Options::Gradient, _) => self.grow(now, in_flight),
        }
    }

    fn grow(&mut self, now: Instant, in_flight: u32) {
        // A limit nobody uses has proved nothing.
        let used = f64::from(in_flight) * 2.0 >= self.limit;
        let wanted = match &mut self.curve {
            None if used => f64::from(MAX),
            Some(curve) if used => curve.rise(now),
            Some(curve) => return curve.used_at = now,
            None => return,
        };
        let limit = wanted.min(self.limit + 1.0).min(f64::from(MAX));
        self.limit = self.limit.max(limit);
    }

    /// An attempt sent at `sent` was refused for capacity, or timed out, at `now`.
    pub fn refused(&mut self, sent: Instant, now: Instant) {
        // All that left before the last shrink hit the same wall: it counts once per round trip.
        let heard = self.curve.as_ref().is_some_and(|curve| sent <= curve.shrunk_at);
        if heard || matches!(self.options, Options::Fixed(_)) {
            return;
        }
        self.before_the_row.get_or_insert((self.limit, now));
        self.shrink_from(self.limit, now);
    }

    /// The breaker's probe, the only attempt in flight, failed at `now`: how many there are is not
    /// the reason.
    pub fn failed_alone(&mut self, now: Instant) {
        if let Some((limit, _)) = self.before_the_row {
            self.shrink_from(limit, now);
        }
    }

    fn shrink_from(&mut self, limit: f64, now: Instant) {
        self.curve = Some(Curve::from(limit, now));
        self.limit = (limit * SHRINK).floor().max(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Plays `<n> ok in-flight <m> [from <ms> every <ms>]`, `refuse sent <ms> at <ms>`, `alone at <ms>`
    /// and `limit <n>` lines.
    #[track_caller]
    fn check(options: Options, script: &str) {
        let (mut limit, start) = (Concurrency::new(options), Instant::now());
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<_> = line.split_whitespace().collect();
            let at = |word: usize| start + Duration::from_millis(words[word].parse().unwrap());
            match words[0] {
                "limit" => assert_eq!(limit.limit().to_string(), words[1], "at: {line}"),
                "refuse" => limit.refused(at(2), at(4)),
                "alone" => limit.failed_alone(at(2)),
                count => (0..count.parse::<u32>().unwrap()).for_each(|n| {
                    let timed = words.len() > 4;
                    let now = if timed { at(5) + n * (at(7) - start) } else { start };
                    limit.succeeded(now, now, words[3].parse().unwrap(), None);
                }),
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
            ",
        );
    }

    #[test]
    fn comes_back_to_where_it_was_not_refused_stays_and_then_looks_for_more() {
        check(
            Options::Auto,
            "
            11 ok in-flight 21
            limit 21
            refuse sent 0 at 1
            limit 18
            100 ok in-flight 18 from 0 every 10
            limit 19
            100 ok in-flight 19 from 1000 every 10
            limit 19
            150 ok in-flight 20 from 2000 every 10
            limit 20
            30 ok in-flight 20 from 3500 every 10
            limit 21
            200 ok in-flight 21 from 3800 every 10
            limit 33
            ",
        );
    }

    #[test]
    fn what_nobody_used_is_no_time_on_the_curve() {
        check(
            Options::Auto,
            "
            11 ok in-flight 21
            refuse sent 0 at 1
            1000 ok in-flight 3 from 0 every 10
            limit 18
            1 ok in-flight 18 from 3600000 every 1
            limit 19
            1 ok in-flight 18 from 3600001 every 1
            limit 19
            ",
        );
    }

    #[test]
    fn a_lifted_limit_is_found_within_seconds() {
        check(
            Options::Auto,
            "
            refuse sent 0 at 1
            refuse sent 2 at 3
            refuse sent 4 at 5
            refuse sent 6 at 7
            limit 6
            1100 ok in-flight 1000 from 0 every 5
            limit 23
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
    fn refused_even_alone_the_row_of_refusals_is_one() {
        check(
            Options::Auto,
            "
            11 ok in-flight 21
            refuse sent 0 at 1
            1 ok in-flight 1 from 2 every 1
            refuse sent 3 at 4
            1 ok in-flight 1 from 3 every 1
            refuse sent 5 at 6
            refuse sent 7 at 8
            limit 12
            alone at 1000
            limit 16
            refuse sent 3000 at 3001
            alone at 3001
            limit 16
            1 ok in-flight 1 from 7000 every 1
            alone at 7001
            limit 16
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
