//! Spacing: slots are handed out one after the other where taking all at once would hurt others.
//!
//! # Why
//!
//! Nobody is interrupted once sent. When many slots are free at one instant and one kind of work
//! takes them all, they all come back at one instant too, and so on for ever: a convoy. Whoever
//! comes in between waits for a whole answer of somebody else, though they are first in line.
//! Handed out evenly, one of twenty slots comes back every twentieth of the time an answer takes,
//! and that is all the first in line ever waits.
//!
//! So in two cases slots are handed out only a little faster than they come back, which is
//! enough to use all of them:
//!
//! - to a class, while a higher one has called in the last seconds. It leaves a tenth of the slots
//!   free as well (*trunk reservation*, as telephone exchanges do it): callers come in bunches,
//!   and the second of three would wait already;
//! - to everybody in a line that is overloaded: it is a noisy tenant's, and the others are in it.
//!
//! Without either a burst is sent as it comes.

use std::time::{Duration, Instant};
use tidegate_core::Priority;

/// A class that has not called for this long needs no room.
const REMEMBERED: Duration = Duration::from_secs(10);
/// Share of the mean time between two slots coming back.
const SHARE: f64 = 0.95;
/// However long the answers, a free slot is not kept from anybody for longer.
const MOST: Duration = Duration::from_secs(1);
/// One in so many slots is left free, rounded down: with fewer, none.
const LEFT_FREE: u32 = 10;
/// Timers fire late: that much is caught up.
const CATCH_UP: Duration = Duration::from_millis(5);
/// Weight of the newest attempt in the mean time that slots are held. Down is quick: after an
/// hour of timeouts, good answers must not wait for the mean.
const LONGER: f64 = 0.05;
const SHORTER: f64 = 0.3;

/// When which class may take a slot of one upstream.
#[derive(Debug)]
pub struct Spacing {
    /// When interactive and default calls came last.
    came: [Option<Instant>; 2],
    /// When a lower class may take the next slot.
    next: Instant,
    /// How long a slot is held, on average, in seconds.
    held: f64,
}

impl Spacing {
    /// Before the first call.
    pub const fn new(now: Instant) -> Self {
        Self { came: [None; 2], next: now, held: 0.0 }
    }

    /// A call of `class` has come.
    pub fn came(&mut self, now: Instant, class: Priority) {
        if let Some(came) = self.came.get_mut(class as usize) {
            *came = Some(now);
        }
    }

    /// A slot has come back after `held`.
    pub fn left(&mut self, held: Duration) {
        let held = held.as_secs_f64();
        let weight = if held < self.held { SHORTER } else { LONGER };
        self.held += if self.held > 0.0 { weight * (held - self.held) } else { held };
    }

    /// The lowest class that may take one of the `free` slots of `limit` at `now`, if any may;
    /// `overloaded` are classes whose line is.
    pub fn lowest(
        &self,
        now: Instant,
        free: u32,
        limit: u32,
        overloaded: impl Fn(Priority) -> bool,
    ) -> Option<Priority> {
        let highest = self.highest(now);
        match (now >= self.next, free > limit / LEFT_FREE) {
            (true, true) => Some(Priority::Bulk),
            (true, false) => Some(highest),
            (false, _) => Some(highest).filter(|class| !overloaded(*class)),
        }
    }

    /// When all classes may take one, if enough are free.
    pub const fn next(&self) -> Instant {
        self.next
    }

    /// A call of `class`, whose line may be `overloaded`, has taken one of `limit` slots.
    pub fn took(&mut self, now: Instant, class: Priority, limit: u32, overloaded: bool) {
        if class <= self.highest(now) && !overloaded {
            return;
        }
        let gap = Duration::from_secs_f64(SHARE * self.held / f64::from(limit.max(1))).min(MOST);
        let oldest = now.checked_sub(CATCH_UP).unwrap_or(now);
        // Copies and hedges take slots without waiting for this: they must not push it far away.
        self.next = (self.next.max(oldest) + gap).min(now + MOST);
    }

