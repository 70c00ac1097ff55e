//! What a gate says to those it does not let pass.

use super::{Ask, Breakers, Gate};
use crate::{attempt::now, limits::Refusal};
use std::time::{Duration, Instant};
use tidegate_core::{Error, Kind, Origin, Result, Retry};
use tidegate_policy::queue::Why;

/// A caller is refused at once rather than kept waiting longer than this for a shut gate.
const MAX_SHUT: Duration = Duration::from_secs(10);
/// When a call that was shed may try again.
const SHED_AGAIN: Duration = Duration::from_secs(1);

impl Gate {
    /// Refuses at once what would only wait to be refused later. Batch rows wait for
    /// anything but limits, and for these out of line.
    pub(super) fn refuse_the_hopeless(&self, ask: &Ask) -> Result<()> {
        let now = now();
        if let Some(limit) = &self.limit {
            let locked = limit.lock();
            limit.ask(&locked, ask.needs(), now).map_err(Refusal::into_unsent)?;
        }
        if ask.is_patient {
            return Ok(());
        }
        let state = self.state.lock();
        if ask.breakers == Breakers::Bind && state.breaker.share(now) <= 0.0 {
            return Err(self.is_broken(state.probe_at(now)));
        }
        let shut_for = state.pacer.shut_for(now);
        drop(state);
        if shut_for <= ask.deadline.saturating_duration_since(now).min(MAX_SHUT) {
            return Ok(());
        }
        let message = format!("`{}` asked to be left alone for {shut_for:.0?}", self.upstream);
        Err(refusal(Kind::Overloaded, message, shut_for))
    }

    /// The breaker refuses: nothing was sent, and it says when to ask again.
    pub(super) fn is_broken(&self, at: Instant) -> Error {
        let message = format!("`{}` keeps failing and is left alone for a moment", self.upstream);
        refusal(Kind::Unavailable, message, at.saturating_duration_since(now()))
    }

    pub(super) fn is_full(&self, why: Why) -> Error {
        let message = match why {
            Why::Displaced => format!("too many calls are waiting for `{}`", self.upstream),
            Why::Overloaded | Why::Expired => {
                format!("`{}` is overloaded: its line does not get shorter", self.upstream)
            }
        };
        refusal(Kind::Overloaded, message, SHED_AGAIN)
    }

    pub(super) fn too_late(&self) -> Error {
        let message = format!("the deadline passed while waiting in line for `{}`", self.upstream);
        Error::new(Kind::DeadlineExceeded, Origin::Gateway, message)
    }
}

/// A refusal of the gate: nothing was sent, so any other target may be asked.
fn refusal(kind: Kind, message: String, wait: Duration) -> Error {
    Error::new(kind, Origin::Gateway, message)
        .with_retry(Retry::Unsent)
        .with_retry_after(Some(wait))
}
