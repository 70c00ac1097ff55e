//! What happens in a scenario, seen from both sides of the engine, and written down: the
//! upstreams' attempts by a provider around each scripted one, the calls by their callers.
//!
//! Every event goes by the invariants (`rules`) at its moment, when the gauges still show what
//! was held. What breaks one is written into the events, where it happened.

use super::{books::Books, plan::Plan, rules::Gauges};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use tidegate_core::{Answer, Attempt, BoxFuture, BoxStream, Error, Kind, Provider, Reply, Result};
use tidegate_engine::{Engine, Record};
use tidegate_testkit::script::Scripted;
use tokio::time::Instant;

/// Sees all there is to see of one scenario.
pub(super) struct Watch {
    pub(super) plan: Plan,
    pub(super) books: Arc<Books>,
    start: Instant,
    engine: OnceLock<Weak<Engine>>,
    seen: Mutex<Seen>,
}

/// What was seen so far.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) now: Duration,
    pub(super) calls: Vec<Called>,
    pub(super) tried: Vec<Tried>,
    /// How often what was seen, over all scenarios: what is never seen is not tested.
    pub(super) tally: BTreeMap<String, u64>,
    pub(super) wrong: u32,
    events: Vec<(Duration, String)>,
    /// All callers have left: what is sent now is the driver's own.
    is_over: bool,
}

/// One call, as its caller sees it.
#[derive(Default)]
pub(super) struct Called {
    pub(super) at: Option<Duration>,
    pub(super) sent: u32,
    pub(super) copies: u32,
    /// The last of its attempts that ended by itself.
    pub(super) last: Option<usize>,
    pub(super) replied: Option<Duration>,
    pub(super) is_whole: bool,
    pub(super) record: Option<Record>,
    pub(super) is_over: bool,
}

/// One attempt, as its upstream sees it.
pub(super) struct Tried {
    pub(super) call: usize,
    pub(super) upstream: Arc<str>,
    pub(super) model: Arc<str>,
    pub(super) number: u32,
    /// A mirror's, and so none of the call's own.
    pub(super) is_copy: bool,
    /// Whether it could be had without the retry budget.
    pub(super) is_free: bool,
    pub(super) sent_at: Duration,
    /// When its stream began, if it has one.
    pub(super) begun_at: Option<Duration>,
    /// Until when its upstream asked not to be asked again.
    pub(super) not_before: Option<Duration>,
    pub(super) ended: Option<How>,
    pub(super) ended_at: Option<Duration>,
}

