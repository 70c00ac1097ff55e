//! The callers with limits that were seen lately, each a party of its own.

use super::{Party, Rule, Scope, party::SLOT_AGAIN};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    iter::Sum,
    sync::Arc,
    time::{Duration, Instant},
};
use tidegate_core::{Error, Kind, Origin, Result};

/// Callers remembered at once; beyond it those that are idle and have used nothing are forgotten,
/// which changes nothing for them.
const MAX_REMEMBERED: usize = 100_000;
/// All are looked through for idle ones this often at most.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Parties by the callers' ids.
#[derive(Default)]
pub(super) struct Callers(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    parties: HashMap<Arc<str>, Arc<Party>>,
    swept: Option<Instant>,
}

impl Callers {
    /// The party of the caller `id`, which goes by `rule` from now on.
    pub(super) fn party(&self, id: &Arc<str>, rule: &Rule, now: Instant) -> Result<Arc<Party>> {
        let known = self.0.lock().parties.get(id).cloned();
        if let Some(party) = known {
            party.follow(rule, now);
            return Ok(party);
        }
        let mut seen = self.0.lock();
        if seen.parties.len() >= MAX_REMEMBERED {
            seen.forget_the_idle(now);
        }
        if seen.parties.len() >= MAX_REMEMBERED && !seen.parties.contains_key(id) {
            let message = "too many callers at once; try again shortly";
            return Err(Error::new(Kind::Overloaded, Origin::Gateway, message)
                .with_retry_after(Some(SLOT_AGAIN)));
        }
        let fresh = || Arc::new(Party::new(Scope::Caller, id.clone(), *rule));
        Ok(seen.parties.entry(id.clone()).or_insert_with(fresh).clone())
    }

    /// A sum over all parties.
    pub(super) fn sum<N: Sum>(&self, of: impl Fn(&Party) -> N) -> N {
        self.0.lock().parties.values().map(|party| of(party)).sum()
    }
}

impl Seen {
    fn forget_the_idle(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP_EVERY) {
            return;
        }
        self.swept = Some(now);
        // One that is shared is about to be used.
        self.parties.retain(|_, party| Arc::strong_count(party) > 1 || !party.is_idle(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_core::Limits;

    #[test]
    fn idle_callers_are_forgotten_and_busy_ones_are_not() {
        let limits = Limits { requests_per_minute: Some(60), ..Limits::default() };
        let rule = Rule { limits, ..Rule::default() };
        let (callers, start) = (Callers::default(), Instant::now());
        let party = |n: usize, now| callers.party(&n.to_string().into(), &rule, now);
        let busy = party(0, start).unwrap();
        for n in 1..MAX_REMEMBERED {
            party(n, start).unwrap();
        }
        party(MAX_REMEMBERED, start).unwrap();
        assert_eq!(callers.0.lock().parties.len(), 2, "the busy one, and the one that came");
        assert!(Arc::ptr_eq(&busy, &party(0, start).unwrap()));
    }

    #[test]
    fn where_all_are_busy_nobody_new_is_remembered() {
        let limits = Limits { requests_per_minute: Some(1), ..Limits::default() };
        let rule = Rule { limits, ..Rule::default() };
        let (callers, now) = (Callers::default(), Instant::now());
        for n in 0..MAX_REMEMBERED {
            let party = callers.party(&n.to_string().into(), &rule, now).unwrap();
            party.lock().take(Default::default(), now);
        }
        let refused = callers.party(&"new".into(), &rule, now).err().unwrap();
        assert_eq!(refused.kind(), Kind::Overloaded);
        assert!(refused.retry_after().is_some());
        callers.party(&"7".into(), &rule, now).unwrap();
    }
}
