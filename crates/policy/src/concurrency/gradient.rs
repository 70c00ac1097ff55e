//! Gradient2: a limit from how long first tokens take (Netflix `concurrency-limits`,
//! `Gradient2Limit`).
//!
//! A server of our own does not refuse, it queues. Its queue shows in the time to the first
//! token, long before anything fails: now against the long run says how much of it is waiting.
//! The time of a whole answer would not: that is as long as the answer.
//!
//! ```text
//! gradient = clamp(1.1 * long / short, 0.5, 1)
//! limit    = 0.8 * limit + 0.2 * (limit * gradient + 4)      within 20 ..= 200
//! ```
//!
//! *Short* is the mean of a window of about one round trip's answers, *long* a moving average
//! over 600 of them. The four are the queue that is wanted: with none, nobody would ever learn
//! that there is room for more.

/// Attempts in flight it starts from.
pub(super) const START: f64 = 20.0;
/// Only refusals take the limit below this.
const MIN: f64 = 20.0;
const MAX: f64 = 200.0;
/// Attempts that are welcome to wait at the server.
const QUEUE: f64 = 4.0;
/// Share of a new limit that is taken over at once.
const SMOOTHING: f64 = 0.2;
/// A window's mean is noisy by about a tenth: that much is no queue.
const TOLERANCE: f64 = 1.1;
const LEAST_GRADIENT: f64 = 0.5;
/// Windows the long-run average reaches back, and those it is a plain mean for.
const LONG: f64 = 600.0;
const WARM_UP: u32 = 10;
/// After a slow time the long run comes down by this per window.
const FORGET: f64 = 0.9;
/// Samples of a window, at least.
const MIN_WINDOW: u32 = 10;

/// What is known of first-token times.
#[derive(Debug, Default)]
pub(super) struct Gradient {
    /// The window being filled.
    seconds: f64,
    samples: u32,
    most_in_flight: u32,
    /// Windows seen, and their long-run mean.
    windows: u32,
    long: f64,
}

impl Gradient {
    /// An attempt showed its first token after `seconds`, while `in_flight` were out: the new
    /// limit, when that completes a window.
    pub(super) fn observe(&mut self, limit: f64, in_flight: u32, seconds: f64) -> Option<f64> {
        self.seconds += seconds;
        self.samples += 1;
        self.most_in_flight = self.most_in_flight.max(in_flight);
        if self.samples < MIN_WINDOW.max(limit as u32) {
            return None;
        }
        let short = (self.seconds / f64::from(self.samples)).max(1e-6);
        let used = f64::from(self.most_in_flight) * 2.0 >= limit;
        (self.seconds, self.samples, self.most_in_flight) = (0.0, 0, 0);
        self.learn(short);
        // A limit nobody uses has proved nothing.
        used.then(|| self.next(limit, short))
    }

    /// Whether any first token has been timed.
    pub(super) const fn has_learned(&self) -> bool {
        self.windows > 0 || self.samples > 0
    }

    fn learn(&mut self, short: f64) {
        self.windows = self.windows.saturating_add(1);
        let weight = if self.windows <= WARM_UP {
            1.0 / f64::from(self.windows)
        } else {
            2.0 / (LONG + 1.0)
        };
        self.long += weight * (short - self.long);
        if self.long > 2.0 * short {
            self.long *= FORGET;
        }
    }

    fn next(&self, limit: f64, short: f64) -> f64 {
        let gradient = (TOLERANCE * self.long / short).clamp(LEAST_GRADIENT, 1.0);
        let wanted = limit * gradient + QUEUE;
        let smoothed = limit * (1.0 - SMOOTHING) + wanted * SMOOTHING;
        smoothed.clamp(MIN.min(limit), MAX)
    }
}

#[cfg(test)]
mod tests {
    use crate::concurrency::{Concurrency, Options};
    use std::time::{Duration, Instant};

    /// The gradient counts answers, not seconds.
    fn now() -> Instant {
        Instant::now()
    }

