use crate::house::House;
use futures_util::StreamExt;
use tidegate_core::{Kind, Usage};
use tidegate_engine::Outcome;
use tidegate_policy::concurrency;
use tidegate_testkit::script::streaming;

#[tokio::test(start_paused = true)]
async fn a_stream_holds_its_slots_until_its_last_chunk() {
    let home = House::new(&[("a", "stream 3 chunks every 10ms usage=7+3")]).open();
    let mut reply = home.call(streaming("chat")).await.unwrap();
    assert_eq!(home.engine.in_flight(), 1);
    while let Some(chunk) = reply.body.next().await {
        chunk.unwrap();
    }
    // The body is still here, but read to its end.
    assert_eq!(home.engine.in_flight(), 0);
    let record = home.records().pop().unwrap();
    assert_eq!(record.outcome, Outcome::Ok);
    assert_eq!(record.usage, Some(Usage { input: 7, output: 3, ..Usage::default() }));
    assert!(record.first_chunk.unwrap() < record.duration);
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_attempted_after_the_first_chunk() {
    let home =
        House::new(&[("a", "stream 2 chunks then reset"), ("b", "stream 2 chunks then reset")])
            .open();
    let reply = home.call(streaming("chat")).await.unwrap();
    let error = reply.body.collect(1 << 20).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Upstream);
    assert_eq!(home.trace.count("send"), 1);
    assert_eq!(home.outcomes(), [Outcome::Failed(Kind::Upstream)]);
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn a_stream_takes_an_upstream_slot_from_the_next_call() {
    let home = House::new(&[("a", "stream 2 chunks every 500ms; ok")])
        .upstreams(|upstream| upstream.concurrency = concurrency::Options::Fixed(1))
        .open();
    let first = home.call(streaming("chat")).await.unwrap();
    let (read, second) = tokio::join!(first.body.collect(1 << 20), home.call(streaming("chat")));
    read.unwrap();
    second.unwrap();
    home.trace.check(
        "
        0ms    send a #1 -> stream
        500ms  reply by a after 1
        1000ms end a
        1000ms send a #1 -> ok
        1000ms reply by a after 1
        1000ms drop a
        ",
    );
}
