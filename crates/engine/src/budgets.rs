//! Budgets of callers and teams: what an attempt reserves before it is sent, and settles by what
//! it cost. The rule is [`tidegate_policy::budget`]; here is who holds one.

use crate::{
    Spending,
    attempt::{now, unix_seconds},
};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};
use tidegate_core::{
    Budgets, Call, Error, Group, Kind, Ledger, Money, Origin, Price, Result, Tenant, TokenEstimate,
    Usage, UsageQuery,
};
use tidegate_policy::budget::{self, Budget, Crossed, Reservation, Spent};

/// Callers whose spending is known at once. Those without a budget make room for those that have
/// one: what they spend is then in the ledger alone. Where all have one, a new one is refused.
const MAX_CALLERS: usize = 100_000;
/// All are looked through for those without a budget this often at most.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Where alerts go. Called on the hot path: must not block.
pub type Alerts = Arc<dyn Fn(Alert) + Send + Sync>;

/// So much of a budget is spent. Given once per share and period.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// Whose budget it is.
    pub payer: Payer,
    /// Which budget, how much of it, and how much there is.
    pub crossed: Crossed,
}

/// Who has budgets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Payer {
    /// A caller, by its id.
    Caller(Arc<str>),
    /// A team, by its name.
    Team(Arc<str>),
}

/// What a payer had spent before this start.
#[derive(Clone, Debug, PartialEq)]
pub struct Earlier {
    /// Who.
    pub payer: Payer,
    /// How much.
    pub spent: Spent,
}

/// Reads from `ledger` what was spent before `now`, for [`Spending::earlier`].
///
/// `until` leaves out what was sent from then on: what the engine that asks has counted itself.
/// Copies to mirrors are on nobody's budget. At most [`UsageQuery::MAX_ROWS`] callers are read.
///
/// # Errors
///
/// When the ledger does not answer: budgets that begin at nothing would be spent twice.
pub async fn spent_before(
    ledger: &dyn Ledger,
    now: SystemTime,
    until: Option<SystemTime>,
) -> Result<Vec<Earlier>> {
    let (day, month) = budget::begins(unix_seconds(now));
    let mut all: HashMap<Payer, Spent> = HashMap::new();
    for group in [Group::Caller, Group::Team] {
        for (from, into) in [
            (Some(day), (|spent| &mut spent.day) as fn(&mut Spent) -> &mut Money),
            (Some(month), |spent| &mut spent.month),
            (None, |spent| &mut spent.total),
        ] {
            let query = UsageQuery {
                from,
                before: until,
                without_mirrors: true,
                group_by: vec![group],
                limit: UsageQuery::MAX_ROWS,
                ..UsageQuery::default()
            };
            for row in ledger.usage(&query).await? {
                // Who is of no team has none to pay.
                let Some(name) = row.of.first().filter(|name| !name.is_empty()) else { continue };
                let payer = match group {
                    Group::Team => Payer::Team(name.as_str().into()),
                    _ => Payer::Caller(name.as_str().into()),
                };
                let sum = into(all.entry(payer).or_default());
                *sum = sum.plus(row.cost);
            }
        }
    }
    Ok(all.into_iter().map(|(payer, spent)| Earlier { payer, spent }).collect())
}

/// The budgets of everybody.
pub(crate) struct Purse {
    teams: HashMap<Arc<str>, (Budgets, Arc<Holder>)>,
    callers: RwLock<Followed>,
    /// Whether callers without a budget are followed too: they may be given one any time.
    follows_all: bool,
    options: budget::Options,
    alerts: Option<Alerts>,
}

/// The callers that are followed, by their ids.
#[derive(Default)]
struct Followed {
    holders: HashMap<Arc<str>, Arc<Holder>>,
    swept: Option<Instant>,
}

/// One payer's money.
struct Holder {
    payer: Payer,
    /// It has been asked for more than nothing: it is not forgotten.
    has_budget: AtomicBool,
    budget: Mutex<Budget>,
}

/// What one attempt may cost.
#[derive(Clone, Copy)]
struct Cost {
    expected: Money,
    most: Money,
}

/// What one attempt took out of its payers' budgets; what is not settled is given back on drop.
#[derive(Default)]
pub(crate) struct Reserved {
    purse: Option<Arc<Purse>>,
    shares: [Option<Share>; 2],
}

struct Share {
    holder: Arc<Holder>,
    limits: Budgets,
    reservation: Reservation,
}