    /// Plays `<n> x <ms> [or <ms> each <m> th]` and `limit <least> to <most>` lines; the limit is
    /// always used up.
    #[track_caller]
    fn check(script: &str) {
        let mut limit = Concurrency::new(Options::Gradient);
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<_> = line.split_whitespace().collect();
            let number = |at: usize| words[at].parse::<u32>().unwrap();
            if words[0] == "limit" {
                let range = number(1)..=number(3);
                assert!(range.contains(&limit.limit()), "{} at: {line}", limit.limit());
                continue;
            }
            for n in 0..number(0) {
                let late = words.len() > 3 && n % number(6) == 0;
                let ms = number(if late { 4 } else { 2 });
                limit.succeeded(
                    now(),
                    now(),
                    limit.limit(),
                    Some(Duration::from_millis(ms.into())),
                );
            }
        }
    }

    #[test]
    fn grows_while_first_tokens_come_as_ever() {
        check("limit 20 to 20\n20 x 50\nlimit 20 to 21\n30000 x 50\nlimit 200 to 200");
    }

    #[test]
    fn a_rising_queue_shrinks_it_and_its_end_lets_it_grow() {
        check(
            "
            30000 x 50
            limit 200 to 200
            500 x 100
            500 x 150
            2000 x 250
            limit 20 to 100
            30000 x 50
            limit 150 to 200
            ",
        );
    }

    #[test]
    fn a_few_slow_prompts_in_a_steady_mix_do_not_shrink_it() {
        check("40000 x 50 or 500 each 10 th\nlimit 150 to 200");
    }

    /// A tenth of the answers take 5 s, the others 50 ms; what is learned from is their first
    /// token, which comes after 50 ms. Learning from whole answers is shown for comparison.
    #[test]
    fn long_answers_do_not_shrink_it() {
        let lowest = |took_ms: &dyn Fn(u32) -> u64| {
            let mut limit = Concurrency::new(Options::Gradient);
            (0..40_000)
                .for_each(|_| limit.succeeded(now(), now(), 200, Some(Duration::from_millis(50))));
            let limits = (0..10_000).map(|n| {
                limit.succeeded(now(), now(), 200, Some(Duration::from_millis(took_ms(n))));
                limit.limit()
            });
            limits.min().unwrap()
        };
        let answer_ms = |n| if n % 10 == 0 { 5000 } else { 50 };
        assert_eq!(lowest(&|n| answer_ms(n).min(50)), 200);
        assert!(lowest(&answer_ms) < 60);
    }

    /// Twenty slots of 50 ms, and always as many calls out as the limit lets.
    #[test]
    fn stays_near_what_a_server_can_do() {
        let mut limit = Concurrency::new(Options::Gradient);
        for n in 0..100_000u32 {
            let out = limit.limit();
            // Others' noise besides the queue's own time.
            let noise = 0.8 + 0.4 * (f64::from(n) * 0.618_034).fract();
            let seconds = 0.05 * (f64::from(out) / 20.0).max(1.0) * noise;
            limit.succeeded(now(), now(), out, Some(Duration::from_secs_f64(seconds)));
        }
        assert!((20..=100).contains(&limit.limit()), "{}", limit.limit());
    }

    #[test]
    fn only_refusals_take_it_below_its_least() {
        let (mut limit, start) = (Concurrency::new(Options::Gradient), Instant::now());
        for n in 0..12 {
            let sent = start + Duration::from_millis(10 * n + 1);
            limit.refused(sent, sent + Duration::from_millis(1));
        }
        assert_eq!(limit.limit(), 3);
        (0..10).for_each(|_| {
            limit.succeeded(
                start,
                start + Duration::from_secs(9),
                3,
                Some(Duration::from_millis(50)),
            )
        });
        assert!((3..=4).contains(&limit.limit()), "grows step by step: {}", limit.limit());
    }

    #[test]
    fn answers_without_a_first_token_are_counted_as_usual() {
        let mut limit = Concurrency::new(Options::Gradient);
        (0..20).for_each(|_| limit.succeeded(now(), now(), 20, None));
        assert_eq!(limit.limit(), 40);
    }
}
