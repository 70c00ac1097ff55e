//! How a change of a key is read from JSON.
//!
//! Bodies are read field by field, so that whatever is wrong is told with its name, and a name that
//! is unknown or stands twice is not passed over: a limit nobody reads is no limit.

use crate::shown;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::value::RawValue;
use std::{fmt, time::Duration};
use tidegate_core::{
    BudgetsChange, Change, Error, KeyChange, Kind, LimitsChange, Money, Origin, Result,
};
use tidegate_policy::setting::parse_duration;

/// Reads what is to be different about a key. An empty body changes nothing.
///
/// # Errors
///
/// Names the field.
pub(super) fn read_change(body: &[u8], now_unix: u64) -> Result<KeyChange> {
    let mut change = KeyChange::default();
    let mut expiries = 0;
    for (name, value) in object("the body", None, body)? {
        let value = value.get();
        match &*name {
            "name" => change.name = Some(must("name", value, "a string")?),
            "team" => change.team = maybe("team", value, "a string")?,
            "models" => change.models = maybe("models", value, "a list of strings")?,
            "limits" => change.limits = part(value, read_limits)?,
            "budgets" => change.budgets = part(value, read_budgets)?,
            "expires_at" => {
                expiries += 1;
                change.expires_at = read_moment(value)?;
            }
            "expires_in" => {
                expiries += 1;
                let valid = read_duration("expires_in", value)?;
                change.expires_at = Change::Set(now_unix.saturating_add(valid.as_secs()));
            }
            other => {
                let known = "name, team, models, limits, budgets, expires_at, expires_in";
                return Err(unknown("the body", None, other, known));
            }
        }
    }
    if expiries > 1 {
        let message = "`expires_in` and `expires_at` are both there: send one of them";
        return Err(Error::invalid("expires_in", message));
    }
    Ok(change)
}

/// Reads how long the old secret stays good. An empty body, or none: not at all.
///
/// # Errors
///
/// Names the field.
pub(super) fn read_grace(body: &[u8]) -> Result<Duration> {
    let mut grace = Duration::ZERO;
    for (name, value) in object("the body", None, body)? {
        match &*name {
            "grace" => grace = read_duration("grace", value.get())?,
            other => return Err(unknown("the body", None, other, "grace")),
        }
    }
    Ok(grace)
}

fn read_limits(text: &str) -> Result<LimitsChange> {
    const WHOLE: &str = "a whole number above 0";
    let mut change = LimitsChange::default();
    for (name, value) in object("limits", Some("limits"), text.as_bytes())? {
        let value = value.get();
        match &*name {
            "requests_per_minute" => {
                let field = "limits.requests_per_minute";
                change.requests_per_minute = maybe(field, value, WHOLE)?;
            }
            "tokens_per_minute" => {
                change.tokens_per_minute = maybe("limits.tokens_per_minute", value, WHOLE)?;
            }
            "cost_per_minute_usd" => {
                change.cost_per_minute = money("limits.cost_per_minute_usd", value)?;
            }
            "concurrency" => change.concurrency = maybe("limits.concurrency", value, WHOLE)?,
            other => {
                let known =
                    "requests_per_minute, tokens_per_minute, cost_per_minute_usd, concurrency";
                return Err(unknown("limits", Some("limits"), other, known));
            }
        }
    }
    Ok(change)
}

fn read_budgets(text: &str) -> Result<BudgetsChange> {
    let mut change = BudgetsChange::default();
    for (name, value) in object("budgets", Some("budgets"), text.as_bytes())? {
        let value = value.get();
        match &*name {
            "day_usd" => change.day = money("budgets.day_usd", value)?,
            "month_usd" => change.month = money("budgets.month_usd", value)?,
            "total_usd" => change.total = money("budgets.total_usd", value)?,
            "hard" => change.hard = Some(must("budgets.hard", value, "true or false")?),
            other => {
                let known = "day_usd, month_usd, total_usd, hard";
                return Err(unknown("budgets", Some("budgets"), other, known));
            }
        }
    }
    Ok(change)
}

