use crate::house::House;
use std::time::Duration;
use tidegate_core::{Answer, Call, Class, Kind, Patience, Retry, Scope, Tenant};
use tidegate_engine::{Outcome, Target};
use tidegate_testkit::script::{call, within};

#[tokio::test(start_paused = true)]
async fn a_refusal_is_waited_out_and_the_gate_is_shut_for_all() {
    let home = House::new(&[("a", "refused retry-after=1s; ok")]).open();
    home.call(call("chat")).await.unwrap();
    home.trace.check(
        "
        0ms    send a #1 -> refused
        1014ms send a #2 -> ok
        1014ms reply by a after 2
        ",
    );
    assert_eq!(home.outcomes(), [Outcome::Ok]);
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn a_fault_goes_to_another_target() {
    let home = House::new(&[("a", "fault"), ("b", "ok")])
        .parts(|parts| parts.models.get_mut("chat").unwrap().targets[0].weight = 1_000_000)
        .open();
    let reply = home.call(call("chat")).await.unwrap();
    assert_eq!((&*reply.served.upstream, reply.served.attempts), ("b", 2));
}

#[tokio::test(start_paused = true)]
async fn it_gives_up_after_three_attempts_and_says_so() {
    let home = House::new(&[("a", "fault")]).open();
    let error = home.call(call("chat")).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts(), error.upstream()), (Kind::Upstream, 3, Some("a")));
    assert_eq!(error.retry(), Retry::Never, "nobody above tries again");
    assert_eq!(home.outcomes(), [Outcome::Failed(Kind::Upstream)]);
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn what_cannot_help_is_not_tried_again() {
    for (step, kind) in [
        ("rejected 400", Kind::Rejected),
        ("credential", Kind::UpstreamCredential),
        ("quota", Kind::UpstreamQuota),
    ] {
        let home = House::new(&[("a", step)]).open();
        let error = home.call(call("chat")).await.unwrap_err();
        assert_eq!((error.kind(), error.attempts()), (kind, 1), "{step}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_beyond_the_deadline_is_not_begun() {
    let home = House::new(&[("a", "refused retry-after=60s")]).open();
    let error = home.call(call("chat")).await.unwrap_err();
    assert_eq!(
        (error.class(), error.retry_after()),
        (Class::Capacity, Some(Duration::from_secs(60)))
    );
    // The gate is shut now: the next call is not even sent.
    let error = home.call(call("chat")).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (Kind::Overloaded, 0));
    assert!(error.retry_after().unwrap() >= Duration::from_secs(60));
    home.trace.check(
        "
        0ms send a #1 -> refused
        0ms UpstreamCapacity after 1
        0ms Overloaded after 0
        ",
    );
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn a_shut_gate_sends_calls_to_the_other_target() {
    let home = House::new(&[("a", "refused retry-after=60s"), ("b", "ok")]).open();
    for _ in 0..20 {
        let reply = home.call(call("chat")).await.unwrap();
        assert_eq!(&*reply.served.upstream, "b");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shut_gate_spends_no_retry_budget() {
    let home = House::new(&[("a", "refused retry-after=60s"), ("b", "ok")]).open();
    // Half of them meet the shut gate first: more than the budget's floor would let through.
    for _ in 0..100 {
        home.engine.call(call("chat")).await.unwrap();
    }
    assert_eq!(home.trace.count("send a"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_taken_from_the_budget_of_the_target_it_goes_to() {
    let home = House::new(&[("a", "fault"), ("b", "fault")])
        .parts(|parts| {
            parts.models.get_mut("chat").unwrap().targets[0].weight = 9;
            parts.limiters.retry_budget.floor_per_second = 0.0;
        })
        .open();
    for _ in 0..200 {
        home.engine.call(call("chat")).await.unwrap_err();
    }
    let (first, all) = (home.trace.count("send b #1"), home.trace.count("send b"));
    assert!(all * 10 <= first * 11, "{all} attempts at b, {first} of them first ones");
}

#[tokio::test(start_paused = true)]
async fn without_budget_elsewhere_a_call_is_tried_again_where_it_was() {
    let home = House::new(&[("a", "fault; 9 * ok; 10 * fault; ok"), ("b", "ok")])
        .parts(|parts| {
            parts.models.get_mut("chat").unwrap().targets[0].weight = 1_000_000;
            parts.limiters.retry_budget.floor_per_second = 0.0;
        })
        .open();
    // b has no first attempts, so nothing is allowed there; a has earned one retry in ten.
    home.engine.call(call("chat")).await.unwrap_err();
    for _ in 0..9 {
        home.engine.call(call("chat")).await.unwrap();
    }
    home.engine.call(call("chat")).await.unwrap_err();
    assert_eq!((home.trace.count("send a #2"), home.trace.count("send b")), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_the_budget_does_not_carry_an_attempt_over_the_deadline() {
    let home = House::new(&[("a", "fault")])
        .parts(|parts| {
            parts.retry.base = Duration::from_secs(5);
            parts.retry.max_attempts = 100;
            parts.limiters.retry_budget =
                tidegate_policy::retry_budget::Options { ratio: 0.0, floor_per_second: 0.1 };
        })
        .open();
    let deadline = within(Duration::from_millis(11_500));
    let rows = (0..8).map(|n| {
        let row = Call { patience: Patience::Free, deadline, ..call("chat") };
        home.engine.call(Call { id: format!("r{n}").into(), ..row })
    });
    let replies = futures_util::future::join_all(rows).await;
    assert!(replies.iter().all(Result::is_err));
    for line in home.trace.lines() {
        let (ms, _) = line.split_once("ms ").unwrap();
        assert!(ms.parse::<u64>().unwrap() < 11_500, "{line}");
    }
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn a_batch_row_is_never_spent_on_refusals() {
    let home = House::new(&[("a", "12 * refused retry-after=1s; ok")]).open();
    let row = Call {
        patience: Patience::Free,
        deadline: within(Duration::from_secs(600)),
        ..call("chat")
    };
    let reply = home.call(row).await.unwrap();
    assert_eq!(reply.served.attempts, 13);
}

#[tokio::test(start_paused = true)]
async fn a_batch_row_ends_at_its_deadline_all_the_same() {
    let home = House::new(&[("a", "refused retry-after=1s")]).open();
    let row =
        Call { patience: Patience::Free, deadline: within(Duration::from_secs(5)), ..call("chat") };
    let error = home.call(row).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_not_amplified_beyond_the_budget() {
    let home = House::new(&[("a", "fault")])
        .parts(|parts| parts.limiters.retry_budget.floor_per_second = 0.0)
        .open();
    for _ in 0..200 {
        home.engine.call(call("chat")).await.unwrap_err();
    }
    assert_eq!(home.trace.count("send a"), 220, "a tenth more than first attempts");
}

#[tokio::test(start_paused = true)]
async fn what_clients_send_again_earns_no_retries_and_takes_them() {
    let home = House::new(&[("a", "fault")])
        .parts(|parts| parts.limiters.retry_budget.floor_per_second = 0.0)
        .open();
    for _ in 0..100 {
        home.engine.call(Call { client_retries: 1, ..call("chat") }).await.unwrap_err();
    }
    assert_eq!(home.trace.count("send a"), 100, "each goes once, budget or not");
}

#[tokio::test(start_paused = true)]
async fn faults_of_batch_rows_wait_for_the_budget_instead_of_losing_rows() {
    let home =
        House::new(&[("a", "40 * fault; ok")]).parts(|parts| parts.retry.max_attempts = 10).open();
    let rows = (0..20).map(|n| {
        let row = Call {
            id: format!("r{n}").into(),
            patience: Patience::Free,
            deadline: within(Duration::from_secs(600)),
            ..call("chat")
        };
        home.engine.call(row)
    });
    let replies = futures_util::future::join_all(rows).await;
    assert!(replies.iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn unknown_models_and_unknown_upstreams_are_named() {
    let home = House::new(&[("a", "ok")]).open();
    let error = home.call(call("nope")).await.unwrap_err();
    assert_eq!((error.kind(), error.param()), (Kind::ModelNotFound, Some("model")));
    assert!(error.message().contains("`nope`"));

    let house = House::new(&[("a", "ok")]).parts(|parts| {
        let target = Target {
            upstream: "gone".into(),
            model: "m".into(),
            price: None,
            weight: 1,
            matches: None,
        };
        parts.models.get_mut("chat").unwrap().targets.push(target);
    });
    let error = tidegate_engine::Engine::new(house.parts).err().unwrap();
    assert!(error.to_string().contains("`gone`"), "{error}");

    let house = House::new(&[("a", "ok")]).parts(|parts| {
        let targets = &mut parts.models.get_mut("chat").unwrap().targets;
        targets.extend(vec![targets[0].clone(); 64]);
    });
    let error = tidegate_engine::Engine::new(house.parts).err().unwrap();
    assert!(error.to_string().contains("65 targets"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_pass_through_upstream_takes_any_model() {
    let home = House::new(&[("a", "ok")]).parts(|parts| parts.any_model = Some("a".into())).open();
    let reply = home.call(call("whatever")).await.unwrap();
    assert_eq!((&*reply.served.upstream, &*reply.served.model), ("a", "whatever"));
    // The same upstream model by its configured name and by its own: one gate.
    home.call(call("m")).await.unwrap();
    home.call(call("chat")).await.unwrap();
    assert_eq!(home.engine.upstreams().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_scoped_key_cannot_fill_the_pass_through() {
    let home = House::new(&[("a", "ok")]).parts(|parts| parts.any_model = Some("a".into())).open();
    let tenant = Tenant { scope: Scope::Models(vec!["chat".into()]), ..Tenant::local() };
    let scoped = Call { tenant: tenant.into(), ..call("whatever") };
    assert_eq!(home.call(scoped).await.unwrap_err().kind(), Kind::ModelNotAllowed);
    assert_eq!(home.engine.upstreams().len(), 1, "no gate was opened for it");
}
