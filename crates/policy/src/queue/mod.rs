//! Queue: the line before an upstream's gate, in which order calls leave it, and which never do.
//!
//! # Why
//!
//! When more comes in than an upstream can take, somebody waits or is refused; the question is
//! who. One line, first come first served, answers badly: a batch stands in front of a person,
//! one busy tenant in front of all others, and once the line is as long as the callers' patience
//! every call is served just after its caller has gone, so that a busy server does no good at
//! all. Here:
//!
//! - **Classes share by weight** (start-time fair queueing: Goyal, Vin and Cheng 1996). Bulk gets
//!   its tenth whatever the others do; interactive, while within its share, is always next.
//! - **Tenants of a class share evenly**, by tokens, by the same rule. A thousand calls of one do
//!   not delay another's.
//! - **A standing line is shed, not served late.** While it is overloaded (see `codel`) each
//!   tenant's newest call goes first, and while the oldest call is over its target each call that
//!   comes in pushes two out: the oldest, or the oldest of a tenant who has far more in line.
//!   Nobody is pushed out where nobody comes: a burst that is only slow to drain is served whole.
//! - **What cannot be answered in time is not sent.**
//! - **Patient calls** (batch rows) wait: they are not shed, do not count as overload, and leave
//!   by being served, by their deadline, or by being taken out.
//!
//! The least *start* tag is served, not the least finish tag: which call of a tenant is next may
//! change while it waits (newest first), and what it costs matters only once it is served.
//!
//! # Cost
//!
//! Push, pop and remove are O(log n) in what waits. Calls stand in linked lists in one table, so
//! a caller who goes away leaves nothing behind.

mod arena;
mod codel;
mod line;
#[cfg(test)]
mod random;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod waiting;

use crate::setting;
use arena::Arena;
use line::{Line, charge};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};
use tidegate_core::Priority;
use waiting::Waiting;

/// Calls shed from an overloaded line for each that comes in, at most.
const SHED_PER_PUSH: u32 = 2;
const CLASSES: [Priority; 3] = [Priority::Interactive, Priority::Default, Priority::Bulk];

/// Settings of the line before an upstream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Calls with a waiting caller that may stand in line. Each class owns its share of the
    /// places by weight and may use what others leave free; when the line is full, borrowed
    /// places are taken back, the lowest class's first. Default 1024.
    pub max_waiting: u32,
    /// Batch rows that may stand in line. Default 65536.
    pub max_patient: u32,
    /// Shares of the classes when all of them wait.
    pub weights: Weights,
    /// A line is overloaded when its oldest call was over its target for this long. Default
    /// "100ms".
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub interval: Duration,
    /// The wait that is always allowed. Default "5ms".
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub target: Duration,
    /// The longest wait that is allowed: a call's target is 5 % of the time to its deadline or a
    /// quarter of the time it is expected to take, whichever is less, but from `target` to this.
    /// Raise it where callers would rather wait than be refused. Default "250ms".
    #[serde(with = "setting::duration")]
    #[schemars(with = "String")]
    pub target_max: Duration,
}

/// Shares of the priority classes, relative to each other.
///
/// A call that has waited for half of its time is charged at the weight of the class above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Weights {
    /// From 1. Default 70.
    pub interactive: u32,
    /// From 1. Default 20.
    pub default: u32,
    /// From 1. Default 10: a tenth when all classes wait.
    pub bulk: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_waiting: 1024,
            max_patient: 65_536,
            weights: Weights::default(),
            interval: Duration::from_millis(100),
            target: Duration::from_millis(5),
            target_max: Duration::from_millis(250),
        }
    }
}

impl Default for Weights {
    fn default() -> Self {
        Self { interactive: 70, default: 20, bulk: 10 }
    }
}

impl Weights {
    fn of(self, class: Priority) -> u32 {
        let weight = match class {
            Priority::Interactive => self.interactive,
            Priority::Default => self.default,
            Priority::Bulk => self.bulk,
        };
        weight.max(1)
    }
}

/// What the line has to know of a call.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its class.
    pub class: Priority,
    /// Whose it is.
    pub tenant: Arc<str>,
    /// What it takes, in tokens; at least 1 is charged.
    pub cost: u64,
    /// The tenant's share among the tenants of the class; usually 1.
    pub weight: u32,
    /// The caller is gone then.
    pub deadline: Instant,
    /// How long it is expected to take once sent; zero where nothing is known.
    pub service: Duration,
    /// Never shed, only waits.
    pub patient: bool,
}