/// What leaves.
#[derive(Debug)]
enum What {
    Send,
    Copy,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum How {
    /// With the whole answer, or the last event of a stream.
    Answered,
    /// Before there was an answer.
    Failed(Kind),
    /// After a stream had begun.
    Broken(Kind),
    /// It was cancelled.
    Dropped,
    /// It was, before its request was written.
    Unsent,
}

impl How {
    pub(super) const fn is_dropped(self) -> bool {
        matches!(self, Self::Dropped | Self::Unsent)
    }
}

/// How a call ended, for its caller.
#[derive(Debug)]
pub(super) enum Over<'e> {
    Answered,
    Refused(&'e Error),
    Broken(&'e Error),
    HungUp,
}

impl Tried {
    /// The gate it went through: upstream, and that upstream's name of the model.
    pub(super) fn place(&self) -> (&str, &str) {
        (&self.upstream, &self.model)
    }
}

impl Watch {
    pub(super) fn new(plan: Plan) -> Arc<Self> {
        let calls = plan.calls.iter().map(|_| Called::default()).collect();
        Arc::new(Self {
            plan,
            books: Arc::default(),
            start: Instant::now(),
            engine: OnceLock::new(),
            seen: Mutex::new(Seen { calls, ..Seen::default() }),
        })
    }

    /// The engine whose gauges are read.
    pub(super) fn watches(&self, engine: &Arc<Engine>) {
        let _ = self.engine.set(Arc::downgrade(engine));
    }

    /// A provider around `inner` whose attempts are seen.
    pub(super) fn provider(
        self: &Arc<Self>,
        name: &str,
        inner: Arc<Scripted>,
    ) -> Arc<dyn Provider> {
        Arc::new(Watched { name: name.into(), inner, watch: self.clone() })
    }

    pub(super) fn called(&self, number: usize) {
        let mut seen = self.look();
        seen.calls[number].at = Some(seen.now);
        seen.say(format_args!("call {number}: {}", self.plan.calls[number]));
    }

    pub(super) fn replied(&self, number: usize, reply: &Reply) {
        let gauges = self.gauges(None);
        let mut seen = self.look();
        seen.calls[number].replied = Some(seen.now);
        seen.calls[number].is_whole = reply.body.as_whole().is_some();
        seen.say(format_args!("reply to {number} by {}", reply.served.upstream));
        seen.at_reply(&self.plan, number, reply, &gauges);
    }

    /// The caller of call `number` got a chunk.
    pub(super) fn chunk(&self, number: usize) {
        let gauges = self.gauges(None);
        self.look().at_chunk(&self.plan, number, &gauges);
    }

    pub(super) fn over(&self, number: usize, over: Over<'_>) {
        let gauges = self.gauges(None);
        let mut seen = self.look();
        seen.calls[number].is_over = true;
        match &over {
            Over::Refused(error) => seen.say(format_args!("{number} refused: {error:?}")),
            Over::Broken(error) => seen.say(format_args!("{number} breaks off: {error:?}")),
            Over::Answered => seen.say(format_args!("{number} answered")),
            Over::HungUp => seen.say(format_args!("{number} hangs up")),
        }
        seen.at_end(&self.plan, number, &over, &gauges);
    }

    pub(super) fn settled(&self, record: Record) {
        let mut seen = self.look();
        // Others are the driver's own.
        let Some(number) = seen.number(&record.id) else { return };
        seen.say(format_args!("{number} settled: {:?}", record.outcome));
        seen.at_settle(&self.plan, number, record);
    }

    /// All callers have left, and what still runs are copies.
    pub(super) fn all_left(&self) {
        let gauges = self.gauges(None);
        let mut seen = self.look();
        seen.at_last(&self.plan, &gauges);
        seen.is_over = true;
    }

    /// Everything that was sent is in the books, once.
    pub(super) fn books_add_up(&self) {
        let entries = self.books.take();
        self.look().at_books(&self.plan, &entries);
    }

    /// Writes down `what` as wrong unless `holds`.
    pub(super) fn must(&self, holds: bool, what: impl fmt::Display) {
        self.look().must(holds, || what.to_string());
    }

    /// The number of violations, all events as text, and what was seen how often.
    pub(super) fn report(&self) -> (u32, String, BTreeMap<String, u64>) {
        let mut seen = self.look();
        let lines: String = seen
            .events
            .iter()
            .map(|(at, what)| format!("{:>6}ms {what}\n", at.as_millis()))
            .collect();
        (seen.wrong, lines, std::mem::take(&mut seen.tally))
    }

    fn look(&self) -> parking_lot::MutexGuard<'_, Seen> {
        let mut seen = self.seen.lock();
        seen.now = self.start.elapsed();
        seen
    }

    /// What the engine holds, and what the gate before `at` says.
    fn gauges(&self, at: Option<(&str, &str)>) -> Option<Gauges> {
        let engine = self.engine.get()?.upgrade()?;
        let is_it = |upstream: &str, model: &str| at.is_none_or(|at| at == (upstream, model));
        let gates = engine.upstreams();
        let gates = gates.into_iter().filter(|gate| is_it(&gate.upstream, &gate.model)).collect();
        Some(Gauges { held: engine.held(), gates })
    }

    fn sent(self: &Arc<Self>, upstream: &Arc<str>, attempt: &Attempt<'_>) -> Option<Live> {
        let gauges = self.gauges(Some((upstream, attempt.model)));
        let mut seen = self.look();
        let call = seen.number(&attempt.call.id)?;
        // A copy runs in a task of its mirror's, the calls of a scenario run in none.
        let is_copy = tokio::task::try_id().is_some();
        let (index, model) = (seen.tried.len(), attempt.model.into());
        let tried = Tried {
            call,
            upstream: upstream.clone(),
            model,
            number: attempt.number,
            is_copy,
            is_free: false,
            sent_at: seen.now,
            begun_at: None,
            not_before: None,
            ended: None,
            ended_at: None,
        };
        seen.tried.push(tried);
        seen.say_of(index, if is_copy { What::Copy } else { What::Send });
        seen.at_send(&self.plan, index, attempt, &gauges);
        Some(Live { watch: self.clone(), index })
    }
}

impl Seen {
    pub(super) fn say(&mut self, what: fmt::Arguments<'_>) {
        self.events.push((self.now, what.to_string()));
    }

