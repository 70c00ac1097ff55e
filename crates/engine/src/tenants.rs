//! What each tenant has used of its limits: requests, tokens, calls in flight.
//!
//! Tokens are reserved by estimate before the call and settled by real usage after it.

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tidegate_core::{Call, Error, Kind, Limits, Origin, RateLimits, Result};
use tidegate_policy::rate_limit::{Bucket, Rate, Refused};

/// Tenants remembered at once; beyond it those that are idle with full buckets are forgotten,
/// which changes nothing for them.
const MAX_REMEMBERED: usize = 100_000;

/// When a caller may come again whose calls in flight, or all callers', are too many: nobody knows
/// when one ends.
const SLOT_AGAIN: Duration = Duration::from_secs(1);

/// The limiters of every tenant seen lately.
pub(crate) struct Tenants {
    default_limits: Limits,
    seen: Mutex<HashMap<Arc<str>, Arc<Mutex<Account>>>>,
}

struct Account {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    concurrency: Option<u32>,
    in_flight: u32,
}

/// One call's slot and token reservation; dropping it gives the slot back.
pub(crate) struct TenantLease {
    account: Arc<Mutex<Account>>,
    reserved: u64,
}

impl Tenants {
    pub(crate) fn new(default_limits: Limits) -> Self {
        Self { default_limits, seen: Mutex::default() }
    }

    /// Takes what `call` needs of its tenant's limits; `None` when the tenant has none.
    pub(crate) fn admit(&self, call: &Call, now: Instant) -> Result<Option<TenantLease>> {
        let limits = call.tenant.limits.unwrap_or(self.default_limits);
        if limits == Limits::default() {
            return Ok(None);
        }
        let account = self.account(&call.tenant.id, limits, now)?;
        let reserved = account.lock().admit(call, &limits, now)?;
        Ok(Some(TenantLease { account, reserved }))
    }

    /// Calls in flight of all tenants with limits.
    pub(crate) fn in_flight(&self) -> usize {
        self.seen.lock().values().map(|account| account.lock().in_flight as usize).sum()
    }

    fn account(&self, id: &Arc<str>, limits: Limits, now: Instant) -> Result<Arc<Mutex<Account>>> {
        let mut seen = self.seen.lock();
        if let Some(account) = seen.get(id) {
            return Ok(account.clone());
        }
        if seen.len() >= MAX_REMEMBERED {
            // One that is shared is about to be used.
            seen.retain(|_, account| {
                Arc::strong_count(account) > 1 || !account.lock().is_idle(now)
            });
        }
        if seen.len() >= MAX_REMEMBERED {
            let message = "too many callers at once; try again shortly";
            return Err(Error::new(Kind::Overloaded, Origin::Gateway, message)
                .with_retry_after(Some(SLOT_AGAIN)));
        }
        let account = Arc::new(Mutex::new(Account::new(limits)));
        seen.insert(id.clone(), account.clone());
        Ok(account)
    }
}

impl Account {
    fn new(limits: Limits) -> Self {
        let bucket = |limit: Option<u64>| limit.map(|limit| Bucket::new(Rate::per_minute(limit)));
        Self {
            requests: bucket(limits.requests_per_minute.map(u64::from)),
            tokens: bucket(limits.tokens_per_minute),
            concurrency: limits.concurrency,
            in_flight: 0,
        }
    }

    /// Checks all limits before it takes from any, so that a refusal takes nothing.
    fn admit(&mut self, call: &Call, limits: &Limits, now: Instant) -> Result<u64> {
        if self.concurrency.is_some_and(|most| self.in_flight >= most) {
            let most = self.concurrency.unwrap_or_default();
            let message = format!("concurrency limit of {most} calls in flight reached");
            let error = Error::new(Kind::ConcurrencyLimited, Origin::Caller, message);
            return Err(error
                .with_retry_after(Some(SLOT_AGAIN))
                .with_tenant_limits(self.told(now)));
        }
        let reserved = call.tokens.total();
        if let Some(tokens) = &mut self.tokens
            && let Err(refused) = tokens.take(now, reserved)
        {
            let limit = limits.tokens_per_minute.unwrap_or_default();
            return Err(self.refusal(format!("{limit} tokens per minute"), refused, now));
        }
        if let Some(requests) = &mut self.requests
            && let Err(refused) = requests.take(now, 1)
        {
            if let Some(tokens) = &mut self.tokens {
                tokens.settle(now, reserved, 0);
            }
            let limit = limits.requests_per_minute.unwrap_or_default();
            return Err(self.refusal(format!("{limit} requests per minute"), refused, now));
        }
        self.in_flight += 1;
        Ok(reserved)
    }

    fn refusal(&self, limit: String, refused: Refused, now: Instant) -> Error {
        let message = match refused.retry_after {
            Some(_) => format!("rate limit of {limit} reached"),
            None => format!("this call alone is over the rate limit of {limit}"),
        };
        Error::new(Kind::RateLimited, Origin::Caller, message)
            .with_retry_after(refused.retry_after)
            .with_tenant_limits(self.told(now))
    }

    fn told(&self, now: Instant) -> RateLimits {
        let allowance = |bucket: &Option<Bucket>| {
            bucket.as_ref().map(|bucket| bucket.allowance(now)).unwrap_or_default()
        };
        RateLimits { requests: allowance(&self.requests), tokens: allowance(&self.tokens) }
    }

    fn is_idle(&self, now: Instant) -> bool {
        let full =
            |bucket: &Option<Bucket>| bucket.as_ref().is_none_or(|bucket| bucket.is_idle(now));
        self.in_flight == 0 && full(&self.requests) && full(&self.tokens)
    }
}

impl TenantLease {
    /// What the tenant is told of its limits.
    pub(crate) fn told(&self, now: Instant) -> RateLimits {
        self.account.lock().told(now)
    }

    /// Corrects the token reservation to what was used; once.
    pub(crate) fn settle(&mut self, used: u64, now: Instant) {
        let reserved = std::mem::take(&mut self.reserved);
        if let Some(tokens) = &mut self.account.lock().tokens {
            tokens.settle(now, reserved, used);
        }
    }
}

impl Drop for TenantLease {
    fn drop(&mut self) {
        self.account.lock().in_flight -= 1;
    }
}
