//! The gate before one (upstream, credential, upstream model): how many attempts may be in
//! flight, how fast they may leave, and what their ends taught us.
//!
//! The rules are `policy`'s; here is only the waiting. Calls wait in one line, first come first
//! served: the head of the line holds the turnstile and asks the policies again whenever a slot
//! is freed or added, or the pacer's moment comes. Everybody behind it sleeps on the turnstile alone, so a
//! freed slot wakes one task however long the line is.

use crate::{Upstream, attempt::now};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tidegate_core::{
    BoundBy, BreakerState, Call, Class, Clock, Error, Kind, Origin, Patience, Reply, Result, Retry,
    TokenEstimate, UpstreamState,
};
use tidegate_policy::{
    balance::Ewma,
    breaker::{self, Admit, Breaker},
    concurrency::Concurrency,
    pacer::{Go, Pacer},
    retry_budget::{self, RetryBudget},
    timeout::{self, FirstTokenClock, Shape},
};
use tokio::{
    sync::{Notify, Semaphore},
    time::{sleep, sleep_until, timeout_at},
};

/// While a probe is out, the breaker is asked again this often.
const PROBE_AGAIN: Duration = Duration::from_millis(100);
/// Calls with a waiting caller that may stand in line before the next is refused.
const MAX_LINE: u32 = 1024;
/// A caller is refused at once rather than kept waiting longer than this for a shut gate.
const MAX_SHUT: Duration = Duration::from_secs(10);

/// Lets attempts through to one upstream model.
pub(crate) struct Gate {
    upstream: Arc<str>,
    model: Arc<str>,
    turnstile: Semaphore,
    freed: Notify,
    waiting: AtomicU32,
    // Held for a few instructions, never across an await.
    state: Mutex<State>,
}

struct State {
    concurrency: Concurrency,
    pacer: Pacer,
    budget: RetryBudget,
    breaker: Breaker,
    latency: Ewma,
    stream_clock: FirstTokenClock,
    unary_clock: FirstTokenClock,
    chance: StdRng,
    in_flight: u32,
    attempts: u64,
    refusals: u64,
    bound_by: BoundBy,
}

/// The right to send one attempt; the slot is given back when it is dropped.
#[must_use]
pub(crate) struct Permit {
    gate: Arc<Gate>,
    sent: Instant,
    first_token: Duration,
    reserved: TokenEstimate,
    /// Tokens really used. Unknown, the reservation stands: the upstream may have counted it.
    used: Option<u64>,
    /// Until the attempt's end is known.
    breaker: Option<breaker::Permit>,
}

/// Whether an open breaker stops an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breakers {
    /// It does.
    Bind,
    /// Too many of the model's targets are open: refusing would make an outage of a brown-out.
    Ignored,
}

/// How a target is doing, for the balancer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Health {
    pub(crate) in_flight: u32,
    pub(crate) share: f64,
    pub(crate) cost: f64,
    pub(crate) is_saturated: bool,
    pub(crate) is_closed: bool,
}

/// Why the head of the line cannot go yet.
enum Wait {
    /// For a slot.
    Freed,
    /// For the pacer's moment.
    Until(Instant),
    /// For tokens: refilled by then, or given back by an attempt that ends before.
    UntilOrFreed(Instant),
    /// For the breaker's next probe.
    Broken(Instant),
}

impl Gate {
    pub(crate) fn open(
        name: &Arc<str>,
        model: &Arc<str>,
        upstream: &Upstream,
        budget: &retry_budget::Options,
        breaker: &breaker::Options,
    ) -> Arc<Self> {
        let now = now();
        Arc::new(Self {
            upstream: name.clone(),
            model: model.clone(),
            turnstile: Semaphore::new(1),
            freed: Notify::new(),
            waiting: AtomicU32::new(0),
            state: Mutex::new(State {
                concurrency: Concurrency::new(upstream.concurrency),
                pacer: Pacer::new(upstream.pacer, now),
                budget: RetryBudget::new(budget.clone(), now),
                breaker: Breaker::new(breaker.clone(), now),
                latency: Ewma::new(now),
                stream_clock: FirstTokenClock::new(Shape::Stream),
                unary_clock: FirstTokenClock::new(Shape::Unary),
                chance: StdRng::seed_from_u64(0x7469_6465),
                in_flight: 0,
                attempts: 0,
                refusals: 0,
                bound_by: BoundBy::Nothing,
            }),
        })
    }

