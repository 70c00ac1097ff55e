//! An answer that is a stream of events: held back to its first content, then passed on as it
//! comes.
//!
//! # Why
//!
//! Many servers say 200 first and fail then, some after a first event that carries nothing: a
//! role, a response created. As long as nothing has been passed on the attempt can still be made
//! elsewhere, so the first event that carries output is waited for, and an error before it is the
//! attempt's. Then every chunk goes on as it came, those held first; the events in them are only
//! watched, for an error, for the usage and for the mark without which a stream was cut off.
//!
//! # Bounds
//!
//! At most [`MAX_HELD_EVENTS`] events and [`MAX_HELD_BYTES`] are held, then what there is goes on;
//! a first event may be longer, as long as the scanner allows. Comments keep a connection alive
//! and say nothing of the model: they are held as long as the first-token clock runs, and 64 KiB
//! of nothing else are a failure.

use crate::{decode::Source, fault};
use bytes::Bytes;
use futures_util::Stream;
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tidegate_core::{Body, Error, Meter, Operation, Result};
use tidegate_wire::{classify, content, sse::Scanner, usage};

/// Bytes held before the first content.
const MAX_HELD_BYTES: usize = 64 * 1024;
/// Events held before the first content.
const MAX_HELD_EVENTS: u64 = 32;

/// Waits for the first content of `source`.
///
/// # Errors
///
/// The error the events held back carry, if one does, or that of a stream that ends among them.
pub(crate) async fn read(mut source: Source, operation: Operation) -> Result<(Body, Arc<Meter>)> {
    let mut watch = Watch::new(operation);
    let mut held = VecDeque::new();
    let mut held_bytes = 0;
    while watch.holds(held_bytes)? {
        let Some(chunk) = source.chunk().await else {
            match watch.finish() {
                Some(_) if watch.seen.events == 0 => {
                    return Err(fault::wrong("the upstream's stream ended before its first event"));
                }
                Some(error) => return Err(error),
                None => break,
            }
        };
        let chunk = chunk?;
        watch.see(&chunk)?;
        if let Some(error) = watch.seen.error.take() {
            return Err(error);
        }
        held_bytes += chunk.len();
        held.push_back(chunk);
    }
    watch.seen.is_held = false;
    let meter = Arc::clone(&watch.seen.meter);
    Ok((Body::stream(Events { held, source: Some(source), watch }), meter))
}

/// The stream from its first chunk on.
struct Events {
    held: VecDeque<Bytes>,
    /// `None` once it has ended, well or badly: the connection is given up with it.
    source: Option<Source>,
    watch: Watch,
}

impl Stream for Events {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(chunk) = this.held.pop_front() {
            return Poll::Ready(Some(Ok(chunk)));
        }
        let Some(source) = &mut this.source else { return Poll::Ready(None) };
        let end = match ready!(source.poll_chunk(cx)) {
            Some(Ok(chunk)) => match (this.watch.see(&chunk), this.watch.seen.error.take()) {
                (Ok(()), None) => return Poll::Ready(Some(Ok(chunk))),
                // The upstream's words may not be for callers; the front says it in its own.
                (Ok(()), Some(error)) | (Err(error), _) => Some(error),
            },
            // All has been said: how the connection ends does not matter.
            Some(Err(_)) if this.watch.seen.is_complete => None,
            Some(Err(error)) => Some(error),
            None => this.watch.finish(),
        };
        this.source = None;
        Poll::Ready(end.map(Err))
    }
}

/// Finds the events in what passes.
struct Watch {
    scanner: Scanner,
    seen: Seen,
}

/// What the events so far have said.
struct Seen {
    operation: Operation,
    meter: Arc<Meter>,
    events: u64,
    /// Nothing is passed on yet, and no event carried output.
    is_held: bool,
    /// The mark of a complete stream has passed.
    is_complete: bool,
    error: Option<Error>,
}

impl Watch {
    fn new(operation: Operation) -> Self {
        let seen = Seen {
            operation,
            meter: Arc::default(),
            events: 0,
            is_held: true,
            is_complete: false,
            error: None,
        };
        Self { scanner: Scanner::default(), seen }
    }

    /// Whether the stream is held back further, with so many bytes held.
    fn holds(&self, held_bytes: usize) -> Result<bool> {
        let Self { scanner, seen } = self;
        if !seen.is_held || seen.events >= MAX_HELD_EVENTS {
            return Ok(false);
        }
        // A first event may be long: a response created repeats its instructions.
        if held_bytes <= MAX_HELD_BYTES || (seen.events == 0 && scanner.is_inside_event()) {
            return Ok(true);
        }
        if seen.events == 0 {
            return Err(fault::wrong(format!(
                "the upstream's stream has no event in its first {MAX_HELD_BYTES} bytes"
            )));
        }
        Ok(false)
    }

    fn see(&mut self, chunk: &[u8]) -> Result<()> {
        let Self { scanner, seen } = self;
        scanner.push(chunk, |data| seen.look(data))
    }

    /// The stream has ended; an error unless it was complete.
    fn finish(&mut self) -> Option<Error> {
        let Self { scanner, seen } = self;
        scanner.finish(|data| seen.look(data));
        match seen.error.take() {
            Some(error) => Some(error),
            None if seen.is_complete => None,
            None => Some(fault::wrong("the upstream's stream ended early")),
        }
    }
}

impl Seen {
    fn look(&mut self, data: &[u8]) {
        self.events += 1;
        if is_last(data, self.operation) {
            self.is_complete = true;
        }
        if self.error.is_none() {
            self.error = classify::error_event(data);
        }
        if self.is_held && self.error.is_none() {
            self.error = classify::failed_response(data);
            self.is_held = !content::is_content(data);
        }
        if data == b"[DONE]" {
            return;
        }
        self.meter.add_chunks(1);
        if let Some(usage) = usage::read(data) {
            self.meter.set(usage);
        }
    }
}

/// Whether an event is the one that ends a complete stream of `operation`.
fn is_last(data: &[u8], operation: Operation) -> bool {
    if data.trim_ascii() == b"[DONE]" {
        return true;
    }
    match operation {
        Operation::ChatCompletions | Operation::Completions | Operation::Embeddings => false,
        // In a string of the answer these quotes would be escaped.
        Operation::Responses => {
            [&b"\"response.completed\""[..], b"\"response.failed\"", b"\"response.incomplete\""]
                .into_iter()
                .any(|mark| memchr::memmem::find(data, mark).is_some())
        }
    }
}
