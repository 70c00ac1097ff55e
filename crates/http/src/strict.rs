//! What RFC 9110, 9112 and 9113 tell a server to refuse and hyper leaves to us.
//!
//! *Why:* two programs that read one request differently are how requests are smuggled past a
//! check. Whatever can be read in two ways is refused, and the connection closed.

use crate::{
    pulse::Busy,
    refusal::{self, Fixed},
    routes::MODELS_PREFIX,
};
use hyper::{
    HeaderMap, Version,
    header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING},
    http::{request::Parts, uri::Authority},
};

/// Longest request target, in bytes.
const MAX_TARGET_BYTES: usize = 8 << 10;

/// Checks a request's head, and what `busy` knows of its bytes.
pub(crate) fn check(parts: &Parts, busy: &Busy) -> Result<(), &'static Fixed> {
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    if target.len() > MAX_TARGET_BYTES {
        return Err(&refusal::TARGET_TOO_LONG);
    }
    if busy.bare_line_end {
        return Err(&refusal::BARE_LINE_END);
    }
    if busy.two_lengths
        || parts.headers.contains_key(TRANSFER_ENCODING)
            && parts.headers.contains_key(CONTENT_LENGTH)
    {
        return Err(&refusal::TWO_LENGTHS);
    }
    // Applied twice it would have to be undone twice (RFC 9112 §6.1); nobody means that.
    let mut codings = parts.headers.get_all(TRANSFER_ENCODING).iter();
    let is_plain = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    if codings.next().is_some_and(|coding| !is_plain(coding)) || codings.next().is_some() {
        return Err(&refusal::OTHER_CODING);
    }
    check_host(&parts.headers, parts.version, parts.uri.authority())?;
    if is_ambiguous(parts.uri.path()) {
        return Err(&refusal::AMBIGUOUS_PATH);
    }
    Ok(())
}

/// One host, well-formed, and the same wherever it is named (RFC 9112 §3.2, RFC 9113 §8.3.1).
fn check_host(
    headers: &HeaderMap,
    version: Version,
    in_target: Option<&Authority>,
) -> Result<(), &'static Fixed> {
    let mut hosts = headers.get_all(HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() {
        return Err(&refusal::TWO_HOSTS);
    }
    let host = match (host, in_target) {
        (Some(host), _) => host.as_bytes(),
        // HTTP/2 says it in `:authority`; HTTP/1.0 need not say it at all.
        (None, Some(authority)) if version == Version::HTTP_2 => authority.as_str().as_bytes(),
        (None, _) if version < Version::HTTP_11 => return Ok(()),
        (None, _) => return Err(&refusal::NO_HOST),
    };
    if !is_host(host) {
        return Err(&refusal::BAD_HOST);
    }
    match in_target {
        Some(authority) if !authority.as_str().as_bytes().eq_ignore_ascii_case(host) => {
            Err(&refusal::OTHER_HOST)
        }
        _ => Ok(()),
    }
}

/// `name`, `name:port`, `[v6]` or `[v6]:port`; no user, no path, nothing empty.
fn is_host(host: &[u8]) -> bool {
    let (name_is_good, port) = match host.strip_prefix(b"[") {
        Some(literal) => {
            let Some(end) = literal.iter().position(|byte| *byte == b']') else { return false };
            let address = std::str::from_utf8(&literal[..end]).unwrap_or_default();
            (address.parse::<std::net::Ipv6Addr>().is_ok(), &literal[end + 1..])
        }
        None => {
            let end = host.iter().position(|byte| *byte == b':').unwrap_or(host.len());
            (end > 0 && host[..end].iter().all(|byte| is_name_byte(*byte)), &host[end..])
        }
    };
    let port_is_good = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    name_is_good && port_is_good
}

/// Unreserved characters of a registered name (RFC 3986 §3.2.2); nobody's host needs the rest.
const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Whether someone else may read `path` as another path: empty or dot segments, and escaped
/// dots, slashes or NULs.
///
/// Below `/v1/models/` an escaped slash is a character of the model's name, which is only ever
/// compared.
fn is_ambiguous(path: &str) -> bool {
    let bytes = path.as_bytes();
    let dots = |rest: &[u8]| {
        let rest = rest.strip_prefix(b".").unwrap_or(rest);
        matches!(rest, [] | [b'/', ..])
    };
    bytes.iter().enumerate().any(|(at, byte)| {
        let rest = &bytes[at + 1..];
        match byte {
            b'/' => match rest {
                [b'/', ..] => true,
                [b'.', rest @ ..] => dots(rest),
                _ => false,
            },
            b'%' => match rest {
                [b'2', b'e' | b'E', ..] | [b'0', b'0', ..] | [b'5', b'c' | b'C', ..] => true,
                [b'2', b'f' | b'F', ..] => !path.starts_with(MODELS_PREFIX),
                _ => false,
            },
            b'\\' | 0 => true,
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for good in ["a", "a.b:80", "127.0.0.1:8080", "[::1]", "[::1]:443", "my_host", "a:"] {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for bad in [
            "", ":80", "a/b?c", "a b", "a,b", "u@a", "a:80:80", "a:x", "a:123456", "[::1", "[x]",
            "[::1]x", "a#b", "ä", "a?b", "%61", "[]",
        ] {
            assert!(!is_host(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn paths() {
        for good in [
            "/",
            "/v1/models",
            "/v1/models/org/name",
            "/v1/models/org%2Fname",
            "/a.b/.c/..d",
            "/v1/models/gpt-4.1",
            "*",
            "",
        ] {
            assert!(!is_ambiguous(good), "{good}");
        }
        for bad in [
            "//",
            "/v1//models",
            "/v1/./models",
            "/v1/../models",
            "/v1/.",
            "/v1/..",
            "/%2e/a",
            "/%2E%2e/a",
            "/v1%2fmodels",
            "/v1%2Fmodels",
            "/a%00",
            "/a\\b",
            "/a%5Cb",
            "/v1/models//",
            "/v1/models/%2e%2e",
        ] {
            assert!(is_ambiguous(bad), "{bad}");
        }
    }
}
