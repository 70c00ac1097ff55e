//! `Engine::call`: what happens to a call, and in what order.

use crate::{
    Held, Parts, PartsError, Records,
    account::Books,
    admit::Admission,
    attempt::{self, Tries},
    budgets::{Earlier, Purse},
    hedge, limits,
    load::Load,
    route::{Pick, Route, Routes},
    settle::Settlement,
};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{sync::Arc, time::Duration};
use tidegate_core::{
    Answer, BoxFuture, Call, Class, Error, Identity, Kind, MirrorState, ModelInfo, Origin,
    Patience, Reply, Result, Retry, Store, Tenant, Tokens, UpstreamState, is_token,
};
use tidegate_policy::{
    load::{Actions, Signals},
    retry::{self, Place},
};
use tokio::time::{Instant, sleep};

/// Answers calls. Cheap to share; every front holds the same one.
pub struct Engine {
    store: Arc<dyn Store>,
    tokens: Option<Arc<dyn Tokens>>,
    admission: Admission,
    load: Load,
    routes: Routes,
    books: Arc<Books>,
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
    pub async fn call(&self, mut call: Call) -> Result<Reply> {
        call.tokens = self.routes.estimate(&call);
        // Opened first and closed in `Drop`: a caller who hangs up is settled too.
        let mut settlement = Settlement::open(&call, self.books.open(&call), self.records.clone());
        match self.answer(&call, &mut settlement).await {
            // The settlement rides on the body: a streamed reply holds its slots until its last
            // chunk, not just until its headers.
            Ok(reply) => Ok(settlement.ride(reply)),
            Err(error) => Err(settlement.fail(error)),
        }
    }

    async fn answer(&self, call: &Call, settlement: &mut Settlement) -> Result<Reply> {
        let route = self.routes.find(call)?;
        let actions = self.under_load(call)?;
        settlement.hold(self.admission.enter(call, route.needs(call)).await?);
        let clocks = |route: &Route| route.timeouts.shortened(actions.shorten_timeouts);
        let mut tries = Tries::default();
        tries.elsewhere(clocks(&route));
        if let Some(mirror) = &route.mirror {
            mirror.copy(call, &tries.clocks, || self.roll());
        }
        let mut result = match route.pick(call, &tries, || self.roll()) {
            Some(pick) => self.attempts(call, &route, pick, &mut tries, settlement).await,
            None => Err(no_target(call)),
        };
        for fallback in route.fallback.iter().filter_map(|model| self.routes.named(model)) {
            match &result {
                Err(error) if may_fall_back(error, call) => {}
                _ => break,
            }
            tries.elsewhere(clocks(&fallback));
            if let Some(pick) = self.pick_of_fallback(call, &fallback, &tries) {
                result = self.attempts(call, &fallback, pick, &mut tries, settlement).await;
            }
        }
        result
    }

    /// What the degrade ladder asks for, unless it is to refuse this call.
    fn under_load(&self, call: &Call) -> Result<Actions> {
        let actions = self.load.actions(|now| Signals {
            pressure: self.routes.pressure(now),
            in_flight_share: self.admission.in_flight_share(),
        });
        // Batch rows wait in line instead.
        if call.patience == Patience::Counted && actions.refuse.refuses(call.priority) {
            let message = format!(
                "the gateway is at load level {} and takes no calls of class {}",
                self.load.level().name(),
                call.priority.name()
            );
            return Err(Error::new(Kind::Overloaded, Origin::Gateway, message)
                .with_retry_after(Some(Duration::from_secs(1))));
        }
        Ok(actions)
    }

