//! A seeded random driver: many calls, every kind of end, and the invariants of the house.
//!
//! `TIDEGATE_SEEDS` sets how many seeds are played (300).

use crate::house::{Home, House};
use futures_util::StreamExt;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{collections::HashMap, time::Duration};
use tidegate_core::{Call, Patience};
use tidegate_policy::{concurrency, retry_budget};
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
    let budget = retry_budget::Options {
        ratio: 0.1,
        floor_per_second: [0.0, 0.1, 1.0][chance.random_range(0..3)],
    };
    let home = House::new(&[("a", &scripts[0]), ("b", &scripts[1])])
        .upstreams(|upstream| upstream.concurrency = concurrency::Options::Fixed(slots))
        .parts(|parts| {
            parts.seed = seed;
            parts.limiters.retry_budget = budget.clone();
        })
        .open();
    let mut told = Vec::new();
    let calls: Vec<_> = (0..40)
        .map(|n| {
            let starts = Duration::from_millis(chance.random_range(0..400));
            let patience = if chance.random_bool(0.3) { Patience::Free } else { Patience::Counted };
            let deadline = Duration::from_millis(chance.random_range(1..8_000));
            told.push(Told { patience, deadline: starts + deadline });
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
                        home.trace.push(format_args!("chunk of {n}"));
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
    check_attempts(&home, &told, &budget);
}

/// What a call was told at its start, by its number.
struct Told {
    patience: Patience,
    /// From the beginning of the trace.
    deadline: Duration,
}

/// No attempt after its call's deadline or first chunk; per upstream no more than the first
/// attempts and the budget. A patient call's attempts after a refusal cost no budget.
fn check_attempts(home: &Home, told: &[Told], budget: &retry_budget::Options) {
    let mut last_outcome = HashMap::new();
    let mut sent: HashMap<String, (u32, u32)> = HashMap::new();
    for line in home.trace.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            [_, "chunk", "of", call] => {
                last_outcome.insert(call.to_owned(), "chunk".to_owned());
            }
            [at, "send", upstream, number, "of", call, "->", outcome] => {
                let call_told = &told[call.parse::<usize>().unwrap()];
                let at: u64 = at.trim_end_matches("ms").parse().unwrap();
                assert!(Duration::from_millis(at) < call_told.deadline, "late: {line}");
                let before = last_outcome.insert(call.to_owned(), outcome.to_owned());
                assert!(before.as_deref() != Some("chunk"), "after the first chunk: {line}");
                let (first, again) = sent.entry(upstream.to_owned()).or_default();
                let waited_out =
                    call_told.patience == Patience::Free && before.as_deref() == Some("refused");
                *first += u32::from(number == "#1");
                *again += u32::from(number != "#1" && !waited_out);
            }
            _ => {}
        }
    }
    // All of it lies within one window of the budget.
    for (upstream, (first, again)) in sent {
        let most =
            f64::from(first) * budget.ratio + budget.floor_per_second * retry_budget::WINDOW as f64;
        assert!(f64::from(again) <= most, "{again} retries at {upstream}, {most} allowed");
    }
}

#[tokio::test(start_paused = true)]
async fn every_call_settles_once_whatever_happens() {
    let seeds = std::env::var("TIDEGATE_SEEDS").map_or(300, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        let played = std::panic::AssertUnwindSafe(play(seed));
        if let Err(panic) = futures_util::FutureExt::catch_unwind(played).await {
            panic!("seed {seed}: {}", panic.downcast_ref::<String>().map_or("?", |text| text));
        }
    }
}
