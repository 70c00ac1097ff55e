//! One HTTP/1.1 connection, driven by whoever uses it.
//!
//! # Why no task of its own
//!
//! The stock way spawns a task per connection and passes requests and chunks over channels: two
//! more wake-ups per call, and a cancel that needs a message. Here connection and call are
//! polled together, so dropping the call closes the socket there and then, and an unread body
//! holds the server back by itself. An unused connection is polled by nobody; it is looked at
//! when it is taken out again.

use crate::{connect::Stream, request::RequestBody};
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::http1::{Builder, Connection, SendRequest},
};
use hyper_util::rt::TokioIo;
use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::Instant;

/// Most header bytes of an answer, and most body bytes read ahead.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// One open connection and the right to send on it.
pub(crate) struct H1 {
    sender: SendRequest<RequestBody>,
    connection: Connection<TokioIo<Stream>, RequestBody>,
    /// Takes no new call from then on.
    expires: Instant,
    idle_since: Instant,
    /// The connection has come to its end and must not be polled again.
    is_over: bool,
}

/// No answer came.
pub(crate) enum Failure {
    /// The request never left.
    Unsent(hyper::Error),
    /// It may have.
    Broken(hyper::Error),
    /// The connection ended without a word, so the request may have left.
    Ended,
}

impl H1 {
    /// Boxed once here: it is moved on every call, and large.
    pub(crate) async fn open(stream: Stream, expires: Instant) -> hyper::Result<Box<Self>> {
        let (sender, connection) =
            Builder::new().max_buf_size(MAX_BUFFER_BYTES).handshake(TokioIo::new(stream)).await?;
        let idle_since = Instant::now();
        Ok(Box::new(Self { sender, connection, expires, idle_since, is_over: false }))
    }

    /// Whether the server still holds it open, as far as is known here.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.drive(&mut nobody()).is_pending() && self.sender.is_ready()
    }

    /// Sends `request` and waits for the head of its answer.
    pub(crate) async fn exchange(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Failure> {
        let sent = self.sender.try_send_request(request);
        // Out of the cooperative budget it would wake nobody, and be forgotten.
        let mut response = pin!(tokio::task::unconstrained(sent));
        let Self { connection, is_over, .. } = self;
        let mut look = |driven: Poll<hyper::Result<()>>| {
            *is_over |= driven.is_ready();
            match (response.as_mut().poll(&mut nobody()), driven) {
                (Poll::Ready(Ok(response)), _) => Poll::Ready(Ok(response)),
                (Poll::Ready(Err(mut error)), _) => Poll::Ready(Err(match error.take_message() {
                    Some(_) => Failure::Unsent(error.into_error()),
                    None => Failure::Broken(error.into_error()),
                })),
                (Poll::Pending, Poll::Ready(Err(error))) => {
                    Poll::Ready(Err(Failure::Broken(error)))
                }
                (Poll::Pending, Poll::Ready(Ok(()))) => Poll::Ready(Err(Failure::Ended)),
                (Poll::Pending, Poll::Pending) => Poll::Pending,
            }
        };
        poll_fn(|cx| {
            let answered = look(Pin::new(&mut *connection).poll(&mut nobody()));
            if answered.is_ready() {
                return answered;
            }
            look(Pin::new(&mut *connection).poll(cx))
        })
        .await
    }

    /// Moves bytes; ready when the connection is over.
    ///
    /// Whatever the call waits for comes through here, so only this needs the call's waker, and
    /// only when there is nothing to be had without it. Connection and call would otherwise wake
    /// each other, and the task be polled twice for every chunk.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_over {
            return Poll::Ready(());
        }
        // What it ended with shows in the answer's body.
        self.is_over = Pin::new(&mut self.connection).poll(cx).is_ready();
        if self.is_over { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether it can take another call, after the answer to the last was read to its end.
    pub(crate) fn is_reusable(&mut self) -> bool {
        // Going idle takes a second look when the end of the body was the last thing read.
        for _ in 0..2 {
            if self.drive(&mut nobody()).is_ready() {
                return false;
            }
            if self.sender.is_ready() {
                return Instant::now() < self.expires;
            }
        }
        false
    }
}

/// A context in which nobody is woken.
pub(crate) const fn nobody() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Unused connections, the latest used last.
#[derive(Default)]
pub(crate) struct Idle(VecDeque<Box<H1>>);

impl Idle {
    /// The latest used: the one whose server is the least likely to have closed it.
    pub(crate) fn take(&mut self) -> Option<Box<H1>> {
        let now = Instant::now();
        while let Some(connection) = self.0.pop_back() {
            if now < connection.expires {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection; the longest unused goes when there are `max_idle` already.
    pub(crate) fn put(&mut self, mut connection: Box<H1>, max_idle: usize) {
        connection.idle_since = Instant::now();
        self.0.push_back(connection);
        if self.0.len() > max_idle {
            self.0.pop_front();
        }
    }

    /// Closes what was unused for `timeout`; when the next is due, if any is left.
    pub(crate) fn sweep(&mut self, timeout: Duration) -> Option<Instant> {
        let now = Instant::now();
        while let Some(oldest) = self.0.front() {
            let due = oldest.idle_since + timeout;
            if due > now {
                return Some(due);
            }
            self.0.pop_front();
        }
        None
    }
}
