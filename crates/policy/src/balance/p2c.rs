//! p2c-ewma: the better of two drawn by weight.
//!
//! Better is who has the smaller `latency * (in flight + 1)`: the time the attempts there take
//! together. In flight is taken relative to the target's fair part of all that is, so that a
//! target of weight 19 is not thought busy beside one of weight 1.

use super::{Field, weighted};

pub(super) fn pick(field: &Field<'_>, first_roll: f64, second_roll: f64) -> Option<usize> {
    let first = field.draw(first_roll)?;
    let others = |index: usize| if index == first { 0.0 } else { field.weight(index) };
    let Some(second) = weighted::draw(field.len(), others, second_roll) else {
        return Some(first);
    };
    let (all, weights) = (field.in_flight(), field.total_weight());
    let load = |index: usize| {
        let candidate = &field.candidates[index];
        let fair = all * field.weight(index) / weights;
        candidate.cost * (f64::from(candidate.in_flight) + 1.0) / (fair + 1.0)
    };
    Some(if field.yields(first, second, load) { second } else { first })
}
