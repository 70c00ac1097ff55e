use crate::house::House;
use std::time::Duration;
use tidegate_policy::hedge;
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
