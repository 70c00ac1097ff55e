//! Mirroring: copies of calls to a target whose answers nobody sees (SPEC §6.14).
//!
//! A copy must cost its call nothing. It starts only where the mirror takes it at once, is sent
//! once, and runs in a task of the mirror's own, which ends with the engine at the latest. It is
//! in no call's record and on no budget; the ledger has it under a cause of its own.

use crate::{
    account::{Account, Books},
    budgets::Reserved,
    route::Target,
};
use futures_util::StreamExt;
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};
use tidegate_core::{Call, Cause, MirrorState};
use tidegate_policy::{canary, timeout};
use tokio::task::JoinSet;

/// Copies of one model's calls in flight at once: each keeps its call's body alive.
const MAX_COPIES: usize = 64;
/// What a gate is told of a copy: it is no call's first attempt, so it earns no retries.
const NOT_THE_FIRST: u32 = 2;

/// Where copies of one model's calls go.
pub(crate) struct Mirror {
    target: Arc<Target>,
    books: Arc<Books>,
    options: canary::Mirror,
    // Dropped with the engine, which aborts what still runs.
    copies: Mutex<JoinSet<()>>,
    counts: Arc<Counts>,
}

/// What became of the copies, as [`MirrorState`] tells it.
#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    skipped: AtomicU64,
}

impl Mirror {
    pub(crate) fn new(target: Target, books: Arc<Books>, options: canary::Mirror) -> Self {
        Self {
            target: Arc::new(target),
            books,
            options,
            copies: Mutex::default(),
            counts: Arc::default(),
        }
    }

    /// Copies `call`, if it is its turn and there is room; never waits.
    pub(crate) fn copy(&self, call: &Call, clocks: &timeout::Options, roll: impl Fn() -> f64) {
        if self.options.share <= 0.0 || !self.options.copies(roll()) {
            return;
        }
        let mut copies = self.copies.lock();
        while copies.try_join_next().is_some() {}
        let permit = (copies.len() < MAX_COPIES)
            .then(|| self.target.gate.enter_uncounted(call, NOT_THE_FIRST, clocks))
            .flatten();
        let Some(permit) = permit else {
            self.counts.skipped.fetch_add(1, Relaxed);
            return;
        };
        self.counts.sent.fetch_add(1, Relaxed);
        let (page, free) = (self.books.open(call), Reserved::default());
        let account = Account::open(page, &self.target, 1, Cause::Mirror, free);
        let (target, counts) = (self.target.clone(), self.counts.clone());
        let (call, clocks) = (call.clone(), *clocks);
        copies.spawn(async move {
            let mut copy = Copied { counts, is_answered: false };
            let Ok(mut reply) = target.send(&call, &clocks, permit, account).await else { return };
            while let Some(chunk) = reply.body.next().await {
                if chunk.is_err() {
                    return;
                }
            }
            copy.is_answered = true;
        });
    }

    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Copies under way.
    pub(crate) fn copies(&self) -> usize {
        let mut copies = self.copies.lock();
        while copies.try_join_next().is_some() {}
        copies.len()
    }

    /// What became of the copies of `model`'s calls so far.
    pub(crate) fn state(&self, model: Arc<str>) -> MirrorState {
        let Counts { sent, answered, failed, skipped } = &*self.counts;
        // Those that ended are read first: a copy that ends meanwhile is then still in flight,
        // and no more have ended than were sent.
        let [answered, failed] = [answered, failed].map(|count| count.load(Acquire));
        MirrorState {
            model,
            upstream: self.target.upstream.clone(),
            upstream_model: self.target.model.clone(),
            share: self.options.share,
            sent: sent.load(Relaxed),
            answered,
            failed,
            skipped: skipped.load(Relaxed),
        }
    }
}

/// A copy under way; however it ends, a panic included, it is counted.
struct Copied {
    counts: Arc<Counts>,
    is_answered: bool,
}

impl Drop for Copied {
    fn drop(&mut self) {
        let Counts { answered, failed, .. } = &*self.counts;
        let ended = if self.is_answered { answered } else { failed };
        ended.fetch_add(1, Release);
    }
}
