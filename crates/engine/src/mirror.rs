//! Mirroring: copies of calls to a target whose answers nobody sees (SPEC §6.14).
//!
//! A copy must cost its call nothing. It starts only where the mirror takes it at once, is sent
//! once, and runs in a task of the mirror's own, which ends with the engine at the latest. It is
//! in no call's record and on no caller's account.

use crate::route::Target;
use futures_util::StreamExt;
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};
use tidegate_core::Call;
use tidegate_policy::{canary, timeout};
use tokio::task::JoinSet;

/// Copies of one model's calls in flight at once: each keeps its call's body alive.
const MAX_COPIES: usize = 64;
/// What a gate is told of a copy: it is no call's first attempt, so it earns no retries.
const NOT_THE_FIRST: u32 = 2;

/// Where copies of one model's calls go.
pub(crate) struct Mirror {
    target: Arc<Target>,
    options: canary::Mirror,
    // Dropped with the engine, which aborts what still runs.
    copies: Mutex<JoinSet<()>>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    copied: AtomicU64,
    skipped: AtomicU64,
    failed: AtomicU64,
}

/// What became of the copies of calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mirrored {
    /// Copies sent.
    pub copied: u64,
    /// Copies not made: the mirror had no room, or too many were in flight.
    pub skipped: u64,
    /// Copies sent whose answer was an error, or broke off.
    pub failed: u64,
}

impl Mirrored {
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            copied: self.copied + other.copied,
            skipped: self.skipped + other.skipped,
            failed: self.failed + other.failed,
        }
    }
}

impl Mirror {
    pub(crate) fn new(target: Target, options: canary::Mirror) -> Self {
        Self { target: Arc::new(target), options, copies: Mutex::default(), counts: Arc::default() }
    }

    /// Copies `call`, if it is its turn and there is room; never waits.
    pub(crate) fn copy(&self, call: &Call, clocks: &timeout::Options, roll: impl Fn() -> f64) {
        if self.options.share <= 0.0 || !self.options.copies(roll()) {
            return;
        }
        let mut copies = self.copies.lock();
        while copies.try_join_next().is_some() {}
        let permit = (copies.len() < MAX_COPIES)
            .then(|| self.target.gate.enter_at_once(call, NOT_THE_FIRST, clocks))
            .flatten();
        let Some(permit) = permit else {
            self.counts.skipped.fetch_add(1, Relaxed);
            return;
        };
        self.counts.copied.fetch_add(1, Relaxed);
        let (target, counts) = (self.target.clone(), self.counts.clone());
        let (call, clocks) = (call.clone(), *clocks);
        copies.spawn(async move {
            let failed = match target.send(&call, &clocks, permit, 1).await {
                Err(_) => true,
                Ok(mut reply) => loop {
                    match reply.body.next().await {
                        Some(Ok(_)) => {}
                        Some(Err(_)) => break true,
                        None => break false,
                    }
                },
            };
            counts.failed.fetch_add(u64::from(failed), Relaxed);
        });
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    pub(crate) fn mirrored(&self) -> Mirrored {
        Mirrored {
            copied: self.counts.copied.load(Relaxed),
            skipped: self.counts.skipped.load(Relaxed),
            failed: self.counts.failed.load(Relaxed),
        }
    }
}
