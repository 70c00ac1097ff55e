//! Undoes the compression of an answer, with its bounds.
//!
//! # Why bounds here
//!
//! A few hundred bytes of brotli can stand for 100 MiB. What comes out is counted: beyond the
//! first mebibyte it may be at most a hundred times what came in.

use crate::{body::WireBody, fault};
use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder, ZstdDecoder};
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tidegate_core::{Error, Result, Retry};
use tokio_util::io::{StreamReader, poll_read_buf};

/// Decoded bytes that are free of the ratio.
const FREE_BYTES: u64 = 1 << 20;
/// Most bytes out for one byte in.
const MAX_RATIO: u64 = 100;
/// Decoded at a time.
const STEP_BYTES: usize = 16 * 1024;

/// A body without its compression.
pub(crate) enum Source {
    Plain(WireBody),
    Decoded(Box<Decoded>),
}

pub(crate) struct Decoded {
    decoder: Decoder,
    decoded_bytes: u64,
    buffer: BytesMut,
    is_drained: bool,
}

type Wire = StreamReader<WireStream, Bytes>;

enum Decoder {
    Gzip(GzipDecoder<Wire>),
    Brotli(BrotliDecoder<Wire>),
    Zstd(ZstdDecoder<Wire>),
}

struct WireStream {
    body: WireBody,
    bytes: u64,
}

impl Source {
    /// `body` as its `content-encoding` header says.
    ///
    /// # Errors
    ///
    /// For an encoding nobody asked for, or several on top of each other.
    pub(crate) fn new(body: WireBody, encoding: Option<&str>) -> Result<Self> {
        let encoding = encoding.map(str::trim).unwrap_or_default();
        let wire = |body| StreamReader::new(WireStream { body, bytes: 0 });
        let decoder = if encoding.is_empty() || encoding.eq_ignore_ascii_case("identity") {
            return Ok(Self::Plain(body));
        } else if encoding.eq_ignore_ascii_case("gzip") || encoding.eq_ignore_ascii_case("x-gzip") {
            Decoder::Gzip(GzipDecoder::new(wire(body)))
        } else if encoding.eq_ignore_ascii_case("br") {
            Decoder::Brotli(BrotliDecoder::new(wire(body)))
        } else if encoding.eq_ignore_ascii_case("zstd") {
            Decoder::Zstd(ZstdDecoder::new(wire(body)))
        } else {
            return Err(fault::wrong("the upstream's answer is in an encoding nobody asked for"));
        };
        let buffer = BytesMut::new();
        Ok(Self::Decoded(Box::new(Decoded {
            decoder,
            decoded_bytes: 0,
            buffer,
            is_drained: false,
        })))
    }

    /// The next chunk, never empty.
    pub(crate) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        match self {
            Self::Plain(body) => body.poll_chunk(cx),
            Self::Decoded(decoded) => decoded.poll_chunk(cx),
        }
    }

    /// The next chunk, never empty.
    pub(crate) async fn chunk(&mut self) -> Option<Result<Bytes>> {
        poll_fn(|cx| self.poll_chunk(cx)).await
    }
}

impl Decoded {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        if self.is_drained {
            return self.poll_drain(cx);
        }
        self.buffer.reserve(STEP_BYTES);
        let read = match &mut self.decoder {
            Decoder::Gzip(decoder) => poll_read_buf(Pin::new(decoder), cx, &mut self.buffer),
            Decoder::Brotli(decoder) => poll_read_buf(Pin::new(decoder), cx, &mut self.buffer),
            Decoder::Zstd(decoder) => poll_read_buf(Pin::new(decoder), cx, &mut self.buffer),
        };
        match ready!(read) {
            Ok(0) => {
                self.is_drained = true;
                self.poll_drain(cx)
            }
            Ok(more) => {
                self.decoded_bytes += more as u64;
                let limit = FREE_BYTES.max(self.wire().bytes.saturating_mul(MAX_RATIO));
                if self.decoded_bytes > limit {
                    return Poll::Ready(Some(Err(fault::wrong(format!(
                        "the upstream's answer unpacks to more than {MAX_RATIO} times its size"
                    ))
                    .with_retry(Retry::Never))));
                }
                Poll::Ready(Some(Ok(self.buffer.split().freeze())))
            }
            Err(error) => Poll::Ready(Some(Err(explain(error)))),
        }
    }

    /// Reads what the wire still holds, so that the connection can be used again.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        loop {
            match ready!(self.wire().body.poll_chunk(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }

    fn wire(&mut self) -> &mut WireStream {
        match &mut self.decoder {
            Decoder::Gzip(decoder) => decoder.get_mut().get_mut(),
            Decoder::Brotli(decoder) => decoder.get_mut().get_mut(),
            Decoder::Zstd(decoder) => decoder.get_mut().get_mut(),
        }
    }
}

impl Stream for WireStream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let chunk = ready!(self.body.poll_chunk(cx));
        Poll::Ready(chunk.map(|chunk| match chunk {
            Ok(chunk) => {
                self.bytes += chunk.len() as u64;
                Ok(chunk)
            }
            Err(error) => Err(io::Error::other(error)),
        }))
    }
}

/// Our own error back from the decoder, or the decoder's.
fn explain(error: io::Error) -> Error {
    let damaged = |error: io::Error| {
        fault::wrong("the upstream's compressed answer is damaged or cut off").caused_by(error)
    };
    if !error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
        return damaged(error);
    }
    match error.into_inner().map(|inner| inner.downcast::<Error>()) {
        Some(Ok(ours)) => *ours,
        _ => unreachable!("the type was just looked at"),
    }
}
