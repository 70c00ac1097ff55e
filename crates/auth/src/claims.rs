//! What a signed token says, checked: for whom, from when until when, about whom.

use crate::flaw::Flaw;
use serde_json::{Map, Value};
use tidegate_core::is_plain_line;

/// Latest time that is believed: the end of the year 9999.
const LATEST: u64 = 253_402_300_799;
/// Longest text that becomes part of a caller's identity.
pub(crate) const MAX_WORD_BYTES: usize = 256;

/// By how many seconds the clock of an issuer may differ from ours.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Leeway {
    /// A token may be issued so far ahead of us.
    pub(crate) ahead: u64,
    /// A token is taken so long after its end.
    pub(crate) late: u64,
}

/// Checks `aud`, `exp`, `nbf` and `iat` at `now`; gives the second from which the token is not
/// valid any more.
///
/// `exp` and `iat` must be there, and all times be whole numbers: a text or a fraction would be
/// read differently by the next checker.
pub(crate) fn check(
    claims: &Map<String, Value>,
    audience: &str,
    now: u64,
    leeway: Leeway,
) -> Result<u64, Flaw> {
    if !is_for(claims.get("aud"), audience) {
        return Err(Flaw::Audience);
    }
    let time = |name: &str| match claims.get(name) {
        None => Ok(None),
        Some(value) => value.as_u64().filter(|at| *at <= LATEST).map(Some).ok_or(Flaw::Times),
    };
    let expires_at = time("exp")?.ok_or(Flaw::Times)?.saturating_add(leeway.late);
    let issued_at = time("iat")?.ok_or(Flaw::Times)?;
    let soon = now.saturating_add(leeway.ahead);
    if issued_at > soon || time("nbf")?.is_some_and(|from| from > soon) {
        return Err(Flaw::Times);
    }
    if expires_at <= now {
        return Err(Flaw::Expired);
    }
    Ok(expires_at)
}

/// Whether `aud`, one text or a list of them, names `audience`.
fn is_for(aud: Option<&Value>, audience: &str) -> bool {
    match aud {
        Some(Value::String(one)) => one == audience,
        Some(Value::Array(many)) => {
            many.iter().all(Value::is_string) && many.iter().any(|one| one == audience)
        }
        _ => false,
    }
}

/// A claim that is one short printable text.
pub(crate) fn word<'a>(claims: &'a Map<String, Value>, name: &str) -> Result<&'a str, Flaw> {
    let text = claims.get(name).and_then(Value::as_str).ok_or(Flaw::Claims)?;
    let is_plain = !text.is_empty() && text.len() <= MAX_WORD_BYTES && is_plain_line(text);
    if is_plain { Ok(text) } else { Err(Flaw::Claims) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_audience_are_checked_to_the_second() {
        let at = |json: &str, now, leeway| {
            let claims = serde_json::from_str(json).unwrap();
            check(&claims, "gate", now, Leeway { ahead: leeway, late: leeway })
        };
        let good = r#"{"aud":"gate","iat":100,"exp":200}"#;
        assert_eq!(at(good, 150, 0), Ok(200));
        assert_eq!(at(good, 199, 0), Ok(200));
        assert_eq!(at(good, 200, 0), Err(Flaw::Expired));
        assert_eq!(at(good, 200, 30), Ok(230));
        assert_eq!(at(good, 99, 0), Err(Flaw::Times));
        assert_eq!(at(good, 99, 30), Ok(230));
        assert_eq!(at(r#"{"aud":["x","gate"],"iat":1,"exp":9}"#, 5, 0), Ok(9));
        assert_eq!(at(r#"{"aud":"gate","iat":1,"nbf":6,"exp":9}"#, 5, 0), Err(Flaw::Times));
        for (aud, flaw) in [
            (r#""other""#, Flaw::Audience),
            (r#"["gate",1]"#, Flaw::Audience),
            ("[]", Flaw::Audience),
            ("null", Flaw::Audience),
            (r#""gate","nbf":"1""#, Flaw::Times),
            (r#""gate","nbf":null"#, Flaw::Times),
        ] {
            let json = format!(r#"{{"aud":{aud},"iat":1,"exp":9}}"#);
            assert_eq!(at(&json, 5, 0), Err(flaw), "{aud}");
        }
        for exp in ["-1", "1e3", "9.5", "\"9\"", "null", "true", "[9]", "253402300800"] {
            let json = format!(r#"{{"aud":"gate","iat":1,"exp":{exp}}}"#);
            assert_eq!(at(&json, 5, 0), Err(Flaw::Times), "{exp}");
        }
    }
}
