//! Waits until requests are due.
//!
//! # Why a clock of its own
//!
//! The runtime's timer counts in milliseconds, and fires late by one or two: more than a good
//! gateway adds to a call. Linux's `timerfd` is as precise as the system's clock, and wakes the
//! thread that sends, in the same wait as its sockets: a thread that sleeps for it would be woken
//! to wake it. In-process servers are driven by the runtime's timer, which can be virtual; so is
//! a run on other systems, in milliseconds. How late requests were sent is reported with all of
//! them.

use crate::arrivals::Schedule;
use std::io;
use tokio::{
    task::yield_now,
    time::{Instant, sleep_until},
};

/// Requests told in a row, when they are late, before others have a turn.
const IN_A_ROW: u32 = 16;

/// Tells when the next request is due.
pub(crate) struct Pacer {
    schedule: Schedule,
    start: Instant,
    clock: Clock,
    in_a_row: u32,
}

enum Clock {
    Runtime,
    #[cfg(target_os = "linux")]
    Timer(timer::Timer),
}

impl Pacer {
    /// Paced by the runtime's timer.
    pub(crate) const fn on_runtime(schedule: Schedule, start: Instant) -> Self {
        Self { schedule, start, clock: Clock::Runtime, in_a_row: 0 }
    }

    /// Paced by the system's clock.
    ///
    /// # Errors
    ///
    /// When the system has no timer to give.
    #[cfg(target_os = "linux")]
    pub(crate) fn on_clock(schedule: Schedule, start: Instant) -> io::Result<Self> {
        let clock = Clock::Timer(timer::Timer::new()?);
        Ok(Self { schedule, start, clock, in_a_row: 0 })
    }

    /// Paced by the runtime's timer, for want of a better one.
    ///
    /// # Errors
    ///
    /// None.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn on_clock(schedule: Schedule, start: Instant) -> io::Result<Self> {
        Ok(Self::on_runtime(schedule, start))
    }

    /// When the next request was due, and when that is now; `None` at the schedule's end.
    ///
    /// Must not be dropped half-way: the request waited for would be lost.
    ///
    /// # Errors
    ///
    /// When the system's timer fails.
    pub(crate) async fn next(&mut self) -> io::Result<Option<(Instant, Instant)>> {
        let Some(due) = self.next_due() else { return Ok(None) };
        self.in_a_row += 1;
        loop {
            let now = Instant::now();
            if due <= now && self.in_a_row < IN_A_ROW {
                return Ok(Some((due, now)));
            }
            self.in_a_row = 0;
            match &self.clock {
                _ if due <= now => yield_now().await,
                Clock::Runtime => sleep_until(due).await,
                #[cfg(target_os = "linux")]
                Clock::Timer(timer) => timer.sleep(due - now).await?,
            }
        }
    }

    /// The next request's time, without waiting for it.
    pub(crate) fn next_due(&mut self) -> Option<Instant> {
        Some(self.start + self.schedule.next()?)
    }
}

#[cfg(target_os = "linux")]
mod timer {
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };
    use std::{future::poll_fn, io, os::fd::OwnedFd, time::Duration};
    use tokio::io::{Interest, unix::AsyncFd};

    /// A timer of the system that the runtime waits for.
    pub(super) struct Timer(AsyncFd<OwnedFd>);

    impl Timer {
        #[expect(
            deprecated,
            reason = "an owned descriptor stays what it is until it is dropped, which is what \
                      the unsafe form that replaces this one asks its caller to see to"
        )]
        pub(super) fn new() -> io::Result<Self> {
            let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
            let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            Ok(Self(AsyncFd::with_interest(timer, Interest::READABLE)?))
        }

        /// Waits about so long; may end early.
        ///
        /// Setting the timer takes back what it told before, so nobody reads it.
        pub(super) async fn sleep(&self, time: Duration) -> io::Result<()> {
            const NONE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
            let late = |_| io::Error::from(io::ErrorKind::InvalidInput);
            let time = Timespec::try_from(time.max(Duration::from_nanos(1))).map_err(late)?;
            let once = Itimerspec { it_interval: NONE, it_value: time };
            timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
            poll_fn(|cx| self.0.poll_read_ready(cx)).await?.clear_ready();
            Ok(())
        }
    }
}
