//! A deadline for one request after the other, at the price of one timer.
//!
//! # Why
//!
//! A timer set and cleared per request goes in and out of the runtime's wheel, twice for nothing:
//! hardly any request runs out of time. Deadlines here only ever grow, so a timer that is set for
//! an earlier one is early, never late: when it goes off it is set again.

use std::{future::poll_fn, pin::Pin, pin::pin, task::Poll};
use tokio::time::{Instant, Sleep, sleep_until};

/// A timer for deadlines that only grow, of one task.
#[derive(Default)]
pub(crate) struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// What `work` comes to, if it does before `deadline`.
    pub(crate) async fn within<T>(
        &mut self,
        deadline: Instant,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let mut work = pin!(work);
        // Not polled again while it runs: it knows whom to wake since it was set.
        let mut is_set = self.0.as_ref().is_some_and(|timer| !timer.is_elapsed());
        let timer = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            while !is_set || timer.is_elapsed() {
                if Instant::now() >= deadline {
                    return Poll::Ready(None);
                }
                timer.as_mut().reset(deadline);
                is_set = timer.as_mut().poll(cx).is_pending();
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn each_deadline_is_kept() {
        let mut alarm = Alarm::default();
        let second = Duration::from_secs(1);
        for (patience, work, is_done) in [
            (10, 2, true),
            // Set for the tenth second; this one ends in the twelfth.
            (10, 9, true),
            (10, 11, false),
            (10, 30, false),
            (2, 1, true),
            (2, 3, false),
        ] {
            let began = Instant::now();
            let done = alarm.within(began + patience * second, sleep(work * second)).await;
            assert_eq!(done.is_some(), is_done);
            let took = began.elapsed().as_secs();
            assert_eq!(took, u64::from(work.min(patience)), "{patience} {work}");
        }
    }
}
