//! Compresses the bodies of requests for upstreams that say they take it.
//!
//! # Why
//!
//! A long context goes out again with every turn of a conversation, and text compresses well. What
//! an upstream takes is written in its options, or learned from its answers:
//! an `accept-encoding` header in an answer names the codings its server takes in requests (RFC
//! 9110 §12.5.3), and status 415 refuses one (§15.5.16). Nothing is tried on servers that were
//! silent: most take a compressed body for broken JSON.
//!
//! ```text
//! option "gzip", "zstd" ──▶ that coding ── 415, and plain is taken ──▶ plain, for good
//! option "auto"         ──▶ plain ── accept-encoding ──▶ the best of it, but for those refused
//! ```

use crate::{
    options::CompressRequests,
    request::{self, Pieces},
    stream_usage::Ask,
};
use async_compression::{
    Level,
    tokio::write::{GzipEncoder, ZstdEncoder},
};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, header::ACCEPT_ENCODING};
use std::sync::atomic::{AtomicU8, Ordering};
use tidegate_core::Attempt;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    task,
};
use tokio_util::task::AbortOnDropHandle;

/// Bodies up to this are sent as they are.
const PLAIN_BYTES: usize = 1024;
/// Bodies up to this are compressed where they are, longer ones on a thread that may block: the
/// other calls of this one would wait for them.
const INLINE_BYTES: usize = 128 * 1024;

/// A content coding of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip = 1,
    Zstd = 2,
}

/// A body as it goes out compressed.
pub(crate) struct Packed {
    pub(crate) bytes: Bytes,
    pub(crate) coding: Coding,
}

/// Which coding the requests to one upstream get.
pub(crate) struct Compression {
    learns: bool,
    /// The coding in use, 0 for none.
    used: AtomicU8,
    /// The sum of those that were refused.
    refused: AtomicU8,
}

impl Compression {
    pub(crate) const fn new(option: CompressRequests) -> Self {
        let (learns, used) = match option {
            CompressRequests::Off => (false, 0),
            CompressRequests::Gzip => (false, Coding::Gzip as u8),
            CompressRequests::Zstd => (false, Coding::Zstd as u8),
            CompressRequests::Auto => (true, 0),
        };
        Self { learns, used: AtomicU8::new(used), refused: AtomicU8::new(0) }
    }

    /// The body of `attempt` (see [`request::pieces`]) compressed; `None` when it is to be sent as it is.
    pub(crate) async fn pack(&self, attempt: &Attempt<'_>, ask: Option<Ask>) -> Option<Packed> {
        let coding = self.used()?;
        if attempt.call.payload.len() <= PLAIN_BYTES {
            return None;
        }
        let pieces = request::pieces(attempt, ask);
        let bytes = if attempt.call.payload.len() <= INLINE_BYTES {
            pack(&pieces, coding)?
        } else {
            // A call that is given up gives up its turn on the thread.
            let packing =
                AbortOnDropHandle::new(task::spawn_blocking(move || pack(&pieces, coding)));
            // It fails with the runtime only, and nobody waits then.
            packing.await.ok()??
        };
        Some(Packed { bytes, coding })
    }

    /// Takes note of the codings an answer names, when it may.
    pub(crate) fn learn(&self, headers: &HeaderMap) {
        if !self.learns || !headers.contains_key(ACCEPT_ENCODING) {
            return;
        }
        let refused = self.refused.load(Ordering::Relaxed);
        let best = best_accepted(headers, |coding| refused & coding as u8 == 0);
        self.used.store(best.map_or(0, |coding| coding as u8), Ordering::Relaxed);
    }