    /// Waits for `call`'s turn to send its `number`th attempt.
    ///
    /// # Errors
    ///
    /// When the line is full, the gate is shut for longer than the call can wait, or the
    /// deadline passes in line.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        call: &Call,
        number: u32,
        clocks: &timeout::Options,
        breakers: Breakers,
    ) -> Result<Permit> {
        self.refuse_the_hopeless(call, breakers)?;
        let line = Line::join(self);
        let turn = async {
            let _turn = self.turnstile.acquire().await.expect("the turnstile is never closed");
            loop {
                let freed = self.freed.notified();
                match self.try_enter(call, number, clocks, breakers) {
                    Ok(permit) => return Ok(permit),
                    Err(Wait::Broken(at)) if call.patience == Patience::Counted => {
                        return Err(self.is_broken(at));
                    }
                    Err(Wait::Broken(at)) => sleep_until(at.into()).await,
                    Err(Wait::Freed) => freed.await,
                    Err(Wait::Until(at)) => sleep_until(at.into()).await,
                    Err(Wait::UntilOrFreed(at)) => {
                        let _ = timeout_at(at.into(), freed).await;
                    }
                }
            }
        };
        let entered = timeout_at(call.deadline.into(), turn).await;
        drop(line);
        entered.unwrap_or_else(|_| {
            let message =
                format!("the deadline passed while waiting in line for `{}`", self.upstream);
            Err(Error::new(Kind::DeadlineExceeded, Origin::Gateway, message))
        })
    }

    /// A permit if there is one at once, for an attempt that is not worth waiting for.
    pub(crate) fn enter_at_once(
        self: &Arc<Self>,
        call: &Call,
        number: u32,
        clocks: &timeout::Options,
    ) -> Option<Permit> {
        if self.waiting.load(Relaxed) > 0 {
            return None;
        }
        self.try_enter(call, number, clocks, Breakers::Bind).ok()
    }

    /// A permit now, or when to ask again.
    fn try_enter(
        self: &Arc<Self>,
        call: &Call,
        number: u32,
        clocks: &timeout::Options,
        breakers: Breakers,
    ) -> Result<Permit, Wait> {
        let mut state = self.state.lock();
        let (sent, reserved) = (now(), call.tokens);
        if sent >= call.deadline {
            // A timer may fire late. The deadline's own, which ends the wait, is due as well.
            return Err(Wait::Freed);
        }
        if state.in_flight >= state.concurrency.limit() {
            state.bound_by = BoundBy::Concurrency;
            return Err(Wait::Freed);
        }
        if breakers == Breakers::Bind && state.breaker.share(sent) <= 0.0 {
            state.bound_by = BoundBy::Breaker;
            return Err(Wait::Broken(state.probe_at(sent)));
        }
        if let Go::At(at, bound_by) = state.pacer.admit(sent, reserved.total()) {
            state.bound_by = bound_by;
            return Err(match bound_by {
                BoundBy::Tokens => Wait::UntilOrFreed(at),
                _ => Wait::Until(at),
            });
        }
        state.in_flight += 1;
        state.attempts += 1;
        if number == 1 {
            state.budget.first_attempt(sent);
        }
        if self.waiting.load(Relaxed) <= 1 {
            state.bound_by = BoundBy::Nothing;
        }
        let roll = state.chance.random();
        let breaker = match (breakers, state.breaker.admit(sent, roll)) {
            (_, Admit::Go(permit)) => permit,
            (_, Admit::Refused { .. }) => state.breaker.admit_anyway(sent, roll),
        };
        let first_token = state.clock(call.stream).timeout(clocks, reserved.input, sent);
        let gate = self.clone();
        Ok(Permit { gate, sent, first_token, reserved, used: None, breaker: Some(breaker) })
    }

    /// The breaker refuses: nothing was sent, and it says when to ask again.
    fn is_broken(&self, at: Instant) -> Error {
        let message = format!("`{}` keeps failing and is left alone for a moment", self.upstream);
        Error::new(Kind::Unavailable, Origin::Gateway, message)
            .with_retry(Retry::Unsent)
            .with_retry_after(Some(at.saturating_duration_since(now())))
    }

    /// How the target is doing.
    pub(crate) fn health(&self, now: Instant) -> Health {
        let state = self.state.lock();
        Health {
            in_flight: state.in_flight,
            share: state.breaker.share(now),
            cost: state.latency.cost(now),
            is_saturated: state.in_flight >= state.concurrency.limit()
                || !state.pacer.shut_for(now).is_zero()
                || self.waiting.load(Relaxed) > 0,
            is_closed: state.breaker.state(now) == breaker::State::Closed,
        }
    }

    /// Refuses at once what would only wait to be refused later. Batch rows wait for anything.
    fn refuse_the_hopeless(&self, call: &Call, breakers: Breakers) -> Result<()> {
        if call.patience == Patience::Free {
            return Ok(());
        }
        let now = now();
        let shut_for = {
            let state = self.state.lock();
            if breakers == Breakers::Bind && state.breaker.share(now) <= 0.0 {
                return Err(self.is_broken(state.probe_at(now)));
            }
            state.pacer.shut_for(now)
        };
        let left = call.deadline.saturating_duration_since(now);
        let message = if shut_for > left.min(MAX_SHUT) {
            format!("`{}` asked to be left alone for {:.0?}", self.upstream, shut_for)
        } else if self.waiting.load(Relaxed) >= MAX_LINE {
            format!("{MAX_LINE} calls are waiting for `{}` already", self.upstream)
        } else {
            return Ok(());
        };
        let wait = shut_for.max(Duration::from_secs(1));
        Err(Error::new(Kind::Overloaded, Origin::Gateway, message)
            .with_retry(Retry::Unsent)
            .with_retry_after(Some(wait)))
    }

    /// Takes one retry out of the budget, if it is there.
    pub(crate) fn may_retry_now(&self) -> bool {
        self.state.lock().budget.retry(now())
    }

    /// Takes one retry out of the budget, waiting for it up to `patience`.
    pub(crate) async fn may_retry(&self, patience: Duration) -> bool {
        let until = now() + patience;
        loop {
            if self.may_retry_now() {
                return true;
            }
            let again = RetryBudget::ask_again_after();
            if now() + again > until {
                return false;
            }
            sleep(again).await;
        }
    }

    /// What the gate's limiters are doing.
    pub(crate) fn state(&self, now: Instant) -> UpstreamState {
        let state = self.state.lock();
        let waiting = self.waiting.load(Relaxed);
        UpstreamState {
            upstream: self.upstream.clone(),
            model: self.model.clone(),
            concurrency: state.concurrency.limit(),
            in_flight: state.in_flight,
            waiting,
            requests_per_second: state.pacer.rate(now),
            shut_for: state.pacer.shut_for(now),
            bound_by: if waiting == 0 { BoundBy::Nothing } else { state.bound_by },
            breaker: match state.breaker.state(now) {
                breaker::State::Closed => BreakerState::Closed,
                breaker::State::Open { .. } => BreakerState::Open,
                breaker::State::HalfOpen => BreakerState::HalfOpen,
            },
            share: state.breaker.share(now),
            latency: Duration::try_from_secs_f64(state.latency.cost(now)).unwrap_or_default(),
            attempts: state.attempts,
            refusals: state.refusals,
        }
    }
}

