//! weighted: at random, in proportion to the weights.

/// Picks one of `weights` in proportion, by `roll` in `[0, 1)`, among those `open` says may be
/// taken; `None` when there is none.
///
/// A weight of zero is never picked: it parks a target without removing it.
pub fn weighted(weights: &[u32], roll: f64, open: impl Fn(usize) -> bool) -> Option<usize> {
    draw(weights.len(), |index| if open(index) { f64::from(weights[index]) } else { 0.0 }, roll)
}

/// Draws one of `count` positions in proportion to `weight`; never one of weight zero.
pub(super) fn draw(count: usize, weight: impl Fn(usize) -> f64, roll: f64) -> Option<usize> {
    let total: f64 = (0..count).map(&weight).sum();
    let mut ticket = roll * total;
    let mut last = None;
    for index in 0..count {
        let share = weight(index);
        if share <= 0.0 {
            continue;
        }
        if ticket < share {
            return Some(index);
        }
        ticket -= share;
        // Rounding can leave a ticket over: it is the last one's.
        last = Some(index);
    }
    last
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
        assert_eq!(weighted(&[1, 1, 0], 1.0, |_| true), Some(1));
    }

    #[test]
    fn skips_what_is_closed() {
        check(&[3, 1], &[0], &[1, 1, 1, 1]);
        assert_eq!(weighted(&[3, 1], 0.5, |_| false), None);
        assert_eq!(weighted(&[], 0.5, |_| true), None);
        assert_eq!(weighted(&[0], 0.5, |_| true), None);
    }
}
