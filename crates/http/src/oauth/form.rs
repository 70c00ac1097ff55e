//! What a client says, decoded: `application/x-www-form-urlencoded` bodies and HTTP Basic.

use super::Refused;
use base64::{Engine as _, engine::general_purpose::STANDARD};

/// Most parameters looked at; a form with more is none of ours.
const MAX_PARAMETERS: usize = 64;

/// The parameters of a form, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    /// `None` when a name or value is broken or no UTF-8, or there are too many.
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let pairs = body.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty());
        let mut parameters = Vec::new();
        for pair in pairs {
            let at = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            let value = pair.get(at + 1..).unwrap_or_default();
            if parameters.len() == MAX_PARAMETERS {
                return None;
            }
            parameters.push((decode(&pair[..at])?, decode(value)?));
        }
        Some(Self(parameters))
    }

    /// The value of `name`; one without a value counts as absent (RFC 6749 §3.2).
    ///
    /// # Errors
    ///
    /// When it is there twice.
    pub(super) fn one(&self, name: &str) -> Result<Option<&str>, Refused> {
        let mut values = self.0.iter().filter(|(its_name, _)| its_name == name);
        let first = values.next();
        if values.next().is_some() {
            return Err(Refused::request("a parameter is there more than once"));
        }
        Ok(first.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty()))
    }
}

/// Client id and secret of an `Authorization: Basic` header, each form-encoded before they were
/// joined (RFC 6749 §2.3.1).
pub(super) fn basic(header: &[u8]) -> Option<(String, String)> {
    let at = header.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = header.split_at(at);
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let said = STANDARD.decode(rest.trim_ascii()).ok()?;
    let colon = said.iter().position(|byte| *byte == b':')?;
    Some((decode(&said[..colon])?, decode(&said[colon + 1..])?))
}

/// Undoes form encoding; `None` when it is broken or no UTF-8.
pub(crate) fn decode(text: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        rest = after;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let [high, low, after @ ..] = rest else { return None };
                let digit = |byte: u8| char::from(byte).to_digit(16);
                bytes.push((digit(*high)? << 4 | digit(*low)?) as u8);
                rest = after;
            }
            plain => bytes.push(*plain),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_decoded() {
        let form = Form::parse(b"grant_type=a+b%26&&scope=&x=%C3%A9&flag").unwrap();
        assert_eq!(form.one("grant_type").unwrap(), Some("a b&"));
        assert_eq!(form.one("x").unwrap(), Some("é"));
        for absent in ["scope", "flag", "none"] {
            assert_eq!(form.one(absent).unwrap(), None, "{absent}");
        }
        assert!(Form::parse(b"a=1&a=2").unwrap().one("a").is_err());
        assert!(Form::parse(b"a=1&a=").unwrap().one("a").is_err());
        for bad in [&b"a=%"[..], b"a=%4", b"a=%zz", b"a=%ff", b"\xff=1", b"a=%+1"] {
            assert_eq!(Form::parse(bad), None, "{bad:?}");
        }
        assert!(Form::parse("a=1&".repeat(64).as_bytes()).is_some());
        assert!(Form::parse("a=1&".repeat(65).as_bytes()).is_none());
    }

    #[test]
    fn basic_is_decoded_twice() {
        let header = |said: &str| format!("basic {}", STANDARD.encode(said)).into_bytes();
        let pair = |id: &str, secret: &str| Some((id.to_owned(), secret.to_owned()));
        assert_eq!(basic(&header("id:secret")), pair("id", "secret"));
        assert_eq!(basic(&header("a%3Ab:c+d%25")), pair("a:b", "c d%"));
        assert_eq!(basic(&header("id:a:b")), pair("id", "a:b"));
        for bad in [&b"Bearer aWQ6c2VjcmV0"[..], b"Basic", b"Basic ???", b"Basic aWQ="] {
            assert_eq!(basic(bad), None, "{bad:?}");
        }
        assert_eq!(basic(&header("no colon")), None);
        assert_eq!(basic(&header("id:%ff")), None);
    }
}
