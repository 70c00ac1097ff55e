//! Rows and tokens per second over the last ten seconds or so.

use std::{collections::VecDeque, time::Duration};

/// Longest time looked back.
const WINDOW: Duration = Duration::from_secs(10);

/// Counts seen lately.
#[derive(Default)]
pub(super) struct Speed {
    /// (when, rows, tokens); at most one for each quarter of a second of [`WINDOW`].
    seen: VecDeque<(Duration, u64, u64)>,
    /// Tokens at the start of this run: earlier runs are not speed.
    first_tokens: Option<u64>,
}

impl Speed {
    /// Takes note of the counts at `now`.
    pub(super) fn see(&mut self, now: Duration, rows: u64, tokens: u64) {
        if self.first_tokens.is_none() {
            // Before the first row everything was paid by earlier runs.
            let before = if rows == 0 { tokens } else { 0 };
            self.first_tokens = Some(before);
            self.seen.push_back((Duration::ZERO, 0, before));
        }
        self.seen.push_back((now, rows, tokens));
        while self.seen.len() > 2 && now.saturating_sub(self.seen[1].0) >= WINDOW {
            self.seen.pop_front();
        }
    }

    /// Rows and tokens per second.
    pub(super) fn per_second(&self) -> (f64, f64) {
        let (Some(first), Some(last)) = (self.seen.front(), self.seen.back()) else {
            return (0.0, 0.0);
        };
        let seconds = last.0.saturating_sub(first.0).as_secs_f64();
        if seconds <= 0.0 {
            return (0.0, 0.0);
        }
        let rate = |from: u64, to: u64| to.saturating_sub(from) as f64 / seconds;
        (rate(first.1, last.1), rate(first.2, last.2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_ten_seconds_count() {
        let mut speed = Speed::default();
        assert_eq!(speed.per_second(), (0.0, 0.0));
        for second in 0..=100 {
            // 10 rows a second at first, then 50.
            let rows = if second <= 50 { second * 10 } else { 500 + (second - 50) * 50 };
            speed.see(Duration::from_secs(second), rows, 1000 + rows * 2);
        }
        assert_eq!(speed.per_second(), (50.0, 100.0));
        assert!(speed.seen.len() < 20);
    }
}
