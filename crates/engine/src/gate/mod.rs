//! The gate before one (upstream, credential, upstream model): how many attempts may be in
//! flight, how fast they may leave, and what their ends taught us.
//!
//! The rules are `policy`'s; here is only the waiting. Calls wait in one line, whose order is the
//! queue policy's. Whoever holds the turnstile works the line for all: it asks the policies again
//! whenever a slot is freed or added, or the pacer's moment comes, and hands out permits until
//! its own turn has come. Everybody else sleeps until it is served, so a freed slot wakes two
//! tasks at most, however long the line is.

mod ask;
mod permit;
mod refuse;
mod state;
mod tokens;
mod turn;

pub(crate) use permit::Permit;

use ask::Ask;

use crate::{
    Upstream,
    attempt::{later, now},
    limits::{self, Hold, Party, Refusal},
    parts::Limiters,
};
use parking_lot::Mutex;
use state::State;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tidegate_core::{BoundBy, BreakerState, Call, Price, Result, UpstreamState};
use tidegate_policy::{
    breaker,
    pacer::Go,
    queue::{Full, Why},
    retry_budget::RetryBudget,
    timeout,
};
use tokio::{
    sync::{Notify, Semaphore, oneshot},
    time::{sleep, sleep_until, timeout_at},
};
use turn::{Joined, News, Waiting};

