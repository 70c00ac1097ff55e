//! Times in a histogram: exact to three digits, whatever their number.

use crate::Summary;
use hdrhistogram::Histogram;
use std::time::Duration;

/// Shares whose times make the percentile curve, densest where it is steep.
const CURVE: [f64; 36] = [
    0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7,
    0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.965, 0.98, 0.99, 0.993, 0.995, 0.998, 0.999, 0.9995,
    0.9998, 0.9999, 0.99995, 0.99999, 1.0,
];

/// Durations, in microseconds.
pub(crate) struct Times(Histogram<u64>);

impl Times {
    /// Three digits: a report's figures.
    pub(crate) fn new() -> Self {
        Self::with_digits(3)
    }

    /// Two digits take an eighth of the memory: a point of a time series.
    pub(crate) fn coarse() -> Self {
        Self::with_digits(2)
    }

    fn with_digits(digits: u8) -> Self {
        Self(Histogram::new(digits).expect("it takes up to five digits"))
    }

    pub(crate) fn record(&mut self, time: Duration) {
        self.record_micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    pub(crate) fn record_micros(&mut self, micros: u64) {
        // Grows to hold it: the saturating form would not.
        self.0.record(micros.min(MAX_MICROS)).expect("it resizes itself");
    }

    pub(crate) fn clear(&mut self) {
        self.0.reset();
    }

    /// Milliseconds that this share of the times does not exceed; 0 when there is none.
    pub(crate) fn at(&self, share: f64) -> f64 {
        self.0.value_at_quantile(share).min(self.0.max()) as f64 / 1000.0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `None` when nothing was recorded.
    pub(crate) fn summary(&self) -> Option<Summary> {
        if self.0.is_empty() {
            return None;
        }
        let count = self.0.len();
        // A share finer than one of the recorded times has nothing to say.
        let finest = 1.0 - 1.0 / count as f64;
        let shares = CURVE.into_iter().filter(|share| *share <= finest || *share == 1.0);
        Some(Summary {
            count,
            mean_ms: self.0.mean() / 1000.0,
            min_ms: self.0.min() as f64 / 1000.0,
            p50_ms: self.at(0.5),
            p90_ms: self.at(0.9),
            p99_ms: self.at(0.99),
            p999_ms: self.at(0.999),
            max_ms: self.0.max() as f64 / 1000.0,
            curve: shares.map(|share| (share, self.at(share))).collect(),
        })
    }
}

/// Two days: longer than anything can take here.
const MAX_MICROS: u64 = 2 * 86_400 * 1_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_to_three_digits() {
        let mut times = Times::new();
        assert!(times.summary().is_none());
        for millis in 1..=1000 {
            times.record(Duration::from_millis(millis));
        }
        let summary = times.summary().unwrap();
        for (found, right) in [
            (summary.p50_ms, 500.0),
            (summary.p90_ms, 900.0),
            (summary.p99_ms, 990.0),
            (summary.p999_ms, 999.0),
            (summary.max_ms, 1000.0),
            (summary.mean_ms, 500.5),
        ] {
            assert!((found / right - 1.0_f64).abs() < 0.001, "{found} for {right}");
        }
        assert_eq!(summary.count, 1000);
        assert!(summary.curve.iter().all(|(share, _)| *share <= 0.999 || *share == 1.0));
        assert!(summary.curve.is_sorted_by(|a, b| a.1 <= b.1));
    }
}
