//! What a gate knows of its upstream, and how it learns.

use super::{
    Waiter,
    permit::{asked_to_wait, is_as_good_as_dead},
};
use crate::{Upstream, parts::Limiters};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::time::{Duration, Instant};
use tidegate_core::{BoundBy, Call, Class, Error, Kind, Patience, Priority, Retry};
use tidegate_policy::{
    balance::Ewma,
    breaker::{self, Breaker},
    concurrency::Concurrency,
    pacer::Pacer,
    queue::{Entry, Lost, Queue},
    retry_budget::RetryBudget,
    spacing::Spacing,
    timeout::{FirstTokenClock, Shape},
};

/// While a probe is out, the breaker is asked again this often.
const PROBE_AGAIN: Duration = Duration::from_millis(100);
/// Seed of a gate's jitter.
const SEED: u64 = 0x7469_6465;

/// The limiters of one upstream model, and who waits for them.
pub(super) struct State {
    pub(super) concurrency: Concurrency,
    pub(super) pacer: Pacer,
    pub(super) budget: RetryBudget,
    pub(super) breaker: Breaker,
    pub(super) latency: Ewma,
    pub(super) line: Queue<Waiter>,
    pub(super) spacing: Spacing,
    /// Taken out of the line, and waiting for the pacer's moment.
    pub(super) head: Option<Waiter>,
    pub(super) chance: StdRng,
    pub(super) in_flight: u32,
    pub(super) attempts: u64,
    pub(super) refusals: u64,
    pub(super) bound_by: BoundBy,
    stream_clock: FirstTokenClock,
    unary_clock: FirstTokenClock,
}

impl State {
    pub(super) fn new(upstream: &Upstream, limiters: &Limiters, now: Instant) -> Self {
        Self {
            concurrency: Concurrency::new(upstream.concurrency),
            pacer: Pacer::new(upstream.pacer, now),
            budget: RetryBudget::new(limiters.retry_budget.clone(), now),
            breaker: Breaker::new(limiters.breaker.clone(), now),
            latency: Ewma::new(now),
            line: Queue::new(limiters.queue.clone()),
            spacing: Spacing::new(now),
            head: None,
            chance: StdRng::seed_from_u64(SEED),
            in_flight: 0,
            attempts: 0,
            refusals: 0,
            bound_by: BoundBy::Nothing,
            stream_clock: FirstTokenClock::new(Shape::Stream),
            unary_clock: FirstTokenClock::new(Shape::Unary),
        }
    }

    /// Whether a slot is free.
    pub(super) const fn has_room(&self) -> bool {
        self.in_flight < self.concurrency.limit()
    }

    /// The lowest class that may take a slot, if any may.
    pub(super) fn lowest(&self, now: Instant) -> Option<Priority> {
        let limit = self.concurrency.limit();
        let free = limit.saturating_sub(self.in_flight);
        self.spacing.lowest(now, free, limit, |class| self.line.is_overloaded(class))
    }

    /// Attempts in line, the one at its head included.
    pub(super) fn waiting(&self) -> usize {
        self.line.len() + usize::from(self.head.is_some())
    }

    /// Whose turn it is; those whose callers have left are passed over.
    pub(super) fn head(&mut self, now: Instant, lost: &mut Vec<Lost<Waiter>>) -> Option<Waiter> {
        let head = self.head.take().filter(|head| !head.turn.is_closed());
        head.or_else(|| self.line.pop(now, self.lowest(now)?, lost))
    }

    /// What the line has to know of `call`.
    pub(super) fn entry(&self, call: &Call, now: Instant) -> Entry {
        // A patient call is sent up to its deadline: nobody hears of it in vain.
        let patient = call.patience == Patience::Free;
        let known = self.attempts > 0 && !patient;
        let service = if known { self.latency.cost(now) } else { 0.0 };
        Entry {
            class: call.priority,
            tenant: call.tenant.id.clone(),
            cost: call.tokens.total(),
            weight: 1,
            deadline: call.deadline,
            service: Duration::try_from_secs_f64(service).unwrap_or_default(),
            patient,
        }
    }

    /// When a breaker that refuses is worth asking again.
    pub(super) fn probe_at(&self, now: Instant) -> Instant {
        match self.breaker.state(now) {
            breaker::State::Open { until } => until,
            breaker::State::Closed | breaker::State::HalfOpen => now + PROBE_AGAIN,
        }
    }

    pub(super) fn clock(&mut self, stream: bool) -> &mut FirstTokenClock {
        if stream { &mut self.stream_clock } else { &mut self.unary_clock }
    }

    /// Learns from a failure; the tokens it used, when that is sure.
    pub(super) fn failed(
        &mut self,
        sent: Instant,
        now: Instant,
        call: &Call,
        error: &Error,
    ) -> Option<u64> {
        if error.retry() == Retry::Unsent {
            // The request never got there: nothing was said of any limit.
            return Some(0);
        }
        match error.class() {
            Class::Capacity => {
                let roll = self.chance.random();
                self.refusals += 1;
                let asked = asked_to_wait(error);
                self.pacer.told(error.limits());
                // A 503 that names no wait is the breaker's, where there is one: shutting the
                // gate as well would keep it from hearing of the next.
                let is_breakers = asked.is_none() && is_as_good_as_dead(error);
                if !(is_breakers && self.breaker.is_on()) {
                    self.pacer.refused(sent, now, asked, roll);
                }
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
