//! A seeded random driver: a house with some of every policy, callers of every kind, and the
//! invariants of the house at every step.
//!
//! `TIDEGATE_SEEDS` sets how many scenarios are played (10,000), `TIDEGATE_SEED` plays one alone.
//! What a scenario is follows from its seed: a failing one is printed with all that happened.

mod calls;
mod dice;
mod plan;
mod rules;
mod script;
mod watch;

use crate::house::House;
use futures_util::{FutureExt, future::join_all};
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
use tidegate_core::{Answer, Call, Priority, Tenant};
use tidegate_engine::{Engine, Held};
use tidegate_testkit::{
    script::{Scripted, call},
    trace::Trace,
};
use tokio::time::{sleep, timeout};
use watch::Watch;

/// Scenarios played unless `TIDEGATE_SEEDS` says otherwise.
const SEEDS: u64 = 10_000;
/// No scenario lasts longer, in virtual time.
const LONGEST: Duration = Duration::from_secs(600);

/// A scenario takes a few milliseconds; one that takes longer than this has the engine spinning,
/// which no clock of its own can end.
const STUCK: Duration = Duration::from_secs(60);

/// What was seen how often.
type Tally = BTreeMap<String, u64>;

/// Plays one scenario on a runtime of its own, so that its clock starts anew: what was seen how
/// often, or what was wrong.
fn play(seed: u64) -> Result<(String, Tally), String> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let watch = Watch::new(plan::plan(seed));
        let played =
            AssertUnwindSafe(timeout(LONGEST, scenario(seed, &watch))).catch_unwind().await;
        let ending = match played {
            Ok(Ok(())) => None,
            Ok(Err(_)) => Some("it never ends".to_owned()),
            Err(panic) => Some(format!("panic: {}", text(&*panic))),
        };
        let (wrong, events, tally) = watch.report();
        if wrong == 0 && ending.is_none() {
            return Ok((events, tally));
        }
        let plan = &watch.plan;
        Err(format!("{plan}\n{events}{}", ending.unwrap_or_default()))
    })
}

fn text(panic: &(dyn std::any::Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?")
}

async fn scenario(seed: u64, watch: &Arc<Watch>) {
    let (engine, upstreams) = open(seed, watch);
    let calls = watch.plan.calls.iter().enumerate();
    join_all(calls.map(|(number, planned)| calls::make(number, &engine, planned, watch))).await;
    // A copy of the last call may not have begun.
    tokio::task::yield_now().await;
    watch.all_left();
    if watch.plan.leaves_early {
        drop(engine);
        // Aborted tasks end when the runtime comes to them.
        tokio::task::yield_now().await;
    } else {
        copies_end(watch, &engine).await;
        upstreams.iter().for_each(|upstream| upstream.now("ok"));
        takes_calls_again(watch, &engine).await;
    }
    let out: usize = upstreams.iter().map(|upstream| upstream.in_flight()).sum();
    watch.must(out == 0, format_args!("{out} attempts have no end"));
}

/// The engine as planned, and its upstreams.
fn open(seed: u64, watch: &Arc<Watch>) -> (Arc<Engine>, Vec<Arc<Scripted>>) {
    let (plan, trace) = (&watch.plan, Trace::start());
    let scripted =
        |upstream: &plan::Upstream| Scripted::new(upstream.name, &trace, &upstream.script);
    let upstreams: Vec<_> = plan.upstreams.iter().map(scripted).collect();
    let names = plan.upstreams.iter().map(|upstream| upstream.name);
    let watched = names.zip(&upstreams);
    let watched = watched.map(|(name, upstream)| (name, watch.provider(name, upstream.clone())));
    let house = House::over(trace.clone(), watched.collect()).parts(|parts| {
        for planned in &plan.upstreams {
            let upstream = parts.upstreams.get_mut(planned.name).unwrap();
            (upstream.concurrency, upstream.pacer) = (planned.concurrency, planned.pacer);
        }
        parts.models = plan.models.clone();
        parts.any_model = plan.any_model.clone();
        parts.default_limits = plan.default_limits;
        parts.max_in_flight = plan.max_in_flight;
        parts.memory = plan.memory.clone();
        parts.retry = plan.retry.clone();
        parts.limiters = plan.limiters.clone();
        parts.load = plan.load.clone();
        parts.seed = seed;
        let watch = watch.clone();
        parts.records = Some(Arc::new(move |record| watch.settled(record)));
    });
    let engine = house.open().engine;
    watch.watches(&engine);
    (engine, upstreams)
}

/// Copies may outlive their calls, but not their calls' deadlines.
async fn copies_end(watch: &Watch, engine: &Engine) {
    let last = watch.plan.calls.iter().map(|planned| planned.deadline).max().unwrap_or_default();
    sleep(last).await;
    let held = engine.held();
    watch.must(held == Held::default(), format_args!("{held:?}"));
    for gate in engine.upstreams() {
        let busy = (gate.in_flight, gate.waiting) != (0, 0);
        watch.must(
            !busy,
            format_args!("{} of {}/{} say its slots", gate.in_flight, gate.upstream, gate.model),
        );
    }
}

/// Whatever was learned in a storm, once it is over calls are answered again.
async fn takes_calls_again(watch: &Watch, engine: &Engine) {
    for model in watch.plan.models.keys() {
        let fresh = || Call {
            id: "afterwards".into(),
            priority: Priority::Interactive,
            tenant: Arc::new(Tenant::local()),
            ..call(model)
        };
        if !watch.plan.has_target(&fresh()) {
            continue;
        }
        let mut said = String::new();
        for _ in 0..12 {
            match engine.call(fresh()).await {
                Ok(_) => {
                    said.clear();
                    break;
                }
                Err(error) => said = format!("{error:?}"),
            }
            sleep(Duration::from_secs(10)).await;
        }
        watch.must(said.is_empty(), format_args!("`{model}` does not recover: {said}"));
    }
}

/// Plays `seeds` on all processors; the tally of all, or the first failure.
fn play_all(seeds: Range<u64>) -> Result<Tally, String> {
    let (next, (tell, told)) = (Arc::new(AtomicU64::new(seeds.start)), sync_channel(64));
    let threads = available_parallelism().map_or(1, NonZero::get);
    let playing: Vec<_> = (0..threads).map(|_| Arc::new(AtomicU64::new(seeds.start))).collect();
    for playing in playing.iter().cloned() {
        let (next, tell) = (next.clone(), tell.clone());
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
        if std::env::var("KEEP").is_ok()
            && let Err(wrong) = &played
        {
            let bad: Vec<_> = wrong
                .lines()
                .filter(|l| l.contains("!!!") || l.contains("panic") || l.contains("never ends"))
                .take(2)
                .collect();
            eprintln!("seed {seed}: {bad:?}");
            continue;
        }
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
    match play_all(seeds) {
        Ok(tally) => eprintln!("{tally:#?}"),
        Err(wrong) => panic!("{wrong}"),
    }
}

#[test]
fn a_seed_is_played_the_same_again() {
    for seed in 0..20 {
        let [first, second] = [play(seed), play(seed)].map(|played| played.unwrap().0);
        assert_eq!(first, second, "seed {seed}");
    }
}
