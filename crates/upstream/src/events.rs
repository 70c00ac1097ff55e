//! An answer that is a stream of events: held back to its first content, then passed on as it
//! comes.
//!
//! # Why
//!
//! Many servers say 200 first and fail then, some after a first event that carries nothing: a
//! role, a response created. As long as nothing has been passed on the attempt can still be made
//! elsewhere, so the first event that carries output is waited for, and an error before it is the
//! attempt's. Then every event goes on as it came, those held first; they are only watched, for an
//! error, for the usage and for the mark without which a stream was cut off. Where the usage was
//! asked for by us and not by the caller, the event that only tells it is taken out. An event that
//! comes in pieces goes on when it is whole: it could be an error, whose words are not for the
//! caller. (No client can do anything with half an event.) What came before an error goes on, the
//! error and what follows it do not.
//!
//! # Bounds
//!
//! At most [`MAX_HELD_EVENTS`] events and [`MAX_HELD_BYTES`] are held, then what there is goes on;
//! a first event may be longer, as long as the scanner allows. Comments keep a connection alive
//! and say nothing of the model: they are held as long as the first-token clock runs, and 64 KiB
//! of nothing else are a failure.

use crate::{decode::Source, fault, sent::Sent};
use bytes::Bytes;
use futures_util::Stream;
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tidegate_core::{Body, Error, Meter, Operation, Result, Usage};
use tidegate_wire::{classify, content, sieve::Sieve, usage};

/// Bytes held before the first content.
const MAX_HELD_BYTES: usize = 64 * 1024;
/// Events held before the first content.
const MAX_HELD_EVENTS: u64 = 32;

/// Waits for the first content of `source`, whose usage the caller `asked` for or not.
///
/// # Errors
///
/// The error the events held back carry, if one does, or that of a stream that ends among them.
pub(crate) async fn read(
    mut source: Source,
    operation: Operation,
    asked: Asked,
    sent: &Sent,
) -> Result<(Body, Arc<Meter>)> {
    let mut watch = Watch::new(operation, asked, sent.clone());
    let mut held = VecDeque::new();
    let mut held_bytes = 0;
    while watch.holds(held_bytes)? {
        let Some(chunk) = source.chunk().await else {
            match watch.finish() {
                Err(_) if watch.seen.events == 0 => {
                    return Err(fault::wrong("the upstream's stream ended before its first event"));
                }
                Err(error) => return Err(error),
                Ok(rest) => held.extend((!rest.is_empty()).then_some(rest)),
            }
            break;
        };
        let chunk = chunk?;
        held_bytes += chunk.len();
        let chunk = watch.see(chunk)?;
        if let Some(error) = watch.seen.error.take() {
            return Err(error);
        }
        held.extend((!chunk.is_empty()).then_some(chunk));
    }
    watch.seen.is_held = false;
    let meter = Arc::clone(&watch.seen.meter);
    Ok((Body::stream(Events { held, source: Some(source), watch }), meter))
}

/// Who asked for a stream's usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The caller, or nobody.
    AsSent,
    /// We did, in the caller's stead.
    ByUs,
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
        let end = loop {
            // The upstream's words may not be for callers; the front says it in its own.
            if let Some(error) = this.watch.seen.error.take() {
                break Err(error);
            }
            match ready!(source.poll_chunk(cx)) {
                Some(Ok(chunk)) => match this.watch.see(chunk) {
                    Ok(chunk) if chunk.is_empty() => {}
                    Ok(chunk) => return Poll::Ready(Some(Ok(chunk))),
                    Err(error) => break Err(error),
                },
                // All has been said: how the connection ends does not matter.
                Some(Err(_)) if this.watch.seen.is_complete => break Ok(Bytes::new()),
                Some(Err(error)) => break Err(error),
                None => break this.watch.finish(),
            }
        };
        this.source = None;
        match end {
            Ok(rest) if rest.is_empty() => Poll::Ready(None),
            end => Poll::Ready(Some(end)),
        }
    }
}

/// Finds the events in what passes.
struct Watch {
    /// Holds back an unfinished event: only at its end is it known what it is.
    sieve: Sieve,
    seen: Seen,
}

/// What the events so far have said.
struct Seen {
    operation: Operation,
    asked: Asked,
    /// What no error may repeat.
    sent: Sent,
    meter: Arc<Meter>,
    events: u64,
    /// Nothing is passed on yet, and no event carried output.
    is_held: bool,
    /// The mark of a complete stream has passed.
    is_complete: bool,
    error: Option<Error>,
}

impl Watch {
    fn new(operation: Operation, asked: Asked, sent: Sent) -> Self {
        let seen = Seen {
            operation,
            asked,
            sent,
            meter: Arc::default(),
            events: 0,
            is_held: true,
            is_complete: false,
            error: None,
        };
        Self { sieve: Sieve::default(), seen }
    }

    /// Whether the stream is held back further, with so many bytes held.
    fn holds(&self, held_bytes: usize) -> Result<bool> {
        let Self { sieve, seen } = self;
        if !seen.is_held || seen.events >= MAX_HELD_EVENTS {
            return Ok(false);
        }
        // A first event may be long: a response created repeats its instructions.
        if held_bytes <= MAX_HELD_BYTES || (seen.events == 0 && sieve.is_inside_event()) {
            return Ok(true);
        }
        if seen.events == 0 {
            return Err(fault::wrong(format!(
                "the upstream's stream has no event in its first {MAX_HELD_BYTES} bytes"
            )));
        }
        Ok(false)
    }

    /// Looks at a chunk and gives back what passes on, perhaps nothing.
    fn see(&mut self, chunk: Bytes) -> Result<Bytes> {
        let Self { sieve, seen } = self;
        sieve.push(chunk, |data| seen.lets_pass(data))
    }

    /// The stream has ended: what is left of it, or an error unless it was complete.
    fn finish(&mut self) -> Result<Bytes> {
        let Self { sieve, seen } = self;
        let rest = sieve.finish(|data| seen.lets_pass(data));
        match seen.error.take() {
            Some(error) => Err(error),
            None if seen.is_complete => Ok(rest),
            None => Err(fault::wrong("the upstream's stream ended early")),
        }
    }
}

impl Seen {
    /// Takes note of an event, and says whether it is any of the caller's. An error is not, nor is
    /// what follows it; nor, where the caller did not ask for the usage, the event that only tells it.
    fn lets_pass(&mut self, data: &[u8]) -> bool {
        let usage = self.look(data);
        self.error.is_none()
            && (self.asked == Asked::AsSent || usage.is_none() || !content::is_usage_alone(data))
    }

    /// Takes note of an event, and gives back the usage it tells.
    fn look(&mut self, data: &[u8]) -> Option<Usage> {
        self.events += 1;
        if is_last(data, self.operation) {
            self.is_complete = true;
        }
        if self.error.is_none() {
            self.error = self.sent.error(data, classify::error_event);
        }
        if self.is_held && self.error.is_none() {
            self.error = self.sent.error(data, classify::failed_response);
            self.is_held = !content::is_content(data);
        }
        if self.error.is_none() {
            self.error = self.sent.event(data);
        }
        if content::is_output(data) {
            self.meter.add_chunks(1);
        }
        let told = usage::read(data)?;
        self.meter.set(told);
        Some(told)
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
