//! One attempt: wait for the gate, send within the clocks, report how it went.

use crate::{
    flow::Flow,
    route::{Route, Target},
    settle::Settlement,
};
use std::time::{Duration, Instant};
use tidegate_core::{Attempt, Call, Clock, Error, Kind, Origin, Reply, Result, Retry};
use tokio::time::timeout_at;

/// What a call has tried so far.
#[derive(Debug, Default)]
pub(crate) struct Tries {
    /// Attempts sent, the first included.
    pub(crate) sent: u32,
    /// Attempts that count against the retry policy.
    pub(crate) counted: u32,
    /// One bit per target; targets beyond the 64th are never avoided.
    tried: u64,
}

impl Tries {
    pub(crate) const fn was_tried(&self, position: usize) -> bool {
        position < 64 && self.tried & (1 << position) != 0
    }

    const fn mark(&mut self, position: usize) {
        if position < 64 {
            self.tried |= 1 << position;
        }
    }
}

/// The time, on the runtime's clock: virtual in tests.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Target {
    /// Sends one attempt and returns its reply at the first token, or its classified failure.
    pub(crate) async fn attempt(
        &self,
        call: &Call,
        route: &Route,
        tries: &mut Tries,
        settlement: &mut Settlement,
    ) -> Result<Reply> {
        tries.mark(route.position(self));
        let permit = self.gate.enter(call, tries.sent + 1).await?;
        tries.sent += 1;
        settlement.attempt(self, tries.sent);

        let clocks = Clocks::start(call, route, self, permit.sent());
        let attempt = Attempt {
            call,
            model: &self.model,
            number: tries.sent,
            connect_timeout: route.timeouts.connect,
            deadline: clocks.end,
        };
        let sent = timeout_at(clocks.first_token.into(), self.provider.send(attempt)).await;
        let result = sent.unwrap_or_else(|_| Err(clocks.ran_out(call, self)));

        permit.report(call, &result);
        settlement.attempt_ended(permit.sent());
        // From here on the permit rides on the body, and nothing is attempted again.
        result
            .map(|reply| Flow::wrap(reply, permit, route.timeouts.idle, clocks.end, call.deadline))
    }
}

/// When an attempt's clocks run out.
struct Clocks {
    first_token: Instant,
    end: Instant,
    total: Duration,
}

impl Clocks {
    fn start(call: &Call, route: &Route, target: &Target, sent: Instant) -> Self {
        let total = route.timeouts.total;
        let end = call.deadline.min(sent + total);
        let first_token = end.min(sent + target.gate.first_token(call, &route.timeouts));
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
