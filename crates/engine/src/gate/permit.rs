//! The right to send one attempt, and what its end teaches the gate.

use super::{Ask, Gate, state::State};
use crate::{
    attempt::now,
    limits::{Amount, Hold},
};
use rand::RngExt;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tidegate_core::{
    BoundBy, Call, Class, Clock, Error, Kind, Money, Price, Reply, Result, Retry, TokenEstimate,
    Usage,
};
use tidegate_policy::breaker;

/// The right to send one attempt; the slot is given back when it is dropped.
#[must_use]
pub(crate) struct Permit {
    gate: Arc<Gate>,
    sent: Instant,
    first_token: Duration,
    reserved: TokenEstimate,
    /// Tokens really used: none before the request is written. Unknown, the reservation stands: the
    /// upstream may have counted it.
    used: Option<u64>,
    /// What that cost.
    spent: Money,
    price: Option<Price>,
    /// What it took of the upstream's limits.
    hold: Option<Hold<1>>,
    body_bytes: usize,
    /// Until the attempt's end is known.
    breaker: Option<breaker::Permit>,
}

impl Permit {
    /// Takes a slot; the limiters have been asked.
    pub(super) fn grant(
        gate: Arc<Gate>,
        state: &mut State,
        ask: &Ask,
        sent: Instant,
        hold: Option<Hold<1>>,
    ) -> Self {
        state.in_flight += 1;
        state.attempts += 1;
        let overloaded = state.line.is_overloaded(ask.class);
        state.spacing.took(sent, ask.class, state.concurrency.limit(), overloaded);
        match ask.number {
            // What a client sends again is load of the same kind as our own retries, and must not
            // earn more of them. It is not ours to refuse, so it goes even when none is left.
            1 if ask.is_again => {
                state.budget.retry(sent);
            }
            1 => state.budget.first_attempt(sent),
            _ => {}
        }
        if state.waiting() == 0 {
            state.bound_by = BoundBy::Nothing;
        }
        let roll = state.chance.random();
        let breaker = Some(state.breaker.admit_anyway(sent, roll));
        let first_token = state.clock(ask.stream).timeout(&ask.clocks, ask.tokens.input, sent);
        Self {
            gate,
            sent,
            first_token,
            reserved: ask.tokens,
            used: Some(0),
            spent: Money::ZERO,
            price: ask.price,
            hold,
            body_bytes: ask.body_bytes,
            breaker,
        }
    }

    /// When the attempt left.
    pub(crate) const fn sent(&self) -> Instant {
        self.sent
    }

    /// How long the first token may take.
    pub(crate) const fn first_token(&self) -> Duration {
        self.first_token
    }

    /// Notes the usage that the upstream told, and learns how it counts prompts. Reservations
    /// are corrected when the permit is dropped.
    pub(crate) fn told(&mut self, usage: Usage) {
        self.used(usage);
        self.gate.learn_tokens(self.body_bytes, usage.input);
    }

    /// Notes that so many chunks have passed of an answer whose usage was not told.
    pub(crate) fn passed(&mut self, chunks: u64) {
        self.used(Usage { input: self.reserved.input, output: chunks, ..Usage::default() });
    }

    /// Notes that the request was written: the upstream may count it from now on.
    pub(crate) const fn was_written(&mut self) {
        self.used = None;
    }

    fn used(&mut self, usage: Usage) {
        self.used = Some(usage.total());
        self.spent = self.price.map(|price| price.of(usage)).unwrap_or_default();
    }

    /// Teaches the limiters how the attempt went, as far as its first token.
    pub(crate) fn report(&mut self, call: &Call, result: &Result<Reply>) {
        let now = now();
        let mut state = self.gate.state.lock();
        let took = now.saturating_duration_since(self.sent);
        let health = blame(result.as_ref().err());
        let was_alone =
            state.in_flight == 1 && state.breaker.state(now) == breaker::State::HalfOpen;
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
                let first_token = call.stream.then_some(took);
                state.concurrency.succeeded(self.sent, now, in_flight, first_token);
                state.clock(call.stream).observe(took, call.tokens.input);
                if state.concurrency.limit() > limit {
                    // A stream keeps its slot for long, but there is one more now.
                    self.gate.freed.notify_one();
                }
            }
            Err(error) => {
                let used = state.failed(self.sent, now, call, error);
                self.used = self.used.or(used);
                if was_alone {
                    state.concurrency.failed_alone(now);
                }
            }
        }
    }

    /// Teaches the gate that the answer broke off after its first token. Limits have nothing to
    /// learn from that: it had been let in.
    pub(crate) fn broke(&mut self, error: &Error) {
        if blame(Some(error)) == breaker::Outcome::Bad {
            let now = now();
            let mut state = self.gate.state.lock();
            let roll = state.chance.random();
            state.latency.failed(now, Duration::ZERO);
            state.breaker.broke(now, roll);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock();
        debug_assert!(state.in_flight > 0, "a slot is given back once");
        let now = now();
        state.in_flight -= 1;
        state.spacing.left(now.saturating_duration_since(self.sent));
        if let Some(permit) = self.breaker.take() {
            // The caller left before anything was known.
            state.breaker.ended(permit, breaker::Outcome::Unknown, now);
        }
        if let Some(used) = self.used {
            state.pacer.settle_tokens(now, self.reserved.total(), used);
        }
        drop(state);
        if let (Some(hold), Some(tokens)) = (&mut self.hold, self.used) {
            hold.settle(Amount { tokens, cost: self.spent }, now);
        }
        // Before those in line are told that there is room.
        self.hold = None;
        self.gate.freed.notify_one();
    }
}

/// What an attempt's end says of the target's health.
fn blame(error: Option<&Error>) -> breaker::Outcome {
    use breaker::Outcome::{Bad, Good, Unknown};
    let Some(error) = error else { return Good };
    match (error.class(), error.kind()) {
        (_, Kind::DeadlineExceeded) => Unknown,
        // Our own pool was full: the server never heard of it.
        (_, Kind::UpstreamTimeout(Clock::Total)) if error.retry() == Retry::Unsent => Unknown,
        (Class::Fault | Class::Timeout, _) => Bad,
        // 429 and 529 feed the limiters; a server that answers 503 to all is as good as dead.
        (Class::Capacity, _) if is_as_good_as_dead(error) => Bad,
        (Class::Capacity | Class::Credential | Class::Quota, _) => Unknown,
        (Class::Caller, _) => Good,
        (Class::Cancelled | Class::Refused, _) => Unknown,
    }
}

/// Whether a capacity refusal is a 503, and not a 429 or 529.
pub(super) fn is_as_good_as_dead(error: &Error) -> bool {
    error.answer().is_some_and(|said| said.status == 503)
}

pub(super) fn asked_to_wait(error: &Error) -> Option<Duration> {
    error.retry_after().or(match error.retry() {
        Retry::After(wait) if !wait.is_zero() => Some(wait),
        _ => None,
    })
}
