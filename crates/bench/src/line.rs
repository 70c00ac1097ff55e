//! The line between the schedule and those that send: requests that are due, and idle workers.
//!
//! # Why the latest idle first
//!
//! Each worker keeps a connection. The one that sent last has the connection least likely to have
//! been closed in the meantime, and its memory is the warmest; a load that shrinks leaves the
//! rest alone.

use parking_lot::Mutex;
use std::{collections::VecDeque, pin::pin};
use tokio::{sync::Notify, time::Instant};

/// Requests that may wait for a worker; more are dropped, and counted.
const MAX_WAITING: usize = 1 << 20;

/// Requests that are due, for workers to take.
pub(crate) struct Line {
    state: Mutex<State>,
    bell: Notify,
    most_workers: usize,
    /// Whether requests wait when all workers are busy.
    waits: bool,
}

struct State {
    due: VecDeque<Instant>,
    /// Workers that wait and were not called.
    idle: usize,
    workers: usize,
    is_open: bool,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handed {
    /// A worker takes it, or will.
    Taken,
    /// One more worker has to be started, to take it.
    Unmanned,
    /// Nobody will.
    Dropped,
}

impl Line {
    pub(crate) fn new(most_workers: usize, waits: bool) -> Self {
        let state = State { due: VecDeque::new(), idle: 0, workers: 0, is_open: true };
        Self { state: Mutex::new(state), bell: Notify::new(), most_workers, waits }
    }

    /// Hands over a request that was due then.
    pub(crate) fn hand(&self, due: Instant) -> Handed {
        let mut state = self.state.lock();
        let handed = if state.idle > 0 {
            state.idle -= 1;
            self.bell.notify_last();
            Handed::Taken
        } else if state.workers < self.most_workers {
            state.workers += 1;
            Handed::Unmanned
        } else if self.waits && state.due.len() < MAX_WAITING {
            Handed::Taken
        } else {
            return Handed::Dropped;
        };
        state.due.push_back(due);
        handed
    }

    /// For a worker: the next request, when there is one; `None` when no more will come.
    pub(crate) async fn take(&self) -> Option<Instant> {
        loop {
            let mut called = pin!(self.bell.notified());
            {
                let mut state = self.state.lock();
                if let Some(due) = state.due.pop_front() {
                    return Some(due);
                }
                if !state.is_open {
                    return None;
                }
                state.idle += 1;
                // Under the lock: whoever counts us as idle can call us.
                called.as_mut().enable();
            }
            called.await;
        }
    }

    /// No more will come: workers go when the line is empty.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.is_open = false;
        state.idle = 0;
        self.bell.notify_waiters();
    }

    /// Those that still wait, and will be sent by nobody.
    pub(crate) fn clear(&self) -> VecDeque<Instant> {
        std::mem::take(&mut self.state.lock().due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Handed::*;

    #[tokio::test]
    async fn an_open_loop_drops_what_finds_nobody() {
        let line = Line::new(2, false);
        let now = Instant::now();
        assert_eq!([line.hand(now), line.hand(now), line.hand(now)], [Unmanned, Unmanned, Dropped]);
        assert_eq!((line.take().await, line.take().await), (Some(now), Some(now)));
        let (taken, ()) = tokio::join!(line.take(), async {
            assert_eq!([line.hand(now), line.hand(now)], [Taken, Dropped]);
        });
        assert_eq!(taken, Some(now));
    }

    #[tokio::test]
    async fn a_bounded_one_lets_them_wait() {
        let line = Line::new(1, true);
        let now = Instant::now();
        assert_eq!([line.hand(now), line.hand(now), line.hand(now)], [Unmanned, Taken, Taken]);
        line.close();
        assert_eq!(line.take().await, Some(now));
        assert_eq!(line.clear().len(), 2);
        assert_eq!(line.take().await, None);
    }

    #[tokio::test]
    async fn whoever_finds_its_request_gone_waits_on() {
        let line = Line::new(2, false);
        let now = Instant::now();
        let (first, ()) = tokio::join!(line.take(), async {
            line.hand(now);
            // A worker that has just ended is quicker than the one called.
            assert_eq!(line.take().await, Some(now));
            tokio::task::yield_now().await;
            line.hand(now + std::time::Duration::from_secs(1));
        });
        assert_eq!(first, Some(now + std::time::Duration::from_secs(1)));
    }
}
