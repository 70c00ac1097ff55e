//! What an administrator may change of a key.
//!
//! One change serves all: making a key is changing one that may do everything. Command line and
//! admin API both end here, so they cannot differ in what they allow.

use crate::{Budgets, Error, KeyRecord, Limits, Money, Result, Scope};
use std::sync::Arc;

/// What becomes of a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// It stays.
    #[default]
    Keep,
    /// It is taken away.
    Remove,
    /// It becomes this.
    Set(T),
}

impl<T> Change<T> {
    /// Sets what is there, keeps what is not.
    pub fn set(value: Option<T>) -> Self {
        value.map_or(Self::Keep, Self::Set)
    }

    fn apply(self, to: &mut Option<T>) {
        match self {
            Self::Keep => {}
            Self::Remove => *to = None,
            Self::Set(value) => *to = Some(value),
        }
    }
}

/// What is to be different about a key. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeyChange {
    /// What it is for: one line of 1 to 128 characters.
    pub name: Option<Arc<str>>,
    /// Team it belongs to, written as a name is.
    pub team: Change<Arc<str>>,
    /// The only models it may use, 1 to [`KeyChange::MAX_MODELS`]. Removed: every model.
    pub models: Change<Vec<Arc<str>>>,
    /// Its own limits. Removed: those of the configuration.
    pub limits: Change<LimitsChange>,
    /// What it may spend. Removed: no budget.
    pub budgets: Change<BudgetsChange>,
    /// Unix seconds after which it is no longer valid. Removed: never.
    pub expires_at: Change<u64>,
}

/// What is to be different about a key's own limits. Removed: no limit of that sort.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitsChange {
    /// At least 1.
    pub requests_per_minute: Change<u32>,
    /// 1 to 10¹⁵.
    pub tokens_per_minute: Change<u64>,
    /// More than nothing, at most [`KeyChange::MOST_MONEY`].
    pub cost_per_minute: Change<Money>,
    /// At least 1.
    pub concurrency: Change<u32>,
}

/// What is to be different about a key's budgets. Removed: no budget of that period.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BudgetsChange {
    /// At most [`KeyChange::MOST_MONEY`], as the next two; nothing is a budget too.
    pub day: Change<Money>,
    /// See `day`.
    pub month: Change<Money>,
    /// See `day`.
    pub total: Change<Money>,
    /// Whether they are never overspent.
    pub hard: Option<bool>,
}

/// The last second of the year 9999: later ones cannot be written in four digits.
const LAST_SECOND: u64 = 253_402_300_799;
/// More tokens per minute than anybody sells.
const MOST_TOKENS: u64 = 1_000_000_000_000_000;

impl KeyChange {
    /// Most models one key names; 100,000 keys have to fit into memory.
    pub const MAX_MODELS: usize = 100;
    /// The largest budget: 9 million dollars, which databases can hold in picodollars.
    pub const MOST_MONEY: Money = Money::from_pico(9_000_000 * Money::DOLLAR.pico());

    /// Makes `record` so at this Unix second. All is checked first: on an error nothing changed.
    ///
    /// # Errors
    ///
    /// Names the field that has a value it may not have.
    pub fn apply(self, record: &mut KeyRecord, now_unix: u64) -> Result<()> {
        self.check(now_unix)?;
        if let Some(name) = self.name {
            record.name = name;
        }
        self.team.apply(&mut record.team);
        match self.models {
            Change::Keep => {}
            Change::Remove => record.scope = Scope::All,
            Change::Set(models) => record.scope = Scope::Models(models),
        }
        match self.limits {
            Change::Keep => {}
            Change::Remove => record.limits = None,
            Change::Set(change) => change.apply(record.limits.get_or_insert_default()),
        }
        match self.budgets {
            Change::Keep => {}
            Change::Remove => record.budgets = Budgets::default(),
            Change::Set(change) => change.apply(&mut record.budgets),
        }
        self.expires_at.apply(&mut record.expires_at);
        Ok(())
    }

