//! What we sent that is secret, so that an upstream's words about it are not passed on.
//!
//! *Why:* servers repeat keys in errors ("Incorrect API key provided: …"), proxies and debugging
//! servers whole requests, and the words of a 400 or 404 are for the caller. So whatever an error
//! says is cleaned before it is read. Answers are not: what a model says is the caller's.

use crate::{credential::Token, fault};
use http::HeaderMap;
use memchr::memmem;
use std::{borrow::Cow, sync::Arc};
use tidegate_core::Error;

/// Shorter values are no secrets but words: a team's name, the `EMPTY` that servers without keys
/// are given.
const SHORTEST: usize = 8;
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
        let token = self.token.as_ref().map(|token| &token.header);
        let all = self.headers.values().filter(|value| value.is_sensitive()).chain(token);
        for value in all {
            let value = value.as_bytes();
            let secret = value.strip_prefix(b"Bearer ").unwrap_or(value);
            if secret.len() >= SHORTEST && memmem::find(&cleaned, secret).is_some() {
                cleaned = Cow::Owned(without(&cleaned, secret));
            }
        }
        cleaned
    }
}

fn without(said: &[u8], secret: &[u8]) -> Vec<u8> {
    let (mut cleaned, mut from) = (Vec::with_capacity(said.len()), 0);
    for at in memmem::find_iter(said, secret) {
        cleaned.extend_from_slice(&said[from..at]);
        cleaned.extend_from_slice(INSTEAD);
        from = at + secret.len();
    }
    cleaned.extend_from_slice(&said[from..]);
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn secrets_are_taken_out_and_words_left() {
        let mut headers = HeaderMap::new();
        for (name, value, sensitive) in [
            ("authorization", "Bearer sk-secret", true),
            ("x-team", "search", true),
            ("accept", "application/json", false),
        ] {
            let mut value = HeaderValue::from_static(value);
            value.set_sensitive(sensitive);
            headers.insert(name, value);
        }
        let sent = Sent { headers: Arc::new(headers), token: None };
        let said = b"sk-secret: no such key (sk-secret) of search, application/json";
        let cleaned = "[redacted]: no such key ([redacted]) of search, application/json";
        assert_eq!(&*sent.clean(said), cleaned.as_bytes());
        assert!(matches!(sent.clean(b"sk-secre"), Cow::Borrowed(_)));
    }
}
