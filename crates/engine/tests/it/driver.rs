//! A seeded random driver: many calls, every kind of end, and the invariants of the house.

use crate::house::House;
use futures_util::StreamExt;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::time::Duration;
use tidegate_core::{Call, Patience};
use tidegate_policy::concurrency;
use tidegate_testkit::script::{call, streaming, within};
use tokio::time::{sleep, timeout};

const STEPS: [&str; 12] = [
    "ok",
    "ok after 80ms",
    "slow",
    "refused",
    "refused retry-after=1s",
    "fault",
    "unreachable",
    "rejected 400",
    "timeout connect",
    "stream 5 chunks every 30ms",
    "stream 2 chunks then reset",
    "stream stall after 1",
];

/// One seed: forty calls over two targets, a third of them abandoned.
async fn play(seed: u64) {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut script = |_| -> String {
        (0..60).map(|_| format!("{}\n", STEPS[chance.random_range(0..STEPS.len())])).collect()
    };
    let scripts: Vec<_> = (0..2).map(&mut script).collect();
    let slots = chance.random_range(1..6);
    let home = House::new(&[("a", &scripts[0]), ("b", &scripts[1])])
        .upstreams(|upstream| upstream.concurrency = concurrency::Options::Fixed(slots))
        .parts(|parts| parts.seed = seed)
        .open();
    let calls: Vec<_> = (0..40)
        .map(|n| {
            let starts = Duration::from_millis(chance.random_range(0..400));
            let patience = if chance.random_bool(0.3) { Patience::Free } else { Patience::Counted };
            let deadline = Duration::from_millis(chance.random_range(1..8_000));
            let hangs_up = chance
                .random_bool(0.3)
                .then(|| Duration::from_millis(chance.random_range(0..2_000)));
            let streamed = chance.random_bool(0.5);
            let home = &home;
            async move {
                sleep(starts).await;
                let shape = if streamed { streaming("chat") } else { call("chat") };
                let deadline = within(deadline);
                let call = Call { id: format!("{n}").into(), patience, deadline, ..shape };
                let whole = async {
                    if let Ok(mut reply) = home.engine.call(call).await {
                        while reply.body.next().await.is_some() {}
                    }
                };
                let wait = hangs_up.unwrap_or(Duration::from_secs(3600));
                let _ = timeout(wait, whole).await;
                let late =
                    tokio::time::Instant::now().into_std().saturating_duration_since(deadline);
                assert!(
                    late <= Duration::from_millis(2),
                    "call {n} outlived its deadline by {late:?}"
                );
            }
        })
        .collect();
    futures_util::future::join_all(calls).await;

    home.is_empty();
    let mut ids: Vec<_> = home.records().iter().map(|record| record.id.clone()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), home.records().len()), (40, 40), "one record per call");
    let (sends, retries) = home
        .trace
        .lines()
        .iter()
        .filter(|line| line.contains(" send "))
        .fold((0, 0), |(sends, retries), line| {
            (sends + 1, retries + usize::from(!line.contains(" #1 ")))
        });
    assert!(sends <= 40 * 60 && retries <= sends, "{sends} attempts");
}

#[tokio::test(start_paused = true)]
async fn every_call_settles_once_whatever_happens() {
    for seed in 0..300 {
        let played = std::panic::AssertUnwindSafe(play(seed));
        if let Err(panic) = futures_util::FutureExt::catch_unwind(played).await {
            panic!("seed {seed}: {}", panic.downcast_ref::<String>().map_or("?", |text| text));
        }
    }
}
