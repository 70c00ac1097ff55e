//! The account of one attempt: opened with its permit, closed exactly once, however it ends.
//!
//! # Why
//!
//! In the field's gateways an aborted stream is free, or billed twice; a hedge's loser and a
//! cancelled call are nobody's. Here an [`Account`] is opened beside the gate's permit and rides
//! on the body like that; its `Drop` is the only place where an attempt's tokens become money, a
//! budget is settled and the ledger is written.
//!
//! # What counts
//!
//! | the attempt | tokens |
//! |---|---|
//! | was answered, and the upstream said its usage | as told |
//! | was answered whole, and it did not | as estimated |
//! | streamed, to its end or not | as told so far; else the prompt's estimate and the chunks that passed |
//! | had an answer that is no stream, and it broke off or was left | as estimated: it was made whole before it was sent |
//! | was cancelled, or our clock ran out, before its first token | the prompt's estimate: the upstream has read it |
//! | failed or was refused before its first token, or never got there | none |
//! | was cancelled before its request was written | none: it is no entry, unless it was noted, or was the first of more |
//!
//! Estimates can be too low, and whoever hung up just before each answer, or wrote prompts of many
//! tokens in few bytes and cut each stream, would spend more than there is. So where a **hard**
//! budget pays, what nobody told or saw is taken at the most it can be: the prompt at its bytes, an
//! answer that is no stream at the call's maximum.

use crate::{
    attempt::now,
    budgets::{Earlier, Purse, Reserved},
    route::Target,
};
use parking_lot::Mutex;
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tidegate_core::{
    Call, Cause, Class, ContentType, Entry, Error, Ledger, Meter, Money, Noted, Operation, Price,
    Reply, Result, Retry, Tenant, TokenEstimate, Usage,
};

/// Where the engine keeps account.
pub(crate) struct Books {
    ledger: Option<Arc<dyn Ledger>>,
    purse: Arc<Purse>,
}

/// What the accounts of one call's attempts share.
pub(crate) struct Page {
    books: Arc<Books>,
    call: Arc<str>,
    tenant: Arc<Tenant>,
    operation: Operation,
    model: Arc<str>,
    /// Whether a stream was asked for: what an answer comes to is then seen as it is made.
    stream: bool,
    /// What its tokens come to where nobody tells: no more than it has bytes, and may have.
    estimate: TokenEstimate,
    most_output: u64,
    /// What a hard budget reserves.
    most: TokenEstimate,
    sum: Mutex<Sum>,
}

/// What a call has cost so far.
#[derive(Clone, Copy, Default)]
struct Sum {
    /// `None` until an attempt had a price.
    cost: Option<Money>,
    /// An attempt used tokens whose price nobody knows.
    unpriced: bool,
    /// An attempt used tokens.
    is_owed: bool,
    /// The answer to one was made and is lost.
    has_lost_an_answer: bool,
    /// It made more attempts than its first.
    has_more: bool,
}

/// One attempt's account.
#[must_use]
pub(crate) struct Account {
    page: Arc<Page>,
    attempt: u32,
    cause: Cause,
    /// When it left; `None` for one that was dropped before, which is no attempt.
    left: Option<(SystemTime, Instant)>,
    upstream: Arc<str>,
    upstream_model: Arc<str>,
    price: Option<Price>,
    reserved: Reserved,
    failure: Option<Class>,
    /// The request was written.
    was_written: bool,
    /// It was, and nothing came back: as far as we know the upstream is at it.
    is_at_it: bool,
    usage: Usage,
    told: bool,
    /// What passes of a stream, or is told at the end of a long answer.
    meter: Option<Arc<Meter>>,
    /// Its events are counted: it is made as it passes.
    is_counted: bool,
    /// Where a hard budget pays: the ledger knows of it since before it left.
    noted: Option<Noted>,
}

impl Books {
    pub(crate) fn new(ledger: Option<Arc<dyn Ledger>>, purse: Purse) -> Self {
        Self { ledger, purse: Arc::new(purse) }
    }

