//! A second attempt at another target while the first still thinks (SPEC §6.11).
//!
//! The policy says when; here both are raced. The loser is dropped, which cancels it. Once one
//! has shown its first token there is nothing left to race.

use crate::{
    account::Account,
    attempt::{Tries, now},
    gate::Permit,
    route::{Pick, Route, Target},
    settle::Settlement,
};
use futures_util::future::{Either, select};
use parking_lot::Mutex;
use std::pin::{Pin, pin};
use tidegate_core::{Call, Cause, Reply, Result};
use tidegate_policy::hedge::{Health, Hedge};
use tokio::time::timeout;

/// Sends a call's first attempt, and a second one elsewhere when that is late. What came of it,
/// and whose answer that is.
pub(crate) async fn first_attempt<'r>(
    call: &Call,
    route: &'r Route,
    hedge: &Mutex<Hedge>,
    pick: Pick<'r>,
    tries: &mut Tries,
    settlement: &mut Settlement,
    roll: impl Fn() -> f64,
) -> (Result<Reply>, &'r Target) {
    let Pick { target, breakers } = pick;
    let entered = target.enter(call, route, breakers, tries, settlement).await;
    let (permit, account) = match entered {
        Ok(entered) => entered,
        Err(refused) => return (Err(refused), target),
    };
    let (started, clocks) = (permit.sent(), tries.clocks);
    let mut first = pin!(target.send(call, &clocks, permit, account));
    // Asked only now: a call that a gate refuses comes by again at another's, and earns once.
    let after = hedge.lock().first_attempt();
    let in_time = match after {
        Some(after) => timeout(after, &mut first).await.ok(),
        None => Some(first.as_mut().await),
    };
    let raced = match in_time {
        Some(result) => (result, target),
        None => race(call, route, hedge, target, first, tries, settlement, roll).await,
    };
    settlement.attempt_ended(started);
    if raced.0.is_ok() {
        hedge.lock().observe(now().saturating_duration_since(started));
    }
    raced
}

#[expect(clippy::too_many_arguments, reason = "the race needs what both attempts need")]
async fn race<'r, F: Future<Output = Result<Reply>>>(
    call: &Call,
    route: &'r Route,
    hedge: &Mutex<Hedge>,
    target: &'r Target,
    first: Pin<&mut F>,
    tries: &mut Tries,
    settlement: &mut Settlement,
    roll: impl Fn() -> f64,
) -> (Result<Reply>, &'r Target) {
    let second = second(call, route, hedge, target, tries, settlement, roll);
    let Some((other, permit, account)) = second else {
        return (first.await, target);
    };
    let clocks = tries.clocks;
    settlement.attempt(other, tries.sent);
    let second = pin!(other.send(call, &clocks, permit, account));
    // The first to succeed wins; one that fails leaves it to the other.
    let raced = match select(first, second).await {
        Either::Left((Ok(reply), _)) => (Ok(reply), target),
        Either::Right((Ok(reply), _)) => (Ok(reply), other),
        Either::Left((Err(error), second)) => {
            tries.asked_by(target, &error);
            (second.await, other)
        }
        Either::Right((Err(error), first)) => {
            tries.asked_by(other, &error);
            (first.await, target)
        }
    };
    settlement.attempt(raced.1, tries.sent);
    raced
}

/// Another target that takes an attempt at once, if policy and budgets allow one.
fn second<'r>(
    call: &Call,
    route: &'r Route,
    hedge: &Mutex<Hedge>,
    first: &Target,
    tries: &mut Tries,
    settlement: &Settlement,
    roll: impl Fn() -> f64,
) -> Option<(&'r Target, Permit, Account)> {
    let health = first.gate.health(now());
    let health =
        Health { limiter_saturated: health.is_saturated, breaker_closed: health.is_closed };
    if !hedge.lock().start(health) {
        return None;
    }
    let granted = route.pick_untried(call, tries, roll).and_then(|other| {
        // A call that has no money for a second attempt makes do with its first.
        let reserved = settlement.page().reserve(call, other).ok()?;
        if !other.gate.may_retry_now() {
            return None;
        }
        let permit = other.gate.enter_at_once(call, other.price, tries.sent + 1, &tries.clocks)?;
        tries.mark(route.position(other));
        tries.sent += 1;
        let page = settlement.page().clone();
        Some((other, permit, Account::open(page, other, tries.sent, Cause::Hedge, reserved)))
    });
    if granted.is_none() {
        hedge.lock().not_started();
    }
    granted
}
