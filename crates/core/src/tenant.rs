//! Who pays and is limited.

use crate::Money;
use std::sync::Arc;

/// A caller, as known after its key was checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Tenant {
    /// Stable id: the key's id for a key, a fixed word for the local runner.
    pub id: Arc<str>,
    /// Name a person gave it.
    pub name: Arc<str>,
    /// Team it belongs to, if any.
    pub team: Option<Arc<str>>,
    /// Models it may use.
    pub scope: Scope,
    /// Its own limits; `None` means the configuration's default.
    pub limits: Option<Limits>,
    /// What it may spend, beside what its team may.
    pub budgets: Budgets,
}

/// Which models a tenant may use.
#[derive(Clone, Debug, PartialEq)]
pub enum Scope {
    /// Every model.
    All,
    /// These only, by the name callers use.
    Models(Vec<Arc<str>>),
}

/// What one tenant may use. `None` means no limit of that sort.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Requests per minute.
    pub requests_per_minute: Option<u32>,
    /// Tokens (input plus output) per minute.
    pub tokens_per_minute: Option<u64>,
    /// What may be spent per minute.
    pub cost_per_minute: Option<Money>,
    /// Calls in flight at once, streams included until their last chunk.
    pub concurrency: Option<u32>,
}

/// What a caller or a team may spend. `None` means no budget of that period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budgets {
    /// Per day, UTC.
    pub day: Option<Money>,
    /// Per calendar month, UTC.
    pub month: Option<Money>,
    /// In all.
    pub total: Option<Money>,
    /// Whether it is never overspent: each attempt then reserves the most it can cost, and is
    /// refused where that does not fit. Otherwise the overshoot is at most what is in flight.
    pub hard: bool,
}

impl Budgets {
    /// Whether there is none.
    pub const fn is_none(&self) -> bool {
        self.day.is_none() && self.month.is_none() && self.total.is_none()
    }
}

impl Tenant {
    /// The tenant of a program that runs the engine itself (batch, SDK): no scope, no limits.
    pub fn local() -> Self {
        Self {
            id: "local".into(),
            name: "local".into(),
            team: None,
            scope: Scope::All,
            limits: Some(Limits::default()),
            budgets: Budgets::default(),
        }
    }

    /// Whether this tenant may use `model`.
    pub fn may_use(&self, model: &str) -> bool {
        match &self.scope {
            Scope::All => true,
            Scope::Models(models) => models.iter().any(|name| &**name == model),
        }
    }
}
