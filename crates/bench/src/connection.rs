//! One HTTP/1.1 connection, driven by the request that uses it.
//!
//! No task of its own: connection and request are polled together, so a chunk costs one wake-up
//! and a dropped request closes its socket there and then.

use crate::target::Stream;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::http1::{Builder, Connection as Driver, SendRequest},
};
use hyper_util::rt::TokioIo;
use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
};

/// Most header bytes of an answer, and most body bytes read ahead.
const MAX_BUFFER_BYTES: usize = 64 * 1024;

/// An open connection and the right to send on it.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: Driver<TokioIo<Stream>, Full<Bytes>>,
    /// It has come to its end and must not be polled again.
    is_over: bool,
}

/// No answer came.
pub(crate) enum Failure {
    /// The request never left.
    Unsent(Option<hyper::Error>),
    /// It may have.
    Broken(Option<hyper::Error>),
}

impl Connection {
    /// Boxed once here: it is moved on every request, and large.
    pub(crate) async fn open(stream: Stream) -> hyper::Result<Box<Self>> {
        let (sender, driver) =
            Builder::new().max_buf_size(MAX_BUFFER_BYTES).handshake(TokioIo::new(stream)).await?;
        Ok(Box::new(Self { sender, driver, is_over: false }))
    }

    /// Whether it can take a request, as far as is known here.
    pub(crate) fn is_ready(&mut self) -> bool {
        // Going idle takes a second look when the end of the body was the last thing read.
        for _ in 0..2 {
            if self.drive(&mut nobody()).is_ready() {
                return false;
            }
            if self.sender.is_ready() {
                return true;
            }
        }
        false
    }

    /// Sends `request` and waits for the head of its answer.
    pub(crate) async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Failure> {
        let sent = self.sender.try_send_request(request);
        // Out of the cooperative budget it would wake nobody, and be forgotten.
        let mut response = pin!(tokio::task::unconstrained(sent));
        let Self { driver, is_over, .. } = self;
        let mut look = |driven: Poll<hyper::Result<()>>| {
            *is_over |= driven.is_ready();
            match (response.as_mut().poll(&mut nobody()), driven) {
                (Poll::Ready(Ok(response)), _) => Poll::Ready(Ok(response)),
                (Poll::Ready(Err(mut error)), _) => Poll::Ready(Err(match error.take_message() {
                    Some(_) => Failure::Unsent(Some(error.into_error())),
                    None => Failure::Broken(Some(error.into_error())),
                })),
                (Poll::Pending, Poll::Ready(ended)) => {
                    Poll::Ready(Err(Failure::Broken(ended.err())))
                }
                (Poll::Pending, Poll::Pending) => Poll::Pending,
            }
        };
        poll_fn(|cx| {
            let answered = look(Pin::new(&mut *driver).poll(&mut nobody()));
            if answered.is_ready() {
                return answered;
            }
            look(Pin::new(&mut *driver).poll(cx))
        })
        .await
    }

    /// The next chunk of an answer's body, never empty; `Err` when it breaks off.
    pub(crate) async fn chunk(
        &mut self,
        body: &mut Incoming,
    ) -> Option<Result<Bytes, Option<hyper::Error>>> {
        poll_fn(|cx| {
            for waker in [Waker::noop(), cx.waker()] {
                if let Poll::Ready(chunk) = poll_data(body) {
                    return Poll::Ready(chunk.map(|chunk| chunk.map_err(Some)));
                }
                if self.drive(&mut Context::from_waker(waker)).is_ready() {
                    return Poll::Ready(match poll_data(body) {
                        Poll::Ready(chunk) => chunk.map(|chunk| chunk.map_err(Some)),
                        Poll::Pending => Some(Err(None)),
                    });
                }
            }
            poll_data(body).map(|chunk| chunk.map(|chunk| chunk.map_err(Some)))
        })
        .await
    }

    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_over {
            return Poll::Ready(());
        }
        // What it ended with shows in the answer's body.
        self.is_over = Pin::new(&mut self.driver).poll(cx).is_ready();
        if self.is_over { Poll::Ready(()) } else { Poll::Pending }
    }
}

fn poll_data(body: &mut Incoming) -> Poll<Option<hyper::Result<Bytes>>> {
    loop {
        match ready!(Pin::new(&mut *body).poll_frame(&mut nobody())) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if !data.is_empty() => return Poll::Ready(Some(Ok(data))),
                // Trailers say nothing we need.
                Ok(_) | Err(_) => {}
            },
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => return Poll::Ready(None),
        }
    }
}

/// A context in which nobody is woken.
const fn nobody() -> Context<'static> {
    Context::from_waker(Waker::noop())
}