impl State {
    /// When a breaker that refuses is worth asking again.
    fn probe_at(&self, now: Instant) -> Instant {
        match self.breaker.state(now) {
            breaker::State::Open { until } => until,
            breaker::State::Closed | breaker::State::HalfOpen => now + PROBE_AGAIN,
        }
    }

    fn clock(&mut self, stream: bool) -> &mut FirstTokenClock {
        if stream { &mut self.stream_clock } else { &mut self.unary_clock }
    }
}

/// A place in line, counted while it is held.
struct Line<'a>(&'a Gate);

impl<'a> Line<'a> {
    fn join(gate: &'a Gate) -> Self {
        gate.waiting.fetch_add(1, Relaxed);
        Self(gate)
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

impl Permit {
    /// When the attempt left.
    pub(crate) const fn sent(&self) -> Instant {
        self.sent
    }

    /// How long the first token may take.
    pub(crate) const fn first_token(&self) -> Duration {
        self.first_token
    }

    /// Prompt tokens, as estimated.
    pub(crate) const fn input_tokens(&self) -> u64 {
        self.reserved.input
    }

    /// Notes the tokens really used; the reservation is corrected when the permit is dropped.
    pub(crate) const fn used(&mut self, tokens: u64) {
        self.used = Some(tokens);
    }

    /// Teaches the limiters how the attempt went, as far as its first token.
    pub(crate) fn report(&mut self, call: &Call, result: &Result<Reply>) {
        let now = now();
        let mut state = self.gate.state.lock();
        let took = now.saturating_duration_since(self.sent);
        let health = blame(result);
        match health {
            breaker::Outcome::Good => state.latency.record(now, took),
            breaker::Outcome::Bad => state.latency.failed(now, took),
            breaker::Outcome::Unknown => {}
        }
        if let Some(permit) = self.breaker.take() {
            state.breaker.ended(permit, health, now);
        }
        match result {
            Ok(reply) => {
                let limit = state.concurrency.limit();
                let in_flight = state.in_flight;
                state.pacer.told(reply.limits);
                state.pacer.accepted(now);
                state.concurrency.succeeded(in_flight, call.stream.then_some(took));
                state.clock(call.stream).observe(took, call.tokens.input);
                if state.concurrency.limit() > limit {
                    // A stream keeps its slot for long, but there is one more now.
                    self.gate.freed.notify_one();
                }
            }
            Err(error) => self.used = state.failed(self.sent, now, call, error),
        }
    }
}

impl State {
    /// Learns from a failure; the tokens it used, when that is sure.
    fn failed(&mut self, sent: Instant, now: Instant, call: &Call, error: &Error) -> Option<u64> {
        if error.retry() == Retry::Unsent {
            // The request never got there: nothing was said of any limit.
            return Some(0);
        }
        match error.class() {
            Class::Capacity => {
                let roll = self.chance.random();
                self.refusals += 1;
                self.pacer.told(error.limits());
                self.pacer.refused(sent, now, asked_to_wait(error), roll);
                self.concurrency.refused(sent, now);
                Some(0)
            }
            // A deadline that was short says nothing of the upstream.
            Class::Timeout if error.kind() == Kind::DeadlineExceeded => None,
            Class::Timeout => {
                self.clock(call.stream).timed_out(now.saturating_duration_since(sent));
                self.concurrency.refused(sent, now);
                None
            }
            // It was let in, but a failure is no reason to send more at once.
            Class::Fault => {
                self.pacer.told(error.limits());
                self.pacer.accepted(now);
                None
            }
            Class::Caller | Class::Credential | Class::Quota => {
                self.pacer.told(error.limits());
                self.pacer.accepted(now);
                Some(0)
            }
            Class::Cancelled | Class::Refused => None,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock();
        debug_assert!(state.in_flight > 0, "a slot is given back once");
        state.in_flight -= 1;
        if let Some(permit) = self.breaker.take() {
            // The caller left before anything was known.
            state.breaker.ended(permit, breaker::Outcome::Unknown, now());
        }
        if let Some(used) = self.used {
            state.pacer.settle_tokens(now(), self.reserved.total(), used);
        }
        drop(state);
        self.gate.freed.notify_one();
    }
}

/// What an attempt's end says of the target's health.
fn blame(result: &Result<Reply>) -> breaker::Outcome {
    use breaker::Outcome::{Bad, Good, Unknown};
    let error = match result {
        Ok(_) => return Good,
        Err(error) => error,
    };
    match (error.class(), error.kind()) {
        (_, Kind::DeadlineExceeded) => Unknown,
        // Our own pool was full: the server never heard of it.
        (_, Kind::UpstreamTimeout(Clock::Total)) if error.retry() == Retry::Unsent => Unknown,
        (Class::Fault | Class::Timeout, _) => Bad,
        // 429 and 529 feed the limiters; a server that answers 503 to all is as good as dead.
        (Class::Capacity, _) if error.answer().is_some_and(|said| said.status == 503) => Bad,
        (Class::Capacity | Class::Credential | Class::Quota, _) => Unknown,
        (Class::Caller, _) => Good,
        (Class::Cancelled | Class::Refused, _) => Unknown,
    }
}

fn asked_to_wait(error: &Error) -> Option<Duration> {
    error.retry_after().or(match error.retry() {
        Retry::After(wait) if !wait.is_zero() => Some(wait),
        _ => None,
    })
}
