//! The invariants of the house (DESIGN §7), each asked at the moment it could be broken: when an
//! attempt leaves (`sends`), when it or its call ends (`ends`).

mod ends;
mod sends;

use super::{
    plan::Plan,
    watch::{Called, How, Seen, Tried},
};
use std::time::Duration;
use tidegate_core::{Class, Error, Origin, UpstreamState};
use tidegate_engine::Held;

/// Timers are a millisecond fine, and fire late rather than early.
const LATE: Duration = Duration::from_millis(2);

/// What the engine says of itself.
pub(super) struct Gauges {
    pub(super) held: Held,
    pub(super) gates: Vec<UpstreamState>,
}

impl Seen {
    /// Whoever was let in holds its lease.
    fn at_lease(&mut self, plan: &Plan, held: Held) {
        let inside: Vec<_> = self.inside().collect();
        let bytes: usize = inside.iter().map(|n| plan.calls[*n].call.payload.len()).sum();
        let is_limited = |n: &&usize| plan.limits(&plan.calls[**n].call.tenant) != <_>::default();
        let limited = inside.iter().filter(is_limited).count();
        let holds =
            held.slots >= inside.len() && held.bytes >= bytes && held.tenant_slots >= limited;
        self.must(holds && held.slots <= plan.max_in_flight, || {
            format!("{inside:?} are inside, {limited} of them limited, with {held:?}")
        });
    }

    /// The call's own attempts that are out.
    fn live(&self, number: usize) -> impl Iterator<Item = usize> + '_ {
        let mine =
            move |tried: &Tried| tried.call == number && !tried.is_copy && tried.ended.is_none();
        (0..self.tried.len()).filter(move |index| mine(&self.tried[*index]))
    }

    /// Attempts that are out at `place`, copies included.
    fn live_at(&self, place: (&str, &str)) -> usize {
        let here = |tried: &&Tried| tried.place() == place && tried.ended.is_none();
        self.tried.iter().filter(here).count()
    }

    /// Calls that were let in and are not over yet, as far as can be seen.
    fn inside(&self) -> impl Iterator<Item = usize> + '_ {
        let inside = |call: &Called| call.sent > 0 && call.record.is_none() && !call.is_over;
        (0..self.calls.len()).filter(move |number| inside(&self.calls[*number]))
    }
}

impl How {
    /// What the end says of the upstream; `None` when it was the caller's or ours.
    fn class(self) -> Option<Class> {
        match self {
            Self::Failed(kind) => Some(Error::new(kind, Origin::Upstream, "").class()),
            Self::Answered | Self::Broken(_) | Self::Dropped | Self::Unsent => None,
        }
    }
}
