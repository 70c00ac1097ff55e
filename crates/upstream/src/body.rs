//! An answer's body as it comes off the wire, with the connection it comes from.

use crate::{fault, h2, pool::LentH1};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use std::{
    pin::Pin,
    task::{Context, Poll},
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
        let mut is_driven = false;
        loop {
            match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Poll::Ready(Some(Ok(data))),
                    // Trailers say nothing we need.
                    Ok(_) | Err(_) => {}
                },
                Poll::Ready(Some(Err(error))) => {
                    self.held = Held::Nothing;
                    return Poll::Ready(Some(Err(fault::broken(error))));
                }
                Poll::Ready(None) => {
                    if let Held::Http1(lent) = std::mem::replace(&mut self.held, Held::Nothing) {
                        lent.give_back(cx);
                    }
                    return Poll::Ready(None);
                }
                Poll::Pending => match &mut self.held {
                    Held::Http1(lent) if !is_driven => {
                        is_driven = true;
                        if lent.drive(cx).is_ready() {
                            // How it ended shows in the body.
                            self.held = Held::Nothing;
                        }
                    }
                    Held::Http1(_) | Held::Http2(_) => return Poll::Pending,
                    Held::Nothing => return Poll::Ready(Some(Err(fault::ended_early()))),
                },
            }
        }
    }
}
