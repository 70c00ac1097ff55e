//! Settle: the one place every call passes exactly once, however it ends.
//!
//! A [`Settlement`] is opened before anything else and closed by its `Drop`: answered, refused,
//! failed, timed out, or abandoned by its caller in any phase. Slots and reservations are given
//! back there and the call's record is written there.

use crate::{account::Page, admit::Lease, attempt::now, limits::Amount, route::Target};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};
use tidegate_core::{
    BoxStream, Call, ContentType, Error, Front, Kind, Meter, Money, Operation, Reply, Result,
    Served, TokenEstimate, Usage,
};

/// Where the record of each ended call goes. Called on the hot path: must not block.
pub type Records = Arc<dyn Fn(Box<Record>) + Send + Sync>;

/// What became of one call. No prompt, no answer, no key.
#[derive(Clone, Debug)]
pub struct Record {
    /// Id of the call.
    pub id: Arc<str>,
    /// The way it came in.
    pub front: Front,
    /// Who asked.
    pub tenant: Arc<str>,
    /// What was asked for.
    pub operation: Operation,
    /// Model, as the caller named it.
    pub model: Arc<str>,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// Upstream of the last attempt, if any.
    pub upstream: Option<Arc<str>>,
    /// That upstream's own name of the model.
    pub upstream_model: Option<Arc<str>>,
    /// Attempts sent.
    pub attempts: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// Status of the upstream's own answer in the error that ended it, if that has one: what the
    /// caller got, where the upstream rejected the request.
    pub upstream_status: Option<u16>,
    /// Tokens used, as far as the upstream said.
    pub usage: Option<Usage>,
    /// What all its attempts cost; `None` when a price is not known.
    pub cost: Option<Money>,
    /// When it began.
    pub started_at: SystemTime,
    /// From its beginning to its first chunk; `None` when there was none.
    pub first_chunk: Option<Duration>,
    /// From its beginning to its end.
    pub duration: Duration,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered to the last byte.
    Ok,
    /// Ended by an error.
    Failed(Kind),
    /// Abandoned by its caller.
    Cancelled,
}

/// The account of one call, from its first moment to its last.
pub(crate) struct Settlement {
    page: Arc<Page>,
    record: Option<Box<Record>>,
    records: Option<Records>,
    lease: Option<Lease>,
    meter: Option<Arc<Meter>>,
    /// The answer is made as it passes, and its events are counted.
    is_stream: bool,
    served: Served,
    estimate: TokenEstimate,
    usage: Option<Usage>,
    outcome: Outcome,
    upstream_status: Option<u16>,
    first_chunk: Option<Duration>,
    started: Instant,
}

impl Settlement {
    pub(crate) fn open(call: &Call, page: Arc<Page>, records: Option<Records>) -> Self {
        let record = records.is_some().then(|| {
            Box::new(Record {
                id: call.id.clone(),
                front: call.front,
                tenant: call.tenant.id.clone(),
                operation: call.operation,
                model: call.model.clone(),
                stream: call.stream,
                upstream: None,
                upstream_model: None,
                attempts: 0,
                outcome: Outcome::Cancelled,
                upstream_status: None,
                usage: None,
                cost: None,
                started_at: SystemTime::now(),
                first_chunk: None,
                duration: Duration::ZERO,
            })
        });
        Self {
            page,
            record,
            records,
            lease: None,
            meter: None,
            is_stream: false,
            served: Served::default(),
            estimate: call.tokens,
            usage: None,
            // Whoever drops it without another word has hung up.
            outcome: Outcome::Cancelled,
            upstream_status: None,
            first_chunk: None,
            started: now(),
        }
    }

    /// Takes over what admission granted.
    pub(crate) fn hold(&mut self, lease: Lease) {
        self.lease = Some(lease);
    }

    /// What the accounts of this call's attempts share.
    pub(crate) const fn page(&self) -> &Arc<Page> {
        &self.page
    }

    /// Notes an attempt that is about to be sent.
    pub(crate) fn attempt(&mut self, target: &Target, number: u32) {
        self.served.upstream = target.upstream.clone();
        self.served.model = target.model.clone();
        self.served.attempts = number;
    }

    /// Notes how long an attempt sent at `sent` kept us waiting.
    pub(crate) fn attempt_ended(&mut self, sent: Instant) {
        self.served.upstream_time += now().saturating_duration_since(sent);
    }

