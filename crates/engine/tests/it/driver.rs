//! A seeded random driver: a house with some of every policy, callers of every kind, and the
//! invariants of the house at every step.
//!
//! `TIDEGATE_SEEDS` sets how many scenarios are played (10,000), `TIDEGATE_SEED` plays one alone.
//! What a scenario is follows from its seed: a failing one is printed with all that happened.

mod books;
mod calls;
mod dice;
mod plan;
mod rules;
mod scenario;
mod script;
mod watch;

use futures_util::FutureExt;
use std::{
    collections::BTreeMap,
    num::NonZero,
    ops::Range,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::sync_channel,
    },
    thread::available_parallelism,
    time::Duration,
};
use tokio::time::timeout;
use watch::Watch;

/// Scenarios played unless `TIDEGATE_SEEDS` says otherwise.
const SEEDS: u64 = 10_000;
/// No scenario lasts longer, in virtual time.
const LONGEST: Duration = Duration::from_secs(600);
/// A scenario takes a few milliseconds; one that takes longer than this has the engine spinning,
/// which no clock of its own can end.
const STUCK: Duration = Duration::from_secs(60);
/// Scenarios among which every sort of thing happens.
const ENOUGH: u64 = 1_000;
/// What must happen in as many: an invariant that nothing ever tries proves nothing.
const REACHED: [&str; 30] = [
    "again after a refusal, free: false",
    "again after a refusal, free: true",
    "attempt Dropped",
    "attempt Unsent",
    "booked fallback",
    "booked hedge",
    "booked mirror",
    "booked retry",
    "copy",
    "copy Dropped",
    "hedge",
    "over broken DeadlineExceeded",
    "over broken Upstream",
    "over broken UpstreamTimeout(Idle)",
    "over broken UpstreamTimeout(Total)",
    "over hung up before its first token",
    "over hung up between attempts",
    "over hung up in its answer",
    "over hung up in line",
    "over refused BudgetExceeded by Caller",
    "over refused ConcurrencyLimited by Caller",
    "over refused DeadlineExceeded by Gateway",
    "over refused DeadlineExceeded by Upstream",
    "over refused Overloaded by Gateway",
    "over refused RateLimited by Caller",
    "over refused Unavailable by Gateway",
    "over refused UpstreamTimeout(FirstToken) by Upstream",
    "over refused after 3",
    "reply after 4",
    "reply by a fallback",
];

/// What was seen how often.
type Tally = BTreeMap<String, u64>;

/// Plays one scenario on a runtime of its own, so that its clock starts anew: all that happened,
/// and what was seen how often; or the house, what happened, and what was wrong.
fn play(seed: u64) -> Result<(String, Tally), String> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let watch = Watch::new(plan::plan(seed));
        let played = timeout(LONGEST, scenario::play(seed, &watch));
        let ending = match AssertUnwindSafe(played).catch_unwind().await {
            Ok(Ok(())) => "",
            Ok(Err(_)) => "it never ends",
            Err(panic) => &format!("panic: {}", text(&*panic)),
        };
        let (wrong, events, tally) = watch.report();
        if wrong == 0 && ending.is_empty() {
            return Ok((events, tally));
        }
        Err(format!("{}\n{events}{ending}", watch.plan))
    })
}

fn text(panic: &(dyn std::any::Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?")
}

/// Plays `seeds` on all processors; the tally of all, or the first failure.
fn play_all(seeds: Range<u64>) -> Result<Tally, String> {
    let (next, (tell, told)) = (Arc::new(AtomicU64::new(seeds.start)), sync_channel(64));
    let threads = available_parallelism().map_or(1, NonZero::get);
    let playing: Vec<_> = (0..threads).map(|_| Arc::new(AtomicU64::new(seeds.start))).collect();
    for playing in &playing {
        let (playing, next, tell) = (playing.clone(), next.clone(), tell.clone());
        std::thread::spawn(move || {
            loop {
                let seed = next.fetch_add(1, Relaxed);
                playing.store(seed, Relaxed);
                if seed >= seeds.end || tell.send((seed, play(seed))).is_err() {
                    return;
                }
            }
        });
    }
    drop(tell);
    let mut all = Tally::new();
    for _ in seeds.start..seeds.end {
        let (seed, played) = told
            .recv_timeout(STUCK)
            .map_err(|_| format!("one of the seeds {playing:?} makes the engine spin"))?;
        let (_, tally) = played.map_err(|wrong| {
            format!(
                "seed {seed} fails; to play it alone:\n  TIDEGATE_SEED={seed} cargo test -p \
                 tidegate-engine --test it driver\n{wrong}"
            )
        })?;
        tally.into_iter().for_each(|(what, count)| *all.entry(what).or_default() += count);
    }
    Ok(all)
}

#[test]
fn the_invariants_hold_whatever_happens() {
    let number = |name| std::env::var(name).ok().map(|text: String| text.parse::<u64>().unwrap());
    let seeds = match number("TIDEGATE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TIDEGATE_SEEDS").unwrap_or(SEEDS),
    };
    let enough = seeds.end - seeds.start >= ENOUGH;
    let tally = play_all(seeds).unwrap_or_else(|wrong| panic!("{wrong}"));
    let missed: Vec<_> = REACHED.iter().filter(|what| !tally.contains_key(**what)).collect();
    assert!(missed.is_empty() || !enough, "never seen: {missed:?}, but {tally:#?}");
}

#[test]
fn a_seed_is_played_the_same_again() {
    for seed in 0..20 {
        let [first, second] = [(); 2].map(|()| play(seed).map(|(events, _)| events));
        assert_eq!(first, second, "seed {seed}");
    }
}
