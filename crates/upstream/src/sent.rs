//! What we sent that is secret, so that an upstream's words about it are not passed on.
//!
//! *Why:* servers repeat keys in errors ("Incorrect API key provided: …"), proxies and debugging
//! servers repeat whole requests, and what a 400 or 404 says is passed on to the caller. So
//! whatever an error says is cleaned before it is read, and none of the upstream's headers is
//! passed on as it came. Answers are not cleaned: they are the caller's byte for byte, and an
//! upstream that is given a key is trusted not to answer with it. The exception is an answer that
//! says, in an `error` object of its own, how it failed.
//!
//! *In which forms:* a secret is found as it is; escaped for JSON, for a URL or for both; in
//! base64, whatever stands before it; as the password of HTTP Basic alone; and where the text
//! breaks off in the middle of it.

mod written;

use crate::{credential::Token, fault};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use memchr::memmem;
use std::{borrow::Cow, sync::Arc};
use tidegate_core::Error;

/// Values shorter than this are no secrets: whoever asks can try them all.
const SHORTEST: usize = 4;
/// Values shorter than this are taken out only where they stand as words: a team's name "search"
/// is not to be cut out of "research".
const SHORTEST_WITHIN: usize = 8;
/// Values shorter than this are not looked for in base64: the whole groups of three bytes in them
/// are too few to be told from other text.
const SHORTEST_IN_BASE64: usize = 11;
const INSTEAD: &[u8] = b"[redacted]";

/// The headers of a request that hold secrets. Costs two counters to make.
#[derive(Clone)]
pub(crate) struct Sent {
    /// Those marked sensitive.
    pub(crate) headers: Arc<HeaderMap>,
    pub(crate) token: Option<Arc<Token>>,
}

impl Sent {
    /// The error that `read` finds in what an upstream `said`, without our secrets.
    pub(crate) fn error(&self, said: &[u8], read: fn(&[u8]) -> Option<Error>) -> Option<Error> {
        let error = read(said)?;
        match self.clean(said) {
            Cow::Borrowed(_) => Some(error),
            Cow::Owned(cleaned) => {
                let vague = || fault::wrong("the upstream answered with an error");
                Some(read(&cleaned).unwrap_or_else(vague))
            }
        }
    }

    /// What an upstream `said`, without our secrets.
    pub(crate) fn clean<'s>(&self, said: &'s [u8]) -> Cow<'s, [u8]> {
        let mut cleaned = Cow::Borrowed(said);
        let sensitive = self.headers.iter().filter(|(_, value)| value.is_sensitive());
        let token = self.token.as_ref().map(|token| (&header::AUTHORIZATION, &token.header));
        for (name, value) in sensitive.chain(token) {
            for secret in secrets(name, value) {
                hide(&mut cleaned, &secret);
            }
        }
        cleaned
    }

    /// An answer that says in an object of its own how it failed (a response of status `failed`),
    /// without our secrets. Any other is as it was: one search.
    pub(crate) fn answer(&self, whole: Bytes) -> Bytes {
        if !says_error(&whole) {
            return whole;
        }
        match self.clean(&whole) {
            Cow::Borrowed(_) => whole,
            Cow::Owned(cleaned) => cleaned.into(),
        }
    }

    /// The error that takes the place of an event with a secret of ours in it, where the event is
    /// such an answer, or no JSON. It is not cleaned: an event is passed on whole or not at all.
    pub(crate) fn event(&self, data: &[u8]) -> Option<Error> {
        let is_json = matches!(data.trim_ascii_start().first(), None | Some(b'{' | b'['));
        let may_hold = says_error(data) || !is_json;
        let holds_secret = may_hold && matches!(self.clean(data), Cow::Owned(_));
        holds_secret.then(|| fault::wrong("the upstream answered with an error"))
    }

    /// A word an upstream `said`, unless it holds a secret of ours.
    pub(crate) fn word<'s>(&self, said: &'s str) -> Option<&'s str> {
        matches!(self.clean(said.as_bytes()), Cow::Borrowed(_)).then_some(said)
    }
}

