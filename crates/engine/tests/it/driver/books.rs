//! The books: every attempt that an upstream saw is in the ledger once, and says how it ended.

use super::{
    plan::Plan,
    watch::{How, Seen, Tried},
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tidegate_core::{
    BoxFuture, Cause, Class, Clock, Entry, Error, Kind, Ledger, Money, Origin, Price, Rates,
    Result, Usage, UsageQuery, UsageRow,
};
use tidegate_engine::Outcome;

/// A ledger that remembers.
#[derive(Default)]
pub(super) struct Books(Mutex<Vec<Entry>>);

impl Books {
    pub(super) fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut self.0.lock())
    }
}

impl Ledger for Books {
    fn write(&self, entry: Entry) {
        self.0.lock().push(entry);
    }
    fn flush(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
    fn usage<'a>(&'a self, _: &'a UsageQuery) -> BoxFuture<'a, Result<Vec<UsageRow>>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

/// What every model of the plan costs: a tenth of a cent per token.
pub(super) fn prices(plan: &Plan) -> BTreeMap<Arc<str>, Price> {
    let token = Money::from_pico(1_000_000_000);
    let price = Price::flat(Rates::new(token, token));
    let targets = plan.models.values().flat_map(|model| &model.targets);
    let mirrors = plan.models.values().filter_map(|model| model.mirror.as_ref());
    let named = targets.map(|target| &target.model).chain(mirrors.map(|mirror| &mirror.model));
    named.map(|name| (name.clone(), price)).collect()
}

impl Seen {
    /// As many entries as attempts that were written or failed, each of its own, and none of a call
    /// without that of its first; hard budgets were kept.
    pub(super) fn at_books(&mut self, plan: &Plan, entries: &[Entry]) {
        let key = |tried: &Tried| (tried.call, tried.number, tried.is_copy);
        let mut left: BTreeSet<_> = self.tried.iter().map(key).collect();
        for entry in entries.iter().filter(|entry| entry.attempt > 1) {
            let its_first = |other: &Entry| {
                other.call == entry.call && other.attempt == 1 && other.cause != Cause::Mirror
            };
            self.must(entries.iter().any(its_first), || format!("no call of {entry:?}"));
        }
        for entry in entries {
            let Ok(call) = entry.call.parse::<usize>() else { continue };
            let its = (call, entry.attempt, entry.cause == Cause::Mirror);
            self.must(left.remove(&its), || {
                format!("{its:?} is in the books twice, or was not sent")
            });
            let tried = self.tried.iter().find(|tried| key(tried) == its);
            let Some(ended) = tried.and_then(|tried| tried.ended) else { continue };
            let tells = tells(ended, entry);
            self.must(tells, || format!("{ended:?} is in the books as {entry:?}"));
            self.count(format!("booked {}", entry.cause.name()));
        }
        for tried in self.tried.iter().filter(|tried| self.need_not_be_booked(tried)) {
            left.remove(&key(tried));
        }
        self.must(left.is_empty(), || format!("not in the books: {left:?}"));
        for tenant in plan.calls.iter().map(|planned| &planned.call.tenant) {
            let Some(limit) = tenant.budgets.day.filter(|_| tenant.budgets.hard) else { continue };
            let its = |entry: &&Entry| entry.caller == tenant.id && entry.cause != Cause::Mirror;
            let spent: Money = entries.iter().filter(its).filter_map(|entry| entry.cost).sum();
            self.must(spent <= limit, || format!("{spent} were spent of {limit}"));
        }
    }

    /// Whether `tried` was given up before it was written: by its caller, or beside another.
    fn need_not_be_booked(&self, tried: &Tried) -> bool {
        let record = self.calls[tried.call].record.as_ref();
        let by_its_caller = record.is_none_or(|record| record.outcome == Outcome::Cancelled);
        tried.ended == Some(How::Unsent) && (tried.is_copy || tried.number > 1 || by_its_caller)
    }
}

/// Whether `entry` tells of an attempt that ended like this.
fn tells(ended: How, entry: &Entry) -> bool {
    let class = |kind| Some(Error::new(kind, Origin::Upstream, "").class());
    let nothing = entry.usage == Usage::default();
    match ended {
        How::Answered => entry.failure.is_none() && entry.told,
        How::Failed(kind) => {
            let billed = match kind {
                // The upstream has read the prompt.
                Kind::UpstreamTimeout(Clock::FirstToken) => entry.usage.input > 0,
                // Or our own pool was full, and it has not.
                Kind::UpstreamTimeout(Clock::Total) => true,
                _ => nothing,
            };
            // What it was at, nobody saw: hard budgets take it at its most.
            let unseen = matches!(kind, Kind::UpstreamTimeout(_));
            entry.failure == class(kind) && billed && (entry.usage.output == 0 || unseen)
        }
        How::Broken(kind) => entry.failure == class(kind) && !nothing,
        // By its caller, or by a clock of ours.
        How::Dropped => match entry.failure {
            Some(Class::Cancelled | Class::Timeout) => entry.usage.input > 0,
            _ => false,
        },
        How::Unsent => matches!(entry.failure, Some(Class::Cancelled | Class::Timeout)) && nothing,
    }
}
