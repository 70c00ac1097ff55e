//! The id a request is known by: the caller's own when it is well-formed, else a fresh one.

use hyper::{HeaderMap, header::HeaderName, header::HeaderValue};
use std::{
    borrow::Cow,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};
use tidegate_core::redact;

/// The header, in and out.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id taken from a caller, in bytes.
const MAX_LEN: usize = 128;

/// An id, ready for the call and for the answer's header.
pub(crate) struct RequestId {
    pub(crate) text: Arc<str>,
    pub(crate) header: HeaderValue,
}

impl RequestId {
    /// The caller's id, if it has one of at most 128 bytes of `[A-Za-z0-9._:-]` that does not look
    /// like a key, else a fresh one: ids are logged, kept in the ledger and told to upstreams.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let theirs = headers.get(&X_REQUEST_ID).and_then(|value| {
            let text = value.to_str().ok().filter(|text| is_well_formed(text))?;
            Some(Self { text: text.into(), header: value.clone() })
        });
        theirs.unwrap_or_else(fresh)
    }
}

fn is_well_formed(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    (1..=MAX_LEN).contains(&text.len())
        && text.bytes().all(is_allowed)
        && matches!(redact(text), Cow::Borrowed(_))
}

/// `req-` and 32 hexadecimal digits: half of them this process's, half the request's.
///
/// The process's half is drawn from the system's randomness, so ids of two processes, or of one
/// process before and after a restart, do not meet. They are names, not secrets.
fn fresh() -> RequestId {
    static PROCESS: LazyLock<(u64, u64)> =
        LazyLock::new(|| (RandomState::new().hash_one(1), RandomState::new().hash_one(2)));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let (process, start) = *PROCESS;
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // Multiplying by an odd number is a permutation: neighbours look different, none repeats.
    let request = start.wrapping_add(count).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut text = *b"req-00000000000000000000000000000000";
    let digits = u128::from(process) << 64 | u128::from(request);
    for (place, byte) in text[4..].iter_mut().enumerate() {
        *byte = b"0123456789abcdef"[(digits >> (124 - 4 * place) & 15) as usize];
    }
    let text = std::str::from_utf8(&text).expect("hexadecimal digits are UTF-8");
    let header = HeaderValue::from_str(text).expect("and visible ASCII");
    RequestId { text: text.into(), header }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn only_well_formed_ids_are_kept() {
        for good in ["a", "req_1.2:3-4", &"x".repeat(128)] {
            let headers = HeaderMap::from_iter([(X_REQUEST_ID, good.parse().unwrap())]);
            assert_eq!(&*RequestId::of(&headers).text, good);
        }
        for bad in ["", "a b", "a/b", "ä", &"x".repeat(129), "<script>", "tg-abcdefghijkl-secret"]
        {
            let value = HeaderValue::from_bytes(bad.as_bytes()).unwrap();
            let headers = HeaderMap::from_iter([(X_REQUEST_ID, value)]);
            assert_eq!(RequestId::of(&headers).text.len(), 36, "{bad}");
        }
    }

    #[test]
    fn fresh_ids_differ() {
        let ids: HashSet<_> = (0..1000).map(|_| fresh().text).collect();
        assert_eq!(ids.len(), 1000);
    }
}
