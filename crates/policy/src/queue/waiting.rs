//! What waits, and the two lists it stands in: its tenant's, and its class's by age.

use super::{Entry, Options, arena::Arena};
use std::time::{Duration, Instant};
use tidegate_core::Priority;

/// The list of one tenant's calls of one class.
pub(super) const TENANT: usize = 0;
/// The list of a class's impatient calls.
pub(super) const AGE: usize = 1;

/// Share of the time to the deadline that a call may stand in line without the line counting as
/// overloaded, and the share of its own service time.
const TARGET_OF_DEADLINE: u32 = 20;
const TARGET_OF_SERVICE: u32 = 4;
/// While the line is overloaded, nobody may wait for longer: a refusal is worth most at once.
/// (Maurer, "Fail at scale", goes from 100 ms to 5 ms.)
const TARGET_OVERLOADED: Duration = Duration::from_millis(12);

/// One call in line.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub(super) item: T,
    pub(super) number: u64,
    pub(super) class: Priority,
    /// Of the line's table of tenants.
    pub(super) tenant: u32,
    pub(super) cost: u64,
    pub(super) weight: u32,
    pub(super) pushed: Instant,
    /// How long it may wait before that is a sign of overload.
    pub(super) target: Duration,
    /// From here on it counts as of the class above.
    pub(super) aged_at: Instant,
    /// From here on there is no use in sending it.
    pub(super) too_late_at: Instant,
    links: [Links; 2],
}

#[derive(Clone, Copy, Debug, Default)]
struct Links {
    older: Option<u32>,
    newer: Option<u32>,
}

impl<T> Waiting<T> {
    pub(super) fn new(
        options: &Options,
        now: Instant,
        number: u64,
        tenant: u32,
        entry: &Entry,
        item: T,
    ) -> Self {
        let left = entry.deadline.saturating_duration_since(now);
        // A call that could not make it even if sent at once shows that the estimate is off:
        // were it believed, nothing would be sent any more and nothing learned.
        let service = if entry.service < left { entry.service } else { Duration::ZERO };
        Self {
            item,
            number,
            class: entry.class,
            tenant,
            cost: entry.cost,
            weight: entry.weight,
            pushed: now,
            target: target(options, left, entry.service),
            aged_at: now + left / 2,
            too_late_at: entry.deadline.checked_sub(service).unwrap_or(entry.deadline),
            links: [Links::default(); 2],
        }
    }

    /// The call after it in a list.
    pub(super) const fn newer(&self, link: usize) -> Option<u32> {
        self.links[link].newer
    }

    /// When it has waited for longer than its target.
    pub(super) fn over_target_at(&self, overloaded: bool) -> Instant {
        let most = if overloaded { TARGET_OVERLOADED } else { Duration::MAX };
        self.pushed + self.target.min(most)
    }
}

/// A twentieth of the time left and a quarter of the service time, within the configured bounds.
fn target(options: &Options, left: Duration, service: Duration) -> Duration {
    let allowed = (left / TARGET_OF_DEADLINE).min(options.target_max);
    let allowed =
        if service.is_zero() { allowed } else { allowed.min(service / TARGET_OF_SERVICE) };
    allowed.max(options.target)
}

/// A doubly linked list through the calls themselves: any of them leaves in one step.
#[derive(Debug, Default)]
pub(super) struct List<const LINK: usize> {
    oldest: Option<u32>,
    newest: Option<u32>,
}

impl<const LINK: usize> List<LINK> {
    pub(super) const fn oldest(&self) -> Option<u32> {
        self.oldest
    }

    pub(super) const fn newest(&self) -> Option<u32> {
        self.newest
    }

    pub(super) fn push<T>(&mut self, calls: &mut Arena<Waiting<T>>, id: u32) {
        calls[id].links[LINK] = Links { older: self.newest, newer: None };
        match self.newest {
            Some(before) => calls[before].links[LINK].newer = Some(id),
            None => self.oldest = Some(id),
        }
        self.newest = Some(id);
    }

    pub(super) fn unlink<T>(&mut self, calls: &mut Arena<Waiting<T>>, id: u32) {
        let Links { older, newer } = calls[id].links[LINK];
        match older {
            Some(older) => calls[older].links[LINK].newer = newer,
            None => self.oldest = newer,
        }
        match newer {
            Some(newer) => calls[newer].links[LINK].older = older,
            None => self.newest = older,
        }
    }
}
