//! Admission: who may enter, and how many at once. What it grants is given back by dropping it.

use crate::{
    attempt::{later, now},
    limits::{self, Amount, Hold},
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};
use std::time::Duration;
use tidegate_core::{Call, Error, Kind, Money, Origin, Patience, Result};
use tidegate_policy::memory;
use tokio::time::sleep;

/// Everything admission granted one call.
pub(crate) struct Lease {
    /// What it holds of its caller's, team's and model's limits; `None` where there are none.
    pub(crate) limits: Option<Hold>,
    _slot: Slot,
    _bytes: Bytes,
}

/// What the calls of one moment hold; all zero once the last has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Slots of the gateway's own.
    pub slots: usize,
    /// Bytes of the memory budget.
    pub bytes: usize,
    /// Slots of tenants with limits.
    pub tenant_slots: usize,
    /// Slots of teams, models and upstreams with limits.
    pub limit_slots: usize,
    /// Tokens reserved of limits.
    pub limit_tokens: u64,
    /// Money reserved of limits.
    pub limit_cost: Money,
    /// Copies under way to mirrors; these may outlive their calls, not the calls' deadlines.
    pub copies: usize,
    /// Money of budgets.
    pub reserved: Money,
}

/// Decides whether a call may enter.
pub(crate) struct Admission {
    max_in_flight: usize,
    in_flight: Arc<AtomicUsize>,
    memory: memory::Options,
    held_bytes: Arc<AtomicUsize>,
    limits: limits::Table,
}

impl Admission {
    pub(crate) fn new(
        max_in_flight: usize,
        memory: memory::Options,
        limits: limits::Table,
    ) -> Self {
        Self {
            max_in_flight,
            in_flight: Arc::default(),
            memory,
            held_bytes: Arc::default(),
            limits,
        }
    }

    /// Admits `call`, which may take `needs` of limits. Where others are refused for a limit of
    /// theirs, batch rows wait.
    ///
    /// # Errors
    ///
    /// Why it is not admitted, or not before its deadline.
    pub(crate) async fn enter(&self, call: &Call, needs: Amount) -> Result<Lease> {
        loop {
            let refused = match self.admit(call, needs) {
                Err(error) if call.patience == Patience::Free => error,
                admitted => return admitted,
            };
            match limits::wait(&refused) {
                Some(wait) if later(now(), wait) < call.deadline => sleep(wait).await,
                _ => return Err(refused),
            }
        }
    }

    /// Admits `call`, or says why not.
    fn admit(&self, call: &Call, needs: Amount) -> Result<Lease> {
        let now = now();
        if call.deadline <= now {
            return Err(Error::new(
                Kind::DeadlineExceeded,
                Origin::Caller,
                "the deadline had passed before the call was admitted",
            ));
        }
        let slot = Slot::take(&self.in_flight, self.max_in_flight)?;
        let bytes = self.take_bytes(call)?;
        let limits = self.limits.admit(call, needs, now)?;
        Ok(Lease { limits, _slot: slot, _bytes: bytes })
    }

    /// Takes what the call's body needs of the memory budget. Batch rows are bounded by their job.
    fn take_bytes(&self, call: &Call) -> Result<Bytes> {
        let (held, more) = (self.held_bytes.load(Relaxed), call.payload.len());
        if call.patience == Patience::Counted
            && let Err(full) = self.memory.admit(call.priority, held, more)
        {
            let message = format!(
                "the calls in flight hold all of the {} bytes there are for class {}; try again \
                 shortly",
                full.limit_bytes,
                call.priority.name()
            );
            return Err(Error::new(Kind::Overloaded, Origin::Gateway, message)
                .with_retry_after(Some(Duration::from_secs(1))));
        }
        self.held_bytes.fetch_add(more, Relaxed);
        Ok(Bytes { held: self.held_bytes.clone(), count: more })
    }

    /// Calls in flight over how many there may be.
    pub(crate) fn in_flight_share(&self) -> f64 {
        self.in_flight() as f64 / self.max_in_flight.max(1) as f64
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// What was granted and not given back yet.
    pub(crate) fn held(&self) -> Held {
        let (limit_slots, Amount { tokens, cost }) = self.limits.held();
        Held {
            slots: self.in_flight(),
            bytes: self.held_bytes.load(Relaxed),
            tenant_slots: self.limits.callers_in_flight(),
            limit_slots,
            limit_tokens: tokens,
            limit_cost: cost,
            copies: 0,
            reserved: Money::ZERO,
        }
    }
}

/// A call's part of the memory budget.
struct Bytes {
    held: Arc<AtomicUsize>,
    count: usize,
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.held.fetch_sub(self.count, Relaxed);
    }
}

/// One of the gateway's own slots.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(in_flight: &Arc<AtomicUsize>, max: usize) -> Result<Self> {
        // Taken first and given back when it was one too many: no loop, and never above the limit.
        let slot = Self(in_flight.clone());
        if in_flight.fetch_add(1, Relaxed) < max {
            return Ok(slot);
        }
        let message = format!("the gateway has {max} calls in flight already; try again shortly");
        Err(Error::new(Kind::Overloaded, Origin::Gateway, message)
            .with_retry_after(Some(Duration::from_secs(1))))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