/// Lets attempts through to one upstream model.
pub(crate) struct Gate {
    upstream: Arc<str>,
    model: Arc<str>,
    turnstile: Semaphore,
    freed: Notify,
    /// What the configuration lets the upstream be used, all its models together.
    limit: Option<Arc<Party>>,
    learned: tokens::Learned,
    // Held for a few instructions, never across an await.
    state: Mutex<State>,
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

/// An attempt in line, and where its turn is told.
struct Waiter {
    ask: Ask,
    turn: oneshot::Sender<Result<Permit>>,
}

/// Why an attempt cannot leave yet.
enum Wait {
    /// For a slot.
    Freed,
    /// For the pacer's moment; tokens may be given back before.
    Until(Instant),
    /// For the breaker's next probe.
    Broken(Instant),
    /// One of the upstream's limits is reached: it does not wait, but goes elsewhere.
    Limited(Refusal),
}

impl Gate {
    pub(crate) fn open(
        name: &Arc<str>,
        model: &Arc<str>,
        upstream: &Upstream,
        parts: &Limiters,
        limit: Option<Arc<Party>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            upstream: name.clone(),
            model: model.clone(),
            turnstile: Semaphore::new(1),
            freed: Notify::new(),
            limit,
            learned: tokens::Learned::default(),
            state: Mutex::new(State::new(upstream, parts, now())),
        })
    }

    /// Waits for `call`'s turn to send its `number`th attempt, whose tokens have that price.
    ///
    /// # Errors
    ///
    /// When the line has no place for it, the gate is shut for longer than the call can wait,
    /// the breaker is open, a limit of the upstream is reached, or the deadline passes in line.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        call: &Call,
        price: Option<Price>,
        number: u32,
        clocks: &timeout::Options,
        breakers: Breakers,
    ) -> Result<Permit> {
        let ask = Ask::of(call, price, number, clocks, breakers);
        loop {
            let turn = self.stand(call, ask).await;
            // Who waits for a limit does so out of line: those behind may need less of it.
            match turn.as_ref().err().and_then(limits::wait) {
                Some(wait) if ask.is_patient && later(now(), wait) < call.deadline => {
                    sleep(wait).await;
                }
                _ => return turn,
            }
        }
    }

    /// Stands in line once.
    async fn stand(self: &Arc<Self>, call: &Call, ask: Ask) -> Result<Permit> {
        self.refuse_the_hopeless(&ask)?;
        let mut waiting = match self.join(call, ask)? {
            Joined::Entered(permit) => return Ok(permit),
            Joined::Waits(waiting) => waiting,
        };
        match timeout_at(call.deadline.into(), self.wait(&mut waiting)).await {
            Ok(turn) => turn,
            Err(_) => Err(self.too_late()),
        }
    }

    /// A permit if there is one at once, for an attempt that is not worth waiting for.
    pub(crate) fn enter_at_once(
        self: &Arc<Self>,
        call: &Call,
        price: Option<Price>,
        number: u32,
        clocks: &timeout::Options,
    ) -> Option<Permit> {
        self.at_once(&Ask::of(call, price, number, clocks, Breakers::Bind))
    }

    /// The same for a copy, which takes nothing of the upstream's limits: what it took, the calls
    /// it is there for might be refused.
    pub(crate) fn enter_uncounted(
        self: &Arc<Self>,
        call: &Call,
        number: u32,
        clocks: &timeout::Options,
    ) -> Option<Permit> {
        let ask = Ask::of(call, None, number, clocks, Breakers::Bind);
        self.at_once(&Ask { is_limited: false, ..ask })
    }

    fn at_once(self: &Arc<Self>, ask: &Ask) -> Option<Permit> {
        let mut state = self.state.lock();
        if state.waiting() > 0 { None } else { self.grant(&mut state, ask).ok() }
    }

    /// Enters, or takes a place in line.
    fn join(self: &Arc<Self>, call: &Call, ask: Ask) -> Result<Joined<'_>> {
        let (mut news, mut lost) = (News::default(), Vec::new());
        let mut state = self.state.lock();
        let now = now();
        state.spacing.came(now, ask.class);
        if state.waiting() == 0 && state.lowest(now).is_some_and(|lowest| ask.class <= lowest) {
            match self.grant(&mut state, &ask) {
                Ok(permit) => return Ok(Joined::Entered(permit)),
                Err(Wait::Broken(at)) if !ask.is_patient => return Err(self.is_broken(at)),
                Err(Wait::Limited(refusal)) => return Err(refusal.into_unsent()),
                Err(_) => {}
            }
        }
        let (turn, told) = oneshot::channel();
        let entry = state.entry(call, now);
        let pushed = state.line.push(now, entry, Waiter { ask, turn }, &mut lost);
        let is_next = state.has_room() && state.head.is_none();
        drop(state);
        if is_next {
            // Those in line may be waiting for what this one need not wait for.
            self.freed.notify_one();
        }
        news.lost(self, lost);
        news.tell();
        match pushed {
            Ok(ticket) => Ok(Joined::Waits(Waiting { gate: self, ticket, told })),
            Err(Full(_)) => Err(self.is_full(Why::Displaced)),
        }
    }

    /// Sleeps until the turn comes, working the line for all while holding the turnstile.
    async fn wait(self: &Arc<Self>, waiting: &mut Waiting<'_>) -> Result<Permit> {
        let told = |told| std::result::Result::unwrap_or_else(told, |_| Err(self.too_late()));
        let _turn = tokio::select! {
            biased;
            turn = &mut waiting.told => return told(turn),
            turn = self.turnstile.acquire() => turn.expect("the turnstile is never closed"),
        };
        loop {
            let freed = self.freed.notified();
            let again = self.work();
            let moment = async {
                match again {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                turn = &mut waiting.told => return told(turn),
                () = freed => {}
                () = moment => {}
            }
        }
    }

    /// Hands out permits to the line; when to come again, unless a slot is freed before.
    fn work(self: &Arc<Self>) -> Option<Instant> {
        let (mut news, mut lost) = (News::default(), Vec::new());
        let mut state = self.state.lock();
        let again = loop {
            if !state.has_room() {
                state.bound_by = BoundBy::Concurrency;
                break None;
            }
            let now = now();
            let Some(head) = state.head(now, &mut lost) else {
                // Whoever is left leaves room for a higher class.
                break Some(state.spacing.next()).filter(|next| state.waiting() > 0 && *next > now);
            };
            if now >= head.ask.deadline {
                news.0.push((head.turn, Err(self.too_late())));
                continue;
            }
            match self.grant(&mut state, &head.ask) {
                Ok(permit) => news.0.push((head.turn, Ok(permit))),
                Err(Wait::Broken(at)) if !head.ask.is_patient => {
                    news.0.push((head.turn, Err(self.is_broken(at))));
                }
                Err(Wait::Limited(refusal)) => {
                    news.0.push((head.turn, Err(refusal.into_unsent())));
                }
                Err(Wait::Freed) => {
                    state.head = Some(head);
                    break None;
                }
                Err(Wait::Until(at) | Wait::Broken(at)) => {
                    state.head = Some(head);
                    break Some(at);
                }
            }
        };
        drop(state);
        news.lost(self, lost);
        news.tell();
        again
    }

    /// A permit now, or why not.
    fn grant(self: &Arc<Self>, state: &mut State, ask: &Ask) -> Result<Permit, Wait> {
        let sent = now();
        if sent >= ask.deadline {
            // A timer may fire late. The deadline's own, which ends the wait, is due as well.
            return Err(Wait::Freed);
        }
        if !state.has_room() {
            state.bound_by = BoundBy::Concurrency;
            return Err(Wait::Freed);
        }
        if ask.breakers == Breakers::Bind && state.breaker.share(sent) <= 0.0 {
            state.bound_by = BoundBy::Breaker;
            return Err(Wait::Broken(state.probe_at(sent)));
        }
        // Locked until it is taken, so that what the pacer lets go is not refused after it.
        let limit = self.limit.as_ref().filter(|_| ask.is_limited);
        let limit = limit.map(|limit| (limit, limit.lock()));
        if let Some((limit, locked)) = &limit
            && let Err(refusal) = limit.ask(locked, ask.needs(), sent)
        {
            return Err(Wait::Limited(refusal));
        }
        if let Go::At(at, bound_by) = state.pacer.admit(sent, ask.tokens.total()) {
            state.bound_by = bound_by;
            return Err(Wait::Until(at));
        }
        let take = |(limit, locked)| Hold::take_locked(limit, locked, ask.needs(), sent);
        Ok(Permit::grant(self.clone(), state, ask, sent, limit.map(take)))
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

    /// How the target is doing.
    pub(crate) fn health(&self, now: Instant) -> Health {
        let state = self.state.lock();
        Health {
            in_flight: state.in_flight,
            share: state.breaker.share(now),
            cost: state.latency.cost(now),
            is_saturated: state.in_flight >= state.concurrency.limit()
                || !state.pacer.shut_for(now).is_zero()
                || state.waiting() > 0,
            is_closed: state.breaker.state(now) == breaker::State::Closed,
        }
    }

    /// The delay of the line over what it allows: from 1 on it is overloaded.
    pub(crate) fn pressure(&self, now: Instant) -> f64 {
        self.state.lock().line.pressure(now)
    }

    /// What the gate's limiters are doing.
    pub(crate) fn state(&self, now: Instant) -> UpstreamState {
        let state = self.state.lock();
        let waiting = u32::try_from(state.waiting()).unwrap_or(u32::MAX);
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
            latency: (state.latency.is_measured())
                .then(|| Duration::try_from_secs_f64(state.latency.cost(now)).unwrap_or_default()),
            attempts: state.attempts,
            refusals: state.refusals,
        }
    }
}
