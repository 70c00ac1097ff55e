//! What is out: attempts that were sent and have not ended, by the tenth of a second they left in.

use std::{collections::VecDeque, time::Duration};

/// Tenths of a second that are told apart: a minute. What is out for longer counts as a minute old.
const MAX_MOMENTS: usize = 600;

/// A tenth of a second since the breaker was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(u64);

impl Moment {
    pub(super) fn of(since_start: Duration) -> Self {
        let tenths = u64::from(since_start.subsec_millis() / 100);
        Self(since_start.as_secs().saturating_mul(10).saturating_add(tenths))
    }
}

/// How many are out. Every one that is [`sent`](Self::sent) must be [`ended`](Self::ended).
#[derive(Debug, Default)]
pub(super) struct Out {
    /// The moment of the first count; those of older attempts were added to it.
    oldest: u64,
    /// One count for each moment since, at most [`MAX_MOMENTS`].
    counts: VecDeque<u32>,
}

impl Out {
    pub(super) fn sent(&mut self, at: Moment) {
        while self.counts.front() == Some(&0) {
            self.counts.pop_front();
            self.oldest += 1;
        }
        if self.counts.is_empty() {
            self.oldest = at.0;
        }
        let a_minute_old = at.0.saturating_sub(MAX_MOMENTS as u64 - 1);
        while self.oldest < a_minute_old && self.counts.len() > 1 {
            self.age();
        }
        self.oldest = self.oldest.max(a_minute_old);
        let place = self.place(at);
        if place >= self.counts.len() {
            self.counts.resize(place + 1, 0);
        }
        self.counts[place] += 1;
    }

    pub(super) fn ended(&mut self, sent: Moment) {
        let place = self.place(sent);
        if let Some(count) = self.counts.get_mut(place) {
            *count = count.saturating_sub(1);
        }
    }

    /// How many are still out of those that left before an attempt of `sent`, in the same tenth of
    /// a second, or in the next: attempts that left together may have been told apart.
    pub(super) fn overtaken_by(&self, sent: Moment) -> u64 {
        let slower = self.counts.iter().take(self.place(sent).saturating_add(2));
        slower.map(|count| u64::from(*count)).sum()
    }

    /// Adds the oldest count to the next.
    fn age(&mut self) {
        let oldest = self.counts.pop_front().unwrap_or(0);
        self.oldest += 1;
        if let Some(next) = self.counts.front_mut() {
            *next += oldest;
        }
    }

    fn place(&self, at: Moment) -> usize {
        usize::try_from(at.0.saturating_sub(self.oldest)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays `<moment> sent`, `<moment> ended` (by when it was sent) and `<moment> overtook <n>`.
    #[track_caller]
    fn check(script: &str) {
        let mut out = Out::default();
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<_> = line.split_whitespace().collect();
            let at = Moment(words[0].parse().unwrap());
            match words[1] {
                "sent" => out.sent(at),
                "ended" => out.ended(at),
                _ => assert_eq!(out.overtaken_by(at).to_string(), words[2], "at: {line}"),
            }
            assert!(out.counts.len() <= MAX_MOMENTS);
        }
    }

    #[test]
    fn older_ones_and_those_beside_it_are_overtaken() {
        check(
            "
            3   sent
            10  sent
            10  sent
            11  sent
            12  sent
            10  overtook 4
            12  overtook 5
            3   ended
            10  ended
            10  overtook 2
            3   overtook 0
            10  ended
            11  ended
            12  ended
            99  sent
            99  overtook 1
            ",
        );
    }

    #[test]
    fn what_is_out_for_long_is_a_minute_old() {
        check(
            "
            0     sent
            1     sent
            900   sent
            902   overtook 3
            302   overtook 2
            0     ended
            1     ended
            902   overtook 1
            9000  sent
            900   ended
            9000  overtook 1
            ",
        );
    }

    #[test]
    fn a_send_after_a_long_silence_walked_through_all_of_it() {
        check(
            "
            0              sent
            9000000000000  sent
            9000000000000  overtook 2
            0              ended
            9000000000000  overtook 1
            ",
        );
    }
}
