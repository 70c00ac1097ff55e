use crate::house::{Home, House};
use futures_util::StreamExt;
use std::{sync::Arc, time::Duration};
use tidegate_core::{
    Answer, BoundBy, Call, Kind, Limits, Patience, Priority, Scope, Tenant, TokenEstimate,
};
use tidegate_engine::limits::Rule;
use tidegate_policy::{concurrency, pacer, rate_limit::Algorithm};
use tidegate_testkit::script::{call, streaming, within};

fn by(tenant: &str, scope: Scope) -> Call {
    let tenant = Tenant { id: tenant.into(), limits: None, scope, ..Tenant::local() };
    Call { tenant: Arc::new(tenant), ..call("chat") }
}

fn limited(limits: Limits) -> House {
    House::new(&[("a", "ok after 100ms")]).parts(|parts| parts.limits.default.limits = limits)
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
    let large =
        || Call { tokens: TokenEstimate { input: 10, output: 60 }, ..by("ann", Scope::All) };
    // Each really uses ten, so that two leave room for one more, not for two.
    for left in [90, 80] {
        let told = home.call(large()).await.unwrap().served.tenant;
        assert_eq!(told.tokens.remaining, Some(left), "what it used, not what it reserved");
    }
    let (first, second) = tokio::join!(home.call(large()), home.call(large()));
    assert!(first.is_ok() != second.is_ok(), "both reserved at once do not fit");
    drop((first, second));
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn tokens_of_a_failed_call_come_back() {
    for step in ["rejected 400; ok", "refused; ok", "unreachable; ok", "fault; ok"] {
        let home = House::new(&[("a", step)])
            .parts(|parts| {
                parts.limits.default.limits =
                    Limits { tokens_per_minute: Some(100), ..Limits::default() };
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

/// Two minutes of short timeouts would have been as many long prompts for nothing.
#[tokio::test(start_paused = true)]
async fn the_prompt_of_a_call_that_timed_out_came_back() {
    for (step, left) in
        [("timeout connect", 100), ("timeout first_token after 10ms", 90), ("slow", 90)]
    {
        let home = House::new(&[("a", &format!("{step}; ok"))])
            .parts(|parts| {
                parts.limits.default.limits =
                    Limits { tokens_per_minute: Some(100), ..Limits::default() };
                parts.retry.max_attempts = 1;
            })
            .open();
        let tokens = TokenEstimate { input: 10, output: 70 };
        let deadline = within(Duration::from_millis(50));
        home.call(Call { tokens, deadline, ..by("ann", Scope::All) }).await.unwrap_err();
        let asks = |tokens| Call {
            tokens,
            deadline: within(Duration::from_millis(1)),
            ..by("ann", Scope::All)
        };
        let (fits, more) = (left, left + 3);
        home.call(asks(TokenEstimate { input: more, output: 0 })).await.unwrap_err();
        let reply = home.call(asks(TokenEstimate { input: fits, output: 0 })).await;
        reply.unwrap_or_else(|error| panic!("after {step}: {error}"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_stream_is_settled_by_what_has_passed() {
    let home = House::new(&[("a", "stream 90 chunks every 1ms; ok")])
        .parts(|parts| {
            parts.limits.default.limits =
                Limits { tokens_per_minute: Some(100), ..Limits::default() };
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
    // 100 - (10 + 3) - 10, which is all that the second used.
    assert_eq!(told.tokens.remaining, Some(77));
}

#[tokio::test(start_paused = true)]
async fn a_prompt_that_was_read_was_free_when_the_next_attempt_failed() {
    for next in ["unreachable", "fault", "refused"] {
        let home = House::new(&[("a", &format!("timeout first_token after 10ms; {next}; ok"))])
            .parts(|parts| {
                parts.limits.default = Rule {
                    limits: Limits { tokens_per_minute: Some(100), ..Limits::default() },
                    algorithm: Algorithm::FixedWindow,
                    ..Rule::default()
                };
                parts.retry.max_attempts = 2;
            })
            .open();
        home.call(by("ann", Scope::All)).await.unwrap_err();
        assert_eq!(home.trace.count(" send a"), 2);
        let told = home.call(by("ann", Scope::All)).await.unwrap().served.tenant;
        // 10 of the prompt, and all that the second call used.
        assert_eq!(told.tokens.remaining, Some(100 - 10 - 10), "{next}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_had_no_connection_kept_the_tokens_of_its_caller_and_its_upstream() {
    let limits = |tokens| Limits { tokens_per_minute: Some(tokens), ..Limits::default() };
    // An upstream may have counted what it failed at.
    for (script, gives_up, upstreams) in
        [("dialing; ok", 2, 100), ("dialing; ok", 600, 100), ("fault; dialing; ok", 20, 1_000)]
    {
        let home = House::new(&[("a", script)])
            .parts(|parts| {
                parts.limits.default.limits = limits(100);
                let rule = Rule { limits: limits(upstreams), ..Rule::default() };
                parts.limits.upstreams = [("a".into(), rule)].into();
            })
            .upstreams(|upstream| upstream.pacer.tokens_per_minute = Some(upstreams))
            .open();
        let greedy = || {
            let tokens = TokenEstimate { input: 40, output: 40 };
            home.call(Call { tokens, ..by("ann", Scope::All) })
        };
        drop(tokio::time::timeout(Duration::from_secs(gives_up), greedy()).await);
        let began = home.trace.elapsed();
        let told = greedy().await.unwrap().served.tenant;
        assert_eq!(told.tokens.remaining, Some(90), "{script}");
        assert!(home.trace.elapsed() - began < Duration::from_secs(3), "{script}");
    }
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
    let learned = |home: &Home| home.engine.upstreams().remove(0).concurrency;
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
    assert!(error.retry_after().is_some(), "when to come again is said with every refusal");
    drop(held);
    home.call(by("ann", Scope::All)).await.unwrap();
}

/// Two calls are taken, and a third is one too many.
async fn two_fit(home: &Home) {
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
async fn the_gateways_own_slots_are_bounded() {
    let home = House::new(&[("a", "slow")]).parts(|parts| parts.max_in_flight = 2).open();
    two_fit(&home).await;
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
    let home = House::new(&[("a", "ok after 100ms")])
        .upstreams(|upstream| upstream.concurrency = concurrency::Options::Fixed(2))
        .open();
    let calls =
        (0..5).map(|n| home.engine.call(Call { id: format!("{n}").into(), ..call("chat") }));
    let watch = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
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
        100ms send a #1 of 2 -> ok
        100ms send a #1 of 3 -> ok
        200ms send a #1 of 4 -> ok
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

/// Twenty calls at once, ten of each class, through one slot; the order in which they left.
async fn order_of(classes: [Priority; 2]) -> String {
    let home = House::new(&[("a", "ok after 10ms")])
        .upstreams(|upstream| upstream.concurrency = concurrency::Options::Fixed(1))
        .open();
    let calls = classes.into_iter().flat_map(|class| (0..10).map(move |_| class)).map(|priority| {
        let id = priority.name()[..1].into();
        home.engine.call(Call { id, priority, ..call("chat") })
    });
    let replies = futures_util::future::join_all(calls).await;
    assert!(replies.iter().all(Result::is_ok));
    drop(replies);
    home.is_empty();
    let of = |line: &String| line.split(" of ").nth(1).map(|rest| rest[..1].to_owned());
    home.trace.lines().iter().filter_map(of).collect()
}

#[tokio::test(start_paused = true)]
async fn who_is_waited_for_goes_first_and_bulk_still_moves() {
    let order = order_of([Priority::Bulk, Priority::Interactive]).await;
    let (first, last) = order.split_at(12);
    assert!(first.matches('i').count() >= 9, "{order}");
    assert!(last.contains('b') && first.contains('b'), "{order}");
}

#[tokio::test(start_paused = true)]
async fn a_line_that_stands_is_shed_and_says_so() {
    let home = House::new(&[("a", "ok after 1s")])
        .upstreams(|upstream| upstream.concurrency = concurrency::Options::Fixed(1))
        .open();
    let calls = (0..60).map(|n| {
        let home = &home;
        async move {
            tokio::time::sleep(Duration::from_millis(n * 50)).await;
            home.engine.call(call("chat")).await
        }
    });
    let replies = futures_util::future::join_all(calls).await;
    let shed: Vec<_> = replies.iter().filter_map(|reply| reply.as_ref().err()).collect();
    assert!((30..57).contains(&shed.len()), "{} of 60 shed", shed.len());
    for error in shed {
        assert_eq!((error.kind(), error.attempts()), (Kind::Overloaded, 0));
        assert!(error.retry_after().is_some(), "{error}");
    }
    drop(replies);
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn batch_rows_wait_where_callers_are_shed() {
    let home = House::new(&[("a", "ok after 1s")])
        .upstreams(|upstream| upstream.concurrency = concurrency::Options::Fixed(1))
        .open();
    let rows = (0..60).map(|_| {
        let row = Call {
            patience: Patience::Free,
            priority: Priority::Bulk,
            deadline: within(Duration::from_secs(600)),
            ..call("chat")
        };
        home.engine.call(row)
    });
    let replies = futures_util::future::join_all(rows).await;
    assert!(replies.iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn bodies_in_flight_are_bounded_by_the_memory_budget() {
    let home = House::new(&[("a", "slow")]).parts(|parts| parts.memory.budget = 200).open();
    let held = call("chat").payload.len();
    assert!((50..100).contains(&held), "{held}");
    two_fit(&home).await;
}

#[tokio::test(start_paused = true)]
async fn a_loaded_gateway_refuses_bulk_first() {
    let home = House::new(&[("a", "slow")]).parts(|parts| parts.max_in_flight = 20).open();
    let many = futures_util::future::join_all((0..19).map(|_| home.engine.call(call("chat"))));
    let then = async {
        // The ladder climbs a step every 200 ms.
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let brief = Call { deadline: within(Duration::from_millis(1)), ..call("chat") };
            home.engine.call(brief).await.unwrap_err();
        }
        let bulk = Call { priority: Priority::Bulk, ..call("chat") };
        let refused = home.engine.call(bulk).await.unwrap_err();
        assert!(refused.message().contains("load level"), "{refused}");
        let brief = Call { deadline: within(Duration::from_millis(1)), ..call("chat") };
        assert_eq!(home.engine.call(brief).await.unwrap_err().kind(), Kind::DeadlineExceeded);
    };
    tokio::select! {
        _ = many => unreachable!("the upstream never answers"),
        () = then => {}
    }
    home.is_empty();
}
