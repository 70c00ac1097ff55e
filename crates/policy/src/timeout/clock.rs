//! The first-token clock, which learns from the attempts it timed.
//!
//! # Why
//!
//! A fixed first-token timeout is wrong twice: too long to notice a hung server, too short for a
//! long prompt. The clock learns instead. *Mean plus two deviations*, the usual estimator,
//! mis-times 2–4 % of healthy calls on the skewed latencies of model servers, and spirals when
//! the samples it timed out are left out. The default therefore tracks a quantile directly
//! (p99.9, a step up of 5 % per exceeding sample and a thousandth of that down otherwise), counts
//! a timed-out attempt as a sample beyond it, and learns *time per prompt token* so that a long
//! prompt is not a slow server.
//!
//! Unary answers are learned apart from streams: their first byte comes with their last.

use super::{Estimator, FirstToken, Options};
use crate::quantile::Quantile;
use std::time::{Duration, Instant};

/// Samples before a learned clock replaces its static default.
const ENOUGH: u32 = 100;
/// Tracked quantile, and the step of its logarithm per sample.
const TAU: f64 = 0.999;
const ETA: f64 = 0.05;
/// Margin over the tracked quantile.
const MARGIN: f64 = 1.5;
/// The clock moves by at most this factor per [`MOVE_EVERY`].
const MOVE: f64 = 2.0;
const MOVE_EVERY: Duration = Duration::from_secs(10);
/// The tracked quantile is never more than this many times the expected wait. Steps down are a
/// thousand times smaller than up: one outage must not take a million samples to forget.
const MAX_RATIO: f64 = 64.0;
/// Weight of one sample in the running mean, deviation and fit.
const RECENT: f64 = 0.01;
/// No unary answer is timed out sooner: its length is not known beforehand.
const UNARY_FLOOR: Duration = Duration::from_secs(60);

/// What a clock is learned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The first token of a stream.
    Stream,
    /// A whole answer.
    Unary,
}

/// Learns one first-token clock from the attempts it timed.
#[derive(Debug)]
pub struct FirstTokenClock {
    shape: Shape,
    samples: u32,
    fit: Fit,
    /// Tracked quantile of `sample / predicted`.
    quantile: Quantile,
    mean: f64,
    variance: f64,
    /// The clock's last setting for a prediction of one second, and when it was moved.
    set: Option<(f64, Instant)>,
}

impl FirstTokenClock {
    /// A clock that has seen nothing.
    pub const fn new(shape: Shape) -> Self {
        Self {
            shape,
            samples: 0,
            fit: Fit { weight: 0.0, x: 0.0, y: 0.0, xx: 0.0, xy: 0.0 },
            quantile: Quantile::new(TAU, ETA, MAX_RATIO),
            mean: 0.0,
            variance: 0.0,
            set: None,
        }
    }

    /// How long to wait for the first token of an attempt with `prompt_tokens`.
    pub fn timeout(&mut self, options: &Options, prompt_tokens: u64, now: Instant) -> Duration {
        let learned = match (options.first_token, options.estimator) {
            (FirstToken::Fixed(fixed), _) => return fixed.min(options.total),
            (_, Estimator::Quantile) if self.samples < ENOUGH => self.patient(options),
            (_, Estimator::Quantile) => {
                let factor = self.slowly(MARGIN * self.quantile.value(), now);
                seconds(factor * self.fit.predict(prompt_tokens))
            }
            (_, Estimator::MeanStddev) if self.samples == 0 => Duration::from_millis(500),
            (_, Estimator::MeanStddev) => seconds(self.mean + 2.0 * self.variance.sqrt()),
        };
        learned.max(self.floor()).min(options.total)
    }

