//! What goes wrong, how often: settable at the start and, by `POST /sim/faults`, at any time.
//!
//! Shares are exclusive: one draw per request, from (seed, body, attempt), picks one fault or
//! none, so 2,000 calls with `error_rate` 0.01 see about 20 errors, the same ones in every run.

use crate::{Distribution, chance::Chance};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;
use tidegate_core::Secret;

/// Faults on demand. The default is none.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Hidden limit in requests per second: above it 429 at once. None by default.
    pub rate: Option<f64>,
    /// Requests that may come at once under `rate`. Default: one second's worth.
    pub burst: Option<u32>,
    /// Hidden limit in tokens (prompt and answer) per minute: above it 429. None by default.
    pub tokens_per_minute: Option<u64>,
    /// Tokens that may come at once under `tokens_per_minute`. Default: one minute's worth.
    pub token_burst: Option<u64>,
    /// Hidden limit of requests in flight, waiting ones included: above it 429. None by default.
    pub max_concurrency: Option<u32>,
    /// What a refusal tells in `retry-after`. Default 1 s.
    #[serde(with = "tidegate_policy::setting::duration")]
    pub retry_after: Duration,
    /// How it tells it. Default: whole seconds.
    pub retry_after_form: RetryAfterForm,
    /// Whether answers carry `x-ratelimit-*` headers. Default false: the limits stay hidden.
    pub announce_limits: bool,
    /// Share of requests answered with `error_status`, 0 to 1.
    pub error_rate: f64,
    /// Status of those, 400 to 599. Default 500.
    pub error_status: u16,
    /// Share refused with 429 `insufficient_quota`.
    pub quota_rate: f64,
    /// Share whose connection is reset before any answer.
    pub reset_rate: f64,
    /// Share accepted and never answered.
    pub stall_rate: f64,
    /// Share that stops for ever in the middle of the answer.
    pub stall_mid_rate: f64,
    /// Share whose connection breaks in the middle of the answer.
    pub truncate_rate: f64,
    /// Share of streams that end cleanly in the middle, with neither finish reason nor `[DONE]`.
    pub unterminated_rate: f64,
    /// Share with one event (or, unary, the body) that is not JSON.
    pub malformed_rate: f64,
    /// Share of streams that break off with an error event after status 200.
    pub error_event_rate: f64,
    /// Share whose text is prose with broken JSON in it, whatever format was asked for.
    pub garbage_rate: f64,
    /// Waited before the answer's head. Default 0.
    pub slow_headers: Distribution,
    /// Share of requests `slow_headers` applies to. Default 1.
    pub slow_headers_rate: f64,
    /// Waited before each event of a stream, each eighth of any other body. Default 0.
    pub slow_body: Distribution,
    /// Share of requests `slow_body` applies to. Default 1.
    pub slow_body_rate: f64,
    /// First-token and per-token times are multiplied by this, 0.001 to 1000: capacity that
    /// changes while it runs. Default 1.
    pub slowdown: f64,
    /// The only key accepted; other requests get 401. Any key (or none) by default. Never
    /// shown; an empty string lifts the check.
    #[serde(skip_serializing, deserialize_with = "secret")]
    pub api_key: Option<Secret<String>>,
}

/// How a refusal tells when to come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RetryAfterForm {
    /// `retry-after: 1`, rounded up.
    #[default]
    Seconds,
    /// `retry-after: 1.250`, as some providers do.
    Fraction,
    /// `retry-after: Sun, 06 Nov 1994 08:49:37 GMT`, rounded up.
    Date,
    /// `retry-after-ms: 1000`.
    Ms,
    /// `retry-after: soon`.
    Garbage,
    /// `retry-after: -1`.
    Negative,
    /// Nothing.
    None,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            rate: None,
            burst: None,
            tokens_per_minute: None,
            token_burst: None,
            max_concurrency: None,
            retry_after: Duration::from_secs(1),
            retry_after_form: RetryAfterForm::Seconds,
            announce_limits: false,
            error_rate: 0.0,
            error_status: 500,
            quota_rate: 0.0,
            reset_rate: 0.0,
            stall_rate: 0.0,
            stall_mid_rate: 0.0,
            truncate_rate: 0.0,
            unterminated_rate: 0.0,
            malformed_rate: 0.0,
            error_event_rate: 0.0,
            garbage_rate: 0.0,
            slow_headers: Distribution::ZERO,
            slow_headers_rate: 1.0,
            slow_body: Distribution::ZERO,
            slow_body_rate: 1.0,
            slowdown: 1.0,
            api_key: None,
        }
    }
}

/// The fault a request meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Error,
    Quota,
    Reset,
    Stall,
    StallMid,
    Truncate,
    Unterminated,
    Malformed,
    ErrorEvent,
    Garbage,
}

impl Fault {
    /// The word in the ledger; the field's name without its `_rate`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Quota => "quota",
            Self::Reset => "reset",
            Self::Stall => "stall",
            Self::StallMid => "stall_mid",
            Self::Truncate => "truncate",
            Self::Unterminated => "unterminated",
            Self::Malformed => "malformed",
            Self::ErrorEvent => "error_event",
            Self::Garbage => "garbage",
        }
    }
}