/// The members of a JSON object as they were written, each name once. Empty text is an empty one.
fn object(what: &str, field: Option<&'static str>, text: &[u8]) -> Result<Vec<Member>> {
    if text.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let members = match text.trim_ascii_start() {
        [b'{', ..] => serde_json::from_slice(text).map_err(|cause| format!(": {cause}")),
        // What serde says of a value of another kind repeats it.
        _ => Err(String::new()),
    };
    members.map(|Members(members)| members).map_err(|cause| match field {
        Some(field) => Error::invalid(field, format!("`{field}` must be an object{cause}")),
        None => {
            let message = format!("{what} must be one JSON object{cause}");
            Error::new(Kind::InvalidJson, Origin::Caller, message)
        }
    })
}

type Member = (String, Box<RawValue>);

struct Members(Vec<Member>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        from.deserialize_map(Visitor)
    }
}

struct Visitor;

impl<'de> serde::de::Visitor<'de> for Visitor {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: serde::de::MapAccess<'de>>(
        self,
        mut map: A,
    ) -> std::result::Result<Members, A::Error> {
        let mut members: Vec<Member> = Vec::new();
        while let Some(member) = map.next_entry::<String, Box<RawValue>>()? {
            if members.iter().any(|(name, _)| *name == member.0) {
                let message = format_args!("{} stands twice", shown::name(&member.0));
                return Err(serde::de::Error::custom(message));
            }
            members.push(member);
        }
        Ok(Members(members))
    }
}

fn unknown(what: &str, field: Option<&'static str>, name: &str, known: &str) -> Error {
    let message = format!("{} is no field of {what}: there are {known}", shown::name(name));
    let error = Error::new(Kind::InvalidRequest, Origin::Caller, message);
    match field {
        Some(field) => error.with_param(field),
        None => error,
    }
}

fn must<T: DeserializeOwned>(field: &'static str, value: &str, what: &str) -> Result<T> {
    let read = serde_json::from_str(value);
    read.map_err(|_| Error::invalid(field, format!("`{field}` must be {what}")))
}

/// A value, or `null` to take it away.
fn maybe<T: DeserializeOwned>(field: &'static str, value: &str, what: &str) -> Result<Change<T>> {
    if value == "null" {
        return Ok(Change::Remove);
    }
    must(field, value, &format!("{what}, or null")).map(Change::Set)
}

/// An object to be changed within, or `null` to take it away.
fn part<T>(value: &str, read: impl FnOnce(&str) -> Result<T>) -> Result<Change<T>> {
    if value == "null" { Ok(Change::Remove) } else { read(value).map(Change::Set) }
}

fn money(field: &'static str, value: &str) -> Result<Change<Money>> {
    let read = match maybe::<f64>(field, value, "a number of dollars, like 12.50")? {
        Change::Keep => Change::Keep,
        Change::Remove => Change::Remove,
        Change::Set(usd) => match Money::from_usd(usd) {
            Some(money) => Change::Set(money),
            None => {
                let message = format!("`{field}` must be dollars from 0 to 9,000,000");
                return Err(Error::invalid(field, message));
            }
        },
    };
    Ok(read)
}

fn read_duration(field: &'static str, value: &str) -> Result<Duration> {
    let text: String = must(field, value, "a duration like \"30d\" or \"12h\"")?;
    parse_duration(&text).map_err(|_| {
        let message = "is not a duration of at most a century: write it like \"30d\" or \"12h\"";
        Error::invalid(field, format!("`{field}` {message}"))
    })
}

