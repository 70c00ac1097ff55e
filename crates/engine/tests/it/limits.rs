use crate::house::House;
use futures_util::StreamExt;
use std::{sync::Arc, time::Duration};
use tidegate_core::{Answer, BoundBy, Call, Kind, Limits, Scope, Tenant, TokenEstimate};
use tidegate_policy::{concurrency, pacer};
use tidegate_testkit::script::{call, streaming, within};

fn by(tenant: &str, scope: Scope) -> Call {
    let tenant = Tenant { id: tenant.into(), limits: None, scope, ..Tenant::local() };
    Call { tenant: Arc::new(tenant), ..call("chat") }
}

fn limited(limits: Limits) -> House {
    House::new(&[("a", "ok after 100ms")]).parts(|parts| parts.default_limits = limits)
}

#[tokio::test(start_paused = true)]
async fn requests_per_minute_are_kept_apart_by_tenant() {
    let home = limited(Limits { requests_per_minute: Some(2), ..Limits::default() }).open();
    let told = home.call(by("ann", Scope::All)).await.unwrap().served.tenant;
    assert_eq!((told.requests.limit, told.requests.remaining), (Some(2), Some(1)));
    home.call(by("ann", Scope::All)).await.unwrap();
    let error = home.call(by("ann", Scope::All)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::RateLimited);
    assert!(error.message().contains("2 requests per minute"), "{error}");
    assert!(error.retry_after().unwrap() <= Duration::from_secs(30));
    assert_eq!(error.tenant_limits().requests.remaining, Some(0));
    home.call(by("bob", Scope::All)).await.unwrap();
    tokio::time::advance(Duration::from_secs(31)).await;
    home.call(by("ann", Scope::All)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn tokens_are_reserved_by_estimate_and_settled_by_usage() {
    let home = limited(Limits { tokens_per_minute: Some(100), ..Limits::default() }).open();
    let eighty =
        || Call { tokens: TokenEstimate { input: 10, output: 70 }, ..by("ann", Scope::All) };
    // Each really uses ten, so that two leave room for one more, not for two.
    for _ in 0..2 {
        home.call(eighty()).await.unwrap();
    }
    let (first, second) = tokio::join!(home.call(eighty()), home.call(eighty()));
    assert!(first.is_ok() != second.is_ok(), "both reserved at once do not fit");
    drop((first, second));
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn tokens_of_a_failed_call_come_back() {
    for step in ["rejected 400; ok", "refused; ok", "unreachable; ok", "fault; ok"] {
        let home = House::new(&[("a", step)])
            .parts(|parts| {
                parts.default_limits = Limits { tokens_per_minute: Some(100), ..Limits::default() };
                parts.retry.max_attempts = 1;
            })
            .open();
        let eighty =
            || Call { tokens: TokenEstimate { input: 10, output: 70 }, ..by("ann", Scope::All) };
        home.call(eighty()).await.unwrap_err();
        home.call(Call { deadline: within(Duration::from_secs(30)), ..eighty() })
            .await
            .unwrap_or_else(|error| panic!("after {step}: {error}"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_stream_is_settled_by_what_has_passed() {
    let home = House::new(&[("a", "stream 90 chunks every 1ms; ok")])
        .parts(|parts| {
            parts.default_limits = Limits { tokens_per_minute: Some(100), ..Limits::default() };
        })
        .open();
    let tokens = TokenEstimate { input: 10, output: 70 };
    let mut reply =
        home.call(Call { stream: true, tokens, ..by("ann", Scope::All) }).await.unwrap();
    for _ in 0..3 {
        reply.body.next().await.unwrap().unwrap();
    }
    drop(reply);
    let told = home.call(Call { tokens, ..by("ann", Scope::All) }).await.unwrap().served.tenant;
    // 100 - (10 + 3) - 80, the reservation of the second.
    assert_eq!(told.tokens.remaining, Some(7));
}

#[tokio::test(start_paused = true)]
async fn a_rejected_call_does_not_hold_the_upstreams_tokens() {
    let home = House::new(&[("a", "rejected 400; ok")])
        .upstreams(|upstream| upstream.pacer.tokens_per_minute = Some(6_000))
        .open();
    let greedy = TokenEstimate { input: 10, output: u64::MAX };
    home.call(Call { tokens: greedy, ..call("chat") }).await.unwrap_err();
    home.call(call("chat")).await.unwrap();
    assert!(home.trace.elapsed() < Duration::from_secs(3), "{:?}", home.trace.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_line_moves_when_tokens_come_back() {
    let home = House::new(&[("a", "ok after 100ms")])
        .upstreams(|upstream| upstream.pacer.tokens_per_minute = Some(60_000))
        .open();
    // Ten seconds' worth each by estimate, ten tokens in truth.
    let calls = (0..5).map(|_| {
        let tokens = TokenEstimate { input: 10, output: 10_000 };
        home.engine.call(Call { tokens, ..call("chat") })
    });
    let replies = futures_util::future::join_all(calls).await;
    assert!(replies.iter().all(Result::is_ok));
    assert!(home.trace.elapsed() < Duration::from_secs(3), "{:?}", home.trace.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_limit_grown_by_first_tokens_lets_the_line_move() {
    let home = House::new(&[("a", "stream 2 chunks every 8s")])
        .upstreams(|upstream| upstream.concurrency = concurrency::Options::Auto)
        .open();
    let calls = (0..15).map(|_| async {
        let reply = home.engine.call(streaming("chat")).await.unwrap();
        reply.body.collect(1 << 20).await.unwrap();
    });
    futures_util::future::join_all(calls).await;
    let at = |ms: &str| home.trace.lines().iter().filter(|line| line.starts_with(ms)).count();
    assert_eq!(home.trace.count(" send a"), 15);
    assert!(at("8000ms send") == 5, "{:?}", home.trace.lines());
}

#[tokio::test(start_paused = true)]
async fn limits_learn_neither_from_faults_nor_from_callers_deadlines() {
    let learned = |home: &crate::house::Home| home.engine.upstreams().remove(0).concurrency;
    for step in ["fault", "rejected 400", "timeout connect", "slow"] {
        let home = House::new(&[("a", step)])
            .upstreams(|upstream| upstream.concurrency = concurrency::Options::Auto)
            .parts(|parts| parts.retry.max_attempts = 1)
            .open();
        for _ in 0..3 {
            let calls = (0..10).map(|_| {
                let deadline = within(Duration::from_millis(100));
                home.engine.call(Call { deadline, ..call("chat") })
            });
            futures_util::future::join_all(calls).await;
        }
        assert_eq!(learned(&home), concurrency::START, "after {step}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_takes_nothing() {
    let home = limited(Limits {
        requests_per_minute: Some(1),
        tokens_per_minute: Some(1000),
        ..Limits::default()
    })
    .open();
    home.call(by("ann", Scope::All)).await.unwrap();
    for _ in 0..100 {
        let error = home.call(by("ann", Scope::All)).await.unwrap_err();
        assert!(error.tenant_limits().tokens.remaining >= Some(990), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn concurrency_counts_until_the_last_byte() {
    let home = limited(Limits { concurrency: Some(1), ..Limits::default() }).open();
    let held = home.call(by("ann", Scope::All)).await.unwrap();
    let error = home.call(by("ann", Scope::All)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::ConcurrencyLimited);
    drop(held);
    home.call(by("ann", Scope::All)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_gateways_own_slots_are_bounded() {
    let home = House::new(&[("a", "slow")]).parts(|parts| parts.max_in_flight = 2).open();
    let both =
        futures_util::future::join(home.engine.call(call("chat")), home.engine.call(call("chat")));
    let third = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        home.engine.call(call("chat")).await.unwrap_err()
    };
    tokio::select! {
        _ = both => unreachable!("the upstream never answers"),
        error = third => assert_eq!(error.kind(), Kind::Overloaded),
    }
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn a_scope_covers_its_models_only() {
    let home = House::new(&[("a", "ok")]).open();
    let scoped = by("ann", Scope::Models(vec!["other".into()]));
    assert!(home.engine.models(&scoped.tenant).is_empty());
    let error = home.call(scoped).await.unwrap_err();
    assert_eq!((error.kind(), error.param()), (Kind::ModelNotAllowed, Some("model")));
    let scoped = by("ann", Scope::Models(vec!["chat".into()]));
    assert_eq!(&*home.engine.models(&scoped.tenant)[0].id, "chat");
    home.call(scoped).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn calls_in_line_leave_in_order_and_say_what_holds_them() {
    let home = House::new(&[("a", "ok after 1s")])
        .upstreams(|upstream| upstream.concurrency = concurrency::Options::Fixed(2))
        .open();
    let calls =
        (0..5).map(|n| home.engine.call(Call { id: format!("{n}").into(), ..call("chat") }));
    let watch = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        home.engine.upstreams().remove(0)
    };
    let (replies, state) = tokio::join!(futures_util::future::join_all(calls), watch);
    assert!(replies.iter().all(Result::is_ok));
    drop(replies);
    assert_eq!((state.in_flight, state.waiting), (2, 3));
    assert_eq!(state.bound_by, BoundBy::Concurrency);
    home.trace.check(
        "
        0ms    send a #1 of 0 -> ok
        0ms    send a #1 of 1 -> ok
        1000ms send a #1 of 2 -> ok
        1000ms send a #1 of 3 -> ok
        2000ms send a #1 of 4 -> ok
        ",
    );
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn a_told_rate_is_kept() {
    let home = House::new(&[("a", "ok")])
        .upstreams(|upstream| {
            upstream.pacer = pacer::Options {
                requests_per_second: Some(10.0),
                eager: true,
                ..Default::default()
            };
        })
        .open();
    let calls = (0..21).map(|_| home.engine.call(call("chat")));
    let replies = futures_util::future::join_all(calls).await;
    assert!(replies.iter().all(Result::is_ok));
    let took = home.trace.elapsed().as_millis();
    assert!((1900..=2100).contains(&took), "{took} ms for 21 calls at 10 a second");
}
