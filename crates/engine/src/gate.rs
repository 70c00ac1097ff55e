//! The gate before one (upstream, credential, upstream model): how many attempts may be in
//! flight, how fast they may leave, and what their ends taught us.
//!
//! The rules are `policy`'s; here is only the waiting. Calls wait in one line, first come first
//! served: the head of the line holds the turnstile and asks the policies again whenever a slot
//! is freed or the pacer's moment comes. Everybody behind it sleeps on the turnstile alone, so a
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
    BoundBy, Call, Class, Error, Kind, Origin, Patience, RateLimits, Reply, Result, Retry,
    UpstreamState, Usage,
};
use tidegate_policy::{
    concurrency::Concurrency,
    pacer::{Go, Pacer},
    retry_budget::{self, RetryBudget},
    timeout::{self, FirstTokenClock, Shape},
};
use tokio::{
    sync::{Notify, Semaphore},
    time::{sleep, timeout_at},
};

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
    reserved: u64,
}

impl Gate {
    pub(crate) fn open(
        name: &Arc<str>,
        model: &Arc<str>,
        upstream: &Upstream,
        budget: &retry_budget::Options,
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
    pub(crate) async fn enter(self: &Arc<Self>, call: &Call, number: u32) -> Result<Permit> {
        self.refuse_the_hopeless(call)?;
        let line = Line::join(self);
        let turn = async {
            let _turn = self.turnstile.acquire().await.expect("the turnstile is never closed");
            loop {
                let freed = self.freed.notified();
                match self.try_enter(call, number) {
                    Ok(permit) => return permit,
                    Err(None) => freed.await,
                    Err(Some(at)) => {
                        sleep(at.saturating_duration_since(now())).await;
                    }
                }
            }
        };
        let entered = timeout_at(call.deadline.into(), turn).await;
        drop(line);
        entered.map_err(|_| {
            let message =
                format!("the deadline passed while waiting in line for `{}`", self.upstream);
            Error::new(Kind::DeadlineExceeded, Origin::Gateway, message)
        })
    }

    /// A permit now, or when to ask again (`None`: when a slot is freed).
    fn try_enter(self: &Arc<Self>, call: &Call, number: u32) -> Result<Permit, Option<Instant>> {
        let mut state = self.state.lock();
        if state.in_flight >= state.concurrency.limit() {
            state.bound_by = BoundBy::Concurrency;
            return Err(None);
        }
        let (sent, reserved) = (now(), call.tokens.total());
        match state.pacer.admit(sent, reserved) {
            Go::Now => {}
            Go::At(at, bound_by) => {
                state.bound_by = bound_by;
                return Err(Some(at));
            }
        }
        state.in_flight += 1;
        state.attempts += 1;
        if number == 1 {
            state.budget.first_attempt(sent);
        }
        if self.waiting.load(Relaxed) <= 1 {
            state.bound_by = BoundBy::Nothing;
        }
        Ok(Permit { gate: self.clone(), sent, reserved })
    }

    /// Refuses at once what would only wait to be refused later. Batch rows wait for anything.
    fn refuse_the_hopeless(&self, call: &Call) -> Result<()> {
        if call.patience == Patience::Free {
            return Ok(());
        }
        let now = now();
        let shut_for = self.state.lock().pacer.shut_for(now);
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

    /// Takes one retry out of the budget, waiting for it up to `patience`.
    pub(crate) async fn may_retry(&self, patience: Duration) -> bool {
        let until = now() + patience;
        loop {
            if self.state.lock().budget.retry(now()) {
                return true;
            }
            let again = RetryBudget::ask_again_after();
            if now() + again > until {
                return false;
            }
            sleep(again).await;
        }
    }

    /// How long the first token of `call` may take.
    pub(crate) fn first_token(&self, call: &Call, options: &timeout::Options) -> Duration {
        self.state.lock().clock(call.stream).timeout(options, call.tokens.input, now())
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
            attempts: state.attempts,
            refusals: state.refusals,
        }
    }
}

impl State {
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

    /// Teaches the limiters how the attempt went, as far as its first token.
    pub(crate) fn report(&self, call: &Call, result: &Result<Reply>) {
        let now = now();
        let mut state = self.gate.state.lock();
        match result {
            Ok(reply) => {
                state.accepted(now, reply.limits);
                let took = now.saturating_duration_since(self.sent);
                state.clock(call.stream).observe(took, call.tokens.input);
            }
            Err(error) => match error.class() {
                Class::Capacity => {
                    let asked = asked_to_wait(error);
                    let roll = state.chance.random();
                    state.refusals += 1;
                    state.pacer.told(error.limits());
                    state.pacer.refused(self.sent, now, asked, roll);
                    state.concurrency.refused(self.sent, now);
                }
                Class::Timeout => {
                    state.clock(call.stream).timed_out(now.saturating_duration_since(self.sent));
                    state.concurrency.refused(self.sent, now);
                }
                // The connection never came to be: nothing was said of any limit.
                _ if error.retry() == Retry::Unsent => {}
                _ => state.accepted(now, error.limits()),
            },
        }
    }

    /// Corrects the token reservation to what was used; once.
    pub(crate) fn settle(&mut self, usage: Usage) {
        let reserved = std::mem::take(&mut self.reserved);
        self.gate.state.lock().pacer.settle_tokens(now(), reserved, usage.total());
    }
}

impl State {
    fn accepted(&mut self, now: Instant, limits: RateLimits) {
        self.pacer.told(limits);
        self.pacer.accepted(now);
        self.concurrency.succeeded(self.in_flight);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.state.lock().in_flight -= 1;
        self.gate.freed.notify_one();
    }
}

fn asked_to_wait(error: &Error) -> Option<Duration> {
    error.retry_after().or(match error.retry() {
        Retry::After(wait) if !wait.is_zero() => Some(wait),
        _ => None,
    })
}