    /// No answer has begun, and no attempt used anything: none was sent, or all were refused. The
    /// body has let go of its attempt by then: every account is closed.
    fn owes_nothing(&self) -> bool {
        self.served.attempts == 0 || (self.first_chunk.is_none() && !self.page.is_owed())
    }

    /// Tokens to settle by when the upstream told none; `None` lets the reservation stand.
    fn presumed(&self) -> Option<u64> {
        match &self.meter {
            _ if self.owes_nothing() => Some(0),
            // An upstream has read the prompt, and may have made its answer.
            _ if self.first_chunk.is_none() => {
                (!self.page.has_lost_an_answer()).then_some(self.estimate.input)
            }
            Some(meter) if self.is_stream => {
                Some(self.estimate.input.saturating_add(meter.chunks()))
            }
            _ => None,
        }
    }

    /// What the upstream said it used, so far.
    fn usage(&self) -> Option<Usage> {
        self.meter.as_ref().and_then(|meter| meter.usage()).or(self.usage)
    }

    /// Corrects what the call reserved of limits to what it used; heard once.
    fn settle_limits(&mut self, now: Instant) {
        if self.lease.as_ref().is_none_or(|lease| lease.limits.is_none()) {
            return;
        }
        let used = self.usage().map(Usage::total).or_else(|| self.presumed());
        let cost = self.page.cost().or(self.owes_nothing().then_some(Money::ZERO));
        let Some(hold) = self.lease.as_mut().and_then(|lease| lease.limits.as_mut()) else {
            return;
        };
        let reserved = hold.reserved();
        let used =
            Amount { tokens: used.unwrap_or(reserved.tokens), cost: cost.unwrap_or(reserved.cost) };
        hold.settle(used, now);
    }

    /// The call failed with `error`.
    pub(crate) fn fail(mut self, error: Error) -> Error {
        self.failed(&error);
        error
    }

    fn failed(&mut self, error: &Error) {
        self.outcome = Outcome::Failed(error.kind());
        self.upstream_status = error.answer().map(|answer| answer.status);
    }

    /// The call is answered: the settlement rides on the reply's body until its last byte.
    pub(crate) fn ride(mut self, mut reply: Reply) -> Reply {
        let now = now();
        self.first_chunk = Some(now.saturating_duration_since(self.started));
        self.usage = reply.usage;
        self.meter = reply.meter.clone();
        self.is_stream = reply.content_type == ContentType::EventStream;
        if reply.usage.is_some() && reply.body.as_whole().is_some() {
            // Before the caller is told what is left.
            self.settle_limits(now);
        }
        if let Some(limits) = self.lease.as_ref().and_then(|lease| lease.limits.as_ref()) {
            self.served.tenant = limits.told(now);
        }
        reply.served = self.served.clone();
        if reply.body.as_whole().is_some() {
            self.outcome = Outcome::Ok;
            reply.body = reply.body.holding(Box::new(self));
        } else {
            reply.body = reply.body.map_stream(|stream| Settling { stream, settlement: self });
        }
        reply
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        let (usage, now) = (self.usage(), now());
        self.settle_limits(now);
        let (Some(mut record), Some(records)) = (self.record.take(), &self.records) else { return };
        if self.served.attempts > 0 {
            record.upstream = Some(self.served.upstream.clone());
            record.upstream_model = Some(self.served.model.clone());
        }
        record.attempts = self.served.attempts;
        // Dropped by a panic, and not because its caller went away.
        let panicked = std::thread::panicking() && self.outcome == Outcome::Cancelled;
        record.outcome = if panicked { Outcome::Failed(Kind::Internal) } else { self.outcome };
        record.upstream_status = self.upstream_status;
        record.usage = usage;
        // The body has let go of its attempt: every account is closed.
        record.cost = self.page.cost();
        record.first_chunk = self.first_chunk;
        record.duration = now.saturating_duration_since(self.started);
        records(record);
    }
}

/// A streamed body with its call's settlement on it.
struct Settling {
    stream: BoxStream<'static, Result<Bytes>>,
    settlement: Settlement,
}

impl Stream for Settling {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.stream.poll_next_unpin(cx);
        match &next {
            Poll::Ready(None) if self.settlement.outcome == Outcome::Cancelled => {
                self.settlement.outcome = Outcome::Ok;
            }
            Poll::Ready(Some(Err(error))) => self.settlement.failed(error),
            _ => {}
        }
        next
    }
}
