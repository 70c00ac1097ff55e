//! The line of one class: whose turn it is among the tenants, and who goes when it is too long.
//!
//! Each tenant has a start tag, in tokens over weight. The least tag is served and then moves on
//! by what was served, so that over time all get the same; a tenant who comes back starts at the
//! line's own tag and not with what he did not use. Batch rows and calls of one tenant are two
//! tenants here: rows wait in order and are never shed, which must not hold up the calls.

use super::{
    arena::Arena,
    codel::Codel,
    waiting::{AGE, List, TENANT, Waiting},
};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

/// Tags are whole numbers: this much is one token at weight one.
const SCALE: u64 = 1024;
/// A call never costs its class or tenant more than this, whatever it was estimated at.
const MAX_COST: u64 = 1 << 32;
/// Tenants without a call in line whose tags are remembered.
const MAX_ABSENT: usize = 4096;

/// What `cost` tokens add to a tag at `weight`.
pub(super) fn charge(cost: u64, weight: u32) -> u64 {
    cost.clamp(1, MAX_COST) * SCALE / u64::from(weight.max(1))
}

/// Calls of one class.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// The class's own start tag among the classes.
    pub(super) start: u64,
    codel: Codel,
    tenants: Tenants,
    /// Impatient calls by age.
    ages: List<AGE>,
    /// Start tag of the tenant served last.
    tag: u64,
    turns_taken: u64,
    /// Who is next: start tag, then who asked first.
    turns: BTreeSet<(u64, u64, u32)>,
    /// Impatient tenants by how many calls they have here.
    lengths: BTreeSet<(u32, u32)>,
    /// Tenants without a call, by start tag: forgotten when the line's tag has caught up.
    absent: BTreeSet<(u64, u32)>,
    impatient: u32,
    patient: u32,
}

#[derive(Debug)]
struct Tenant {
    name: Arc<str>,
    patient: bool,
    calls: List<TENANT>,
    waiting: u32,
    start: u64,
    turn: u64,
}

impl Line {
    pub(super) const fn impatient(&self) -> u32 {
        self.impatient
    }

    pub(super) const fn patient(&self) -> u32 {
        self.patient
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.impatient == 0 && self.patient == 0
    }

    pub(super) const fn overloaded(&self) -> bool {
        self.codel.overloaded()
    }

    pub(super) const fn oldest(&self) -> Option<u32> {
        self.ages.oldest()
    }

    pub(super) fn observe<T>(
        &mut self,
        now: Instant,
        interval: Duration,
        calls: &Arena<Waiting<T>>,
    ) {
        let over_at = self.oldest().map(|id| calls[id].over_target_at(self.overloaded()));
        self.codel.observe(now, interval, over_at);
    }

    /// The place of a tenant in this line's table, for a call that is pushed next.
    pub(super) fn tenant(&mut self, name: Arc<str>, patient: bool) -> u32 {
        self.tenants.find_or_add(name, patient)
    }

    pub(super) fn push<T>(&mut self, calls: &mut Arena<Waiting<T>>, id: u32) {
        let at = calls[id].tenant;
        let tenant = &mut self.tenants.table[at];
        tenant.calls.push(calls, id);
        tenant.waiting += 1;
        if tenant.waiting == 1 {
            self.absent.remove(&(tenant.start, at));
            tenant.start = tenant.start.max(self.tag);
            self.turns_taken += 1;
            tenant.turn = self.turns_taken;
            self.turns.insert((tenant.start, tenant.turn, at));
        }
        if tenant.patient {
            self.patient += 1;
            return;
        }
        self.lengths.remove(&(tenant.waiting - 1, at));
        self.lengths.insert((tenant.waiting, at));
        self.ages.push(calls, id);
        self.impatient += 1;
    }

    /// Whose turn it is: first come first served, or newest first while overloaded.
    pub(super) fn next(&self) -> Option<u32> {
        let tenant = &self.tenants.table[self.turns.first()?.2];
        if self.overloaded() && !tenant.patient {
            tenant.calls.newest()
        } else {
            tenant.calls.oldest()
        }
    }

