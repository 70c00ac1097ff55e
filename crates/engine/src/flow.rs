//! A reply's body on its way to the caller: its clocks run, its usage is read, its slot is held.

use crate::{
    account::Account,
    attempt::{later, now},
    gate::Permit,
};
use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tidegate_core::{BoxStream, Clock, ContentType, Error, Kind, Meter, Origin, Reply, Result};
use tokio::time::{Sleep, sleep_until};

/// A streamed body between provider and settlement.
pub(crate) struct Flow {
    stream: BoxStream<'static, Result<Bytes>>,
    permit: Permit,
    account: Account,
    meter: Option<Arc<Meter>>,
    /// The answer is made as it passes, and its events are counted.
    is_stream: bool,
    idle: Duration,
    end: Instant,
    deadline: Instant,
    clock: Pin<Box<Sleep>>,
}

impl Flow {
    /// Puts the attempt's slot, account and clocks on a streamed body; a whole one gives its slot
    /// back and closes its account now. The attempt ends at `end`, its call at `deadline`.
    pub(crate) fn wrap(
        mut reply: Reply,
        mut permit: Permit,
        account: Account,
        idle: Duration,
        (end, deadline): (Instant, Instant),
    ) -> Reply {
        if reply.body.as_whole().is_some() {
            if let Some(usage) = reply.usage {
                permit.told(usage);
            }
            return reply;
        }
        let meter = reply.meter.clone();
        let is_stream = reply.content_type == ContentType::EventStream;
        reply.body = reply.body.map_stream(|stream| {
            let clock = Box::pin(sleep_until(later(now(), idle).min(end).into()));
            Self { stream, permit, account, meter, is_stream, idle, end, deadline, clock }
        });
        reply
    }

    /// Ends the body with the clock that ran out.
    fn cut(&mut self) -> Poll<Option<Result<Bytes>>> {
        let error = self.ran_out();
        self.permit.broke(&error);
        self.account.broke(&error);
        // The upstream is let go at once, not when the caller has read the error.
        self.stream = futures_util::stream::empty().boxed();
        Poll::Ready(Some(Err(error)))
    }

    fn ran_out(&self) -> Error {
        let now = now();
        if now >= self.deadline {
            let message = "the deadline passed before the answer was complete";
            return Error::new(Kind::DeadlineExceeded, Origin::Upstream, message);
        }
        let (clock, message) = if now >= self.end {
            (Clock::Total, "the answer took too long".to_owned())
        } else {
            (Clock::Idle, format!("the upstream sent nothing for {:?}", self.idle))
        };
        Error::new(Kind::UpstreamTimeout(clock), Origin::Upstream, message)
    }
}

impl Stream for Flow {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.stream.poll_next_unpin(cx) {
            Poll::Ready(Some(Ok(chunk))) => {
                let now = now();
                if now >= self.end {
                    // A quick upstream and a slow reader never let the clock be asked.
                    return self.cut();
                }
                let next = later(now, self.idle).min(self.end);
                self.clock.as_mut().reset(next.into());
                Poll::Ready(Some(Ok(chunk)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.permit.broke(&error);
                self.account.broke(&error);
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                self.account.ended();
                Poll::Ready(None)
            }
            Poll::Pending => {
                std::task::ready!(self.clock.poll_unpin(cx));
                self.cut()
            }
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if let Some(meter) = &self.meter {
            match meter.usage() {
                Some(usage) => self.permit.told(usage),
                // Cut off before its usage was told, a stream is worth what has passed of it.
                None if self.is_stream => self.permit.passed(meter.chunks()),
                // Any other answer was made whole before it was sent: the reservation stands.
                None => {}
            }
        }
    }
}
