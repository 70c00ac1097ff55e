//! One scenario from its first call to the moment nothing is held any more, and after it.

use super::{
    books, calls,
    plan::{self, Plan},
    watch::Watch,
};
use crate::house::House;
use futures_util::future::join_all;
use std::{sync::Arc, time::Duration};
use tidegate_core::{Answer, Call, Money, Priority, Tenant};
use tidegate_engine::{Engine, Held};
use tidegate_testkit::{
    script::{Scripted, call},
    trace::Trace,
};
use tokio::time::sleep;

/// Plays all calls of the plan, and looks at what is left when they are over.
pub(super) async fn play(seed: u64, watch: &Arc<Watch>) {
    let (engine, upstreams) = open(seed, watch);
    let calls = watch.plan.calls.iter().enumerate();
    join_all(calls.map(|(number, planned)| calls::make(number, &engine, planned, watch))).await;
    // A copy of the last call may not have begun.
    tokio::task::yield_now().await;
    watch.all_left();
    let reserved = engine.held().reserved;
    watch.must(reserved == Money::ZERO, format_args!("{reserved} are still reserved"));
    if watch.plan.leaves_early {
        drop(engine);
        // Aborted tasks end when the runtime comes to them.
        tokio::task::yield_now().await;
        watch.books_add_up();
    } else {
        copies_end(watch, &engine).await;
        watch.books_add_up();
        upstreams.iter().for_each(|upstream| upstream.now("ok"));
        takes_calls_again(watch, &engine).await;
    }
    let out: usize = upstreams.iter().map(|upstream| upstream.in_flight()).sum();
    watch.must(out == 0, format_args!("{out} attempts have no end"));
}

/// The engine as planned, and its upstreams.
fn open(seed: u64, watch: &Arc<Watch>) -> (Arc<Engine>, Vec<Arc<Scripted>>) {
    let (plan, trace): (&Plan, _) = (&watch.plan, Trace::start());
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
        parts.limits = plan.limits.clone();
        parts.max_in_flight = plan.max_in_flight;
        parts.memory = plan.memory.clone();
        parts.retry = plan.retry.clone();
        parts.limiters = plan.limiters.clone();
        parts.load = plan.load.clone();
        parts.seed = seed;
        parts.ledger = Some(watch.books.clone());
        parts.prices = books::prices(plan);
        let watch = watch.clone();
        parts.records = Some(Arc::new(move |record| watch.settled(*record)));
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
        let counts = (gate.in_flight, gate.waiting);
        watch.must(counts == (0, 0), format_args!("{} counts {counts:?}", gate.upstream));
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