/// A place in line; names one call for ever, also after it has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    id: u32,
    number: u64,
}

/// There was no place, and none could be made; holds what was to be pushed.
#[derive(Debug, PartialEq, Eq)]
pub struct Full<T>(pub T);

/// A call that left the line without being served, to be answered with an error.
#[derive(Debug, PartialEq, Eq)]
pub struct Lost<T> {
    /// The waiter.
    pub item: T,
    /// Its class.
    pub class: Priority,
    /// Why it left.
    pub why: Why,
}

/// Why a call left the line without being served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It could not be answered before its deadline any more.
    Expired,
    /// The line stood for too long: shed at the old end.
    Overloaded,
    /// The line was full and another call had more right to the place.
    Displaced,
}

/// The line; `T` is the handle by which a waiter is woken.
#[derive(Debug)]
pub struct Queue<T> {
    options: Options,
    calls: Arena<Waiting<T>>,
    lines: [Line; 3],
    /// All calls by when there is no use in sending them.
    too_late: BTreeSet<(Instant, u32)>,
    /// Start tag of the class served last.
    tag: u64,
    pushed: u64,
}

impl<T> Queue<T> {
    /// An empty line.
    pub fn new(options: Options) -> Self {
        Self {
            options,
            calls: Arena::new(),
            lines: Default::default(),
            too_late: BTreeSet::new(),
            tag: 0,
            pushed: 0,
        }
    }

    /// Puts a call in line. Those who have to leave for it, or are too late, are added to `lost`.
    ///
    /// # Errors
    ///
    /// [`Full`] when there is no place and nobody with less right to one.
    pub fn push(
        &mut self,
        now: Instant,
        entry: Entry,
        item: T,
        lost: &mut Vec<Lost<T>>,
    ) -> Result<Ticket, Full<T>> {
        self.expire(now, lost);
        let class = entry.class as usize;
        self.lines[class].observe(now, self.options.interval, &self.calls);
        if !entry.patient {
            self.shed(now, class, lost);
        }
        if !self.has_room(&entry, lost) {
            return Err(Full(item));
        }
        self.pushed += 1;
        let tenant = self.lines[class].tenant(entry.tenant.clone(), entry.patient);
        let call = Waiting::new(&self.options, now, self.pushed, tenant, &entry, item);
        let too_late_at = call.too_late_at;
        let id = self.calls.insert(call);
        self.too_late.insert((too_late_at, id));
        let line = &mut self.lines[class];
        if line.is_empty() {
            line.start = line.start.max(self.tag);
        }
        line.push(&mut self.calls, id);
        Ok(Ticket { id, number: self.pushed })
    }

    /// Takes out the call to be sent next, of classes down to `lowest`. Those who are too late are
    /// added to `lost`.
    pub fn pop(&mut self, now: Instant, lowest: Priority, lost: &mut Vec<Lost<T>>) -> Option<T> {
        self.expire(now, lost);
        let waiting = CLASSES
            .into_iter()
            .filter(|class| *class <= lowest && !self.lines[*class as usize].is_empty());
        let class = waiting.min_by_key(|class| (self.lines[*class as usize].start, *class))?;
        let line = &mut self.lines[class as usize];
        line.observe(now, self.options.interval, &self.calls);
        let id = line.next()?;
        let call = &self.calls[id];
        let served_as = if now >= call.aged_at { above(class) } else { class };
        self.tag = self.tag.max(line.start);
        let cost = charge(call.cost, self.options.weights.of(served_as));
        line.start = line.start.saturating_add(cost);
        line.serve(call);
        Some(self.take_out(id).item)
    }

