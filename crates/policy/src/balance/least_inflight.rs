//! least-inflight: the one with the fewest attempts in flight, relative to its weight.
//!
//! Latency enters by itself: a slow server's attempts stay in flight for longer. Among equals the
//! weights draw.

use super::Field;

pub(super) fn pick(field: &Field<'_>, roll: f64) -> Option<usize> {
    let drawn = field.draw(roll)?;
    let (all, weights) = (field.in_flight(), field.total_weight());
    let load = |index: usize| {
        let fair = all * field.weight(index) / weights;
        (f64::from(field.candidates[index].in_flight) + 1.0) / (fair + 1.0)
    };
    let least = field.open().min_by(|a, b| load(*a).total_cmp(&load(*b)))?;
    Some(if field.yields(drawn, least, load) { least } else { drawn })
}