    /// Says what an attempt does: `Send a/m #1 of 7`.
    fn say_of(&mut self, index: usize, what: impl fmt::Debug) {
        let Tried { call, upstream, model, number, .. } = &self.tried[index];
        let line = format!("{what:?} {upstream}/{model} #{number} of {call}");
        self.say(format_args!("{line}"));
    }

    pub(super) fn count(&mut self, what: impl Into<String>) {
        *self.tally.entry(what.into()).or_default() += 1;
    }

    pub(super) fn must(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.wrong += 1;
            let what = what();
            self.say(format_args!("!!! {what}"));
        }
    }

    fn number(&self, id: &str) -> Option<usize> {
        id.parse().ok().filter(|_| !self.is_over)
    }
}

struct Watched {
    name: Arc<str>,
    inner: Arc<Scripted>,
    watch: Arc<Watch>,
}

impl Provider for Watched {
    fn send<'a>(&'a self, attempt: Attempt<'a>) -> BoxFuture<'a, Result<Reply>> {
        Box::pin(async move {
            let live = self.watch.sent(&self.name, &attempt);
            let sending = Sending { live: live.as_ref(), written: attempt.written.unwrap() };
            let result = self.inner.send(attempt).await;
            std::mem::forget(sending);
            let Some(live) = live else { return result };
            match result {
                Err(error) => {
                    let asked = error.retry_after();
                    let mut seen = self.watch.look();
                    seen.tried[live.index].not_before = asked.map(|wait| seen.now + wait);
                    drop(seen);
                    live.ended(How::Failed(error.kind()));
                    Err(error)
                }
                Ok(reply) if reply.body.as_whole().is_some() => {
                    live.ended(How::Answered);
                    Ok(reply)
                }
                Ok(mut reply) => {
                    let mut seen = self.watch.look();
                    seen.tried[live.index].begun_at = Some(seen.now);
                    drop(seen);
                    reply.body = reply.body.map_stream(|stream| Streaming { stream, live });
                    Ok(reply)
                }
            }
        })
    }
}

/// An attempt that may not have left yet when it is dropped.
struct Sending<'a> {
    live: Option<&'a Live>,
    written: &'a AtomicBool,
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        if let Some(live) = self.live.filter(|_| !self.written.load(Relaxed)) {
            live.ended(How::Unsent);
        }
    }
}

/// An attempt under way.
struct Live {
    watch: Arc<Watch>,
    index: usize,
}

impl Live {
    /// The attempt ended, if it has not before.
    fn ended(&self, how: How) {
        let mut seen = self.watch.look();
        if seen.tried[self.index].ended.is_none() {
            seen.tried[self.index].ended = Some(how);
            seen.tried[self.index].ended_at = Some(seen.now);
            seen.say_of(self.index, how);
            seen.at_attempts_end(&self.watch.plan, self.index, how);
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.ended(How::Dropped);
    }
}

/// A stream under way.
struct Streaming {
    stream: BoxStream<'static, Result<Bytes>>,
    live: Live,
}

impl Stream for Streaming {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.stream.poll_next_unpin(cx);
        match &next {
            Poll::Ready(None) => self.live.ended(How::Answered),
            Poll::Ready(Some(Err(error))) => self.live.ended(How::Broken(error.kind())),
            _ => {}
        }
        next
    }
}
