//! Who may ask on the operators' port: which pages, and who has the token.

use crate::refusal::{self, Fixed};
use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, HOST, ORIGIN},
    http::request::Parts,
};
use std::{hint::black_box, net::IpAddr};
use tidegate_core::Secret;
use tokio::sync::watch;

/// Who may ask.
pub(crate) struct Guard {
    pub(super) token: Option<watch::Receiver<Secret<String>>>,
}

impl Guard {
    /// Refuses what a page of another site makes a browser ask.
    pub(super) fn check_site(&self, parts: &Parts) -> Result<(), &'static Fixed> {
        // HTTP/2 says it in `:authority`; where both are there they are the same.
        let in_header = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = in_header.or_else(|| parts.uri.authority().map(|authority| authority.as_str()));
        if self.token.is_none() && !host.is_some_and(is_loopback) {
            return Err(&refusal::FOREIGN_HOST);
        }
        let is_own = |origin: &str| {
            // Something before us may have taken TLS off, so the scheme is not known here.
            let rest = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            rest.zip(host).is_some_and(|(origin, host)| origin.eq_ignore_ascii_case(host))
        };
        let mut origins = parts.headers.get_all(ORIGIN).iter();
        if origins.all(|origin| origin.to_str().is_ok_and(is_own)) {
            Ok(())
        } else {
            Err(&refusal::FOREIGN_ORIGIN)
        }
    }

    pub(super) fn check_token(&self, headers: &HeaderMap) -> Result<(), &'static Fixed> {
        let Some(token) = &self.token else { return Ok(()) };
        let mut all = headers.get_all(AUTHORIZATION).iter();
        // One of two may be what somebody before us looked at.
        let said = all.next().filter(|_| all.next().is_none()).and_then(|value| {
            let (scheme, said) = value.as_bytes().split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then(|| said.trim_ascii())
        });
        // A header cannot carry the blanks around a value, so a token of blanks is nobody's.
        let said = said.filter(|said| !said.is_empty());
        match said {
            Some(said) if is_same(said, token.borrow().expose().trim_ascii().as_bytes()) => Ok(()),
            _ => Err(&refusal::NO_ADMIN_TOKEN),
        }
    }
}

/// Whether a `Host` can only mean this machine, whatever its port (a tunnel has its own).
fn is_loopback(host: &str) -> bool {
    // `strict` has checked that at most a port follows.
    let name = match host.strip_prefix('[') {
        Some(literal) => literal.split(']').next(),
        None => host.split(':').next(),
    };
    name.is_some_and(|name| {
        name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
    })
}

/// Whether the two are equal, in a time that tells at most their lengths.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let differing = one.iter().zip(other).fold(0, |found, (a, b)| black_box(found | (a ^ b)));
    one.len() == other.len() && differing == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_means_this_machine() {
        for host in
            ["localhost", "LocalHost:8081", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8081"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "gate",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.localhost:8081",
            "10.0.0.1:8081",
            "0.0.0.0",
            "[::2]:8081",
            "[::]",
            "2130706433",
            "127.1",
            "",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_token_with_blanks_around_it_or_beyond_ascii_let_nobody_in() {
        for (token, said, is_good) in [
            (" token\n", &b"Bearer token"[..], true),
            ("t\u{f6}ken", "bEARER  t\u{f6}ken ".as_bytes(), true),
            ("token", b"Bearer", false),
            ("token", b"Bearer ", false),
            ("  ", b"Bearer ", false),
            ("  ", b"Bearer   ", false),
            ("token", b"Basic token", false),
            ("token", b"Bearertoken", false),
        ] {
            let (_sender, token) = watch::channel(token.to_owned().into());
            let guard = Guard { token: Some(token) };
            let said = hyper::header::HeaderValue::from_bytes(said).unwrap();
            let headers = HeaderMap::from_iter([(AUTHORIZATION, said.clone())]);
            assert_eq!(guard.check_token(&headers).is_ok(), is_good, "{said:?}");
            let mut twice = headers.clone();
            twice.append(AUTHORIZATION, said);
            assert!(guard.check_token(&twice).is_err());
        }
    }

    #[test]
    fn tokens_are_compared_whole() {
        assert!(is_same(b"token", b"token"));
        for other in ["", "toke", "token2", "Token", "tokem"] {
            assert!(!is_same(b"token", other.as_bytes()), "{other}");
            assert!(!is_same(other.as_bytes(), b"token"), "{other}");
        }
    }
}