    /// An attempt showed its first token after `took`.
    pub fn observe(&mut self, took: Duration, prompt_tokens: u64) {
        self.samples = self.samples.saturating_add(1);
        let took = took.as_secs_f64();
        let ratio = took / self.fit.predict(prompt_tokens).max(1e-6);
        if self.samples <= ENOUGH {
            // While warming up the largest ratio stands in for the quantile.
            let largest = if self.samples < 5 { 2.0 } else { self.quantile.value().max(ratio) };
            self.quantile.set(largest);
        } else {
            self.quantile.observe(ratio);
        }
        self.fit.add(took, prompt_tokens);
        self.average(took);
    }

    /// An attempt was timed out by this clock: it would have taken longer, nobody knows how much.
    pub fn timed_out(&mut self, waited: Duration) {
        if self.samples >= ENOUGH {
            self.quantile.exceeded();
        }
        // Leaving it out would teach the mean only what was quick.
        self.samples = self.samples.saturating_add(1);
        self.average(waited.as_secs_f64());
    }

    /// Running mean and variance, old samples fading.
    fn average(&mut self, seconds: f64) {
        let weight = RECENT.max(1.0 / f64::from(self.samples));
        let off = seconds - self.mean;
        self.mean += weight * off;
        self.variance = (1.0 - weight) * (self.variance + weight * off * off);
    }

    /// Moves the clock's factor towards `wanted`, at most twofold in ten seconds.
    fn slowly(&mut self, wanted: f64, now: Instant) -> f64 {
        let Some((factor, moved)) = self.set else {
            self.set = Some((wanted, now));
            return wanted;
        };
        if now.saturating_duration_since(moved) >= MOVE_EVERY {
            self.set = Some((wanted.clamp(factor / MOVE, factor * MOVE), now));
        }
        self.set.map_or(wanted, |(factor, _)| factor)
    }

    fn patient(&self, options: &Options) -> Duration {
        match self.shape {
            Shape::Stream => Duration::from_secs(30),
            Shape::Unary => options.total,
        }
    }

    fn floor(&self) -> Duration {
        match self.shape {
            Shape::Stream => Duration::from_millis(500),
            Shape::Unary => UNARY_FLOOR,
        }
    }
}

/// Running least squares of `seconds ~ a + b * prompt tokens`, old samples fading.
#[derive(Debug)]
struct Fit {
    weight: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Fit {
    fn add(&mut self, seconds: f64, prompt_tokens: u64) {
        let (x, keep) = (prompt_tokens as f64, 1.0 - RECENT);
        self.weight = self.weight * keep + 1.0;
        self.x = self.x * keep + x;
        self.y = self.y * keep + seconds;
        self.xx = self.xx * keep + x * x;
        self.xy = self.xy * keep + x * seconds;
    }

    /// Expected seconds; never less than half the mean, as a fit through noise can be absurd.
    fn predict(&self, prompt_tokens: u64) -> f64 {
        if self.weight == 0.0 {
            return 1.0;
        }
        let (mean_x, mean_y) = (self.x / self.weight, self.y / self.weight);
        let spread = self.xx / self.weight - mean_x * mean_x;
        let slope = if spread > 1.0 {
            ((self.xy / self.weight - mean_x * mean_y) / spread).max(0.0)
        } else {
            0.0
        };
        (mean_y + slope * (prompt_tokens as f64 - mean_x)).max(mean_y / 2.0).max(1e-6)
    }
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value.max(0.0)).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(estimator: Estimator) -> Options {
        Options { estimator, ..Options::default() }
    }

    fn adaptive() -> Options {
        with(Estimator::Quantile)
    }