/// Whether a JSON object has an object as its `error`. A model that writes the same in a text of its
/// own does not count: there the quotes are escaped.
fn says_error(json: &[u8]) -> bool {
    memmem::find_iter(json, b"\"error\"").any(|at| {
        let behind = json[at + b"\"error\"".len()..].trim_ascii_start();
        behind.strip_prefix(b":").is_some_and(|value| value.trim_ascii_start().starts_with(b"{"))
    })
}

/// What of a header is secret: all of it, but of an authorization what follows the scheme, and of
/// HTTP Basic the password alone too.
fn secrets<'v>(
    name: &HeaderName,
    value: &'v HeaderValue,
) -> impl Iterator<Item = Cow<'v, [u8]>> + use<'v> {
    let value = value.as_bytes();
    let is_authorization = matches!(*name, header::AUTHORIZATION | header::PROXY_AUTHORIZATION);
    let space = memchr::memchr(b' ', value).filter(|_| is_authorization);
    let (scheme, secret) = space.map_or((&b""[..], value), |space| value.split_at(space));
    let secret = secret.trim_ascii();
    let is_basic = scheme.eq_ignore_ascii_case(b"basic");
    let password = is_basic.then(|| password(secret)).flatten();
    [Some(Cow::Borrowed(secret)), password.map(Cow::Owned)].into_iter().flatten()
}

fn password(basic: &[u8]) -> Option<Vec<u8>> {
    let pair = STANDARD.decode(basic).ok()?;
    let colon = memchr::memchr(b':', &pair)?;
    Some(pair[colon + 1..].to_vec())
}

fn hide(text: &mut Cow<'_, [u8]>, secret: &[u8]) {
    if secret.len() < SHORTEST || is_bare(secret) {
        return;
    }
    let mut found = written::plain(text, secret);
    if secret.len() < SHORTEST_WITHIN {
        found.retain(|place| {
            let is_word = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
            let before = place.start.checked_sub(1).and_then(|at| text.get(at));
            !is_word(before) && !is_word(text.get(place.end))
        });
    }
    replace(text, &found);
    if secret.len() >= SHORTEST_IN_BASE64 {
        let found = written::in_base64(text, secret);
        replace(text, &found);
    }
}

/// Whether it is a short value that JSON writes without quotes (`x-beta: true`): there its absence
/// would break what an error says.
fn is_bare(secret: &[u8]) -> bool {
    let is_number = secret.iter().all(u8::is_ascii_digit);
    secret.len() < SHORTEST_WITHIN && (is_number || matches!(secret, b"true" | b"false" | b"null"))
}

