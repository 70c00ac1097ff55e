//! Balance: which target of a model takes the next attempt.
//!
//! # Why
//!
//! Weights let one model be served by several servers or accounts in stated shares. An attempt
//! after a failure prefers a target the call has not tried: the same server would most likely
//! fail the same way.

/// Picks one of `weights` in proportion, by `roll` in `[0, 1)`, among those `open` says may be
/// taken; `None` when there is none.
///
/// A weight of zero is never picked: it parks a target without removing it.
pub fn weighted(weights: &[u32], roll: f64, open: impl Fn(usize) -> bool) -> Option<usize> {
    let share = |index: usize| if open(index) { u64::from(weights[index]) } else { 0 };
    let total: u64 = (0..weights.len()).map(share).sum();
    if total == 0 {
        return None;
    }
    let mut ticket = ((roll * total as f64) as u64).min(total - 1);
    for index in 0..weights.len() {
        match ticket.checked_sub(share(index)) {
            Some(left) => ticket = left,
            None => return Some(index),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::weighted;

    #[track_caller]
    fn check(weights: &[u32], closed: &[usize], expected: &[usize]) {
        let rolls = (0..expected.len()).map(|i| i as f64 / expected.len() as f64);
        let picks: Vec<_> =
            rolls.filter_map(|roll| weighted(weights, roll, |i| !closed.contains(&i))).collect();
        assert_eq!(picks, expected);
    }

    #[test]
    fn picks_in_proportion() {
        check(&[3, 1], &[], &[0, 0, 0, 1]);
        check(&[1, 0, 1], &[], &[0, 2]);
    }

    #[test]
    fn skips_what_is_closed() {
        check(&[3, 1], &[0], &[1, 1, 1, 1]);
        assert_eq!(weighted(&[3, 1], 0.5, |_| false), None);
        assert_eq!(weighted(&[], 0.5, |_| true), None);
        assert_eq!(weighted(&[0], 0.5, |_| true), None);
    }
}
