use crate::house::House;
use futures_util::{StreamExt, future::join};
use std::time::Duration;
use tidegate_core::{Call, Class, Clock, Kind};
use tidegate_policy::{concurrency, retry, timeout::FirstToken};
use tidegate_testkit::script::{call, streaming, within};

fn once(house: House) -> House {
    house.parts(|parts| parts.retry = retry::Options { max_attempts: 1, ..Default::default() })
}

#[tokio::test(start_paused = true)]
async fn a_slow_first_token_is_tried_again_elsewhere() {
    let home = House::new(&[("a", "slow; ok")])
        .timeouts(|clocks| clocks.first_token = FirstToken::Fixed(Duration::from_secs(2)))
        .open();
    home.call(streaming("chat")).await.unwrap();
    let lines = home.trace.lines();
    assert_eq!(lines[..2], ["0ms send a #1 -> slow", "2000ms drop a"], "{lines:?}");
    assert!(lines[2].contains("send a #2 -> ok"), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn each_clock_says_its_name() {
    let home = once(House::new(&[("a", "slow")]))
        .timeouts(|clocks| clocks.total = Duration::from_secs(7))
        .open();
    let error = home.call(call("chat")).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.class()),
        (Kind::UpstreamTimeout(Clock::Total), Class::Timeout)
    );
    let late = Call { deadline: within(Duration::from_secs(3)), ..call("chat") };
    let error = home.call(late).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    let error =
        home.call(Call { deadline: within(Duration::ZERO), ..call("chat") }).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (Kind::DeadlineExceeded, 0));
    home.trace.check(
        "
        0ms     send a #1 -> slow
        7000ms  drop a
        7000ms  UpstreamTimeout(Total) after 1
        7000ms  send a #1 -> slow
        10000ms drop a
        10000ms DeadlineExceeded after 1
        10000ms DeadlineExceeded after 0
        ",
    );
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn a_slot_freed_at_the_deadline_comes_too_late() {
    let home = House::new(&[("a", "ok after 1s")])
        .upstreams(|upstream| upstream.concurrency = concurrency::Options::Fixed(1))
        .open();
    let second = Call { deadline: within(Duration::from_secs(1)), ..call("chat") };
    // Polled in this order: the slot is free before the second looks at its clock.
    let both = join(home.engine.call(call("chat")), home.engine.call(second));
    let (first, second) = both.await;
    first.unwrap();
    assert_eq!(second.unwrap_err().kind(), Kind::DeadlineExceeded);
    assert_eq!(home.trace.count("send"), 1);
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn the_first_token_clock_learns() {
    let home = once(House::new(&[("a", "120 * stream 1 chunks every 100ms; slow")])).open();
    for _ in 0..120 {
        let reply = home.engine.call(streaming("chat")).await.unwrap();
        reply.body.collect(1 << 20).await.unwrap();
    }
    let before = home.trace.elapsed();
    let error = home.engine.call(streaming("chat")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::UpstreamTimeout(Clock::FirstToken));
    let waited = home.trace.elapsed() - before;
    assert!(waited <= Duration::from_secs(1), "{waited:?} for a server that takes 100 ms");
}

#[tokio::test(start_paused = true)]
async fn no_attempt_outlives_the_deadline_even_between_chunks() {
    let home = once(House::new(&[("a", "stream 1000 chunks every 1s")])).open();
    let short = Call { deadline: within(Duration::from_millis(3500)), ..streaming("chat") };
    let reply = home.engine.call(short).await.unwrap();
    let error = reply.body.collect(1 << 20).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert_eq!(home.trace.elapsed(), Duration::from_millis(3500));
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_of_a_quick_stream_is_cut_at_the_deadline_too() {
    let home = once(House::new(&[("a", "stream 1000 chunks")])).open();
    let short = Call { deadline: within(Duration::from_millis(3500)), ..streaming("chat") };
    let mut reply = home.engine.call(short).await.unwrap();
    let error = loop {
        match reply.body.next().await.unwrap() {
            Ok(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert_eq!(home.trace.elapsed(), Duration::from_secs(4));
    drop(reply);
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn clocks_without_end_do_not_overflow() {
    let home = House::new(&[("a", "stream 2 chunks every 10ms")])
        .timeouts(|clocks| {
            clocks.connect = Duration::MAX;
            clocks.first_token = FirstToken::Fixed(Duration::MAX);
            clocks.idle = Duration::MAX;
            clocks.total = Duration::MAX;
        })
        .open();
    let reply = home.engine.call(streaming("chat")).await.unwrap();
    reply.body.collect(1 << 20).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_falls_silent_is_cut() {
    let home = once(House::new(&[("a", "stream stall after 2")]))
        .timeouts(|clocks| clocks.idle = Duration::from_secs(5))
        .open();
    let reply = home.engine.call(streaming("chat")).await.unwrap();
    let error = reply.body.collect(1 << 20).await.unwrap_err();
    assert_eq!(error.kind(), Kind::UpstreamTimeout(Clock::Idle));
    home.is_empty();
}
