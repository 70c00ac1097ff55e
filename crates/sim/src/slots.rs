//! Slots and the queue before them: why latency rises with load.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The right to be worked on; dropping it lets the next in the queue go on.
pub(crate) type Slot = OwnedSemaphorePermit;

/// A number of slots, handed out in order of arrival.
#[derive(Debug)]
pub(crate) struct Slots {
    free: Arc<Semaphore>,
    total: usize,
    queue: usize,
    waiting: AtomicUsize,
}

/// The queue is full.
#[derive(Debug)]
pub(crate) struct Full;

impl Slots {
    pub(crate) fn new(total: usize, queue: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(total)), total, queue, waiting: AtomicUsize::new(0) }
    }

    /// Waits for a slot. Dropping the future leaves the queue.
    pub(crate) async fn enter(&self) -> Result<Slot, Full> {
        // The semaphore hands freed slots to waiters first, so this cannot overtake anybody.
        if let Ok(slot) = Arc::clone(&self.free).try_acquire_owned() {
            return Ok(slot);
        }
        let _waiting = Waiting::join(self)?;
        Ok(Arc::clone(&self.free).acquire_owned().await.expect("the semaphore is never closed"))
    }

    /// Slots taken.
    pub(crate) fn busy(&self) -> usize {
        self.total - self.free.available_permits().min(self.total)
    }

    /// Requests in the queue.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// What the number of busy slots does to per-token times.
    pub(crate) fn batch_factor(&self, slowdown: f64) -> f64 {
        1.0 + slowdown * self.busy().saturating_sub(1) as f64 / self.total as f64
    }
}

struct Waiting<'a>(&'a Slots);

impl<'a> Waiting<'a> {
    fn join(slots: &'a Slots) -> Result<Self, Full> {
        if slots.waiting.fetch_add(1, Relaxed) >= slots.queue {
            slots.waiting.fetch_sub(1, Relaxed);
            return Err(Full);
        }
        Ok(Self(slots))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}