impl Faults {
    /// Says what is wrong with these faults, if anything is.
    ///
    /// # Errors
    ///
    /// A sentence that names the field and its range.
    pub fn check(&self) -> Result<(), String> {
        for (name, rate) in
            [("slow_headers_rate", self.slow_headers_rate), ("slow_body_rate", self.slow_body_rate)]
                .into_iter()
                .chain(self.shares().map(|(fault, rate)| (fault.name(), rate)))
        {
            if !(0.0..=1.0).contains(&rate) {
                return Err(format!("the share `{name}` is {rate}: give 0 to 1"));
            }
        }
        let sum: f64 = self.shares().map(|(_, rate)| rate).sum();
        if sum > 1.0 + 1e-9 {
            return Err(format!("the shares of faults add up to {sum}, more than 1"));
        }
        if let Some(rate) = self.rate.filter(|rate| !(0.0..=1e9).contains(rate)) {
            return Err(format!("`rate` is {rate}: give requests per second, 0 for no limit"));
        }
        if !(400..=599).contains(&self.error_status) {
            return Err(format!("`error_status` is {}: give 400 to 599", self.error_status));
        }
        if !(0.001..=1000.0).contains(&self.slowdown) {
            return Err(format!("`slowdown` is {}: give 0.001 to 1000", self.slowdown));
        }
        Ok(())
    }

    /// These faults with the fields named in `change`, a JSON object, replaced. `null` puts a
    /// field back to its default.
    pub(crate) fn changed(&self, change: &[u8]) -> Result<Self, String> {
        let change: Value = serde_json::from_slice(change).map_err(|error| error.to_string())?;
        let Value::Object(change) = change else {
            return Err("give a JSON object of the faults to change".into());
        };
        let mut whole = serde_json::to_value(self).map_err(|error| error.to_string())?;
        let fields = whole.as_object_mut().expect("a struct is written as an object");
        let keeps_key = !change.contains_key("api_key");
        for (name, value) in change {
            match value {
                Value::Null if fields.contains_key(&name) => drop(fields.remove(&name)),
                value => drop(fields.insert(name, value)),
            }
        }
        let mut faults: Self = serde_json::from_value(whole).map_err(|error| error.to_string())?;
        if keeps_key {
            faults.api_key.clone_from(&self.api_key);
        }
        faults.check()?;
        Ok(faults)
    }

    /// The fault drawn for a request, if any.
    pub(crate) fn draw(&self, chance: &mut Chance) -> Option<Fault> {
        let mut left = chance.unit();
        for (fault, rate) in self.shares() {
            if left < rate {
                return Some(fault);
            }
            left -= rate;
        }
        None
    }

    fn shares(&self) -> impl Iterator<Item = (Fault, f64)> {
        [
            (Fault::Error, self.error_rate),
            (Fault::Quota, self.quota_rate),
            (Fault::Reset, self.reset_rate),
            (Fault::Stall, self.stall_rate),
            (Fault::StallMid, self.stall_mid_rate),
            (Fault::Truncate, self.truncate_rate),
            (Fault::Unterminated, self.unterminated_rate),
            (Fault::Malformed, self.malformed_rate),
            (Fault::ErrorEvent, self.error_event_rate),
            (Fault::Garbage, self.garbage_rate),
        ]
        .into_iter()
    }
}

fn secret<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Secret<String>>, D::Error> {
    let written = Option::<String>::deserialize(from)?;
    Ok(written.filter(|key| !key.is_empty()).map(Secret::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_keeps_what_it_does_not_name() {
        let faults =
            Faults { rate: Some(5.0), api_key: Some(Secret::new("k".into())), ..Faults::default() };
        let changed = faults.changed(br#"{"error_rate":0.5,"retry_after":"2s"}"#).unwrap();
        assert_eq!((changed.rate, changed.error_rate), (Some(5.0), 0.5));
        assert_eq!(changed.retry_after, Duration::from_secs(2));
        assert!(changed.api_key.is_some());
        let changed = changed.changed(br#"{"rate":null,"retry_after":null,"api_key":""}"#).unwrap();
        assert_eq!((changed.rate, changed.retry_after), (None, Duration::from_secs(1)));
        assert!(changed.api_key.is_none());
    }

    #[test]
    fn a_bad_change_says_which_field() {
        for (change, named) in [
            (r#"{"eror_rate":0.5}"#, "eror_rate"),
            (r#"{"error_rate":1.5}"#, "`error`"),
            (r#"{"error_rate":0.6,"stall_rate":0.6}"#, "more than 1"),
            (r#"{"error_status":200}"#, "error_status"),
            (r#"{"retry_after_form":"smoke"}"#, "smoke"),
            (r#"{"nul":null}"#, "nul"),
            ("[]", "object"),
            ("{", "EOF"),
        ] {
            let error = Faults::default().changed(change.as_bytes()).unwrap_err();
            assert!(error.contains(named), "{change}: {error}");
        }
    }

    #[test]
    fn shares_are_met_and_exclusive() {
        let faults = Faults { error_rate: 0.1, garbage_rate: 0.3, ..Faults::default() };
        let mut seen = [0; 3];
        for body in 0..10_000 {
            match faults.draw(&mut Chance::new(&[0, body])) {
                Some(Fault::Error) => seen[0] += 1,
                Some(Fault::Garbage) => seen[1] += 1,
                None => seen[2] += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!((900..1100).contains(&seen[0]) && (2850..3150).contains(&seen[1]), "{seen:?}");
    }

    #[test]
    fn the_key_is_never_shown() {
        let faults = Faults { api_key: Some(Secret::new("canary".into())), ..Faults::default() };
        assert!(!serde_json::to_string(&faults).unwrap().contains("canary"));
        assert!(!format!("{faults:?}").contains("canary"));
    }
}
