//! The answer to a call.

use crate::{BoxStream, RateLimits, Result};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use std::{
    any::Any,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

/// The answer to a [`crate::Call`].
#[derive(Debug)]
pub struct Reply {
    /// HTTP status of the upstream's answer, always 2xx: anything else is an error.
    pub status: u16,
    /// What the body is.
    pub content_type: ContentType,
    /// The body; whatever the call holds rides on it.
    pub body: Body,
    /// Tokens used, when the whole body is here. A stream's usage is known only at its end and
    /// is settled by the engine from the meter.
    pub usage: Option<Usage>,
    /// What has passed through a streamed body so far; `None` for a body nobody counts.
    pub meter: Option<Arc<Meter>>,
    /// What the upstream said of its rate limits with this answer.
    pub limits: RateLimits,
    /// The upstream's own id of the request.
    pub upstream_request_id: Option<Arc<str>>,
    /// Who answered, filled in by the engine.
    pub served: Served,
}

/// Who answered a call and how hard it was.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Served {
    /// Name of the upstream.
    pub upstream: Arc<str>,
    /// The upstream's own name of the model.
    pub model: Arc<str>,
    /// Attempts made, the first and the last included.
    pub attempts: u32,
    /// Time spent waiting for upstreams: the rest of the call's duration is our overhead.
    pub upstream_time: Duration,
    /// What is left of the tenant's own limits, for the caller; empty when it has none.
    pub tenant: RateLimits,
}

/// What a body is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// `application/json`
    Json,
    /// `text/event-stream`
    EventStream,
    /// Anything else, as the upstream wrote it.
    Other(Arc<str>),
}

impl ContentType {
    /// The header's value.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Json => "application/json",
            Self::EventStream => "text/event-stream",
            Self::Other(other) => other,
        }
    }
}

/// Everything a call holds while it runs: slots, reservations, its observation.
///
/// Dropping it settles the call, exactly once, on every way a call can end.
pub type Lease = Box<dyn Any + Send + Sync>;

/// A reply's body: whole, or chunk by chunk as it arrives.
pub struct Body {
    content: Content,
    lease: Option<Lease>,
}

enum Content {
    Whole(Bytes),
    Stream(BoxStream<'static, Result<Bytes>>),
}

impl Body {
    /// A body that is here already.
    pub const fn whole(bytes: Bytes) -> Self {
        Self { content: Content::Whole(bytes), lease: None }
    }

    /// A body that arrives chunk by chunk.
    pub fn stream(stream: impl Stream<Item = Result<Bytes>> + Send + 'static) -> Self {
        Self { content: Content::Stream(stream.boxed()), lease: None }
    }

    /// Keeps `lease` until the body has been read to its end or is dropped.
    #[must_use]
    pub fn holding(mut self, lease: Lease) -> Self {
        debug_assert!(self.lease.is_none(), "a body carries one lease");
        self.lease = Some(lease);
        self
    }

    /// The bytes, when they are all here.
    pub const fn as_whole(&self) -> Option<&Bytes> {
        match &self.content {
            Content::Whole(bytes) => Some(bytes),
            Content::Stream(_) => None,
        }
    }

