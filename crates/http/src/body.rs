//! Bodies in and out.

use crate::{
    Options,
    coding::Coding,
    compress::compress,
    decompress::{Unusable, decompress},
    pulse::{Busy, Pulse},
    refusal::{self, Refusal},
};
use bytes::{Bytes, BytesMut};
use futures_util::Stream as _;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::{
    cell::Cell,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tidegate_core as core;
use tidegate_core::{Error, Kind, Origin};
use tidegate_policy::setting::show_size;
use tokio::time::{Instant, timeout_at};

/// Reserved at most before the bytes are here: a promised length is only a promise.
const RESERVE_BYTES: usize = 1 << 20;

/// Reads a request's body to its end, within the length and above the pace of `options`, and
/// unpacks it where it is in a `coding`.
///
/// A body that came with its head is not copied. One that is unpacked holds at most twice the
/// length meanwhile: it is here whole before.
pub(crate) async fn read(
    body: &mut Incoming,
    coding: Option<Coding>,
    options: &Options,
    pulse: &Pulse,
) -> Result<Bytes, Refusal> {
    let sent = read_as_sent(body, options, pulse).await?;
    let Some(coding) = coding else { return Ok(sent) };
    decompress(&sent, coding, options.max_body).await.map_err(|unusable| match unusable {
        Unusable::TooLong => too_large("unpacks to more", options),
        Unusable::Damaged(error) => {
            tracing::debug!(%error, ?coding, "request body cannot be unpacked");
            Refusal::Fixed(&refusal::BODY_DAMAGED)
        }
    })
}

async fn read_as_sent(
    body: &mut Incoming,
    options: &Options,
    pulse: &Pulse,
) -> Result<Bytes, Refusal> {
    let promised = body.size_hint().exact();
    if promised.is_some_and(|length| length > options.max_body as u64) {
        return Err(too_large("is longer", options));
    }
    let mut whole = Whole::Nothing;
    let started = Instant::now();
    while !body.is_end_stream() {
        let pace = whole.len() as f64 / options.min_body_rate as f64;
        let latest = started + options.body_grace + Duration::from_secs_f64(pace);
        let frame = match timeout_at(latest, body.frame()).await {
            Err(_) => return Err(Refusal::Fixed(&refusal::BODY_TOO_SLOW)),
            Ok(None) => break,
            Ok(Some(Err(error))) => {
                tracing::debug!(%error, "request body broke off");
                return Err(Refusal::Fixed(&refusal::BODY_BROKEN));
            }
            Ok(Some(Ok(frame))) => frame,
        };
        // Trailers say nothing we need.
        let Ok(chunk) = frame.into_data() else { continue };
        if whole.len() + chunk.len() > options.max_body {
            return Err(too_large("is longer", options));
        }
        whole = whole.and(chunk, promised);
    }
    pulse.body_ended();
    Ok(whole.into_bytes())
}

fn too_large(how: &str, options: &Options) -> Refusal {
    let limit = show_size(options.max_body);
    let message = format!("the request's body {how} than the {limit} this server takes");
    Refusal::Error(Error::new(Kind::TooLarge, Origin::Caller, message))
}

/// What has been read so far.
enum Whole {
    Nothing,
    One(Bytes),
    Many(BytesMut),
}

impl Whole {
    fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::One(bytes) => bytes.len(),
            Self::Many(bytes) => bytes.len(),
        }
    }

    fn and(self, chunk: Bytes, promised: Option<u64>) -> Self {
        let mut all = match self {
            Self::Nothing => return Self::One(chunk),
            Self::One(first) => {
                let promised = promised.map_or(0, |length| length as usize);
                let reserve = promised.min(RESERVE_BYTES).max(first.len() + chunk.len());
                let mut all = BytesMut::with_capacity(reserve);
                all.extend_from_slice(&first);
                all
            }
            Self::Many(all) => all,
        };
        all.extend_from_slice(&chunk);
        Self::Many(all)
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::Nothing => Bytes::new(),
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes.freeze(),
        }
    }
}

