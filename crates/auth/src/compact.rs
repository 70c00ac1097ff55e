//! A token as it is written, taken apart: three parts of base64url, two of them JSON objects.
//!
//! Nothing is believed yet. What no good token has is refused before any key is looked for: a
//! header that brings its own key, or asks for something we do not do (RFC 7515 §4, RFC 8725).

use crate::{flaw::Flaw, object, options::named};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

/// Longest token; ours have some 600 bytes, those of large directories a few KiB.
pub(crate) const MAX_TOKEN_BYTES: usize = 8 << 10;
/// Longest name of a key.
const MAX_KEY_ID_BYTES: usize = 256;

/// What would make the checker fetch, trust or do something because the token says so.
const REFUSED: [&str; 8] = ["crit", "jku", "jwk", "x5u", "x5c", "b64", "zip", "enc"];

/// A token taken apart.
pub(crate) struct Compact<'a> {
    pub(crate) algorithm: Algorithm,
    pub(crate) kind: Option<String>,
    pub(crate) key_id: Option<String>,
    pub(crate) claims: Map<String, Value>,
    /// What is signed.
    pub(crate) signed: &'a str,
    /// Still in base64url.
    pub(crate) signature: &'a str,
}

impl<'a> Compact<'a> {
    pub(crate) fn parse(token: &'a str) -> Result<Self, Flaw> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(Flaw::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Flaw::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(Flaw::Malformed)?;
        let part = |part: &str| {
            let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Flaw::Malformed)?;
            if bytes.is_empty() { Err(Flaw::Malformed) } else { Ok(bytes) }
        };
        // A fourth part leaves a dot in the claims, which base64url does not have.
        let mut header = object::read(&part(header)?).ok_or(Flaw::Malformed)?;
        part(signature)?;
        if REFUSED.iter().any(|name| header.contains_key(*name)) || header.contains_key("cty") {
            return Err(Flaw::Header);
        }
        let mut text = |name: &str| match header.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Flaw::Header),
        };
        let algorithm = text("alg")?.as_deref().and_then(named).ok_or(Flaw::Algorithm)?;
        let kind = text("typ")?;
        let key_id = text("kid")?;
        if key_id.as_ref().is_some_and(|id| id.is_empty() || id.len() > MAX_KEY_ID_BYTES) {
            return Err(Flaw::Header);
        }
        let claims = object::read(&part(claims)?).ok_or(Flaw::Malformed)?;
        Ok(Self { algorithm, kind, key_id, claims, signed, signature })
    }

    /// The `iss` it claims.
    pub(crate) fn issuer(&self) -> Option<&str> {
        self.claims.get("iss")?.as_str()
    }

    /// Whether `typ` says so, with or without `application/` (RFC 7515 §4.1.9).
    pub(crate) fn is_of_kind(&self, kind: &str) -> bool {
        self.kind.as_deref().is_some_and(|said| {
            let bare = match said.get(..12) {
                Some(prefix) if prefix.eq_ignore_ascii_case("application/") => &said[12..],
                _ => said,
            };
            bare.eq_ignore_ascii_case(kind)
        })
    }
}
