//! When requests are due: a schedule made before, and independent of, any answer.
//!
//! # Why
//!
//! A generator that waits for an answer before it sends the next request asks less of a server
//! the slower it is, and never sees the queue its users would stand in ("coordinated omission",
//! Gil Tene). An open loop's schedule does not listen to the server. Independent users arrive
//! as a Poisson process; evenly spaced ones flatter a server, because they never come in bunches.

use std::time::Duration;

/// How arrivals are spaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arrivals {
    /// Exponential gaps: independent users. The default.
    #[default]
    Poisson,
    /// Equal gaps.
    Uniform,
}

impl Arrivals {
    /// The word used in options and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Poisson => "poisson",
            Self::Uniform => "uniform",
        }
    }
}

/// The times requests are due, from the start of a run; the same for the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    arrivals: Arrivals,
    per_second: f64,
    chance: u64,
    /// Requests so far; equal gaps are multiplied, not added up.
    count: u64,
    /// Seconds to the last one.
    at: f64,
    until: Duration,
    /// From here on requests count towards `left`.
    counted_from: Duration,
    left: u64,
}

impl Schedule {
    /// `per_second` above 0, until `until`; after `counted_from` at most `at_most`.
    pub(crate) fn new(
        arrivals: Arrivals,
        per_second: f64,
        seed: u64,
        until: Duration,
        counted_from: Duration,
        at_most: u64,
    ) -> Self {
        let chance = seed;
        Self { arrivals, per_second, chance, count: 0, at: 0.0, until, counted_from, left: at_most }
    }

    /// Even in (0, 1]: SplitMix64 (Steele, Lea, Flood 2014), so that a seed means the same
    /// schedule over versions of libraries.
    fn unit(&mut self) -> f64 {
        self.chance = self.chance.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.chance ^ (self.chance >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (((z ^ (z >> 31)) >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.at = match self.arrivals {
            Arrivals::Poisson => self.at - self.unit().ln() / self.per_second,
            Arrivals::Uniform => self.count as f64 / self.per_second,
        };
        self.count += 1;
        let due = Duration::try_from_secs_f64(self.at).ok().filter(|due| *due < self.until)?;
        if due >= self.counted_from {
            self.left = self.left.checked_sub(1)?;
        }
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(arrivals: Arrivals, seed: u64) -> Schedule {
        Schedule::new(arrivals, 1000.0, seed, Duration::from_secs(20), Duration::ZERO, u64::MAX)
    }

    #[test]
    fn poisson_has_the_rate_and_the_spread() {
        let dues: Vec<f64> = schedule(Arrivals::Poisson, 1).map(|due| due.as_secs_f64()).collect();
        assert!((19_500..20_500).contains(&dues.len()), "{}", dues.len());
        let gaps: Vec<f64> = dues.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        let spread = variance.sqrt() / mean;
        assert!((0.95..1.05).contains(&spread), "an exponential's deviation is its mean: {spread}");
    }

    #[test]
    fn the_same_seed_is_the_same_schedule() {
        assert!(schedule(Arrivals::Poisson, 7).eq(schedule(Arrivals::Poisson, 7)));
        assert!(schedule(Arrivals::Poisson, 7).ne(schedule(Arrivals::Poisson, 8)));
    }

    #[test]
    fn uniform_is_even_and_stops() {
        let dues: Vec<Duration> = schedule(Arrivals::Uniform, 0).collect();
        assert_eq!(dues.len(), 20_000);
        assert_eq!(dues[12_345], Duration::from_millis(12_345));
    }

    #[test]
    fn a_number_of_requests_counts_after_the_warm_up() {
        let second = Duration::from_secs(1);
        let schedule = Schedule::new(Arrivals::Uniform, 10.0, 0, 20 * second, second, 5);
        let dues: Vec<u128> = schedule.map(|due| due.as_millis()).collect();
        assert_eq!(dues.len(), 15);
        assert_eq!(dues.last(), Some(&1400));
    }
}
