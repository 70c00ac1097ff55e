//! Quantile: a running percentile in one number.
//!
//! # Why
//!
//! A percentile of a sliding window needs the window. Stepping needs the estimate alone: up by
//! `eta * tau` (of its logarithm) when a sample exceeds it, down by `eta * (1 - tau)` when not.
//! The steps cancel where `P(sample > value) = 1 - tau`, which is the quantile; it follows a
//! moving one, and takes a sample of which only "it was longer than that" is known.

/// Tracks the `tau` quantile of the positive samples it is shown.
#[derive(Debug)]
pub(crate) struct Quantile {
    tau: f64,
    eta: f64,
    /// The value never leaves `0 ..= max`, so that it is back soon from an outage.
    max: f64,
    value: f64,
}

impl Quantile {
    /// Starts from zero, from which only [`Quantile::set`] leads away.
    pub(crate) const fn new(tau: f64, eta: f64, max: f64) -> Self {
        Self { tau, eta, max, value: 0.0 }
    }

    pub(crate) const fn value(&self) -> f64 {
        self.value
    }

    /// Sets the value outright, as while warming up.
    pub(crate) const fn set(&mut self, value: f64) {
        self.value = value.min(self.max);
    }

    pub(crate) fn observe(&mut self, sample: f64) {
        self.step(sample > self.value);
    }

    /// A sample of which only this is known: it was beyond the value.
    pub(crate) fn exceeded(&mut self) {
        self.step(true);
    }

    fn step(&mut self, exceeded: bool) {
        let log_step = if exceeded { self.eta * self.tau } else { -self.eta * (1.0 - self.tau) };
        self.set(self.value * log_step.exp());
    }
}

#[cfg(test)]
mod tests {
    use super::Quantile;

    /// Shows 40,000 even draws from `[0, 1)` times `scale` and checks how many of the second
    /// half exceed the value.
    #[track_caller]
    fn check(quantile: &mut Quantile, scale: f64, expected: f64) {
        let mut exceeded = 0;
        for n in 0..40_000 {
            let sample = scale * (f64::from(n) * 0.618_034).fract();
            exceeded += u32::from(n >= 20_000 && sample > quantile.value());
            quantile.observe(sample);
        }
        let share = f64::from(exceeded) / 20_000.0;
        assert!((share - expected).abs() < 0.1 * expected, "{share} is not {expected}");
    }

    #[test]
    fn finds_and_follows_the_quantile() {
        for tau in [0.5, 0.95, 0.99] {
            let mut quantile = Quantile::new(tau, 0.05, 64.0);
            quantile.set(1.0);
            for scale in [1.0, 8.0, 0.1] {
                check(&mut quantile, scale, 1.0 - tau);
            }
        }
    }

    #[test]
    fn censored_samples_push_it_up_to_its_bound() {
        let mut quantile = Quantile::new(0.95, 0.05, 64.0);
        quantile.set(1.0);
        quantile.exceeded();
        assert!(quantile.value() > 1.04);
        (0..100_000).for_each(|_| quantile.exceeded());
        assert!((quantile.value() - 64.0).abs() < 1e-9);
    }
}