    /// Charges the tenant of `call`, which is being served.
    pub(super) fn serve<T>(&mut self, call: &Waiting<T>) {
        let at = call.tenant;
        let tenant = &mut self.tenants.table[at];
        self.turns.remove(&(tenant.start, tenant.turn, at));
        self.tag = self.tag.max(tenant.start);
        self.turns_taken += 1;
        tenant.turn = self.turns_taken;
        tenant.start = tenant.start.saturating_add(charge(call.cost, call.weight));
        self.turns.insert((tenant.start, tenant.turn, at));
        self.forget_absent(MAX_ABSENT);
    }

    /// Takes a call out, however it ends.
    pub(super) fn unlink<T>(&mut self, calls: &mut Arena<Waiting<T>>, id: u32) {
        let at = calls[id].tenant;
        let tenant = &mut self.tenants.table[at];
        tenant.calls.unlink(calls, id);
        tenant.waiting -= 1;
        if tenant.patient {
            self.patient -= 1;
        } else {
            self.impatient -= 1;
            self.ages.unlink(calls, id);
            self.lengths.remove(&(tenant.waiting + 1, at));
            if tenant.waiting > 0 {
                self.lengths.insert((tenant.waiting, at));
            }
        }
        if tenant.waiting == 0 {
            self.turns.remove(&(tenant.start, tenant.turn, at));
            self.absent.insert((tenant.start, at));
        }
        if self.is_empty() {
            // Nobody competes any more: the past does not count.
            self.forget_absent(0);
            self.tag = 0;
        } else {
            self.forget_absent(MAX_ABSENT);
        }
    }

    /// Who goes from an overloaded line at `now`: somebody, if the oldest call is over its target.
    pub(super) fn shed<T>(&self, now: Instant, calls: &Arena<Waiting<T>>) -> Option<u32> {
        let mut oldest = self.oldest()?;
        if self.next() == Some(oldest) {
            // It waits for a slot and for nobody else: next is as good as served.
            oldest = calls[oldest].newer(AGE)?;
        }
        if now <= calls[oldest].over_target_at(self.overloaded()) {
            return None;
        }
        let own = self.tenants.table[calls[oldest].tenant].waiting;
        let (most, longest) = *self.lengths.last()?;
        // It may be old only because of him who has so many more.
        if most > 2 * own { self.tenants.table[longest].calls.oldest() } else { Some(oldest) }
    }

    /// Who goes when an impatient call of the tenant `newcomer` needs a place.
    pub(super) fn displaced_by(&self, newcomer: &Arc<str>) -> Option<u32> {
        let (most, _) = *self.lengths.last()?;
        match self.tenants.find(newcomer, false) {
            // With the new call he would have the most.
            Some(tenant) if tenant.waiting > 0 && tenant.waiting >= most => tenant.calls.oldest(),
            _ => self.displaced(),
        }
    }

    /// Who goes when there are too many: the oldest call of the tenant with the most.
    pub(super) fn displaced(&self) -> Option<u32> {
        match self.lengths.last()? {
            (1, _) => self.oldest(),
            (_, longest) => self.tenants.table[*longest].calls.oldest(),
        }
    }

    /// Tenants in the table.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.tenants.places.len()
    }

    fn forget_absent(&mut self, keep: usize) {
        while let Some(&(start, at)) = self.absent.first()
            && (start <= self.tag || self.absent.len() > keep)
        {
            self.absent.pop_first();
            self.tenants.remove(at);
        }
    }
}

/// Tenants by name.
#[derive(Debug)]
struct Tenants {
    table: Arena<Tenant>,
    places: HashMap<(Arc<str>, bool), u32>,
}

impl Default for Tenants {
    fn default() -> Self {
        Self { table: Arena::new(), places: HashMap::new() }
    }
}

impl Tenants {
    fn find(&self, name: &Arc<str>, patient: bool) -> Option<&Tenant> {
        self.places.get(&(name.clone(), patient)).map(|at| &self.table[*at])
    }

    fn find_or_add(&mut self, name: Arc<str>, patient: bool) -> u32 {
        let table = &mut self.table;
        *self.places.entry((name, patient)).or_insert_with_key(|(name, _)| {
            let calls = List::default();
            table.insert(Tenant {
                name: name.clone(),
                patient,
                calls,
                waiting: 0,
                start: 0,
                turn: 0,
            })
        })
    }

    fn remove(&mut self, at: u32) {
        let tenant = self.table.remove(at);
        self.places.remove(&(tenant.name, tenant.patient));
    }
}
