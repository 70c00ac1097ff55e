//! What an engine is made of.

use crate::{Alerts, Earlier, Records, limits};
use std::{collections::BTreeMap, fmt, sync::Arc};
use tidegate_core::{Budgets, Ledger, Price, Provider, Store, Tokenizers, Tokens};
use tidegate_policy::{
    balance, breaker, budget, canary, concurrency, hedge, load, memory, pacer, queue, retry,
    retry_budget, timeout,
};

/// Everything an [`crate::Engine`] needs, built and ready.
pub struct Parts {
    /// Who the callers are.
    pub store: Arc<dyn Store>,
    /// Who issues tokens and knows them; `None` where only keys are credentials.
    pub tokens: Option<Arc<dyn Tokens>>,
    /// Upstreams by name.
    pub upstreams: BTreeMap<Arc<str>, Upstream>,
    /// Models by the name callers use.
    pub models: BTreeMap<Arc<str>, Model>,
    /// Upstream that takes every model not named in `models`, by the caller's own name for it.
    pub any_model: Option<Arc<str>>,
    /// Where every attempt is written; `None` where nobody keeps account.
    pub ledger: Option<Arc<dyn Ledger>>,
    /// What callers and teams may spend.
    pub spending: Spending,
    /// What models cost, by the upstreams' own names of them: where a target has no price of its
    /// own.
    pub prices: BTreeMap<Arc<str>, Price>,
    /// Who counts prompts' tokens; `None`, and where it knows no tokenizer of a model, leaves the
    /// estimate that its answers correct.
    pub tokenizers: Option<Tokenizers>,
    /// What callers, teams, models and upstreams may use.
    pub limits: limits::Options,
    /// Calls in flight at once, of all callers together; more are refused.
    pub max_in_flight: usize,
    /// When and how often a failed attempt is tried again.
    pub retry: retry::Options,
    /// What stands before every upstream.
    pub limiters: Limiters,
    /// What is done as the load grows.
    pub load: load::Options,
    /// How much memory calls may hold.
    pub memory: memory::Options,
    /// Where the record of each ended call goes.
    pub records: Option<Records>,
    /// Seed of the engine's chance: jitter and weighted picks.
    pub seed: u64,
}

/// What callers and teams may spend. A caller's own budgets come with it.
#[derive(Clone, Default)]
pub struct Spending {
    /// Budgets of teams, by name.
    pub teams: BTreeMap<Arc<str>, Budgets>,
    /// When alerts are given, and what is reserved for calls without a maximum.
    pub options: budget::Options,
    /// What was spent before this start.
    pub earlier: Vec<Earlier>,
    /// Where alerts go.
    pub alerts: Option<Alerts>,
}

/// What stands before every upstream, whichever it is.
#[derive(Clone, Debug, Default)]
pub struct Limiters {
    /// How many attempts beyond the first an upstream may get.
    pub retry_budget: retry_budget::Options,
    /// When an upstream that keeps failing is left alone.
    pub breaker: breaker::Options,
    /// In which order calls wait for it, and which do not.
    pub queue: queue::Options,
}

/// One upstream.
#[derive(Clone)]
pub struct Upstream {
    /// How it is spoken to.
    pub provider: Arc<dyn Provider>,
    /// Attempts it may have in flight, per model.
    pub concurrency: concurrency::Options,
    /// Rates it is known to allow, per model.
    pub pacer: pacer::Options,
}

/// One model as callers know it.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Where its calls go.
    pub targets: Vec<Target>,
    /// Its clocks.
    pub timeouts: timeout::Options,
    /// How its attempts are spread over its targets.
    pub balance: balance::Options,
    /// When a second attempt starts while the first still thinks.
    pub hedge: hedge::Options,
    /// Models that answer when all targets are spent, in order.
    pub fallback: Vec<Arc<str>>,
    /// Where copies of its calls go.
    pub mirror: Option<Mirror>,
}

/// A target that gets copies of calls; nobody sees its answers.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Name of the upstream.
    pub upstream: Arc<str>,
    /// The upstream's own name of the model.
    pub model: Arc<str>,
    /// What it costs there; `None` is as in [`Parts::prices`].
    pub price: Option<Price>,
    /// How many calls are copied.
    pub options: canary::Mirror,
}

/// An upstream, that upstream's own model name, and a weight.
#[derive(Clone, Debug)]
pub struct Target {
    /// Name of the upstream.
    pub upstream: Arc<str>,
    /// The upstream's own name of the model.
    pub model: Arc<str>,
    /// Share of the calls it gets; zero parks it.
    pub weight: u32,
    /// What it costs there; `None` is as in [`Parts::prices`].
    pub price: Option<Price>,
    /// The calls it is for; `None` takes those that no other target's match fits.
    pub matches: Option<canary::Match>,
}

/// The parts do not fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartsError(pub(crate) String);

impl fmt::Display for PartsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PartsError {}
