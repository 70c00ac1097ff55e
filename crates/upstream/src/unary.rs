//! An answer that is one JSON value.
//!
//! Up to a mebibyte it is read whole and checked, so that an attempt that broke off can still be
//! made again. What is longer (large embeddings) streams on from there: its framing tells
//! whether it is complete.

use crate::{decode::Source, fault, sent::Sent};
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tidegate_core::{Body, Error, Meter, Result, Retry, Usage};
use tidegate_wire::{classify, json, usage};

/// Answers up to this are read whole.
const WHOLE_BYTES: usize = 1 << 20;
/// End of a long answer that is searched for its usage.
const TAIL_BYTES: usize = 4 * 1024;

pub(crate) struct Unary {
    pub(crate) body: Body,
    pub(crate) usage: Option<Usage>,
    /// Of an answer too long to be read whole: tells its usage at the end.
    pub(crate) meter: Option<Arc<Meter>>,
}

/// Reads an answer of at most `max_bytes`.
pub(crate) async fn read(mut source: Source, max_bytes: usize, sent: &Sent) -> Result<Unary> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(chunk) = source.chunk().await {
        // What breaks off now had been made by the model: it has to be paid for.
        let chunk = chunk.map_err(Error::after_the_answer)?;
        // One chunk is the rule: it is passed on as it came.
        if first.is_empty() && all.is_empty() {
            first = chunk;
        } else {
            if all.is_empty() {
                all.reserve(2 * (first.len() + chunk.len()));
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&chunk);
        }
        let len = first.len() + all.len();
        if len > max_bytes {
            return Err(too_long(max_bytes).after_the_answer());
        }
        if len > WHOLE_BYTES {
            let start = if first.is_empty() { all.freeze() } else { first };
            return long(start, source, max_bytes);
        }
    }
    let whole = if first.is_empty() { all.freeze() } else { first };
    if !json::is_valid(&whole) {
        return Err(not_json(&whole));
    }
    if let Some(error) = sent.error(&whole, classify::error_answer) {
        return Err(error);
    }
    let usage = usage::read(&whole);
    let whole = sent.answer(whole);
    Ok(Unary { body: Body::whole(whole), usage, meter: None })
}

fn long(start: Bytes, source: Source, max_bytes: usize) -> Result<Unary> {
    if !matches!(start.trim_ascii_start().first(), Some(b'{' | b'[')) {
        return Err(not_json(&start));
    }
    let meter = Arc::new(Meter::default());
    let rest = Long {
        start: Some(start),
        source: Some(source),
        seen_bytes: 0,
        max_bytes,
        tail: Vec::new(),
        meter: Arc::clone(&meter),
    };
    Ok(Unary { body: Body::stream(rest), usage: None, meter: Some(meter) })
}

fn not_json(body: &[u8]) -> Error {
    let message = if body.trim_ascii_start().starts_with(b"<") {
        "the upstream answered with a web page, not with JSON; is its base_url right?"
    } else if body.is_empty() {
        "the upstream's answer is empty"
    } else {
        let message = "the upstream's answer is not one whole JSON value";
        return fault::wrong(message).after_the_answer();
    };
    fault::wrong(message)
}

fn too_long(max_bytes: usize) -> Error {
    fault::wrong(format!("the upstream's answer is longer than {max_bytes} bytes"))
        .with_retry(Retry::Never)
}

/// A long answer: its start, then the rest as it comes.
struct Long {
    start: Option<Bytes>,
    /// `None` once the answer has ended, well or badly.
    source: Option<Source>,
    seen_bytes: usize,
    max_bytes: usize,
    tail: Vec<u8>,
    meter: Arc<Meter>,
}

impl Stream for Long {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(start) = this.start.take() {
            this.see(&start);
            return Poll::Ready(Some(Ok(start)));
        }
        let Some(source) = &mut this.source else { return Poll::Ready(None) };
        match ready!(source.poll_chunk(cx)) {
            Some(Ok(chunk)) => {
                this.see(&chunk);
                if this.seen_bytes > this.max_bytes {
                    this.source = None;
                    return Poll::Ready(Some(Err(too_long(this.max_bytes))));
                }
                Poll::Ready(Some(Ok(chunk)))
            }
            Some(Err(error)) => {
                this.source = None;
                Poll::Ready(Some(Err(error)))
            }
            None => {
                this.source = None;
                if let Some(usage) = usage::read(&this.tail) {
                    this.meter.set(usage);
                }
                Poll::Ready(None)
            }
        }
    }
}

impl Long {
    fn see(&mut self, chunk: &[u8]) {
        self.seen_bytes += chunk.len();
        if chunk.len() >= TAIL_BYTES {
            self.tail.clear();
        }
        self.tail.extend_from_slice(&chunk[chunk.len().saturating_sub(TAIL_BYTES)..]);
        let surplus = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..surplus);
    }
}