    /// Rewraps a streamed body; a whole one passes unchanged.
    #[must_use]
    pub fn map_stream<S>(self, wrap: impl FnOnce(BoxStream<'static, Result<Bytes>>) -> S) -> Self
    where
        S: Stream<Item = Result<Bytes>> + Send + 'static,
    {
        match self.content {
            Content::Whole(_) => self,
            Content::Stream(stream) => {
                Self { content: Content::Stream(wrap(stream).boxed()), lease: self.lease }
            }
        }
    }

    /// Reads the body to its end, up to `limit_bytes`.
    ///
    /// # Errors
    ///
    /// The stream's own error, or [`crate::Kind::Upstream`] when it is longer than the limit.
    pub async fn collect(mut self, limit_bytes: usize) -> Result<Bytes> {
        if let Content::Whole(bytes) = &mut self.content {
            return Ok(std::mem::take(bytes));
        }
        let mut all = Vec::new();
        while let Some(chunk) = self.next().await {
            let chunk = chunk?;
            if all.len() + chunk.len() > limit_bytes {
                return Err(crate::Error::new(
                    crate::Kind::Upstream,
                    crate::Origin::Upstream,
                    format!("the answer is longer than {limit_bytes} bytes"),
                ));
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all.into())
    }
}

impl Stream for Body {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = match &mut self.content {
            Content::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Content::Whole(bytes) => Poll::Ready(Some(Ok(std::mem::take(bytes)))),
            Content::Stream(stream) => stream.poll_next_unpin(cx),
        };
        if let Poll::Ready(None) = next {
            self.lease = None;
            // What the stream holds goes with its last chunk, not with the body's last owner.
            self.content = Content::Whole(Bytes::new());
        }
        next
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.content {
            Content::Whole(bytes) => write!(f, "Whole({} bytes)", bytes.len()),
            Content::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// Counts a stream while it passes: the provider writes, the engine reads when the stream ends.
///
/// # Why
///
/// A stream's usage is in one of its last events, and a caller may hang up before that. The
/// chunk count is then the best there is to settle by: most servers send an event per token.
#[derive(Debug, Default)]
pub struct Meter {
    chunks: AtomicU64,
    /// How many there were when the usage was told.
    told_at: AtomicU64,
    known: AtomicBool,
    input: AtomicU64,
    cached_input: AtomicU64,
    cache_write: AtomicU64,
    output: AtomicU64,
    reasoning: AtomicU64,
}

impl Meter {
    /// Counts events that carry a piece of the answer: no roles, finish reasons or comments.
    pub fn add_chunks(&self, count: u64) {
        self.chunks.fetch_add(count, Ordering::Relaxed);
    }

    /// Events counted so far.
    pub fn chunks(&self) -> u64 {
        self.chunks.load(Ordering::Relaxed)
    }

    /// Keeps the usage an event told; a later one replaces it. What the event itself carries of
    /// the answer is counted before.
    pub fn set(&self, usage: Usage) {
        self.told_at.store(self.chunks(), Ordering::Relaxed);
        self.input.store(usage.input, Ordering::Relaxed);
        self.cached_input.store(usage.cached_input, Ordering::Relaxed);
        self.cache_write.store(usage.cache_write, Ordering::Relaxed);
        self.output.store(usage.output, Ordering::Relaxed);
        self.reasoning.store(usage.reasoning, Ordering::Relaxed);
        self.known.store(true, Ordering::Release);
    }

    /// The last usage told, if any was, and the chunks that passed since: some servers tell the
    /// prompt's tokens first, and the answer's in the end.
    pub fn usage(&self) -> Option<Usage> {
        self.known.load(Ordering::Acquire).then(|| {
            let since = self.chunks().saturating_sub(self.told_at.load(Ordering::Relaxed));
            Usage {
                input: self.input.load(Ordering::Relaxed),
                cached_input: self.cached_input.load(Ordering::Relaxed),
                cache_write: self.cache_write.load(Ordering::Relaxed),
                output: self.output.load(Ordering::Relaxed).saturating_add(since),
                reasoning: self.reasoning.load(Ordering::Relaxed),
            }
        })
    }
}

/// Tokens a call used, as the upstream counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Prompt tokens, cached ones included.
    pub input: u64,
    /// Prompt tokens the upstream had in its own cache.
    pub cached_input: u64,
    /// Prompt tokens the upstream wrote to its own cache, which some have paid for.
    pub cache_write: u64,
    /// Answer tokens, reasoning included.
    pub output: u64,
    /// Tokens of hidden reasoning.
    pub reasoning: u64,
}

impl Usage {
    /// Input and output together.
    pub const fn total(self) -> u64 {
        self.input.saturating_add(self.output)
    }
}
