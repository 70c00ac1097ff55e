//! What goes out: a whole body, a body in slow or broken pieces, a stream of events, the ledger.
//!
//! The body owns the request's observation, so the ledger knows whether the last byte was taken
//! or the caller went away before.

use crate::{
    Distribution, Sim, chance::Chance, events::Events, faults::Fault, observation::Observation,
};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep_until};

/// The simulator breaks a connection on purpose.
#[derive(Debug)]
pub(crate) struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the simulator breaks this connection on purpose")
    }
}

impl std::error::Error for Broken {}

/// A response's body.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Whole(Bytes, Option<Observation>),
    Pieces(Box<Pieces>),
    Events(Box<Events>),
    Ledger(Pages),
}

impl From<Bytes> for Outgoing {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(bytes, None)
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let frame = match self.get_mut() {
            Self::Whole(bytes, seen) => {
                if let Some(mut seen) = seen.take() {
                    seen.sent(bytes.len());
                    seen.end();
                }
                let bytes = std::mem::take(bytes);
                (!bytes.is_empty()).then_some(Ok(bytes))
            }
            Self::Pieces(pieces) => ready!(pieces.poll(cx)),
            Self::Events(events) => ready!(events.poll(cx)),
            Self::Ledger(pages) => pages.next().map(Ok),
        };
        Poll::Ready(frame.map(|frame| frame.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes, None) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes, _) => SizeHint::with_exact(bytes.len() as u64),
            Self::Pieces(pieces) => SizeHint::with_exact(pieces.left()),
            Self::Events(_) | Self::Ledger(_) => SizeHint::default(),
        }
    }
}

/// Waits for instants one after the other, with one timer.
#[derive(Debug, Default)]
pub(crate) struct Pause(Option<Pin<Box<Sleep>>>);

impl Pause {
    pub(crate) fn until(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if due <= Instant::now() {
            return Poll::Ready(());
        }
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if sleep.deadline() != due {
            sleep.as_mut().reset(due);
        }
        sleep.as_mut().poll(cx)
    }
}

/// How long a broken connection stays open, so that what was sent before is really out.
pub(crate) const FLUSH: Duration = Duration::from_millis(1);

/// A body in eight pieces, each after a delay, perhaps cut in the middle.
#[derive(Debug)]
pub(crate) struct Pieces {
    bytes: Bytes,
    sent: usize,
    piece: usize,
    delay: Distribution,
    cut: Option<Fault>,
    then: Then,
    chance: Chance,
    due: Instant,
    pause: Pause,
    seen: Observation,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    GoOn,
    Hang,
    Break,
}

impl Pieces {
    pub(crate) fn new(
        bytes: Bytes,
        delay: Distribution,
        cut: Option<Fault>,
        mut chance: Chance,
        seen: Observation,
    ) -> Self {
        Self {
            piece: bytes.len().div_ceil(8).max(1),
            bytes,
            sent: 0,
            delay,
            cut,
            then: Then::GoOn,
            due: Instant::now() + delay.draw(&mut chance),
            chance,
            pause: Pause::default(),
            seen,
        }
    }

    const fn left(&self) -> u64 {
        (self.bytes.len() - self.sent) as u64
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        loop {
            ready!(self.pause.until(self.due, cx));
            match self.then {
                Then::GoOn => {}
                // Nobody wakes this task again: it ends when the caller goes away.
                Then::Hang => return Poll::Pending,
                Then::Break => {
                    self.seen.end();
                    return Poll::Ready(Some(Err(Broken)));
                }
            }
            if self.sent == self.bytes.len() {
                return Poll::Ready(None);
            }
            if self.sent >= self.bytes.len() / 2 {
                self.then = match self.cut.take() {
                    None => Then::GoOn,
                    Some(Fault::StallMid) => Then::Hang,
                    Some(_) => Then::Break,
                };
                if self.then != Then::GoOn {
                    self.due = Instant::now() + FLUSH;
                    continue;
                }
            }
            let end = (self.sent + self.piece).min(self.bytes.len());
            let piece = self.bytes.slice(self.sent..end);
            self.sent = end;
            self.seen.sent(piece.len());
            self.due = Instant::now() + self.delay.draw(&mut self.chance);
            if end == self.bytes.len() {
                self.seen.end();
                self.due = Instant::now();
            }
            return Poll::Ready(Some(Ok(piece)));
        }
    }
}

/// The ledger as NDJSON or as an array, a page at a time, so that it is never in memory twice.
#[derive(Debug)]
pub(crate) struct Pages {
    sim: Arc<Sim>,
    next: u64,
    left: u64,
    is_array: bool,
    stage: Stage,
}

#[derive(Debug, PartialEq)]
enum Stage {
    First,
    Later,
    Over,
}

/// Entries written under one lock.
const PAGE: u64 = 512;

impl Pages {
    pub(crate) const fn new(sim: Arc<Sim>, since: u64, limit: u64, is_array: bool) -> Self {
        Self { sim, next: since, left: limit, is_array, stage: Stage::First }
    }

    fn next(&mut self) -> Option<Bytes> {
        if self.stage == Stage::Over {
            return None;
        }
        let mut out = Vec::with_capacity(64 << 10);
        if self.is_array && self.stage == Stage::First {
            out.push(b'[');
        }
        let mut wrote = 0;
        {
            let ledger = self.sim.ledger.lock();
            for entry in ledger.since(self.next).take(self.left.min(PAGE) as usize) {
                if self.is_array && (wrote > 0 || self.stage == Stage::Later) {
                    out.push(b',');
                }
                serde_json::to_writer(&mut out, entry).expect("an entry is always written");
                out.push(b'\n');
                self.next = entry.seq + 1;
                wrote += 1;
            }
        }
        self.left -= wrote;
        if wrote == 0 || self.left == 0 {
            self.stage = Stage::Over;
            out.extend_from_slice(if self.is_array { b"]\n" } else { b"" });
        } else {
            self.stage = Stage::Later;
        }
        (!out.is_empty()).then(|| out.into())
    }
}
