use crate::house::{Home, House};
use futures_util::StreamExt;
use std::time::Duration;
use tidegate_core::Call;
use tidegate_engine::Outcome;
use tidegate_policy::concurrency;
use tidegate_testkit::script::{call, streaming};
use tokio::time::timeout;

/// Calls, and hangs up after `ms`.
async fn hang_up_after(home: &Home, ms: u64, call: Call) {
    let hung_up = timeout(Duration::from_millis(ms), async {
        let mut reply = home.engine.call(call).await.unwrap();
        while reply.body.next().await.is_some() {}
    });
    hung_up.await.unwrap_err();
    home.trace.push("hung up");
}

#[tokio::test(start_paused = true)]
async fn while_waiting_for_the_first_token() {
    let home = House::new(&[("a", "slow")]).open();
    hang_up_after(&home, 300, call("chat")).await;
    home.trace.check("0ms send a #1 -> slow\n300ms drop a\n300ms hung up");
    assert_eq!(home.outcomes(), [Outcome::Cancelled]);
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn in_the_middle_of_a_stream() {
    let home = House::new(&[("a", "stream 100 chunks every 100ms")]).open();
    hang_up_after(&home, 350, streaming("chat")).await;
    home.trace.check("0ms send a #1 -> stream\n350ms drop a\n350ms hung up");
    assert_eq!(home.outcomes(), [Outcome::Cancelled]);
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn while_in_line_and_those_behind_move_up() {
    let home = House::new(&[("a", "ok after 1s")])
        .upstreams(|upstream| upstream.concurrency = concurrency::Options::Fixed(1))
        .open();
    let named = |id: &str| Call { id: id.into(), ..call("chat") };
    let (first, (), last) = tokio::join!(
        home.engine.call(named("first")),
        hang_up_after(&home, 300, named("gone")),
        home.engine.call(named("last")),
    );
    first.unwrap();
    last.unwrap();
    home.trace.check(
        "
        0ms    send a #1 of first -> ok
        300ms  hung up
        1000ms send a #1 of last -> ok
        ",
    );
    assert_eq!(home.outcomes()[0], Outcome::Cancelled);
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn between_two_attempts() {
    let home = House::new(&[("a", "refused retry-after=5s; ok")]).open();
    hang_up_after(&home, 1000, call("chat")).await;
    home.trace.check("0ms send a #1 -> refused\n1000ms hung up");
    home.is_empty();
}
