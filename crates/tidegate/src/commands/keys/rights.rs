//! The flags that say what a key may do, and the change they come to.

use std::{sync::Arc, time::Duration};
use tidegate_core::{BudgetsChange, Change, KeyChange, LimitsChange, Money, is_plain_line};
use tidegate_policy::setting;

/// What a key may do.
#[derive(clap::Args, Debug, Default)]
pub(super) struct Rights {
    /// Team it belongs to
    #[arg(long, value_parser = plain_name)]
    team: Option<String>,
    /// Models it may use, separated by commas [default: every model]
    #[arg(long, value_delimiter = ',', value_name = "MODELS")]
    models: Vec<String>,
    /// How long it is valid from now, like 12h or 30d [default: until it is revoked]
    #[arg(long, value_name = "DURATION", value_parser = setting::parse_duration)]
    expires: Option<Duration>,
    /// Requests per minute. Once a key has any limit of its own, the configuration's limits do
    /// not apply to it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rpm: Option<u32>,
    /// Tokens per minute, input and output together
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    tpm: Option<u64>,
    /// US dollars per minute
    #[arg(long, value_name = "USD", value_parser = dollars)]
    cost_per_minute: Option<Money>,
    /// Calls in flight at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// US dollars per day (UTC), like 12.50
    #[arg(long, value_name = "USD", value_parser = dollars)]
    budget_day: Option<Money>,
    /// US dollars per calendar month (UTC)
    #[arg(long, value_name = "USD", value_parser = dollars)]
    budget_month: Option<Money>,
    /// US dollars in all
    #[arg(long, value_name = "USD", value_parser = dollars)]
    budget_total: Option<Money>,
    /// Whether its budgets are never overspent: each attempt then reserves the most it can cost
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    hard: Option<bool>,
}

/// What `keys update --clear` takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Clear {
    /// It belongs to no team
    Team,
    /// It may use every model
    Models,
    /// It does not expire
    Expires,
    /// The configuration's limits apply
    Limits,
    /// No limit of requests
    Rpm,
    /// No limit of tokens
    Tpm,
    /// No limit of cost per minute
    CostPerMinute,
    /// No limit of calls at once
    Concurrency,
    /// No budget at all
    Budgets,
    /// No budget per day
    BudgetDay,
    /// No budget per month
    BudgetMonth,
    /// No budget in all
    BudgetTotal,
}

impl Rights {
    /// The models that were named.
    pub(super) fn models(&self) -> &[String] {
        &self.models
    }

    /// What is to be different about a key at this Unix second. What is both set and cleared is
    /// set.
    pub(super) fn change(self, clear: &[Clear], now_unix: u64) -> KeyChange {
        let models: Vec<Arc<str>> = self.models.iter().map(|name| name.trim().into()).collect();
        let expires_at = self.expires.map(|valid| now_unix.saturating_add(valid.as_secs()));
        let limits = LimitsChange {
            requests_per_minute: either(self.rpm, Clear::Rpm, clear),
            tokens_per_minute: either(self.tpm, Clear::Tpm, clear),
            cost_per_minute: either(self.cost_per_minute, Clear::CostPerMinute, clear),
            concurrency: either(self.concurrency, Clear::Concurrency, clear),
        };
        let budgets = BudgetsChange {
            day: either(self.budget_day, Clear::BudgetDay, clear),
            month: either(self.budget_month, Clear::BudgetMonth, clear),
            total: either(self.budget_total, Clear::BudgetTotal, clear),
            hard: self.hard,
        };
        KeyChange {
            name: None,
            team: either(self.team.map(Into::into), Clear::Team, clear),
            models: either((!models.is_empty()).then_some(models), Clear::Models, clear),
            limits: whole(limits, Clear::Limits, clear),
            budgets: whole(budgets, Clear::Budgets, clear),
            expires_at: either(expires_at, Clear::Expires, clear),
        }
    }
}

fn either<T>(set: Option<T>, cleared: Clear, clear: &[Clear]) -> Change<T> {
    match set {
        Some(value) => Change::Set(value),
        None if clear.contains(&cleared) => Change::Remove,
        None => Change::Keep,
    }
}

fn whole<T: Default + PartialEq>(change: T, cleared: Clear, clear: &[Clear]) -> Change<T> {
    if change == T::default() { either(None, cleared, clear) } else { Change::Set(change) }
}

/// A word about a key that will be printed in tables and logs.
pub(super) fn plain_name(text: &str) -> Result<String, String> {
    let fits = !text.trim().is_empty() && text.len() <= 128 && is_plain_line(text);
    fits.then(|| text.to_owned()).ok_or_else(|| {
        "use 1 to 128 bytes on one line, without control or direction marks".to_owned()
    })
}

/// `12.50`, with or without a `$` before it.
fn dollars(text: &str) -> Result<Money, String> {
    let number = text.trim().strip_prefix('$').unwrap_or(text.trim());
    let money = number.parse().ok().and_then(Money::from_usd);
    money
        .filter(|money| *money <= KeyChange::MOST_MONEY)
        .ok_or_else(|| "write dollars like 12.50, from 0 to 9000000".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usd(dollars: f64) -> Money {
        Money::from_usd(dollars).unwrap()
    }

    #[test]
    fn flags_become_a_change() {
        let rights = Rights {
            team: Some("search".into()),
            models: vec!["chat".into(), " embed".into()],
            expires: Some(Duration::from_secs(60)),
            rpm: Some(60),
            budget_day: Some(usd(12.5)),
            hard: Some(true),
            ..Rights::default()
        };
        let expected = KeyChange {
            name: None,
            team: Change::Set("search".into()),
            models: Change::Set(vec!["chat".into(), "embed".into()]),
            limits: Change::Set(LimitsChange {
                requests_per_minute: Change::Set(60),
                ..LimitsChange::default()
            }),
            budgets: Change::Set(BudgetsChange {
                day: Change::Set(usd(12.5)),
                hard: Some(true),
                ..BudgetsChange::default()
            }),
            expires_at: Change::Set(1_060),
        };
        assert_eq!(rights.change(&[], 1_000), expected);
        assert_eq!(Rights::default().change(&[], 0), KeyChange::default());
    }

    #[test]
    fn what_is_cleared_is_taken_away_unless_it_is_set() {
        let rights = Rights { rpm: Some(5), ..Rights::default() };
        let clear = [Clear::Rpm, Clear::Tpm, Clear::Budgets, Clear::Expires];
        let expected = KeyChange {
            limits: Change::Set(LimitsChange {
                requests_per_minute: Change::Set(5),
                tokens_per_minute: Change::Remove,
                ..LimitsChange::default()
            }),
            budgets: Change::Remove,
            expires_at: Change::Remove,
            ..KeyChange::default()
        };
        assert_eq!(rights.change(&clear, 0), expected);
    }

    #[test]
    fn dollars_are_dollars() {
        for (text, money) in [("12.50", usd(12.5)), ("$0.1", usd(0.1)), ("0", Money::ZERO)] {
            assert_eq!(dollars(text), Ok(money));
        }
        for bad in ["", "-1", "NaN", "inf", "1e9", "12,50", "9000001", "12.50 EUR"] {
            assert!(dollars(bad).unwrap_err().contains("12.50"), "{bad}");
        }
    }
}