    /// Never uses `coding` again.
    pub(crate) fn refuse(&self, coding: Coding) {
        self.refused.fetch_or(coding as u8, Ordering::Relaxed);
        let used = self.used.load(Ordering::Relaxed);
        if used == coding as u8 {
            // Lost to a call that has learned another coding, there is nothing left to do.
            let _ = self.used.compare_exchange(used, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn used(&self) -> Option<Coding> {
        let used = self.used.load(Ordering::Relaxed);
        Coding::ALL.into_iter().find(|coding| *coding as u8 == used)
    }
}

impl Coding {
    const ALL: [Self; 2] = [Self::Gzip, Self::Zstd];

    /// Value of the `content-encoding` header.
    pub(crate) const fn header(self) -> HeaderValue {
        match self {
            Self::Gzip => HeaderValue::from_static("gzip"),
            Self::Zstd => HeaderValue::from_static("zstd"),
        }
    }

    fn is_named(self, name: &str) -> bool {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        match self {
            Self::Gzip => is("gzip") || is("x-gzip"),
            Self::Zstd => is("zstd"),
        }
    }
}

/// The coding that `accept-encoding` gives the highest weight, zstd before gzip, of those that
/// `may` be used. `*` is taken for gzip, which everybody knows who knows any.
fn best_accepted(headers: &HeaderMap, may: impl Fn(Coding) -> bool) -> Option<Coding> {
    let values = || headers.get_all(ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    let items = || values().flat_map(|value| value.split(',')).map(item);
    let weight_of = |coding: Coding| {
        let mut named = items().filter(|(name, _)| coding.is_named(name));
        let mut any = items().filter(|(name, _)| coding == Coding::Gzip && *name == "*");
        named.next().or_else(|| any.next()).map_or(0.0, |(_, weight)| weight)
    };
    Coding::ALL
        .into_iter()
        .filter(|coding| may(*coding))
        .map(|coding| (coding, weight_of(coding)))
        .filter(|(_, weight)| *weight > 0.0)
        .max_by(|(_, one), (_, other)| one.total_cmp(other))
        .map(|(coding, _)| coding)
}

/// `gzip;q=0.5` as name and weight; a weight that is none is the lowest.
fn item(item: &str) -> (&str, f32) {
    let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
    let weight = match parameters.trim().strip_prefix(['q', 'Q']) {
        Some(weight) => weight.trim_start().strip_prefix('=').and_then(|w| w.trim().parse().ok()),
        None => Some(1.0),
    };
    (name.trim(), weight.unwrap_or(0.0))
}

/// `pieces` compressed as one, fast rather than small; `None` when that does not make them smaller.
fn pack(pieces: &Pieces, coding: Coding) -> Option<Bytes> {
    let plain_bytes: usize = pieces.iter().map(Bytes::len).sum();
    let out = Vec::with_capacity(plain_bytes / 3);
    let packed = match coding {
        Coding::Gzip => {
            let mut encoder = GzipEncoder::with_quality(out, Level::Fastest);
            write(pieces, &mut encoder);
            encoder.into_inner()
        }
        Coding::Zstd => {
            let mut encoder = ZstdEncoder::with_quality(out, Level::Fastest);
            write(pieces, &mut encoder);
            encoder.into_inner()
        }
    };
    (packed.len() < plain_bytes).then(|| packed.into())
}

/// Writes all to an encoder that ends in a vector, and so neither waits nor fails.
fn write(pieces: &Pieces, encoder: &mut (impl AsyncWrite + Unpin)) {
    let all = async {
        for piece in pieces {
            encoder.write_all(piece).await?;
        }
        encoder.shutdown().await
    };
    all.now_or_never().expect("a vector is always ready").expect("a vector takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_that_is_accepted() {
        use Coding::{Gzip, Zstd};
        for (value, best) in [
            ("", None),
            ("identity", None),
            ("br, deflate", None),
            ("gzip", Some(Gzip)),
            ("GZIP ;Q = 0.3", Some(Gzip)),
            ("x-gzip", Some(Gzip)),
            ("gzip, zstd", Some(Zstd)),
            ("zstd;q=0.5, gzip;q=1.0", Some(Gzip)),
            ("gzip;q=0, zstd;q=0.000", None),
            ("*", Some(Gzip)),
            ("gzip;q=0, *", None),
            ("*;q=0", None),
            ("gzip;q=none", None),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, value.parse().unwrap())]);
            assert_eq!(best_accepted(&headers, |_| true), best, "{value}");
        }
        let two = ["zstd", "gzip"].map(|value| (ACCEPT_ENCODING, HeaderValue::from_static(value)));
        let headers: HeaderMap =
            two.into_iter().fold(HeaderMap::new(), |mut all, (name, value)| {
                all.append(name, value);
                all
            });
        assert_eq!(best_accepted(&headers, |_| true), Some(Zstd));
        assert_eq!(best_accepted(&headers, |coding| coding != Zstd), Some(Gzip));
    }

    #[test]
    fn what_does_not_shrink_stays_plain() {
        let mut state = 1_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        })
        .take(4096)
        .collect();
        for coding in Coding::ALL {
            let of = |bytes: Vec<u8>| [bytes.into(), Bytes::new(), Bytes::new(), Bytes::new()];
            assert!(pack(&of(noise.clone()), coding).is_none(), "{coding:?}");
            assert!(pack(&of(vec![b'x'; 4096]), coding).unwrap().len() < 100, "{coding:?}");
        }
    }
}