    fn check(&self, now_unix: u64) -> Result<()> {
        if let Some(name) = &self.name {
            check_word("name", name)?;
        }
        if let Change::Set(team) = &self.team {
            check_word("team", team)?;
        }
        if let Change::Set(models) = &self.models {
            check_models(models)?;
        }
        if let Change::Set(limits) = &self.limits {
            limits.check()?;
        }
        if let Change::Set(budgets) = &self.budgets {
            budgets.check()?;
        }
        match self.expires_at {
            Change::Set(at) if at <= now_unix => {
                Err(bad("expires_at", "is in the past: name a moment to come"))
            }
            Change::Set(at) if at > LAST_SECOND => {
                Err(bad("expires_at", "is after the year 9999: leave it out for never"))
            }
            _ => Ok(()),
        }
    }
}

impl LimitsChange {
    fn check(&self) -> Result<()> {
        let zero = [
            ("limits.requests_per_minute", self.requests_per_minute == Change::Set(0)),
            ("limits.tokens_per_minute", self.tokens_per_minute == Change::Set(0)),
            ("limits.cost_per_minute_usd", self.cost_per_minute == Change::Set(Money::ZERO)),
            ("limits.concurrency", self.concurrency == Change::Set(0)),
        ];
        if let Some((field, _)) = zero.into_iter().find(|(_, is_zero)| *is_zero) {
            let why = "lets nothing through: name more than 0, or revoke the key";
            return Err(bad(field, why));
        }
        if matches!(self.tokens_per_minute, Change::Set(tokens) if tokens > MOST_TOKENS) {
            let why = "is more than 10^15: leave it out for no limit";
            return Err(bad("limits.tokens_per_minute", why));
        }
        check_money("limits.cost_per_minute_usd", &self.cost_per_minute)
    }

    fn apply(self, limits: &mut Limits) {
        self.requests_per_minute.apply(&mut limits.requests_per_minute);
        self.tokens_per_minute.apply(&mut limits.tokens_per_minute);
        self.cost_per_minute.apply(&mut limits.cost_per_minute);
        self.concurrency.apply(&mut limits.concurrency);
    }
}

impl BudgetsChange {
    fn check(&self) -> Result<()> {
        check_money("budgets.day_usd", &self.day)?;
        check_money("budgets.month_usd", &self.month)?;
        check_money("budgets.total_usd", &self.total)
    }

    fn apply(self, budgets: &mut Budgets) {
        self.day.apply(&mut budgets.day);
        self.month.apply(&mut budgets.month);
        self.total.apply(&mut budgets.total);
        budgets.hard = self.hard.unwrap_or(budgets.hard);
    }
}

fn check_money(field: &'static str, money: &Change<Money>) -> Result<()> {
    match money {
        Change::Set(money) if *money > KeyChange::MOST_MONEY => {
            Err(bad(field, "is more than 9,000,000: leave it out for no bound"))
        }
        _ => Ok(()),
    }
}

/// A value that may not be; the message names the field for those who show nothing else.
fn bad(field: &'static str, why: &str) -> Error {
    Error::invalid(field, format!("`{field}` {why}"))
}

/// A word about a key that will be printed in tables and logs.
fn check_word(field: &'static str, text: &str) -> Result<()> {
    if is_word(text) {
        return Ok(());
    }
    let why =
        "must be 1 to 128 bytes on one line, not only blanks, without control or direction marks";
    Err(bad(field, why))
}

fn check_models(models: &[Arc<str>]) -> Result<()> {
    if models.is_empty() || models.len() > KeyChange::MAX_MODELS {
        let why = "names no model, or more than 100: leave it out for every model";
        return Err(bad("models", why));
    }
    if models.iter().all(|model| is_word(model)) {
        return Ok(());
    }
    Err(bad(
        "models",
        "has a name that is empty, over 128 bytes, of two lines or with control or direction marks",
    ))
}

fn is_word(text: &str) -> bool {
    !text.trim().is_empty() && text.len() <= 128 && is_plain_line(text)
}