    /// Opens the page of `call`.
    pub(crate) fn open(self: &Arc<Self>, call: &Call) -> Arc<Page> {
        let most_output = call.most_output(u64::MAX);
        Arc::new(Page {
            books: self.clone(),
            call: call.id.clone(),
            tenant: call.tenant.clone(),
            operation: call.operation,
            model: call.model.clone(),
            stream: call.stream,
            estimate: TokenEstimate {
                input: call.tokens.input.min(call.payload.len() as u64),
                output: call.tokens.output.min(most_output),
            },
            most_output,
            most: self.purse.most(call),
            sum: Mutex::default(),
        })
    }

    /// Adds what was spent of budgets before.
    pub(crate) fn resume(&self, earlier: Vec<Earlier>) {
        self.purse.resume(earlier);
    }

    /// What all attempts in flight hold of budgets.
    pub(crate) fn reserved(&self) -> Money {
        self.purse.reserved()
    }
}

impl Page {
    /// Takes what an attempt at `target` can cost out of the budgets that pay for it.
    ///
    /// # Errors
    ///
    /// [`tidegate_core::Kind::BudgetExceeded`] when one has no room.
    pub(crate) fn reserve(&self, call: &Call, target: &Target) -> Result<Reserved> {
        self.books.purse.reserve(call, target.price)
    }

    /// What all attempts that have ended cost together; `None` when a price is not known.
    pub(crate) fn cost(&self) -> Option<Money> {
        let sum = *self.sum.lock();
        sum.cost.filter(|_| !sum.unpriced)
    }

    /// Whether attempts that have ended used any tokens.
    pub(crate) fn is_owed(&self) -> bool {
        self.sum.lock().is_owed
    }

    /// Whether the answer to one was made and is lost.
    pub(crate) fn has_lost_an_answer(&self) -> bool {
        self.sum.lock().has_lost_an_answer
    }
}

impl Account {
    /// Opens the account of attempt number `attempt`, which is about to be sent to `target`.
    pub(crate) fn open(
        page: Arc<Page>,
        target: &Target,
        attempt: u32,
        cause: Cause,
        reserved: Reserved,
    ) -> Self {
        if attempt > 1 {
            page.sum.lock().has_more = true;
        }
        Self {
            attempt,
            cause,
            left: None,
            upstream: target.upstream.clone(),
            upstream_model: target.model.clone(),
            price: target.price,
            reserved,
            // Whoever drops it without another word has left.
            failure: Some(Class::Cancelled),
            was_written: false,
            is_at_it: false,
            usage: Usage::default(),
            told: false,
            meter: None,
            is_counted: false,
            noted: None,
            page,
        }
    }

    /// Which attempt of its call this is.
    pub(crate) const fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The attempt leaves. What a hard budget pays for is noted before, at its most: if this
    /// process is killed, the budget must not have that money again.
    pub(crate) fn leaves(&mut self) {
        let at = SystemTime::now();
        self.left = Some((at, now()));
        if !self.reserved.is_hard() {
            return;
        }
        if let Some(ledger) = &self.page.books.ledger {
            self.noted = ledger.begin(&self.at_most(at));
        }
    }

    /// The request was written: the upstream has read the prompt.
    pub(crate) fn was_written(&mut self) {
        self.was_written = true;
        self.is_at_it = true;
        self.usage.input = self.page.estimate.input;
    }

    /// The entry of an attempt whose end nobody saw.
    fn at_most(&self, at: SystemTime) -> Entry {
        let TokenEstimate { input, output } = self.page.most;
        Entry {
            failure: Some(Class::Fault),
            usage: Usage { input, output, ..Usage::default() },
            told: false,
            cost: self.price.map(|price| price.most(input, output)),
            ..self.entry(at, Duration::ZERO, None)
        }
    }

