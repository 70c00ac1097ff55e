//! One attempt: wait for the gate, send within the clocks, report how it went.

use crate::{
    account::Account,
    flow::Flow,
    gate::{Breakers, Gate, Permit},
    route::{Route, Target},
    settle::Settlement,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tidegate_core::{
    Attempt, Call, Cause, Class, Clock, Error, Front, Kind, Origin, Reply, Result, Retry,
};
use tidegate_policy::timeout;
use tokio::time::timeout_at;

/// What a call has tried so far.
#[derive(Clone, Default)]
pub(crate) struct Tries {
    /// Attempts sent, the first included.
    pub(crate) sent: u32,
    /// Attempts that count against the retry policy.
    pub(crate) counted: u32,
    /// The clocks of the model being tried, shortened as the load asks.
    pub(crate) clocks: timeout::Options,
    /// Models tried, the one that was asked for included.
    models: u32,
    /// One bit per target.
    tried: u64,
    /// Who asked this call to wait, and until when: one entry per counted attempt at most.
    asked: Vec<(Arc<Gate>, Instant)>,
}

impl Tries {
    /// Targets a model may have: each has its bit.
    pub(crate) const MAX_TARGETS: usize = 64;

    pub(crate) const fn was_tried(&self, position: usize) -> bool {
        self.tried & (1 << position) != 0
    }

    pub(crate) const fn mark(&mut self, position: usize) {
        self.tried |= 1 << position;
    }
}

impl Tries {
    /// On to another model: its targets are all untried.
    pub(crate) const fn elsewhere(&mut self, clocks: timeout::Options) {
        self.clocks = clocks;
        self.models += 1;
        self.tried = 0;
        self.counted = 0;
    }

    /// Why the next attempt is sent, unless it is a hedge.
    pub(crate) fn cause(&self, call: &Call) -> Cause {
        match (self.sent, self.models) {
            (0, _) if call.front == Front::Batch => Cause::Batch,
            (0, _) => Cause::First,
            (_, 0 | 1) => Cause::Retry,
            _ => Cause::Fallback,
        }
    }

    /// Keeps the wait that `target` asked for with `error`. One after a capacity refusal binds
    /// all calls, so its gate keeps it.
    pub(crate) fn asked_by(&mut self, target: &Target, error: &Error) {
        if let Retry::After(wait) = error.retry()
            && !wait.is_zero()
            && error.class() != Class::Capacity
        {
            self.asked.push((target.gate.clone(), later(now(), wait)));
        }
    }

    /// How long `target` asked not to be sent this call again.
    pub(crate) fn asked_wait(&self, target: &Target) -> Duration {
        let here = self.asked.iter().filter(|(gate, _)| Arc::ptr_eq(gate, &target.gate));
        let until = here.map(|(_, until)| until.saturating_duration_since(now()));
        until.max().unwrap_or_default()
    }
}

/// The time, on the runtime's clock: virtual in tests.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// In whole seconds since 1970.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `wait` after `from`. A wait without end, as `Duration::MAX` is, ends in a century.
pub(crate) fn later(from: Instant, wait: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    from + wait.min(CENTURY)
}

impl Target {
    /// Waits at the gate, sends one attempt and returns its reply at the first token, or its
    /// classified failure.
    pub(crate) async fn attempt(
        &self,
        call: &Call,
        route: &Route,
        breakers: Breakers,
        tries: &mut Tries,
        settlement: &mut Settlement,
    ) -> Result<Reply> {
        let (permit, account) = self.enter(call, route, breakers, tries, settlement).await?;
        let sent = permit.sent();
        let result = self.send(call, &tries.clocks, permit, account).await;
        settlement.attempt_ended(sent);
        result
    }

    /// Takes what the next attempt can cost, waits at the gate for the right to send it, and opens
    /// its account.
    pub(crate) async fn enter(
        &self,
        call: &Call,
        route: &Route,
        breakers: Breakers,
        tries: &mut Tries,
        settlement: &mut Settlement,
    ) -> Result<(Permit, Account)> {
        tries.mark(route.position(self));
        let reserved = settlement.page().reserve(call, self)?;
        let permit =
            self.gate.enter(call, self.price, tries.sent + 1, &tries.clocks, breakers).await?;
        debug_assert!(permit.sent() < call.deadline, "no attempt starts after the deadline");
        let cause = tries.cause(call);
        tries.sent += 1;
        settlement.attempt(self, tries.sent);
        let page = settlement.page().clone();
        Ok((permit, Account::open(page, self, tries.sent, cause, reserved)))
    }

    /// Sends the attempt of `account` within its clocks, and teaches the gate how it went.
    pub(crate) async fn send(
        &self,
        call: &Call,
        timeouts: &timeout::Options,
        mut permit: Permit,
        mut account: Account,
    ) -> Result<Reply> {
        account.leaves();
        let clocks = Clocks::start(call, timeouts.total, &permit);
        let written = AtomicBool::new(false);
        let attempt = Attempt {
            call,
            model: &self.model,
            number: account.attempt(),
            connect_timeout: timeouts.connect.min(clocks.end - permit.sent()),
            deadline: clocks.end,
            written: Some(&written),
        };
        let leaving = Leaving { permit: &mut permit, account: &mut account, written: &written };
        let sent = timeout_at(clocks.first_token.into(), self.provider.send(attempt)).await;
        if matches!(sent, Ok(Ok(_))) {
            // Who answers has read it.
            attempt.is_being_written();
        }
        drop(leaving);
        let result = sent.unwrap_or_else(|_| Err(clocks.ran_out(call, self)));
        permit.report(call, &result);
        match result {
            // From here on permit and account ride on the body, and nothing is attempted again.
            Ok(reply) => {
                account.answered(&reply);
                Ok(Flow::wrap(reply, permit, account, timeouts.idle, (clocks.end, call.deadline)))
            }
            Err(error) => {
                account.failed(&error);
                Err(error)
            }
        }
    }
}

/// An attempt that the provider has. Dropped, also when its call is given up, it says whether the
/// request was written: if not, nothing was used.
struct Leaving<'a> {
    permit: &'a mut Permit,
    account: &'a mut Account,
    written: &'a AtomicBool,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if self.written.load(Relaxed) {
            self.permit.was_written();
            self.account.was_written();
        }
    }
}

/// When an attempt's clocks run out.
struct Clocks {
    first_token: Instant,
    end: Instant,
    total: Duration,
}

impl Clocks {
    fn start(call: &Call, total: Duration, permit: &Permit) -> Self {
        let end = call.deadline.min(later(permit.sent(), total));
        let first_token = end.min(later(permit.sent(), permit.first_token()));
        Self { first_token, end, total }
    }

    /// Says which clock ended the wait for the first token.
    fn ran_out(&self, call: &Call, target: &Target) -> Error {
        let name = &target.upstream;
        if self.first_token == call.deadline {
            let message = format!("the deadline passed while waiting for `{name}`");
            return Error::new(Kind::DeadlineExceeded, Origin::Upstream, message);
        }
        let (clock, what) = if self.first_token == self.end {
            (Clock::Total, format!("did not answer in {:?}", self.total))
        } else {
            (Clock::FirstToken, "was too slow to begin its answer".to_owned())
        };
        Error::new(Kind::UpstreamTimeout(clock), Origin::Upstream, format!("`{name}` {what}"))
            .with_retry(Retry::After(Duration::ZERO))
    }
}
