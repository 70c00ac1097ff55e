//! Limits: what callers, teams, models and upstreams may use of requests, tokens, money and calls
//! at once (SPEC §6.6).
//!
//! # Why
//!
//! Four sorts of people are protected: callers from each other, a team's purse from its members,
//! a model from everybody, an upstream's bill from all models together. A call is let in where
//! all of them have room, and takes from all of them or from none: a refusal costs nothing, and
//! says which limit of whom it was.
//!
//! ```text
//! call    --> caller, team, model   asked once, at admission; a refusal is the caller's 429
//! attempt --> upstream              asked by the gate as it leaves; a refusal sends it elsewhere
//! ```
//!
//! Each (scope, id) has one [`Party`]. Tokens and money are reserved by estimate and settled by
//! what was used; [`Hold`] is what one call holds of its parties.

mod callers;
mod hold;
mod party;
mod rule;

pub(crate) use hold::{Amount, Hold};
pub(crate) use party::{Party, Refusal, wait};
pub use rule::{Options, Rule};

use callers::Callers;
use std::{collections::HashMap, sync::Arc, time::Instant};
use tidegate_core::{Call, Limits, Result};

/// Whose limits they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// One caller's own.
    Caller,
    /// Of all callers of a team together.
    Team,
    /// Of all calls that ask for a model, whoever asks and wherever it is answered.
    Model,
    /// Of all attempts at an upstream, whatever the model.
    Upstream,
}

/// Every party there is.
pub(crate) struct Table {
    options: Options,
    callers: Callers,
    teams: Parties,
    models: Parties,
    upstreams: Parties,
}

type Parties = HashMap<Arc<str>, Arc<Party>>;

impl Table {
    pub(crate) fn new(options: Options) -> Self {
        let parties = |scope, rules: &HashMap<Arc<str>, Rule>| {
            let limited = rules.iter().filter(|(_, rule)| rule.limits != Limits::default());
            let open = |(id, rule): (&Arc<str>, &Rule)| {
                (id.clone(), Arc::new(Party::new(scope, id.clone(), *rule)))
            };
            limited.map(open).collect()
        };
        Self {
            callers: Callers::default(),
            teams: parties(Scope::Team, &options.teams),
            models: parties(Scope::Model, &options.models),
            upstreams: parties(Scope::Upstream, &options.upstreams),
            options,
        }
    }

    /// Takes what `call` needs of its caller's, its team's and its model's limits; `None` when
    /// there are none.
    pub(crate) fn admit(&self, call: &Call, needs: Amount, now: Instant) -> Result<Option<Hold>> {
        let tenant = &*call.tenant;
        let rule = self.options.of_caller(tenant);
        let limited = rule.limits != Limits::default();
        let caller = limited.then(|| self.callers.party(&tenant.id, &rule, now)).transpose()?;
        let team = tenant.team.as_ref().and_then(|team| self.teams.get(team)).cloned();
        let model = self.models.get(&call.model).cloned();
        Hold::take([caller, team, model], needs, now)
    }

    /// The party of an upstream, if it has limits.
    pub(crate) fn upstream(&self, name: &str) -> Option<Arc<Party>> {
        self.upstreams.get(name).cloned()
    }

    /// Calls in flight of all callers with limits.
    pub(crate) fn callers_in_flight(&self) -> usize {
        self.callers.sum(|party| party.in_flight())
    }

    /// Calls and attempts in flight of all teams, models and upstreams with limits, and what is
    /// reserved, callers' own included.
    pub(crate) fn held(&self) -> (usize, Amount) {
        let mut all = (0, Amount::default());
        let shared = [&self.teams, &self.models, &self.upstreams];
        for party in shared.into_iter().flat_map(HashMap::values) {
            all.0 += party.in_flight();
            all.1 = all.1.plus(party.reserved());
        }
        let tokens = self.callers.sum(|party| party.reserved().tokens);
        let cost = self.callers.sum(|party| party.reserved().cost);
        all.1 = all.1.plus(Amount { tokens, cost });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attempt::now;
    use tidegate_core::Tenant;
    use tidegate_testkit::script::call;

    #[test]
    fn threads_that_ask_at_once_get_no_more_than_there_is() {
        let requests = |limit| Rule {
            limits: Limits { requests_per_minute: Some(limit), ..Limits::default() },
            ..Rule::default()
        };
        let table = Table::new(Options {
            default: requests(60),
            teams: HashMap::from([("crew".into(), requests(100))]),
            models: HashMap::from([("chat".into(), requests(110))]),
            ..Options::default()
        });
        let at = now();
        let passed = |id: &str, team: Option<&str>| {
            let (id, team) = (id.into(), team.map(Into::into));
            let tenant = Arc::new(Tenant { id, team, limits: None, ..Tenant::local() });
            let call = Call { tenant, ..call("chat") };
            let admitted = |_: &u32| table.admit(&call, Amount::default(), at).is_ok();
            (0..500).filter(admitted).count()
        };
        let all: usize = std::thread::scope(|threads| {
            let callers = [("ann", Some("crew")), ("bob", Some("crew")), ("cy", None)];
            let passed = &passed;
            let asking = (0..4).flat_map(|_| callers);
            let asking: Vec<_> =
                asking.map(|(id, team)| threads.spawn(move || passed(id, team))).collect();
            asking.into_iter().map(|asking| asking.join().unwrap_or_default()).sum()
        });
        // What the model lets through, and exactly that: no refusal by one scope cost another.
        assert_eq!(all, 110);
        assert_eq!((table.callers_in_flight(), table.held()), (0, (0, Amount::default())));
    }
}
