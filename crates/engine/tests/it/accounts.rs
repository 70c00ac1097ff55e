//! One entry in the ledger for each attempt that was sent.

use crate::priced::{INPUT, NEVER, by, entries, priced, soft, with_a_hedge_earned};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tidegate_core::{Call, Cause, Class, Entry, Front, Money, Price, Rates, Tenant};
use tidegate_engine::Mirror;
use tidegate_policy::{canary, retry_budget};
use tidegate_testkit::script::{call, streaming};
use tokio::time::{sleep, timeout};

#[tokio::test(start_paused = true)]
async fn every_ending_is_one_entry() {
    let leaves = Duration::from_millis(25);
    for (script, is_stream, leaves, expected) in [
        ("ok usage=7+3", false, NEVER, "ok 7+3 told $0.013"),
        ("ok usage=7+3", true, NEVER, "ok 7+3 told $0.013"),
        ("rejected 400", false, NEVER, "caller 0+0 $0.00"),
        ("refused", false, NEVER, "capacity 0+0 $0.00"),
        ("fault", true, NEVER, "fault 0+0 $0.00"),
        ("credential", false, NEVER, "credential 0+0 $0.00"),
        ("quota", false, NEVER, "quota 0+0 $0.00"),
        ("unreachable", false, NEVER, "fault 0+0 $0.00"),
        ("timeout connect", false, NEVER, "timeout 0+0 $0.00"),
        // The upstream has read the prompt.
        ("slow", true, NEVER, "timeout 10+0 $0.01"),
        ("timeout first_token after 10ms", false, NEVER, "timeout 10+0 $0.01"),
        ("slow", false, leaves, "cancelled 10+0 $0.01"),
        ("slow", true, leaves, "cancelled 10+0 $0.01"),
        // Two chunks have passed, at 10 and 20 ms.
        ("stream 9 chunks every 10ms", true, leaves, "cancelled 10+2 $0.014"),
        ("stream 2 chunks then fault", true, NEVER, "fault 10+2 $0.014"),
        ("stream stall after 1", true, NEVER, "timeout 10+1 $0.012"),
    ] {
        let asked = if is_stream { streaming("chat") } else { call("chat") };
        let written = entries(script, asked, leaves).await;
        assert_eq!(written, format!("a #1 first {expected}"), "{script}, stream: {is_stream}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_given_up_while_its_connection_was_made_was_billed_its_prompt() {
    let leaves = Duration::from_millis(25);
    assert_eq!(entries("dialing", call("chat"), leaves).await, "");
    assert_eq!(entries("dialing", call("chat"), NEVER).await, "a #1 first timeout 0+0 $0.00");
}

#[tokio::test(start_paused = true)]
async fn a_retry_given_up_while_its_connection_was_made_leaves_the_first_attempts_entry() {
    let (house, written) = priced(&[("a", "fault; dialing")]);
    let home = house.open();
    assert!(timeout(Duration::from_secs(20), home.engine.call(call("chat"))).await.is_err());
    assert_eq!(home.trace.count(" send a"), 2);
    assert_eq!(written.lines(), ["a #1 first fault 0+0 $0.00"]);
    assert_eq!(home.records()[0].cost, Some(Money::ZERO));
}

#[tokio::test(start_paused = true)]
async fn an_entry_says_whose_it_is_and_where_it_went() {
    let (house, written) = priced(&[("a", "ok after 30ms usage=7+3")]);
    let home = house.open();
    let tenant = Tenant { id: "k1".into(), team: Some("search".into()), ..Tenant::local() };
    home.engine.call(Call { tenant: Arc::new(tenant), ..call("chat") }).await.unwrap();
    let entry = written.take().pop().unwrap();
    let words = [&*entry.call, &*entry.caller, entry.team.as_deref().unwrap(), &*entry.model];
    assert_eq!(words, ["call", "k1", "search", "chat"]);
    assert_eq!((&*entry.upstream, &*entry.upstream_model), ("a", "m"));
    assert_eq!(entry.took, Duration::from_millis(30));
    assert!(entry.at <= SystemTime::now());
    assert_eq!(home.records()[0].cost, Some(Money::from_pico(13_000_000_000)));
}

#[tokio::test(start_paused = true)]
async fn what_has_no_price_costs_nobody_knows_what() {
    let (house, written) = priced(&[("a", "ok usage=7+3")]);
    let home = house.parts(|parts| parts.prices.clear()).open();
    home.engine.call(call("chat")).await.unwrap();
    assert_eq!(written.lines(), ["a #1 first ok 7+3 told unknown"]);
    assert_eq!(home.records()[0].cost, None);
}

#[tokio::test(start_paused = true)]
async fn a_target_may_cost_something_else() {
    let (house, written) = priced(&[("a", "ok usage=7+3")]);
    let home = house.parts(|parts| {
        let target = &mut parts.models.get_mut("chat").unwrap().targets[0];
        target.price = Some(Price::flat(Rates::new(INPUT, Money::ZERO)));
    });
    home.open().engine.call(call("chat")).await.unwrap();
    assert_eq!(written.lines(), ["a #1 first ok 7+3 told $0.007"]);
}

#[tokio::test(start_paused = true)]
async fn retries_and_fallbacks_are_entries_of_their_own() {
    let (house, written) = priced(&[("a", "fault"), ("b", "ok usage=7+3")]);
    let home = house
        .parts(|parts| {
            let mut small = parts.models["chat"].clone();
            parts.models.get_mut("chat").unwrap().targets.truncate(1);
            parts.models.get_mut("chat").unwrap().fallback = vec!["small".into()];
            small.targets.remove(0);
            parts.models.insert("small".into(), small);
            parts.retry.max_attempts = 2;
            parts.limiters.retry_budget =
                retry_budget::Options { floor_per_second: 100.0, ..Default::default() };
        })
        .open();
    home.engine.call(Call { front: Front::Batch, ..call("chat") }).await.unwrap();
    assert_eq!(
        written.lines(),
        [
            "a #1 batch fault 0+0 $0.00",
            "a #2 retry fault 0+0 $0.00",
            "b #3 fallback ok 7+3 told $0.013"
        ]
    );
    assert_eq!(home.records()[0].cost, Some(Money::from_pico(13_000_000_000)));
}

#[tokio::test(start_paused = true)]
async fn a_hedges_loser_is_paid_for_too() {
    let upstreams = [("a", "25 * ok usage=10+16; slow"), ("b", "ok after 20ms usage=7+3")];
    let (home, written) = with_a_hedge_earned(&upstreams).await;
    let reply = home.engine.call(call("chat")).await.unwrap();
    assert_eq!(&*reply.served.upstream, "b");
    let entries = written.take();
    let of = |entry: &Entry| (entry.cause, entry.failure, entry.usage.output);
    assert_eq!(
        entries.iter().map(of).collect::<Vec<_>>(),
        [(Cause::Hedge, None, 3), (Cause::First, Some(Class::Cancelled), 0)]
    );
    assert!(entries[1].usage.input > 0, "the loser has read the prompt");
    drop(reply);
    assert_eq!(home.records()[25].cost, entries.iter().map(|entry| entry.cost).sum());
    home.is_empty();
}

#[tokio::test(start_paused = true)]
async fn a_hedged_call_whose_first_attempt_had_no_connection_was_no_call() {
    let upstreams = [("a", "25 * ok usage=10+16; dialing"), ("b", "ok after 20ms usage=7+3")];
    let (home, written) = with_a_hedge_earned(&upstreams).await;
    drop(home.engine.call(call("chat")).await.unwrap());
    let expected = ["b #2 hedge ok 7+3 told $0.013", "a #1 first cancelled 0+0 $0.00"];
    assert_eq!(written.lines(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_mirrors_copy_is_an_entry_and_no_burden_of_its_caller() {
    let (house, written) = priced(&[("a", "ok usage=7+3"), ("b", "ok usage=70+30")]);
    let home = house
        .parts(|parts| {
            let chat = parts.models.get_mut("chat").unwrap();
            chat.targets.truncate(1);
            let (upstream, model) = ("b".into(), "m".into());
            let options = canary::Mirror { share: 1.0 };
            chat.mirror = Some(Mirror { upstream, model, price: None, options });
        })
        .open();
    home.engine.call(by(soft(Money::DOLLAR))).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let mut lines = written.lines();
    lines.sort();
    assert_eq!(lines, ["a #1 first ok 7+3 told $0.013", "b #1 mirror ok 70+30 told $0.13"]);
    assert_eq!(home.records()[0].cost, Some(Money::from_pico(13_000_000_000)));
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_under_way_when_the_engine_goes_is_an_entry() {
    let (house, written) = priced(&[("a", "ok"), ("b", "slow")]);
    let home = house.parts(|parts| {
        let chat = parts.models.get_mut("chat").unwrap();
        chat.targets.truncate(1);
        let (upstream, model) = ("b".into(), "m".into());
        let options = canary::Mirror { share: 1.0 };
        chat.mirror = Some(Mirror { upstream, model, price: None, options });
    });
    let home = home.open();
    home.engine.call(call("chat")).await.unwrap();
    tokio::task::yield_now().await;
    drop(home);
    tokio::task::yield_now().await;
    assert!(written.lines().contains(&"b #1 mirror cancelled 10+0 $0.01".to_owned()));
}