/// Replaces the places `found`, which are in order and apart.
fn replace(text: &mut Cow<'_, [u8]>, found: &[std::ops::Range<usize>]) {
    if found.is_empty() {
        return;
    }
    let (mut cleaned, mut from) = (Vec::with_capacity(text.len()), 0);
    for place in found {
        cleaned.extend_from_slice(&text[from..place.start]);
        cleaned.extend_from_slice(INSTEAD);
        from = place.end;
    }
    cleaned.extend_from_slice(&text[from..]);
    *text = Cow::Owned(cleaned);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(headers: &[(&'static str, &str, bool)]) -> Sent {
        let mut map = HeaderMap::new();
        for (name, value, is_sensitive) in headers {
            let mut value = HeaderValue::from_str(value).unwrap();
            value.set_sensitive(*is_sensitive);
            map.insert(*name, value);
        }
        Sent { headers: Arc::new(map), token: None }
    }

    #[track_caller]
    fn check(sent: &Sent, said: &str, cleaned: &str) {
        assert_eq!(String::from_utf8_lossy(&sent.clean(said.as_bytes())), cleaned);
    }

    #[test]
    fn secrets_are_taken_out_and_words_left() {
        let sent = sent(&[
            ("authorization", "Bearer sk-secret", true),
            ("x-team", "search", true),
            ("x-tier", "3", true),
            ("accept", "application/json", false),
        ]);
        check(
            &sent,
            "sk-secret: no such key (Bearer sk-secret) of research, application/json, tier 3",
            "[redacted]: no such key (Bearer [redacted]) of research, application/json, tier 3",
        );
        check(&sent, "team \"search\" unknown", "team \"[redacted]\" unknown");
        let said = b"sk-secre, of searches";
        assert!(matches!(sent.clean(said), Cow::Borrowed(_)));
        assert_eq!((sent.word("req-1"), sent.word("req-sk-secret")), (Some("req-1"), None));
    }

    #[test]
    fn a_header_that_says_true_broke_what_an_error_says() {
        let sent = sent(&[("x-beta", "true", true), ("x-year", "2024", true)]);
        let said = r#"{"error":{"code":"insufficient_quota","is_final":true,"since":2024}}"#;
        check(&sent, said, said);
    }

    #[test]
    fn escapes_did_hide_a_secret() {
        let sent = sent(&[("authorization", "Bearer a/b+c<d\"e\\f=", true)]);
        for said in [
            r#"a/b+c<d"e\f="#,
            r#"a\/b+c\u003cd\"e\\f\u003d"#,
            r#"a\/b\u002Bc\u003Cd\"e\\f="#,
            r#"\u0061/b+c<d\\\"e\\\\f="#,
            "a%2Fb%2bc%3Cd%22e%5Cf%3D",
            "a/b&#43;c&lt;d&quot;e\\f&#x3D;",
        ] {
            check(&sent, &format!("x {said} y"), "x [redacted] y");
        }
    }

    #[test]
    fn what_repeats_itself_was_looked_through_at_each_of_its_bytes() {
        // Each took minutes.
        let sent = sent(&[("authorization", "Bearer sk-0123456789", true)]);
        let slashes = "\\".repeat(1 << 20);
        check(&sent, &slashes, &slashes);
        check(&sent, &STANDARD.encode("sk-0123456789..".repeat(1 << 16)), "[redacted]");
    }

    #[test]
    fn what_breaks_off_in_a_secret_is_one() {
        let sent = sent(&[("authorization", "Bearer sk-secret", true)]);
        check(&sent, "your key sk-s", "your key [redacted]");
        check(&sent, "your key sk-", "your key sk-");
        check(&sent, "sk-secret sk-secre", "[redacted] [redacted]");
        check(&sent, "", "");
    }

    #[test]
    fn a_failed_answer_is_cleaned_and_a_models_words_are_not() {
        let sent = sent(&[("authorization", "Bearer sk-secret", true)]);
        let answer = |text: &'static str| sent.answer(Bytes::from_static(text.as_bytes()));
        let failed = r#"{"object":"response","error": {"message":"sk-secret"}}"#;
        assert_eq!(answer(failed), r#"{"object":"response","error": {"message":"[redacted]"}}"#);
        assert!(sent.event(failed.as_bytes()).is_some());
        for words in [
            r#"{"output":"sk-secret","error":null}"#,
            r#"{"output":"say \"error\": {sk-secret"}"#,
            r#"{"output":[],"error":{"code":"server_error"}}"#,
        ] {
            assert_eq!(answer(words), words);
            assert!(sent.event(words.as_bytes()).is_none());
        }
    }

    #[test]
    fn base64_and_basic_did_hide_a_secret() {
        let bearer = sent(&[("authorization", "Bearer sk-0123456789", true)]);
        let basic = sent(&[("authorization", "Basic dXM6cGFzcy93b3Jk", true)]);
        for before in ["", "u", "us", "us:"] {
            let pair = STANDARD.encode(format!("{before}sk-0123456789"));
            check(&bearer, &format!("got Basic {pair}, sorry"), "got Basic [redacted], sorry");
        }
        for said in ["Basic dXM6cGFzcy93b3Jk", "Basic pass/word", "Basic pass\\/word"] {
            check(&basic, said, "Basic [redacted]");
        }
    }
}