    /// The highest class that calls these days; bulk when neither of the others does.
    fn highest(&self, now: Instant) -> Priority {
        let calls = |came: Option<Instant>| {
            came.is_some_and(|came| now.saturating_duration_since(came) < REMEMBERED)
        };
        match self.came {
            [interactive, _] if calls(interactive) => Priority::Interactive,
            [_, default] if calls(default) => Priority::Default,
            _ => Priority::Bulk,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Priority::{Bulk, Default, Interactive};

    /// Twenty slots held for 200 ms: one comes back every 10 ms.
    struct Server {
        spacing: Spacing,
        start: Instant,
        overloaded: Option<Priority>,
    }

    impl Server {
        fn new() -> Self {
            let start = Instant::now();
            let mut spacing = Spacing::new(start);
            spacing.left(Duration::from_millis(200));
            Self { spacing, start, overloaded: None }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        fn came(&mut self, ms: u64, class: Priority) {
            self.spacing.came(self.at(ms), class);
        }

        fn took(&mut self, ms: u64, class: Priority) {
            self.spacing.took(self.at(ms), class, 20, self.overloaded == Some(class));
        }

        #[track_caller]
        fn check(&self, ms: u64, free: u32, lowest: Option<Priority>) {
            let overloaded = |class| self.overloaded == Some(class);
            assert_eq!(self.spacing.lowest(self.at(ms), free, 20, overloaded), lowest);
        }
    }

    #[test]
    fn alone_a_class_takes_all_at_once() {
        let mut server = Server::new();
        server.came(0, Bulk);
        for free in (3..=20).rev() {
            server.check(0, free, Some(Bulk));
            server.took(0, Bulk);
        }
        server.check(0, 1, Some(Bulk));
    }

    #[test]
    fn beside_a_higher_class_lower_ones_take_turns() {
        let mut server = Server::new();
        server.came(5, Interactive);
        server.took(5, Bulk);
        server.check(9, 19, Some(Interactive));
        assert_eq!(server.spacing.next(), server.start + Duration::from_micros(9_500));
        server.took(9, Interactive);
        server.check(10, 18, Some(Bulk));
        server.took(10, Default);
        server.check(15, 17, Some(Interactive));
        // A timer that fires late loses 5 ms at most.
        server.check(100, 20, Some(Bulk));
        server.took(100, Bulk);
        assert_eq!(server.spacing.next(), server.start + Duration::from_micros(104_500));
    }

    #[test]
    fn a_tenth_is_left_to_the_higher_class() {
        let mut server = Server::new();
        server.check(0, 1, Some(Bulk));
        server.came(0, Default);
        server.check(0, 3, Some(Bulk));
        server.check(0, 2, Some(Default));
    }

    #[test]
    fn in_an_overloaded_line_everybody_takes_turns() {
        let mut server = Server { overloaded: Some(Default), ..Server::new() };
        server.came(5, Default);
        server.took(5, Default);
        server.check(9, 19, None);
        server.check(10, 19, Some(Bulk));
        server.came(11, Interactive);
        server.took(11, Default);
        server.check(12, 10, Some(Interactive));
    }

    #[test]
    fn who_has_not_called_for_long_needs_no_room() {
        let mut server = Server::new();
        server.came(0, Interactive);
        server.came(5_000, Default);
        server.took(11_000, Default);
        server.check(11_000, 9, Some(Bulk));
        server.took(11_000, Bulk);
        server.check(11_000, 9, Some(Default));
    }

    #[test]
    fn a_slot_is_kept_from_nobody_for_more_than_a_second() {
        let start = Instant::now();
        let mut spacing = Spacing::new(start);
        spacing.left(Duration::from_secs(600));
        spacing.came(start, Interactive);
        spacing.took(start, Bulk, 2, false);
        assert!(spacing.next() <= start + MOST);
        (0..20).for_each(|_| spacing.left(Duration::from_millis(50)));
        let later = start + Duration::from_secs(5);
        spacing.took(later, Bulk, 2, false);
        assert!(spacing.next() <= later + Duration::from_millis(500), "soon forgotten");
    }
}
