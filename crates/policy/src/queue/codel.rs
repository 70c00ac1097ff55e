//! Controlled delay: whether a line is a burst that drains, or stands because more comes in than
//! goes out.
//!
//! A burst is harmless however long it is; a *standing* line serves nobody better and delays all.
//! The sign of one is that for a whole interval not one moment was good: the oldest call had
//! waited for longer than its target all the time (Nichols and Jacobson, CoDel; the server's form
//! of it is Maurer, "Fail at scale"). The oldest is asked, not the one served, because under
//! LIFO the one served is always young.
//!
//! ```text
//!      oldest over its target for an interval
//! good ---------------------------------------> overloaded
//!      <---------------------------------------
//!      nobody over it for as long
//! ```
//!
//! Leaving takes as long as entering, and coming back a quarter of it: a load slightly over what
//! can be served empties the line now and then and is no less an overload, nor is one that is
//! shed to nothing.

use std::time::{Duration, Instant};

/// An overload that ended less than this many intervals ago is still remembered.
const REMEMBERED: u32 = 10;

/// The state of one line.
#[derive(Debug, Default)]
pub(super) struct Codel {
    overloaded: bool,
    /// Since when every look has seen the opposite of `overloaded`.
    otherwise_since: Option<Instant>,
    ended_at: Option<Instant>,
}

impl Codel {
    pub(super) const fn overloaded(&self) -> bool {
        self.overloaded
    }

    /// Looks at the line: `over_at` is when its oldest call is over its target.
    pub(super) fn observe(&mut self, now: Instant, interval: Duration, over_at: Option<Instant>) {
        let over_at = over_at.filter(|over_at| *over_at < now);
        if over_at.is_some() == self.overloaded {
            self.otherwise_since = None;
            return;
        }
        // Calls in front of the oldest were older still: since then at least.
        let since = *self.otherwise_since.get_or_insert(over_at.unwrap_or(now));
        let lately = self.ended_at.is_some_and(|ended| {
            now.saturating_duration_since(ended) < interval.saturating_mul(REMEMBERED)
        });
        let enough = if lately && !self.overloaded { interval / 4 } else { interval };
        if now.saturating_duration_since(since) >= enough {
            self.ended_at = self.overloaded.then_some(now);
            self.overloaded = !self.overloaded;
            self.otherwise_since = None;
        }
    }
}
