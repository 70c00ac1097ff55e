//! Compresses answers for callers that take it (SPEC §6.13).
//!
//! *Why not every answer:* OpenAI's clients always offer, and 2 KiB take 15 to 20 µs to compress,
//! nearly what all else of a call takes, to save nothing: ten segments, about 14 KiB, leave in one
//! flight anyway (RFC 6928). From there on each flight saved is a round trip. So the default
//! begins at 16 KiB, where zstd takes about 45 µs, brotli and gzip twice that.
//!
//! *Why no events:* each would have to be flushed by itself, which packs badly and costs a flush
//! per token; and what stands between us and the caller holds compressed streams back more often.
//!
//! An answer is compressed while it is sent, 16 KiB at a time as the caller reads, so nothing is
//! held but the encoder: at most about a mebibyte, whichever coding.

use crate::{
    body::Outgoing,
    coding::{Coding, Wish},
};
use async_compression::{
    Level,
    brotli::EncoderParams,
    tokio::bufread::{BrotliEncoder, GzipEncoder, ZstdEncoder},
    zstd::CParameter,
};
use futures_util::TryStreamExt as _;
use hyper::{
    HeaderMap,
    body::Body as _,
    header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, VARY},
};
use std::{io, pin::Pin};
use tidegate_core::{Body, Error, Kind, Origin};
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

/// Compressed bytes handed on at a time.
const STEP_BYTES: usize = 16 << 10;
/// 128 KiB: a larger window packs JSON no tighter and costs memory per answer.
const WINDOW_LOG: u8 = 17;

/// How the answer to one request may be compressed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compressing<'a> {
    /// Those of the request.
    pub(crate) asked: &'a HeaderMap,
    /// Length from which it is worth it.
    pub(crate) from_bytes: usize,
}

impl Compressing<'_> {
    /// The body as the caller gets it, with what the headers have to say of that.
    pub(crate) fn apply(self, body: Outgoing, headers: &mut HeaderMap) -> Outgoing {
        let length = body.size_hint().exact();
        // What is not all here is longer than a mebibyte.
        let is_long = length.is_none_or(|length| length >= self.from_bytes as u64);
        if length == Some(0) || !is_long && !Wish::may_refuse_plain(self.asked) {
            return body;
        }
        if !headers.get(CONTENT_TYPE).is_some_and(|value| is_text(value.as_bytes())) {
            return body;
        }
        let coding = match Wish::of(self.asked) {
            Wish::Must(coding) => Some(coding),
            Wish::May(coding) => Some(coding).filter(|_| is_long),
            Wish::Plain => None,
        };
        if is_long || coding.is_some() {
            headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        }
        let Some(coding) = coding else { return body };
        headers.insert(CONTENT_ENCODING, coding.header());
        body.compressed(coding)
    }
}

/// JSON and text; images and sound are compressed already, and events are never.
fn is_text(content_type: &[u8]) -> bool {
    let mut parts = content_type.split(|byte| *byte == b';');
    let essence = parts.next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    let is_json = essence == b"application/json" || essence.ends_with(b"+json");
    is_json || essence.starts_with(b"text/") && essence != b"text/event-stream"
}

/// `body`, compressed as it is read. Dropping it drops `body`.
pub(crate) fn compress(body: Body, coding: Coding) -> Body {
    let plain = StreamReader::new(body.map_err(io::Error::other));
    let packed: Pin<Box<dyn AsyncRead + Send>> = match coding {
        Coding::Zstd => {
            let window = CParameter::window_log(WINDOW_LOG.into());
            Box::pin(ZstdEncoder::with_quality_and_params(plain, Level::Precise(1), &[window]))
        }
        Coding::Brotli => {
            let params = EncoderParams::default().window_size(WINDOW_LOG.into());
            Box::pin(BrotliEncoder::with_params(plain, params.quality(Level::Precise(0))))
        }
        Coding::Gzip => Box::pin(GzipEncoder::with_quality(plain, Level::Precise(1))),
    };
    Body::stream(ReaderStream::with_capacity(packed, STEP_BYTES).map_err(explain))
}

/// The body's own error back from the encoder, or the encoder's.
fn explain(error: io::Error) -> Error {
    error.downcast::<Error>().unwrap_or_else(|error| {
        let message = "the answer could not be compressed";
        Error::new(Kind::Internal, Origin::Gateway, message).caused_by(error)
    })
}

#[cfg(test)]
mod tests {
    use super::is_text;

    #[test]
    fn only_text_is_compressed() {
        for (content_type, expected) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/problem+json", true),
            ("text/plain", true),
            ("text/event-stream", false),
            ("text/event-stream; charset=utf-8", false),
            ("application/octet-stream", false),
            ("audio/mpeg", false),
            ("", false),
        ] {
            assert_eq!(is_text(content_type.as_bytes()), expected, "{content_type}");
        }
    }
}
