//! Overload, changing capacity, outages, classes and tenants before a server of known capacity.
//!
//! The server has twenty slots of 50 ms, which is 400 calls a second, and refuses one more with a
//! 429 that names no wait, unless a scenario says otherwise. The figures are SPEC §15's and
//! BATTERY's; `scripts/discipline.py` shows the same on real sockets.

use crate::{
    crowd::{Can, Crowd, Seen, Server, house},
    house::Home,
};
use futures_util::future::join_all;
use std::{sync::Arc, time::Duration};
use tidegate_core::Priority;
use tidegate_policy::concurrency::Options::{self, Auto, Fixed};
use tokio::time::sleep;

/// A call takes 50 ms, and a millisecond on the way.
const ALONE_MS: f64 = 51.0;
const CAPACITY: f64 = 400.0;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn before(can: Can, concurrency: Options) -> (Arc<Server>, Home) {
    let server = Server::new(can);
    let home = house(&server, concurrency).open();
    (server, home)
}

/// `what` is `figure`, and has to lie within `range`.
#[track_caller]
fn check(what: &str, figure: f64, range: std::ops::RangeInclusive<f64>) {
    assert!(range.contains(&figure), "{what}: {figure:.3}, not within {range:?}");
}

#[tokio::test(start_paused = true)]
async fn five_times_capacity() {
    for concurrency in [Fixed(20), Auto] {
        let (server, home) = before(Can::default(), concurrency);
        let seen = Crowd::of(5.0 * CAPACITY).calls(&home, 20).await;
        check("goodput", seen.goodput(5, 20) / CAPACITY, 0.95..=1.0);
        check("p99 of the admitted", seen.good_ms(0.99, 5, 20), 0.0..=1.5 * ALONE_MS);
        check("p99 of refusals", seen.refused_ms(0.99, 5, 20), 0.0..=20.0);
        check("sent per answer", server.sent() as f64 / seen.good() as f64, 1.0..=1.02);
        let polite = |error: &tidegate_core::Error| error.retry_after().is_some();
        assert!(seen.errors().all(polite), "a refusal without Retry-After");
        home.is_empty();
    }
}

