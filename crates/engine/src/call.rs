//! `Engine::call`: what happens to a call, and in what order.

use crate::{
    Parts, PartsError, Records,
    admit::Admission,
    attempt::{self, Tries},
    route::{Route, Routes},
    settle::Settlement,
};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{sync::Arc, time::Duration};
use tidegate_core::{
    Answer, BoxFuture, Call, Class, Error, Kind, ModelInfo, Origin, Patience, Reply, Result, Retry,
    Store, Tenant, UpstreamState,
};
use tidegate_policy::retry;
use tokio::time::{Instant, sleep};

/// Answers calls. Cheap to share; every front holds the same one.
pub struct Engine {
    store: Arc<dyn Store>,
    admission: Admission,
    routes: Routes,
    retry: retry::Options,
    records: Option<Records>,
    // Chance is asked for only on retries and between targets, never on the straight way.
    chance: Mutex<StdRng>,
}

impl Engine {
    /// Answers one call, start to finish.
    ///
    /// Read this function to learn what happens to a call and in what order.
    ///
    /// # Errors
    ///
    /// Whatever ended the call, after all attempts it may have.
    pub async fn call(&self, call: Call) -> Result<Reply> {
        // Opened first and closed in `Drop`: a caller who hangs up is settled too.
        let mut settlement = Settlement::open(&call, self.records.clone());
        match self.answer(&call, &mut settlement).await {
            // The settlement rides on the body: a streamed reply holds its slots until its last
            // chunk, not just until its headers.
            Ok(reply) => Ok(settlement.ride(reply)),
            Err(error) => Err(settlement.fail(error)),
        }
    }

    async fn answer(&self, call: &Call, settlement: &mut Settlement) -> Result<Reply> {
        let route = self.routes.find(call)?;
        settlement.hold(self.admission.admit(call)?);
        self.attempts(call, &route, settlement).await
    }

    /// Attempts until one succeeds, the policy says stop, or the deadline passes.
    async fn attempts(
        &self,
        call: &Call,
        route: &Route,
        settlement: &mut Settlement,
    ) -> Result<Reply> {
        let mut tries = Tries::default();
        loop {
            let Some(target) = route.pick(&tries, || self.roll()) else {
                return Err(no_target(call));
            };
            let error = match target.attempt(call, route, &mut tries, settlement).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            let left = call.deadline.saturating_duration_since(attempt::now());
            if call.patience == Patience::Free
                && error.class() == Class::Capacity
                && !left.is_zero()
            {
                // Costs no attempt: the gate, which this refusal has shut, is the wait.
                continue;
            }
            tries.counted += 1;
            let wait = match self.retry.next(
                tries.counted,
                &error,
                route.next_place(&tries),
                left,
                self.roll(),
            ) {
                _ if refused_by_every_gate(&error, route, &tries) => {
                    return Err(spent(error, &tries, &target.upstream));
                }
                retry::Next::Again(wait) => wait,
                retry::Next::Stop => return Err(spent(error, &tries, &target.upstream)),
            };
            // A caller does not wait for the retry budget; a batch row does.
            let patience = if call.patience == Patience::Free { left } else { Duration::ZERO };
            if !target.gate.may_retry(patience).await {
                return Err(spent(error, &tries, &target.upstream));
            }
            sleep(wait).await;
        }
    }

    fn roll(&self) -> f64 {
        self.chance.lock().random()
    }

    /// An engine made of `parts`.
    ///
    /// # Errors
    ///
    /// [`PartsError`] when a model names an upstream that is not there, or has no target.
    pub fn new(parts: Parts) -> Result<Self, PartsError> {
        Ok(Self {
            admission: Admission::new(parts.max_in_flight, parts.default_limits),
            routes: Routes::new(&parts)?,
            store: parts.store,
            retry: parts.retry,
            records: parts.records,
            chance: Mutex::new(StdRng::seed_from_u64(parts.seed)),
        })
    }

    /// Calls in flight now.
    pub fn in_flight(&self) -> usize {
        self.admission.in_flight()
    }
}

impl Answer for Engine {
    fn identify(&self, key: &str) -> Result<Arc<Tenant>> {
        self.store.identify(key).ok_or_else(|| {
            Error::new(
                Kind::Unauthenticated,
                Origin::Caller,
                "the API key is not valid: it is unknown, revoked or expired",
            )
        })
    }

    fn call(&self, call: Call) -> BoxFuture<'_, Result<Reply>> {
        Box::pin(self.call(call))
    }

    fn models(&self, tenant: &Tenant) -> Vec<ModelInfo> {
        self.routes.models(tenant)
    }

    fn upstreams(&self) -> Vec<UpstreamState> {
        self.routes.gates().iter().map(|gate| gate.state(Instant::now().into_std())).collect()
    }
}

/// Whether no upstream was asked at all: every target's gate refused before an attempt left.
fn refused_by_every_gate(error: &Error, route: &Route, tries: &Tries) -> bool {
    error.kind() == Kind::Overloaded && (0..route.targets.len()).all(|n| tries.was_tried(n))
}

/// Stamps an error with what was tried: nobody above tries again.
fn spent(error: Error, tries: &Tries, upstream: &Arc<str>) -> Error {
    error.with_retry(Retry::Never).after_attempts(tries.sent, upstream.clone())
}

fn no_target(call: &Call) -> Error {
    let message = format!("no target of the model `{}` takes calls", call.model);
    Error::new(Kind::Unavailable, Origin::Gateway, message)
}