tokio::task_local! {
    /// Since when hyper holds a frame of this HTTP/2 stream that the caller has no room for.
    ///
    /// Set by the body when it hands out a frame and cleared when it is asked for the next;
    /// watched by the stream's task, because a body that is not polled cannot watch itself.
    pub(crate) static HELD_SINCE: Cell<Option<Instant>>;
}

/// Frames of HTTP/2 are cut to this, so that a frame that is held means a caller that does not
/// read, not one that reads a long chunk slowly.
const HTTP2_FRAME_BYTES: usize = 16 << 10;

/// The body of every answer: here already, or passed on chunk by chunk as the caller reads it.
///
/// The connection counts as busy until it is dropped.
pub(crate) struct Outgoing {
    content: Content,
    /// The rest of a chunk that was too long for one frame.
    rest: Bytes,
    busy: Busy,
}

enum Content {
    /// Our own words.
    Own(Bytes),
    /// A reply that is here, `left` bytes of it not yet handed out.
    Whole { body: core::Body, left: u64 },
    /// A reply that arrives.
    Stream { body: core::Body, events: bool, tail: [u8; 4] },
    /// A stream that failed and said so in an event; cut once the event has left.
    Broken { flushes: u64 },
    /// Nothing more.
    Over,
}

/// Ends the connection: an answer that cannot be finished must not look finished.
#[derive(Debug)]
pub(crate) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the answer broke off")
    }
}

impl std::error::Error for Cut {}

impl Outgoing {
    /// A body of our own.
    pub(crate) const fn own(bytes: Bytes, busy: Busy) -> Self {
        Self { content: Content::Own(bytes), rest: Bytes::new(), busy }
    }

    /// A reply's body; with `events` a failure half-way is told as an event.
    pub(crate) fn reply(body: core::Body, events: bool, busy: Busy) -> Self {
        let content = match body.as_whole() {
            Some(bytes) => Content::Whole { left: bytes.len() as u64, body },
            None => stream(body, events),
        };
        Self { content, rest: Bytes::new(), busy }
    }

    /// The same compressed, if there is anything of it.
    pub(crate) fn compressed(self, coding: Coding) -> Self {
        let plain = match self.content {
            Content::Own(bytes) => core::Body::whole(bytes),
            Content::Whole { body, .. } | Content::Stream { body, .. } => body,
            content @ (Content::Broken { .. } | Content::Over) => return Self { content, ..self },
        };
        Self { content: stream(compress(plain, coding), false), ..self }
    }

    /// The same without its bytes; dropping them settles the call.
    pub(crate) fn emptied(self) -> Self {
        Self { content: Content::Over, rest: Bytes::new(), busy: self.busy }
    }

    /// Says in the stream that it failed, and stops it.
    ///
    /// HTTP/2 drops what is queued when a stream is reset, so there the event ends the stream;
    /// on HTTP/1 the body is left without its last chunk once the event is on its way.
    fn fail(&mut self, error: &Error, tail: [u8; 4]) -> Bytes {
        let pulse: &Arc<Pulse> = self.busy.pulse();
        self.content = if pulse.is_http2() {
            Content::Over
        } else {
            Content::Broken { flushes: pulse.flushes() }
        };
        let event = tidegate_wire::error_body::event(error);
        let between_events = tail.ends_with(b"\n\n") || tail == *b"\r\n\r\n";
        if between_events {
            return event;
        }
        // The upstream broke off inside an event: end it, or ours would be part of it.
        let mut ended = BytesMut::with_capacity(event.len() + 2);
        ended.extend_from_slice(b"\n\n");
        ended.extend_from_slice(&event);
        ended.freeze()
    }