fn read_moment(value: &str) -> Result<Change<u64>> {
    const FIELD: &str = "expires_at";
    let what = "a moment like \"2027-01-31T12:00:00Z\"";
    Ok(match maybe::<String>(FIELD, value, what)? {
        Change::Keep => Change::Keep,
        Change::Remove => Change::Remove,
        Change::Set(text) => {
            let moment = text.parse::<Timestamp>().ok();
            let second = moment.and_then(|moment| u64::try_from(moment.as_second()).ok());
            Change::Set(second.ok_or_else(|| {
                Error::invalid(FIELD, format!("`{FIELD}` must be {what}, or null"))
            })?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<KeyChange> {
        read_change(text.as_bytes(), 1_000)
    }

    #[test]
    fn what_is_written_is_read() {
        let change = read(
            r#"{"name":"ci","team":null,"models":["chat"],"expires_at":"1970-01-01T01:00:00Z",
                "limits":{"requests_per_minute":60,"tokens_per_minute":null,
                          "cost_per_minute_usd":0.5,"concurrency":2},
                "budgets":{"day_usd":12.50,"month_usd":0,"total_usd":null,"hard":true}}"#,
        );
        let expected = KeyChange {
            name: Some("ci".into()),
            team: Change::Remove,
            models: Change::Set(vec!["chat".into()]),
            limits: Change::Set(LimitsChange {
                requests_per_minute: Change::Set(60),
                tokens_per_minute: Change::Remove,
                cost_per_minute: Change::Set(Money::from_pico(500_000_000_000)),
                concurrency: Change::Set(2),
            }),
            budgets: Change::Set(BudgetsChange {
                day: Change::Set(Money::from_pico(12_500_000_000_000)),
                month: Change::Set(Money::ZERO),
                total: Change::Remove,
                hard: Some(true),
            }),
            expires_at: Change::Set(3_600),
        };
        assert_eq!(change.unwrap(), expected);
        assert_eq!(read("").unwrap(), KeyChange::default());
        let change = read(r#"{"expires_in":"1h","limits":null,"budgets":null}"#).unwrap();
        assert_eq!(change.expires_at, Change::Set(4_600));
        assert_eq!((change.limits, change.budgets), (Change::Remove, Change::Remove));
        assert_eq!(read_grace(br#"{"grace":"1d"}"#).unwrap(), Duration::from_secs(86_400));
        assert_eq!(read_grace(b" ").unwrap(), Duration::ZERO);
    }

    #[test]
    fn whatever_is_wrong_is_told_with_its_name() {
        for (text, param, words) in [
            ("[]", None, "one JSON object"),
            (r#"{"name":"a""#, None, "one JSON object"),
            (r#""sk1canary""#, None, "the body must be one JSON object"),
            (
                r#"{"sk1canary":1}"#,
                None,
                "a name that is not repeated here is no field of the body",
            ),
            (r#"{"sk1canary":1,"sk1canary":1}"#, None, "a name that is not repeated here stands"),
            (r#"{"limits":"sk1canary"}"#, Some("limits"), "`limits` must be an object"),
            (r#"{"expires_in":"sk1canary"}"#, Some("expires_in"), "not a duration"),
            (r#"{"expires_at":"sk1canary"}"#, Some("expires_at"), "a moment like"),
            (r#"{"nmae":"a"}"#, None, "`nmae` is no field of the body: there are name, team"),
            (r#"{"name":"a","name":"b"}"#, None, "`name` stands twice"),
            (r#"{"name":null}"#, Some("name"), "`name` must be a string"),
            (r#"{"team":3}"#, Some("team"), "a string, or null"),
            (r#"{"models":"chat"}"#, Some("models"), "a list of strings"),
            (r#"{"limits":3}"#, Some("limits"), "must be an object"),
            (r#"{"limits":{"rpm":3}}"#, Some("limits"), "`rpm` is no field of limits"),
            (
                r#"{"limits":{"requests_per_minute":1.5}}"#,
                Some("limits.requests_per_minute"),
                "a whole number above 0, or null",
            ),
            (
                r#"{"limits":{"requests_per_minute":4294967296}}"#,
                Some("limits.requests_per_minute"),
                "a whole number",
            ),
            (
                r#"{"limits":{"concurrency":1,"concurrency":2}}"#,
                Some("limits"),
                "`concurrency` stands twice",
            ),
            (r#"{"budgets":{"day_usd":-1}}"#, Some("budgets.day_usd"), "0 to 9,000,000"),
            (r#"{"budgets":{"day_usd":"1"}}"#, Some("budgets.day_usd"), "a number of dollars"),
            (r#"{"budgets":{"day_usd":1e999}}"#, Some("budgets.day_usd"), "a number of dollars"),
            (r#"{"budgets":{"hard":1}}"#, Some("budgets.hard"), "true or false"),
            (r#"{"budgets":{"week_usd":1}}"#, Some("budgets"), "`week_usd` is no field"),
            (r#"{"expires_at":"tomorrow"}"#, Some("expires_at"), "a moment like"),
            (r#"{"expires_in":"30"}"#, Some("expires_in"), "not a duration"),
            (r#"{"expires_in":"1d","expires_at":null}"#, Some("expires_in"), "send one of them"),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.param(), param, "{text}: {error}");
            assert!(error.message().contains(words), "{text}: {error}");
            assert!(!error.message().contains("canary"), "{text}: {error}");
        }
        assert!(
            read_grace(br#"{"after":"1d"}"#).unwrap_err().message().contains("there are grace")
        );
    }
}
