//! Workers: each sends one request after the other, and counts how they ended.

use crate::{
    client::Client,
    exchange::{Class, Kept, exchange},
    line::Line,
    recorder::Recorder,
};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// A worker of a closed loop that could not connect waits so long: it would spin otherwise.
const PAUSE: Duration = Duration::from_millis(20);

/// What all workers share.
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) recorder: Mutex<Recorder>,
    pub(crate) number: AtomicU64,
    pub(crate) timeout: Duration,
    pub(crate) stopping: CancellationToken,
}

/// When a closed loop ends.
pub(crate) struct Turns {
    /// From when on requests count.
    pub(crate) from: Instant,
    pub(crate) until: Instant,
    /// Requests that may still be sent from then on.
    pub(crate) left: AtomicU64,
}

/// One that sends, with what it keeps between requests.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    kept: Kept,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, kept: Kept) -> Self {
        Self { shared, kept }
    }

    /// Sends what the line has, until it is closed.
    pub(crate) async fn serve(mut self, line: Arc<Line>) {
        while let Some(due) = line.take().await {
            self.send(due).await;
        }
    }

    /// Sends the next request when the last has ended, until the turns are over.
    pub(crate) async fn loop_over(mut self, turns: Arc<Turns>) {
        loop {
            let now = Instant::now();
            if now >= turns.until || self.shared.stopping.is_cancelled() {
                break;
            }
            let next = |left: u64| left.checked_sub(1);
            if now >= turns.from && turns.left.fetch_update(Relaxed, Relaxed, next).is_err() {
                break;
            }
            if self.send(now).await == Class::Connect {
                sleep(PAUSE).await;
            }
        }
    }

    /// Sends one request that was due then, and counts it.
    async fn send(&mut self, due: Instant) -> Class {
        let Shared { client, recorder, number, timeout, .. } = &*self.shared;
        let began = Instant::now();
        recorder.lock().began(began);
        let number = number.fetch_add(1, Relaxed);
        let ended = exchange(client, number, *timeout, began, &mut self.kept).await;
        let class = ended.class;
        recorder.lock().ended(due, began, ended);
        class
    }
}
