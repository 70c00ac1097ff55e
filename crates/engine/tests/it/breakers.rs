use crate::house::House;
use futures_util::StreamExt;
use std::time::Duration;
use tidegate_core::{Answer, BreakerState, Call, Kind, Origin, Patience, Retry};
use tidegate_engine::Model;
use tidegate_testkit::script::{call, streaming, within};

fn once(house: House) -> House {
    house.parts(|parts| parts.retry.max_attempts = 1)
}

#[tokio::test(start_paused = true)]
async fn a_target_that_keeps_failing_is_left_alone() {
    let home = once(House::new(&[("a", "5 * fault; ok")])).breakers().open();
    for _ in 0..5 {
        home.engine.call(call("chat")).await.unwrap_err();
    }
    assert_eq!(home.engine.upstreams()[0].breaker, BreakerState::Open);
    let error = home.engine.call(call("chat")).await.unwrap_err();
    assert_eq!((error.kind(), error.origin()), (Kind::Unavailable, Origin::Gateway));
    assert!(error.retry_after().unwrap() <= Duration::from_millis(1200), "{error:?}");
    assert_eq!((error.attempts(), error.retry()), (0, Retry::Never));
    assert_eq!(home.trace.count("send a"), 5);

    tokio::time::advance(Duration::from_millis(1300)).await;
    for _ in 0..3 {
        home.engine.call(call("chat")).await.unwrap();
    }
    assert_eq!(home.engine.upstreams()[0].breaker, BreakerState::Closed);
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn calls_go_to_the_targets_that_work() {
    let home = House::new(&[("a", "fault"), ("b", "ok"), ("c", "ok")]).breakers().open();
    for _ in 0..200 {
        home.engine.call(call("chat")).await.unwrap();
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    let sent = home.trace.count("send a");
    assert!(sent <= 10, "{sent} of 200 attempts went to the one that fails");
}

#[tokio::test(start_paused = true)]
async fn a_target_whose_streams_break_off_is_left_alone() {
    let house = House::new(&[("a", "stream 2 chunks then reset"), ("b", "stream 3 chunks")]);
    let home = house.breakers().open();
    let mut whole = 0;
    for _ in 0..200 {
        let mut reply = home.engine.call(streaming("chat")).await.unwrap();
        let chunks: Vec<_> = (&mut reply.body).collect().await;
        whole += u32::from(chunks.iter().all(Result::is_ok));
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    // It is tried again each second, and then believed at its first tokens for a while.
    assert!(whole >= 150, "{whole} of 200 streams were whole");
}

#[tokio::test(start_paused = true)]
async fn when_most_targets_fail_no_breaker_binds() {
    let home = once(House::new(&[("a", "fault"), ("b", "fault"), ("c", "ok")])).breakers().open();
    let mut refused = 0;
    for _ in 0..300 {
        if let Err(error) = home.engine.call(call("chat")).await {
            refused += u32::from(error.origin() == Origin::Gateway);
        }
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    assert_eq!(refused, 0, "attempts are made as long as somebody might answer");
}

#[tokio::test(start_paused = true)]
async fn a_batch_row_waits_for_the_next_probe() {
    let home = House::new(&[("a", "8 * fault; ok")])
        .breakers()
        .parts(|parts| parts.retry.max_attempts = 20)
        .open();
    let row = Call {
        patience: Patience::Free,
        deadline: within(Duration::from_secs(600)),
        ..call("chat")
    };
    home.engine.call(row).await.unwrap();
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_a_probe_does_not_keep_the_target_shut() {
    let home = once(House::new(&[("a", "5 * fault; slow; ok")])).breakers().open();
    for _ in 0..5 {
        home.engine.call(call("chat")).await.unwrap_err();
    }
    tokio::time::advance(Duration::from_millis(1300)).await;
    let probe = home.engine.call(call("chat"));
    tokio::time::timeout(Duration::from_millis(50), probe).await.unwrap_err();
    home.engine.call(call("chat")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn another_model_answers_when_all_targets_are_spent() {
    let house = House::new(&[("a", "fault"), ("b", "ok")]).parts(|parts| {
        let chat = parts.models.get_mut("chat").unwrap();
        let small = chat.targets.pop().unwrap();
        chat.fallback = vec!["small".into()];
        parts.models.insert("small".into(), Model { targets: vec![small], ..Model::default() });
    });
    let home = house.open();
    let reply = home.call(call("chat")).await.unwrap();
    assert_eq!((&*reply.served.upstream, reply.served.attempts), ("b", 4));
    drop(reply);

    let house = House::new(&[("a", "rejected 400"), ("b", "ok")]).parts(|parts| {
        let chat = parts.models.get_mut("chat").unwrap();
        let small = chat.targets.pop().unwrap();
        chat.fallback = vec!["small".into()];
        parts.models.insert("small".into(), Model { targets: vec![small], ..Model::default() });
    });
    let error = house.open().call(call("chat")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Rejected, "a caller's mistake is one everywhere");
}

#[tokio::test(start_paused = true)]
async fn a_fallback_that_is_not_there_is_named() {
    let house = House::new(&[("a", "ok")])
        .parts(|parts| parts.models.get_mut("chat").unwrap().fallback = vec!["gone".into()]);
    let error = tidegate_engine::Engine::new(house.parts).err().unwrap();
    assert!(error.to_string().contains("`gone`"), "{error}");
}