    /// Attempts at one model's targets, `pick` first, until one succeeds, the policy says stop, or
    /// the deadline passes.
    async fn attempts<'r>(
        &self,
        call: &Call,
        route: &'r Route,
        mut pick: Pick<'r>,
        tries: &mut Tries,
        settlement: &mut Settlement,
    ) -> Result<Reply> {
        let roll = || self.roll();
        loop {
            let Pick { target, breakers } = pick;
            let (attempted, target) = match &route.hedge {
                Some(hedge) if tries.sent == 0 => {
                    let first =
                        hedge::first_attempt(call, route, hedge, pick, tries, settlement, roll);
                    // Boxed: few models are hedged, and every call would carry the room for it.
                    Box::pin(first).await
                }
                _ => (target.attempt(call, route, breakers, tries, settlement).await, target),
            };
            let error = match attempted {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            tries.asked_by(target, &error);
            let failed = Pick { target, ..pick };
            pick = route.pick(call, tries, roll).unwrap_or(failed);
            let next =
                Next { place: route.place(pick, tries), asked: tries.asked_wait(pick.target) };
            match self.after(&error, call, next, tries) {
                After::Stop => return Err(spent(error, tries, &failed.target.upstream)),
                After::Move { wait } if wait.is_zero() => {}
                After::Move { wait } => sleep(wait).await,
                After::Retry { wait, patience } => {
                    // A gate that has just refused would do it again, and each time cost a retry.
                    let back = !was_never_sent(&error) && tries.asked_wait(target) <= wait;
                    let back = back.then_some(failed);
                    let Some(allowed) = afford(pick, back, patience).await else {
                        return Err(spent(error, tries, &failed.target.upstream));
                    };
                    pick = allowed;
                    sleep(wait).await;
                }
            }
        }
    }

    /// Where a fallback's first attempt goes; `None` when it has no target for the call, or none
    /// that can pay: the budget of whoever gets an attempt beyond the first pays for it.
    fn pick_of_fallback<'r>(
        &self,
        call: &Call,
        fallback: &'r Route,
        tries: &Tries,
    ) -> Option<Pick<'r>> {
        let mut asked = tries.clone();
        loop {
            let pick = fallback.pick(call, &asked, || self.roll())?;
            if fallback.place(pick, &asked) == Place::Same {
                return None;
            }
            let is_free = tries.asked_wait(pick.target).is_zero();
            if is_free && (tries.sent == 0 || pick.target.gate.may_retry_now()) {
                return Some(pick);
            }
            asked.mark(fallback.position(pick.target));
        }
    }

    /// Decides how a call goes on after `error`, when the next attempt would go to `next`.
    fn after(&self, error: &Error, call: &Call, next: Next, tries: &mut Tries) -> After {
        let Next { place, asked } = next;
        let left = call.deadline.saturating_duration_since(attempt::now());
        if asked >= left {
            return After::Stop;
        }
        if was_never_sent(error) {
            // Nothing is counted. A first attempt is still one elsewhere; a retry was paid for
            // here and is paid for again there.
            return match place {
                Place::Same => After::Stop,
                Place::Elsewhere if tries.sent == 0 => After::Move { wait: Duration::ZERO },
                Place::Elsewhere => After::Retry { wait: asked, patience: Duration::ZERO },
            };
        }
        let patient = call.patience == Patience::Free;
        if patient && error.class() == Class::Capacity {
            // Costs no attempt: the gate, which this refusal has shut, is the wait.
            return After::Move { wait: asked };
        }
        tries.counted += 1;
        match self.retry.next(tries.counted, error, place, left, self.roll()) {
            retry::Next::Again(wait) if wait.max(asked) < left => {
                let wait = wait.max(asked);
                // A caller does not wait for the retry budget; a batch row does.
                let patience = if patient { left.saturating_sub(wait) } else { Duration::ZERO };
                After::Retry { wait, patience }
            }
            retry::Next::Again(_) | retry::Next::Stop => After::Stop,
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
        let purse = Purse::new(parts.spending.clone(), parts.ledger.is_some());
        let books = Arc::new(Books::new(parts.ledger.clone(), purse));
        let limits = limits::Table::new(parts.limits.clone());
        let routes = Routes::new(&parts, &books, &limits)?;
        Ok(Self {
            admission: Admission::new(parts.max_in_flight, parts.memory.clone(), limits),
            load: Load::new(parts.load.clone()),
            routes,
            books,
            store: parts.store,
            tokens: parts.tokens,
            retry: parts.retry,
            records: parts.records,
            chance: Mutex::new(StdRng::seed_from_u64(parts.seed)),
        })
    }

    /// Adds what was spent of budgets before this engine was there, where that was not known in
    /// time for [`crate::Spending::earlier`].
    pub fn resume(&self, earlier: Vec<Earlier>) {
        self.books.resume(earlier);
    }

    /// Calls in flight now.
    pub fn in_flight(&self) -> usize {
        self.admission.in_flight()
    }

    /// What calls hold now: the gauges that say whether anything leaks.
    pub fn held(&self) -> Held {
        Held {
            copies: self.routes.copies(),
            reserved: self.books.reserved(),
            ..self.admission.held()
        }
    }
}

impl Answer for Engine {
    fn identify<'a>(&'a self, key: &'a str) -> Identity<'a> {
        if let Some(tokens) = &self.tokens
            && is_token(key)
        {
            return tokens.identify(key);
        }
        self.store.identify(key).map_or_else(
            || {
                Identity::Refused(Error::new(
                    Kind::Unauthenticated,
                    Origin::Caller,
                    "the API key is not valid: it is unknown, revoked or expired",
                ))
            },
            Identity::Known,
        )
    }

    fn tokens(&self) -> Option<&dyn Tokens> {
        self.tokens.as_deref()
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

    fn mirrors(&self) -> Vec<MirrorState> {
        self.routes.mirrors()
    }
}

/// Where the retry budget lets a call go on: to `next`, or `back` to the target that failed.
///
/// The budget protects the one who gets the attempt. A small target beside a large one has
/// earned little, and must not cost the large one its own retries.
async fn afford<'r>(
    next: Pick<'r>,
    back: Option<Pick<'r>>,
    patience: Duration,
) -> Option<Pick<'r>> {
    if next.target.gate.may_retry(Duration::ZERO).await {
        return Some(next);
    }
    let back = back?;
    back.target.gate.may_retry(patience).await.then_some(back)
}

/// Whether the target's gate refused.
fn was_never_sent(error: &Error) -> bool {
    error.origin() == Origin::Gateway && error.retry() == Retry::Unsent
}

/// Where the next attempt would go.
struct Next {
    place: Place,
    /// How long that target still asks to be left alone.
    asked: Duration,
}

/// How a call goes on after a failure.
enum After {
    /// Not at all.
    Stop,
    /// At the next target's gate, after `wait`.
    Move { wait: Duration },
    /// After `wait`, when the budget has a retry within `patience`.
    Retry { wait: Duration, patience: Duration },
}

/// Whether another model may answer instead: the failure is not the caller's, and there is time.
fn may_fall_back(error: &Error, call: &Call) -> bool {
    let helps = match error.class() {
        Class::Capacity | Class::Fault | Class::Credential | Class::Quota => true,
        Class::Timeout => error.kind() != Kind::DeadlineExceeded,
        Class::Refused => error.kind() == Kind::Overloaded,
        Class::Caller | Class::Cancelled => false,
    };
    helps && attempt::now() < call.deadline
}

/// Stamps an error with what was tried: nobody above tries again.
fn spent(error: Error, tries: &Tries, upstream: &Arc<str>) -> Error {
    error.with_retry(Retry::Never).after_attempts(tries.sent, upstream.clone())
}

fn no_target(call: &Call) -> Error {
    let message = format!("no target of the model `{}` takes calls", call.model);
    Error::new(Kind::Unavailable, Origin::Gateway, message)
}
