//! An answer's body as it comes off the wire, with the connection it comes from.

use crate::{fault, h1::nobody, h2, pool::LentH1};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use std::{
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};
use tidegate_core::Result;

/// Head of an answer, and the body with the connection it comes from.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: WireBody,
}

impl Answer {
    pub(crate) fn new(response: Response<Incoming>, held: Held) -> Self {
        let (head, incoming) = response.into_parts();
        Self { status: head.status, headers: head.headers, body: WireBody { incoming, held } }
    }
}

/// A body as it comes off the wire. Dropping it before its end cancels the call: HTTP/1.1
/// closes the connection, HTTP/2 resets the stream.
pub(crate) struct WireBody {
    incoming: Incoming,
    held: Held,
}

/// What is given back, or given up, with the body.
pub(crate) enum Held {
    Http1(LentH1),
    Http2(#[expect(dead_code, reason = "held for its drop")] h2::Slot),
    Nothing,
}

impl WireBody {
    /// The next chunk, never empty; at the end the connection goes back to its pool.
    pub(crate) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        let chunk = match &self.held {
            Held::Http1(_) => self.poll_driving(cx),
            Held::Http2(_) => self.poll_data(cx),
            Held::Nothing => self.poll_rest(),
        };
        match &chunk {
            Poll::Ready(None) => {
                if let Held::Http1(lent) = std::mem::replace(&mut self.held, Held::Nothing) {
                    lent.give_back();
                }
            }
            Poll::Ready(Some(Err(_))) => self.held = Held::Nothing,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        chunk
    }

    /// Looks, moves bytes, looks again; the caller is woken only when there was nothing.
    fn poll_driving(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Bytes>>> {
        for waker in [Waker::noop(), cx.waker()] {
            if let Poll::Ready(chunk) = self.poll_data(&mut nobody()) {
                return Poll::Ready(chunk);
            }
            if let Held::Http1(lent) = &mut self.held
                && lent.drive(&mut Context::from_waker(waker)).is_ready()
            {
                self.held = Held::Nothing;
                return self.poll_rest();
            }
        }
        self.poll_data(&mut nobody())
    }

    /// What came before the connection ended, and how it ended.
    fn poll_rest(&mut self) -> Poll<Option<Result<Bytes>>> {
        match self.poll_data(&mut nobody()) {
            Poll::Pending => Poll::Ready(Some(Err(fault::ended_early()))),
            ready => ready,
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        loop {
            match ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Poll::Ready(Some(Ok(data))),
                    // Trailers say nothing we need.
                    Ok(_) | Err(_) => {}
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(fault::broken(error)))),
                None => return Poll::Ready(None),
            }
        }
    }
}