impl Purse {
    pub(crate) fn new(spending: Spending, follows_all: bool) -> Self {
        let Spending { teams, options, earlier, alerts } = spending;
        let teams = teams.into_iter().map(|(name, budgets)| {
            let holder = Arc::new(Holder::new(Payer::Team(name.clone())));
            (name, (budgets, holder))
        });
        let (teams, callers) = (teams.collect(), RwLock::default());
        let purse = Self { teams, callers, follows_all, options, alerts };
        purse.resume(earlier);
        purse
    }

    /// Adds what was spent before. Alerts that this crosses are not given again.
    pub(crate) fn resume(&self, earlier: Vec<Earlier>) {
        let now = unix_seconds(SystemTime::now());
        for Earlier { payer, spent } in earlier {
            let holder = match &payer {
                Payer::Team(name) => self.teams.get(name).map(|(_, holder)| holder.clone()),
                Payer::Caller(id) => self.holder(id, false),
            };
            if let Some(holder) = holder {
                holder.budget.lock().resume(spent, now);
            }
        }
    }

    /// The money of the caller `id`; `None` where there is no room.
    fn holder(&self, id: &Arc<str>, has_budget: bool) -> Option<Arc<Holder>> {
        let known = self.callers.read().holders.get(id).cloned();
        let holder = known.or_else(|| self.callers.write().open(id, has_budget))?;
        if has_budget && !holder.has_budget.load(Relaxed) {
            holder.has_budget.store(true, Relaxed);
        }
        Some(holder)
    }

    /// Reserves what an attempt of `call` can cost at `price`.
    ///
    /// # Errors
    ///
    /// [`Kind::BudgetExceeded`] when a budget of the caller or of its team has no room.
    pub(crate) fn reserve(self: &Arc<Self>, call: &Call, price: Option<Price>) -> Result<Reserved> {
        let tenant = &call.tenant;
        let team = tenant.team.as_ref().and_then(|team| self.teams.get(team));
        if team.is_none() && tenant.budgets.is_none() && !self.follows_all {
            return Ok(Reserved::default());
        }
        let cost = price.map(|price| self.cost(call, price));
        let now = unix_seconds(SystemTime::now());
        // A refusal by the second gives the first its share back.
        let mut reserved = Reserved { purse: Some(self.clone()), shares: [None, None] };
        if let Some(holder) = self.caller(tenant)? {
            reserved.shares[0] = Some(holder.reserve(call, tenant.budgets, cost, now)?);
        }
        if let Some((budgets, holder)) = team {
            reserved.shares[1] = Some(holder.reserve(call, *budgets, cost, now)?);
        }
        Ok(reserved)
    }

    /// What an attempt may cost: a prompt has no more tokens than bytes, and an answer no more
    /// than its caller allows.
    fn cost(&self, call: &Call, price: Price) -> Cost {
        let usage =
            Usage { input: call.tokens.input, output: call.tokens.output, ..Usage::default() };
        let most = self.most(call);
        let most = price.most(most.input, most.output);
        Cost { expected: price.of(usage), most }
    }

    /// The most tokens that an attempt of `call` can have, as hard budgets see it.
    pub(crate) fn most(&self, call: &Call) -> TokenEstimate {
        let output = call.most_output(self.options.max_output_tokens);
        TokenEstimate { input: call.payload.len() as u64, output }
    }

    /// The money of `tenant`; `None` where there is no room and no need to follow it.
    fn caller(&self, tenant: &Tenant) -> Result<Option<Arc<Holder>>> {
        let holder = self.holder(&tenant.id, !tenant.budgets.is_none());
        if holder.is_none() && !tenant.budgets.is_none() {
            let message = "more callers than budgets can be kept for; leave this one's out";
            return Err(Error::new(Kind::BudgetExceeded, Origin::Gateway, message));
        }
        Ok(holder)
    }

    /// What all attempts in flight hold of callers' budgets.
    pub(crate) fn reserved(&self) -> Money {
        let callers = self.callers.read();
        let teams = self.teams.values().map(|(_, holder)| holder);
        callers.holders.values().chain(teams).map(|holder| holder.budget.lock().reserved()).sum()
    }
}

impl Followed {
    /// Follows the caller `id` from now on, if there is room.
    fn open(&mut self, id: &Arc<str>, has_budget: bool) -> Option<Arc<Holder>> {
        if has_budget && self.holders.len() >= MAX_CALLERS {
            self.make_room();
        }
        if self.holders.len() >= MAX_CALLERS && !self.holders.contains_key(id) {
            return None;
        }
        let new = || Arc::new(Holder::new(Payer::Caller(id.clone())));
        Some(self.holders.entry(id.clone()).or_insert_with(new).clone())
    }