    fn entry(&self, at: SystemTime, took: Duration, cost: Option<Money>) -> Entry {
        let Page { call, tenant, operation, model, .. } = &*self.page;
        Entry {
            call: call.clone(),
            attempt: self.attempt,
            cause: self.cause,
            at,
            took,
            caller: tenant.id.clone(),
            team: tenant.team.clone(),
            operation: *operation,
            model: model.clone(),
            upstream: self.upstream.clone(),
            upstream_model: self.upstream_model.clone(),
            failure: self.failure,
            usage: self.usage,
            told: self.told,
            cost,
        }
    }

    /// The attempt failed before it said a word: nothing is paid for, unless the upstream had made
    /// its answer, or our clock ran out while it was at it. Short timeouts would make long prompts
    /// free.
    pub(crate) fn failed(&mut self, error: &Error) {
        self.failure = Some(error.class());
        self.is_at_it &= error.class() == Class::Timeout && error.retry() != Retry::Unsent;
        if error.is_paid_for() {
            self.usage = self.estimated();
            self.page.sum.lock().has_lost_an_answer = true;
        } else if !self.is_at_it {
            self.usage = Usage::default();
        }
    }

    /// The answer is whole, or its stream has begun.
    pub(crate) fn answered(&mut self, reply: &Reply) {
        self.is_at_it = false;
        if reply.body.as_whole().is_some() {
            self.told = reply.usage.is_some();
            self.usage = reply.usage.unwrap_or_else(|| self.estimated());
            self.failure = None;
        } else {
            let is_stream = reply.content_type == ContentType::EventStream;
            self.is_counted = is_stream && reply.meter.is_some();
            if !is_stream {
                self.usage = self.estimated();
            }
            self.meter = reply.meter.clone();
        }
    }

    /// The stream came to its end.
    pub(crate) fn ended(&mut self) {
        if self.failure != Some(Class::Cancelled) {
            // It broke off before, and whoever reads on finds nothing more.
            return;
        }
        self.failure = None;
        if self.meter.is_none() {
            self.usage = self.estimated();
        }
    }

    /// The stream broke off.
    pub(crate) const fn broke(&mut self, error: &Error) {
        self.failure = Some(error.class());
    }

    fn estimated(&self) -> Usage {
        let TokenEstimate { input, output } = self.page.estimate;
        Usage { input, output, ..Usage::default() }
    }

    /// Reads what passed of a stream, or what a long answer told.
    fn read_meter(&mut self) {
        let Some(meter) = self.meter.take() else { return };
        match meter.usage() {
            Some(usage) => (self.usage, self.told) = (usage, true),
            None if self.is_counted => {
                self.usage.output = meter.chunks().min(self.page.most_output);
            }
            None => {}
        }
    }

    /// Takes what nobody told or saw at the most it can be.
    fn take_the_most(&mut self) {
        let is_free = self.usage == Usage::default();
        if self.told || is_free {
            return;
        }
        self.usage.input = self.page.most.input;
        // Of a stream that has not begun nothing was made that we had not seen.
        let is_seen = if self.is_at_it { self.page.stream } else { self.is_counted };
        if !is_seen {
            self.usage.output = self.page.most.output;
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let Some((at, sent)) = self.left else { return };
        self.read_meter();
        if self.reserved.is_hard() {
            self.take_the_most();
        }
        let cost = self.price.map(|price| price.of(self.usage));
        self.reserved.settle(cost.unwrap_or_default());
        let mut sum = self.page.sum.lock();
        match cost {
            Some(cost) => sum.cost = Some(sum.cost.unwrap_or_default().plus(cost)),
            None => sum.unpriced |= self.usage != Usage::default(),
        }
        sum.is_owed |= self.usage != Usage::default();
        // Calls are counted by their first attempt.
        let counts = self.was_written || (self.attempt == 1 && sum.has_more);
        drop(sum);
        let Some(ledger) = &self.page.books.ledger else { return };
        let entry = self.entry(at, now().saturating_duration_since(sent), cost);
        match self.noted.take() {
            Some(noted) => ledger.end(noted, entry),
            None if self.failure == Some(Class::Cancelled) && !counts => {}
            None => ledger.write(entry),
        }
    }
}
