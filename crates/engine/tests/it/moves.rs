//! How a call goes on elsewhere, at other targets and other models, and who pays for it. Each was
//! found by the random driver, and is named for what was wrong.

use crate::house::{Home, House};
use std::time::Duration;
use tidegate_core::Kind;
use tidegate_engine::{Parts, Target};
use tidegate_policy::{breaker, canary, concurrency, retry_budget};
use tidegate_testkit::script::call;

/// Turns `model` into one with these targets: upstream and weight.
fn targets(parts: &mut Parts, model: &str, targets: &[(&str, u32)]) {
    let target = |&(upstream, weight): &(&str, u32)| Target {
        upstream: upstream.into(),
        model: "m".into(),
        price: None,
        weight,
        matches: None,
    };
    let balance = parts.models["chat"].balance;
    let changed = parts.models.entry(model.into()).or_default();
    changed.targets = targets.iter().map(target).collect();
    changed.balance = balance;
}

/// No retries but `count` per upstream, whatever the traffic, and none by the policy.
fn retries(parts: &mut Parts, count: u32) {
    let floor_per_second = f64::from(count) / retry_budget::WINDOW as f64;
    parts.limiters.retry_budget = retry_budget::Options { ratio: 0.0, floor_per_second };
    parts.retry.base = Duration::ZERO;
}

/// One slot, and nobody waits for it.
fn without_a_line(parts: &mut Parts, upstream: &str) {
    let upstream = parts.upstreams.get_mut(upstream).unwrap();
    upstream.concurrency = concurrency::Options::Fixed(1);
    parts.limiters.queue.max_waiting = 0;
}

/// Does `then` while a call of `model` is out.
async fn beside<T>(home: &Home, model: &str, then: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        _ = home.engine.call(call(model)) => panic!("`{model}` was to be slow"),
        done = then => done,
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_target_beside_an_open_breaker_made_the_engine_spin() {
    let home = House::new(&[("a", "slow"), ("b", "fault")])
        .parts(|parts| {
            parts.limiters.breaker =
                breaker::Options { failures: 1, ..breaker::Options::default() };
            parts.retry.max_attempts = 1;
            without_a_line(parts, "a");
            targets(parts, "chat", &[("a", 1_000_000), ("b", 1)]);
            targets(parts, "only b", &[("b", 1)]);
        })
        .open();
    home.call(call("only b")).await.unwrap_err();
    let error = beside(&home, "chat", home.call(call("chat"))).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (Kind::Overloaded, 0));
    home.trace.check(
        "
        0ms send b #1 -> fault
        0ms Upstream after 1
        0ms send a #1 -> slow
        0ms Overloaded after 0
        0ms drop a
        ",
    );
}

#[tokio::test(start_paused = true)]
async fn a_fallback_without_a_target_for_the_call_hid_the_error_and_its_attempts() {
    let home = House::new(&[("a", "fault"), ("b", "ok")])
        .parts(|parts| {
            parts.retry.max_attempts = 1;
            targets(parts, "chat", &[("a", 1)]);
            targets(parts, "small", &[("b", 1)]);
            targets(parts, "tiny", &[("b", 1)]);
            let asked = canary::Match { callers: vec!["somebody-else".into()], header: None };
            parts.models.get_mut("small").unwrap().targets[0].matches = Some(asked);
            parts.models.get_mut("chat").unwrap().fallback = vec!["small".into()];
        })
        .open();
    let error = home.call(call("chat")).await.unwrap_err();
    assert_eq!((error.kind(), error.upstream()), (Kind::Upstream, Some("a")));
    home.trace.check("0ms send a #1 -> fault \n 0ms Upstream after 1");
}

#[tokio::test(start_paused = true)]
async fn a_fallback_was_paid_for_by_a_target_that_did_not_get_it() {
    let home = House::new(&[("a", "fault"), ("b", "ok"), ("c", "ok")])
        .parts(|parts| {
            retries(parts, 1);
            parts.retry.max_attempts = 1;
            targets(parts, "chat", &[("a", 1)]);
            targets(parts, "small", &[("b", 1_000_000), ("c", 1)]);
            parts.models.get_mut("chat").unwrap().fallback = vec!["small".into()];
        })
        .open();
    for _ in 0..3 {
        let _ = home.call(call("chat")).await;
    }
    home.trace.check(
        "
        0ms send a #1 -> fault
        0ms send b #2 -> ok
        0ms reply by b after 2
        0ms send a #1 -> fault
        0ms send c #2 -> ok
        0ms reply by c after 2
        0ms send a #1 -> fault
        0ms Upstream after 1
        ",
    );
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_refused_was_asked_until_its_retry_budget_was_gone() {
    let home = House::new(&[("a", "fault"), ("b", "slow; ok"), ("c", "ok")])
        .parts(|parts| {
            retries(parts, 2);
            without_a_line(parts, "b");
            targets(parts, "chat", &[("a", 1_000_000), ("b", 1_000), ("c", 1)]);
            targets(parts, "beside", &[("a", 1_000_000), ("c", 1)]);
            targets(parts, "only b", &[("b", 1)]);
        })
        .open();
    // The budget of `c` is spent, so that nobody but `b` can pay for a retry.
    for _ in 0..2 {
        home.engine.call(call("beside")).await.unwrap();
    }
    beside(&home, "only b", home.call(call("chat"))).await.unwrap_err();
    let reply = home.call(call("chat")).await.unwrap();
    assert_eq!((&*reply.served.upstream, reply.served.attempts), ("b", 2));
}

#[tokio::test(start_paused = true)]
async fn the_wait_one_target_asked_for_was_forgotten_when_another_failed() {
    let home = House::new(&[("a", "fault retry-after=1s; ok"), ("b", "fault")])
        .parts(|parts| {
            parts.retry.base = Duration::ZERO;
            targets(parts, "chat", &[("a", 1_000_000), ("b", 1)]);
        })
        .open();
    home.call(call("chat")).await.unwrap();
    home.trace.check(
        "
           0ms send a #1 -> fault
           0ms send b #2 -> fault
        1000ms send a #3 -> ok
        1000ms reply by a after 3
        ",
    );
}