    /// Deterministic draws from a lognormal-like law: median 1 s, p99 about 2.5 s.
    fn samples(count: usize) -> impl Iterator<Item = f64> {
        let mut state = 12345u64;
        (0..count).map(move |_| {
            let mut draw = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 11) as f64 / (1u64 << 53) as f64
            };
            let normal = (0..12).map(|_| draw()).sum::<f64>() - 6.0;
            (0.4 * normal).exp()
        })
    }

    /// Share of healthy attempts the clock would have timed out after learning.
    fn mistimed(estimator: Estimator) -> f64 {
        let (mut clock, now) = (FirstTokenClock::new(Shape::Stream), Instant::now());
        let mut late = 0u32;
        for (n, sample) in samples(20_000).enumerate() {
            let limit =
                clock.timeout(&with(estimator), 100, now + Duration::from_millis(n as u64 * 10));
            if sample > limit.as_secs_f64() {
                late += u32::from(n > 2000);
                clock.timed_out(limit);
            } else {
                clock.observe(seconds(sample), 100);
            }
        }
        f64::from(late) / 18_000.0
    }

    #[test]
    fn the_quantile_times_out_hardly_any_healthy_attempt() {
        let (quantile, mean) = (mistimed(Estimator::Quantile), mistimed(Estimator::MeanStddev));
        assert!(quantile < 0.002, "{quantile}");
        assert!(mean > 0.01, "{mean}: the comparison this default rests on");
    }

    #[test]
    fn it_is_patient_until_it_has_seen_enough() {
        let (mut clock, now) = (FirstTokenClock::new(Shape::Stream), Instant::now());
        for _ in 0..99 {
            clock.observe(Duration::from_millis(50), 10);
            assert_eq!(clock.timeout(&adaptive(), 10, now), Duration::from_secs(30));
        }
        clock.observe(Duration::from_millis(50), 10);
        assert_eq!(clock.timeout(&adaptive(), 10, now), Duration::from_millis(500));
    }

    #[test]
    fn a_long_prompt_gets_more_time() {
        let (mut clock, now) = (FirstTokenClock::new(Shape::Stream), Instant::now());
        for n in 0..400u64 {
            let tokens = 1000 * (1 + n % 10);
            clock.observe(Duration::from_millis(200 + tokens), tokens);
        }
        let (short, long) =
            (clock.timeout(&adaptive(), 1000, now), clock.timeout(&adaptive(), 10_000, now));
        assert!(long > 3 * short, "{short:?} {long:?}");
    }

    #[test]
    fn it_follows_a_slower_server_and_not_by_leaps() {
        let (mut clock, start) = (FirstTokenClock::new(Shape::Stream), Instant::now());
        for _ in 0..200 {
            clock.observe(Duration::from_secs(1), 10);
        }
        let before = clock.timeout(&adaptive(), 10, start);
        for n in 1..=60 {
            let now = start + Duration::from_secs(n);
            let limit = clock.timeout(&adaptive(), 10, now);
            assert!(limit <= before * 70, "{limit:?}");
            (0..5).for_each(|_| clock.observe(Duration::from_secs(4), 10));
        }
        assert!(
            clock.timeout(&adaptive(), 10, start + Duration::from_secs(90))
                > Duration::from_secs(4)
        );
    }

    #[test]
    fn it_recovers_from_a_long_outage() {
        let (mut clock, start) = (FirstTokenClock::new(Shape::Stream), Instant::now());
        let second = Duration::from_secs(1);
        (0..200).for_each(|_| clock.observe(second, 10));
        (0..100_000).for_each(|_| clock.timed_out(3 * second));
        (0..100_000).for_each(|_| clock.observe(second, 10));
        let limit =
            (0..100).map(|n| clock.timeout(&adaptive(), 10, start + n * 11 * second)).last();
        assert!(limit.unwrap() < 10 * second, "{limit:?}");
    }

    #[test]
    fn a_fixed_clock_is_fixed_and_a_unary_one_generous() {
        let fixed = Options {
            first_token: FirstToken::Fixed(Duration::from_secs(3)),
            ..Options::default()
        };
        let now = Instant::now();
        assert_eq!(
            FirstTokenClock::new(Shape::Stream).timeout(&fixed, 9, now),
            Duration::from_secs(3)
        );
        let mut unary = FirstTokenClock::new(Shape::Unary);
        assert_eq!(unary.timeout(&adaptive(), 9, now), Duration::from_secs(600));
        (0..200).for_each(|_| unary.observe(Duration::from_millis(50), 9));
        assert_eq!(unary.timeout(&adaptive(), 9, now), Duration::from_secs(60));
    }
}