    /// Takes a call out whose caller went away; `None` when it has left already.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let call = self.calls.get(ticket.id)?;
        (call.number == ticket.number).then(|| self.take_out(ticket.id).item)
    }

    /// Takes out the calls that are too late by now.
    pub fn expire(&mut self, now: Instant, lost: &mut Vec<Lost<T>>) {
        while let Some(&(at, id)) = self.too_late.first()
            && at <= now
        {
            self.lose(id, Why::Expired, lost);
        }
    }

    /// When the next call is too late: the moment to call [`Queue::expire`].
    pub fn next_expiry(&self) -> Option<Instant> {
        self.too_late.first().map(|(at, _)| *at)
    }

    /// Calls in line.
    pub fn len(&self) -> usize {
        self.too_late.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.too_late.is_empty()
    }

    /// Whether the line of `class` stands because more comes in than goes out.
    pub const fn is_overloaded(&self, class: Priority) -> bool {
        self.lines[class as usize].overloaded()
    }

    /// Calls of `class` in line, patient ones included.
    pub const fn len_of(&self, class: Priority) -> usize {
        let line = &self.lines[class as usize];
        line.impatient() as usize + line.patient() as usize
    }

    /// How long the oldest call that is neither bulk nor patient has been waiting: the delay that
    /// callers feel.
    pub fn delay(&self, now: Instant) -> Duration {
        self.felt().map(|call| now.saturating_duration_since(call.pushed)).max().unwrap_or_default()
    }

    /// The delay over what is allowed: 1 and above is overload. For `load`'s ladder.
    ///
    /// Bulk does not count: its line may stand for as long as the others have what they need.
    pub fn pressure(&self, now: Instant) -> f64 {
        let pressures = self.felt().map(|call| {
            let waited = now.saturating_duration_since(call.pushed).as_secs_f64();
            let pressure = waited / call.target.as_secs_f64().max(f64::MIN_POSITIVE);
            // Shedding keeps the delay at its target: the overload is no less for that.
            let overloaded = self.lines[call.class as usize].overloaded();
            if overloaded { pressure.max(1.0) } else { pressure }
        });
        pressures.fold(0.0, f64::max)
    }

    /// The oldest impatient calls of the classes that callers wait for.
    fn felt(&self) -> impl Iterator<Item = &Waiting<T>> {
        let lines = [Priority::Interactive, Priority::Default].map(|class| class as usize);
        lines.into_iter().filter_map(|at| self.lines[at].oldest()).map(|id| &self.calls[id])
    }

    /// Makes an overloaded line shorter.
    fn shed(&mut self, now: Instant, class: usize, lost: &mut Vec<Lost<T>>) {
        for _ in 0..SHED_PER_PUSH {
            let line = &self.lines[class];
            if line.overloaded()
                && let Some(id) = line.shed(now, &self.calls)
            {
                self.lose(id, Why::Overloaded, lost);
            }
        }
    }

    /// Whether there is a place, if need be by taking one back.
    fn has_room(&mut self, entry: &Entry, lost: &mut Vec<Lost<T>>) -> bool {
        if entry.patient {
            let patient: u32 = self.lines.iter().map(Line::patient).sum();
            return patient < self.options.max_patient;
        }
        let impatient: u32 = self.lines.iter().map(Line::impatient).sum();
        if impatient < self.options.max_waiting {
            return true;
        }
        let over = CLASSES.into_iter().rev().find(|class| {
            let newcomer = u32::from(*class == entry.class);
            self.lines[*class as usize].impatient() + newcomer > self.places_of(*class)
        });
        let Some(class) = over else { return false };
        let line = &self.lines[class as usize];
        let displaced =
            if class == entry.class { line.displaced_by(&entry.tenant) } else { line.displaced() };
        displaced.map(|id| self.lose(id, Why::Displaced, lost)).is_some()
    }

    /// Places that are `class`'s own.
    fn places_of(&self, class: Priority) -> u32 {
        let weights = self.options.weights;
        let all: u64 = CLASSES.into_iter().map(|class| u64::from(weights.of(class))).sum();
        let own = u64::from(self.options.max_waiting) * u64::from(weights.of(class)) / all;
        own as u32
    }

    fn lose(&mut self, id: u32, why: Why, lost: &mut Vec<Lost<T>>) {
        let Waiting { item, class, .. } = self.take_out(id);
        lost.push(Lost { item, class, why });
    }

    fn take_out(&mut self, id: u32) -> Waiting<T> {
        let class = self.calls[id].class as usize;
        self.lines[class].unlink(&mut self.calls, id);
        let call = self.calls.remove(id);
        self.too_late.remove(&(call.too_late_at, id));
        if self.is_empty() {
            // Nobody competes any more: the past does not count.
            self.tag = 0;
            self.lines.iter_mut().for_each(|line| line.start = 0);
        }
        call
    }
}

const fn above(class: Priority) -> Priority {
    match class {
        Priority::Interactive | Priority::Default => Priority::Interactive,
        Priority::Bulk => Priority::Default,
    }
}
