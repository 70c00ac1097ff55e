//! round-robin: one after the other, smoothly by weight.
//!
//! Every target earns its weight with each pick; the richest is picked and pays what all earned.
//! With weights 5:1:1 that gives `a a b a c a a`, not five `a` in a row (nginx's smooth weighted
//! round robin).

use super::Field;

#[derive(Debug)]
pub(super) struct RoundRobin {
    /// One number per target.
    earned: Vec<f64>,
}

impl RoundRobin {
    pub(super) const fn new() -> Self {
        Self { earned: Vec::new() }
    }

    pub(super) fn pick(&mut self, field: &Field<'_>) -> Option<usize> {
        self.earned.resize(field.len(), 0.0);
        let mut richest: Option<usize> = None;
        for index in field.open() {
            self.earned[index] += field.weight(index);
            if richest.is_none_or(|best| self.earned[index] > self.earned[best]) {
                richest = Some(index);
            }
        }
        let picked = richest?;
        self.earned[picked] -= field.total_weight();
        Some(picked)
    }
}
