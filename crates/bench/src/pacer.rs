//! Waits until requests are due.
//!
//! # Why a thread
//!
//! The runtime's timer counts in milliseconds, and fires late by one or two: more than a good
//! gateway adds to a call. A thread that sleeps on the system's clock and looks at it for the last
//! microseconds is on time, and is not held up by the answers being read. In-process servers are driven by the runtime's timer,
//! which can be virtual.

use crate::arrivals::Schedule;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{Instant, sleep_until},
};

/// Due requests that may wait to be taken; more are lost, and counted.
const MAX_DUE: usize = 1 << 20;
/// Longest sleep: how late the thread notices that nobody listens any more.
const NAP: Duration = Duration::from_millis(50);
/// How late Linux wakes a sleeper, by default: it is asked to wake so much earlier.
const SLACK: Duration = Duration::from_micros(50);

/// Tells when the next request is due.
pub(crate) enum Pacer {
    Timer { schedule: Schedule, start: Instant },
    Thread { due: mpsc::Receiver<Instant>, lost: Arc<AtomicU64> },
}

impl Pacer {
    pub(crate) const fn on_timer(schedule: Schedule, start: Instant) -> Self {
        Self::Timer { schedule, start }
    }

    /// # Errors
    ///
    /// When the system has no thread to give.
    pub(crate) fn on_thread(schedule: Schedule, start: Instant) -> io::Result<Self> {
        let (sender, due) = mpsc::channel(MAX_DUE);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&lost);
        thread::Builder::new().name("pacer".into()).spawn(move || {
            for due in schedule {
                let due = start + due;
                if !nap_until(due, &sender) {
                    return;
                }
                match sender.try_send(due) {
                    Ok(()) => {}
                    Err(TrySendError::Full(_)) => drop(counter.fetch_add(1, Relaxed)),
                    Err(TrySendError::Closed(_)) => return,
                }
            }
        })?;
        Ok(Self::Thread { due, lost })
    }

    /// When the next request was due, at or after that time; `None` at the schedule's end.
    ///
    /// Cancelling the future loses nothing but, on a timer, the request waited for.
    pub(crate) async fn next(&mut self) -> Option<Instant> {
        match self {
            Self::Timer { schedule, start } => {
                let due = *start + schedule.next()?;
                sleep_until(due).await;
                Some(due)
            }
            Self::Thread { due, .. } => due.recv().await,
        }
    }

    /// Requests nobody took in time.
    pub(crate) fn lost(&self) -> u64 {
        match self {
            Self::Timer { .. } => 0,
            Self::Thread { lost, .. } => lost.load(Relaxed),
        }
    }

    /// Those that are due and not taken, at the end of a run.
    pub(crate) fn left(&mut self) -> Vec<Instant> {
        match self {
            Self::Timer { schedule, start } => {
                let now = Instant::now();
                schedule.map(|due| *start + due).take_while(|due| *due <= now).collect()
            }
            Self::Thread { due, .. } => std::iter::from_fn(|| due.try_recv().ok()).collect(),
        }
    }
}

/// Whether it is worth to go on: somebody still listens.
fn nap_until(due: Instant, sender: &mpsc::Sender<Instant>) -> bool {
    loop {
        let wait = due.into_std().saturating_duration_since(std::time::Instant::now());
        if wait.is_zero() {
            return true;
        }
        if wait <= SLACK {
            std::hint::spin_loop();
            continue;
        }
        thread::sleep((wait - SLACK).min(NAP));
        if sender.is_closed() {
            return false;
        }
    }
}
