use crate::house::House;
use std::time::Duration;
use tidegate_core::{Call, Class, Kind, Patience, Retry};
use tidegate_engine::{Outcome, Target};
use tidegate_testkit::script::{call, within};

#[tokio::test(start_paused = true)]
async fn a_refusal_is_waited_out_and_the_gate_is_shut_for_all() {
    let home = House::new(&[("a", "refused retry-after=1s; ok")]).open();
    home.call(call("chat")).await.unwrap();
    home.trace.check(
        "
        0ms    send a #1 -> refused
        1025ms send a #2 -> ok
        1025ms reply by a after 2
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
        .parts(|parts| parts.retry_budget.floor_per_second = 0.0)
        .open();
    for _ in 0..200 {
        home.engine.call(call("chat")).await.unwrap_err();
    }
    assert_eq!(home.trace.count("send a"), 220, "a tenth more than first attempts");
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
        let target = Target { upstream: "gone".into(), model: "m".into(), weight: 1 };
        parts.models.get_mut("chat").unwrap().targets.push(target);
    });
    let error = tidegate_engine::Engine::new(house.parts).err().unwrap();
    assert!(error.to_string().contains("`gone`"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_pass_through_upstream_takes_any_model() {
    let home = House::new(&[("a", "ok")]).parts(|parts| parts.any_model = Some("a".into())).open();
    let reply = home.call(call("whatever")).await.unwrap();
    assert_eq!((&*reply.served.upstream, &*reply.served.model), ("a", "whatever"));
}
