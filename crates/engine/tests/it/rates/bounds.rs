//! No more is let in than may be, whoever's limit it is and however it is counted.

use super::*;
use futures_util::future::join_all;
use std::{cell::Cell, time::Duration};
use tidegate_core::{Kind, Money, Price, Rates, TokenEstimate};
use tidegate_engine::Held;
use tidegate_testkit::script::within;
use tokio::time::{Instant, sleep_until};

/// How much may have passed `after` the first, of a limit of so much per minute.
fn most(algorithm: Algorithm, limit: u64, after: Duration) -> f64 {
    let minutes = after.as_secs_f64() / 60.0;
    let passed = match algorithm {
        Algorithm::TokenBucket => limit as f64 * (1.0 + minutes),
        Algorithm::LeakyBucket => 1.0 + limit as f64 * minutes,
        Algorithm::FixedWindow | Algorithm::SlidingWindow => limit as f64 * (1.0 + minutes.floor()),
    };
    passed * 1.01
}

#[tokio::test(start_paused = true)]
async fn of_five_hundred_at_once_no_more_pass_than_may() {
    for (algorithm, scope) in every_algorithm_and_scope() {
        let home = home(scope.options(rule(algorithm, requests(10))));
        let replies = join_all((0..500).map(|_| home.engine.call(by("ann")))).await;
        let passed = replies.iter().filter(|reply| reply.is_ok()).count();
        let expected = if algorithm == Algorithm::LeakyBucket { 1 } else { 10 };
        assert_eq!(passed, expected, "{algorithm:?} {scope:?}");
        for error in replies.iter().filter_map(|reply| reply.as_ref().err()) {
            let says = error.message().contains("limit of 10 requests per minute")
                && error.message().contains(scope.name());
            assert!(says, "{algorithm:?} {scope:?}: {error}");
            assert!(error.retry_after().is_some(), "{algorithm:?} {scope:?}");
            let kind = match scope {
                Scope::Upstream => Kind::Overloaded,
                _ => Kind::RateLimited,
            };
            assert_eq!(error.kind(), kind, "{algorithm:?} {scope:?}");
        }
        assert_eq!(home.trace.count(" send a"), expected, "{algorithm:?} {scope:?}");
        drop(replies);
        assert_eq!(home.engine.held(), Held::default());
    }
}

/// Sends three times the limit for a minute and longer; how many passed.
async fn overrun(algorithm: Algorithm, home: &Home, limit: u64, of: impl Fn() -> Call) -> u64 {
    let (start, passed) = (Instant::now(), Cell::new(0));
    let calls = (0..limit * 6).map(|n| {
        let (passed, of) = (&passed, &of);
        async move {
            sleep_until(start + Duration::from_secs(20) * n as u32 / limit as u32).await;
            let at = start.elapsed();
            let call = Call { deadline: within(Duration::from_secs(30)), ..of() };
            if home.engine.call(call).await.is_ok() {
                passed.set(passed.get() + 1);
                // Counted as its answer comes, a tenth of a second after it was let in.
                let most = most(algorithm, limit, at + Duration::from_millis(100));
                assert!(passed.get() as f64 <= most, "{algorithm:?}: {} at {at:?}", passed.get());
            }
        }
    });
    join_all(calls).await;
    passed.get()
}

#[tokio::test(start_paused = true)]
async fn at_three_times_the_limit_no_more_pass_than_may() {
    for (algorithm, scope) in every_algorithm_and_scope() {
        let home = home(scope.options(rule(algorithm, requests(60))));
        let passed = overrun(algorithm, &home, 60, || by("ann")).await;
        // Two minutes of it: nothing is wasted either, but what a leaky bucket cannot space.
        let least = match algorithm {
            Algorithm::TokenBucket => 175,
            Algorithm::LeakyBucket => 118,
            Algorithm::FixedWindow | Algorithm::SlidingWindow => 114,
        };
        assert!(passed >= least, "{algorithm:?} {scope:?}: {passed}");
        assert_eq!(home.engine.held(), Held::default());
    }
}

#[tokio::test(start_paused = true)]
async fn at_three_times_a_limit_of_tokens_or_money_no_more_are_used_than_may() {
    // Ten tokens and ten microdollars a call, of which there are six hundred a minute.
    let price = Price::flat(Rates::new(Money::from_pico(1_000_000), Money::ZERO));
    let money = Limits { cost_per_minute: Money::from_usd(600e-6), ..Limits::default() };
    for (algorithm, scope) in every_algorithm_and_scope() {
        for limits in [tokens(600), money] {
            let home = House::new(&[("a", "ok after 100ms usage=10+0")])
                .parts(|parts| {
                    parts.limits = scope.options(rule(algorithm, limits));
                    let model = parts.models.get_mut("chat").unwrap();
                    model.targets[0].price = Some(price);
                })
                .open();
            let ten = || Call { tokens: TokenEstimate { input: 10, output: 0 }, ..by("ann") };
            let passed = overrun(algorithm, &home, 60, ten).await;
            assert!(passed >= 100, "{algorithm:?} {scope:?} {limits:?}: {passed}");
            assert_eq!(home.engine.held(), Held::default());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn calls_at_once_are_counted_for_every_scope() {
    for scope in SCOPES {
        let three = Limits { concurrency: Some(3), ..Limits::default() };
        let home = home(scope.options(rule(Algorithm::default(), three)));
        for _ in 0..3 {
            let replies = join_all((0..500).map(|_| home.engine.call(by("ann")))).await;
            assert_eq!(replies.iter().filter(|reply| reply.is_ok()).count(), 3, "{scope:?}");
            let refused = replies.iter().filter_map(|reply| reply.as_ref().err());
            for error in refused {
                let says = error.message().contains("limit of 3 calls in flight")
                    && error.message().contains(scope.name());
                assert!(says && error.retry_after().is_some(), "{scope:?}: {error}");
            }
        }
        assert_eq!(home.engine.held(), Held::default());
    }
}
