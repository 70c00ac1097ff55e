//! How a key is written in JSON, for lists and the admin API.
//!
//! Names end in their unit. Fields may be added; none is renamed or taken away.

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use std::sync::Arc;
use tidegate_core::{Budgets, KeyRecord, Limits, Money, Scope, Secret};

/// A key as lists and the admin API show it. No hash, and the secret only where it was just made.
#[derive(Clone, Debug, Serialize)]
pub struct KeyView<'a> {
    id: &'a str,
    /// The whole key, this once.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "expose")]
    key: Option<&'a Secret<String>>,
    name: &'a str,
    team: Option<&'a str>,
    /// `None` means every model.
    models: Option<&'a [Arc<str>]>,
    /// `None` means the configuration's.
    limits: Option<LimitsView>,
    budgets: BudgetsView,
    created_at: String,
    expires_at: Option<String>,
    revoked_at: Option<String>,
    /// Until when the secret before the last rotation is good too.
    former_until: Option<String>,
    state: &'static str,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct LimitsView {
    requests_per_minute: Option<u32>,
    tokens_per_minute: Option<u64>,
    cost_per_minute_usd: Option<f64>,
    concurrency: Option<u32>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct BudgetsView {
    day_usd: Option<f64>,
    month_usd: Option<f64>,
    total_usd: Option<f64>,
    hard: bool,
}

fn expose<S: Serializer>(secret: &Option<&Secret<String>>, to: S) -> Result<S::Ok, S::Error> {
    secret.map(Secret::expose).serialize(to)
}

impl<'a> KeyView<'a> {
    /// The key as it is at this Unix second.
    pub fn new(record: &'a KeyRecord, now_unix: u64) -> Self {
        let former = record.former.filter(|former| now_unix < former.until);
        Self {
            id: &record.id,
            key: None,
            name: &record.name,
            team: record.team.as_deref(),
            models: match &record.scope {
                Scope::All => None,
                Scope::Models(models) => Some(models),
            },
            limits: record.limits.map(LimitsView::new),
            budgets: BudgetsView::new(record.budgets),
            created_at: show_time(record.created_at),
            expires_at: record.expires_at.map(show_time),
            revoked_at: record.revoked_at.map(show_time),
            former_until: former.map(|former| show_time(former.until)),
            state: record.state(now_unix).name(),
        }
    }

    /// With its secret: for whoever just made it, and nobody else.
    #[must_use]
    pub const fn with_secret(mut self, secret: &'a Secret<String>) -> Self {
        self.key = Some(secret);
        self
    }
}

impl LimitsView {
    fn new(limits: Limits) -> Self {
        Self {
            requests_per_minute: limits.requests_per_minute,
            tokens_per_minute: limits.tokens_per_minute,
            cost_per_minute_usd: limits.cost_per_minute.map(Money::usd),
            concurrency: limits.concurrency,
        }
    }
}

impl BudgetsView {
    fn new(budgets: Budgets) -> Self {
        Self {
            day_usd: budgets.day.map(Money::usd),
            month_usd: budgets.month.map(Money::usd),
            total_usd: budgets.total.map(Money::usd),
            hard: budgets.hard,
        }
    }
}

/// RFC 3339, UTC.
fn show_time(unix: u64) -> String {
    let time = i64::try_from(unix).ok().and_then(|unix| Timestamp::from_second(unix).ok());
    time.map_or_else(|| unix.to_string(), |time| time.to_string())
}
