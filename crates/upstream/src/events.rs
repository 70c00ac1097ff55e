//! An answer that is a stream of events: held back to the first, then passed on as it comes.
//!
//! # Why
//!
//! Many servers say 200 first and fail then. As long as nothing has been passed on the attempt
//! can still be made elsewhere, so the first event is waited for and looked at. Behind it every
//! chunk goes on as it is; the events in it are only watched, for an error, for the usage and
//! for the mark without which a stream was cut off.

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
use tidegate_wire::{classify, sse::Scanner, usage};

/// Bytes (of comments, mostly) that may come before the first event.
const MAX_HELD_BYTES: usize = 64 * 1024;

/// Waits for the first event of `source`.
///
/// # Errors
///
/// The error the events held back carry, if one does.
pub(crate) async fn read(mut source: Source, operation: Operation) -> Result<(Body, Arc<Meter>)> {
    let mut watch = Watch::new(operation);
    let mut held = VecDeque::new();
    let mut held_bytes = 0;
    while watch.events == 0 {
        let Some(chunk) = source.chunk().await else {
            match watch.finish() {
                Some(error) if watch.events > 0 => return Err(error),
                _ => break,
            }
        };
        let chunk = chunk?;
        watch.see(&chunk)?;
        held_bytes += chunk.len();
        held.push_back(chunk);
        if watch.events == 0 && held_bytes > MAX_HELD_BYTES {
            return Err(fault::wrong(format!(
                "the upstream's stream has no event in its first {MAX_HELD_BYTES} bytes"
            )));
        }
    }
    if let Some(error) = watch.error.take() {
        return Err(error);
    }
    if watch.events == 0 {
        return Err(fault::wrong("the upstream's stream ended before its first event"));
    }
    let meter = Arc::clone(&watch.meter);
    Ok((Body::stream(Events { held, source: Some(source), watch }), meter))
}

/// The stream from its first event on.
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
            Some(Ok(chunk)) => match (this.watch.see(&chunk), this.watch.error.take()) {
                (Ok(()), None) => return Poll::Ready(Some(Ok(chunk))),
                // The upstream's words may not be for callers; the front says it in its own.
                (Ok(()), Some(error)) | (Err(error), _) => Some(error),
            },
            // All has been said: how the connection ends does not matter.
            Some(Err(_)) if this.watch.is_complete => None,
            Some(Err(error)) => Some(error),
            None => this.watch.finish(),
        };
        this.source = None;
        Poll::Ready(end.map(Err))
    }
}

/// Looks at the events that pass.
struct Watch {
    scanner: Scanner,
    operation: Operation,
    meter: Arc<Meter>,
    events: u64,
    /// The mark of a complete stream has passed.
    is_complete: bool,
    error: Option<Error>,
}

impl Watch {
    fn new(operation: Operation) -> Self {
        Self {
            scanner: Scanner::default(),
            operation,
            meter: Arc::default(),
            events: 0,
            is_complete: false,
            error: None,
        }
    }

    fn see(&mut self, chunk: &[u8]) -> Result<()> {
        let Self { scanner, operation, meter, events, is_complete, error } = self;
        scanner.push(chunk, |data| {
            *events += 1;
            look(data, *operation, meter, is_complete, error);
        })
    }

    /// The stream has ended; an error unless it was complete.
    fn finish(&mut self) -> Option<Error> {
        let Self { scanner, operation, meter, events, is_complete, error } = self;
        scanner.finish(|data| {
            *events += 1;
            look(data, *operation, meter, is_complete, error);
        });
        match error.take() {
            Some(error) => Some(error),
            None if *is_complete => None,
            None => Some(fault::wrong("the upstream's stream ended early")),
        }
    }
}

fn look(
    data: &[u8],
    operation: Operation,
    meter: &Meter,
    is_complete: &mut bool,
    error: &mut Option<Error>,
) {
    if is_last(data, operation) {
        *is_complete = true;
    }
    if data == b"[DONE]" {
        return;
    }
    meter.add_chunks(1);
    if let Some(usage) = usage::read(data) {
        meter.set(usage);
    }
    if error.is_none() {
        *error = classify::error_event(data);
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