    /// The next bytes of the answer.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        loop {
            match &mut self.content {
                Content::Over => return Poll::Ready(None),
                Content::Own(bytes) => {
                    let bytes = std::mem::take(bytes);
                    self.content = Content::Over;
                    let frame = (!bytes.is_empty()).then(|| Ok(bytes));
                    return Poll::Ready(frame);
                }
                Content::Whole { body, left } => {
                    let Some(Ok(bytes)) = ready!(Pin::new(body).poll_next(cx)) else {
                        self.content = Content::Over;
                        return Poll::Ready(None);
                    };
                    *left -= bytes.len() as u64;
                    return Poll::Ready(Some(Ok(bytes)));
                }
                Content::Stream { body, events, tail } => {
                    match ready!(Pin::new(body).poll_next(cx)) {
                        None => {
                            self.content = Content::Over;
                            return Poll::Ready(None);
                        }
                        // An empty chunk would end a chunked body.
                        Some(Ok(chunk)) if chunk.is_empty() => {}
                        Some(Ok(chunk)) => {
                            if *events {
                                keep_tail(tail, &chunk);
                            }
                            return Poll::Ready(Some(Ok(chunk)));
                        }
                        Some(Err(error)) => {
                            tracing::debug!(%error, code = error.code(), "answer broke off");
                            if *events {
                                let tail = *tail;
                                let event = self.fail(&error, tail);
                                return Poll::Ready(Some(Ok(event)));
                            }
                            self.content = Content::Over;
                            return Poll::Ready(Some(Err(Cut)));
                        }
                    }
                }
                // hyper polls again after each flush; a caller that reads nothing is cut by the
                // connection's write clock.
                Content::Broken { flushes } if self.busy.pulse().flushes() == *flushes => {
                    return Poll::Pending;
                }
                Content::Broken { .. } => {
                    self.content = Content::Over;
                    return Poll::Ready(Some(Err(Cut)));
                }
            }
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = &mut *self;
        if !this.busy.pulse().is_http2() {
            return this.poll_chunk(cx).map_ok(Frame::data);
        }
        let hold = |since| HELD_SINCE.try_with(|held| held.set(since)).unwrap_or_default();
        hold(None);
        if this.rest.is_empty() {
            match ready!(this.poll_chunk(cx)) {
                Some(Ok(chunk)) => this.rest = chunk,
                end => return Poll::Ready(end.map(|end| end.map(Frame::data))),
            }
        }
        let frame = this.rest.split_to(this.rest.len().min(HTTP2_FRAME_BYTES));
        hold(Some(Instant::now()));
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        if !self.rest.is_empty() {
            return false;
        }
        match &self.content {
            Content::Own(bytes) => bytes.is_empty(),
            Content::Whole { left, .. } => *left == 0,
            Content::Over => true,
            Content::Stream { .. } | Content::Broken { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        match &self.content {
            Content::Own(bytes) => SizeHint::with_exact(rest + bytes.len() as u64),
            Content::Whole { left, .. } => SizeHint::with_exact(rest + *left),
            Content::Over => SizeHint::with_exact(rest),
            Content::Stream { .. } | Content::Broken { .. } => SizeHint::default(),
        }
    }
}

const fn stream(body: core::Body, events: bool) -> Content {
    Content::Stream { body, events, tail: *b"\n\n\n\n" }
}

/// Keeps the last four bytes of all chunks so far.
fn keep_tail(tail: &mut [u8; 4], chunk: &[u8]) {
    match chunk.last_chunk::<4>() {
        Some(last) => *tail = *last,
        None => {
            tail.rotate_left(chunk.len());
            tail[4 - chunk.len()..].copy_from_slice(chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::keep_tail;

    #[test]
    fn the_tail_is_that_of_all_chunks() {
        let mut tail = *b"\n\n\n\n";
        for (chunk, expected) in [
            (&b"ab"[..], b"\n\nab"),
            (b"c", b"\nabc"),
            (b"defgh", b"efgh"),
            (b"", b"efgh"),
            (b"\r\n\r\n", b"\r\n\r\n"),
        ] {
            keep_tail(&mut tail, chunk);
            assert_eq!(&tail, expected);
        }
    }
}