    /// Forgets who has no budget and nothing in flight.
    fn make_room(&mut self) {
        let now = now();
        if self.swept.is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP_EVERY) {
            return;
        }
        self.swept = Some(now);
        // One that is shared has something in flight, or is about to.
        let stays =
            |holder: &Arc<Holder>| holder.has_budget.load(Relaxed) || Arc::strong_count(holder) > 1;
        self.holders.retain(|_, holder| stays(holder));
    }
}

impl Holder {
    fn new(payer: Payer) -> Self {
        Self { payer, has_budget: AtomicBool::new(false), budget: Mutex::default() }
    }

    fn reserve(
        self: &Arc<Self>,
        call: &Call,
        limits: Budgets,
        cost: Option<Cost>,
        now: u64,
    ) -> Result<Share> {
        let of = || match &self.payer {
            Payer::Caller(_) => "this key".to_owned(),
            Payer::Team(name) => format!("the team `{name}`"),
        };
        let refuse = |why: String| Error::new(Kind::BudgetExceeded, Origin::Caller, why);
        let amount = match cost {
            Some(cost) if limits.hard => cost.most,
            Some(cost) => cost.expected,
            None if limits.hard && !limits.is_none() => {
                return Err(refuse(format!(
                    "{} has a hard budget, and what the model `{}` costs is not known: ask for \
                     another model, or have its price configured",
                    of(),
                    call.model
                )));
            }
            None => Money::ZERO,
        };
        let reservation = self.budget.lock().reserve(amount, &limits, now).map_err(|refused| {
            let rest = if limits.hard {
                format!("; this call may cost up to {}", refused.asked)
            } else {
                String::new()
            };
            refuse(format!("the budget of {} has no room: {refused}{rest}", of()))
        })?;
        Ok(Share { holder: self.clone(), limits, reservation })
    }
}

impl Reserved {
    /// Whether one who pays may never be overspent.
    pub(crate) fn is_hard(&self) -> bool {
        let hard = |share: &Share| share.limits.hard && !share.limits.is_none();
        self.shares.iter().flatten().any(hard)
    }

    /// Turns what was reserved into what was spent.
    pub(crate) fn settle(&mut self, cost: Money) {
        let Some(purse) = self.purse.take() else { return };
        for Share { holder, limits, reservation } in self.shares.iter_mut().filter_map(Option::take)
        {
            let crossed = holder.budget.lock().settle(reservation, cost, &limits, &purse.options);
            let Some(alerts) = &purse.alerts else { continue };
            for crossed in crossed {
                alerts(Alert { payer: holder.payer.clone(), crossed });
            }
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.settle(Money::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_testkit::script::call;

    fn purse() -> Arc<Purse> {
        Arc::new(Purse::new(Spending::default(), true))
    }

    fn by(id: &str, budgets: Budgets) -> Call {
        let tenant = Tenant { id: id.into(), budgets, ..Tenant::local() };
        Call { tenant: Arc::new(tenant), ..call("chat") }
    }

    fn spender(day: Money) -> Budgets {
        Budgets { day: Some(day), ..Budgets::default() }
    }

    #[test]
    fn callers_without_a_budget_do_not_keep_out_those_that_have_one() {
        let (purse, none) = (purse(), Budgets::default());
        let price = Some(Price::default());
        let budget = spender(Money::DOLLAR);
        purse.reserve(&by("first", budget), price).unwrap().settle(Money::DOLLAR);
        let in_flight = purse.reserve(&by("0", none), price).unwrap();
        for id in 1..MAX_CALLERS {
            drop(purse.reserve(&by(&id.to_string(), none), price).unwrap());
        }
        drop(purse.reserve(&by("second", budget), price).unwrap());
        let ids: Vec<_> = purse.callers.read().holders.keys().cloned().collect();
        assert_eq!(ids.len(), 3, "{:?}", &ids[..3]);
        drop(in_flight);
        let spent = purse.reserve(&by("first", budget), price).err().unwrap();
        assert_eq!(spent.kind(), Kind::BudgetExceeded, "it is not forgotten");
    }

    #[test]
    fn where_all_have_a_budget_nobody_new_is_followed() {
        let (purse, price) = (purse(), Some(Price::default()));
        let budget = spender(Money::DOLLAR);
        for id in 0..MAX_CALLERS {
            drop(purse.reserve(&by(&id.to_string(), budget), price).unwrap());
        }
        assert!(purse.reserve(&by("new", budget), price).is_err());
        drop(purse.reserve(&by("new", Budgets::default()), price).unwrap());
        drop(purse.reserve(&by("7", budget), price).unwrap());
        assert_eq!(purse.callers.read().holders.len(), MAX_CALLERS);
    }
}
