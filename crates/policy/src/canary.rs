//! Canary: which of a model's targets a call may go to, and which calls are copied to a mirror.
//!
//! # Why
//!
//! A new server is tried on few before it is given to all: on a share (that is its weight), on
//! the callers who asked for it (a header), or on one's own team (a list of callers). A match
//! must also keep everybody else out, or the canary sees traffic nobody meant for it. A mirror
//! sees real calls without anybody seeing its answers.
//!
//! ```text
//! some target's match fits the call  ->  those targets only
//! none fits                          ->  the targets without a match
//! ```

use crate::setting;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The calls a target is for. Every condition that is written must hold; with none written, any
/// call fits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    /// A header the call must carry. Default: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<Header>,
    /// Callers (tenant ids) of which it must be one. Default: any.
    pub callers: Vec<String>,
}

/// A header and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Its name, in any case.
    pub name: String,
    /// Its whole value, exactly.
    pub value: String,
}

impl Match {
    /// Whether a call of `caller` fits; `header` finds a header's value by its name in any case.
    pub fn fits<'a>(&self, caller: &str, header: impl Fn(&str) -> Option<&'a str>) -> bool {
        let carried =
            self.header.as_ref().is_none_or(|wanted| header(&wanted.name) == Some(&wanted.value));
        carried && (self.callers.is_empty() || self.callers.iter().any(|name| name == caller))
    }
}

/// Which targets a call may go to, given the targets' matches and whether a match `fits` it.
///
/// Asks each match at most twice and allocates nothing.
pub fn eligible<'a>(
    matches: &'a [Option<Match>],
    fits: impl Fn(&Match) -> bool + 'a,
) -> impl Fn(usize) -> bool + 'a {
    let chosen = matches.iter().flatten().any(&fits);
    move |index| match matches.get(index) {
        Some(Some(found)) => chosen && fits(found),
        Some(None) => !chosen,
        None => false,
    }
}

/// Copies a share of a model's calls to a target whose answers are thrown away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Mirror {
    /// Share of calls that are copied, from 0 to 1. Default 0.
    #[serde(with = "setting::share")]
    #[schemars(with = "f64")]
    pub share: f64,
}

impl Mirror {
    /// Whether a call is copied; `roll` is drawn evenly from `[0, 1)`.
    pub fn copies(&self, roll: f64) -> bool {
        roll < self.share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STABLE: &str = "null";
    const HEADER: &str = r#"{"header": {"name": "x-canary", "value": "1"}}"#;
    const TEAM: &str = r#"{"callers": ["qa", "ops"]}"#;
    const BOTH: &str =
        r#"{"header": {"name": "x-canary", "value": "1"}, "callers": ["qa", "ops"]}"#;

    /// Which of the targets written in `matches` a call of `caller` with `x-canary: <canary>`
    /// may go to.
    #[track_caller]
    fn check(matches: &[&str], caller: &str, canary: Option<&str>, expected: &[usize]) {
        let matches: Vec<Option<Match>> =
            matches.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        let header = |name: &str| canary.filter(|_| name == "x-canary");
        let may = eligible(&matches, |found| found.fits(caller, header));
        let got: Vec<_> = (0..=matches.len()).filter(|index| may(*index)).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn who_asks_gets_the_canary_and_nobody_else_does() {
        check(&[STABLE, HEADER], "any", Some("1"), &[1]);
        check(&[STABLE, HEADER], "any", Some("2"), &[0]);
        check(&[STABLE, HEADER], "any", None, &[0]);
        check(&[STABLE, TEAM, STABLE], "qa", None, &[1]);
        check(&[STABLE, TEAM, STABLE], "any", None, &[0, 2]);
    }

    #[test]
    fn every_written_condition_must_hold() {
        check(&[STABLE, BOTH], "qa", Some("1"), &[1]);
        check(&[STABLE, BOTH], "qa", None, &[0]);
        check(&[STABLE, BOTH], "any", Some("1"), &[0]);
        check(&[STABLE, "{}"], "any", None, &[1]);
    }

    #[test]
    fn several_may_fit_or_none_be_left() {
        check(&[STABLE, HEADER, TEAM], "ops", Some("1"), &[1, 2]);
        check(&[HEADER], "any", None, &[]);
        check(&[], "any", None, &[]);
    }

    #[test]
    fn a_mirror_copies_its_share() {
        let copied = |share: f64| {
            let mirror = Mirror { share };
            (0..1000).filter(|n| mirror.copies(f64::from(*n) / 1000.0)).count()
        };
        assert_eq!((copied(0.0), copied(0.05), copied(1.0)), (0, 50, 1000));
    }

    #[test]
    fn what_is_misspelt_is_refused() {
        assert!(serde_json::from_str::<Match>(r#"{"caller": ["qa"]}"#).is_err());
        assert!(serde_json::from_str::<Match>(r#"{"header": {"name": "x"}}"#).is_err());
        assert!(serde_json::from_str::<Mirror>(r#"{"share": 5}"#).is_err());
    }
}
