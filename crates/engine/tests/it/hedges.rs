use crate::house::House;
use std::time::Duration;
use tidegate_policy::{concurrency, hedge};
use tidegate_testkit::script::{call, streaming};

fn hedged(scripts: &[(&str, &str)]) -> House {
    House::new(scripts).parts(|parts| {
        let chat = parts.models.get_mut("chat").unwrap();
        chat.targets[1].weight = 1;
        chat.targets[0].weight = 1_000_000;
        chat.hedge =
            hedge::Options { enabled: true, share: 0.05, after: Some(Duration::from_millis(100)) };
    })
}

/// Calls that earn the first hedge and show nothing else.
const QUICK: &str = "25 * ok; ";

#[tokio::test(start_paused = true)]
async fn a_late_attempt_is_raced_and_the_loser_cancelled() {
    let home = hedged(&[("a", &format!("{QUICK} slow")), ("b", "ok after 20ms")]).open();
    for _ in 0..25 {
        home.engine.call(call("chat")).await.unwrap();
    }
    home.trace.lines();
    let before = home.trace.elapsed();
    let reply = home.engine.call(call("chat")).await.unwrap();
    assert_eq!((&*reply.served.upstream, reply.served.attempts), ("b", 2));
    assert_eq!(home.trace.elapsed() - before, Duration::from_millis(120));
    assert_eq!(home.trace.count("drop a"), 1, "the loser is cancelled");
    drop(reply);
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn no_more_than_its_share_is_hedged() {
    let home = hedged(&[("a", "ok after 200ms"), ("b", "ok")]).open();
    for _ in 0..400 {
        home.engine.call(call("chat")).await.unwrap();
    }
    let hedges = home.trace.count("send b");
    assert!((10..=20).contains(&hedges), "{hedges} of 400");
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn the_first_may_still_win_and_a_failing_hedge_harms_nobody() {
    let home = hedged(&[
        ("a", &format!("{QUICK} ok after 150ms; ok after 150ms")),
        ("b", "ok after 500ms; fault"),
    ])
    .open();
    for _ in 0..25 {
        home.engine.call(call("chat")).await.unwrap();
    }
    let reply = home.engine.call(streaming("chat")).await.unwrap();
    assert_eq!(&*reply.served.upstream, "a");
    drop(reply);
    home.engine.call(call("chat")).await.unwrap();
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn without_a_fixed_delay_hedging_learned_from_no_attempt() {
    let home = hedged(&[("a", "120 * ok after 20ms; slow"), ("b", "ok after 20ms")])
        .parts(|parts| parts.models.get_mut("chat").unwrap().hedge.after = None)
        .open();
    for _ in 0..120 {
        home.engine.call(call("chat")).await.unwrap();
    }
    let before = home.trace.elapsed();
    let reply = home.engine.call(call("chat")).await.unwrap();
    assert_eq!((&*reply.served.upstream, reply.served.attempts), ("b", 2));
    assert!(home.trace.elapsed() - before < Duration::from_millis(50), "about p95, then 20 ms");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_a_gate_refused_earned_its_share_of_a_hedge_twice() {
    // `a` has one slot, which is taken, and no line: whoever comes moves on to `b`.
    let home = hedged(&[("a", "slow"), ("b", "12 * ok; ok after 200ms"), ("c", "ok")])
        .parts(|parts| {
            let a = parts.upstreams.get_mut("a").unwrap();
            a.concurrency = concurrency::Options::Fixed(1);
            parts.limiters.queue.max_waiting = 0;
            parts.models.get_mut("chat").unwrap().targets[1].weight = 1_000;
        })
        .open();
    let others = async {
        for _ in 0..15 {
            home.engine.call(call("chat")).await.unwrap();
        }
    };
    tokio::select! {
        biased;
        _ = home.engine.call(call("chat")) => panic!("`a` is slow"),
        () = others => {}
    }
    assert_eq!(home.trace.count("#2"), 0, "it takes twenty calls to earn one");
}