/// Whether `text` is one line wherever it is shown, and is read in the order it is written in.
///
/// Refused are control characters, Unicode's line and paragraph separators, and the marks that turn
/// the direction of text: in a list or a log, a name with one makes what follows look like
/// something else.
pub fn is_plain_line(text: &str) -> bool {
    !text.contains(|c: char| {
        c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}')
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::tests::record;

    fn changed(change: KeyChange) -> KeyRecord {
        let mut record = record();
        change.apply(&mut record, 100).unwrap();
        record
    }

    #[test]
    fn a_change_of_nothing_changes_nothing() {
        assert_eq!(changed(KeyChange::default()), record());
    }

    #[test]
    fn what_is_named_is_set_and_the_rest_stays() {
        let limits = LimitsChange { requests_per_minute: Change::Set(60), ..Default::default() };
        let budgets = BudgetsChange {
            day: Change::Set(Money::DOLLAR),
            hard: Some(true),
            ..Default::default()
        };
        let mut key = changed(KeyChange {
            limits: Change::Set(limits),
            budgets: Change::Set(budgets),
            ..KeyChange::default()
        });
        assert_eq!(key.limits.unwrap().requests_per_minute, Some(60));
        assert_eq!((key.budgets.day, key.budgets.hard), (Some(Money::DOLLAR), true));
        assert_eq!((key.team.as_deref(), key.expires_at), (Some("search"), Some(500)));

        let more = LimitsChange { concurrency: Change::Set(2), ..Default::default() };
        let less = BudgetsChange { day: Change::Remove, ..Default::default() };
        let change = KeyChange {
            limits: Change::Set(more),
            budgets: Change::Set(less),
            ..KeyChange::default()
        };
        change.apply(&mut key, 100).unwrap();
        let limits = key.limits.unwrap();
        assert_eq!((limits.requests_per_minute, limits.concurrency), (Some(60), Some(2)));
        assert_eq!((key.budgets.day, key.budgets.hard), (None, true));
    }

    #[test]
    fn what_is_removed_goes_back_to_the_widest() {
        let key = changed(KeyChange {
            team: Change::Remove,
            models: Change::Remove,
            limits: Change::Remove,
            budgets: Change::Remove,
            expires_at: Change::Remove,
            ..KeyChange::default()
        });
        assert_eq!(
            (key.team, key.scope, key.limits, key.expires_at),
            (None, Scope::All, None, None)
        );
    }

    #[test]
    fn what_may_not_be_is_refused_by_its_field_and_changes_nothing() {
        let limits = |limits| KeyChange { limits: Change::Set(limits), ..KeyChange::default() };
        let budgets = |day| {
            let budgets = BudgetsChange { day: Change::Set(day), ..BudgetsChange::default() };
            KeyChange { budgets: Change::Set(budgets), ..KeyChange::default() }
        };
        let models = |models| KeyChange { models: Change::Set(models), ..KeyChange::default() };
        let expires = |at| KeyChange { expires_at: Change::Set(at), ..KeyChange::default() };
        let name = |name: &str| KeyChange { name: Some(name.into()), ..KeyChange::default() };
        let too_much = KeyChange::MOST_MONEY.plus(Money::from_pico(1));
        for (field, change) in [
            ("name", name(" ")),
            ("name", name("two\nlines")),
            ("name", name("two\u{2028}lines")),
            ("name", name("turned \u{202e}dilav")),
            ("name", name(&"n".repeat(129))),
            ("team", KeyChange { team: Change::Set("".into()), ..KeyChange::default() }),
            ("models", models(vec![])),
            ("models", models(vec!["".into()])),
            ("models", models(vec!["m".into(); 101])),
            ("expires_at", expires(100)),
            ("expires_at", expires(u64::MAX)),
            ("budgets.day_usd", budgets(too_much)),
            (
                "limits.requests_per_minute",
                limits(LimitsChange { requests_per_minute: Change::Set(0), ..Default::default() }),
            ),
            (
                "limits.tokens_per_minute",
                limits(LimitsChange {
                    tokens_per_minute: Change::Set(u64::MAX),
                    ..Default::default()
                }),
            ),
            (
                "limits.cost_per_minute_usd",
                limits(LimitsChange {
                    cost_per_minute: Change::Set(Money::ZERO),
                    ..Default::default()
                }),
            ),
            (
                "limits.concurrency",
                limits(LimitsChange { concurrency: Change::Set(0), ..Default::default() }),
            ),
        ] {
            let mut key = record();
            let change = KeyChange {
                expires_at: match change.expires_at {
                    Change::Keep => Change::Remove,
                    set => set,
                },
                ..change
            };
            let error = change.apply(&mut key, 100).unwrap_err();
            assert_eq!(error.param(), Some(field), "{error}");
            assert_eq!(key, record(), "{field}");
        }
    }
}