#[tokio::test(start_paused = true)]
async fn capacity_that_falls_to_a_quarter_and_comes_back() {
    for by_rate in [false, true] {
        let full = Can {
            slots: if by_rate { 1000 } else { 20 },
            per_second: if by_rate { CAPACITY } else { f64::INFINITY },
            ..Can::default()
        };
        let (server, home) = before(full.clone(), Auto);
        let change = async {
            sleep(seconds(20)).await;
            server.now(|can| if by_rate { can.per_second /= 4.0 } else { can.slots /= 4 });
            sleep(seconds(20)).await;
            server.now(|can| *can = full.clone());
        };
        let (seen, ()) = tokio::join!(Crowd::of(1.5 * CAPACITY).calls(&home, 60), change);
        check("goodput", seen.goodput(10, 20) / CAPACITY, 0.9..=1.01);
        check("10 s after the fall", seen.goodput(30, 40) / CAPACITY * 4.0, 0.95..=1.01);
        check("10 s after the rise", seen.goodput(50, 60) / CAPACITY, 0.9..=1.01);
        check("p99 of the admitted", seen.good_ms(0.99, 10, 60), 0.0..=1.5 * ALONE_MS);
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_over_within_ten_seconds() {
    for status in [503, 500] {
        for concurrency in [Fixed(20), Auto] {
            let (server, home) = before(Can::default(), concurrency);
            let change = async {
                sleep(seconds(10)).await;
                server.now(|can| can.fails = Some(status));
                let sent = server.sent();
                sleep(seconds(10)).await;
                server.now(|can| can.fails = None);
                server.sent() - sent
            };
            let crowd = Crowd::of(0.8 * CAPACITY);
            let (seen, sent) = tokio::join!(crowd.calls(&home, 45), change);
            check("success before", seen.success(5, 10), 0.98..=1.0);
            check("sent while it lasts", sent as f64, 0.0..=60.0);
            check("success from 10 s after on", seen.success(30, 45), 0.99..=1.0);
        }
    }
}

/// Five seconds beside fifty milliseconds: no refusal, so the limit does not shrink.
#[tokio::test(start_paused = true)]
async fn long_answers_do_not_shrink_a_learned_limit() {
    let (server, home) = before(Can { slots: 1000, ..Can::default() }, Auto);
    let change = async {
        sleep(seconds(10)).await;
        let limit = home.limit();
        server.now(|can| can.long = Some((0.1, seconds(5))));
        sleep(seconds(20)).await;
        (limit, home.limit())
    };
    let (seen, (limit, later)) = tokio::join!(Crowd::of(200.0).calls(&home, 30), change);
    assert!(later >= limit, "{limit} became {later}");
    check("success", seen.success(2, 30), 0.99..=1.0);
}

#[tokio::test(start_paused = true)]
async fn interactive_calls_beside_ten_times_as_much_bulk() {
    let can = Can { takes: Duration::from_millis(200), ..Can::default() };
    let (_, home) = before(can, Fixed(20));
    let capacity = CAPACITY / 4.0;
    let people = Crowd { priority: Priority::Interactive, ..Crowd::of(0.3 * capacity) };
    let bulk = Crowd { priority: Priority::Bulk, seed: 2, ..Crowd::of(10.0 * capacity) };
    let alone = people.clone().calls(&home, 20).await.good_ms(0.99, 2, 20);
    let (people, bulk) = tokio::join!(people.calls(&home, 30), bulk.calls(&home, 30));
    check("interactive p99", people.good_ms(0.99, 3, 30) / alone, 1.0..=1.2);
    check("interactive success", people.success(3, 30), 0.999..=1.0);
    check("bulk", bulk.goodput(3, 30) / capacity, 0.5..=0.7);
}

#[tokio::test(start_paused = true)]
async fn a_noisy_tenant_beside_nineteen_quiet_ones() {
    const NAMES: [&str; 19] = [
        "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r",
        "s",
    ];
    for (concurrency, load) in [(Fixed(20), 2.0), (Fixed(20), 10.0), (Auto, 2.0), (Auto, 10.0)] {
        let (_, home) = before(Can::default(), concurrency);
        // A learned limit has been found before.
        Crowd::of(1.5 * CAPACITY).calls(&home, 10).await;
        let quiet = async |home: &Home| {
            let crowd = |(seed, tenant)| {
                let per_second = 0.3 * CAPACITY / NAMES.len() as f64;
                Crowd { tenant, seed, ..Crowd::of(per_second) }.calls(home, 20)
            };
            Seen::all(join_all((100..).zip(NAMES).map(crowd)).await)
        };
        let alone = quiet(&home).await.good_ms(0.99, 2, 20);
        let noisy = Crowd { tenant: "noisy", ..Crowd::of(load * CAPACITY) };
        let (quiet, noisy) = tokio::join!(quiet(&home), noisy.calls(&home, 20));
        // A slot comes back every 2.5 ms, nobody is interrupted, and timers tick in milliseconds.
        check("the quiet ones' p99", quiet.good_ms(0.99, 2, 20) / alone, 1.0..=1.25);
        check("the quiet ones' success", quiet.success(2, 20), 0.995..=1.0);
        check("the noisy one", noisy.goodput(2, 20) / CAPACITY, 0.6..=0.72);
    }
}

/// Servers of other sizes, three times what they can do: goodput from five seconds on.
#[tokio::test(start_paused = true)]
async fn servers_of_all_sizes() {
    for (slots, per_second, ms, least) in [
        (1000, 100.0, 2, 0.95),
        (1000, 40.0, 300, 0.95),
        (20, f64::INFINITY, 2000, 0.9),
        (3, f64::INFINITY, 500, 0.9),
        (200, f64::INFINITY, 200, 0.95),
        (1, f64::INFINITY, 100, 0.9),
    ] {
        let takes = Duration::from_millis(ms);
        let capacity = per_second.min(slots as f64 / takes.as_secs_f64());
        let can = Can { slots, per_second, takes, ..Can::default() };
        let (server, home) = before(can, Auto);
        let seen = Crowd::of(3.0 * capacity).calls(&home, 60).await;
        let what = format!("goodput of {slots} slots of {ms} ms");
        check(&what, seen.goodput(5, 60) / capacity, least..=1.03);
        check("sent per answer", server.sent() as f64 / seen.good() as f64, 1.0..=1.1);
    }
}
