//! Budgets of callers and teams: what an attempt reserves before it is sent, and settles by what
//! it cost. The rule is [`tidegate_policy::budget`]; here is who holds one.

use crate::{Spending, attempt::unix_seconds};
use parking_lot::{Mutex, RwLock};
use std::{collections::HashMap, sync::Arc, time::SystemTime};
use tidegate_core::{
    Budgets, Call, Cause, Error, Group, Kind, Ledger, Money, Origin, Price, Result, Tenant, Usage,
    UsageQuery,
};
use tidegate_policy::budget::{self, Budget, Crossed, Reservation, Spent};

/// Callers whose spending is known at once. What further callers spend is in the ledger alone,
/// and those of them that have a budget are refused.
const MAX_CALLERS: usize = 100_000;

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
/// Copies to mirrors are on nobody's budget. At most [`UsageQuery::MAX_ROWS`] rows are read, one
/// for each caller and cause.
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
                to: until.map(unix_seconds),
                group_by: vec![group, Group::Cause],
                limit: UsageQuery::MAX_ROWS,
                ..UsageQuery::default()
            };
            for row in ledger.usage(&query).await? {
                let [name, cause] = &row.of[..] else { continue };
                if name.is_empty() || cause == Cause::Mirror.name() {
                    continue;
                }
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
    callers: RwLock<HashMap<Arc<str>, Arc<Holder>>>,
    /// Whether callers without a budget are followed too: they may be given one any time.
    follows_all: bool,
    options: budget::Options,
    alerts: Option<Alerts>,
}

/// One payer's money.
struct Holder {
    payer: Payer,
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
                Payer::Caller(id) => self.holder(id),
            };
            if let Some(holder) = holder {
                holder.budget.lock().resume(spent, now);
            }
        }
    }

    /// The money of the caller `id`; `None` where there is no room.
    fn holder(&self, id: &Arc<str>) -> Option<Arc<Holder>> {
        if let Some(holder) = self.callers.read().get(id) {
            return Some(holder.clone());
        }
        let mut callers = self.callers.write();
        if callers.len() >= MAX_CALLERS && !callers.contains_key(id) {
            return None;
        }
        let new = || Arc::new(Holder::new(Payer::Caller(id.clone())));
        Some(callers.entry(id.clone()).or_insert_with(new).clone())
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
        let input = price.input.max(price.cached_input).times(call.payload.len() as u64);
        let output = price.output.times(call.most_output(self.options.max_output_tokens));
        Cost { expected: price.of(usage), most: input.plus(output) }
    }

    /// The money of `tenant`; `None` where there is no room and no need to follow it.
    fn caller(&self, tenant: &Tenant) -> Result<Option<Arc<Holder>>> {
        let holder = self.holder(&tenant.id);
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
        callers.values().chain(teams).map(|holder| holder.budget.lock().reserved()).sum()
    }
}

impl Holder {
    fn new(payer: Payer) -> Self {
        Self { payer, budget: Mutex::default() }
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
